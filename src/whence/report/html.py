"""Answers as parts of a page, and as pages of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whence._errors import WhenceError, described
from whence.report.page import Card, Cell, Column, Contribution, Page, Section, Side, Table, number
from whence.report.pictures import Gallery
from whence.report.tables import Comparison, is_tabular, neighbours_table

if TYPE_CHECKING:  # the answers know how to save themselves: at run time this module knows nothing of them
    from whence.explanation import Explanation
    from whence.suspects import Suspects

__all__ = [
    "explanation_page",
    "prediction_cards",
    "suspects_page",
    "suspects_table",
]

SCORE_NAMES = {
    "leave_one_out": "leave-one-out score",
    "self_influence": "self-influence",
    "loss": "training loss",
}

#: Labels of a sequence that are written out.
LABELS_SHOWN = 12

#: How a value is to be read; stands above every list of contributions.
HOW_TO_READ = (
    "A value is what one training sample adds to the pre-activation of the explained output, by default "
    "that of the predicted class: the number that the layer gives before any softmax or sigmoid. Plus "
    "speaks for the prediction, minus against it. Shown are the strongest of either sign; the sum is "
    "that of all training samples, shown or not, and beside it stands the model's own pre-activation."
)


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
        What to show of the explained samples, in their order, or by id as a mapping.
    training_samples : array, sequence or mapping, optional
        What to show of the training samples: by position if ids are positions, else a mapping by id.
    class_names : sequence of str, optional
    column_names : sequence of str, optional
        The columns of arrays of rows.
    notes : mapping, optional
        A few words on some training samples, by id.
    sample_noun, training_noun : str
        What a sample is called, in the singular.
    """
    comparison = None
    if is_tabular(samples) and is_tabular(training_samples):
        comparison = Comparison(samples, training_samples, column_names=column_names)
        samples = training_samples = None  # the table below a card shows them
    by_id = isinstance(samples, Mapping)
    if samples is not None and not by_id:
        _check_count(samples, explanation)
    explained, training = Gallery(samples, "samples"), Gallery(training_samples, "training_samples")
    cards = []
    for t in range(len(explanation)):
        title = f"Predicted {label_text(explanation.predictions[t], class_names)}"
        name, mark = f"{sample_noun} {explanation.sample_ids[t]}", ""
        alt = f"{name}, {title[0].lower()}{title[1:]}"
        if explanation.labels is not None:
            given = f"labelled {label_text(explanation.labels[t], class_names)}"
            alt = f"{alt}, {given}"
            are_classes = np.issubdtype(explanation.labels.dtype, np.integer)
            is_other = are_classes and np.any(explanation.labels[t] != explanation.predictions[t])
            name, mark = (name, given) if is_other else (f"{name}, {given}", "")
        values = np.concatenate([explanation.values[t], explanation.opponent_values[t]])
        longest = float(np.abs(values).max()) or 1.0
        sides = []
        for side_title, kind, ids, of_side, labels in (
            (
                "Speaks for it",
                "for",
                explanation.ids[t],
                explanation.values[t],
                explanation.training_labels[t],
            ),
            (
                "Speaks against it",
                "against",
                explanation.opponent_ids[t],
                explanation.opponent_values[t],
                explanation.opponent_labels[t],
            ),
        ):
            contributions = []
            for training_id, value, label in zip(ids, of_side, labels, strict=True):
                label_name = f"labelled {label_text(label, class_names)}"
                contributions.append(
                    Contribution(
                        f"id {training_id}",
                        number(value, sign=True),
                        label_name,
                        abs(float(value)) / longest,
                        training.picture(training_id, f"{training_noun} {training_id}, {label_name}"),
                        (notes or {}).get(_plain_id(training_id), ""),
                    )
                )
            sides.append(Side(side_title, kind, contributions))
        facts = [
            ("Sum of all values", number(explanation.totals[t], digits=2)),
            ("Model's own", number(explanation.pre_activations[t], digits=2)),
        ]
        picture = explained.picture(explanation.sample_ids[t] if by_id else t, alt)
        tables = [] if comparison is None else [neighbours_table(explanation, t, comparison)]
        cards.append(Card(title, name[0].upper() + name[1:], facts, sides, picture, mark, tables))
    return cards


