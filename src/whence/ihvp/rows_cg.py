"""Conjugate gradient on the Gauss-Newton matrix of several layers, preconditioned by EK-FAC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whence.arrays.base import Array, astype, namespace
from whence.ihvp.iterative import Options
from whence.ihvp.rows import CurvatureRows, RowsIHVP, as_vectors, from_vectors
from whence.ihvp.rows_kronecker import KroneckerRows
from whence.layers.rows import Rows

__all__ = ["CGDRows", "Operator", "Preconditioner"]


class CGDRows(RowsIHVP):
    """Solves to a stated residual, by products with curvature rows only.

    Parameters
    ----------
    system : CurvatureRows
    options : Options
        Those of :class:`~whence.CGDIHVPFactory`.
    descent : callable
        ``descent(operator, preconditioner, options)`` is what iterates; it has a method ``solve``.
    """

    form = "conjugate gradient"

    def __init__(self, system: CurvatureRows, options: Options, descent: Callable[..., Any]) -> None:
        super().__init__(system, options.damping)
        self._refuse_without_damping("with fewer curvature rows than weights the system is singular")
        self.options = options
        preconditioner = None
        if options.preconditioner is not None:
            preconditioner = Preconditioner(KroneckerRows(system, options.damping))
        self._descent = descent(Operator(self), preconditioner, options)

    def solve_rows(self, rows: Rows) -> Rows:
        solution = self._descent.solve(as_vectors(rows)[:, :, None])
        residual = max(self._relative_residual or 0.0, float(solution.relative_residual))
        self._relative_residual = residual
        return from_vectors(solution.value[:, :, 0], self.system.rows)

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "tolerance": self.options.tolerance,
            "preconditioner": self.options.preconditioner,
        }


class Operator:
    """``(H + Lambda) V`` for vectors ``(m, D, 1)``."""

    def __init__(self, owner: CGDRows) -> None:
        self._owner = owner
        self.system = owner.system
        self.dtype = namespace(owner.system.rows.like).float64

    def __call__(self, vectors: Array) -> Array:
        return self._owner.product(vectors)

    def refuse_if_indefinite(self) -> None:
        """Do nothing: a Gauss-Newton matrix is positive semi-definite."""


class Preconditioner:
    """The Kronecker form of several layers, for vectors ``(m, D, 1)``."""

    def __init__(self, kronecker: KroneckerRows) -> None:
        self._kronecker = kronecker

    def solve(self, right: Array) -> Array:
        """Return the approximate inverse times vectors ``(m, D, 1)``."""
        rows = from_vectors(right[:, :, 0], self._kronecker.system.rows)
        vectors = as_vectors(self._kronecker.precondition(rows))[:, :, None]
        return astype(vectors, right.dtype)
