"""Losses of classifiers that are not trained by cross-entropy: on margins, on votes; and of counts.

A loss on margins takes each output as a classifier of its own, of its class against the rest, with
labels 0 and 1: ``ell(u) = (1/C) sum_c h(s_c u_c)``, ``s_c = 2 y_c - 1``. Then, since ``s_c^2 = 1``::

    d ell / d u_a        = s_a h'(s_a u_a) / C
    d2 ell / d u_a d u_b = [a = b] h''(s_a u_a) / C
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, astype, namespace, one_hot
from whence.layers.curvature import Curvature
from whence.layers.losses import BinaryCrossEntropy, Loss, SquaredError, sigmoid, softplus
from whence.layers.names import known_as

__all__ = [
    "BrierScore",
    "Exponential",
    "MarginLoss",
    "ModifiedHuber",
    "Poisson",
    "SquaredHinge",
    "SquaredMargin",
]


class MarginLoss(BinaryCrossEntropy):
    """A loss ``h`` on margins, from ``h`` and its derivatives; labels are those of cross-entropy."""

    @abstractmethod
    def _h(self, margin: Array) -> tuple[Array, Array, Array]:
        """Return ``h``, ``h'`` and ``h''``."""

    def _signs(self, u: Array, target: Array) -> Array:
        return 2 * self._rows(u, target) - 1

    def value(self, u: Array, target: Array) -> Array:
        return namespace(u).mean(self._h(self._signs(u, target) * u)[0], axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        signs = self._signs(u, target)
        return signs * self._h(signs * u)[1] / u.shape[1]

    def curvature(self, u: Array, target: Array) -> Curvature:
        return Curvature(diagonal=self._h(self._signs(u, target) * u)[2] / u.shape[1])

    def following(self, u: Array) -> tuple[Loss, Array]:
        return Loss.following(self, u)


@known_as("sklearn.linear_model", "squared_hinge")
@dataclass(frozen=True)
class SquaredHinge(MarginLoss):
    """``h(m) = max(0, 1 - m)^2``, whose second derivative is 2 below 1 and 0 above.

    Examples
    --------
    >>> loss, u, y = SquaredHinge(), np.asarray([[0.5]]), np.asarray([[0.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([2.25]), array([[3.]]), array([[2.]]))
    """

    name = "squared hinge"

    def _h(self, margin: Array) -> tuple[Array, Array, Array]:
        xp = namespace(margin)
        gap = xp.maximum(1 - margin, xp.zeros_like(margin))
        return gap**2, -2 * gap, 2 * astype(gap > 0, margin.dtype)


@dataclass(frozen=True)
class SquaredMargin(MarginLoss):
    """``h(m) = (1 - m)^2``: squared error of labels -1 and 1.

    Examples
    --------
    >>> loss, u, y = SquaredMargin(), np.asarray([[0.5]]), np.asarray([[0.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([2.25]), array([[3.]]), array([[2.]]))
    """

    name = "squared error of labels -1 and 1"

    def _h(self, margin: Array) -> tuple[Array, Array, Array]:
        gap = 1 - margin
        return gap**2, -2 * gap, 2 * namespace(margin).ones_like(margin)


@known_as("sklearn.linear_model", "modified_huber")
@dataclass(frozen=True)
class ModifiedHuber(MarginLoss):
    """``h(m) = max(0, 1 - m)^2`` from -1 on, and ``-4 m`` below.

    Examples
    --------
    >>> loss, u, y = ModifiedHuber(), np.asarray([[3.0]]), np.asarray([[0.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([12.]), array([[4.]]), array([[0.]]))
    """

    name = "modified Huber"

    def _h(self, margin: Array) -> tuple[Array, Array, Array]:
        xp = namespace(margin)
        gap = xp.maximum(1 - margin, xp.zeros_like(margin))
        far = margin < -1
        bent = 2 * astype((gap > 0) & ~far, margin.dtype)
        slope = xp.where(far, xp.full_like(margin, -4.0), -2 * gap)
        return xp.where(far, -4 * margin, gap**2), slope, bent


@known_as("sklearn.ensemble", "exponential")
@dataclass(frozen=True)
class Exponential(MarginLoss):
    """``h(m) = exp(-m)``, the loss of AdaBoost.

    Examples
    --------
    >>> loss, u, y = Exponential(), np.asarray([[0.0]]), np.asarray([[1.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([1.]), array([[-1.]]), array([[1.]]))
    """

    name = "exponential"

    def _h(self, margin: Array) -> tuple[Array, Array, Array]:
        weight = namespace(margin).exp(-margin)
        return weight, -weight, weight


@dataclass(frozen=True)
class BrierScore(SquaredError):
    """Squared error of predicted class shares, such as the votes of a forest, averaged over classes.

    Examples
    --------
    >>> loss, votes = BrierScore(), np.asarray([[0.75, 0.25]])
    >>> target = loss.encode(np.asarray([1]), 2, "batch 0")
    >>> loss.value(votes, target), loss.residual(votes, target), loss.margin(votes, target)
    (array([0.5625]), array([[ 0.75, -0.75]]), array([-0.5]))
    """

    name = "Brier score"
    is_classification = True
    margin_compares_outputs = True

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        labels = np.asarray(labels)
        if labels.ndim == 1 and labels.dtype.kind in "iu" and n_outputs > 1:
            inside = (labels >= 0) & (labels < n_outputs)
            if not inside.all():
                raise WhenceError(
                    f"labels in {where}",
                    f"class numbers from 0 to {n_outputs - 1}",
                    f"class {labels[~inside][0]}",
                    "Number the classes from 0.",
                )
            return one_hot(labels, n_outputs, np.float64)
        return super().encode(labels, n_outputs, where)

    def margin(self, u: Array, target: Array) -> Array:
        xp = namespace(u)
        given = one_hot(self.given_output(target), u.shape[1], xp.bool)
        lowest = xp.full_like(u, -xp.inf)
        return xp.max(xp.where(given, u, lowest), axis=1) - xp.max(xp.where(given, lowest, u), axis=1)

    def following(self, u: Array) -> tuple[Loss, Array]:
        return SquaredError(), u


@known_as("keras", "Poisson", tail="exp")
@known_as("torch", "PoissonNLLLoss")
@known_as("xgboost", "count:poisson")
@known_as("lightgbm", "poisson")
@known_as("sklearn.ensemble", "poisson")
@known_as("whence", "poisson")
@dataclass(frozen=True)
class Poisson(Loss):
    """Minus the log-likelihood of counts with a logarithmic link, averaged over the outputs.

    ``ell(u) = exp(u) - y log(exp(u) + eps)``

    Parameters
    ----------
    eps : float, default=0.0
        What some frameworks add to the mean before they take its logarithm. Without it, the second term is
        ``y u``.
    says_log : bool, default=False
        Whether predictions are given as the logarithms of the means, as by models that give these.

    Notes
    -----
    With ``s = exp(u) / (exp(u) + eps)``, which is 1 without ``eps``::

        d ell / d u   = exp(u) - y s
        d2 ell / d u2 = exp(u) - y s (1 - s)

    Examples
    --------
    >>> loss, u, y = Poisson(), np.asarray([[0.0]]), np.asarray([[3.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([1.]), array([[-2.]]), array([[1.]]))
    """

    eps: float = 0.0
    says_log: bool = False
    name = "Poisson"
    outputs_are_independent = True
    is_classification = False
    margin_compares_outputs = False

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        rows = SquaredError().encode(labels, n_outputs, where)
        if rows.min(initial=0) < 0:
            raise WhenceError(
                f"labels in {where}", "numbers >= 0", f"{rows.min():g}", "Counts are not negative."
            )
        return rows

    def value(self, u: Array, target: Array) -> Array:
        xp = namespace(u)
        logarithm = u
        if self.eps:
            lowest = math.log(self.eps)
            logarithm = lowest + softplus(u - lowest)
        return xp.mean(xp.exp(u) - astype(target, u.dtype) * logarithm, axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        rows = astype(target, u.dtype)
        if self.eps:
            rows = rows * sigmoid(u - math.log(self.eps))
        return (namespace(u).exp(u) - rows) / u.shape[1]

    def curvature(self, u: Array, target: Array) -> Curvature:
        bent = namespace(u).exp(u)
        if self.eps:
            above = u - math.log(self.eps)
            bent = bent - astype(target, u.dtype) * sigmoid(above) * sigmoid(-above)
        return Curvature(diagonal=bent / u.shape[1])

    def margin(self, u: Array, target: Array) -> Array:
        return -self.value(u, target)

    def predictions(self, u: Array) -> Array:
        """Return the predicted means, shape ``(n,)`` or ``(n, C)``."""
        return super().predictions(u if self.says_log else namespace(u).exp(u))

    def following(self, u: Array) -> tuple[Loss, Array]:
        return self, namespace(u).exp(u) + self.eps

    def fingerprint(self) -> str:
        return f"{self.name}, eps={self.eps:g}" if self.eps else self.name
