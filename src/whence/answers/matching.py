"""The training set as a user gives it to a method, matched with the stored one, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.arrays.sparse import SparseRows
from whence.data.base import Batch, Dataset, concatenate, fingerprints, leaves, take_rows
from whence.index import Index, Shard
from whence.indexing.observation import Observation
from whence.models.base import InfluenceModel
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
    model : InfluenceModel, optional
        What the samples of both went through: for messages, which say what differs.
    """

    def __init__(
        self, index: Index, given: Any, progress: bool | None, model: InfluenceModel | None = None
    ) -> None:
        self.index = index
        self._given = given
        self._progress = progress
        self._model = model

    def find(self, batch: Batch) -> np.ndarray:
        """Return the index's rows of a batch of training samples; -1 for those that it does not hold."""
        return self.index.rows_of(fingerprints(batch))

    def rows(self, batch: Batch) -> np.ndarray:
        """Return the index's rows of a batch of training samples, recognised by their bytes.

        Raises
        ------
        WhenceError
            If the index does not hold one: the message says what of it differs, as far as that can be
            known.
        """
        rows = self.find(batch)
        if (rows < 0).any():
            first = int(np.flatnonzero(rows < 0)[0])
            raise WhenceError(
                batch.where,
                f"samples of the constructor's dataset (N = {self.index.n_samples}), which have ids",
                f"{int((rows < 0).sum())} of {rows.size} samples that it did not hold"
                f"{self._difference(batch, first)}",
                "Pass the same training set, or a part of it; augmentation that is drawn anew on each pass "
                "must be left out.",
            )
        return rows

    def _difference(self, batch: Batch, row: int) -> str:
        """Say what of a sample is not as it is in the index."""
        model = self._model
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(batch.inputs))
        unknown = f" (inputs of shape {shapes})"
        if model is None or model.kept_rows is None:
            return unknown
        for name, here, there in zip(("inputs", "labels"), batch[:2], model.kept_rows, strict=True):
            kinds = [", ".join(_kind(leaf) for leaf in leaves(part)) for part in (here, there)]
            if kinds[0] != kinds[1]:
                return f": {name} of dtype {kinds[0]}, where they were {kinds[1]}"
        inputs, labels, weight = (take_rows(part, slice(row, row + 1)) for part in batch[:3])
        one = batch._replace(inputs=inputs, labels=labels, weight=weight)
        try:
            seen = model.observe(one)
        except WhenceError:  # of a form that the model does not take
            return unknown
        for start, shard in self.index.starts():
            same = _equal_rows(shard.phi, seen.phi)
            if same.size:
                return self._difference_beside(
                    start + int(same[0]), shard.rows(same[0], same[0] + 1), seen, one
                )
        return unknown

    def _difference_beside(self, row: int, stored: Shard, seen: Observation, batch: Batch) -> str:
        name = self.index.names(np.asarray([row]))[0]
        what = f": the first of them has the features of sample {name!s} and "
        if not np.array_equal(as_numpy(stored.target), as_numpy(seen.target)):
            there, here = as_numpy(stored.target)[0], as_numpy(seen.target)[0]
            return f"{what}another label, {here} where that was {there}"
        if (stored.weight is None) != (seen.weight is None) or (
            stored.weight is not None and not np.array_equal(as_numpy(stored.weight), as_numpy(seen.weight))
        ):
            return f"{what}another weight"
        kinds = ", ".join(
            str(getattr(part, "dtype", type(part).__name__)) for part in batch[1:3] if part is not None
        )
        return f"{what}other bytes: look at the dtype of labels and weights (here {kinds})"

    def match(self, opened: Dataset) -> tuple[np.ndarray, int | None]:
        """Return the index's rows that a training set holds, ascending, and how many batches it has.

        The constructor's own dataset holds all of them, without another pass over it.
        """
        found = self.match_known(opened, self.rows)
        assert found is not None  # others are refused
        return found

    def match_known(self, opened: Dataset, find: Any = None) -> tuple[np.ndarray, int | None] | None:
        """Return the same, or None if the index does not hold all samples."""
        if opened.given is self._given:
            return np.arange(self.index.n_samples), opened.n_batches
        steps = track(opened, "matching the training set", opened.n_batches, self._progress)
        rows = []
        for batch in steps:
            rows.append((find or self.find)(batch))
            if (rows[-1] < 0).any():
                return None
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


def _kind(leaf: Any) -> str:
    return str(getattr(leaf, "dtype", type(leaf).__name__)).removeprefix("torch.")


def _equal_rows(phi: Any, wanted: Any) -> np.ndarray:
    """Return which rows of ``phi`` are the one of ``wanted``, up to rounding."""
    if isinstance(phi, SparseRows) or phi.shape[1:] != wanted.shape[1:]:
        return np.empty(0, dtype=np.int64)
    there, here = as_numpy(phi), as_numpy(wanted)
    scale = float(np.abs(here).max(initial=0.0))
    near = np.abs(there - here) <= 1e-5 * scale
    return np.flatnonzero(near.reshape(len(near), -1).all(axis=1))
