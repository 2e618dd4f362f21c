"""Estimators that are no dense layer: why, and what works instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whence._errors import WhenceError

__all__ = ["refuse_estimator"]

_AVERAGE = "it averages models, each of which can be explained by itself"
_STACK = "its last model sees what others predict"
_THRESHOLD = "it decides at a threshold of its own"

#: Of a class, or of the class that it is made from: why, and what to do.
REASONS: dict[str, tuple[str, str]] = {
    "CalibratedClassifierCV": (
        "it bends the scores of models that were fitted on parts of the training set",
        "Explain one of them: model.calibrated_classifiers_[0].estimator.",
    ),
    "VotingClassifier": (_AVERAGE, "Explain one of model.estimators_."),
    "VotingRegressor": (_AVERAGE, "Explain one of model.estimators_."),
    "BaggingClassifier": (_AVERAGE, "Explain one of model.estimators_, or use a random forest."),
    "BaggingRegressor": (_AVERAGE, "Explain one of model.estimators_, or use a random forest."),
    "StackingClassifier": (_STACK, "Explain model.final_estimator_ on model.transform(X)."),
    "StackingRegressor": (_STACK, "Explain model.final_estimator_ on model.transform(X)."),
    "TransformedTargetRegressor": (
        "it predicts in other units than those that it was fitted in",
        "Explain model.regressor_, with labels in its units: model.transformer_.transform(y[:, None]).",
    ),
    "OneVsRestClassifier": (
        "it holds a model for each class",
        "Explain one of model.estimators_, with labels y == model.classes_[i].",
    ),
    "OneVsOneClassifier": (
        "it holds a model for each pair of classes",
        "Use LogisticRegression or LinearSVC, which know all classes.",
    ),
    "MultiOutputClassifier": (
        "it holds a model for each label",
        "Explain one of model.estimators_, with labels y[:, i].",
    ),
    "MultiOutputRegressor": (
        "it holds a model for each value",
        "Explain one of model.estimators_, with labels y[:, i].",
    ),
    "TunedThresholdClassifierCV": (_THRESHOLD, "Explain model.estimator_, which gives the same scores."),
    "FixedThresholdClassifier": (_THRESHOLD, "Explain model.estimator_, which gives the same scores."),
    "DecisionTreeClassifier": ("it is a single tree", "Use RandomForestClassifier(1, bootstrap=False)."),
    "DecisionTreeRegressor": ("it is a single tree", "Use RandomForestRegressor(1, bootstrap=False)."),
}


def refuse_estimator(final: Any, known: Iterable[str]) -> WhenceError:
    """Return the error for an estimator that is not known: the reason, and then what works."""
    for kind in type(final).__mro__:
        if kind.__name__ in REASONS:
            why, fix = REASONS[kind.__name__]
            got = f"a {type(final).__name__}: {why}"
            return WhenceError("model", "a model that is one dense layer with a smooth loss", got, fix)
    if hasattr(final, "estimator") and hasattr(final, "refit"):
        got = f"a {type(final).__name__} without best_estimator_"
        return WhenceError("model", "a search that was fitted, with refit=True", got, "Fit it so.")
    return WhenceError(
        "model",
        f"one of {', '.join(known)}, a model of XGBoost or LightGBM, or a pipeline or search of one",
        f"a {type(final).__name__}",
        "Explain one of these that was fitted on the same samples.",
    )
