"""Label errors in scikit-learn's conventions: an estimator with ``fit``, ``scores_`` and ``ranking_``."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, column_or_1d

from whence._errors import WhenceError
from whence.answers.representers import RepresenterPointLJE
from whence.arrays.base import check_number
from whence.data.tables import is_table
from whence.ihvp import ExactIHVPFactory, WoodburyIHVPFactory
from whence.models import InfluenceModel

__all__ = ["LabelErrors"]

SCORES = ("label_noise", "ridge", "leave_one_out", "self_influence", "loss")


class LabelErrors(BaseEstimator):
    """Rank training samples by how doubtful their labels are.

    Fits a copy of an estimator, takes it for a dense layer (:class:`~whence.InfluenceModel` says which it
    can take), and asks for each sample whether its label would be predicted had it not been shown:
    :meth:`whence.RepresenterPointLJE.suspects`, in scikit-learn's conventions.

    Parameters
    ----------
    estimator : estimator, default=None
        What to fit: a linear model, a perceptron, an ensemble of trees of scikit-learn, XGBoost or
        LightGBM, or a pipeline that ends in one. ``None`` takes ``LogisticRegression()``.
    rank_by : {"label_noise", "ridge", "leave_one_out", "self_influence", "loss"}, default=None
        What to rank by; see ``score`` of :meth:`whence.RepresenterPointLJE.suspects`, and for ``None`` its
        default: ``"label_noise"`` for linear classifiers and perceptrons, ``"leave_one_out"`` for the rest.
    damping : float, default=1e-3
        Added to the Hessian's diagonal, next to the estimator's own regularisation.

    Attributes
    ----------
    scores_ : array of shape (n_samples,)
        How doubtful each label is, in the order of the samples; larger is more doubtful.
    ranking_ : array of shape (n_samples,), integers
        The samples' positions, the most doubtful first.
    n_errors_ : int or None
        How many labels are wrong, by estimate; None unless ranked by ``"label_noise"``.
    interval_ : (int, int) or None
        An interval for it.
    noise_ : array of shape (n_classes, n_classes) or None
        The share of the samples of each true class (row) that were given each label (column).
    estimator_ : estimator
        The fitted copy.
    classes_ : array of shape (n_classes,)
        The classes, if ``estimator`` is a classifier.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,), of str
        If ``X`` is a frame whose columns have names.

    Examples
    --------
    One label of eight contradicts its neighbours:

    >>> X = np.asarray([[-4.0], [-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0], [4.0]])
    >>> errors = LabelErrors().fit(X, [0, 0, 0, 0, 1, 1, 0, 1])
    >>> int(errors.ranking_[0])
    6
    """

    def __init__(self, estimator: Any = None, *, rank_by: str | None = None, damping: float = 1e-3) -> None:
        self.estimator = estimator
        self.rank_by = rank_by
        self.damping = damping

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LabelErrors:
        """Fit the estimator and score its training labels.

        Parameters
        ----------
        X : array, sparse matrix or frame of shape (n_samples, n_features)
        y : array of shape (n_samples,)
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        LabelErrors
            Itself.
        """
        if self.rank_by is not None and self.rank_by not in SCORES:
            raise WhenceError("rank_by", f"one of {', '.join(SCORES)}", repr(self.rank_by), "Choose one.")
        check_number(self.damping, "damping")
        if y is None:
            raise ValueError("LabelErrors requires y to be passed, but the target y is None.")
        if scipy.sparse.issparse(X):
            X = X.tocsr()
        x = X if is_table(X) else np.asarray(X)
        estimator = _default() if self.estimator is None else clone(self.estimator)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = column_or_1d(labels, warn=True)
        self.estimator_: Any = estimator.fit(x, labels, **weights)
        if len(x.shape) > 1:  # not texts
            self.n_features_in_: int = int(x.shape[1])
        for name in ("classes_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        data = (_numbered(x), labels)
        if sample_weight is not None:
            data = (*data, np.asarray(sample_weight, dtype=np.float64))  # type: ignore[assignment]
        model = InfluenceModel(self.estimator_)
        index = model.index(data, progress=False)
        # Both are exact: one factorises a matrix of the features, the other one of the samples.
        few = self.damping > 0 and index.n_samples < model.layer.n_features
        factory = WoodburyIHVPFactory(self.damping) if few else ExactIHVPFactory(self.damping)
        method = RepresenterPointLJE(model, index, factory, progress=False)
        ranked = method.suspects(data, None, score=self.rank_by, progress=False)
        self.ranking_: np.ndarray = np.asarray(ranked.ids)
        self.scores_: np.ndarray = np.empty(len(labels), dtype=np.float64)
        self.scores_[self.ranking_] = ranked.scores
        self.n_errors_: int | None = ranked.n_suspects
        self.interval_: tuple[int, int] | None = ranked.interval
        self.noise_: np.ndarray | None = ranked.noise
        return self

    def suspects(self, k: int | None = None) -> np.ndarray:
        """Return the positions of the samples whose labels are most doubtful.

        Parameters
        ----------
        k : int, optional
            How many to return: by default as many as there are wrong labels, by estimate.

        Returns
        -------
        array of shape (k,), integers
            The most doubtful first.
        """
        check_is_fitted(self)
        if k is None and self.n_errors_ is not None:
            return self.ranking_[: self.n_errors_]
        check_number(k, "k", minimum=1, integer=True)
        return self.ranking_[:k]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags


def _default() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def _numbered(x: Any) -> Any:
    """Return a frame with its rows named by their positions, which ``ranking_`` speaks of."""
    return x.reset_index(drop=True) if hasattr(x, "reset_index") else x
