"""Answers as parts of a page, and as pages of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.answers.views import VIEWS
from whence.data.tables import plain_id
from whence.report.labels import Wording
from whence.report.names import visible
from whence.report.numbers import number, percentage
from whence.report.page import Card, Contribution, Fact, Page, Section, Side, Table
from whence.report.pictures import Gallery
from whence.report.samples import check_notes, checked_samples, n_samples
from whence.report.suspects import suspects_table
from whence.report.tables import Comparison, is_tabular, neighbours_table

__all__ = ["explanation_page", "how_to_read", "prediction_cards", "summary_of", "suspects_page"]


def prediction_cards(
    explanation: Explanation,
    *,
    samples: Any = None,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    notes: Mapping[Any, str] | None = None,
    sample_noun: str = "sample",
    training_noun: str = "training sample",
) -> list[Card]:
    """Return one card for each explained prediction.

    Parameters
    ----------
    explanation : Explanation
    samples : array, sequence or mapping, optional
        The explained samples as a person should see them, in their order, or a mapping by id.
    training_samples : array, sequence or mapping, optional
        The training samples likewise: in their order if ids are positions, else a mapping by id.
    class_names : sequence of str, optional
    column_names : sequence of str, optional
        The columns of arrays of rows.
    notes : mapping, optional
        A few words on some training samples, by id.
    sample_noun, training_noun : str
        Nouns for a sample, in the singular.
    """
    wording = Wording.of(explanation, class_names)
    check_notes(notes)
    samples = checked_samples(samples, "samples")
    training_samples = checked_samples(training_samples, "training_samples")
    comparison = None
    if is_tabular(samples) and is_tabular(training_samples):
        comparison = Comparison(samples, training_samples, column_names=column_names)
        samples = training_samples = None  # the table below a card shows them
    by_id = isinstance(samples, Mapping)
    if samples is not None and not by_id:
        _check_count(samples, explanation)
    explained, training = Gallery(samples, "samples"), Gallery(training_samples, "training_samples")
    supporters = (explanation.ids, explanation.values, explanation.shares, explanation.training_labels)
    opponents = (
        explanation.opponent_ids,
        explanation.opponent_values,
        explanation.opponent_shares,
        explanation.opponent_labels,
    )
    cards = []
    for t in range(len(explanation)):
        title = f"Predicted {wording.text(explanation.predictions[t])}"
        name, mark = f"{sample_noun} {visible(explanation.sample_ids[t])}", ""
        if explanation.positions is not None:
            name += f", position {explanation.positions[t]}"
        words = f"{name}, {title[0].lower()}{title[1:]}"
        if explanation.labels is not None:
            given = wording.given(explanation.labels[t])
            words = f"{words}, {given}"
            are_classes = np.issubdtype(explanation.labels.dtype, np.integer)
            is_other = are_classes and np.any(explanation.labels[t] != explanation.predictions[t])
            name, mark = (name, given) if is_other else (f"{name}, {given}", "")
        output = wording.explained(explanation, t)
        values = np.concatenate([explanation.values[t], explanation.opponent_values[t]])
        longest = float(np.abs(values).max(initial=0.0)) or 1.0
        sides = []
        titles = wording.sides(output, explanation.values[t], explanation.opponent_values[t])
        for side_title, kind, of_side in zip(
            titles, ("for", "against"), (supporters, opponents), strict=True
        ):
            contributions = []
            for training_id, value, share, label in zip(*(array[t] for array in of_side), strict=True):
                label_name = wording.given(label)
                shown_id = visible(training_id)
                alt = f"{training_noun} {shown_id}, {label_name}"
                contributions.append(
                    Contribution(
                        f"id {shown_id}",
                        number(value, sign=True),
                        label_name,
                        abs(float(value)) / longest,
                        training.picture(training_id, alt, "small"),
                        (notes or {}).get(plain_id(training_id), ""),
                        percentage(share),
                    )
                )
            sides.append(Side(side_title, kind, contributions))
        facts = [("Explained", output)] if output else []
        facts.append(("Model's own", number(explanation.pre_activations[t], digits=2)))
        if explanation.decomposes_prediction:
            facts.insert(-1, ("Sum of all values", number(explanation.totals[t], digits=2)))
        picture = explained.picture(explanation.sample_ids[t] if by_id else t, words)
        tables = [] if comparison is None else [neighbours_table(explanation, t, comparison)]
        cards.append(Card(title, name[0].upper() + name[1:], facts, sides, picture, mark, tables))
    return cards


def summary_of(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader asks first about how something was computed: model, layer, method, solver, N.

    Examples
    --------
    >>> summary_of({"method": "RepresenterPointLJE", "solver": "ExactIHVP", "relative_residual": 2e-15})
    [('Method', 'RepresenterPointLJE'), ('Solver', 'ExactIHVP, relative residual 2.0 × 10⁻¹⁵')]
    """
    known = {name: str(about[name]) for name in ("model", "layer", "method", "loss") if name in about}
    known |= {"layer": "the model itself"} if about.get("layer") == "" else {}
    if {"n_features", "n_outputs", "layer"} <= about.keys():
        known["layer"] += f", {about['n_features']:,} × {about['n_outputs']:,} weights"
    if "solver" in about:
        known["solver"] = str(about["solver"])
        if "damping" in about:
            known["solver"] += f", damping {about['damping']:g}"
        if "relative_residual" in about:
            known["solver"] += f", relative residual {number(about['relative_residual'])}"
    if "n_samples" in about:
        known["training samples"] = f"{about['n_samples']:,}"
    return [(name.capitalize(), value) for name, value in known.items()]


