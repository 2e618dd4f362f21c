"""The mathematics of every method over several layers: the same formulas, inner products over rows.

With ``<., .>`` summed over layers, gradient rows ``g_i`` of training losses, and ``q_t`` of what is asked::

    v(i, t)   = -(1/N) <q_t, M g_i>                          gradients; M = H^{-1} for influence functions
    v_j(i, t) =  f_j(t) / N - (1/N) <q_t, H^{-1} g_i>        local Jacobian expansion, q_t the row of f_j(t)

so that ``sum_i v_j(i, t) = f_j(t) - <q_t, H^{-1} gbar>``: what the linearised network says of ``t`` after
one Newton step. ``f`` are the pre-activations of the output layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.arrays.base import Array, as_numpy, like
from whence.ihvp.collected import gathered
from whence.ihvp.rows import CurvatureRows, RowsIHVP
from whence.index import Index, shuffle_buffer_sample
from whence.layers.linear_layer import LinearLayer
from whence.layers.products import combined, inner, inner_by_pairs, squared_norms
from whence.layers.rows import Matrices, Rows
from whence.methods.question import Question
from whence.search.rows import RowQueries

__all__ = ["RowQuestion", "RowRule", "curvature_rows", "mean_gradient"]

#: The share of the curvature's trace that solvers are given, and the most rows that hold it.
SHARE, MOST_ROWS = 0.99, 5_000


@dataclass(frozen=True)
class RowQuestion(Question):
    """What is asked about ``T`` samples, with its rows over several layers.

    Attributes
    ----------
    by_output : array of shape (T, C) or (T, L, C)
        What is asked is ``<by_output_t, u_t>``, to first order.
    rows : callable
        ``rows(by_output)`` records the rows of such numbers.
    """

    by_output: Any = None
    rows: Callable[[Array], Rows] | None = None

    def recorded(self) -> Rows:
        """Return ``q_t``."""
        assert self.rows is not None
        return self.rows(self.by_output)


def curvature_rows(
    index: Index,
    l2: dict[str, Array],
    n_samples: int | None,
    shuffle_buffer_size: int,
    seed: int,
    is_drawn: bool,
) -> CurvatureRows:
    """Return the Gauss-Newton matrix of stored samples, or of some drawn through a shuffle buffer."""
    parts = [shard.curvature for shard in index.shards]
    if n_samples is not None and n_samples < index.n_samples:
        rng = np.random.default_rng(seed)
        rows = shuffle_buffer_sample(index.n_samples, n_samples, shuffle_buffer_size, rng)
        parts = [index.take(rows).curvature]
    return gathered([part for part in parts if part is not None], l2, SHARE, MOST_ROWS, is_drawn)


def mean_gradient(index: Index, factors: list[Array] | None = None) -> Rows:
    """Return ``(1/N) sum_i g_i``, written out, as one row; each divided as ``factors`` say."""
    total: dict[str, Any] = {}
    for number, shard in enumerate(index.shards):
        gradients = shard.gradients
        assert gradients is not None  # of an index of several layers
        weights = np.ones(shard.n_samples) if factors is None else as_numpy(factors[number])
        weights = np.asarray(weights, dtype=np.float64)[None, :] / index.n_samples
        part = combined(gradients, like(weights, gradients.like))
        for name in part.layers:
            matrix = part.matrices(name)
            total[name] = matrix if name not in total else total[name] + matrix
    return Rows({name: (Matrices(values),) for name, values in total.items()})


@dataclass
class RowRule:
    """What every method asks of rows.

    Parameters
    ----------
    name : str
        What results call the method.
    layer : LinearLayer
        The output layer.
    index : Index
        With rows of several layers.
    ihvp : RowsIHVP or None
        ``H^{-1}``; ``None`` is the identity, for methods that compare gradients.
    is_expansion : bool
        Whether each value holds the sample's share of the prediction itself, as the local Jacobian
        expansion has it.
    normalisation : {None, "loss", "parameters", "gradient"}
        What scores are divided by: ``sqrt(g^T H^{-1} g)``, ``|H^{-1} g|``, or ``|g|`` and ``|q|`` (cosine).
    """

    name: str
    layer: LinearLayer
    index: Index
    ihvp: RowsIHVP | None
    is_expansion: bool = False
    normalisation: str | None = None
    effect_on: str = "pre_activation"
    settings: dict[str, Any] = field(default_factory=dict)

    #: What a rule over one layer says of itself, as it is over several.
    solver = None
    solves_queries = False  # what a solver leaves is measured as it solves
    coefficients_need_solver = False

    def __post_init__(self) -> None:
        #: What the score of each training sample is multiplied with, one array a shard; None for 1.
        self.factors: list[Array] | None = None
        if self.normalisation is not None:
            self.factors = [self._factor(shard.gradients) for shard in self.index.shards]
        self._mean = mean_gradient(self.index, self.factors)
        self._solve(self._mean)  # which measures what the solver leaves

    @property
    def n_samples(self) -> int:
        """``N``."""
        return self.index.n_samples

    @property
    def asks_about_loss(self) -> bool:
        """Whether questions are about the loss of samples."""
        return self.effect_on == "loss"

    @property
    def decomposes_prediction(self) -> bool:
        """Whether the values of all training samples sum to a prediction."""
        return self.is_expansion

    @property
    def prefers_ridge(self) -> bool:
        """Whether doubtful labels are ranked by a ridge regression where one suits."""
        return self.is_expansion

    def about(self) -> dict[str, Any]:
        """Return the settings and the solver, for results."""
        return self.settings | ({} if self.ihvp is None else self.ihvp.about())

    def measured(self) -> dict[str, Any]:
        """Return numbers that came out on the way, for results."""
        return {"relative_residual": self.relative_residual}

    @property
    def relative_residual(self) -> float:
        """What the solver left of the Newton step, relative to the gradient."""
        return 0.0 if self.ihvp is None else self.ihvp.relative_residual

    def _solve(self, rows: Rows) -> Rows:
        if self.ihvp is None:
            return Rows({name: (Matrices(rows.matrices(name)),) for name in rows.layers})
        return self.ihvp.solve_rows(rows)

    def _factor(self, gradients: Any) -> Array:
        if self.normalisation == "gradient":
            squared: Array = squared_norms(gradients)
        elif self.normalisation == "loss":
            squared = self.moved(gradients, gradients)
        else:
            squared = self._moves(gradients)
        norms = np.sqrt(np.maximum(np.asarray(as_numpy(squared), dtype=np.float64), 0))
        return like(np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0), gradients.like)

    def _moves(self, gradients: Rows) -> Array:
        parts = [squared_norms(self._solve(gradients[some])) for some in gradients.blocks(128 * 2**20)]
        return np.concatenate([as_numpy(part) for part in parts])

    def moved(self, rows: Rows, gradients: Rows) -> np.ndarray:
        """Return ``<q_i, M g_i>`` for rows of the same samples, shape ``(n,)``."""
        if self.ihvp is None:
            return as_numpy(inner_by_pairs(rows, gradients))
        return as_numpy(self.ihvp.inner_products(rows, gradients))

    def queries(self, rows: Rows, said: np.ndarray) -> RowQueries:
        """Return what samples to explain ask, whose outputs in question are ``said (T,)``."""
        n_samples = self.index.n_samples
        offsets = said / n_samples if self.is_expansion else np.zeros(rows.n_samples)
        return RowQueries(rows, offsets, self._turned)

    def _turned(self, rows: Rows) -> Rows:
        """Return ``-M q_t / N``; of a cosine ``-q_t / |q_t|``."""
        solved = self._solve(rows)
        scale: Any = np.full(rows.n_samples, -1.0 / self.index.n_samples)
        if self.normalisation == "gradient":
            norms = np.sqrt(np.asarray(as_numpy(squared_norms(rows)), dtype=np.float64))
            scale = np.divide(-1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        scale = like(scale, rows.like)[:, None, None, None]
        return Rows({name: (Matrices(solved.matrices(name) * scale),) for name in solved.layers})

    def totals(self, queries: RowQueries) -> np.ndarray:
        """Return the sum of the scores of all training samples, shape ``(T,)``.

        With the queries as they were solved, so that it is complete to rounding whatever the solver left.
        """
        parts = []
        for start in range(0, len(queries), queries.at_once):
            some = queries[start : start + queries.at_once]
            parts.append(some.offsets + as_numpy(inner(some.solved, self._mean))[:, 0])
        return self.index.n_samples * np.concatenate(parts)
