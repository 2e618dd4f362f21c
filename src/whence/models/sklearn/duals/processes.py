"""Gaussian processes: the posterior mean is a sum of kernels over the training samples.

Of a classifier, by the Laplace approximation, that is the mean of the latent function,
``sum_i k(x_i, x) (y_i - pi_i)``, whose sign is the prediction; with more than two classes one for each
class against the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whence.models.sklearn.duals.base import DUALS, Dual, matrix

__all__ = ["ProcessClassifier", "ProcessRegressor"]


@DUALS.register("GaussianProcessRegressor")
class ProcessRegressor(Dual):
    """Reads ``GaussianProcessRegressor``."""

    what = "weights of kernels"

    def _read(self) -> None:
        model = self.model
        if not np.array_equal(np.asarray(model.X_train_), np.asarray(self.x)):
            raise self.other_samples("other samples, or others in these places")
        alpha = np.asarray(model.alpha_, dtype=np.float64).reshape(self.n_samples, -1)
        self.coefficients = alpha * np.atleast_1d(np.asarray(getattr(model, "_y_train_std", 1.0)))
        mean = np.atleast_1d(np.asarray(getattr(model, "_y_train_mean", 0.0), dtype=np.float64))
        self.intercept = np.broadcast_to(mean, (alpha.shape[1],))
        self.unused = np.all(self.coefficients == 0, axis=1, keepdims=True)[:, 0]

    def scores(self, x: Any) -> np.ndarray:
        return np.asarray(self.model.predict(x), dtype=np.float64).reshape(len(x), -1)

    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        return self.model.kernel_(matrix(x), self.model.X_train_) * self.coefficients[:, outputs].T


@DUALS.register("GaussianProcessClassifier")
class ProcessClassifier(Dual):
    """Reads ``GaussianProcessClassifier``."""

    what = "weights of kernels"

    def _read(self) -> None:
        base = self.model.base_estimator_
        if self.model.multi_class != "one_vs_rest" and self.classes is not None and len(self.classes) > 2:
            raise self.refuse("multi_class='one_vs_one'", "Fit it with multi_class='one_vs_rest'.")
        self._parts = list(getattr(base, "estimators_", [base]))
        for part in self._parts:
            if not np.array_equal(np.asarray(part.X_train_), np.asarray(self.x)):
                raise self.other_samples("other samples, or others in these places")
        weights = [np.asarray(part.y_train_) - np.asarray(part.pi_) for part in self._parts]
        self.coefficients = np.stack(weights, axis=1).astype(np.float64)
        self.intercept = np.zeros(len(self._parts))
        self.unused = np.all(self.coefficients == 0, axis=1, keepdims=True)[:, 0]

    def scores(self, x: Any) -> np.ndarray:
        kernels = [part.kernel_(x, part.X_train_) for part in self._parts]
        return np.stack([k @ self.coefficients[:, c] for c, k in enumerate(kernels)], axis=1)

    def outputs_of(self, scores: np.ndarray) -> np.ndarray:
        return np.argmax(scores, axis=1)

    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        result = np.empty((len(x), self.n_samples))
        for c, part in enumerate(self._parts):
            here = outputs == c
            if here.any():
                result[here] = part.kernel_(np.asarray(x)[here], part.X_train_) * self.coefficients[:, c]
        return result
