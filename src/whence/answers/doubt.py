"""How doubtful every given label is, how many are wrong, and what they should be: evidence to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import check_finite
from whence.layers.losses import Loss
from whence.methods.label_noise import LabelNoise, as_two_classes

__all__ = ["Doubt", "doubt_by_label_noise"]


@dataclass(frozen=True)
class Doubt:
    """What a model of label noise says of all stored samples.

    Attributes
    ----------
    parts : tuple of LabelNoise
        Of the classes, or of each tag.
    labels : array of shape (N,) or (N, C)
        The given labels.
    """

    parts: tuple[LabelNoise, ...]
    labels: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """How doubtful the label of each sample is, ``(N,)``: of tags, that any of them is wrong."""
        return np.sum([part.scores for part in self.parts], axis=0)

    @property
    def noise(self) -> np.ndarray:
        """The noise from class to class, ``(C, C)``, or of each tag from no and yes, ``(C, 2, 2)``."""
        return self.parts[0].noise if self._is_one else np.stack([part.noise for part in self.parts])

    def suggestions(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels that would be the least doubtful, the given ones aside, of some samples.

        A class; or all tags, of which those are turned that are more likely wrong than right, and the most
        doubtful one in any case.
        """
        if self._is_one:
            return self.parts[0].suggestions[rows]
        scores = self._each(rows)
        turned = scores > np.log(2)
        turned[np.arange(len(turned)), scores.argmax(axis=1)] = True
        return np.where(turned, 1 - self.labels[rows], self.labels[rows])

    def tag_scores(self, rows: np.ndarray) -> np.ndarray | None:
        """Return how doubtful each tag of some samples is, ``(k, C)``; None of classes."""
        return None if self._is_one else self._each(rows)

    def count(self, rows: np.ndarray) -> tuple[int, int, int]:
        """Return how many samples of ``rows`` have a wrong label, and an interval around it."""
        if self._is_one:
            return self.parts[0].count(rows)
        right = np.prod([1 - part.wrong for part in self.parts], axis=0)
        return LabelNoise(self.scores, self.scores, 1 - right, self.noise).count(rows)

    def _each(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([part.scores[rows] for part in self.parts], axis=1)

    @property
    def _is_one(self) -> bool:
        return self.labels.ndim == 1


def doubt_by_label_noise(
    loss: Loss, target: np.ndarray, evidence: Sequence[np.ndarray], *, centred: bool
) -> Doubt:
    """Return what a model of label noise says, from scores for each output without each sample.

    Parameters
    ----------
    loss : Loss
    target : array of shape (N,) or (N, C)
    evidence : sequence of arrays of shape (N, C)
    centred : bool
        Whether the first says nothing of how frequent classes are.

    Raises
    ------
    WhenceError
        If evidence is not finite.
    """
    for z in evidence:
        check_finite(z, "score", "the predictions without each sample", "Pass score='ridge' or 'loss'.")
    n_outputs = evidence[0].shape[1]
    given = np.asarray(loss.labels(target))
    labels = (given > 0.5).astype(np.int64) if given.dtype.kind == "f" else given.astype(np.int64)
    if n_outputs > 1 and labels.ndim == 1:
        return Doubt((LabelNoise.of(evidence, labels, centred=centred),), labels)
    columns = labels.reshape(len(labels), -1)
    each = [
        LabelNoise.of([as_two_classes(z[:, c]) for z in evidence], columns[:, c], centred=centred)
        for c in range(n_outputs)
    ]
    return Doubt(tuple(each), labels)


def not_classes(loss: Loss) -> WhenceError:
    """Return what to raise where there is no given class."""
    return WhenceError(
        "score",
        "'leave_one_out', 'self_influence' or 'loss', unless labels are classes, the loss has a "
        "closed form, and the layer is applied once a sample",
        f"'label_noise' with loss {loss.name!r}",
        "Leave score out.",
    )
