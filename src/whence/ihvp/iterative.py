"""What the iterative solvers share: precision, tolerance, preconditioner, and what not converging means."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from whence._errors import NotConvergedError, WhenceError, warn
from whence.arrays.base import Array, as_numpy, astype, check_number, namespace, row_slices
from whence.ihvp.base import InverseHessianVectorProduct, Solution, check_curvature
from whence.ihvp.kronecker import KroneckerFactors, KroneckerIHVP
from whence.ihvp.operator import DampedHessian
from whence.layers.linear_layer import Blocks, LinearLayer
from whence.progress import track

__all__ = ["Descent", "IterativeIHVP", "Options", "norms"]

#: Bytes that the vectors of one batch of right-hand sides may take.
VECTOR_BYTES = 2**30

#: About how many vectors a solver holds for each right-hand side, counted in float64.
VECTORS_HELD = 8


class Options(NamedTuple):
    """The settings that every iterative solver has, checked.

    Attributes
    ----------
    damping, tolerance : float
    max_iterations : int
    preconditioner : {"kronecker", None}
    self_influence : {"solve", "kronecker"}
    curvature : {"hessian", "gauss_newton"}
    on_failure : {"raise", "warn"}
    """

    damping: float
    tolerance: float
    max_iterations: int
    preconditioner: str | None
    self_influence: str
    curvature: str
    on_failure: str

    def checked(self, iterations: str) -> Options:
        """Return itself if every setting is one of its values; ``iterations`` names the argument."""
        check_number(self.damping, "damping")
        check_number(self.tolerance, "tolerance", strictly=True)
        if self.tolerance >= 1:  # zeros would be a solution
            fix = "Pass a value in that range."
            raise WhenceError("tolerance", "a number below 1", repr(self.tolerance), fix)
        check_number(self.max_iterations, iterations, minimum=1, integer=True)
        check_curvature(self.curvature)
        choices: dict[str, tuple[Any, ...]] = {
            "preconditioner": ("kronecker", None),
            "self_influence": ("solve", "kronecker"),
            "on_failure": ("raise", "warn"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise WhenceError(name, " or ".join(map(repr, allowed)), repr(value), "Choose one.")
        return self


class Descent(NamedTuple):
    """What one run of an iteration gave.

    Attributes
    ----------
    value : array of shape (m, d, C)
        An approximate solution.
    iterations : int
    reached : bool
        Whether every right-hand side reached its target, by the iteration's own account.
    """

    value: Array
    iterations: int
    reached: bool


class IterativeIHVP(InverseHessianVectorProduct):
    """Solves to a relative residual, measured with the training samples in float64.

    An iteration runs in the features' precision. Its result is checked against the system in float64
    and refined, the residual becoming the next right-hand side; where float32 gets no further, the
    iteration goes on in float64.

    Parameters
    ----------
    layer, blocks
        See :class:`~whence.InverseHessianVectorProduct`.
    options : Options
    """

    #: The factory's argument that bounds the iterations, for messages.
    iterations_argument: str

    def __init__(self, layer: LinearLayer, blocks: Blocks, options: Options) -> None:
        super().__init__(layer, blocks, options.damping, options.curvature)
        self.options = options
        self.operator: DampedHessian = DampedHessian(self.layer, blocks, self.damping)
        self.operator.refuse_if_not_definite()
        self.preconditioner: KroneckerFactors | None = None
        if options.preconditioner is not None:
            factors = KroneckerFactors(self.layer, blocks, self.damping)
            self.preconditioner = factors.without_negative()
        self._kronecker: KroneckerIHVP | None = None

    @abstractmethod
    def _descend(self, right: Array, targets: Array, max_iterations: int) -> Descent:
        """Solve for ``right (m, d, C)`` of norm one to the relative residuals ``targets (m,)``."""

    def _slow_down(self) -> bool:
        """Make the iteration more careful after it diverged; return whether that was possible."""
        return False

    def about(self) -> dict[str, Any]:
        facts = {
            "tolerance": self.options.tolerance,
            "preconditioner": self.options.preconditioner,
            "self_influence": self.options.self_influence,
        }
        return super().about() | facts

    def solve(self, right: Array) -> Solution:
        """Solve for a stack of right-hand sides ``(m, d, C)``; see the base class.

        Raises
        ------
        NotConvergedError
            If a right-hand side misses the tolerance, unless ``on_failure="warn"``.
        NotPositiveDefiniteError
            If the system turns out to be indefinite.
        """
        self._check_shape(right)
        xp = namespace(right)
        wide = astype(right, xp.float64)
        at_once = self._n_at_once()
        n_batches = -(-wide.shape[0] // at_once)
        values, iterations, residual = [wide[:0, ...]], 0, 0.0
        show = self.progress if n_batches > 1 else False
        for some in track(row_slices(wide.shape[0], at_once), "solving", n_batches, show):
            value, taken, reached = self._solve_batch(wide[some, ...])
            values.append(value)
            iterations, residual = max(iterations, taken), max(residual, reached)
        converged = residual <= self.options.tolerance
        if not converged:
            self._report(residual, iterations)
        return Solution(xp.concat(values, axis=0), converged, iterations, residual)

    def self_products(self, phi: Array, r: Array, outputs: Array | None = None) -> Array:
        """Return ``(H^{-1} g_i)^T phi_i``: a solve for each sample, in batches; see the base class.

        With ``self_influence="kronecker"`` the Kronecker form is used instead, which is approximate.
        """
        if self.options.self_influence == "kronecker":
            return self._kronecker_form().self_products(phi, r, outputs)
        xp = namespace(phi)
        return super().self_products(astype(phi, xp.float64), astype(r, xp.float64), outputs)

    def for_samples(self) -> KroneckerIHVP | None:
        """Return the Kronecker form, if self-influence takes it; see the base class."""
        return self._kronecker_form().for_samples() if self.options.self_influence == "kronecker" else None

    def leverages(self, phi: Array) -> Array:
        """Return ``Q_i``: ``C`` solves for each sample, or the Kronecker form; see the base class."""
        if self.options.self_influence == "kronecker":
            return self._kronecker_form().leverages(phi)
        return super().leverages(astype(phi, namespace(phi).float64))

    def _kronecker_form(self) -> KroneckerIHVP:
        if self._kronecker is None:
            self._kronecker = KroneckerIHVP(self.layer, self.blocks, self.damping, curvature=self.curvature)
        return self._kronecker

    def _n_at_once(self) -> int:
        size = self.layer.n_features * self.layer.n_outputs
        return max(1, VECTOR_BYTES // (8 * VECTORS_HELD * size))

    def _solve_batch(self, right: Array) -> tuple[Array, int, float]:
        """Return the solution, the iterations taken, and the largest relative residual."""
        xp = namespace(right)
        sizes = as_numpy(norms(right))
        value = xp.zeros_like(right)
        residual, relative = right, np.where(sizes > 0, 1.0, 0.0)
        precision, taken = self.operator.dtype, 0
        tolerance, limit = self.options.tolerance, self.options.max_iterations
        while (relative > tolerance).any() and taken < limit:
            todo = xp.asarray(np.flatnonzero(relative > tolerance))
            before = as_numpy(relative)[as_numpy(todo)]
            part = xp.take(residual, todo, axis=0)
            scale = norms(part)[:, None, None]
            # A little below what is left to do, so that rounding does not make another round necessary.
            targets = np.maximum(0.5 * tolerance / before, 1e-13)
            run = self._descend(
                astype(part / scale, precision), xp.asarray(targets, dtype=precision), limit - taken
            )
            taken += run.iterations
            proposed = xp.take(value, todo, axis=0) + astype(run.value, xp.float64) * scale
            wanted = xp.take(right, todo, axis=0)
            left = wanted - self.operator(proposed)
            after = as_numpy(norms(left)) / sizes[as_numpy(todo)]
            better = after < before
            gains = np.max(np.where(better, after, before) / before)
            value = _put(value, todo, better, proposed)
            residual = _put(residual, todo, better, left)
            relative[as_numpy(todo)[better]] = after[better]
            if (after > tolerance).any() and (not better.all() or (run.reached and gains > 0.5)):
                if not better.all() and self._slow_down():
                    continue
                if precision == xp.float64:
                    break
                precision = xp.float64
        return value, taken, float(relative.max(initial=0.0))

    def _report(self, residual: float, iterations: int) -> None:
        """Raise, or warn, that the tolerance was missed."""
        self.operator.refuse_if_indefinite()
        options = self.options
        helps = [f"Raise {self.iterations_argument} or the damping (={self.damping:g})"]
        if options.preconditioner is None:
            helps.append("take preconditioner='kronecker'")
        helps.append("accept a larger tolerance, or pass on_failure='warn' to get the values anyway")
        error = NotConvergedError(
            f"{self.iterations_argument} (={options.max_iterations})",
            f"a relative residual of at most {options.tolerance:g} after {iterations} iterations",
            residual,
            "; ".join(helps) + ".",
        )
        if options.on_failure == "raise":
            raise error
        warn(str(error))


def norms(stack: Array) -> Array:
    """Return the norm of each matrix of a stack, shape ``(m,)``."""
    xp = namespace(stack)
    return xp.linalg.vector_norm(xp.reshape(stack, (stack.shape[0], -1)), axis=1)


def _put(stack: Array, rows: Array, chosen: np.ndarray, part: Array) -> Array:
    """Return ``stack`` with the rows ``rows[chosen]`` taken from ``part[chosen]``."""
    xp = namespace(stack)
    source = np.arange(stack.shape[0])
    source[as_numpy(rows)[chosen]] = stack.shape[0] + np.flatnonzero(chosen)
    if chosen.all() and chosen.size == stack.shape[0]:
        return part
    return xp.take(xp.concat([stack, part], axis=0), xp.asarray(source), axis=0)
