"""The table that drives the tests of the mathematics: losses x bias x sample weights.

Every number is one that float32 holds exactly, so that both precisions and every library of arrays work
on the same problem, and the reference too.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import reference
from array_api_compat import array_namespace

from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import (
    BinaryCrossEntropy,
    Curvature,
    Loss,
    SoftmaxCrossEntropy,
    SquaredError,
)

N, D, C = 37, 4, 3
#: Second derivative of the layer's own regulariser on kernel and bias.
L2, BIAS_L2 = 0.25, 0.0625


def pseudo_huber(u, y):
    """``sqrt(1 + |u - y|^2)``: convex, all outputs interact, no row of ``K`` sums to zero."""
    return np.sqrt(1 + np.sum((u - y) ** 2))


def welsch(u, y):
    """``1 - exp(-|u - y|^2 / 2)``: not convex."""
    return 1 - np.exp(-np.sum((u - y) ** 2) / 2)


class _OfDistance(Loss):
    """A loss of ``e = u - y``, with ``K`` as ``diag - root root^T`` or, if ``dense``, written out."""

    is_classification = False

    def __init__(self, dense=False):
        self.curvature_is_dense = dense

    def encode(self, labels, n_outputs, where):
        raise AssertionError("these tests hand over targets")

    def margin(self, u, target):
        return -self.value(u, target)

    def curvature(self, u, target):
        curvature = self._curvature(u, target)
        return Curvature(dense=curvature.matrices()) if self.curvature_is_dense else curvature


class PseudoHuber(_OfDistance):
    """With ``s`` the value, ``r = e / s`` and ``K = I / s - e e^T / s^3``."""

    name = "pseudo-Huber"

    def value(self, u, target):
        xp = array_namespace(target)
        return xp.sqrt(1 + xp.sum((u - target) ** 2, axis=1))

    def residual(self, u, target):
        return (u - target) / self.value(u, target)[:, None]

    def _curvature(self, u, target):
        s = self.value(u, target)[:, None]
        return Curvature(diagonal=0 * u + 1 / s, root=(u - target) / s**1.5)


class Welsch(_OfDistance):
    """With ``q`` one minus the value, ``r = q e`` and ``K = q (I - e e^T)``."""

    name = "Welsch"

    def value(self, u, target):
        xp = array_namespace(target)
        return 1 - xp.exp(-xp.sum((u - target) ** 2, axis=1) / 2)

    def residual(self, u, target):
        return (u - target) * (1 - self.value(u, target))[:, None]

    def _curvature(self, u, target):
        q = (1 - self.value(u, target))[:, None]
        return Curvature(diagonal=0 * u + q, root=(u - target) * q**0.5)


def _classes(rng, n):
    return rng.integers(0, C, n)


def _soft(rng, n):
    return rng.multinomial(64, np.ones(C) / C, n) / 64  # they sum to 1 in float32 too


def _one_bit(rng, n):
    return rng.integers(0, 2, (n, 1)).astype(float)


def _bits(rng, n):
    return rng.integers(0, 2, (n, C)).astype(float)


def _real(rng, n):
    return rng.normal(size=(n, 1))


def _reals(rng, n):
    return rng.normal(size=(n, C))


def _smoothed(function):
    return lambda u, y: function(u, y, 0.2)


#: name: the library's loss, the reference's, what draws targets, the number of outputs
LOSSES = {
    "softmax": (SoftmaxCrossEntropy(), reference.softmax_cross_entropy, _classes, C),
    "softmax, soft": (SoftmaxCrossEntropy(0.2), _smoothed(reference.softmax_cross_entropy), _soft, C),
    "sigmoid": (BinaryCrossEntropy(), reference.binary_cross_entropy, _one_bit, 1),
    "sigmoids": (BinaryCrossEntropy(0.2), _smoothed(reference.binary_cross_entropy), _bits, C),
    "squared": (SquaredError(), reference.squared_error, _real, 1),
    "squared, several": (SquaredError(), reference.squared_error, _reals, C),
    "pseudo-Huber": (PseudoHuber(), pseudo_huber, _reals, C),
    "pseudo-Huber, dense": (PseudoHuber(dense=True), pseudo_huber, _reals, C),
    "pseudo-Huber, one output": (PseudoHuber(), pseudo_huber, _real, 1),
    "Welsch": (Welsch(), welsch, _reals, C),
    "Welsch, one output": (Welsch(dense=True), welsch, _real, 1),
}
CONVEX = [name for name in LOSSES if "Welsch" not in name]


@dataclass
class Blocks:
    """Training samples in blocks of ``rows``, counting how often they were iterated."""

    whole: Block
    rows: int
    passes: int = field(default=0, init=False)

    @property
    def n_samples(self):
        return self.whole.phi.shape[0]

    def __iter__(self):
        self.passes += 1
        for start in range(0, self.n_samples, self.rows):
            rows = slice(start, min(start + self.rows, self.n_samples))
            yield Block(*(None if a is None else a[rows, ...] for a in self.whole))


@dataclass(frozen=True)
class Problem:
    """A dense layer and its training samples: for the library, and for the reference."""

    loss: Loss
    function: object
    theta: np.ndarray
    phi: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    has_bias: bool

    def layer(self, xp=np, dtype="float64", l2=L2, bias_l2=BIAS_L2):
        theta = xp.asarray(self.theta.astype(dtype))
        return LinearLayer(theta, self.loss, self.has_bias, l2, bias_l2)

    def block(self, xp=np, dtype="float64"):
        target = self.target if self.target.dtype == np.int64 else self.target.astype(dtype)
        weight = None if self.weight is None else xp.asarray(self.weight.astype(dtype))
        return Block(xp.asarray(self.phi.astype(dtype)), xp.asarray(target), weight)

    def blocks(self, xp=np, dtype="float64", rows=10):
        return Blocks(self.block(xp, dtype), rows)

    def dense(self, damping=0.0, l2=L2, bias_l2=BIAS_L2):
        """The reference, with ``lam`` written out row by row."""
        lam = np.full(len(self.theta), damping + l2)
        if self.has_bias:
            lam[-1] = damping + bias_l2
        return _with_curvatures(self, reference.Dense(*self._reference_parts(), lam))

    def _reference_parts(self):
        return self.theta, self.phi, self.target, self.function, self.weight

    def matrices(self, count=3):
        """Some matrices ``(count, d, C)`` like the weights."""
        drawn = np.random.default_rng(7).normal(size=(count, *self.theta.shape))
        return drawn.astype(np.float32).astype(np.float64)


def _with_curvatures(problem, dense):
    """Take over what does not depend on ``lam`` and is slow: it was computed for the same problem."""
    key = id(problem)
    if key not in _SLOW:
        _SLOW[key] = dense.residuals, dense.curvatures, dense.hessian
    for name, value in zip(("residuals", "curvatures", "hessian"), _SLOW[key], strict=True):
        dense.__dict__[name] = value
    return dense


_SLOW = {}


@cache
def problem(name, has_bias=True, weighted=False, n=N):
    """One row of the table; a problem is made once, and lives as long as the tests."""
    loss, function, targets, n_outputs = LOSSES[name]
    rng = np.random.default_rng(len(name))
    d = D + has_bias
    phi = rng.normal(size=(n, d))
    phi[:, 1] = np.maximum(phi[:, 1], 0)  # zeros, as after a ReLU
    if has_bias:
        phi[:, -1] = 1
    theta = rng.normal(size=(d, n_outputs)) / 2
    target = targets(rng, n)
    weight = None
    if weighted:
        weight = rng.choice([0.0, 0.5, 1.0, 3.0], n)
    phi, theta = (a.astype(np.float32).astype(np.float64) for a in (phi, theta))
    if target.dtype != np.int64:
        target = target.astype(np.float32).astype(np.float64)
    return Problem(loss, function, theta, phi, target, weight, has_bias)
