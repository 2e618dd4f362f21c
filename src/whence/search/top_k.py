"""The strongest of many scores, over blocks that come one by one."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy

__all__ = ["ORDER", "TopK", "check_order"]


class ORDER(Enum):
    """Which end of the scores is wanted: the smallest (ascending) or the largest (descending)."""

    ASCENDING = 1
    DESCENDING = 2


def check_order(order: Any) -> ORDER:
    """Return ``order``, or raise if it is not an :class:`ORDER`."""
    if isinstance(order, ORDER):
        return order
    raise WhenceError(
        "order", "ORDER.ASCENDING or ORDER.DESCENDING", repr(order), "Import ORDER from whence."
    )


class TopK:
    """The ``k`` largest (or smallest) scores of each query so far, over blocks that come one by one.

    Equal scores are ordered by row, the first first, so that the result does not depend on how the
    training set was cut into blocks.

    Parameters
    ----------
    n_queries, k : int
    order : ORDER

    Examples
    --------
    >>> best = TopK(1, 2, ORDER.DESCENDING)
    >>> best.add(np.asarray([[1.0, 5.0]]), 0)
    >>> best.add(np.asarray([[5.0, 3.0]]), 2)
    >>> best.values, best.rows
    (array([[5., 5.]]), array([[1, 2]]))
    """

    def __init__(self, n_queries: int, k: int, order: ORDER) -> None:
        self.k = k
        self.sign: float = -1.0 if order is ORDER.DESCENDING else 1.0
        self._keys = np.empty((n_queries, 0))  # what is kept, negated if the largest are wanted
        self.rows: np.ndarray = np.empty((n_queries, 0), dtype=np.int64)
        self._next_row = 0

    def add(self, block_scores: Array, first_row: int) -> None:
        """Take in the scores ``(T, n)`` of the rows from ``first_row`` on.

        Raises
        ------
        WhenceError
            If a score is NaN, which has no place in an order.
        """
        values = as_numpy(block_scores)
        if not values.size:
            return
        strongest = values.min(axis=1) if self.sign > 0 else values.max(axis=1)
        if np.isnan(strongest).any():  # minimum and maximum hand on NaN
            raise WhenceError(
                "scores",
                "numbers",
                f"NaN for query {int(np.flatnonzero(np.isnan(strongest))[0])}, "
                f"in rows {first_row} to {first_row + values.shape[1] - 1}",
                "Look at the features and coefficients of these training samples.",
            )
        in_order = first_row >= self._next_row
        self._next_row = max(self._next_row, first_row + values.shape[1])
        queries = np.arange(len(values))
        if self._keys.shape[1] < self.k:
            self._merge_block(queries, values, first_row)
            return
        # Most blocks hold little that is better than the last that is kept: look for that first. Among
        # equals the first row comes first, and later blocks hold later rows, unless a caller goes back.
        worst = self._keys[:, -1] * self.sign
        better: Any
        if self.sign > 0:
            better = np.less if in_order else np.less_equal
        else:
            better = np.greater if in_order else np.greater_equal
        queries = queries[better(strongest, worst)]
        if not queries.size:
            return
        active = values[queries]
        owners, columns = np.nonzero(better(active, worst[queries, None]))
        if columns.size > queries.size * 16 * self.k:
            self._merge_block(queries, active, first_row)
        else:
            self._merge_few(queries, owners, active[owners, columns] * self.sign, columns + first_row)

    def merge(self, other: TopK) -> None:
        """Take in what was found among other rows.

        Examples
        --------
        >>> first, second = TopK(1, 2, ORDER.DESCENDING), TopK(1, 2, ORDER.DESCENDING)
        >>> first.add(np.asarray([[1.0, 5.0]]), 0)
        >>> second.add(np.asarray([[5.0, 3.0]]), 2)
        >>> first.merge(second)
        >>> first.values, first.rows
        (array([[5., 5.]]), array([[1, 2]]))
        """
        self._next_row = max(self._next_row, other._next_row)
        keys = np.concatenate([self._keys.astype(other._keys.dtype, copy=False), other._keys], axis=1)
        rows = np.concatenate([self.rows, other.rows], axis=1)
        best = np.lexsort((rows, keys), axis=1)[:, : self.k]
        self._keys, self.rows = np.take_along_axis(keys, best, 1), np.take_along_axis(rows, best, 1)

    def _merge_block(self, queries: np.ndarray, values: np.ndarray, first_row: int) -> None:
        """Take in all scores of some queries; of all queries while fewer than ``k`` are kept."""
        rows = np.broadcast_to(np.arange(first_row, first_row + values.shape[1]), values.shape)
        keys, rows = _smallest(values * self.sign, rows, self.k)
        keys = np.concatenate([self._keys[queries].astype(keys.dtype, copy=False), keys], axis=1)
        rows = np.concatenate([self.rows[queries], rows], axis=1)
        order = np.lexsort((rows, keys), axis=1)[:, : self.k]
        self._keep(
            queries, np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1)
        )

    def _merge_few(
        self, queries: np.ndarray, owners: np.ndarray, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        """Take in single scores, ``owners`` the place in ``queries`` of each."""
        owners = np.concatenate([np.repeat(np.arange(queries.size), self.k), owners])
        keys = np.concatenate([self._keys[queries].ravel(), keys])
        rows = np.concatenate([self.rows[queries].ravel(), rows])
        order = np.lexsort((rows, keys, owners))
        starts = np.searchsorted(owners[order], np.arange(queries.size))
        best = order[starts[:, None] + np.arange(self.k)]
        self._keep(queries, keys[best], rows[best])

    def _keep(self, queries: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> None:
        if len(queries) == len(self._keys):
            self._keys, self.rows = keys, rows
        else:
            self._keys[queries], self.rows[queries] = keys, rows

    @property
    def values(self) -> np.ndarray:
        """The scores, best first, shape ``(T, min(k, N))``."""
        return self._keys * self.sign


def _smallest(keys: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``k`` columns with the smallest keys; among equal keys at the cut, the first rows."""
    if keys.shape[1] <= k:
        return keys, rows
    chosen = np.argpartition(keys, k - 1, axis=1)[:, :k]
    cut = np.take_along_axis(keys, chosen, axis=1).max(axis=1, keepdims=True)
    tied = (keys <= cut).sum(axis=1) > k
    for query in np.flatnonzero(tied):  # rare: decide ties at the cut by row
        candidates = np.flatnonzero(keys[query] <= cut[query])
        best = np.lexsort((rows[query, candidates], keys[query, candidates]))[:k]
        chosen[query] = candidates[best]
    return np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)
