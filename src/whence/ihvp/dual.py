"""Exact solvers of several layers: by curvature rows (dual), by weights (primal), layer by layer.

The dual form is the Woodbury identity. With the ``M`` curvature rows ``Z`` and a vector ``v`` of weights,

    ``(H + Lambda)^{-1} v = Lambda^{-1} (v - Z^T (N I + Z Lambda^{-1} Z^T)^{-1} Z Lambda^{-1} v)``,

so that a network of any size costs a matrix of ``M x M`` numbers, its layers all together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import device as device_of

from whence.arrays.base import Array, assign, astype, namespace
from whence.arrays.memory import memory_bytes
from whence.arrays.symmetric import cholesky
from whence.ihvp.base import refuse_if_inexact
from whence.ihvp.rows import CurvatureRows, RowsIHVP, as_vectors, from_vectors, minus, sizes_refused
from whence.ihvp.spectrum import pseudo_inverse
from whence.layers.products import combined, inner, inner_by_pairs
from whence.layers.rows import Rows

__all__ = ["BlocksIHVP", "DualIHVP", "PrimalIHVP", "exact_solver"]

#: The share of memory that a matrix of a solver and its factor may take.
SHARE_OF_MEMORY = 0.6
#: Bytes that curvature rows in float64 may take beside the rows themselves.
KERNEL_BYTES = 256 * 2**20


class DualIHVP(RowsIHVP):
    """``(H + Lambda)^{-1}`` by the tangent kernel of the curvature rows, a Cholesky factor of ``M x M``.

    Parameters
    ----------
    system, damping
        See :class:`~whence.ihvp.rows.RowsIHVP`.

    Notes
    -----
    Memory: ``16 M^2`` bytes. Time: ``M^2`` products of small factors, ``M^3 / 3`` for the factor.
    """

    form = "dual"

    def __init__(self, system: CurvatureRows, damping: float) -> None:
        super().__init__(system, damping)
        self._refuse_without_damping("with fewer curvature rows than weights the system is singular")
        z = system.rows
        lam = system.damped(self.damping)
        self._reciprocal = {name: 1 / part for name, part in lam.items()}
        xp = namespace(z.like)
        size = (system.n_rows, system.n_rows)
        kernel = xp.zeros(size, dtype=xp.float64, device=device_of(z.like))
        for some in z.blocks(KERNEL_BYTES):  # the lower triangle is all that a factor needs
            scaled = _in_double(z[some]).scaled(self._reciprocal)
            below = slice(some.start, system.n_rows)
            kernel = assign(kernel, (below, some), inner(z[below], scaled))
        eye = xp.eye(system.n_rows, dtype=kernel.dtype, device=device_of(kernel))
        self._factor = cholesky(kernel + system.n_samples * eye)

    def solve_rows(self, rows: Rows) -> Rows:
        z = self.system.rows
        scaled = _in_double(rows).scaled(self._reciprocal)
        weights = self._factor.solve(inner(z, scaled)).T
        result = minus(scaled, combined(z, weights).scaled(self._reciprocal))
        if rows.n_samples:
            refuse_if_inexact(self.measured(rows, result), self.damping)
        return result

    def inner_products(self, left: Rows, right: Rows) -> Array:
        z = self.system.rows
        xp = namespace(z.like)
        parts = []
        at_once = max(1, 64 * 2**20 // (8 * self.system.n_rows))
        for start in range(0, right.n_samples, at_once):
            some = slice(start, start + at_once)
            scaled = _in_double(right[some]).scaled(self._reciprocal)
            images = self._factor.solve(inner(z, scaled))
            other = inner(z, _in_double(left[some]).scaled(self._reciprocal))
            parts.append(inner_by_pairs(left[some], scaled) - xp.sum(images * other, axis=0))
        return xp.concat(parts, axis=0)


class PrimalIHVP(RowsIHVP):
    """``(H + Lambda)^{-1}`` by the matrix of all weights written out, for small networks.

    Parameters
    ----------
    system, damping
        See :class:`~whence.ihvp.rows.RowsIHVP`. Without damping the pseudo-inverse is taken.

    Notes
    -----
    Memory: ``16 D^2`` bytes. Time: ``M D^2`` for the matrix, ``D^3 / 3`` for the factor.
    """

    form = "primal"

    def __init__(self, system: CurvatureRows, damping: float) -> None:
        super().__init__(system, damping)
        matrix: Any = 0.0
        for rows in system.rows.blocks():
            vectors = as_vectors(system.rows[rows])
            matrix = matrix + vectors.T @ vectors
        matrix = matrix / system.n_samples
        xp = namespace(matrix)
        lam = self._diagonal(xp, matrix)
        if bool(xp.all(lam > 0)):
            self._factor: Any = cholesky(matrix + xp.eye(lam.shape[0], dtype=matrix.dtype) * lam[None, :])
        else:
            damped = matrix + xp.eye(lam.shape[0], dtype=matrix.dtype) * lam[None, :]
            self._factor = pseudo_inverse(damped, None, float(xp.finfo(system.rows.like.dtype).eps))
        self._is_damped = bool(xp.all(lam > 0))

    def _diagonal(self, xp: Any, matrix: Array) -> Array:
        lam = self.system.damped(self.damping)
        parts = []
        for name, (g, _, c) in self.system.rows.shapes.items():
            column = astype(xp.asarray(lam[name]), matrix.dtype)
            parts.append(xp.reshape(xp.broadcast_to(column[None, :, None], (g, column.shape[0], c)), (-1,)))
        return xp.concat(parts)

    def solve_rows(self, rows: Rows) -> Rows:
        result = from_vectors(self._factor.solve(as_vectors(rows).T).T, self.system.rows)
        if rows.n_samples:
            residual = self.measured(rows, result)
            if self._is_damped:
                refuse_if_inexact(residual, self.damping)
        return result


class BlocksIHVP(RowsIHVP):
    """A solver for each layer: ``H`` without what stands between two layers.

    Parameters
    ----------
    system, damping
        See :class:`~whence.ihvp.rows.RowsIHVP`.
    make : callable
        ``make(system, damping)`` gives the solver of one layer.
    form : str
        How results call it.
    """

    def __init__(
        self,
        system: CurvatureRows,
        damping: float,
        make: Callable[[CurvatureRows, float], RowsIHVP],
        form: str = "blocks",
    ) -> None:
        super().__init__(system, damping)
        self.form = form
        self.solvers: dict[str, RowsIHVP] = {
            name: make(system.only([name]), damping) for name in system.rows.layers
        }

    def solve_rows(self, rows: Rows) -> Rows:
        layers: dict[str, Any] = {}
        for name, solver in self.solvers.items():
            layers |= solver.solve_rows(rows.only([name])).layers
        result = Rows(layers)
        if rows.n_samples:
            self.measured(rows, result)
        return result

    def inner_products(self, left: Rows, right: Rows) -> Array:
        sums: Any = 0.0
        for name, solver in self.solvers.items():
            sums = sums + solver.inner_products(left.only([name]), right.only([name]))
        return sums

    @cached_property
    def forms(self) -> dict[str, str]:
        """The form of each layer's solver."""
        return {name: solver.form for name, solver in self.solvers.items()}


