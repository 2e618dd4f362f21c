"""How far answers may be from what they are, and what is done about it.

Two things are measured on every answer. What values sum to is compared with the sum by way of
``sum_i outer(phi_i, a_i)``, which needs no single value: beyond :data:`~whence.search.scores.TOLERANCE`
they are computed again in float64. And some training samples are solved for in place of the queries,

    ``sum_i z_i <g_i, S_t>  =  <H^{-1} sum_i z_i g_i, Q_t>``    with signs ``z``,

which holds for any symmetric ``H^{-1}`` and whatever comes out of a direct solver before rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.ihvp import InverseHessianVectorProduct
from whence.index import Shard
from whence.layers.linear_layer import LinearLayer
from whence.methods.question import Question
from whence.search.scores import TOLERANCE, Queries, Vector, scores

__all__ = ["LARGEST_ERROR", "Probe", "is_sum", "refuse_if_eaten", "sum_error"]

#: How far values of a direct solver may be from those solved for the other way round, relative to the
#: largest: beyond that there is no answer.
LARGEST_ERROR = 1e-4


def is_sum(sums: np.ndarray, expected: np.ndarray, found: dict[str, np.ndarray], n_samples: int) -> bool:
    """Whether values sum to what they should, to what rounding of each to :data:`TOLERANCE` allows.

    Parameters
    ----------
    sums, expected : array of shape (T,)
    found : dict
        With the largest and the smallest values.
    n_samples : int
        How many values were summed: their rounding adds up to the root of that.
    """
    scale = np.maximum(np.abs(expected), np.sqrt(n_samples) * _largest(found))
    return bool((np.abs(sums - expected) <= TOLERANCE * scale).all())


def sum_error(sums: np.ndarray, answer: dict[str, Any]) -> float:
    """Return how far sums of values are from the totals, relative to the total or the largest value.

    Of the sample for which that is most.
    """
    totals = answer["totals"]
    scale = np.maximum(np.abs(totals), _largest(answer))
    gaps = np.abs(sums - totals)
    return float(np.max(gaps / np.where(scale > 0, scale, 1.0), initial=0.0))


def _largest(found: dict[str, np.ndarray]) -> np.ndarray:
    ends = np.concatenate([found["values"], found["opponent_values"]], axis=1)
    return np.abs(ends).max(axis=1)


@dataclass(frozen=True)
class Probe:
    """Some training samples, and the sum of their gradients with random signs, solved for.

    Attributes
    ----------
    vector : Vector
        Features and coefficients of the samples, in float64.
    signs : array of shape (m,)
    solved : array of shape (d, C)
        ``H^{-1} sum_i z_i g_i / N``.
    """

    vector: Vector
    signs: np.ndarray
    solved: np.ndarray

    @classmethod
    def of(
        cls, ihvp: InverseHessianVectorProduct, layer: LinearLayer, some: Shard, n_samples: int
    ) -> Probe:
        """Solve for some training samples."""
        phi, coefficients = (
            np.asarray(as_numpy(array), dtype=np.float64) for array in (some.phi, some.coefficients)
        )
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=len(phi))
        signed = coefficients * signs.reshape(-1, *[1] * (coefficients.ndim - 1))
        rows = phi.reshape(-1, phi.shape[-1])
        gradient = rows.T @ signed.reshape(len(rows), -1)
        solved = layer.centred(as_numpy(ihvp.solve(layer.centred(gradient)[None, ...]).value)[0])
        return cls(Vector(phi, coefficients), signs, solved / n_samples)

    def errors(self, question: Question, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Return how far values are from those solved for the other way round, and how large they are.

        Both of shape ``(T,)``: the error for one training sample, if those of several are independent of
        each other, and the largest value among the samples.
        """
        values = as_numpy(scores(queries, self.vector))
        gaps = (values - as_numpy(queries.offsets)[:, None]) @ self.signs + question.under(self.solved)
        return np.abs(gaps) / np.sqrt(len(self.signs)), np.abs(values).max(axis=1)


def refuse_if_eaten(error: float, damping: float) -> None:
    """Raise if values of a direct solver are further off than rounding may be."""
    if error <= LARGEST_ERROR:  # NaN is not
        return
    raise WhenceError(
        f"damping (={damping:g})",
        f"a system that float64 solves, with values right to {LARGEST_ERROR:g} of the largest",
        f"values that are off by {error:.2g} of it, if training samples are solved for in place of queries",
        "Raise the damping, or scale the layer's inputs to about 1: their squares stand beside it.",
    )
