"""Conjugate gradient for many right-hand sides at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import NotPositiveDefiniteError
from whence.arrays.base import Array, as_numpy, namespace
from whence.ihvp.base import (
    DEFAULT_DAMPING,
    SOLVERS,
    InverseHessianVectorProductFactory,
    linear_system,
    with_model,
)
from whence.ihvp.iterative import Descent, IterativeIHVP, Options, norms
from whence.ihvp.rows import CurvatureRows
from whence.ihvp.rows_cg import CGDRows, Operator, Preconditioner

__all__ = ["CGDIHVP", "CGDIHVPFactory"]


class CGDIHVP(IterativeIHVP):
    """Conjugate gradient on ``(H + lam) X = B``, preconditioned by the Kronecker form of ``H + lam``.

    All right-hand sides share the products with the Hessian. Each has step sizes of its own, and leaves
    when its relative residual has reached the tolerance.

    Parameters
    ----------
    layer, blocks, options
        See :class:`~whence.ihvp.iterative.IterativeIHVP`.

    Notes
    -----
    An iteration costs ``4 N d C`` operations a right-hand side, and ``4 d C (d + C)`` for the
    preconditioner. Nothing of size ``(d C)^2`` is formed: memory is about eight vectors of ``8 d C`` bytes
    for each right-hand side, in batches of at most 1 GiB, and one number for each sample and output.
    """

    iterations_argument = "n_cgd_iters"

    def _descend(self, right: Array, targets: Array, max_iterations: int) -> Descent:
        xp = namespace(right)
        alive = np.arange(right.shape[0])  # which right-hand sides are still going on
        value, residual = xp.zeros_like(right), right
        search = image = self._precondition(residual)
        size = _dots(residual, image)
        finished: list[tuple[np.ndarray, Array]] = []
        steps = 0
        while alive.size and steps < max_iterations:
            steps += 1
            product = self.operator(search)
            bend = _dots(search, product)
            usable = as_numpy((bend > 0) & (size > 0))
            if not usable.all() and right.dtype == xp.float64:
                self._refuse(search, bend)
            # Without curvature that float32 can see, a right-hand side stays as it is and leaves.
            step = size / xp.where(bend > 0, bend, xp.ones_like(bend))
            step = xp.where(xp.asarray(usable), step, xp.zeros_like(step))[:, None, None]
            value = value + step * search
            residual = residual - step * product
            done = as_numpy(norms(residual) <= targets) | ~usable
            if done.any():
                leaving = xp.asarray(np.flatnonzero(done))
                finished.append((alive[done], xp.take(value, leaving, axis=0)))
                stay = xp.asarray(np.flatnonzero(~done))
                alive = alive[~done]
                value, residual, search, size, targets = (
                    xp.take(a, stay, axis=0) for a in (value, residual, search, size, targets)
                )
                if not alive.size:
                    break
            image = self._precondition(residual)
            before, size = size, _dots(residual, image)
            search = image + (size / before)[:, None, None] * search
        reached = not alive.size
        finished.append((alive, value))
        order = np.argsort(np.concatenate([rows for rows, _ in finished]))
        together = xp.concat([part for _, part in finished], axis=0)
        return Descent(xp.take(together, xp.asarray(order), axis=0), steps, reached)

    def _precondition(self, residual: Array) -> Array:
        return residual if self.preconditioner is None else self.preconditioner.solve(residual)

    def _refuse(self, search: Array, bend: Array) -> None:
        """Raise because a direction does not bend upwards."""
        self.operator.refuse_if_indefinite()
        xp = namespace(bend)
        worst = float(xp.min(bend / norms(search) ** 2))
        raise NotPositiveDefiniteError(worst, self.damping, "Raise the damping.")


class RowsDescent(CGDIHVP):
    """The same iteration on vectors of all weights of several layers, ``(m, D, 1)``.

    Parameters
    ----------
    operator : Operator
    preconditioner : Preconditioner or None
    options : Options
    """

    def __init__(self, operator: Operator, preconditioner: Preconditioner | None, options: Options) -> None:
        self.layer: Any = operator.system
        self.damping = float(options.damping)
        self.curvature = "gauss_newton"
        self.options = options
        self.operator: Any = operator
        self.preconditioner: Any = preconditioner


@SOLVERS.register("cg")
class CGDIHVPFactory(InverseHessianVectorProductFactory):
    """Builds :class:`CGDIHVP`: exact answers for layers whose Hessian does not fit into memory.

    Parameters
    ----------
    n_cgd_iters : int, default=100
        The most iterations that a right-hand side may take.
    damping : float, default=1e-3
        Added to the Hessian's diagonal, next to the layer's own L2.
    tolerance : float, default=1e-6
        The relative residual ``|B - (H + lam) X| / |B|`` at which a right-hand side is solved.
    preconditioner : {"kronecker", None}, default="kronecker"
        Whether to precondition with the EK-FAC form of the Hessian; ``None`` is the plain method.
    self_influence : {"solve", "kronecker"}, default="solve"
        How self-influence and leave-one-out are computed: by a solve for each training sample, exact
        to the tolerance, or in the Kronecker form, which is approximate and needs none.
    curvature : {"hessian", "gauss_newton"}, default="hessian"
        See :class:`~whence.InverseHessianVectorProduct`.
    on_failure : {"raise", "warn"}, default="raise"
        What to do if the tolerance is missed.

    Raises
    ------
    WhenceError
        If an argument is out of its range.

    Examples
    --------
    One feature ``x = 2``, squared error: ``H = 2 x^2 = 8``, so that with damping 2 the solution of
    ``(H + 2) X = 5`` is 0.5, after one iteration.

    >>> import numpy as np
    >>> from whence.layers.linear_layer import Block, LinearLayer
    >>> from whence.layers.losses import SquaredError
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> layer = LinearLayer(np.asarray([[3.0]]), SquaredError())
    >>> ihvp = CGDIHVPFactory(damping=2).build(layer, One())
    >>> solution = ihvp.solve(np.asarray([[[5.0]]]))
    >>> solution.value, solution.converged, solution.iterations
    (array([[[0.5]]]), True, 1)
    """

    def __init__(
        self,
        n_cgd_iters: int = 100,
        damping: float = DEFAULT_DAMPING,
        tolerance: float = 1e-6,
        *,
        preconditioner: str | None = "kronecker",
        self_influence: str = "solve",
        curvature: str = "hessian",
        on_failure: str = "raise",
    ) -> None:
        options = Options(
            damping, tolerance, n_cgd_iters, preconditioner, self_influence, curvature, on_failure
        )
        self.options: Options = options.checked("n_cgd_iters")

    @property
    def n_cgd_iters(self) -> int:
        """The most iterations that a solve may take."""
        return self.options.max_iterations

    def build(self, model: Any, dataset: Any) -> Any:
        """Prepare the products and the preconditioner; see the base class."""
        if isinstance(model, CurvatureRows):
            return CGDRows(model, self.options, RowsDescent)
        layer, blocks = linear_system(model, dataset)
        return with_model(CGDIHVP(layer, blocks, self.options), model)


def _dots(left: Array, right: Array) -> Array:
    """Return the inner product of each pair of matrices, shape ``(m,)``."""
    xp = namespace(left)
    flat = (left.shape[0], -1)
    return xp.vecdot(xp.reshape(left, flat), xp.reshape(right, flat), axis=-1)
