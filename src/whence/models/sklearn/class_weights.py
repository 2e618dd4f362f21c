"""What training counted each class: read from an estimator, given, or counted from its labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError

__all__ = ["Counted", "balanced", "times", "unbalanced", "weights_by_class"]

#: Estimators whose "balanced" counts a sample by its weight, where scikit-learn can.
WEIGHTED = ("LogisticRegression", "LogisticRegressionCV", "LinearSVC")


@dataclass(frozen=True)
class Counted:
    """Class weights that follow from how often each class is in the training set.

    Parameters
    ----------
    rule : callable
        Returns the weights ``(C,)`` for counts ``(C,)``.
    n_classes : int
    by_weight : bool, default=False
        Whether a sample counts by its weight.

    Examples
    --------
    >>> weights = Counted(balanced, 2)
    >>> weights([(np.asarray([0, 0, 0, 1]), None)])
    array([0.66666667, 2.        ])
    """

    rule: Callable[[np.ndarray], np.ndarray]
    n_classes: int
    by_weight: bool = False

    def __call__(self, labelled: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        """Return the weights ``(C,)`` for class numbers and sample weights, batch by batch."""
        counts = np.zeros(self.n_classes)
        for numbers, weight in labelled:
            weight = weight if self.by_weight else None
            counts += np.bincount(numbers, weights=weight, minlength=self.n_classes)
        if (counts == 0).any():
            got = f"none of class number {int(np.argmin(counts))}"
            fix = "Give the training set of the fit, or the numbers: class_weight={class: weight}."
            raise WhenceError("class_weight", "a training set with samples of each class", got, fix)
        return self.rule(counts)


def balanced(counts: np.ndarray) -> np.ndarray:
    """Return scikit-learn's weights: each class counts the same in sum, and a sample 1 on average."""
    return counts.sum() / (len(counts) * counts)


def unbalanced(counts: np.ndarray) -> np.ndarray:
    """Return LightGBM's ``is_unbalance`` of two classes: the rarer one counts as much as the other.

    >>> unbalanced(np.asarray([30.0, 10.0]))
    array([1., 3.])
    """
    return np.asarray(counts.max() / counts)


def times(one: np.ndarray | Counted | None, other: np.ndarray | Counted | None) -> Any:
    """Return the product of two class weights, either of which may be counted or None.

    >>> times(np.asarray([1.0, 2.0]), np.asarray([3.0, 3.0]))
    array([3., 6.])
    """
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one * other
    kind = one if isinstance(one, Counted) else other
    assert isinstance(kind, Counted)

    def both(counts: np.ndarray) -> np.ndarray:
        first, second = (w.rule(counts) if isinstance(w, Counted) else w for w in (one, other))
        return first * second

    return Counted(both, kind.n_classes, kind.by_weight)


def weights_by_class(
    model: Any, names: Any, given: Any, own: np.ndarray | Counted | None = None
) -> np.ndarray | Counted | None:
    """Return what training counts each class, in the order of ``names``, or None.

    Parameters
    ----------
    model : estimator
        Its ``class_weight`` is taken if it has one.
    names : sequence or None
        The classes; ``None`` for a model that has none.
    given : array, dict, "balanced" or None
        In place of all that the model says itself.
    own : array, Counted or None
        What else the model says of its classes, to be multiplied with its ``class_weight``.
    """
    if given is None:
        return times(_read(model, names, getattr(model, "class_weight", None), False), own)
    if names is None:
        got = f"a {type(model).__name__} on values"
        raise WhenceError("class_weight", "a classifier of one label a sample", got, "Leave it out.")
    return _read(model, names, given, True)


def _read(model: Any, names: Any, wanted: Any, is_given: bool) -> np.ndarray | Counted | None:
    if wanted is None or names is None:
        return None
    names = np.asarray(names).tolist()
    if isinstance(wanted, str):
        return _counted(model, wanted, len(names), is_given)
    if isinstance(wanted, dict):
        unknown = [name for name in wanted if name not in names]
        if unknown and is_given:
            expected = f"the classes of the fit: {', '.join(map(str, names[:10]))}"
            raise WhenceError("class_weight", expected, f"{unknown[0]!r}", "Name them as in classes_.")
        wanted = [wanted.get(name, 1.0) for name in names]
    try:
        array = np.asarray(wanted, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.shape != (len(names),) or not np.isfinite(array).all() or (array < 0).any():
        expected = f"{len(names)} numbers >= 0, or a dict, or 'balanced'"
        raise WhenceError("class_weight", expected, repr(wanted), "Order them by classes_.")
    return array


def _counted(model: Any, wanted: str, n_classes: int, is_given: bool) -> Counted:
    if wanted != "balanced":
        got = repr(wanted) if is_given else f"{type(model).__name__}(class_weight={wanted!r})"
        fix = "Fit with class_weight='balanced', or with numbers."
        if is_given:
            fix = "Pass the numbers: class_weight={class: weight}."
        raise WhenceError("class_weight", "'balanced', or a number for each class", got, fix)
    kinds = {base.__name__ for base in type(model).__mro__}
    return Counted(balanced, n_classes, bool(kinds & set(WEIGHTED)) and _sklearn_counts_by_weight())


def _sklearn_counts_by_weight() -> bool:
    from sklearn.utils.class_weight import compute_class_weight

    return "sample_weight" in inspect.signature(compute_class_weight).parameters
