"""A loss at pre-activations to which each sample adds numbers of its own: ``ell(u + m)``.

``m`` is what boosters call ``base_margin`` or ``init_score``, such as the logarithm of an exposure. It
stands beside the label in each sample's target, since it is data, and no weight moves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, astype, namespace
from whence.layers.curvature import Curvature
from whence.layers.losses import Loss

__all__ = ["WithBaseMargins"]


@dataclass(frozen=True)
class WithBaseMargins(Loss):
    """``ell(u + m)``, for targets ``(n, t + C)`` whose last ``C`` columns are ``m``.

    Parameters
    ----------
    loss : Loss
        ``ell``, with one label a sample.
    n_outputs : int
        ``C``.

    Examples
    --------
    >>> from whence.layers.losses import SquaredError
    >>> loss = WithBaseMargins(SquaredError(), 1)
    >>> loss.value(np.asarray([[1.0]]), np.asarray([[7.0, 4.0]]))  # (1 + 4 - 7)^2
    array([4.])
    """

    loss: Loss
    n_outputs: int

    def __post_init__(self) -> None:
        for name in (
            "name",
            "outputs_are_independent",
            "curvature_is_constant",
            "curvature_is_dense",
            "is_shift_invariant",
            "is_classification",
            "outputs_are_tags",
        ):
            object.__setattr__(self, name, getattr(self.loss, name))
        object.__setattr__(self, "margin_compares_outputs", False)  # of scores that hold no margins

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        rows = np.asarray(labels, dtype=np.float64)
        given = rows[:, : -self.n_outputs]
        if given.shape[1] == 1 and self.is_classification and n_outputs > 1:
            given = given[:, 0].astype(np.int64)
        encoded = self.loss.encode(given, n_outputs, where)
        return np.column_stack([encoded, rows[:, -self.n_outputs :]])

    def _split(self, target: Array) -> tuple[Array, Array]:
        given, margins = target[:, : -self.n_outputs], target[:, -self.n_outputs :]
        if given.shape[1] == 1 and self.is_classification and self.n_outputs > 1:
            given = astype(given[:, 0], namespace(target).int64)
        return given, margins

    def with_margins(self, u: Array, target: Array) -> Array:
        return u + astype(self._split(target)[1], u.dtype)

    def value(self, u: Array, target: Array) -> Array:
        return self.loss.value(self.with_margins(u, target), self._split(target)[0])

    def residual(self, u: Array, target: Array) -> Array:
        return self.loss.residual(self.with_margins(u, target), self._split(target)[0])

    def curvature(self, u: Array, target: Array) -> Curvature:
        return self.loss.curvature(self.with_margins(u, target), self._split(target)[0])

    def margin(self, u: Array, target: Array) -> Array:
        return self.loss.margin(self.with_margins(u, target), self._split(target)[0])

    def given_output(self, target: Array) -> Array:
        return self.loss.given_output(self._split(target)[0])

    def label_kind(self, n_outputs: int) -> str:
        return self.loss.label_kind(n_outputs)

    def predictions(self, u: Array) -> Array:
        return self.loss.predictions(u)

    def labels(self, target: Array) -> Array:
        return self.loss.labels(self._split(target)[0])

    def following(self, u: Array) -> tuple[Loss, Array]:
        raise WhenceError(
            f"loss {self.name!r}",
            "one without base margins, to take predictions for labels",
            "one with base margins",
            "Use the given labels: fit_to='labels'.",
        )

    def fingerprint(self) -> str:
        return f"{self.loss.fingerprint()}, with base margins"
