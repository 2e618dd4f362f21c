"""The adapter for LightGBM: ``Booster`` and its wrappers in scikit-learn's manner.

Leaves come from ``pred_leaf`` and their values from ``get_leaf_output``; tree ``t`` is for class
``t mod C``. The base score stands in the leaves of the first trees, and is taken out of them. With early
stopping the trees up to the best iteration count, as in LightGBM's own ``predict``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from whence.layers.losses import Loss
from whence.layers.names import loss_named, losses_of
from whence.models.sklearn.class_weights import Counted, times, unbalanced, weights_by_class
from whence.models.sklearn.estimators import Pipe, given_loss, refuse, refuse_objective, unfitted
from whence.models.sklearn.shrinkage import base_in_leaves
from whence.models.sklearn.trees import Leaves, TreeAdapter, on_leaves

__all__ = ["LightGBMAdapter"]


class LightGBMAdapter(TreeAdapter):
    """Reads a booster of LightGBM.

    Parameters
    ----------
    model : lightgbm.Booster or lightgbm.LGBMModel
    pipe : Pipe
    loss_function : Loss or str, optional
        For an objective of the user's own; see :func:`~whence.models.sklearn.estimators.given_loss`.
    class_weight : array, dict or "balanced", optional
        In place of the model's own, ``scale_pos_weight`` and ``is_unbalance``.
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
        self._model = model
        is_wrapper = hasattr(model, "get_params")
        if is_wrapper and not model.__sklearn_is_fitted__():
            raise unfitted(model)
        self._booster = booster = model.booster_ if is_wrapper else model
        self._n_trees = booster.num_trees()
        text = booster.model_to_string()
        parameters = dict(re.findall(r"^\[(\w+): (.*)\]$", text, flags=re.MULTILINE))
        _refuse_unknown(model, text, parameters)
        found = re.search(r"^objective=(.*)$", text, flags=re.MULTILINE)
        objective = found.group(1) if found else "custom"
        loss = _loss_of(model, objective, parameters, loss_function)
        n_outputs = booster.num_model_per_iteration()
        against_rest = objective.startswith("multiclassova")
        names = np.asarray(model.classes_) if is_wrapper and hasattr(model, "classes_") else None
        if against_rest and names is None:
            names = np.arange(n_outputs)
        columns = booster.feature_name()
        without = columns == [f"Column_{number}" for number in range(len(columns))]  # trained on an array
        pipe.expect(None if without else columns, lambda name: re.sub(r"\s", "_", name))
        numbered = np.arange(max(2, n_outputs)) if loss.is_classification else None
        own = _own_class_weights(objective, parameters)
        l2 = float(parameters.get("lambda_l2", 0)) if reg_lambda is None else reg_lambda
        l1 = float(parameters.get("lambda_l1", 0))
        from_average = objective != "custom" and parameters.get("boost_from_average") == "1"
        held = float(parameters.get("lambda_l2", 0)), l1, from_average
        leaves = _leaves_of(booster, text, n_outputs, *held)
        super().__init__(
            f"{type(model).__name__} with objective {objective!r}",
            leaves,
            pipe,
            loss,
            names,
            n_features_in=booster.num_feature(),
            one_against_rest=against_rest,
            by_class=weights_by_class(model, numbered if names is None else names, class_weight, own),
            was_held_back=reg_lambda is None,
            base_margin=base_margin,
            l2_of_sum=on_leaves(l2, loss, n_outputs, against_rest),
            l1_of_sum=on_leaves(l1, loss, n_outputs, against_rest),
        )

    def _is_current(self) -> bool:
        own = self._model.booster_ if hasattr(self._model, "booster_") else self._model
        return own is self._booster and own.num_trees() == self._n_trees

    def _reached(self, x: Any) -> np.ndarray:
        reached = np.asarray(self._booster.predict(x, pred_leaf=True))
        return reached.reshape(len(reached), -1)

    def _check_base_margins(self, x: Any, given: np.ndarray, columns: np.ndarray) -> None:
        if np.abs(self._base).max() > 1e-9:  # LightGBM finds one only where training was given none
            what = f"a base score of its own, {self._base}, and so trained without init_score"
            raise refuse(self._model, what, "Leave base_margin out.")

    def _margin(self, x: Any) -> np.ndarray:
        margin = np.asarray(self._booster.predict(x, raw_score=True), dtype=np.float64)
        return margin.reshape(len(margin), -1)