def how_to_read(explanation: Explanation, briefly: bool = False) -> str:
    """Return how a value is to be read; stands above every list of contributions."""
    wording = Wording.of(explanation, None)
    signs = wording.signs()
    if not explanation.decomposes_prediction:
        first = f"A value is how strong an influence is, as the method measures it: {signs}."
        rest = (
            "Shown are the strongest of either sign. The values of all training samples do not sum to the "
            "prediction."
        )
        return first if briefly else f"{first} {rest}"
    if briefly:
        return f"A value is what one training sample adds to the explained output: {signs}."
    what = {
        "class": "the pre-activation of the explained output, by default that of the predicted class: the "
        "number that the layer gives before any softmax or sigmoid",
        "tags": "the pre-activation of the explained output, by default the largest: the number that the "
        "layer gives for a tag before the sigmoid",
        "value": "the explained output of the layer",
    }[wording.kind]
    return (
        f"A value is what one training sample adds to {what}. {signs[0].upper()}{signs[1:]}. Shown are the "
        "strongest of either sign; the sum is that of all training samples, shown or not, and beside it "
        "stands the model's own output. Percentages are values over the size of that sum."
    )


@VIEWS.register("explanation:html")
def explanation_page(
    explanation: Explanation,
    *,
    samples: Any = None,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    suspects: Suspects | None = None,
    notes: Mapping[Any, str] | None = None,
    title: str = "Where these predictions come from",
    sample_noun: str = "sample",
    training_noun: str = "training sample",
) -> Page:
    """Return a page of its own for an explanation; see :meth:`whence.Explanation.save_html`."""
    shown = {"training_samples": training_samples, "class_names": class_names, "notes": notes}
    cards = prediction_cards(
        explanation,
        samples=samples,
        column_names=column_names,
        sample_noun=sample_noun,
        training_noun=training_noun,
        **shown,
    )
    n_samples = explanation.about.get("n_samples")
    among = f" among {n_samples:,} training samples" if n_samples else ""
    lead = f"The strongest supporters and opponents of {len(explanation):,} predictions{among}."
    sums = len(explanation) > 0 and explanation.decomposes_prediction
    below = [_completeness(explanation)] if sums else []
    sections = [Section("Predictions", [how_to_read(explanation)], cards, notes=below)]
    if suspects is not None:
        if not isinstance(suspects, Suspects):
            raise WhenceError("suspects", "what suspects() returns", described(suspects), "Leave it out.")
        sections.append(_suspects_section(suspects_table(suspects, **shown), "Labels to look at first"))
    about = explanation.about
    return Page(title, [lead], _facts(explanation), sections, about, summary_of(about))


@VIEWS.register("suspects:html")
def suspects_page(
    suspects: Suspects,
    *,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    notes: Mapping[Any, str] | None = None,
    title: str = "Labels to look at first",
) -> Page:
    """Return a page of its own for suspects; see :meth:`whence.Suspects.save_html`."""
    table = suspects_table(
        suspects, training_samples=training_samples, class_names=class_names, notes=notes
    )
    sections = [_suspects_section(table, "Suspects")]
    return Page(title, sections=sections, about=suspects.about, summary=summary_of(suspects.about))


def _suspects_section(table: Table, title: str) -> Section:
    lead = (
        "Training samples whose given label is doubtful, the most doubtful first. Rare but right samples "
        "are doubtful too: look before you correct."
    )
    return Section(title, [lead], tables=[table])


def _facts(explanation: Explanation) -> list[Fact]:
    """Return the figures that stand first: how much is shown, and how complete the values are."""
    k = explanation.ids.shape[1]
    facts = [Fact("Predictions explained", f"{len(explanation):,}", f"{k} training samples of either sign")]
    labels = explanation.labels
    is_class = explanation.label_kind == "class" and labels is not None and labels.ndim == 1
    if len(explanation) and labels is not None and (is_class or explanation.label_kind == "tags"):
        right = np.all((labels == explanation.predictions).reshape(len(labels), -1), axis=1)
        note = f"{right.sum():,} of {right.size:,}"
        facts.append(Fact("Predicted as labelled", percentage(right.mean(), sign=False), note))
    if not len(explanation) or not explanation.decomposes_prediction:
        return facts
    size = np.abs(explanation.totals).sum()
    if size > 0:
        for_it, against = (v.sum() / size for v in (explanation.values, explanation.opponent_values))
        note = f"of the sums of all values: the {k} supporters and the {k} opponents of each"
        facts.append(Fact("Share of those shown", f"{percentage(for_it)} {percentage(against)}", note))
    gap = np.abs(explanation.totals - explanation.pre_activations).mean()
    own = np.abs(explanation.pre_activations).mean()
    note = f"apart on average; the model's own is {number(own, digits=2)} on average"
    return [*facts, Fact("Sum and model", number(gap, digits=2), note)]


def _completeness(explanation: Explanation) -> str:
    gap = np.abs(explanation.totals - explanation.pre_activations)
    refers_to = {
        "RepresenterPointLJE": "for local Jacobian expansion, it is what the layer predicts after one "
        "Newton step",
        "RepresenterPointL2": "for representer points, it is what the refitted layer predicts",
    }.get(str(explanation.about.get("method")), "it is what the method's own layer predicts")
    return (
        f"The sum of all values is not the model's own prediction: {refers_to}. For the predictions shown "
        f"the two are {number(gap.mean())} apart on average, {number(gap.max())} at most. The closer they "
        "are, the more the values say about the model as it is."
    )


def _check_count(samples: Any, explanation: Explanation) -> None:
    """Raise unless there is one sample for each prediction: they are shown in their order."""
    count = n_samples(samples)
    if count != len(explanation):
        raise WhenceError(
            "samples",
            f"the {len(explanation)} explained samples, in their order",
            f"{count} samples",
            "Pass those that were given to explain, or a dict from id to sample.",
        )
