"""Support vector machines and kernel ridge regression: dual coefficients, read as they are.

``score_c(x) = sum_i a_ic k(x_i, x) + b_c``, so a sample adds ``a_ic k(x_i, x)``. Samples that are no
support vectors have ``a_ic = 0``.

With more than two classes libsvm holds a classifier for each pair of them, whose scores are what
``decision_function_shape="ovo"`` gives. What is asked about by default is the pair of the predicted class
and its strongest rival.
"""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import scipy.sparse

from whence.models.sklearn.duals.base import DUALS, Dual, matrix

__all__ = ["KernelRidgeDual", "OneClassDual", "SupportVectorClassifier", "SupportVectorRegressor"]


class _Kernel(Dual):
    """A sum of kernels; subclasses read the coefficients.

    Attributes
    ----------
    rows : array of shape (S,)
        Which training samples have coefficients.
    coefficients : array of shape (S, C)
    """

    what = "dual coefficients"
    rows: np.ndarray
    coefficients: np.ndarray

    def _kernel(self, x: Any) -> np.ndarray:
        """Return ``k(x, x_i)`` of these rows, shape ``(T, S)``."""
        from sklearn.metrics.pairwise import pairwise_kernels

        model, x = self.model, matrix(x)
        if model.kernel == "precomputed":  # what is given for a sample is its kernel with each of training
            return np.asarray(x, dtype=np.float64)[:, self.rows]
        known = self.x[self.rows]
        if callable(model.kernel):
            return self._called(x, known)
        settings = {"gamma": self._gamma(), "degree": model.degree, "coef0": model.coef0}
        return pairwise_kernels(x, known, metric=model.kernel, filter_params=True, **settings)

    def _called(self, x: Any, known: Any) -> np.ndarray:
        return np.asarray(self.model.kernel(x, known))

    def _gamma(self) -> Any:
        return self.model.gamma

    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        result = np.zeros((x.shape[0], self.n_samples))
        result[:, self.rows] = self._kernel(x) * self.coefficients[:, outputs].T
        return result

    def scores(self, x: Any) -> np.ndarray:
        return np.asarray(self.model.predict(x), dtype=np.float64).reshape(x.shape[0], -1)


class _SupportVectors(_Kernel):
    def _read(self) -> None:
        model = self.model
        self.rows = np.asarray(model.support_)
        if self.rows.max(initial=-1) >= self.n_samples:
            raise self.other_samples(f"{self.n_samples} samples, and support vectors beyond them")
        self._check_vectors()
        dual = model.dual_coef_
        dual = dual.toarray() if scipy.sparse.issparse(dual) else np.asarray(dual)
        self.coefficients, self.intercept = (
            self._of_outputs(dual),
            np.asarray(model.intercept_, dtype=float),
        )
        self.unused = np.ones(self.n_samples, dtype=bool)
        self.unused[self.rows] = False

    def _of_outputs(self, dual: np.ndarray) -> np.ndarray:
        return dual.T

    def _check_vectors(self) -> None:
        """Raise unless the support vectors are those samples."""
        vectors = self.model.support_vectors_
        if callable(self.model.kernel) or self.model.kernel == "precomputed" or not vectors.shape[0]:
            return
        mine = self.x[self.rows]
        gap = abs(mine - vectors)
        if mine.shape != vectors.shape or gap.max() > 1e-12 * max(1.0, float(abs(vectors).max())):
            raise self.other_samples("other samples, or others in these places")

    def _gamma(self) -> float:
        gamma = self.model.gamma
        if not isinstance(gamma, str):
            return float(gamma)
        if gamma == "auto":
            return 1.0 / self.x.shape[1]
        variance = self.x.var() if not scipy.sparse.issparse(self.x) else _variance(self.x)
        return 1.0 / (self.x.shape[1] * variance) if variance else 1.0


def _variance(x: Any) -> float:
    return float(x.multiply(x).mean() - x.mean() ** 2)


@DUALS.register("SVR")
@DUALS.register("NuSVR")
class SupportVectorRegressor(_SupportVectors):
    """Reads ``SVR`` and ``NuSVR``."""


