"""The layer trained again on its stored features, to a stated gradient norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse.linalg

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, check_number
from whence.engine.base import Converted, Part, engine_of, total
from whence.engine.blocks import Block, Blocks
from whence.layers.linear_layer import LinearLayer

__all__ = ["DoubleBlocks", "Refit", "refit"]

#: Bytes up to which float64 copies of the features are kept between passes.
KEPT_BYTES = 2**30
#: Newton steps after L-BFGS, whose line search ends where rounding hides the decrease of the loss.
NEWTON_STEPS = 20
#: Iterations between restarts of L-BFGS: a stalled line search starts afresh from where it is.
RESTARTS = 5


@dataclass(frozen=True)
class Refit:
    """Weights at a minimum, and how near to it they are.

    Attributes
    ----------
    theta : array of shape (d, C)
    gradient_norm : float
        The largest entry of the objective's gradient there.
    evaluations : int
        Passes over the training set.
    """

    theta: np.ndarray
    gradient_norm: float
    evaluations: int


class DoubleBlocks:
    """Blocks in float64 on the host, positions as rows of their own; ``n_samples`` stays ``N``."""

    def __init__(self, blocks: Blocks) -> None:
        self.n_samples = blocks.n_samples
        self._blocks = blocks
        self._kept: list[Block] | None = None

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks; copies are kept if they are small."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = [], 0
        for block in self._blocks:
            wide = _double_rows(block)
            size += wide.phi.nbytes
            if size <= KEPT_BYTES:
                kept.append(wide)
            yield wide
        if size <= KEPT_BYTES:
            self._kept = kept


def _double_rows(block: Block) -> Block:
    phi, target, weight = block.rows()
    return Block(
        np.asarray(as_numpy(phi), dtype=np.float64),
        as_numpy(target),
        None if weight is None else np.asarray(as_numpy(weight), dtype=np.float64),
    )


def refit(
    layer: LinearLayer,
    blocks: Blocks,
    damping: float = 0.0,
    *,
    gradient_norm: float = 1e-10,
    max_iterations: int = 20_000,
) -> Refit:
    """Minimise ``(1/N) sum_i ell_i(theta) + (1/2) sum_a lam_a |theta_a|^2`` from the layer's weights.

    L-BFGS, then Newton steps by conjugate gradients where its line search ends above the norm.

    Parameters
    ----------
    layer : LinearLayer
        Where to start; its loss and its own regulariser.
    blocks : Blocks
        The training samples. ``N`` is their ``n_samples``.
    damping : float, default=0.0
        Second derivative of a regulariser on every row of ``theta``, next to the layer's own: ``2 * l2``
        for ``l2 * |theta|^2``.
    gradient_norm : float, default=1e-10
        The largest entry that the gradient may have at the end.
    max_iterations : int, default=20000

    Returns
    -------
    Refit

    Raises
    ------
    WhenceError
        If the gradient norm was not reached, as where the loss has no minimum.

    Examples
    --------
    ``(2 theta - 1)^2 + theta^2`` is smallest at ``theta = 0.4``:

    >>> from whence.layers.losses import SquaredError
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> found = refit(LinearLayer(np.zeros((1, 1)), SquaredError()), One(), damping=2.0)
    >>> round(float(found.theta[0, 0]), 9)
    0.4
    """
    check_number(damping, "damping")
    check_number(gradient_norm, "gradient_norm", strictly=True)
    wide: Blocks = blocks
    if engine_of(blocks).is_remote:
        wide = Converted(blocks, _double_rows)
    elif not isinstance(blocks, DoubleBlocks):
        wide = DoubleBlocks(blocks)
    objective = _Objective(layer, wide, damping)
    vector = np.array(as_numpy(layer.theta), dtype=np.float64).ravel()
    for _ in range(RESTARTS):
        found: Any = scipy.optimize.minimize(
            objective,
            vector,
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": max_iterations,
                "maxfun": 2 * max_iterations,
                "ftol": 0.0,
                "gtol": gradient_norm,
                "maxcor": 30,
            },
        )
        stalled = np.array_equal(found.x, vector)
        vector = found.x
        if stalled or np.abs(found.jac).max(initial=0.0) <= max(gradient_norm, 1e-6):
            break
    _, slope = objective(vector)
    for _ in range(NEWTON_STEPS):
        if np.abs(slope).max(initial=0.0) <= gradient_norm:
            break
        moved = vector - objective.newton_step(vector, slope)
        _, next_slope = objective(moved)
        if not np.abs(next_slope).max(initial=0.0) < np.abs(slope).max(initial=0.0):
            break
        vector, slope = moved, next_slope
    reached = float(np.abs(slope).max(initial=0.0))
    if not reached <= gradient_norm:
        raise WhenceError(
            f"gradient_norm (={gradient_norm:g})",
            "a refit of the layer that reaches it",
            f"a largest entry of {reached:.3g} after {objective.evaluations} passes",
            "Raise the l2 or the damping, or allow a larger gradient norm.",
        )
    return Refit(vector.reshape(objective.shape), reached, objective.evaluations)


class _Objective:
    """The regularised mean loss and its gradient, as SciPy's optimisers want them."""

    def __init__(self, layer: LinearLayer, blocks: Blocks, damping: float) -> None:
        self.layer = layer
        self.blocks = blocks
        self.damping = damping
        self.shape = tuple(layer.theta.shape)
        self.lam = np.asarray(as_numpy(layer.regulariser(damping)), dtype=np.float64)[:, None]
        self.evaluations = 0

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        theta = vector.reshape(self.shape)
        loss = self.layer.loss

        def of_part(part: Part) -> tuple[float, np.ndarray]:
            paid, slope = 0.0, np.zeros(theta.shape)
            for phi, target, weight in part:
                u = phi @ theta
                values: Array = as_numpy(loss.value(u, target))
                r: Array = as_numpy(loss.residual(u, target))
                if weight is not None:
                    values, r = values * weight, r * weight[:, None]
                paid += float(values.sum())
                slope += phi.T @ r
            return paid, slope

        paid, slope = total(self.blocks, of_part)
        n_samples = self.blocks.n_samples
        value = paid / n_samples + 0.5 * float((self.lam * theta**2).sum())
        return value, (slope / n_samples + self.lam * theta).ravel()

    def newton_step(self, vector: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Return ``(H + lam)^{-1} slope`` to a relative residual of 1e-3: the next slope is as small."""
        layer = self.layer.at(vector.reshape(self.shape))

        def product(direction: np.ndarray) -> np.ndarray:
            stack = direction.reshape(1, *self.shape)
            self.evaluations += 1
            return np.asarray(layer.hessian_product(self.blocks, stack, self.damping)).ravel()

        operator = scipy.sparse.linalg.LinearOperator((vector.size, vector.size), product, dtype=np.float64)
        step, _ = scipy.sparse.linalg.cg(operator, slope, rtol=1e-3, maxiter=10 * vector.size)
        return step
