"""Scores over several layers: queries that are vectors of all their weights, samples that are rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whence.arrays.base import Array, as_numpy, astype, like, namespace
from whence.layers.products import inner
from whence.layers.rows import Rows

__all__ = ["RowQueries", "RowVector"]

#: Bytes that the vectors of the queries of one search may take.
QUERY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class RowVector:
    """What is stored of some training samples.

    Attributes
    ----------
    gradients : Rows
    factor : array of shape (n,) or None
        What each score is multiplied with; ``None`` means 1.
    """

    gradients: Rows
    factor: Array | None = None

    @property
    def n_samples(self) -> int:
        """How many samples they are."""
        return self.gradients.n_samples

    @property
    def dtype(self) -> np.dtype:
        """The precision that scores are returned in."""
        return as_numpy(self.gradients.like[:0, ...]).dtype

    def in_double(self) -> RowVector:
        """Return itself: scores are computed in float64 anyway."""
        return self

    def part(self, rows: slice) -> RowVector:
        """Return some of the samples."""
        return RowVector(self.gradients[rows], None if self.factor is None else self.factor[rows])

    def arrays(self) -> dict[str, Any]:
        """Return the arrays by layer, as they are given to users."""
        return {
            name: tuple(as_numpy(array) for term in terms for array in term.arrays)
            for name, terms in self.gradients.layers.items()
        }


@dataclass(frozen=True)
class RowQueries:
    """What some samples to explain ask of the training samples: ``v(i, t) = offset_t + <g_i, S q_t>``.

    Attributes
    ----------
    rows : Rows
        ``q_t``.
    offsets : array of shape (T,)
    solve : callable
        ``solve(rows)`` applies ``S``; it is applied once to each query, when its scores are asked for.
    """

    rows: Rows
    offsets: np.ndarray
    solve: Callable[[Rows], Rows]

    def __len__(self) -> int:
        return self.rows.n_samples

    def __getitem__(self, some: slice) -> RowQueries:
        if (some.start or 0) == 0 and (some.stop is None or some.stop >= len(self)):
            return self
        return RowQueries(self.rows[some], self.offsets[some], self.solve)

    @property
    def at_once(self) -> int:
        """How many queries to search for at a time."""
        return max(1, QUERY_BYTES // (8 * self.rows.n_weights))

    @cached_property
    def solved(self) -> Rows:
        """``S q_t``, written out."""
        return self.solve(self.rows)

    def scores(self, vector: RowVector) -> Array:
        """Return ``v(i, t)``, shape ``(T, n)``, in float64."""
        result = inner(self.solved, vector.gradients)
        xp = namespace(result)
        if vector.factor is not None:
            result = result * astype(like(vector.factor, result), xp.float64)[None, :]
        return result + like(np.asarray(self.offsets, dtype=np.float64), result)[:, None]

    def block_rows(self, vector: RowVector, workspace_bytes: int) -> int:
        """Return how many training samples a block of scores may have."""
        return max(1, 16 * workspace_bytes // (8 * len(self) + 1))
