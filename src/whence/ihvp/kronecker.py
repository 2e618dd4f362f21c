"""The Kronecker approximation of the Hessian: K-FAC, and EK-FAC with corrected eigenvalues."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse.linalg

from whence._errors import NotPositiveDefiniteError, WhenceError
from whence.arrays.base import (
    Array,
    as_numpy,
    astype,
    check_number,
    like,
    namespace,
    row_slices,
    rows_at_once,
)
from whence.arrays.memory import memory_bytes
from whence.engine.base import Part, total
from whence.ihvp.base import (
    DEFAULT_DAMPING,
    SOLVERS,
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    Solution,
    check_curvature,
    linear_system,
    with_model,
)
from whence.ihvp.operator import DampedHessian, row_blocks, second_moment
from whence.ihvp.rows import CurvatureRows
from whence.ihvp.rows_kronecker import KroneckerRows
from whence.layers.linear_layer import Blocks, LinearLayer

__all__ = ["KroneckerFactors", "KroneckerIHVP", "KroneckerIHVPFactory"]


class KroneckerFactors:
    """``H + lam`` as a matrix that is diagonal in the basis ``w_a v_b^T``, ``a < d``, ``b < C``.

    With ``w_i`` the weight of row ``i`` (sample, or position of one)::

        A = sum_i w_i phi_i phi_i^T / sum_i w_i        (d, d)
        G = (1/N) sum_i K_i                            (C, C),  K_i with its weight
        A (x) G + lam (x) I  =  inverse transpose of (W (x) V)  diag(e)  inverse of (W (x) V)

    ``V`` are the eigenvectors of ``G``. ``W`` diagonalises ``A`` and ``lam`` at once: the eigenvectors of
    ``A`` if ``lam`` is one number, else ``W^T A W = diag(c)`` with ``W^T (A + lam) W = I``, so that a bias
    with another L2 than the kernel is no approximation. K-FAC has ``e_ab = c_a g_b + l_a``, with ``g`` the
    eigenvalues of ``G`` and ``l = diag(W^T lam W)``. EK-FAC replaces ``c_a g_b`` by what the Hessian itself
    has on that diagonal, ``(1/N) sum_i (w_a^T phi_i)^2 v_b^T K_i v_b``.

    Parameters
    ----------
    layer, blocks, damping
        See :class:`~whence.InverseHessianVectorProduct`.
    corrected : bool, default=True
        EK-FAC if true, K-FAC if false.

    Attributes
    ----------
    features : array of shape (d, d)
        ``W``.
    outputs : array of shape (C, C)
        ``V``.
    eigenvalues : array of shape (d, C)
        ``e``.
    """

    def __init__(self, layer: LinearLayer, blocks: Blocks, damping: float, corrected: bool = True) -> None:
        _refuse_if_too_large(layer.n_features)
        moment, _ = second_moment(blocks)
        xp = namespace(moment)
        lam = astype(layer.regulariser(damping), xp.float64)
        self.features: Array
        self.outputs: Array
        self.eigenvalues: Array
        self.features, scales, damped = _diagonalise(moment, lam)
        curvature = _mean_curvature(layer, blocks)
        values, self.outputs = xp.linalg.eigh(curvature)
        if corrected:
            undamped = self._diagonal_of_hessian(layer, blocks)
        else:
            undamped = scales[:, None] * values[None, :]
        self.eigenvalues = undamped + damped[:, None]
        self._undamped, self._damped = undamped, damped
        self._cast: dict[Any, tuple[Array, Array, Array]] = {}

    def solve(self, right: Array) -> Array:
        """Return the inverse times a stack ``(m, d, C)``, in its precision."""
        features, outputs, reciprocal = self._in_precision(right)
        xp = namespace(right)
        n_vectors, d, n_outputs = right.shape
        if n_vectors == 0:
            return right
        # Side by side, (d, m, C): four large products in place of four small ones a right-hand side.
        wide = xp.reshape(xp.permute_dims(right, (1, 0, 2)), (d, n_vectors * n_outputs))
        wide = xp.reshape(features.T @ wide, (d * n_vectors, n_outputs)) @ outputs
        wide = xp.reshape(wide, (d, n_vectors, n_outputs)) * reciprocal[:, None, :]
        wide = xp.reshape(wide, (d * n_vectors, n_outputs)) @ outputs.T
        wide = features @ xp.reshape(wide, (d, n_vectors * n_outputs))
        return xp.permute_dims(xp.reshape(wide, (d, n_vectors, n_outputs)), (1, 0, 2))

    def without_negative(self) -> KroneckerFactors:
        """Return itself with the undamped eigenvalues that are negative set to zero."""
        xp = namespace(self._undamped)
        self.eigenvalues = xp.maximum(self._undamped, xp.zeros_like(self._undamped)) + self._damped[:, None]
        return self

    def leverage_diagonal(self, phi: Array) -> Array:
        """Return ``m (n, C)`` with ``Q_i = V diag(m_i) V^T``; see :meth:`KroneckerIHVP.leverages`."""
        return (phi @ self.features) ** 2 @ (1 / self.eigenvalues)

    def _in_precision(self, like: Array) -> tuple[Array, Array, Array]:
        if like.dtype not in self._cast:
            arrays = (self.features, self.outputs, 1 / self.eigenvalues)
            first, second, third = (astype(array, like.dtype) for array in arrays)
            self._cast[like.dtype] = (first, second, third)
        return self._cast[like.dtype]

    def _diagonal_of_hessian(self, layer: LinearLayer, blocks: Blocks) -> Array:
        features, outputs = self.features, self.outputs
        n_columns = layer.n_features + _curvature_columns(layer)

        def of_part(part: Part) -> Array:
            shape = (layer.n_features, layer.n_outputs)
            diagonal = namespace(features).zeros(shape, dtype=features.dtype)
            for block in row_blocks(part, n_columns):
                squares = (block.phi @ features) ** 2
                diagonal += squares.T @ layer.curvatures(block).quadratic_forms(outputs)
            return diagonal

        return total(blocks, of_part, "Kronecker factors") / blocks.n_samples


def _refuse_if_too_large(n_features: int) -> None:
    """Raise if the second moment of the features and its eigenvectors do not fit into memory."""
    needed, available = 40 * n_features**2, memory_bytes()
    if needed > 0.8 * available:
        raise WhenceError(
            "ihvp_calculator_factory",
            f"a matrix of features by features that fits into memory ({available / 2**30:.0f} GiB here)",
            f"{n_features} features, which take {needed / 2**30:.0f} GiB",
            "Take CGDIHVPFactory(preconditioner=None), which forms no matrix.",
        )


class KroneckerIHVP(InverseHessianVectorProduct):
    """Solves with :class:`KroneckerFactors` in place of ``H + lam``: approximate, in ``O(d^2 + C^2)``.

    Exact where the Hessian is a Kronecker product, which it is for squared error. Elsewhere
    :meth:`error_bound` says how far off the answers can be.

    Parameters
    ----------
    layer, blocks, damping, curvature
        See :class:`~whence.InverseHessianVectorProduct`.
    eigenvalues : {"corrected", "product"}, default="corrected"
        EK-FAC or K-FAC.

    Attributes
    ----------
    factors : KroneckerFactors
    """

    def __init__(
        self,
        layer: LinearLayer,
        blocks: Blocks,
        damping: float,
        eigenvalues: str = "corrected",
        curvature: str = "hessian",
    ) -> None:
        super().__init__(layer, blocks, damping, curvature)
        self._eigenvalues = eigenvalues
        self._measured: float | None = None
        self._operator = DampedHessian(self.layer, blocks, self.damping)
        self._operator.refuse_if_not_definite()
        self.factors: KroneckerFactors = KroneckerFactors(
            self.layer, blocks, self.damping, eigenvalues == "corrected"
        )
        xp = namespace(self.factors.eigenvalues)
        smallest = float(xp.min(self.factors.eigenvalues))
        if not smallest > 0:
            raise NotPositiveDefiniteError(
                smallest,
                self.damping,
                "Raise the damping above its size, or take curvature='gauss_newton'.",
            )

    def solve(self, right: Array) -> Solution:
        """Solve for a stack of right-hand sides ``(m, d, C)``; see the base class.

        The relative residual of the solution is that of a random combination of the first call's
        right-hand sides, measured with the Hessian itself: it says how good the approximation is.
        """
        self._check_shape(right)
        wide = astype(right, namespace(right).float64)
        value = self.factors.solve(wide)
        return Solution(value, True, iterations=0, relative_residual=self._residual(wide, value))

    def about(self) -> dict[str, Any]:
        return super().about() | {"eigenvalues": self._eigenvalues}

    def for_samples(self) -> KroneckerIHVP:
        """Return itself without the training samples; see the base class."""
        other: KroneckerIHVP = self._without("_operator")
        other._measured = other._measured or 0.0  # nothing to measure with there
        return other

    def self_products(self, phi: Array, r: Array, outputs: Array | None = None) -> Array:
        """Return ``(H^{-1} g_i)^T phi_i`` at ``2 d (d + C)`` operations a sample; see the base class."""
        xp = namespace(phi)
        r = astype(r, xp.float64)
        if phi.ndim == 3:
            return super().self_products(astype(phi, xp.float64), r, outputs)
        basis = self.factors.outputs
        parts = [
            (self._leverage_diagonal(phi[rows, :]) * (r[rows, :] @ basis)) @ basis.T
            for rows in row_slices(phi.shape[0], self._rows_at_once())
        ]
        moved = xp.concat(parts, axis=0)
        return moved if outputs is None else xp.take_along_axis(moved, outputs[:, None], axis=1)[:, 0]

    def leverages(self, phi: Array) -> Array:
        """Return ``Q_i = V diag(m_i) V^T``, shape ``(n, C, C)``; see the base class."""
        xp = namespace(phi)
        if phi.ndim == 3:
            return super().leverages(astype(phi, xp.float64))
        basis = self.factors.outputs
        parts = [
            xp.matmul(basis * self._leverage_diagonal(phi[rows, :])[:, None, :], basis.T)
            for rows in row_slices(phi.shape[0], self._rows_at_once())
        ]
        return xp.concat(parts, axis=0)

    @cached_property
    def error_bound(self) -> float:
        """How far off an answer can be: ``|X - X*| <= error_bound |X*|`` in the norm of ``H + lam``.

        With ``M`` the approximation, it is the largest ``|k - 1|`` over the eigenvalues ``k`` of
        ``M^{-1} (H + lam)``; their mean is 1 for EK-FAC. By Lanczos iteration to three digits, at the
        cost of some tens of Hessian products.
        """
        d, n_outputs = self.layer.n_features, self.layer.n_outputs
        scale = 1 / namespace(self.factors.eigenvalues).sqrt(self.factors.eigenvalues)
        features, outputs = self.factors.features, self.factors.outputs
        xp = namespace(features)

        def product(vector: np.ndarray) -> np.ndarray:
            # E^{-1/2} (W (x) V)^T (H + lam) (W (x) V) E^{-1/2} - I
            inner = scale * xp.asarray(vector.reshape(d, n_outputs))
            image = self._operator((features @ inner @ outputs.T)[None, ...])[0, ...]
            return as_numpy(scale * (features.T @ image @ outputs)).reshape(-1) - vector.reshape(-1)

        size = d * n_outputs
        if size <= 64:
            matrix = np.stack([product(unit) for unit in np.eye(size)])
            return float(np.abs(np.linalg.eigvalsh(matrix)).max())
        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)
        values = scipy.sparse.linalg.eigsh(
            operator, k=1, which="LM", tol=1e-3, v0=start, return_eigenvectors=False
        )
        return float(abs(values[0]))

    def _leverage_diagonal(self, phi: Array) -> Array:
        return self.factors.leverage_diagonal(astype(phi, namespace(phi).float64))

    def _rows_at_once(self) -> int:
        return rows_at_once(16 * max(self.layer.n_features, self.layer.n_outputs**2))

    def _residual(self, right: Array, value: Array) -> float:
        if self._measured is None and right.shape[0] > 0:
            xp = namespace(right)
            mix = np.random.default_rng(0).standard_normal((right.shape[0], 1, 1))
            mixed = xp.sum(like(mix, right) * right, axis=0)[None, ...]
            image = self._operator(xp.sum(like(mix, right) * value, axis=0)[None, ...])
            norm = float(xp.linalg.vector_norm(mixed))
            self._measured = float(xp.linalg.vector_norm(image - mixed)) / norm if norm else 0.0
        return self._measured or 0.0


@SOLVERS.register("kronecker")
class KroneckerIHVPFactory(InverseHessianVectorProductFactory):
    """Builds :class:`KroneckerIHVP`: right for layers too large for anything else; approximate.

    Parameters
    ----------
    damping : float, default=1e-3
        Added to the Hessian's diagonal, next to the layer's own L2.
    eigenvalues : {"corrected", "product"}, default="corrected"
        ``"corrected"`` is EK-FAC: the eigenvalues are replaced by the diagonal that the Hessian itself
        has in the basis of the factors. ``"product"`` is K-FAC.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        See :class:`~whence.InverseHessianVectorProduct`.

    Raises
    ------
    WhenceError
        If ``damping`` is negative, or another argument is none of its values.

    Examples
    --------
    One feature ``x = 2``, squared error: ``H = 2 x^2 = 8`` is a Kronecker product, of ``A = 4`` and
    ``G = 2``, and the answer is exact.

    >>> import numpy as np
    >>> from whence.layers.linear_layer import Block, LinearLayer
    >>> from whence.layers.losses import SquaredError
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> layer = LinearLayer(np.asarray([[3.0]]), SquaredError())
    >>> ihvp = KroneckerIHVPFactory(damping=2).build(layer, One())
    >>> ihvp.solve(np.asarray([[[5.0]]])).value
    array([[[0.5]]])

    References
    ----------
    Martens, Grosse. "Optimizing Neural Networks with Kronecker-factored Approximate Curvature." ICML
    2015. George, Laurent, Bouthillier, Ballas, Vincent. "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis." NeurIPS 2018.
    """

    def __init__(
        self,
        damping: float = DEFAULT_DAMPING,
        *,
        eigenvalues: str = "corrected",
        curvature: str = "hessian",
    ) -> None:
        check_number(damping, "damping")
        check_curvature(curvature)
        if eigenvalues not in ("corrected", "product"):
            raise WhenceError("eigenvalues", "'corrected' or 'product'", repr(eigenvalues), "Choose one.")
        self.damping = damping
        self.eigenvalues = eigenvalues
        self.curvature = curvature

    def build(self, model: Any, dataset: Any) -> Any:
        """Compute and diagonalise the factors; see the base class."""
        if isinstance(model, CurvatureRows):
            return KroneckerRows(model, self.damping)
        layer, blocks = linear_system(model, dataset)
        made = KroneckerIHVP(layer, blocks, self.damping, self.eigenvalues, self.curvature)
        return with_model(made, model)


def _diagonalise(moment: Array, lam: Array) -> tuple[Array, Array, Array]:
    """Return ``W``, ``c`` and ``l`` with ``W^T A W = diag(c)``, ``W^T lam W = diag(l)``."""
    xp = namespace(moment)
    if bool(xp.all(lam == lam[0])):
        values, vectors = xp.linalg.eigh(moment)
        return vectors, values, xp.zeros_like(values) + lam[0]
    damped = moment + xp.eye(moment.shape[0], dtype=moment.dtype) * lam[None, :]
    inverse = xp.linalg.inv(xp.linalg.cholesky(damped))
    values, vectors = xp.linalg.eigh(inverse @ moment @ inverse.T)
    basis = inverse.T @ vectors
    return basis, values, xp.sum(lam[:, None] * basis**2, axis=0)


def _mean_curvature(layer: LinearLayer, blocks: Blocks) -> Array:
    n_columns = layer.n_features + _curvature_columns(layer)

    def of_part(part: Part) -> Any:
        curvature: Any = 0.0
        for block in row_blocks(part, n_columns):
            curvature = curvature + layer.curvatures(block).total()
        return curvature

    return total(blocks, of_part, "Kronecker factors") / blocks.n_samples


def _curvature_columns(layer: LinearLayer) -> int:
    return layer.n_outputs * (layer.n_outputs if layer.curvature_is_dense else 1)
