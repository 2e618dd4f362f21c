"""Baselines that use no derivative: similarity of features, and the training loss alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, astype, like, namespace
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.base import Rule, coefficients_as_stored, sum_of_products
from whence.methods.question import Question
from whence.methods.ridge import has_rows, target_rows
from whence.search.scores import Queries

__all__ = ["LossOfSample", "Similarity"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity(Rule):
    """``(y_ij - mean_k y_kj) cos(phi_i, phi_t)``; see :class:`~whence.FeatureSimilarity`.

    Parameters
    ----------
    mean_target : array of shape (C,)
    votes_of_all : array of shape (d, C)
        ``sum_i phi_i / |phi_i| (x) (y_i - mean y)``.
    """

    name = "FeatureSimilarity"

    mean_target: np.ndarray
    votes_of_all: np.ndarray

    @classmethod
    def of(cls, layer: LinearLayer, index: Index, **arguments: Any) -> Similarity:
        """Take the mean of the targets and the votes of all; see the base class."""
        if index.has_positions:
            raise WhenceError(
                "target_layer",
                "a layer that is applied once a sample, for features to compare",
                "one that is applied along a sequence",
                "Choose another layer, or compare gradients: GradientCosine.",
            )
        if not has_rows(layer, index):
            raise WhenceError(
                "dataset",
                "labels that are classes, or one value for each output",
                f"labels of shape {tuple(index.shards[0].target.shape)}",
                "Compare gradients instead: GradientCosine.",
            )
        totals = [target_rows(shard.target, layer.n_outputs).sum(axis=0) for shard in index.shards]
        mean = sum(totals) / index.n_samples
        nothing = np.zeros((layer.n_features, layer.n_outputs))
        rule = cls(layer=layer, n_samples=index.n_samples, mean_target=mean, votes_of_all=nothing)
        return replace(rule, votes_of_all=sum_of_products(index, partial(coefficients_as_stored, rule)))

    def arguments(self) -> dict[str, Any]:
        return {}

    def _votes(self, target: Array) -> np.ndarray:
        return target_rows(target, self.layer.n_outputs) - self.mean_target

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

    def coefficients(self, block: Block) -> Array:
        _, norms = self._without_constant(block.phi)
        votes = self._votes(block.target) / norms
        return astype(like(votes, block.phi), block.phi.dtype)

    def queries(self, question: Question) -> Queries:
        unit = self._units(question.phi)
        return Question(unit, question.outputs, question.weight).inner_products(self.layer.n_outputs)

    def self_influence(self, block: Block, question: Question) -> Array:
        unit = self._units(block.phi)
        return np.abs(question.pick(self._votes(block.target) * (unit**2).sum(axis=1, keepdims=True)))

    def leave_one_out(self, block: Block) -> Array:
        unit = self._units(block.phi)
        own = self._votes(block.target) * (unit**2).sum(axis=1, keepdims=True)
        return like(unit @ self.votes_of_all - own, block.phi)


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOfSample(Rule):
    """``ell_i sign(-r_ij)``, whatever is asked; see :class:`~whence.TrainingLoss`."""

    name = "TrainingLoss"

    @classmethod
    def of(cls, layer: LinearLayer, index: Index, **arguments: Any) -> LossOfSample:
        """Make the rule; see the base class."""
        if index.has_positions:
            raise WhenceError(
                "target_layer",
                "a layer that is applied once a sample, whose loss says which outputs it asks more of",
                "one that is applied along a sequence",
                "Rank samples by suspects(..., score='loss') of another method.",
            )
        return cls(layer=layer, n_samples=index.n_samples)

    def coefficients(self, block: Block) -> Array:
        r = self.layer.residuals(block)
        losses = astype(self.layer.losses(block), r.dtype)
        return -losses[:, None] * namespace(r).sign(r)

    def queries(self, question: Question) -> Queries:
        if not self.layer.has_bias:
            raise WhenceError(
                "target_layer",
                "a layer with a bias, whose constant feature carries a score that no prediction changes",
                "one without",
                "Rank training samples by compute_influence_values or suspects.",
            )
        # Matrices that pick the output in question from the constant feature.
        constant = np.zeros(question.phi.shape)
        constant[:, -1] = 1
        directions = Question(constant, question.outputs, question.weight).directions(self.layer.n_outputs)
        return Queries(directions, np.zeros(len(directions)))

    def self_influence(self, block: Block, question: Question) -> Array:
        return self.layer.losses(block)

    def leave_one_out(self, block: Block) -> Array:
        return self.layer.pre_activations(block.phi)
