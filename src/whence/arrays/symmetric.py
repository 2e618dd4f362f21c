"""Symmetric matrices: rank-k updates, Cholesky factors and inverses, in place where that is possible."""

from __future__ import annotations

import array_api_compat
import numpy as np
import scipy.linalg

from whence.arrays.base import Array, namespace, row_slices

__all__ = ["cholesky", "rank_k_update"]


def rank_k_update(matrix: Array | None, rows: Array, scale: float) -> Array:
    """Return ``matrix + scale * rows.T @ rows``, of which only the lower triangle is meaningful.

    Parameters
    ----------
    matrix : array of shape (m, m) or None
        The running sum, updated in place where the library allows it; ``None`` starts one.
    rows : array of shape (n, m)
    scale : float

    Returns
    -------
    array of shape (m, m)
    """
    if isinstance(rows, np.ndarray) and rows.dtype in (np.float32, np.float64):
        # BLAS does half the work of a full product and accumulates in place. ``rows.T`` of a
        # C-ordered block is what BLAS calls column-major, so nothing is copied.
        syrk = scipy.linalg.blas.ssyrk if rows.dtype == np.float32 else scipy.linalg.blas.dsyrk
        if matrix is None:
            return syrk(scale, rows.T, lower=1)
        return syrk(scale, rows.T, beta=1.0, c=matrix, lower=1, overwrite_c=1)
    product = scale * (rows.T @ rows)
    return product if matrix is None else matrix + product


class cholesky:
    """The Cholesky factor of a symmetric positive definite matrix, and solves with it.

    Parameters
    ----------
    matrix : array of shape (m, m)
        Only its lower triangle is read. Overwritten where the library allows it.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.

    Examples
    --------
    >>> factor = cholesky(np.asarray([[4.0, 0.0], [0.0, 1.0]]))
    >>> factor.solve(np.asarray([[8.0], [3.0]])).ravel()
    array([2., 3.])
    >>> factor.inverse()
    array([[0.25, 0.  ],
           [0.  , 1.  ]])
    """

    def __init__(self, matrix: Array) -> None:
        self._inverse: Array | None = None
        self._factor_inverse: Array | None = None
        if isinstance(matrix, np.ndarray):
            self.factor = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
            return
        xp = namespace(matrix)
        lower = xp.tril(matrix)
        try:
            self.factor = xp.linalg.cholesky(lower + xp.tril(matrix, k=-1).T)
        except Exception as error:  # each library raises its own type
            raise np.linalg.LinAlgError(str(error)) from error
        if not bool(xp.all(xp.isfinite(self.factor))):  # JAX returns NaN instead of raising
            raise np.linalg.LinAlgError("matrix is not positive definite")

    @classmethod
    def from_factor(cls, factor: Array) -> cholesky:
        """Return what has this lower triangular ``factor (m, m)`` without computing it."""
        made = cls.__new__(cls)
        made.factor = factor
        made._inverse = made._factor_inverse = None
        return made

    def solve(self, right: Array) -> Array:
        """Return ``matrix^{-1} @ right`` for ``right`` of shape ``(m, k)``."""
        if isinstance(right, np.ndarray):
            return scipy.linalg.cho_solve((self.factor, True), right, check_finite=False)
        if self._factor_inverse is None:
            xp = namespace(self.factor)
            self._factor_inverse = xp.linalg.inv(self.factor)  # the standard has no triangular solve
        return self._factor_inverse.T @ (self._factor_inverse @ right)

    def inverse(self) -> Array:
        """Return the whole inverse, shape ``(m, m)``; computed on the first call."""
        if self._inverse is None:
            if isinstance(self.factor, np.ndarray):
                potri = scipy.linalg.get_lapack_funcs("potri", (self.factor,))
                inverse, _ = potri(self.factor, lower=1)
                _mirror_lower(inverse)
                self._inverse = inverse
            else:
                xp = namespace(self.factor)
                size, where = self.factor.shape[0], array_api_compat.device(self.factor)
                self._inverse = self.solve(xp.eye(size, dtype=self.factor.dtype, device=where))
        return self._inverse


def _mirror_lower(matrix: np.ndarray, block: int = 512) -> None:
    """Copy the lower triangle of ``matrix`` onto the upper one, in place, by blocks."""
    size = matrix.shape[0]
    for rows in row_slices(size, block):
        matrix[rows, rows.stop :] = matrix[rows.stop :, rows].T
        corner = matrix[rows, rows]
        matrix[rows, rows] = np.tril(corner) + np.tril(corner, -1).T