def _own_class_weights(objective: str, parameters: dict[str, str]) -> np.ndarray | Counted | None:
    """Return what LightGBM's own settings count the two classes of its logistic loss."""
    if objective.split(" ")[0] != "binary":
        return None
    positive = float(parameters.get("scale_pos_weight", 1))
    counted = Counted(unbalanced, 2) if parameters.get("is_unbalance") == "1" else None
    return times(None if positive == 1 else np.asarray([1.0, positive]), counted)


def _refuse_unknown(model: Any, text: str, parameters: dict[str, str]) -> None:
    """Raise for boosters that are not sums of one value a tree."""
    if parameters.get("linear_tree") == "1" or re.search(r"^is_linear=1$", text, flags=re.MULTILINE):
        raise refuse(model, "linear_tree=True", "Train it with constant leaves.")
    if re.search(r"^average_output$", text, flags=re.MULTILINE):
        raise refuse(model, "boosting='rf', whose trees are averaged", "Use a forest of scikit-learn.")
    if parameters.get("reg_sqrt") == "1":
        raise refuse(model, "reg_sqrt=True", "Train it on the square roots of the targets yourself.")


#: The settings of objectives: what LightGBM calls them, and what they are called here.
SETTINGS = {
    "huber": ("alpha", "delta"),
    "fair": ("fair_c", "scale"),
    "tweedie": ("tweedie_variance_power", "power"),
}


def _loss_of(model: Any, objective: str, parameters: dict[str, str], loss_function: Any) -> Loss:
    loss = given_loss(loss_function)
    if loss is not None:
        return loss
    kind, *settings = objective.split(" ")
    if any(setting.startswith("sigmoid:") and float(setting[8:]) != 1 for setting in settings):
        raise refuse(model, f"objective {objective!r}", "Train it with sigmoid=1.")
    found = loss_named("lightgbm", kind)
    if found is not None:
        theirs, ours = SETTINGS.get(kind, ("", ""))
        return found.made({ours: float(parameters[theirs])} if theirs in parameters else {})
    what = "an objective of your own" if kind == "custom" else f"objective {kind!r}"
    raise refuse_objective(model, what, losses_of("lightgbm"))


def _leaves_of(booster: Any, text: str, n_outputs: int, l2: float, l1: float, from_average: bool) -> Leaves:
    counts = [int(n) for n in re.findall(r"^num_leaves=(\d+)$", text, flags=re.MULTILINE)]
    if not counts:
        raise refuse(booster, "no trees", "Train it for at least one round.")
    shares = [float(share) for share in re.findall(r"^shrinkage=(.+)$", text, flags=re.MULTILINE)]
    hessians = re.findall(r"^leaf_weight=(.+)$", text, flags=re.MULTILINE)
    nodes, values = [], []
    for tree, n_leaves in enumerate(counts):
        column = np.zeros((n_leaves, n_outputs))
        own = np.asarray([booster.get_leaf_output(tree, leaf) for leaf in range(n_leaves)])
        # What LightGBM adds to a first tree makes its shrinkage 1, whatever that of the others.
        has_base = shares[tree] == 1 and (from_average if shares[-1] == 1 else True)
        if tree < n_outputs and has_base and n_leaves > 1:
            weight = np.asarray(hessians[tree].split(), dtype=np.float64)
            own = own - base_in_leaves(own, weight, l2, l1 * shares[-1])
        column[:, tree % n_outputs] = own
        nodes.append(np.arange(n_leaves))
        values.append(column)
    return Leaves(nodes, values)
