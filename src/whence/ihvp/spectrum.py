"""What the exact solver asks of a matrix's eigenvalues: its ends, and the pseudo-inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from whence.arrays.base import Array, as_numpy, namespace
from whence.arrays.symmetric import cholesky

__all__ = ["Condition", "extreme_eigenvalues", "pseudo_inverse", "smallest_eigenvalue"]


@dataclass(frozen=True)
class Condition:
    """The ends of the spectrum of ``H + lam``.

    Attributes
    ----------
    smallest, largest : float
        Extreme eigenvalues, by Lanczos iteration to three digits, or exact for small layers.
    is_positive_definite : bool
        Whether the smallest is positive.
    """

    smallest: float
    largest: float
    is_positive_definite: bool


class pseudo_inverse:
    """The Moore-Penrose inverse of a symmetric matrix, with the same methods as a factor."""

    def __init__(self, matrix: Array, cutoff: float | None, eps: float) -> None:
        xp = namespace(matrix)
        symmetric = xp.tril(matrix) + xp.matrix_transpose(xp.tril(matrix, k=-1))
        values, vectors = xp.linalg.eigh(symmetric)
        if cutoff is None:
            cutoff = max(matrix.shape[0], 10) * eps
        kept = xp.abs(values) > cutoff * xp.max(xp.abs(values))
        self.is_indefinite: bool = bool(xp.any(kept & (values < 0)))
        reciprocal = xp.where(kept, 1 / xp.where(kept, values, xp.ones_like(values)), 0 * values)
        self._inverse = (vectors * reciprocal[None, :]) @ vectors.T
        self.eigenvalues = values

    def solve(self, right: Array) -> Array:
        return self._inverse @ right

    def inverse(self) -> Array:
        return self._inverse


def extreme_eigenvalues(factor: cholesky | pseudo_inverse) -> tuple[float, float]:
    """Return the smallest and largest eigenvalue of a factorised matrix."""
    if isinstance(factor, pseudo_inverse):
        return float(factor.eigenvalues[0]), float(factor.eigenvalues[-1])
    lower = np.tril(as_numpy(factor.factor))
    if lower.shape[0] <= 1500:
        values = np.linalg.eigvalsh(lower @ lower.T)
        return float(values[0]), float(values[-1])
    largest = _largest_eigenvalue(lambda v: lower @ (lower.T @ v), lower.shape[0])
    inverse = _largest_eigenvalue(
        lambda v: scipy.linalg.cho_solve((lower, True), v, check_finite=False), lower.shape[0]
    )
    return 1 / inverse, largest


def _largest_eigenvalue(product: Any, size: int) -> float:
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    values = scipy.sparse.linalg.eigsh(
        operator, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False
    )
    return float(values[0])


def smallest_eigenvalue(matrix: Array) -> float:
    """Return the smallest eigenvalue of the symmetric matrix whose lower triangle is given."""
    host = as_numpy(matrix)
    return float(scipy.linalg.eigvalsh(host, lower=True, subset_by_index=[0, 0])[0])
