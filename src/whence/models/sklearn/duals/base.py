"""What it takes to write an estimator's own scores as sums over its training samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import WhenceError
from whence._registry import Registry
from whence.models.sklearn.estimators import Pipe, is_fitted, split_pipeline

__all__ = ["DUALS", "Dual", "open_dual"]


class Dual(ABC):
    """An estimator as a sum over training samples: ``score_c(x) = sum_i value_ic(x) + intercept_c``.

    Subclass it for a family of estimators, and register it in ``DUALS`` by their names.

    Parameters
    ----------
    model : estimator
        Fitted.
    x : array or sparse matrix of shape (N, d)
        The training inputs as the last step sees them.
    y : array of shape (N,) or (N, C)
        Labels as at fit.
    weight : array of shape (N,), optional

    Attributes
    ----------
    intercept : array of shape (C,)
        What belongs to no sample.
    unused : array of shape (N,), bool
        Samples that no prediction draws on.
    """

    #: What the values are shares of, for messages and reports.
    what: str

    def __init__(self, model: Any, x: Any, y: np.ndarray, weight: np.ndarray | None = None) -> None:
        self.model = model
        self.given, self.x = x, matrix(x)
        self.n_samples = int(x.shape[0])
        classes = getattr(model, "classes_", None)
        self.classes: np.ndarray | None = None if classes is None else np.asarray(classes)
        self.y = self._encoded(y)
        self.weight = weight
        self.unused = np.zeros(self.n_samples, dtype=bool)
        self.intercept = np.zeros(1)
        self._read()

    @abstractmethod
    def _read(self) -> None:
        """Take from the model what values are computed from, or raise if this is not its training set."""

    @abstractmethod
    def scores(self, x: Any) -> np.ndarray:
        """Return the estimator's own scores, shape ``(T, C)``."""

    @abstractmethod
    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        """Return what each training sample adds to one output of each sample, shape ``(T, N)``."""

    @property
    def n_outputs(self) -> int:
        """``C``."""
        return int(self.intercept.shape[0])

    def outputs_of(self, scores: np.ndarray) -> np.ndarray:
        """Return the output that is asked about where none is named: the largest, shape ``(T,)``."""
        return np.argmax(scores, axis=1)

    def signs_of(self, scores: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return -1 where the score has to be turned to speak for what is predicted, else 1."""
        if self.classes is None or self.n_outputs > 1:
            return np.ones(len(scores))
        return np.where(scores[:, 0] < 0, -1.0, 1.0)

    def predictions(self, x: Any) -> np.ndarray:
        """Return the estimator's own predictions: class numbers, or values."""
        said = np.asarray(self.model.predict(x))
        if self.classes is not None:
            return self._encoded(said)
        return said.astype(np.float64)

    def _encoded(self, labels: Any) -> np.ndarray:
        """Return class names as class numbers, values as they are."""
        given = np.asarray(labels)
        if self.classes is None:
            return given.astype(np.float64)
        numbers = np.minimum(np.searchsorted(self.classes, given), len(self.classes) - 1)
        unknown = self.classes[numbers] != given
        if unknown.any():
            names = ", ".join(map(str, self.classes[:10]))
            fix = "Give the labels of the fit."
            raise WhenceError("labels", f"the classes of the fit: {names}", repr(given[unknown][0]), fix)
        return numbers

    def refuse(self, what: str, fix: str) -> WhenceError:
        """Return the error for something that is no sum over training samples."""
        expected = "an estimator whose scores are sums over its training samples"
        return WhenceError("estimator", expected, f"a {type(self.model).__name__} with {what}", fix)

    def other_samples(self, got: str) -> WhenceError:
        """Return the error for samples that the estimator was not fitted on."""
        fix = "Give the samples of the fit, in their order."
        return WhenceError("train_set", f"what the {type(self.model).__name__} was fitted on", got, fix)


class Average(Dual):
    """A mean of the labels, by shares that sum to one: ``predict_proba``, or ``predict`` of values."""

    @abstractmethod
    def shares(self, x: Any) -> np.ndarray:
        """Return the share of each training sample, shape ``(T, N)``."""

    def _read(self) -> None:
        self.intercept = np.zeros(1 if self.classes is None else len(self.classes))

    def scores(self, x: Any) -> np.ndarray:
        said = self.model.predict(x) if self.classes is None else self.model.predict_proba(x)
        return np.asarray(said, dtype=np.float64).reshape(x.shape[0], -1)

    def values(self, x: Any, outputs: np.ndarray) -> np.ndarray:
        counts = self.y if self.classes is None else self.y == outputs[:, None]
        return self.shares(x) * counts


def matrix(x: Any) -> Any:
    """Return inputs as an array, or as the sparse matrix that they are."""
    return x if scipy.sparse.issparse(x) else np.asarray(x)


#: How to read estimators, by the names of their classes.
DUALS: Registry[type[Dual]] = Registry("estimator", "whence.models.sklearn.duals")


def open_dual(estimator: Any, x: Any, y: Any, weight: Any = None) -> tuple[Pipe, Dual]:
    """Return the steps before an estimator, and the estimator as a sum over training samples.

    Raises
    ------
    WhenceError
        If it is not fitted, is no such sum, or was fitted on other samples.
    """
    pipe, final = split_pipeline(estimator)
    for kind in type(final).__mro__:
        if kind.__module__.startswith("sklearn.") and kind.__name__ in DUALS:
            is_fitted(final, "n_features_in_", "support_")
            weights = None if weight is None else np.asarray(weight, dtype=np.float64)
            return pipe, DUALS[kind.__name__](final, pipe(x), np.asarray(y), weights)
    raise WhenceError(
        "estimator",
        f"one of {', '.join(DUALS)}, or a pipeline or search of one",
        f"a {type(final).__name__}",
        "Wrap it in InfluenceModel, for RepresenterPointLJE or InfluenceFunctions.",
    )
