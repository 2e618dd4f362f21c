"""Gradients of training samples against the gradient of what is asked: dot product and cosine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, astype, like, namespace
from whence.attribution.contract import Attribution
from whence.attribution.over_layers import explain_several
from whence.attribution.question import Question
from whence.data.base import Batch
from whence.index import Shard
from whence.indexing.observation import Observation
from whence.layers.linear_layer import Block
from whence.models.base import InfluenceModel
from whence.search.scores import Queries

__all__ = ["GradientCosine", "GradientDotProduct", "Gradients", "LossQuestion"]


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


class Gradients(Attribution):
    """What methods share that score by inner products ``<g_i, M Q_t>`` of gradients.

    ``Q_t`` is the gradient of what is asked: of minus the loss of sample ``t``, or of one of its
    pre-activations. Training on sample ``i`` moves ``theta`` against ``g_i``, so that ``-<g_i, M Q_t>``
    is positive where it raises what is asked: where it lowers the loss, or raises the pre-activation.
    """

    _takes_several = True

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        effect_on: str = "loss",
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        if effect_on not in ("loss", "pre_activation"):
            raise WhenceError("effect_on", "'loss' or 'pre_activation'", repr(effect_on), "Choose one.")
        self.effect_on = effect_on
        self.asks_about_loss: bool = effect_on == "loss"
        # The loss of a sample is that of its given label, whatever the model predicts.
        label = "given" if self.asks_about_loss and label == "predicted" else label
        options: dict[str, Any] = {"label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)

    def _ask(
        self, batch: Batch, start: int, outputs: Any, positions: Any
    ) -> tuple[Question, dict[str, np.ndarray]]:
        if outputs is not None and self.asks_about_loss:
            raise WhenceError(
                "outputs",
                "None, since effect_on='loss' asks about the loss of the given label",
                repr(outputs),
                "Leave it out, or ask about one output: effect_on='pre_activation'.",
            )
        return super()._ask(batch, start, outputs, positions)

    def _about(self) -> dict[str, Any]:
        return super()._about() | {"effect_on": self.effect_on}

    def _question(self, seen: Observation, outputs: np.ndarray, weight: np.ndarray | None) -> Question:
        if not self.asks_about_loss:
            return super()._question(seen, outputs, weight)
        if seen.target is None:
            raise WhenceError(
                "samples",
                "labels, since effect_on='loss' explains the loss of the label",
                "none",
                "Give them, or ask about a pre-activation: effect_on='pre_activation'.",
            )
        r = self._residuals(Block(seen.phi, seen.target, weight))
        return LossQuestion(seen.phi, outputs, weight, r, as_numpy(seen.target))

    def _own_outputs(self, u: np.ndarray, target: np.ndarray | None) -> np.ndarray:
        if not self.asks_about_loss:
            return super()._own_outputs(u, target)
        try:
            return super()._own_outputs(u, target)
        except WhenceError:  # labels of a hidden layer name none of its outputs: the loss asks about all
            return np.argmax(u, axis=-1)

    def _residuals(self, block: Block) -> np.ndarray:
        """Return the residuals in float64, on the host: small ones are differences of near numbers."""
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        weight = None if block.weight is None else np.asarray(as_numpy(block.weight), dtype=np.float64)
        return as_numpy(self.layer.residuals(Block(phi, as_numpy(block.target), weight)))

    def _solve(self, matrices: np.ndarray) -> np.ndarray:
        """Return ``M`` applied to matrices ``(m, d, C)``: the identity, unless a method says otherwise."""
        return matrices

    def _moved(self, block: Block, r: Array) -> Array:
        """Return ``(M g_i)^T phi_i`` of every sample, in the shape of ``r``."""
        xp = namespace(block.phi)
        if block.phi.ndim == 2:
            return r * xp.sum(block.phi**2, axis=1)[:, None]
        return xp.matmul(block.phi, xp.matmul(xp.matrix_transpose(block.phi), r))

    def _scale(self, block: Block) -> Array | None:
        """Return what each sample's gradient is divided by, ``(n,)``; None for 1."""
        return None

    def _residuals_left_out(self, block: Block) -> Array:
        """Return the residuals of training samples, as leaving them out takes them from the weights."""
        return self.layer.residuals(block)

    def _coefficients(self, block: Block) -> Array:
        r = self._residuals_left_out(block)
        scale = self._scale(block)
        return r if scale is None else astype(_divided(r, scale), r.dtype)

    def _queries(self, question: Question) -> Queries:
        solved = self._solve(question.directions(self.layer.n_outputs))
        return Queries(-solved / self.index.n_samples, np.zeros(len(solved)))

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        block = shard.block.in_double()
        moved = as_numpy(self._moved(block, self._residuals_left_out(block)))
        if self.asks_about_loss:
            values = _inner(moved, as_numpy(self.layer.residuals(block)))
        else:
            values = np.abs(question.pick(moved)) / self.index.n_samples
        scale = self._scale(block)
        return values if scale is None else _divided(values, as_numpy(scale))

    def _leave_one_out(self, shard: Shard) -> Array:
        block = shard.block.in_double()
        moved = self._moved(block, self._residuals_left_out(block))
        return like(self.layer.pre_activations(block.phi), moved) + moved / self.index.n_samples

    def _totals(self, question: Question) -> np.ndarray:
        return question.under(self._sum)

    @cached_property
    def _sum(self) -> np.ndarray:
        """What the shares of all samples in the weights sum to, shape ``(d, C)``."""
        return -self._solve(self._mean[None, :, :])[0]

    @cached_property
    def _mean(self) -> np.ndarray:
        """The mean of the stored gradients, divided as they are, shape ``(d, C)``."""
        return self._weighted / self.index.n_samples