@DUALS.register("OneClassSVM")
class OneClassDual(_SupportVectors):
    """Reads ``OneClassSVM``, whose score is its ``decision_function``."""

    def scores(self, x: Any) -> np.ndarray:
        return np.asarray(self.model.decision_function(x), dtype=np.float64).reshape(-1, 1)


@DUALS.register("SVC")
@DUALS.register("NuSVC")
class SupportVectorClassifier(_SupportVectors):
    """Reads ``SVC`` and ``NuSVC``: one output of two classes, one for each pair of more."""

    def _of_outputs(self, dual: np.ndarray) -> np.ndarray:
        assert self.classes is not None
        n_classes = len(self.classes)
        self._pairs = list(combinations(range(n_classes), 2))
        if n_classes == 2:
            return dual.T
        ends = np.cumsum(self.model.n_support_)
        of_class = [slice(end - n, end) for end, n in zip(ends, self.model.n_support_, strict=True)]
        result = np.zeros((dual.shape[1], len(self._pairs)))
        for number, (one, other) in enumerate(self._pairs):
            # Of a class's own support vectors, row j - 1 is against a later class j, row j an earlier one.
            result[of_class[one], number] = dual[other - 1, of_class[one]]
            result[of_class[other], number] = dual[one, of_class[other]]
        return result

    def scores(self, x: Any) -> np.ndarray:
        if self.n_outputs == 1:
            return np.asarray(self.model.decision_function(x), dtype=np.float64)[:, None]
        by_pairs = copy.copy(self.model)
        by_pairs.decision_function_shape = "ovo"
        return np.asarray(by_pairs.decision_function(x), dtype=np.float64)

    def outputs_of(self, scores: np.ndarray) -> np.ndarray:
        if self.n_outputs == 1:
            return np.zeros(len(scores), dtype=np.int64)
        ranks = self._strength(scores)
        order = np.argsort(-ranks, axis=1, kind="stable")[:, :2]
        pairs = {pair: number for number, pair in enumerate(self._pairs)}
        return np.asarray([pairs[tuple(sorted(pair))] for pair in order.tolist()])

    def signs_of(self, scores: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        if self.n_outputs == 1:
            return np.where(scores[:, 0] < 0, -1.0, 1.0)
        second = np.asarray(self._pairs)[outputs, 1]
        return np.where(np.argmax(self._strength(scores), axis=1) == second, -1.0, 1.0)

    def _strength(self, scores: np.ndarray) -> np.ndarray:
        """Return how many pairs each class wins, ties broken by the sums of its scores."""
        assert self.classes is not None
        votes = np.zeros((len(scores), len(self.classes)))
        sums = np.zeros_like(votes)
        for number, (one, other) in enumerate(self._pairs):
            wins = scores[:, number] > 0
            votes[:, one] += wins
            votes[:, other] += ~wins
            sums[:, one] += scores[:, number]
            sums[:, other] -= scores[:, number]
        return votes + sums / (3 * (np.abs(sums) + 1))


@DUALS.register("KernelRidge")
class KernelRidgeDual(_Kernel):
    """Reads ``KernelRidge``, for one target or several."""

    def _read(self) -> None:
        model = self.model
        dual = np.asarray(model.dual_coef_, dtype=np.float64)
        if len(dual) != self.n_samples:
            raise self.other_samples(f"{self.n_samples} samples, for {len(dual)} coefficients")
        gap = abs(self.x - model.X_fit_)
        if model.kernel != "precomputed" and gap.max() > 0:
            raise self.other_samples("other samples, or others in these places")
        self.rows = np.arange(self.n_samples)
        self.coefficients = dual.reshape(len(dual), -1)
        self.intercept = np.zeros(self.coefficients.shape[1])
        self.unused = np.all(self.coefficients == 0, axis=1, keepdims=True)[:, 0]

    def _called(self, x: Any, known: Any) -> np.ndarray:
        from sklearn.metrics.pairwise import pairwise_kernels

        settings = self.model.kernel_params or {}
        return pairwise_kernels(x, known, metric=self.model.kernel, filter_params=True, **settings)
