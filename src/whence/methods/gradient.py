"""Gradients of training samples against the gradient of what is asked: dot product and cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError, check_choice
from whence.arrays.base import Array, as_numpy, astype, like, namespace
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.base import Rule
from whence.methods.question import Question
from whence.search.scores import Queries

__all__ = ["Cosine", "DotProduct", "Gradients", "LossQuestion", "no_step_to_leave_out"]


@dataclass(frozen=True)
class LossQuestion(Question):
    """Asks how far the loss of samples falls: the inner product with minus their gradients.

    Attributes
    ----------
    r : array of shape (T, C) or (T, L, C)
        Residuals of the samples, the share of each position included.
    target : array of shape (T,) or (T, C), or (T, L, ...)
        Their labels, as the loss takes them.
    """

    r: np.ndarray | None = None
    target: np.ndarray | None = None

    def directions(self, n_outputs: int) -> np.ndarray:
        """Return ``Q = -g_t``, shape ``(T, d, C)``, in float64."""
        wide = np.asarray(as_numpy(self.phi), dtype=np.float64)
        r = np.asarray(self.r, dtype=np.float64)
        if wide.ndim == 2:
            return -wide[:, :, None] * r[:, None, :]
        return -np.matmul(np.swapaxes(wide, 1, 2), r)

    def under(self, theta: np.ndarray) -> np.ndarray:
        """Return ``<theta, -g_t>``, shape ``(T,)``, in float64."""
        u = np.asarray(as_numpy(self.phi), dtype=np.float64) @ theta
        return -np.sum(u * np.asarray(self.r), axis=tuple(range(1, u.ndim)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients(Rule):
    """What methods share that score by inner products ``<g_i, M Q_t>`` of gradients.

    ``Q_t`` is the gradient of what is asked: of minus the loss of sample ``t``, or of one of its
    pre-activations. Training on sample ``i`` moves ``theta`` against ``g_i``, so that ``-<g_i, M Q_t>``
    is positive where it raises what is asked: where it lowers the loss, or raises the pre-activation.
    """

    effect_on: str = "loss"

    @property
    def asks_about_loss(self) -> bool:
        return self.effect_on == "loss"

    def question(
        self, phi: Array, outputs: np.ndarray, weight: np.ndarray | None, target: Array | None
    ) -> Question:
        if not self.asks_about_loss:
            return super().question(phi, outputs, weight, target)
        if target is None:
            raise WhenceError(
                "samples",
                "labels, since effect_on='loss' explains the loss of the label",
                "none",
                "Give them, or ask about a pre-activation: effect_on='pre_activation'.",
            )
        # In float64, on the host: small residuals are differences of near numbers.
        wide = np.asarray(as_numpy(phi), dtype=np.float64)
        shares = None if weight is None else np.asarray(as_numpy(weight), dtype=np.float64)
        r = as_numpy(self.layer.residuals(Block(wide, as_numpy(target), shares)))
        return LossQuestion(phi, outputs, weight, r, as_numpy(target))

    def solve(self, matrices: np.ndarray) -> np.ndarray:
        """Return ``M`` applied to matrices ``(m, d, C)``: the identity, unless a method says otherwise."""
        return matrices

    def moved(self, block: Block, r: Array) -> Array:
        """Return ``(M g_i)^T phi_i`` of every sample, in the shape of ``r``."""
        xp = namespace(block.phi)
        if block.phi.ndim == 2:
            return r * xp.sum(block.phi**2, axis=1)[:, None]
        return xp.matmul(block.phi, xp.matmul(xp.matrix_transpose(block.phi), r))

    def scale(self, block: Block) -> Array | None:
        """Return what each sample's gradient is divided by, ``(n,)``; None for 1."""
        return None

    def residuals_left_out(self, block: Block) -> Array:
        """Return the residuals of training samples, as leaving them out takes them from the weights."""
        return self.layer.residuals(block)

    def coefficients(self, block: Block) -> Array:
        r = self.residuals_left_out(block)
        scale = self.scale(block)
        return r if scale is None else astype(_divided(r, scale), r.dtype)

    def queries(self, question: Question) -> Queries:
        solved = self.solve(question.directions(self.layer.n_outputs))
        return Queries(-solved / self.n_samples, np.zeros(len(solved)))

    def self_influence(self, block: Block, question: Question) -> Array:
        block = block.in_double()
        moved = as_numpy(self.moved(block, self.residuals_left_out(block)))
        if self.asks_about_loss:
            values = _inner(moved, as_numpy(self.layer.residuals(block)))
        else:
            values = np.abs(question.pick(moved)) / self.n_samples
        scale = self.scale(block)
        return values if scale is None else _divided(values, as_numpy(scale))

    def leave_one_out(self, block: Block) -> Array:
        block = block.in_double()
        moved = self.moved(block, self.residuals_left_out(block))
        return like(self.layer.pre_activations(block.phi), moved) + moved / self.n_samples


def _inner(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the inner products of samples' arrays ``(n, ...)``, shape ``(n,)``."""
    return (left * right).reshape(len(left), -1).sum(axis=1)


def _divided(values: Array, scale: Array) -> Array:
    """Return ``values (n, ...)`` divided by ``scale (n,)``; 0 where that is 0."""
    xp = namespace(scale)
    reciprocal = xp.where(scale > 0, 1 / xp.where(scale > 0, scale, xp.ones_like(scale)), 0 * scale)
    return values * xp.reshape(reciprocal, (-1, *[1] * (values.ndim - 1)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DotProduct(Gradients):
    """Influence functions with ``H = I``; see :class:`~whence.GradientDotProduct`."""

    name = "GradientDotProduct"

    @classmethod
    def of(cls, layer: LinearLayer, index: Index, effect_on: str = "loss") -> DotProduct:
        """Make the rule; see the base class."""
        check_choice(effect_on, "effect_on", "loss", "pre_activation")
        return cls(layer=layer, n_samples=index.n_samples, effect_on=effect_on)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cosine(DotProduct):
    """The cosine between gradients; see :class:`~whence.GradientCosine`."""

    name = "GradientCosine"

    def scale(self, block: Block) -> Array:
        r = self.layer.residuals(block)
        squared = _inner(as_numpy(self.moved(block, r)), as_numpy(r))
        return like(np.sqrt(np.maximum(squared, 0)), r)  # rounding may leave a sum below 0

    def queries(self, question: Question) -> Queries:
        directions = question.directions(self.layer.n_outputs)
        unit = _divided(directions, _norms(directions))
        return Queries(-unit, np.zeros(len(unit)))

    def self_influence(self, block: Block, question: Question) -> Array:
        own = as_numpy(super().self_influence(block, question)) * self.n_samples
        if not self.asks_about_loss:
            return _divided(own, _norms(question.directions(self.layer.n_outputs)))
        return as_numpy(self.scale(block.in_double()) > 0).astype(own.dtype)

    def leave_one_out(self, block: Block) -> Array:
        raise no_step_to_leave_out()


def no_step_to_leave_out() -> WhenceError:
    """Return the error for cosines that are asked what leaving a sample out does."""
    return WhenceError(
        "score",
        "'loss' or 'self_influence' for gradient cosines, which have no step to leave a sample out of",
        "'leave_one_out'",
        "Pass score='loss', or ask another method.",
    )


def _norms(matrices: np.ndarray) -> np.ndarray:
    return np.sqrt((matrices**2).sum(axis=(1, 2)))
