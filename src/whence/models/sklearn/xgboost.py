"""The adapter for XGBoost: ``Booster`` and its wrappers in scikit-learn's manner.

Leaves come from ``pred_leaf`` and their values from the model as XGBoost saves it. Early stopping counts as
in XGBoost's own ``predict``: a wrapper stops at the best iteration, a ``Booster`` takes all its trees.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import import_extra
from whence.layers.losses import Loss
from whence.layers.names import loss_named, losses_of
from whence.models.sklearn.class_weights import weights_by_class
from whence.models.sklearn.estimators import Pipe, given_loss, refuse, refuse_objective, unfitted
from whence.models.sklearn.shrinkage import strengths_of
from whence.models.sklearn.trees import Leaves, TreeAdapter, on_leaves

__all__ = ["XGBoostAdapter"]


class XGBoostAdapter(TreeAdapter):
    """Reads a booster of XGBoost.

    Parameters
    ----------
    model : xgboost.Booster or xgboost.XGBModel
    pipe : Pipe
    loss_function : Loss or str, optional
        For an objective of the user's own; see :func:`~whence.models.sklearn.estimators.given_loss`.
    class_weight : array, dict or "balanced", optional
        In place of ``scale_pos_weight``.
    reg_lambda : float, optional
        In place of the booster's own and of what its training implies.
    base_margin : str, sequence of str or True, optional
        See :func:`~whence.models.sklearn.adapter.open_sklearn`.
    """

    def __init__(
        self,
        model: Any,
        pipe: Pipe,
        loss_function: Any = None,
        class_weight: Any = None,
        reg_lambda: float | None = None,
        base_margin: Any = None,
    ) -> None:
        self._xgboost = import_extra("xgboost", "trees")
        self._model = model
        is_wrapper = hasattr(model, "get_booster")
        if is_wrapper and not model.__sklearn_is_fitted__():
            raise unfitted(model)
        self._booster = booster = model.get_booster() if is_wrapper else model
        self._n_rounds = booster.num_boosted_rounds()
        best = getattr(model, "best_iteration", None) if is_wrapper and _has_best(booster) else None
        self._range = (0, 0 if best is None else int(best) + 1)
        if not is_wrapper:
            _say_that_all_count(booster)
        pipe.expect(booster.feature_names)
        content = json.loads(bytes(booster.save_raw("json")).decode())["learner"]
        self._frame_options = {"missing": model.missing} if is_wrapper else {}
        parameters = content["learner_model_param"]
        _refuse_unknown(model, content)
        objective = content["objective"]["name"]
        custom = is_wrapper and callable(getattr(model, "objective", None))
        is_custom = custom or _is_untold(objective, parameters)
        loss = _loss_of(model, is_custom, content["objective"], loss_function)
        leaves = _leaves_of(content["gradient_booster"], self._range[1], int(parameters["num_class"]))
        n_outputs = leaves.theta.shape[1]
        trees = _trees_of(content["gradient_booster"])["trees"]
        l2, l1 = _penalties(model, booster, trees, reg_lambda)
        positive = float(content["objective"].get("reg_loss_param", {}).get("scale_pos_weight", 1))
        own = None if positive == 1 or n_outputs > 1 else np.asarray([1.0, positive])
        names = np.asarray(model.classes_) if is_wrapper and hasattr(model, "classes_") else None
        numbered = np.arange(max(2, n_outputs)) if loss.is_classification else None
        super().__init__(
            f"{type(model).__name__} with objective {objective!r}",
            leaves,
            pipe,
            loss,
            names,
            n_features_in=int(parameters["num_feature"]),
            by_class=weights_by_class(model, numbered if names is None else names, class_weight, own),
            was_held_back=reg_lambda is None,
            base_margin=base_margin,
            l2_of_sum=on_leaves(l2, loss, n_outputs, False),
            l1_of_sum=on_leaves(l1, loss, n_outputs, False),
            precision=np.float32,
        )

    def _is_current(self) -> bool:
        own = self._model.get_booster() if hasattr(self._model, "get_booster") else self._model
        return own is self._booster and own.num_boosted_rounds() == self._n_rounds

    def _any_row(self) -> Any:
        return np.full((1, self._n_features_in), np.nan)

    def _matrix(self, x: Any) -> Any:
        if isinstance(x, self._xgboost.DMatrix):
            return x
        options = dict(self._frame_options)
        if hasattr(x, "columns"):
            options["enable_categorical"] = True
        return self._xgboost.DMatrix(x, **options)

    def _predict(self, x: Any, **what: Any) -> np.ndarray:
        return self._booster.predict(
            self._matrix(x),
            iteration_range=self._range,
            strict_shape=True,
            # Columns were compared with those of the fit; arrays have no names to compare.
            validate_features=hasattr(x, "columns"),
            **what,
        )

    def _reached(self, x: Any) -> np.ndarray:
        if x.shape[1] != self._n_features_in:
            raise WhenceError(
                "inputs",
                f"shape (batch, {self._n_features_in}), as at fit",
                f"shape {tuple(x.shape)}",
                "Give the columns of the fit.",
            )
        reached = self._predict(x, pred_leaf=True)
        return np.asarray(reached).reshape(len(reached), -1)

    def _check_base_margins(self, x: Any, given: np.ndarray, columns: np.ndarray) -> None:
        matrix = self._matrix(x)
        if matrix is x:  # the user's own
            return
        matrix.set_base_margin(given.astype(np.float32))
        expected = np.asarray(self._predict(matrix, output_margin=True), dtype=np.float64)
        got = self._leaves.margins(columns, np.zeros(given.shape[1]), np.float64) + given
        if not np.allclose(got, expected, rtol=1e-4, atol=1e-4 * max(1, np.abs(expected).max(initial=0))):
            raise refuse(self._model, "base margins that do not add to its leaves", "Leave them out.")

    def _margin(self, x: Any) -> np.ndarray:
        return np.asarray(self._predict(x, output_margin=True), dtype=np.float64)


def _has_best(booster: Any) -> bool:
    return booster.attr("best_iteration") is not None


def _say_that_all_count(booster: Any) -> None:
    """Warn of trees after the best iteration, which a Booster's own ``predict`` takes too."""
    best, n_rounds = booster.attr("best_iteration"), booster.num_boosted_rounds()
    if best is None or int(best) + 1 >= n_rounds:
        return
    warn(
        f"Booster: expected one without rounds after its best, got best_iteration {best} of {n_rounds} "
        "rounds. All are explained, as Booster.predict takes all; to explain the best ones alone, pass "
        f"booster[: {int(best) + 1}]."
    )


