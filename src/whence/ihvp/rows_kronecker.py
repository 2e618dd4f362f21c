"""EK-FAC for any layers, from curvature rows: the basis of two small moments, the diagonal of ``H`` in it.

For a layer whose curvature rows are the matrices ``Z_m (d, C)``, with eigenvectors ``W`` of
``sum_m Z_m Z_m^T`` and ``V`` of ``sum_m Z_m^T Z_m``::

    e_ab = (1/N) sum_m (w_a^T Z_m v_b)^2,      H + Lambda  ~  (W (x) V) diag(e + lambda) (W (x) V)^T

For an embedding ``W`` is the identity: two tokens meet in few samples, and ``d x d`` numbers would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from whence._errors import NotPositiveDefiniteError
from whence.arrays.base import Array, astype, namespace
from whence.ihvp.rows import CurvatureRows, RowsIHVP
from whence.layers.rows import Matrices, Rows, Tokens

__all__ = ["KroneckerRows", "LayerBasis"]

#: Inputs of a layer up to which their moment is diagonalised.
MOST_INPUTS = 8192


class LayerBasis:
    """One layer in the basis of its moments.

    Attributes
    ----------
    inputs : array of shape (G, d, d) or None
        ``W``; ``None`` for the identity.
    outputs : array of shape (G, C, C)
        ``V``.
    eigenvalues : array of shape (G, d, C)
        ``e``, undamped.
    """

    def __init__(self, rows: Rows, layer: str, n_samples: int) -> None:
        _, d, _ = rows.shapes[layer]
        terms = rows.layers[layer]
        is_wide = any(isinstance(term, Tokens) for term in terms) or d > MOST_INPUTS
        by_input: Any = 0.0
        by_output: Any = 0.0
        for z in _written(rows, layer):
            xp = namespace(z)
            if not is_wide:
                by_input = by_input + xp.sum(xp.matmul(z, xp.matrix_transpose(z)), axis=0)
            by_output = by_output + xp.sum(xp.matmul(xp.matrix_transpose(z), z), axis=0)
        self.inputs: Array | None = None if is_wide else xp.linalg.eigh(by_input)[1]
        self.outputs: Array = xp.linalg.eigh(by_output)[1]
        squares: Any = 0.0
        for z in _written(rows, layer):
            squares = squares + xp.sum(self.into(z) ** 2, axis=0)
        self.eigenvalues: Array = squares / n_samples

    def into(self, values: Array) -> Array:
        """Return matrices ``(n, G, d, C)`` in the basis."""
        xp = namespace(values)
        turned = xp.matmul(values, self.outputs)
        return turned if self.inputs is None else xp.matmul(xp.matrix_transpose(self.inputs), turned)

    def back(self, values: Array) -> Array:
        """Undo :meth:`into`."""
        xp = namespace(values)
        turned = xp.matmul(values, xp.matrix_transpose(self.outputs))
        return turned if self.inputs is None else xp.matmul(self.inputs, turned)


class KroneckerRows(RowsIHVP):
    """Solves each layer in its Kronecker basis: approximate, in ``O(d^2 + C^2)`` memory.

    Parameters
    ----------
    system, damping
        See :class:`~whence.ihvp.rows.RowsIHVP`.
    """

    form = "kronecker"

    def __init__(self, system: CurvatureRows, damping: float) -> None:
        super().__init__(system, damping)
        self.bases: dict[str, LayerBasis] = {}
        self._reciprocal: dict[str, Array] = {}
        lam = system.damped(self.damping)
        for name in system.rows.layers:
            basis = LayerBasis(system.rows, name, system.n_samples)
            xp = namespace(basis.eigenvalues)
            column = astype(xp.asarray(lam[name]), basis.eigenvalues.dtype)
            if basis.inputs is not None:  # its diagonal in the basis
                column = xp.matmul(xp.matrix_transpose(basis.inputs**2), column[None, :, None])
            else:
                column = column[None, :, None]
            damped = basis.eigenvalues + column
            smallest = float(xp.min(damped))
            if not smallest > 0:
                raise NotPositiveDefiniteError(smallest, self.damping, "Pass damping > 0, e.g. 1e-3.")
            self.bases[name] = basis
            self._reciprocal[name] = 1 / damped

    def precondition(self, rows: Rows) -> Rows:
        """Return the approximate inverse times rows, written out."""
        layers = {}
        for name, basis in self.bases.items():
            values = rows.only([name]).astype(namespace(rows.like).float64).matrices(name)
            layers[name] = (Matrices(basis.back(basis.into(values) * self._reciprocal[name])),)
        return Rows(layers)

    def solve_rows(self, rows: Rows) -> Rows:
        result = self.precondition(rows)
        if rows.n_samples:
            self.measured(rows, result)
        return result


def _written(rows: Rows, layer: str) -> Iterator[Array]:
    """Yield the matrices of a layer, some samples at a time, in float64."""
    one = rows.only([layer])
    for some in one.blocks():
        yield one[some].astype(namespace(rows.like).float64).matrices(layer)
