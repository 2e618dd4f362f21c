"""The training set as a user gives it to a method, matched with the stored one, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data.base import Batch, Dataset, concatenate, fingerprints, leaves, take_rows
from whence.index import Index
from whence.progress import track

__all__ = ["TrainingSet"]


class TrainingSet:
    """Recognises training samples by their bytes, in whatever order and batches they come.

    Parameters
    ----------
    index : Index
        The stored training set.
    given : dataset
        The dataset that it was made from.
    progress : bool or None
    """

    def __init__(self, index: Index, given: Any, progress: bool | None) -> None:
        self.index = index
        self._given = given
        self._progress = progress

    def rows(self, batch: Batch) -> np.ndarray:
        """Return the index's rows of a batch of training samples, recognised by their bytes."""
        rows = self.index.rows_of(fingerprints(batch))
        if (rows < 0).any():
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(batch.inputs))
            raise WhenceError(
                batch.where,
                f"samples of the constructor's dataset (N = {self.index.n_samples})",
                f"{int((rows < 0).sum())} of {rows.size} samples that it did not hold "
                f"(inputs of shape {shapes})",
                "Pass the same training set; augmentation that is drawn anew on each pass must be left "
                "out. To score other samples, pass them as the ones to evaluate.",
            )
        return rows

    def match(self, opened: Dataset) -> tuple[np.ndarray, int | None]:
        """Return the index's rows that a training set holds, ascending, and how many batches it has.

        The constructor's own dataset holds all of them, without another pass over it.
        """
        if opened.given is self._given:
            return np.arange(self.index.n_samples), opened.n_batches
        steps = track(opened, "matching the training set", opened.n_batches, self._progress)
        rows = [self.rows(batch) for batch in steps]
        return self.index.with_equals(np.unique(np.concatenate(rows))), len(rows)

    def gather(self, opened: Dataset, rows: np.ndarray, n_batches: int | None) -> Any:
        """Return the inputs of the samples in ``rows (T, k)``, by one pass over the training set."""
        first = self.index.first_rows(rows.ravel())
        wanted = np.unique(first)
        kept: list[Any] = []
        seen: list[np.ndarray] = []
        for batch in track(opened, "gathering training samples", n_batches, self._progress):
            of_batch = self.rows(batch)
            here = np.flatnonzero(np.isin(of_batch, wanted))
            if here.size:
                kept.append(take_rows(batch.inputs, here))
                seen.append(of_batch[here])
        held = np.concatenate(seen) if seen else np.empty(0, dtype=np.int64)
        if not np.isin(wanted, held).all():
            raise WhenceError(
                opened.argument,
                "the same samples in every pass over it",
                "a pass without some of those of the pass before",
                "Leave out what is drawn anew in each pass, such as a shuffle before a take.",
            )
        order = np.argsort(held, kind="stable")
        place = order[np.searchsorted(held[order], first)]
        flat = concatenate(kept)
        return take_rows(flat, place.reshape(rows.shape))
