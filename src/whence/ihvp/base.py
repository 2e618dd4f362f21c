"""What every solver of ``(H + lam) X = B`` offers, and how one is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from whence._arrays import Array, astype, itemsize, namespace, row_slices
from whence._errors import WhenceError
from whence.linear_layer import WORKSPACE_BYTES, Blocks, LinearLayer

__all__ = [
    "DEFAULT_DAMPING",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "Solution",
    "linear_system",
]

#: The damping of every factory unless another is given.
DEFAULT_DAMPING = 1e-3


@dataclass(frozen=True)
class Solution:
    """What a solver returns: the value, and what happened on the way.

    Attributes
    ----------
    value : array of shape (m, d, C)
        ``(H + lam)^{-1} B``.
    converged : bool
        Whether every right-hand side reached the tolerance.
    iterations : int
        The most iterations that any right-hand side took; 0 for a direct solver.
    relative_residual : float
        The largest ``|B - (H + lam) X| / |B|`` over the right-hand sides.
    """

    value: Array
    converged: bool
    iterations: int
    relative_residual: float


class InverseHessianVectorProduct(ABC):
    """Solves ``(H + lam) X = B``, with ``H`` the Hessian of a dense layer's mean loss.

    Parameters
    ----------
    layer : LinearLayer
        The layer at the weights where the Hessian is taken.
    blocks : Blocks
        The training samples that the Hessian is the mean over.
    damping : float
        Added to the diagonal on every row of ``theta``, next to the layer's own L2.
    """

    def __init__(self, layer: LinearLayer, blocks: Blocks, damping: float) -> None:
        self.layer = layer
        self.blocks = blocks
        self.damping = float(damping)

    @abstractmethod
    def solve(self, right: Array) -> Solution:
        """Solve for a stack of right-hand sides ``(m, d, C)``.

        Raises
        ------
        WhenceError
            If the right-hand sides do not have that shape, or the solver did not converge.
        """

    def product(self, vectors: Array) -> Array:
        """Return ``(H + lam) V`` for a stack ``(m, d, C)``, from the training samples."""
        self._check_shape(vectors)
        return self.layer.hessian_product(self.blocks, vectors, self.damping)

    def self_products(self, phi: Array, r: Array, outputs: Array | None = None) -> Array:
        """Return ``(H^{-1} g_i)^T phi_i`` with ``g_i = outer(phi_i, r_i)``, for every sample.

        Divided by ``N``, it is how far the pre-activations of sample ``i`` move when ``i`` is left out
        of the training set, to first order. Along a sequence ``g_i = sum_l outer(phi_il, r_il)``: the
        whole sample is left out, and what moves is every ``u_il``.

        Parameters
        ----------
        phi : array of shape (n, d) or (n, L, d)
        r : array of shape (n, C) or (n, L, C)
        outputs : array of shape (n,) or (n, L), optional
            The one output wanted of each sample, or of each position.

        Returns
        -------
        array of shape (n, C) or (n, L, C), without the last axis if ``outputs`` is given
        """
        xp = namespace(phi)
        if phi.ndim == 2:
            one = None if outputs is None else outputs[:, None]
            moved = self.self_products(phi[:, None, :], r[:, None, :], one)
            return moved[:, 0, ...]
        row_bytes = 8 * self.layer.n_features * self.layer.n_outputs * itemsize(phi)
        parts = []
        for rows in row_slices(phi.shape[0], max(1, WORKSPACE_BYTES // row_bytes)):
            gradients = xp.matmul(xp.matrix_transpose(phi[rows, ...]), r[rows, ...])
            solved = self.solve(gradients).value
            parts.append(xp.matmul(astype(phi[rows, ...], solved.dtype), solved))
        moved = xp.concat(parts, axis=0)
        return moved if outputs is None else xp.take_along_axis(moved, outputs[..., None], axis=2)[..., 0]

    def leverages(self, phi: Array) -> Array:
        """Return ``Q_i``, ``(Q_i)_ab = <phi_i (x) e_a, H^{-1} (phi_i (x) e_b)>``, shape ``(n, C, C)``.

        ``self_products(phi, r)`` is ``Q_i r_i``; ``Q_i K_i / N`` is the leverage of sample ``i``. Along
        a sequence ``Q_i`` is between all positions and outputs: shape ``(n, L, C, L, C)``.
        """
        xp = namespace(phi)
        n_outputs = self.layer.n_outputs
        if phi.ndim == 2:
            return self.leverages(phi[:, None, :])[:, 0, :, 0, :]
        n, n_positions = phi.shape[:2]
        columns = []
        for column in range(n_positions * n_outputs):
            unit = xp.astype(xp.arange(n_positions * n_outputs) == column, phi.dtype)
            unit = xp.broadcast_to(
                xp.reshape(unit, (1, n_positions, n_outputs)), (n, n_positions, n_outputs)
            )
            columns.append(self.self_products(phi, unit))
        matrix = xp.stack(columns, axis=3)
        return xp.reshape(matrix, (n, n_positions, n_outputs, n_positions, n_outputs))

    def _check_shape(self, right: Array) -> None:
        expected = (self.layer.n_features, self.layer.n_outputs)
        if getattr(right, "ndim", None) != 3 or tuple(right.shape[1:]) != expected:
            shape = tuple(getattr(right, "shape", ()))
            raise WhenceError(
                "right-hand sides",
                f"shape (m, {expected[0]}, {expected[1]}): a stack of matrices like the layer's weights",
                f"shape {shape}",
                "Add a leading axis to a single matrix: B[None].",
            )


class InverseHessianVectorProductFactory(ABC):
    """Builds a solver for a layer; pass one to an attribution method.

    Write your own by subclassing: ``build`` gets the layer at the weights of the expansion and the
    training samples as the layer sees them, and returns an :class:`InverseHessianVectorProduct`.
    """

    @abstractmethod
    def build(self, model: Any, dataset: Any) -> InverseHessianVectorProduct:
        """Build the solver.

        Parameters
        ----------
        model : LinearLayer or InfluenceModel
            The layer, or a wrapped model that gives it.
        dataset : Blocks or dataset
            Training samples as blocks ``(phi, target, weight)`` if ``model`` is a layer, else a batched
            dataset of the user's framework.
        """


def linear_system(model: Any, dataset: Any) -> tuple[LinearLayer, Blocks]:
    """Return layer and blocks, whether ``build`` was given them or a wrapped model and a dataset."""
    if isinstance(model, LinearLayer):
        return model, dataset
    return model.linear_system(dataset)
