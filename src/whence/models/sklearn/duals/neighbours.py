"""Nearest neighbours, whose predictions are votes or means of them, and nearest centroids."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence.models.sklearn.duals.base import DUALS, Average, Dual

__all__ = ["CentroidDual", "Neighbours"]


@DUALS.register("KNeighborsClassifier")
@DUALS.register("RadiusNeighborsClassifier")
@DUALS.register("KNeighborsRegressor")
@DUALS.register("RadiusNeighborsRegressor")
class Neighbours(Average):
    """Shares ``w_i / sum w`` of the neighbours of a sample, by the estimator's own weights."""

    what = "votes of neighbours"

    def _read(self) -> None:
        super()._read()
        known = getattr(self.model, "_fit_X", None)
        n_fit = int(self.model.n_samples_fit_)
        if n_fit != self.n_samples:
            raise self.other_samples(f"{self.n_samples} samples, where there were {n_fit}")
        if known is not None and abs(known - self.x).max() > 0:
            raise self.other_samples("other samples, or others in these places")
        if self.y.ndim != 1:
            raise self.refuse("several targets", "Fit one for each.")

    def shares(self, x: Any) -> np.ndarray:
        """Return the share of each training sample in each vote, shape ``(T, N)``."""
        model = self.model
        find = model.radius_neighbors if hasattr(model, "radius_neighbors") else model.kneighbors
        distances, found = find(x)
        result = np.zeros((len(found), self.n_samples))
        for t, (far, rows) in enumerate(zip(distances, found, strict=True)):
            weight = _weights(model.weights, np.asarray(far, dtype=np.float64))
            total = weight.sum()
            if total > 0:
                result[t, rows] = weight / total
        return result


def _weights(kind: Any, distances: np.ndarray) -> np.ndarray:
    if kind is None or kind == "uniform":
        return np.ones_like(distances)
    if kind == "distance":
        if (distances == 0).any():  # those in the same place count, and no others
            return (distances == 0).astype(np.float64)
        return 1.0 / distances
    return np.asarray(kind(distances[None]), dtype=np.float64)[0]


@DUALS.register("NearestCentroid")
class CentroidDual(Dual):
    """Reads ``NearestCentroid``: scores are minus the squared distances to centroids, but for ``|x|^2``.

    ``2 x . m_c - |m_c|^2``, in which sample ``i`` of class ``c`` has a share of ``1 / n_c`` in ``m_c``.
    """

    what = "shares in centroids"

    def _read(self) -> None:
        model = self.model
        assert self.classes is not None
        if model.metric != "euclidean" or model.shrink_threshold:
            raise self.refuse("another metric, or shrink_threshold", "Fit it with metric='euclidean'.")
        if not np.allclose(getattr(model, "class_prior_", 1), np.mean(getattr(model, "class_prior_", 1))):
            raise self.refuse("priors that differ", "Fit it with priors='uniform'.")
        self._centroids = np.asarray(model.centroids_, dtype=np.float64)
        x = np.asarray(self.x, dtype=np.float64)
        means = np.stack([x[self.y == c].mean(axis=0) for c in range(len(self.classes))])
        if not np.allclose(means, self._centroids, rtol=1e-9, atol=1e-9):
            raise self.other_samples("samples with other centroids")
        self._counts = np.bincount(self.y, minlength=len(self.classes))
        self.intercept = np.zeros(len(self.classes))

    def scores(self, x: Any) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        return 2 * x @ self._centroids.T - (self._centroids**2).sum(axis=1)

    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        x, known = np.asarray(x, dtype=np.float64), np.asarray(self.x, dtype=np.float64)
        mine = (known * self._centroids[self.y]).sum(axis=1)
        shares = (2 * x @ known.T - mine) / self._counts[self.y]
        return shares * (self.y == outputs[:, None])