def _inner(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the inner products of samples' arrays ``(n, ...)``, shape ``(n,)``."""
    return (left * right).reshape(len(left), -1).sum(axis=1)


def _divided(values: Array, scale: Array) -> Array:
    """Return ``values (n, ...)`` divided by ``scale (n,)``; 0 where that is 0."""
    xp = namespace(scale)
    reciprocal = xp.where(scale > 0, 1 / xp.where(scale > 0, scale, xp.ones_like(scale)), 0 * scale)
    return values * xp.reshape(reciprocal, (-1, *[1] * (values.ndim - 1)))


class GradientDotProduct(Gradients):
    """Score training samples by the dot product of gradients: influence functions with ``H = I``.

    With the gradients ``g`` of the layer's loss and ``N`` training samples::

        v(i, t)   =  (1/N) <g_i, g_t>                    effect_on="loss"
        v_j(i, t) = -(1/N) <g_i, phi_t (x) e_j>          effect_on="pre_activation"

    It is what the share of sample ``i`` in one step of gradient descent of size 1 on the mean loss does,
    to first order: how far the loss of ``t`` falls, or its pre-activation ``j`` rises. Positive speaks
    for the label of ``t``, or for output ``j``. Self-influence is ``<g_i, g_i>``, or ``|v_j(i, i)|``;
    ``suspects`` leaves a sample out of that one step.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``.
    effect_on : {"loss", "pre_activation"}, default="loss"
        What is asked: the loss of samples, which then need labels, or a pre-activation.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own, for ``effect_on="pre_activation"``. The loss is always that
        of the given label.
    ids : sequence, optional
        Names of the training samples; positions by default.
    progress : bool, optional
    index_path, engine : optional
        See :class:`~whence.RepresenterPointLJE`.
    """

    method = "GradientDotProduct"
    #: What scores over several layers are divided by.
    _normalisation: str | None = None

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        effect_on: str = "loss",
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        options: dict[str, Any] = {"effect_on": effect_on, "label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)
        if self.influence_model.several is not None:
            explain_several(self, None, (None, 1, 0), normalisation=self._normalisation)
        self._store_coefficients()


class GradientCosine(GradientDotProduct):
    """Score training samples by the cosine between gradients.

    As :class:`~whence.GradientDotProduct`, with both gradients divided by their norms: from -1 to 1,
    without a unit. Large losses and long features count no more than others; a sample whose gradient is
    zero scores 0. For ``effect_on="loss"`` self-influence is 1 by definition and ranks nothing, and there
    is no step to leave a sample out of: rank doubtful labels by ``score="loss"`` or by another method.

    Parameters
    ----------
    influence_model, dataset, target_layer, effect_on, label, ids, progress, index_path, engine
        See :class:`~whence.GradientDotProduct`.
    """

    method = "GradientCosine"
    _normalisation = "gradient"

    def _scale(self, block: Block) -> Array:
        r = self.layer.residuals(block)
        squared = _inner(as_numpy(self._moved(block, r)), as_numpy(r))
        return like(np.sqrt(np.maximum(squared, 0)), r)  # rounding may leave a sum below 0

    def _queries(self, question: Question) -> Queries:
        directions = question.directions(self.layer.n_outputs)
        unit = _divided(directions, _norms(directions))
        return Queries(-unit, np.zeros(len(unit)))

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        own = as_numpy(super()._self_influence(shard, question)) * self.index.n_samples
        if not self.asks_about_loss:
            return _divided(own, _norms(question.directions(self.layer.n_outputs)))
        return as_numpy(self._scale(shard.block.in_double()) > 0).astype(own.dtype)

    def _leave_one_out(self, shard: Shard) -> Array:
        raise WhenceError(
            "score",
            "'loss' or 'self_influence' for gradient cosines, which have no step to leave a sample out of",
            "'leave_one_out'",
            "Pass score='loss', or ask another method.",
        )

    def _totals(self, question: Question) -> np.ndarray:
        norms = _norms(question.directions(self.layer.n_outputs))
        return _divided(question.under(-self._mean) * self.index.n_samples, norms)


def _norms(matrices: np.ndarray) -> np.ndarray:
    return np.sqrt((matrices**2).sum(axis=(1, 2)))
