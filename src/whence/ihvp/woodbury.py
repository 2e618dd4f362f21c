"""The exact inverse from a matrix of the size of the training set, for layers wider than that.

With ``K_i = B_i B_i^T`` the Hessian is ``H + lam = lam + A^T A``, where ``A`` has one row for each sample
``i`` and column ``a`` of ``B_i``: ``(B_i)_.a (x) phi_i / sqrt(N)``. Woodbury's identity gives::

    (H + lam)^{-1} = lam^{-1} - lam^{-1} A^T (I + A lam^{-1} A^T)^{-1} A lam^{-1}
    (A lam^{-1} A^T)_{ia,jb} = (B_i^T B_j)_ab  phi_i^T lam^{-1} phi_j / N

so that only a matrix of ``N * C`` rows is factorised (``N``, once for each output, where outputs do not
interact), however many features there are. That is what a tree ensemble has: more leaves than samples.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from whence._errors import NotPositiveDefiniteError, WhenceError
from whence.arrays.base import (
    WORKSPACE_BYTES,
    Array,
    as_numpy,
    astype,
    check_number,
    like,
    namespace,
    row_slices,
)
from whence.arrays.memory import memory_bytes
from whence.arrays.sparse import SparseRows
from whence.arrays.symmetric import cholesky
from whence.ihvp.base import (
    DEFAULT_DAMPING,
    SOLVERS,
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    Solution,
    check_curvature,
    linear_system,
    refuse_if_inexact,
    with_model,
)
from whence.layers.linear_layer import Blocks, LinearLayer, by_rows

__all__ = ["WoodburyIHVP", "WoodburyIHVPFactory"]


class _Group(NamedTuple):
    """Outputs that interact.

    Attributes
    ----------
    outputs : slice
    roots : array of shape (N, c, k)
        ``B_i / sqrt(N)`` for these ``c`` outputs.
    factor : cholesky
        Of ``I + A lam^{-1} A^T``, shape ``(N*k, N*k)``.
    """

    outputs: slice
    roots: np.ndarray
    factor: cholesky


class WoodburyIHVP(InverseHessianVectorProduct):
    """``(H + lam)^{-1}`` by Woodbury's identity, in float64 on the host.

    Parameters
    ----------
    layer, blocks, damping, curvature
        See :class:`~whence.InverseHessianVectorProduct`.

    Raises
    ------
    NotPositiveDefiniteError
        If a row of the weights is neither damped nor regularised, or some ``K_i`` has a negative
        eigenvalue.
    WhenceError
        If the matrix would not fit into memory.
    """

    is_direct = True

    def __init__(
        self, layer: LinearLayer, blocks: Blocks, damping: float, curvature: str = "hessian"
    ) -> None:
        super().__init__(layer, blocks, damping, curvature)
        lam = np.asarray(as_numpy(layer.regulariser(damping)), dtype=np.float64)
        if not (lam > 0).all():
            raise NotPositiveDefiniteError(
                0.0, damping, "Pass damping > 0, e.g. 1e-3: this solver divides by it on every row."
            )
        self._reciprocal = 1 / lam
        self._phi = [_host(block.phi) for block in by_rows(blocks)]
        self._relative_residual: float | None = None
        n_rows = sum(phi.shape[0] for phi in self._phi)
        independent = layer.outputs_are_independent
        self._refuse_if_too_large(n_rows if independent else n_rows * layer.n_outputs)
        gram = np.concatenate([self._similarities(phi) for phi in self._phi])
        roots = self._roots(blocks) / math.sqrt(blocks.n_samples)
        n_outputs, width = layer.n_outputs, 1 if independent else layer.n_outputs
        some = [slice(c, c + width) for c in range(0, n_outputs, width)]
        try:
            self._groups = [_group(outputs, roots[:, outputs, outputs], gram) for outputs in some]
        except np.linalg.LinAlgError:  # its 1 on the diagonal is lost beside features over damping
            refuse_if_inexact(math.inf, self.damping)
            raise

    def solve(self, right: Array) -> Solution:
        """Solve for a stack of right-hand sides ``(m, d, C)``; see the base class."""
        self._check_shape(right)
        wide = np.asarray(as_numpy(right), dtype=np.float64)
        scaled = wide * self._reciprocal[:, None]
        if not len(wide):
            return Solution(scaled, True, iterations=0, relative_residual=0.0)
        # Columns m and c of the stack side by side: (d, m * C).
        m, d, n_outputs = wide.shape
        columns = scaled.transpose(1, 0, 2).reshape(d, m * n_outputs)
        images = np.concatenate([phi @ columns for phi in self._phi]).reshape(-1, m, n_outputs)
        pulled = np.empty_like(images)
        for group in self._groups:
            inner = np.einsum("nca,nmc->nam", group.roots, images[:, :, group.outputs])
            solved = group.factor.solve(inner.reshape(-1, m)).reshape(inner.shape)
            pulled[:, :, group.outputs] = np.einsum("nca,nam->nmc", group.roots, solved)
        value = scaled - self._back(pulled.reshape(-1, m * n_outputs)).reshape(d, m, n_outputs).transpose(
            1, 0, 2
        )
        if self._relative_residual is None and self.blocks is not None:
            gap = as_numpy(self.product(like(value[:1], right))) - wide[:1]
            norm = float(np.linalg.norm(wide[0]))
            residual = float(np.linalg.norm(gap)) / norm if norm else 0.0
            refuse_if_inexact(residual, self.damping)
            self._relative_residual = residual
        return Solution(value, True, iterations=0, relative_residual=self._relative_residual or 0.0)

    def for_samples(self) -> WoodburyIHVP:
        """Return itself; its matrix is of the training samples. See the base class."""
        return self._without()

    def self_products(self, phi: Array, r: Array, outputs: Array | None = None) -> Array:
        """Return ``(H^{-1} g_i)^T phi_i = Q_i r_i``; see the base class."""
        if phi.ndim == 3:
            return super().self_products(_host(phi), np.asarray(as_numpy(r), dtype=np.float64), outputs)
        moved = np.matmul(self.leverages(phi), np.asarray(as_numpy(r), dtype=np.float64)[:, :, None])[
            ..., 0
        ]
        if outputs is None:
            return moved
        return np.take_along_axis(moved, as_numpy(outputs)[:, None], axis=1)[:, 0]

    def leverages(self, phi: Array) -> Array:
        """Return ``Q_i (n, C, C)`` from the samples' similarities to the training set."""
        phi = _host(phi)
        if phi.ndim == 3:
            return super().leverages(phi)
        n_outputs = self.layer.n_outputs
        result = np.zeros((phi.shape[0], n_outputs, n_outputs))
        height = max(group.roots.shape[0] * group.roots.shape[2] for group in self._groups)
        for rows in row_slices(phi.shape[0], max(1, WORKSPACE_BYTES // (24 * height * n_outputs))):
            part = phi[rows, :]
            similar = self._similarities(part)
            own = np.asarray((part * part) @ self._reciprocal[:, None])[:, 0]
            for group in self._groups:
                # w_(ja),(ic) = (B_j)_ca phi_i^T lam^{-1} phi_j / sqrt(N)
                wide = np.einsum("jca,ij->jaic", group.roots, similar)
                n_group = wide.shape[3]
                flat = wide.reshape(-1, similar.shape[0] * n_group)
                solved = group.factor.solve(flat).reshape(wide.shape)
                caught = np.einsum("jaic,jaie->ice", wide, solved)
                block = own[:, None, None] * np.eye(n_group) - caught
                result[rows, group.outputs, group.outputs] = block
        return result

    def _similarities(self, phi: Any) -> np.ndarray:
        """Return ``phi_i^T lam^{-1} phi_j`` of some rows to all of the training set, shape ``(n, N)``."""
        scaled = phi * self._reciprocal[None, :]
        return np.concatenate([np.asarray(scaled @ other.T) for other in self._phi], axis=1)

    def _back(self, rows: np.ndarray) -> np.ndarray:
        """Return ``lam^{-1} Phi^T rows``."""
        total = np.zeros((len(self._reciprocal), rows.shape[1]))
        start = 0
        for phi in self._phi:
            total += phi.T @ rows[start : start + phi.shape[0]]
            start += phi.shape[0]
        return self._reciprocal[:, None] * total

    def _roots(self, blocks: Blocks) -> np.ndarray:
        """Return ``B_i (N, C, C)`` with ``K_i = B_i B_i^T``."""
        parts = []
        for block in by_rows(blocks):
            # In double, as all else here.
            block = block._replace(phi=astype(block.phi, namespace(block.phi).float64))
            values, vectors = np.linalg.eigh(
                np.asarray(as_numpy(self.layer.curvatures(block).matrices()), dtype=np.float64)
            )
            smallest = float(values.min(initial=0))
            if smallest < -1e-5 * max(1.0, float(np.abs(values).max(initial=0))):
                raise NotPositiveDefiniteError(
                    smallest,
                    self.damping,
                    "Take curvature='gauss_newton', or ExactIHVPFactory: this solver needs a loss that is "
                    "convex in the pre-activations.",
                )
            root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
            # For diagonal curvatures the symmetric root keeps outputs apart.
            parts.append(np.matmul(root, vectors.transpose(0, 2, 1)))
        return np.concatenate(parts)

    def _refuse_if_too_large(self, size: int) -> None:
        count = self.layer.n_outputs if self.layer.outputs_are_independent else 1
        needed = 8 * size**2 * (count + 2)
        if needed > 0.8 * memory_bytes():
            raise WhenceError(
                "ihvp_calculator_factory",
                f"a matrix that fits into memory ({memory_bytes() / 2**30:.0f} GiB here)",
                f"{size} rows, one for each sample and output, which take {needed / 2**30:.0f} GiB",
                "Take CGDIHVPFactory(), which forms no matrix.",
            )


@SOLVERS.register("woodbury")
class WoodburyIHVPFactory(InverseHessianVectorProductFactory):
    """Builds :class:`WoodburyIHVP`: right where features outnumber samples, as leaves of trees do.

    Parameters
    ----------
    damping : float, default=1e-3
        Added to the Hessian's diagonal, next to the layer's own L2; it must be positive where that is 0.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        See :class:`~whence.InverseHessianVectorProduct`.

    Examples
    --------
    One feature ``x = 2``, squared error: ``H = 2 x^2 = 8``, so that with damping 2 the solution of
    ``(H + 2) X = 5`` is 0.5.

    >>> from whence.layers.linear_layer import Block, LinearLayer
    >>> from whence.layers.losses import SquaredError
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> layer = LinearLayer(np.asarray([[3.0]]), SquaredError())
    >>> WoodburyIHVPFactory(damping=2).build(layer, One()).solve(np.asarray([[[5.0]]])).value.round(12)
    array([[[0.5]]])
    """

    def __init__(self, damping: float = DEFAULT_DAMPING, *, curvature: str = "hessian") -> None:
        check_number(damping, "damping")
        check_curvature(curvature)
        self.damping = damping
        self.curvature = curvature

    def build(self, model: Any, dataset: Any) -> WoodburyIHVP:
        """Form the samples' similarities and factorise; see the base class."""
        layer, blocks = linear_system(model, dataset)
        return with_model(WoodburyIHVP(layer, blocks, self.damping, self.curvature), model)


def _host(phi: Array) -> Any:
    """Return features on the host in float64, sparse ones as they are."""
    if isinstance(phi, SparseRows):
        return phi.astype(np.float64, copy=False)
    return np.asarray(as_numpy(phi), dtype=np.float64)


def _group(outputs: slice, roots: np.ndarray, gram: np.ndarray) -> _Group:
    n, c, k = roots.shape
    rows = roots.transpose(0, 2, 1).reshape(n * k, c)  # row (i, a) holds (B_i)_.a
    matrix = rows @ rows.T
    matrix *= np.repeat(np.repeat(gram, k, axis=0), k, axis=1) if k > 1 else gram
    matrix[np.diag_indices(n * k)] += 1.0
    return _Group(outputs, roots, cholesky(matrix))