def suspects_table(
    suspects: Suspects,
    *,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    notes: Mapping[Any, str] | None = None,
    notes_title: str = "Note",
    caption: str | None = None,
    k: int | None = None,
) -> Table:
    """Return the ranked labels as a table, the first ``k`` of them or all.

    Parameters
    ----------
    suspects : Suspects
    training_samples, class_names, notes
        As for :func:`prediction_cards`.
    notes_title : str
        Heads the column of notes.
    caption : str, optional
    k : int, optional
    """
    shown = len(suspects) if k is None else min(k, len(suspects))
    gallery = Gallery(training_samples, "training_samples")
    score = SCORE_NAMES.get(suspects.score, suspects.score)
    columns = [Column("Rank", numeric=True)]
    columns += [Column("Sample")] if training_samples is not None else []
    columns += [Column("Id", numeric=True), Column("Given label"), Column("Model says")]
    columns += [Column("Score", numeric=True)]
    columns += [Column(notes_title)] if notes is not None else []
    rows = []
    for rank in range(shown):
        sample_id = suspects.ids[rank]
        given = label_text(suspects.labels[rank], class_names)
        row = [Cell(str(rank + 1))]
        if training_samples is not None:
            alt = f"training sample {sample_id}, labelled {given}"
            row.append(Cell(picture=gallery.picture(sample_id, alt)))
        row += [
            Cell(str(sample_id)),
            Cell(given),
            Cell(label_text(suspects.predictions[rank], class_names)),
        ]
        row.append(Cell(number(suspects.scores[rank], digits=2)))
        if notes is not None:
            note = notes.get(_plain_id(sample_id), "")
            row.append(Cell(note or "–", mark=bool(note)))
        rows.append(row)
    n_samples = suspects.about.get("n_samples")
    of = f" of {n_samples:,}" if n_samples else ""
    return Table(caption or f"The {shown:,}{of} labels most likely wrong, ranked by {score}", columns, rows)


def explanation_page(
    explanation: Explanation,
    *,
    samples: Any = None,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str = "Where these predictions come from",
) -> Page:
    """Return a page of its own for an explanation; see :meth:`whence.Explanation.save_html`."""
    cards = prediction_cards(
        explanation,
        samples=samples,
        training_samples=training_samples,
        class_names=class_names,
        column_names=column_names,
    )
    n_samples = explanation.about.get("n_samples")
    among = f" among {n_samples:,} training samples" if n_samples else ""
    gap = np.abs(explanation.totals - explanation.pre_activations)
    completeness = (
        "The sum of all values is not the model's own prediction: for local Jacobian expansion, it is what "
        "the layer predicts after one Newton step. For the predictions shown the two are "
        f"{number(gap.mean())} apart on average, {number(gap.max())} at most. The closer they are, the "
        "more the values say about the model as it is."
    )
    lead = f"The strongest supporters and opponents of {len(explanation):,} predictions{among}."
    predictions = Section("Predictions", [HOW_TO_READ], cards, notes=[completeness])
    return Page(title, [lead], sections=[predictions], about=explanation.about)


def suspects_page(
    suspects: Suspects,
    *,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "Labels to look at first",
) -> Page:
    """Return a page of its own for suspects; see :meth:`whence.Suspects.save_html`."""
    table = suspects_table(suspects, training_samples=training_samples, class_names=class_names)
    lead = (
        "Training samples whose given label is doubtful, the most doubtful first. Rare but right samples "
        "are doubtful too: look before you correct."
    )
    return Page(title, [lead], sections=[Section("Suspects", tables=[table])], about=suspects.about)


def label_text(label: Any, class_names: Sequence[str] | None) -> str:
    """Return a label as text: the name of a class, or the number itself.

    The labels of a sequence are listed, without positions that do not count: -1 or NaN.

    Examples
    --------
    >>> label_text(1, ["cat", "dog"]), label_text(3, None), label_text(0.12345, None)
    ('dog', '3', '0.123')
    >>> label_text(np.asarray([1, 0, -1]), ["cat", "dog"])
    'dog cat'
    """
    if isinstance(label, np.ndarray) and label.ndim:
        counted = label[label >= 0] if label.dtype.kind in "iu" else label[~np.isnan(label)]
        texts = [label_text(one, class_names) for one in counted[:LABELS_SHOWN]]
        return " ".join(texts + ["…"] * (counted.size > LABELS_SHOWN))
    if isinstance(label, float | np.floating):
        return number(float(label))
    if class_names is None:
        return str(label)
    if not hasattr(class_names, "__len__") or isinstance(class_names, str):
        raise WhenceError(
            "class_names", "a name for every class", described(class_names), "Pass a list of texts."
        )
    if not 0 <= int(label) < len(class_names):
        raise WhenceError(
            "class_names", "a name for every class", f"{len(class_names)} names and class {label}"
        )
    return str(class_names[int(label)])


def _plain_id(sample_id: Any) -> Any:
    """Return an id as the user would write it, to look it up."""
    return getattr(sample_id, "tolist", lambda: sample_id)()


def _check_count(samples: Any, explanation: Explanation) -> None:
    """Raise unless there is one sample for each prediction: they are shown in their order."""
    count = len(samples) if hasattr(samples, "__len__") else None
    if count != len(explanation):
        raise WhenceError(
            "samples",
            f"the {len(explanation)} explained samples, in their order",
            described(samples) if count is None else f"{count} samples",
            "Pass those that were given to explain, or a dict from id to sample.",
        )
