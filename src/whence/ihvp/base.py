"""What every solver of ``(H + lam) X = B`` offers, and how one is asked for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from whence._errors import NotConvergedError, WhenceError
from whence._registry import Registry
from whence.arrays.base import WORKSPACE_BYTES, Array, astype, check_finite, namespace, row_slices
from whence.layers.linear_layer import Block, Blocks, LinearLayer
from whence.progress import track

__all__ = [
    "DEFAULT_DAMPING",
    "SOLVERS",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "Solution",
    "check_curvature",
    "linear_system",
    "refuse_if_inexact",
    "with_model",
]

Solver = TypeVar("Solver", bound="InverseHessianVectorProduct")

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
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        ``"gauss_newton"`` takes the Gauss-Newton matrix for ``H``: the negative eigenvalues of every
        ``K_i`` count as zero, so that ``H`` is positive semi-definite. For a loss that is convex in the
        pre-activations, such as those in closed form, it is the Hessian itself.

    Attributes
    ----------
    influence_model : InfluenceModel or None
        The wrapped model that samples are read with in :meth:`compute_ihvp`.
    progress : bool or None
        Whether long work shows a bar; ``None``: on a terminal.
    """

    influence_model: Any = None
    progress: bool | None = None
    #: Whether it solves to rounding, not to a tolerance.
    is_direct: bool = False

    def __init__(
        self, layer: LinearLayer, blocks: Blocks, damping: float, curvature: str = "hessian"
    ) -> None:
        self.layer: LinearLayer = (
            replace(layer, gauss_newton=True) if curvature == "gauss_newton" else layer
        )
        self.blocks = blocks
        self.damping: float = float(damping)
        self.curvature = curvature

    @abstractmethod
    def solve(self, right: Array) -> Solution:
        """Solve for a stack of right-hand sides.

        Parameters
        ----------
        right : array of shape (m, d, C)

        Returns
        -------
        Solution

        Raises
        ------
        WhenceError
            If the right-hand sides do not have that shape, or the solver did not converge.
        """

    def product(self, vectors: Array) -> Array:
        """Return ``(H + lam) V`` from the training samples.

        Parameters
        ----------
        vectors : array of shape (m, d, C)

        Returns
        -------
        array of shape (m, d, C)
        """
        self._check_shape(vectors)
        return self.layer.hessian_product(self.blocks, vectors, self.damping)

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that its factory restores it from, so that it need not be built again."""
        return {}

    def for_samples(self) -> InverseHessianVectorProduct | None:
        """Return a solver for :meth:`self_products` and :meth:`leverages` on other machines.

        It holds no training samples. ``None``, unless a solver says otherwise: they need them, and are
        computed here, with products on the other machines.
        """
        return None

    def _without(self, *names: str) -> Any:
        """Return a copy without the training samples, the model, and these attributes."""
        other = copy.copy(self)
        for name in ("blocks", "influence_model", *names):
            setattr(other, name, None)
        return other

    def about(self) -> dict[str, Any]:
        """Return what results say of the solver: its name, the matrix that it inverts, its settings."""
        return {"solver": type(self).__name__, "damping": self.damping, "curvature": self.curvature}

    def compute_ihvp(self, group: Any, use_gradient: bool = True) -> Any:
        """Return ``(H + lam)^{-1} g_i`` of every sample of a dataset, or of every vector of one.

        Parameters
        ----------
        group : dataset
            Batches of samples as the model takes them; with ``use_gradient=False``, batches of vectors
            ``(b, d, C)``, or one array ``(m, d, C)``. A solver that was built from a bare
            :class:`~whence.LinearLayer` takes :class:`~whence.layers.linear_layer.Blocks` for samples.
        use_gradient : bool, default=True
            Whether the vectors are the gradients of samples, or are given.

        Returns
        -------
        dataset
            Of the user's kind, batch by batch: arrays ``(b, d, C)``. One array for one array.
        """
        return self._over(group, lambda vectors: self.solve(vectors).value, use_gradient)

    def compute_hvp(self, group: Any, use_gradient: bool = True) -> Any:
        """Return ``(H + lam) g_i`` of every sample of a dataset, or of every vector of one.

        Takes and returns what :meth:`compute_ihvp` does.
        """
        return self._over(group, self.product, use_gradient)

    def _over(self, group: Any, function: Callable[[Array], Array], use_gradient: bool) -> Any:
        def of_block(block: Block) -> Array:
            gradients = self.layer.gradients(block)
            return function(astype(gradients, namespace(gradients).float64))

        if not use_gradient and getattr(group, "ndim", None) == 3:
            return function(group)
        if self.influence_model is not None:
            if use_gradient:
                return self.influence_model.map_samples(group, of_block)
            return self.influence_model.map_arrays(group, function)
        return [of_block(part) if use_gradient else function(part) for part in group]

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
        at_once = self._n_at_once()
        n_batches = -(-phi.shape[0] // at_once)
        parts = []
        show = self.progress if n_batches > 1 else False
        for rows in track(row_slices(phi.shape[0], at_once), "solves for samples", n_batches, show):
            gradients = xp.matmul(xp.matrix_transpose(phi[rows, ...]), r[rows, ...])
            solved = self.solve(gradients).value
            parts.append(xp.matmul(astype(phi[rows, ...], solved.dtype), solved))
        moved = xp.concat(parts, axis=0)
        return moved if outputs is None else xp.take_along_axis(moved, outputs[..., None], axis=2)[..., 0]

    def leverages(self, phi: Array) -> Array:
        """Return ``Q_i``, ``(Q_i)_ab = <phi_i (x) e_a, H^{-1} (phi_i (x) e_b)>``, shape ``(n, C, C)``.

        ``self_products(phi, r)`` is ``Q_i r_i``; ``Q_i K_i / N`` is the leverage of sample ``i``. Along
        a sequence ``Q_i`` is between all positions and outputs: shape ``(n, L, C, L, C)``.

        Parameters
        ----------
        phi : array of shape (n, d) or (n, L, d)
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

    def _n_at_once(self) -> int:
        """Return how many right-hand sides one solve takes where they are made here."""
        return max(1, WORKSPACE_BYTES // (64 * self.layer.n_features * self.layer.n_outputs))

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
        check_finite(right, "right-hand sides", "every entry", "Look at the samples that they come from.")


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

    def restore(
        self, model: Any, dataset: Any, state: Mapping[str, np.ndarray]
    ) -> InverseHessianVectorProduct:
        """Build the solver from the :meth:`~InverseHessianVectorProduct.state` of one like it.

        This one leaves the state aside and builds anew; a solver that is costly to build overrides it.

        Parameters
        ----------
        model, dataset
            As for :meth:`build`.
        state : mapping of str to array
        """
        return self.build(model, dataset)


#: Factories by the names that the command line has for them. Each takes ``damping`` and has defaults for
#: all its arguments.
SOLVERS: Registry[Callable[..., InverseHessianVectorProductFactory]] = Registry("solver", "whence.ihvp")


#: The relative residual from which on a direct solver's answer is not one: float64 is not enough then.
EXACT_RESIDUAL = 1e-3


def refuse_if_inexact(relative_residual: float, damping: float) -> None:
    """Raise if rounding has eaten the answer of a direct solver, by the residual that it left."""
    if relative_residual <= EXACT_RESIDUAL:  # NaN is not
        return
    raise NotConvergedError(
        f"damping (={damping:g})",
        f"a system that float64 solves to a relative residual of {EXACT_RESIDUAL:g}",
        relative_residual,
        "Raise the damping, or scale the layer's inputs to about 1: their squares stand beside it.",
    )


def check_curvature(curvature: Any) -> None:
    """Raise unless ``curvature`` names one of the matrices that can be inverted."""
    if curvature not in ("hessian", "gauss_newton"):
        raise WhenceError("curvature", "'hessian' or 'gauss_newton'", repr(curvature), "Choose one.")


def linear_system(model: Any, dataset: Any) -> tuple[LinearLayer, Blocks]:
    """Return layer and blocks, whether ``build`` was given them or a wrapped model and a dataset."""
    if isinstance(model, LinearLayer):
        return model, dataset
    return model.linear_system(dataset)


def with_model(ihvp: Solver, model: Any) -> Solver:
    """Return a solver that reads samples with the model it was built from, if that is a wrapped one."""
    if not isinstance(model, LinearLayer):
        ihvp.influence_model = model
    return ihvp
