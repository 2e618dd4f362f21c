"""How pages, plots and terminals call labels, outputs and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.report.names import plain_line, visible
from whence.report.numbers import number
from whence.report.samples import listed_names

__all__ = ["SCORE_NAMES", "Wording", "label_text"]

SCORE_NAMES = {
    "label_noise": "label-noise score",
    "ridge": "ridge score",
    "leave_one_out": "leave-one-out score",
    "self_influence": "self-influence",
    "loss": "training loss",
}

#: Labels of a sequence, or tags of a sample, that are written out.
LABELS_SHOWN = 12
#: Shown for a sample without tags.
NO_TAGS = "no tags"


@dataclass(frozen=True)
class Wording:
    """The words for the labels and values of one answer.

    Parameters
    ----------
    kind : {"class", "tags", "value"}
        See :attr:`whence.Explanation.label_kind`.
    class_names : sequence of str, optional
        Names of the classes, or of the outputs. By default those that the model knows, if any.
    is_about_loss : bool
        Whether values are about the loss of the explained samples.

    Examples
    --------
    >>> Wording("tags", ["cat", "dog", "bird"]).given(np.asarray([1, 0, 1]))
    'tags cat, bird'
    >>> Wording("value").sides()
    ('Raises it', 'Lowers it')
    """

    kind: str = "class"
    class_names: Sequence[str] | None = None
    is_about_loss: bool = False

    @classmethod
    def of(cls, answer: Any, class_names: Sequence[str] | None) -> Wording:
        """Return the words for an :class:`~whence.Explanation` or :class:`~whence.Suspects`."""
        if class_names is None:  # those that the model knows
            class_names = answer.about.get("class_names")
        names = None if class_names is None else listed_names(class_names, "class_names", "every class")
        return cls(answer.label_kind, names, answer.about.get("effect_on") == "loss")

    def text(self, label: Any) -> str:
        """Return a label or prediction."""
        return label_text(label, self.class_names, self.kind)

    def given(self, label: Any) -> str:
        """Return a given label, with the word for it."""
        text = self.text(label)
        return text if text == NO_TAGS else f"{self.word} {text}"

    @property
    def word(self) -> str:
        """The word for a given label."""
        return {"tags": "tags", "value": "target"}.get(self.kind, "labelled")

    def output(self, output: Any) -> str:
        """Return the name of an output of the layer, or of those of the positions of a sequence."""
        if np.ndim(output):
            counted = [self.output(one) for one in np.asarray(output)[np.asarray(output) >= 0]]
            return _listed(counted, " ")
        if self.class_names is not None:
            return _named(output, self.class_names)
        return {"tags": "tag", "class": "class"}.get(self.kind, "output") + f" {output}"

    def explained(self, explanation: Any, t: int) -> str:
        """Return the output that a prediction's values are about, unless the prediction says so itself."""
        n_outputs = explanation.about.get("n_outputs", 1 if self.kind == "value" else 2)
        output = explanation.outputs[t]
        is_predicted = self.kind == "class" and np.array_equal(output, explanation.predictions[t])
        return "" if n_outputs == 1 or self.is_about_loss or is_predicted else self.output(output)

    def sides(self, output: str = "", values: Any = (), opponent_values: Any = ()) -> tuple[str, str]:
        """Return the headings of the supporters and the opponents of a prediction, or of an output.

        Where values of the other sign stand below a heading, since there are too few of its own, it says
        so.
        """
        what = output or "it"
        if self.is_about_loss:
            words = ("Lowers its loss", "raises it least"), ("Raises its loss", "lowers it least")
        elif self.kind == "value":
            words = (f"Raises {what}", "lowers it least"), (f"Lowers {what}", "raises it least")
        else:
            words = (f"Speaks for {what}", "least against it"), (f"Speaks against {what}", "least for it")
        has_other = np.any(np.less(values, 0)), np.any(np.greater(opponent_values, 0))
        first, second = (
            f"{w}, or {rest}" if has else w for (w, rest), has in zip(words, has_other, strict=True)
        )
        return first, second

    def signs(self) -> str:
        """Return in a few words what plus and minus mean."""
        if self.is_about_loss:
            return "plus lowers the loss of the explained sample, minus raises it"
        if self.kind == "value":
            return "plus raises the output, minus lowers it"
        return "plus speaks for the output, minus against it"


def label_text(label: Any, class_names: Sequence[str] | None, kind: str = "class") -> str:
    """Return a label as text: the name of a class, tags, or the number itself.

    The labels of a sequence are listed, without positions that do not count: -1 or NaN.

    Examples
    --------
    >>> label_text(1, ["cat", "dog"]), label_text(3, None), label_text(0.12345, None)
    ('dog', '3', '0.123')
    >>> label_text(np.asarray([1, 0, -1]), ["cat", "dog"])
    'dog cat'
    >>> label_text(np.asarray([0, 1, 0, 1]), None, "tags"), label_text(np.zeros(4, int), None, "tags")
    ('1, 3', 'no tags')
    """
    if kind == "tags" and np.ndim(label):
        return _tags_text(np.asarray(label), class_names)
    if isinstance(label, np.ndarray) and label.ndim > 1:  # values of several outputs, at each position
        shown = label[~np.isnan(label).all(axis=1)]
        return _listed([label_text(one, None, kind) for one in shown], " | ")
    if isinstance(label, np.ndarray) and label.ndim:
        counted = label[label >= 0] if label.dtype.kind in "iu" else label[~np.isnan(label)]
        return _listed([label_text(one, class_names) for one in counted], " ")
    if isinstance(label, float | np.floating):
        return number(float(label))
    return visible(label) if class_names is None or kind == "value" else _named(label, class_names)


def _tags_text(tags: np.ndarray, names: Sequence[str] | None) -> str:
    """Return the tags of a sample, a row of 0 and 1, or of its positions, a row each."""
    if tags.ndim > 1:
        shown = tags[~(np.isnan(tags) | (tags < 0)).all(axis=1)]
        return _listed([_tags_text(one, names) for one in shown], " | ")
    is_whole = np.array_equal(tags, np.rint(tags))
    texts = [
        (str(tag) if names is None else _named(tag, names)) + ("" if is_whole else f" {number(tags[tag])}")
        for tag in np.flatnonzero(tags > 0)
    ]
    return _listed(texts, ", ") or NO_TAGS


def _listed(texts: Sequence[str], separator: str) -> str:
    more = ["…"] if len(texts) > LABELS_SHOWN else []
    return separator.join([*texts[:LABELS_SHOWN], *more])


def _named(label: Any, names: Sequence[str]) -> str:
    if not 0 <= int(label) < len(names):
        raise WhenceError(
            "class_names",
            "a name for every class",
            f"{len(names)} names and class {label}",
            "Name all classes, in the order of the outputs.",
        )
    return plain_line(names[int(label)])
