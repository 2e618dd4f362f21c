"""LiSSA: the inverse as a Neumann series, whole or stochastic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from whence.arrays.base import Array, as_numpy, check_number, check_seed, namespace
from whence.ihvp.base import (
    DEFAULT_DAMPING,
    SOLVERS,
    InverseHessianVectorProductFactory,
    linear_system,
    with_model,
)
from whence.ihvp.iterative import Descent, IterativeIHVP, Options, norms
from whence.layers.linear_layer import Block, Blocks, LinearLayer, by_rows

__all__ = ["LissaIHVP", "LissaIHVPFactory"]

#: Steps of the power iteration, and how far above its result the scale is put.
POWER_STEPS = 20
SAFETY = 1.1

#: The most batches that the scale of a stochastic series is taken from.
TRIED_BATCHES = 8


class LissaIHVP(IterativeIHVP):
    """The Neumann series ``X = sum_k (I - M^{-1} (H + lam) / s)^k M^{-1} B / s``.

    ``M`` is the Kronecker form of ``H + lam``, or the identity, and ``s`` the largest eigenvalue of
    ``M^{-1} (H + lam)``, found by power iteration, so that every term is smaller than the one before.
    With batches, each term uses the Hessian of some training samples drawn at random; after an epoch the
    residual of the whole system, in float64, becomes the next right-hand side. The result is thus
    as good as the tolerance says and not, as in the plain method, as the last batches happened to be.

    Parameters
    ----------
    layer, blocks, options
        See :class:`~whence.ihvp.iterative.IterativeIHVP`.
    batch_size : int or None
        How many training samples a term uses; ``None``: all.
    seed : int
        Of the batches.

    Attributes
    ----------
    scale : float
        ``s``.
    """

    iterations_argument = "n_opt_iters"

    def __init__(
        self, layer: LinearLayer, blocks: Blocks, options: Options, batch_size: int | None, seed: int
    ) -> None:
        super().__init__(layer, blocks, options)
        self._batches: _Batches | None = None
        if batch_size is not None and batch_size < blocks.n_samples:
            self._batches = _Batches(blocks, batch_size, seed)
        self.scale: float = SAFETY * self._largest_eigenvalue()

    def about(self) -> dict[str, Any]:
        return super().about() | {"batch_size": self._batches.size if self._batches else None}

    def _slow_down(self) -> bool:
        self.scale *= 2
        return self.scale < 1e30

    def _descend(self, right: Array, targets: Array, max_iterations: int) -> Descent:
        if self._batches is not None:
            return self._descend_by_batches(right, max_iterations)
        xp = namespace(right)
        alive = np.arange(right.shape[0])
        value, residual = xp.zeros_like(right), right
        first = norms(right)
        finished: list[tuple[np.ndarray, Array]] = []
        steps = 0
        while alive.size and steps < max_iterations:
            steps += 1
            term = self._term(residual)
            value = value + term
            residual = residual - self.operator(term)
            sizes = norms(residual)
            done = as_numpy((sizes <= targets) | (sizes > 10 * first))  # solved, or diverging
            if done.any():
                leaving = xp.asarray(np.flatnonzero(done))
                finished.append((alive[done], xp.take(value, leaving, axis=0)))
                stay = xp.asarray(np.flatnonzero(~done))
                alive = alive[~done]
                value, residual, targets, first = (
                    xp.take(a, stay, axis=0) for a in (value, residual, targets, first)
                )
        reached = not alive.size
        finished.append((alive, value))
        order = np.argsort(np.concatenate([rows for rows, _ in finished]))
        together = xp.concat([part for _, part in finished], axis=0)
        return Descent(xp.take(together, xp.asarray(order), axis=0), steps, reached)

    def _descend_by_batches(self, right: Array, max_iterations: int) -> Descent:
        assert self._batches is not None
        value = self._term(right)
        steps = 1
        for sample in self._batches.epoch():
            if steps >= max_iterations:
                break
            product = self.layer.hessian_product(sample, value, self.damping)
            value = value + self._term(right - product)
            steps += 1
        return Descent(value, steps, False)

    def _term(self, residual: Array) -> Array:
        solved = residual if self.preconditioner is None else self.preconditioner.solve(residual)
        return solved / self.scale

    def _largest_eigenvalue(self) -> float:
        """Return the largest eigenvalue of ``M^{-1} (H + lam)``, over some batches if there are any."""
        if self._batches is None:
            return self._power_iteration(self.blocks)
        tried = [sample for sample, _ in zip(self._batches.epoch(), range(TRIED_BATCHES), strict=False)]
        return max(self._power_iteration(sample) for sample in [self.blocks, *tried])

    def _power_iteration(self, blocks: Blocks) -> float:
        like = next(iter(self.blocks)).phi
        xp = namespace(like)
        shape = (1, self.layer.n_features, self.layer.n_outputs)
        vector = xp.asarray(np.random.default_rng(0).standard_normal(shape))
        largest = 1.0
        for _ in range(POWER_STEPS):
            product = self.layer.hessian_product(blocks, vector, self.damping)
            image = product if self.preconditioner is None else self.preconditioner.solve(product)
            # The Rayleigh quotient of M^{-1} H in the inner product of H.
            largest = abs(float(xp.sum(product * image)) / float(xp.sum(vector * product)))
            vector = image / norms(image)[:, None, None]
        return largest


@SOLVERS.register("lissa")
class LissaIHVPFactory(InverseHessianVectorProductFactory):
    """Builds :class:`LissaIHVP`, the series that influence functions are often computed with.

    Parameters
    ----------
    n_opt_iters : int, default=1000
        The most terms of the series.
    damping : float, default=1e-3
        Added to the Hessian's diagonal, next to the layer's own L2.
    tolerance : float, default=1e-3
        The relative residual ``|B - (H + lam) X| / |B|`` at which a right-hand side is solved.
    batch_size : int or None, default=None
        How many training samples each term uses, drawn at random; ``None``: all of them.
    preconditioner : {"kronecker", None}, default="kronecker"
        Whether to precondition with the EK-FAC form of the Hessian; ``None`` is the plain series, which
        takes about ``s / damping`` terms for each digit, ``s`` the largest eigenvalue.
    self_influence, curvature, on_failure
        See :class:`~whence.CGDIHVPFactory`.
    seed : int, default=0
        Of the batches.

    Raises
    ------
    WhenceError
        If an argument is out of its range.

    Examples
    --------
    One feature ``x = 2``, squared error: ``H = 2 x^2 = 8``, so that with damping 2 the solution of
    ``(H + 2) X = 5`` is 0.5.

    >>> import numpy as np
    >>> from whence.layers.linear_layer import Block, LinearLayer
    >>> from whence.layers.losses import SquaredError
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> layer = LinearLayer(np.asarray([[3.0]]), SquaredError())
    >>> ihvp = LissaIHVPFactory(damping=2).build(layer, One())
    >>> solution = ihvp.solve(np.asarray([[[5.0]]]))
    >>> abs(solution.value.item() - 0.5) < 1e-3, solution.converged, round(ihvp.scale, 3)
    (True, True, 1.1)

    References
    ----------
    Agarwal, Bullins, Hazan. "Second-Order Stochastic Optimization for Machine Learning in Linear Time."
    Journal of Machine Learning Research 18, 2017.
    """

    def __init__(
        self,
        n_opt_iters: int = 1000,
        damping: float = DEFAULT_DAMPING,
        tolerance: float = 1e-3,
        *,
        batch_size: int | None = None,
        preconditioner: str | None = "kronecker",
        self_influence: str = "solve",
        curvature: str = "hessian",
        on_failure: str = "raise",
        seed: int = 0,
    ) -> None:
        options = Options(
            damping, tolerance, n_opt_iters, preconditioner, self_influence, curvature, on_failure
        )
        self.options: Options = options.checked("n_opt_iters")
        if batch_size is not None:
            check_number(batch_size, "batch_size", minimum=1, integer=True)
        check_seed(seed)
        self.batch_size = batch_size
        self.seed = seed

    @property
    def n_opt_iters(self) -> int:
        """The most iterations that a solve may take."""
        return self.options.max_iterations

    def build(self, model: Any, dataset: Any) -> LissaIHVP:
        """Prepare the products and find the scale; see the base class."""
        layer, blocks = linear_system(model, dataset)
        return with_model(LissaIHVP(layer, blocks, self.options, self.batch_size, self.seed), model)


class _Batches:
    """Training samples in random batches, each of which stands for the whole training set."""

    def __init__(self, blocks: Blocks, size: int, seed: int) -> None:
        self.size = size
        self._n_samples = blocks.n_samples
        self._parts = list(by_rows(blocks))
        self._rng = np.random.default_rng(seed)

    def epoch(self) -> Iterator[Blocks]:
        """Yield batches that together hold every row once, in a new order."""
        n_rows = sum(part.phi.shape[0] for part in self._parts)
        batch_rows = max(1, round(self.size * n_rows / self._n_samples))
        order = self._rng.permutation(n_rows)
        for start in range(0, n_rows, batch_rows):
            yield self._batch(np.sort(order[start : start + batch_rows]), n_rows)

    def _batch(self, chosen: np.ndarray, n_rows: int) -> Blocks:
        taken, start = [], 0
        for part in self._parts:
            stop = start + part.phi.shape[0]
            at = chosen[(chosen >= start) & (chosen < stop)] - start
            start = stop
            if at.size:
                xp = namespace(part.phi)
                rows = xp.asarray(at)
                taken.append(Block(*(None if a is None else xp.take(a, rows, axis=0) for a in part)))
        # Their sum over ``n_samples`` is the mean loss of the training set, as they estimate it.
        return _Sample(taken, self._n_samples * len(chosen) / n_rows)


class _Sample(list[Block]):
    """Some blocks, and the number of samples that they count as."""

    def __init__(self, blocks: list[Block], n_samples: float) -> None:
        super().__init__(blocks)
        self.n_samples: Any = n_samples  # not a whole number, in general