def _refuse_unknown(model: Any, content: dict[str, Any]) -> None:
    """Raise for boosters that are not sums of one value a tree."""
    kind = content["gradient_booster"]["name"]
    if kind not in ("gbtree", "dart"):
        raise refuse(model, f"booster={kind!r}", "Train it with booster='gbtree'.")
    trees = _trees_of(content["gradient_booster"])["trees"]
    if int(content["learner_model_param"].get("num_target", 1)) > 1:
        raise refuse(model, "several targets", "Train one booster a target.")
    if any(int(tree["tree_param"].get("size_leaf_vector", 1)) > 1 for tree in trees):
        fix = "Train it with multi_strategy='one_output_per_tree'."
        raise refuse(model, "multi_strategy='multi_output_tree', trees of several outputs", fix)
    if not trees:
        raise refuse(model, "no trees", "Train it for at least one round.")


def _is_untold(objective: str, parameters: dict[str, Any]) -> bool:
    """Return whether a booster was trained without naming an objective, as with one of the user's own.

    XGBoost then notes its default, squared error, and the base score that it would have replaced by the
    mean of the targets had that been the objective.
    """
    base_score = float(str(parameters.get("base_score", "0")).strip("[]").split(",")[0])
    return (
        objective == "reg:squarederror"
        and parameters.get("boost_from_average") == "1"
        and base_score == 0.5
    )


