"""Losses on values beside squared error: of positive values, robust ones, and of logarithms.

Each is a function ``h(u, y)`` of one output, averaged over the outputs::

    ell(u) = (1/C) sum_c h(u_c, y_c),   r_c = h'(u_c, y_c) / C,   K = diag(h''(u_c, y_c)) / C
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, astype, namespace
from whence.layers.curvature import Curvature
from whence.layers.losses import Loss, SquaredError
from whence.layers.names import known_as

__all__ = ["Fair", "Gamma", "Huber", "LossOnValues", "PseudoHuber", "SquaredLogError", "Tweedie"]


class LossOnValues(Loss):
    """A loss ``h`` on each output, from ``h`` and its derivatives."""

    outputs_are_independent = True
    is_classification = False
    margin_compares_outputs = False
    #: The least label, and whether labels may be equal to it.
    least: tuple[float, bool] = (-np.inf, True)

    @abstractmethod
    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        """Return ``h``, ``h'`` and ``h''``."""

    def _mean_of(self, u: Array) -> Array:
        """Return the value that pre-activations predict."""
        return u

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        rows = SquaredError().encode(labels, n_outputs, where)
        least, may_equal = self.least
        lowest = rows.min(initial=np.inf)
        if lowest < least or (lowest == least and not may_equal):
            expected = f"numbers {'>=' if may_equal else '>'} {least:g}, for loss {self.name}"
            raise WhenceError(f"labels in {where}", expected, f"{lowest:g}", "Drop these samples.")
        return rows

    def _parts(self, u: Array, target: Array) -> tuple[Array, Array, Array]:
        return self._h(u, astype(target, u.dtype))

    def value(self, u: Array, target: Array) -> Array:
        return namespace(u).mean(self._parts(u, target)[0], axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        return self._parts(u, target)[1] / u.shape[1]

    def curvature(self, u: Array, target: Array) -> Curvature:
        return Curvature(diagonal=self._parts(u, target)[2] / u.shape[1])

    def margin(self, u: Array, target: Array) -> Array:
        return -self.value(u, target)

    def predictions(self, u: Array) -> Array:
        """Return the predicted values, shape ``(n,)`` or ``(n, C)``."""
        return super().predictions(self._mean_of(u))

    def following(self, u: Array) -> tuple[Loss, Array]:
        return self, self._mean_of(u)

    def fingerprint(self) -> str:
        settings = ", ".join(f"{name}={value:g}" for name, value in vars(self).items())
        return f"{self.name}, {settings}" if settings else self.name


@known_as("xgboost", "reg:gamma")
@known_as("lightgbm", "gamma")
@known_as("sklearn.ensemble", "gamma")
@known_as("whence", "gamma")
@dataclass(frozen=True)
class Gamma(LossOnValues):
    """Minus the log-likelihood of a gamma distribution with a logarithmic link: ``u + y exp(-u)``.

    Examples
    --------
    >>> loss, u, y = Gamma(), np.asarray([[0.0]]), np.asarray([[3.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([3.]), array([[-2.]]), array([[3.]]))
    """

    name = "gamma"
    least = (0.0, False)

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        scaled = y * namespace(u).exp(-u)
        return u + scaled, 1 - scaled, scaled

    def _mean_of(self, u: Array) -> Array:
        return namespace(u).exp(u)


@known_as("xgboost", "reg:tweedie")
@known_as("lightgbm", "tweedie")
@known_as("whence", "tweedie")
@dataclass(frozen=True)
class Tweedie(LossOnValues):
    """Minus the log-likelihood of a Tweedie distribution with a logarithmic link.

    ``h = -y exp((1 - p) u) / (1 - p) + exp((2 - p) u) / (2 - p)``

    Parameters
    ----------
    power : float, default=1.5
        ``p``, between 1 and 2.

    Examples
    --------
    >>> loss, u, y = Tweedie(1.5), np.asarray([[0.0]]), np.asarray([[3.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([8.]), array([[-2.]]), array([[2.]]))
    """

    power: float = 1.5
    name = "Tweedie"
    least = (0.0, True)

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        xp, one, two = namespace(u), 1 - self.power, 2 - self.power
        first, second = y * xp.exp(one * u), xp.exp(two * u)
        return second / two - first / one, second - first, two * second - one * first

    def _mean_of(self, u: Array) -> Array:
        return namespace(u).exp(u)


@known_as("xgboost", "reg:pseudohubererror")
@dataclass(frozen=True)
class PseudoHuber(LossOnValues):
    """``h = d^2 (sqrt(1 + (u - y)^2 / d^2) - 1)``.

    Parameters
    ----------
    delta : float, default=1.0
        ``d``, from which on it turns from quadratic to linear.

    Examples
    --------
    >>> loss, u, y = PseudoHuber(3.0), np.asarray([[4.0]]), np.asarray([[0.0]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([6.]), array([[2.4]]), array([[0.216]]))
    """

    delta: float = 1.0
    name = "pseudo-Huber"

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        gap = u - y
        root = namespace(u).sqrt(1 + (gap / self.delta) ** 2)
        return self.delta**2 * (root - 1), gap / root, 1 / root**3


@known_as("lightgbm", "huber")
@dataclass(frozen=True)
class Huber(LossOnValues):
    """``h = (u - y)^2 / 2`` up to a distance of ``d``, and ``d (|u - y| - d / 2)`` beyond.

    Parameters
    ----------
    delta : float, default=1.0
        ``d``.

    Examples
    --------
    >>> loss, u, y = Huber(2.0), np.asarray([[5.0], [1.0]]), np.asarray([[0.0], [0.0]])
    >>> loss.value(u, y), loss.residual(u, y).ravel(), loss.curvature(u, y).diagonal.ravel()
    (array([8. , 0.5]), array([2., 1.]), array([0., 1.]))
    """

    delta: float = 1.0
    name = "Huber"

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        xp = namespace(u)
        gap = u - y
        is_near = xp.abs(gap) <= self.delta
        far = self.delta * (xp.abs(gap) - self.delta / 2)
        slope = xp.where(is_near, gap, self.delta * xp.sign(gap))
        return xp.where(is_near, gap**2 / 2, far), slope, astype(is_near, u.dtype)


@known_as("lightgbm", "fair")
@dataclass(frozen=True)
class Fair(LossOnValues):
    """``h = c |z| - c^2 log(1 + |z| / c)`` of the distance ``z = u - y``.

    Parameters
    ----------
    scale : float, default=1.0
        ``c``.

    Examples
    --------
    >>> loss, u, y = Fair(1.0), np.asarray([[3.0]]), np.asarray([[0.0]])
    >>> loss.value(u, y).round(4), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([1.6137]), array([[0.75]]), array([[0.0625]]))
    """

    scale: float = 1.0
    name = "fair"

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        xp, c = namespace(u), self.scale
        gap = u - y
        size = xp.abs(gap)
        return c * size - c**2 * xp.log1p(size / c), c * gap / (size + c), (c / (size + c)) ** 2


@known_as("xgboost", "reg:squaredlogerror")
@dataclass(frozen=True)
class SquaredLogError(LossOnValues):
    """``h = (log(1 + u) - log(1 + y))^2 / 2``, for predictions above -1.

    Examples
    --------
    >>> loss, u, y = SquaredLogError(), np.asarray([[0.0]]), np.asarray([[np.e - 1]])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).diagonal
    (array([0.5]), array([[-1.]]), array([[2.]]))
    """

    name = "squared error of logarithms"
    least = (-1.0, False)

    def _h(self, u: Array, y: Array) -> tuple[Array, Array, Array]:
        xp = namespace(u)
        # XGBoost's own bound: below it the logarithm is not there.
        u = xp.maximum(u, xp.full_like(u, -1 + 1e-6))
        gap = xp.log1p(u) - xp.log1p(y)
        return gap**2 / 2, gap / (1 + u), (1 - gap) / (1 + u) ** 2
