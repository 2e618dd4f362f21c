"""Forests by their own weights: each training sample's share in the leaves that a sample falls into.

``score_c(x) = mean_t sum_i w_ti [leaf_t(x_i) = leaf_t(x)] y_ic / sum_i w_ti [...]``, where ``w_ti`` is how
often tree ``t`` drew sample ``i``, times what the sample or its class counts: no linearisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whence.models.sklearn.class_weights import Counted, balanced, weights_by_class
from whence.models.sklearn.duals.base import DUALS, Average

__all__ = ["Forest"]


@DUALS.register("RandomForestClassifier")
@DUALS.register("ExtraTreesClassifier")
@DUALS.register("RandomForestRegressor")
@DUALS.register("ExtraTreesRegressor")
class Forest(Average):
    """Reads forests of trees."""

    what = "shares in leaves"

    def _read(self) -> None:
        super()._read()
        model = self.model
        if getattr(model, "n_outputs_", 1) > 1:
            raise self.refuse("several targets", "Fit one for each.")
        if getattr(model, "criterion", "") in ("absolute_error",):
            raise self.refuse("criterion='absolute_error', medians", "Fit it with 'squared_error'.")
        self._leaves = model.apply(self.given)  # (N, trees)
        self._counts = self._counted()
        self.unused = np.all(self._counts == 0, axis=0, keepdims=True)[0]

    def _counted(self) -> np.ndarray:
        """Return what each tree counted each sample, shape ``(trees, N)``: what gives its own leaves.

        Since scikit-learn 1.8 weights say how likely a tree draws a sample; before, they multiplied.
        """
        model = self.model
        weight = np.ones(self.n_samples) if self.weight is None else self.weight
        if not model.bootstrap:
            return np.tile(weight * self._by_class(), (len(model.estimators_), 1))
        drawn = model.estimators_samples_
        if max(int(rows.max()) for rows in drawn) >= self.n_samples:
            raise self.other_samples(f"{self.n_samples} samples, of which trees drew others")
        counts = np.stack([np.bincount(rows, minlength=self.n_samples) for rows in drawn]).astype(float)
        if getattr(model, "class_weight", None) == "balanced_subsample":
            for row in counts:
                of_class = np.bincount(self.y, weights=row)
                row *= np.where(of_class > 0, balanced(np.maximum(of_class, 1)), 0)[self.y]
        elif not self._gives_leaves(counts):
            counts = counts * weight * self._by_class()
        return counts

    def _gives_leaves(self, counts: np.ndarray) -> bool:
        """Return whether the first tree's leaves hold what such counts make of the labels."""
        leaves, tree = self._leaves[:, 0], self.model.estimators_[0].tree_
        total = np.bincount(leaves, weights=counts[0], minlength=tree.node_count)
        held = tree.weighted_n_node_samples
        return bool(np.allclose(total[tree.children_left == -1], held[tree.children_left == -1]))

    def _by_class(self) -> np.ndarray:
        weights = weights_by_class(self.model, self.classes, None)
        if isinstance(weights, Counted):
            weights = weights([(self.y, self.weight)])
        return np.ones(self.n_samples) if weights is None else weights[self.y]

    def shares(self, x: Any) -> np.ndarray:
        reached = self.model.apply(x)
        result = np.zeros((x.shape[0], self.n_samples))
        for tree, counts in enumerate(self._counts):
            together = (reached[:, tree, None] == self._leaves[:, tree]) * counts
            result += together / np.maximum(together.sum(axis=1, keepdims=True), 1e-300)
        return result / len(self._counts)
