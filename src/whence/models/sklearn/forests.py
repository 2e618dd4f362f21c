"""The adapters for scikit-learn's ensembles of trees.

Boosting: the margin is that of ``decision_function`` or ``predict``. ``HistGradientBoosting*`` has no
public way to the leaves: the private ``_predictors`` are read, and refused where they are not what they
were when this was written.

Forests average trees. Of a classifier, what is averaged are shares of classes, so ``u`` is
``predict_proba`` and the loss the Brier score, which each leaf's shares are the best for; of a regressor it
is squared error. A forest minimises neither jointly, and knows no regulariser.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.layers.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from whence.layers.margin_losses import BrierScore
from whence.layers.names import loss_named, losses_of
from whence.models.sklearn.class_weights import weights_by_class
from whence.models.sklearn.estimators import Pipe, is_fitted, refuse
from whence.models.sklearn.trees import Leaves, TreeAdapter, on_leaves

__all__ = ["ENSEMBLES", "ForestAdapter", "GradientBoostingAdapter", "HistGradientBoostingAdapter"]

FORESTS = (
    "RandomForestClassifier",
    "RandomForestRegressor",
    "ExtraTreesClassifier",
    "ExtraTreesRegressor",
)
ENSEMBLES = (
    "GradientBoostingClassifier",
    "GradientBoostingRegressor",
    "HistGradientBoostingClassifier",
    "HistGradientBoostingRegressor",
    *FORESTS,
)


def open_ensemble(model: Any, pipe: Pipe, class_weight: Any = None) -> TreeAdapter:
    """Return the adapter of an ensemble."""
    kind = next(base.__name__ for base in type(model).__mro__ if base.__name__ in ENSEMBLES)
    is_fitted(model, "estimators_", "_predictors")
    if kind in FORESTS:
        return ForestAdapter(model, pipe, class_weight)
    if kind.startswith("Hist"):
        return HistGradientBoostingAdapter(model, pipe, class_weight)
    return GradientBoostingAdapter(model, pipe, class_weight)


def _classes(model: Any) -> np.ndarray | None:
    return np.asarray(model.classes_) if hasattr(model, "classes_") else None


def _boosting_loss(model: Any, n_outputs: int) -> Loss:
    if model.loss == "log_loss":
        return BinaryCrossEntropy() if n_outputs == 1 else SoftmaxCrossEntropy()
    found = loss_named("sklearn.ensemble", model.loss)
    if found is not None:
        return found.made({})
    known = ", ".join(losses_of("sklearn.ensemble"))
    raise refuse(model, f"loss={model.loss!r}", f"Known are log_loss, {known}.")


def _boosting_margin(model: Any, x: Any) -> np.ndarray:
    if hasattr(model, "decision_function"):
        margin = np.asarray(model.decision_function(x), dtype=np.float64)
    else:
        margin = np.asarray(model.predict(x), dtype=np.float64)
        if model.loss in ("poisson", "gamma"):
            margin = np.log(margin)  # the links that are not the identity
    return margin.reshape(len(margin), -1)


class GradientBoostingAdapter(TreeAdapter):
    """Reads ``GradientBoostingClassifier`` and ``GradientBoostingRegressor``."""

    def __init__(self, model: Any, pipe: Pipe, class_weight: Any = None) -> None:
        self._model = model
        if model.init not in (None, "zero"):
            raise refuse(model, "init, an estimator of its own", "Fit it with init=None or 'zero'.")
        trees = model.estimators_
        n_outputs = trees.shape[1]
        nodes, values = [], []
        for number, tree in enumerate(trees.ravel()):
            at = np.flatnonzero(tree.tree_.children_left == -1)
            column = np.zeros((len(at), n_outputs))
            column[:, number % n_outputs] = model.learning_rate * tree.tree_.value[at, 0, 0]
            nodes.append(at)
            values.append(column)
        super().__init__(
            type(model).__name__,
            Leaves(nodes, values),
            pipe,
            _boosting_loss(model, n_outputs),
            _classes(model),
            n_features_in=model.n_features_in_,
            by_class=weights_by_class(model, _classes(model), class_weight),
            was_held_back=True,
        )

    def _reached(self, x: Any) -> np.ndarray:
        # Its first tree, fitted without names, warns of a frame's: they were compared before.
        reached = self._model.apply(np.asarray(x) if hasattr(x, "columns") else x)
        return reached.reshape(len(reached), -1)

    def _margin(self, x: Any) -> np.ndarray:
        return _boosting_margin(self._model, _without_names(self._model, x))


class HistGradientBoostingAdapter(TreeAdapter):
    """Reads ``HistGradientBoostingClassifier`` and ``HistGradientBoostingRegressor``."""

    def __init__(self, model: Any, pipe: Pipe, class_weight: Any = None) -> None:
        self._model = model
        try:
            rounds = model._predictors
            self._predictors = [_naming_leaves(tree) for one in rounds for tree in one]
            self._baseline = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)
            self._categories = model._bin_mapper.make_known_categories_bitsets()
            leaves = _hist_leaves([tree for one in rounds for tree in one], len(rounds[0]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _changed(model, error) from error
        n_outputs = leaves.theta.shape[1]
        loss = _boosting_loss(model, n_outputs)
        super().__init__(
            type(model).__name__,
            leaves,
            pipe,
            loss,
            _classes(model),
            n_features_in=model.n_features_in_,
            by_class=weights_by_class(model, _classes(model), class_weight),
            was_held_back=True,
            l2_of_sum=on_leaves(model.l2_regularization, loss, n_outputs, False),
        )

    def _reached(self, x: Any) -> np.ndarray:
        model = self._model
        x = _without_names(model, x)
        try:
            prepared = model._preprocess_X(x, reset=False)
            known, positions = self._categories
            found = [tree.predict(prepared, known, positions, 1) for tree in self._predictors]
        except (AttributeError, TypeError) as error:
            raise _changed(model, error) from error
        return np.stack(found, axis=1).astype(np.int64)

    def _margin(self, x: Any) -> np.ndarray:
        return _boosting_margin(self._model, _without_names(self._model, x))

    def _find_base(self) -> np.ndarray:
        return self._baseline


def _naming_leaves(tree: Any) -> Any:
    """Return a copy of a tree that predicts the number of the leaf in place of its value."""
    nodes = tree.nodes.copy()
    nodes["value"] = np.arange(len(nodes))
    return type(tree)(nodes, tree.binned_left_cat_bitsets, tree.raw_left_cat_bitsets)


def _hist_leaves(trees: list[Any], n_outputs: int) -> Leaves:
    nodes, values = [], []
    for number, tree in enumerate(trees):
        at = np.flatnonzero(tree.nodes["is_leaf"])
        column = np.zeros((len(at), n_outputs))
        column[:, number % n_outputs] = tree.nodes["value"][at]
        nodes.append(at)
        values.append(column)
    return Leaves(nodes, values)


def _changed(model: Any, error: Exception) -> WhenceError:
    return WhenceError(
        "model",
        "the private attributes that give the leaves of scikit-learn 1.4 to 1.9",
        f"a {type(model).__name__} without them: {error}",
        "Use GradientBoostingClassifier, XGBoost or LightGBM, whose leaves are public.",
    )


class ForestAdapter(TreeAdapter):
    """Reads random forests and extremely randomised trees."""

    has_base = False

    def __init__(self, model: Any, pipe: Pipe, class_weight: Any = None) -> None:
        self._model = model
        is_classifier = hasattr(model, "classes_")
        if is_classifier and model.n_outputs_ > 1:
            raise refuse(model, "several targets", "Fit one forest a target.")
        if not is_classifier and model.criterion not in ("squared_error", "friedman_mse"):
            raise refuse(model, f"criterion={model.criterion!r}", "Fit it with criterion='squared_error'.")
        nodes, values = [], []
        for tree in model.estimators_:
            at = np.flatnonzero(tree.tree_.children_left == -1)
            value = tree.tree_.value[at]
            value = value[:, 0, :] if is_classifier else value[:, :, 0]
            if is_classifier:
                value = value / value.sum(axis=1, keepdims=True)
            nodes.append(at)
            values.append(value / len(model.estimators_))
        super().__init__(
            type(model).__name__,
            Leaves(nodes, values),
            pipe,
            BrierScore() if is_classifier else SquaredError(),
            _classes(model),
            n_features_in=model.n_features_in_,
            by_class=weights_by_class(model, _classes(model), class_weight),
        )

    def _reached(self, x: Any) -> np.ndarray:
        return self._model.apply(_without_names(self._model, x))

    def _margin(self, x: Any) -> np.ndarray:
        x = _without_names(self._model, x)
        if hasattr(self._model, "classes_"):
            return np.asarray(self._model.predict_proba(x))
        margin = np.asarray(self._model.predict(x))
        return margin.reshape(len(margin), -1)


def _without_names(model: Any, x: Any) -> Any:
    """Return frames as such only to a model that was fitted on one; else scikit-learn would warn."""
    names = getattr(model, "feature_names_in_", None)
    if names is not None and not hasattr(x, "columns"):
        import pandas  # the model was fitted on one of its frames

        return pandas.DataFrame(x, columns=names)
    return np.asarray(x) if names is None and hasattr(x, "columns") else x