#: The settings of objectives: where XGBoost keeps them, and what they are called here.
SETTINGS = {
    "reg:tweedie": ("tweedie_regression_param", "tweedie_variance_power", "power"),
    "reg:pseudohubererror": ("pseudo_huber_param", "huber_slope", "delta"),
}


def _loss_of(model: Any, is_custom: bool, kept: dict[str, Any], loss_function: Any) -> Loss:
    loss, objective = given_loss(loss_function), kept["name"]
    if loss is not None:
        return loss
    found = loss_named("xgboost", objective)
    if is_custom or found is None:
        what = "an objective of your own" if is_custom else f"objective={objective!r}"
        raise refuse_objective(model, what, losses_of("xgboost"))
    where, theirs, ours = SETTINGS.get(objective, ("", "", ""))
    return found.made({ours: float(kept[where][theirs])} if where else {})


def _trees_of(gradient_booster: dict[str, Any]) -> dict[str, Any]:
    if gradient_booster["name"] == "dart":
        return gradient_booster["gbtree"]["model"]
    return gradient_booster["model"]


def _leaves_of(gradient_booster: dict[str, Any], n_iterations: int, n_classes: int) -> Leaves:
    model = _trees_of(gradient_booster)
    trees, owners = model["trees"], model["tree_info"]
    n_outputs = max(1, n_classes)
    if n_iterations:
        n_parallel = int(model["gbtree_model_param"].get("num_parallel_tree", 1) or 1)
        ends = model.get("iteration_indptr")
        trees = trees[: ends[n_iterations] if ends else n_iterations * n_parallel * n_outputs]
    shares = gradient_booster.get("weight_drop", [1.0] * len(trees))
    nodes, values = [], []
    for tree, owner, share in zip(trees, owners, shares, strict=False):
        at = _leaves_reached(tree)
        column = np.zeros((len(at), n_outputs))
        # Of a leaf, what stands in the place of a split's condition is its value.
        leaf_values = np.asarray(tree["split_conditions"], dtype=np.float32)[at]
        column[:, owner] = leaf_values * np.float32(share)
        nodes.append(at)
        values.append(column)
    return Leaves(nodes, values)


def _leaves_reached(tree: dict[str, Any]) -> np.ndarray:
    """Return the numbers of a tree's leaves: pruned nodes stay in it, below what became a leaf."""
    left, right = np.asarray(tree["left_children"]), np.asarray(tree["right_children"])
    reached, level = np.zeros(len(left), dtype=bool), np.asarray([0])
    while level.size:
        reached[level] = True
        level = level[left[level] != -1]
        level = np.concatenate([left[level], right[level]])
    return np.flatnonzero(reached & (left == -1))


def _penalties(model: Any, booster: Any, trees: Any, reg_lambda: float | None) -> tuple[float, float]:
    """Return the L2 and L1 strengths on leaf values that a booster was trained with.

    One that was loaded from a file names XGBoost's defaults, whatever they were: its splits tell.
    """
    parameters = _train_parameters(booster)
    l2, l1 = float(parameters.get("lambda", 1.0)), float(parameters.get("alpha", 0.0))
    found = strengths_of(trees, l2)
    if not l1 and found.reg_alpha:
        l1 = found.reg_alpha
    if reg_lambda is not None:
        return reg_lambda, l1
    if found.reg_lambda is not None:
        return found.reg_lambda, l1
    was_named = getattr(model, "reg_lambda", None) is not None
    if l2 == 1.0 and not l1 and not was_named and len(trees) > 1:
        warn(
            f"{type(model).__name__}: expected splits that tell the reg_lambda that they were found with, "
            "since XGBoost does not save it, got ones that do not; 1 is taken. Pass the one of the "
            "training if the model was loaded from a file: InfluenceModel(model, reg_lambda=...)."
        )
    return l2, l1


def _train_parameters(booster: Any) -> dict[str, Any]:
    config = json.loads(booster.save_config())["learner"]["gradient_booster"]
    if "gbtree" in config:
        config = config["gbtree"]
    return config.get("tree_train_param", {})
