"""Baselines that use no derivative: similarity of features, and the training loss alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, astype, like, namespace
from whence.attribution.base import weighted_features
from whence.attribution.contract import Attribution
from whence.attribution.question import Question
from whence.attribution.ridge import has_rows, target_rows
from whence.index import Shard
from whence.layers.linear_layer import Block
from whence.models.base import InfluenceModel
from whence.search.scores import Queries

__all__ = ["FeatureSimilarity", "TrainingLoss"]


class FeatureSimilarity(Attribution):
    """Score training samples by how similar their features are, signed by their labels.

    With the features ``phi`` of the layer (the constant of the bias left out), targets ``y_i`` as rows
    and their mean over the training set::

        v_j(i, t) = (y_ij - mean_k y_kj) cos(phi_i, phi_t)

    a vote on output ``j`` among the neighbours of ``t``. Among samples of one class the order is that of
    the similarities. Positive speaks for output ``j``: the label of ``i`` is ``j`` more than on average
    and its features point the same way. No weight of the layer and no loss play a part. Self-influence
    is ``|v_j(i, i)|``, which depends on the label alone; ``suspects`` takes the vote of all others.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    target_layer : int or str, default=-1
        Whose inputs are compared; ``-1`` follows the model's ``start_layer``.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    ids : sequence, optional
        Names of the training samples; positions by default.
    progress : bool, optional
    index_path, engine : optional
        See :class:`~whence.RepresenterPointLJE`.
    """

    method = "FeatureSimilarity"

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        options: dict[str, Any] = {"label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)
        if self._has_positions:
            raise WhenceError(
                "target_layer",
                "a layer that is applied once a sample, for features to compare",
                "one that is applied along a sequence",
                "Choose another layer, or compare gradients: GradientCosine.",
            )
        if not has_rows(self.layer, self.index):
            raise WhenceError(
                "dataset",
                "labels that are classes, or one value for each output",
                f"labels of shape {tuple(self.index.shards[0].target.shape)}",
                "Compare gradients instead: GradientCosine.",
            )
        n_outputs = self.layer.n_outputs
        totals = [target_rows(shard.target, n_outputs).sum(axis=0) for shard in self.index.shards]
        self._mean_target = sum(totals) / self.index.n_samples
        self._store_coefficients()
        self._vote = weighted_features(self.index)

    def _votes(self, target: Array) -> np.ndarray:
        return target_rows(target, self.layer.n_outputs) - self._mean_target

    def _without_constant(self, phi: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return features, 0 in place of the constant, and their norms (1 for 0) as a column; float64."""
        wide = np.array(as_numpy(phi), dtype=np.float64)
        if self.layer.has_bias:
            wide[:, -1] = 0
        norms = np.sqrt((wide**2).sum(axis=1, keepdims=True))
        return wide, np.where(norms > 0, norms, 1.0)

    def _units(self, phi: Array) -> np.ndarray:
        """Return features without the constant, each of norm 1."""
        wide, norms = self._without_constant(phi)
        return wide / norms

    def _coefficients(self, block: Block) -> Array:
        _, norms = self._without_constant(block.phi)
        votes = self._votes(block.target) / norms
        return astype(like(votes, block.phi), block.phi.dtype)

    def _queries(self, question: Question) -> Queries:
        unit = self._units(question.phi)
        return Question(unit, question.outputs, question.weight).inner_products(self.layer.n_outputs)

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        unit = self._units(shard.phi)
        return np.abs(question.pick(self._votes(shard.target) * (unit**2).sum(axis=1, keepdims=True)))

    def _leave_one_out(self, shard: Shard) -> Array:
        unit = self._units(shard.phi)
        own = self._votes(shard.target) * (unit**2).sum(axis=1, keepdims=True)
        return like(unit @ self._vote - own, shard.phi)

    def _totals(self, question: Question) -> np.ndarray:
        unit = self._units(question.phi)
        return Question(unit, question.outputs, question.weight).under(self._vote)


class TrainingLoss(Attribution):
    """Score training samples by their own training loss, whatever is asked.

    ::

        v_j(i, t) = ell_i sign(-r_ij)

    the loss of sample ``i``, positive if its label asks for more of output ``j`` than the model gives,
    so that positive speaks for ``j``; the same for every ``t``. Self-influence is ``ell_i``. It is the
    baseline that a method has to beat at finding wrong labels, and it explains no prediction. ``suspects``
    leaves nothing out: its margins are those of the model itself.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``. Without a bias, only
        self-influence and suspects are to be had.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    ids : sequence, optional
        Names of the training samples; positions by default.
    progress : bool, optional
    index_path, engine : optional
        See :class:`~whence.RepresenterPointLJE`.
    """

    method = "TrainingLoss"

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        options: dict[str, Any] = {"label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)
        if self._has_positions:
            raise WhenceError(
                "target_layer",
                "a layer that is applied once a sample, whose loss says which outputs it asks more of",
                "one that is applied along a sequence",
                "Rank samples by suspects(..., score='loss') of another method.",
            )
        self._store_coefficients()

    def _coefficients(self, block: Block) -> Array:
        r = self.layer.residuals(block)
        losses = astype(self.layer.losses(block), r.dtype)
        return -losses[:, None] * namespace(r).sign(r)

    def _queries(self, question: Question) -> Queries:
        if not self.layer.has_bias:
            raise WhenceError(
                "target_layer",
                "a layer with a bias, whose constant feature carries a score that no prediction changes",
                f"layer {self.influence_model.layer_name!r} without one",
                "Rank training samples by compute_influence_values or suspects.",
            )
        return Queries(self._constant(question), np.zeros(len(question.phi)))

    def _constant(self, question: Question) -> np.ndarray:
        """Return matrices that pick the output in question from the constant feature, ``(T, d, C)``."""
        constant = np.zeros(question.phi.shape)
        constant[:, -1] = 1
        return Question(constant, question.outputs, question.weight).directions(self.layer.n_outputs)

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        return self.layer.losses(shard.block)

    def _leave_one_out(self, shard: Shard) -> Array:
        return self.layer.pre_activations(shard.phi)

    def _totals(self, question: Question) -> np.ndarray:
        every = sum(
            as_numpy(shard.coefficients).sum(axis=0, dtype=np.float64) for shard in self.index.shards
        )
        return self._constant(question)[:, -1, :] @ every