def exact_solver(system: CurvatureRows, damping: float, layers: str = "together") -> RowsIHVP:
    """Return the dual or the primal form, whichever is smaller; refuse with the sizes if neither fits.

    Parameters
    ----------
    system : CurvatureRows
    damping : float
    layers : {"together", "apart"}, default="together"
        ``"apart"`` leaves out what stands between two layers.
    """
    if layers == "apart":
        return BlocksIHVP(system, damping, exact_solver)
    by_rows, by_weights = system.n_rows, system.n_weights
    size = min(by_rows, by_weights)
    available = memory_bytes()
    if 16 * size**2 > SHARE_OF_MEMORY * available:
        raise sizes_refused(
            "exact",
            f"{by_rows} curvature rows, whose kernel takes {16 * by_rows**2 / 2**30:.1f} GiB, and "
            f"{by_weights} weights, whose matrix takes {16 * by_weights**2 / 2**30:.1f} GiB",
            available,
        )
    needs_primal = damping == 0 and not all(np.all(np.asarray(l2) > 0) for l2 in system.l2.values())
    if by_weights <= by_rows or (needs_primal and 16 * by_weights**2 <= SHARE_OF_MEMORY * available):
        return PrimalIHVP(system, damping)
    return DualIHVP(system, damping)


def _in_double(rows: Rows) -> Rows:
    return rows.astype(namespace(rows.like).float64)
