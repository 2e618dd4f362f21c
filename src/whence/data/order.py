"""The names of a dataset's samples: whether positions mean something, and whose names are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_array, as_numpy
from whence.data.base import LOOKED_AT, Batch, Dataset, fingerprints
from whence.data.tables import row_names

__all__ = ["SampleNames", "no_positions"]


class SampleNames:
    """Gathers the names of a dataset's samples in a pass over it.

    Names are, in this order: those that the user gives, those that the samples bring, the index of a
    pandas frame, positions in the dataset.

    Parameters
    ----------
    opened : Dataset
    ids : sequence or None
        What the user names them, in the order of the dataset.

    Raises
    ------
    WhenceError
        If names are given for samples whose order is not known, or that bring their own.
    """

    def __init__(self, opened: Dataset, ids: Any = None) -> None:
        self._opened = opened
        self._ids = ids
        self._brought: list[np.ndarray] = []
        self._by_row: dict[int, np.ndarray] = {}
        self._first: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._n_looked_at = 0
        if ids is None:
            return
        if opened.form.names_samples:
            fix = "Leave ids out, or 'id' out of batch=."
            raise WhenceError("ids", "None, since the samples bring their ids", "names", fix)
        if opened.unordered is not None:
            raise no_positions(opened.argument, opened.unordered)

    def add(self, batch: Batch) -> None:
        """Take in the next batch."""
        if batch.ids is not None:
            self._brought.append(batch.ids)
        elif self._opened.may_vary and self._n_looked_at < LOOKED_AT:
            self._first.append(_looked_at(batch))
            self._n_looked_at += batch.n_samples

    def look(self) -> None:
        """Look at the first samples, where others make the pass."""
        if self._opened.may_vary and not self._opened.form.names_samples:
            for batch in self._opened:
                self.add(batch)
                if self._n_looked_at >= LOOKED_AT:
                    return

    def put(self, ids: Mapping[int, np.ndarray]) -> None:
        """Take in the ids of some batches, by the row of the first sample of each."""
        self._by_row |= ids

    @property
    def unordered(self) -> str | None:
        """Why positions mean nothing, once the pass is over; None if they do, or the samples have ids."""
        if self._opened.form.names_samples:
            return None
        if self._opened.unordered is None and self._first and not self._is_same_again():
            self._opened.unordered = "gives other samples, or another order, in a second pass"
        self._first = []
        return self._opened.unordered

    def names(self, n_samples: int, without: Sequence[int] = ()) -> np.ndarray | None:
        """Return the names of ``n_samples`` samples but for some rows, or None for positions from 0."""
        opened = self._opened
        if self._brought or self._by_row:
            return self._names_brought(n_samples, without)
        if self._ids is not None and self.unordered is not None:  # seen only in the pass
            raise no_positions(opened.argument, self.unordered)
        names = self._ids
        if names is None:
            names = (
                row_names(opened.given, opened.argument) if opened.positions is None else opened.positions
            )
        elif opened.positions is not None:
            expected = f"{opened.n_in_dataset} ids, one for each sample of the loader's dataset"
            fix = "Give them in the order of the dataset."
            given = as_array(names, "ids", expected, fix)
            if given.shape != (opened.n_in_dataset,):
                raise WhenceError("ids", expected, f"shape {given.shape}", fix)
            names = given[opened.positions]
        if not without:
            return names
        names = np.arange(n_samples) if names is None else np.asarray(names)
        return np.delete(names, without) if names.shape[:1] == (n_samples,) else names

    def _names_brought(self, n_samples: int, without: Sequence[int]) -> np.ndarray:
        """Return the ids that the samples brought."""
        pairs = self._by_row.items() if self._by_row else ()
        kept: dict[int, Any] = {row + i: name for row, ids in pairs for i, name in enumerate(ids.tolist())}
        if self._brought:
            kept = dict(enumerate(np.concatenate(self._brought).tolist()))
        rows = sorted(set(range(n_samples)) - set(without))
        missing = sum(row not in kept for row in rows)
        if missing:
            got = f"{missing} of {n_samples} samples without one"
            raise WhenceError(f"ids in {self._opened.argument}", "an id with every sample", got)
        return np.asarray([kept[row] for row in rows])

    def _is_same_again(self) -> bool:
        """Return whether the first samples come first again.

        Inputs may be drawn anew, as by augmentation: then the labels say whether the order is the same.
        """
        again: list[tuple[np.ndarray, np.ndarray | None]] = []
        n_samples = 0
        for batch in self._opened:
            again.append(_looked_at(batch))
            n_samples += batch.n_samples
            if n_samples >= self._n_looked_at:
                break
        prints, prints_again = (np.concatenate([part for part, _ in some]) for some in (self._first, again))
        if np.array_equal(prints, prints_again):
            return True
        if np.isin(prints_again, prints).any() or any(
            labels is None for _, labels in (*self._first, *again)
        ):
            return False
        labels, labels_again = (
            np.concatenate([np.ravel(as_numpy(part)) for _, part in some]) for some in (self._first, again)
        )
        return np.array_equal(labels, labels_again) and len(np.unique(labels)) > 1


def _looked_at(batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
    return fingerprints(batch), None if batch.labels is None else as_numpy(batch.labels)


def no_positions(argument: str, reason: str) -> WhenceError:
    """Return the error for samples that have neither ids nor positions."""
    return WhenceError(
        f"ids of {argument}",
        "samples in an order that stays, whose positions can be their names",
        f"a dataset that {reason}",
        "Leave the shuffle out, or let the samples bring their ids: "
        "InfluenceModel(..., batch=('x', 'y', 'id')).",
    )
