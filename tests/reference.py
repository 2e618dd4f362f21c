"""Slow and obvious float64 references that share no code with the library.

Derivatives come from complex steps and differences of the loss as one would write it on a blackboard;
second-order quantities are dense ``(C*d, C*d)`` matrices built by ``np.kron``, one sample at a time.
Weights ``(d, C)`` are laid out output by output: ``theta.T.ravel()``.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

# ---- derivatives --------------------------------------------------------------------------------


def gradient(function, point):
    """Gradient of a real ``function`` of an array of any shape, by complex steps: exact to rounding."""
    point = np.asarray(point, dtype=np.float64)
    result = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        moved = point.astype(complex)
        moved[index] += 1e-30j
        result[index] = function(moved).imag / 1e-30
    return result


def hessian(function, point, h=1e-3):
    """Hessian of ``function`` of a vector, by five-point differences of the complex-step gradient."""
    point = np.asarray(point, dtype=np.float64)
    columns = []
    for unit in np.eye(point.size) * h:
        near = gradient(function, point + unit) - gradient(function, point - unit)
        far = gradient(function, point + 2 * unit) - gradient(function, point - 2 * unit)
        columns.append((8 * near - far) / (12 * h))
    return np.stack(columns, axis=1)


# ---- losses of one sample: pre-activations u (C,), target row y (C,) ------------------------------


def softmax_cross_entropy(u, y, smoothing=0.0):
    y = y * (1 - smoothing) + smoothing / len(y)
    return -np.sum(y * np.log(np.exp(u) / np.sum(np.exp(u))))


def binary_cross_entropy(u, y, smoothing=0.0):
    y = y * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + np.exp(-u))
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))


def squared_error(u, y):
    return np.mean((u - y) ** 2)


def rows(target, n_outputs):
    """Class numbers as indicator rows; rows as they are; in float64."""
    target = np.asarray(target)
    return np.eye(n_outputs)[target] if target.ndim == 1 else target.astype(np.float64)


# ---- a dense layer ------------------------------------------------------------------------------


def flat(matrix):
    """``(d, C)`` to ``(C*d,)``, output by output."""
    return np.concatenate([matrix[:, c] for c in range(matrix.shape[1])])


def unflat(vector, n_outputs):
    """``(C*d,)`` to ``(d, C)``."""
    return np.stack(np.split(vector, n_outputs), axis=1)


@dataclass(frozen=True)
class Dense:
    """A dense layer, its loss and its training samples; every quantity by loops, in float64.

    ``phi (N, d)`` holds the bias's constant 1 already, ``theta (d, C)`` its bias row. ``loss(u, y)`` is
    one of the functions above or another one like them, ``lam`` a number or ``(d,)`` numbers: damping
    next to the layer's own second derivative of its regulariser, row by row of ``theta``.
    """

    theta: np.ndarray
    phi: np.ndarray
    target: np.ndarray
    loss: object
    weight: np.ndarray | None = None
    lam: float | np.ndarray = 0.0

    def __post_init__(self):
        n_outputs = self.theta.shape[1]
        n_samples = len(self.phi)
        weight = np.ones(n_samples) if self.weight is None else self.weight
        for name, value in {
            "theta": self.theta,
            "phi": self.phi,
            "target": rows(self.target, n_outputs),
            "weight": weight,
            "lam": np.broadcast_to(self.lam, self.theta.shape[:1]),
        }.items():
            object.__setattr__(self, name, np.array(value, dtype=np.float64))

    def at(self, theta):
        """The same layer with other weights."""
        return replace(self, theta=theta)

    def without(self, i):
        """The same layer, trained on one sample fewer."""
        kept = np.arange(len(self.phi)) != i
        parts = self.phi[kept], self.target[kept], self.loss, self.weight[kept], self.lam
        return Dense(self.theta, *parts)

    def mean_loss(self, theta):
        """The mean over samples of ``weight * loss``, as a function of the weights."""
        samples = zip(self.phi, self.target, self.weight, strict=True)
        return sum(w * self.loss(phi @ theta, y) for phi, y, w in samples) / len(self.phi)

    @cached_property
    def residuals(self):
        """``r (N, C)``."""
        samples = zip(self.phi, self.target, self.weight, strict=True)
        return np.stack(
            [w * gradient(lambda u, y=y: self.loss(u, y), p @ self.theta) for p, y, w in samples]
        )

    @cached_property
    def curvatures(self):
        """``K (N, C, C)``."""
        samples = zip(self.phi, self.target, self.weight, strict=True)
        return np.stack(
            [w * hessian(lambda u, y=y: self.loss(u, y), p @ self.theta) for p, y, w in samples]
        )

    @cached_property
    def gradients(self):
        """``g (N, d, C)``."""
        return np.stack([np.outer(p, r) for p, r in zip(self.phi, self.residuals, strict=True)])

    @cached_property
    def hessian(self):
        """``H`` of the mean loss, undamped, ``(C*d, C*d)``."""
        samples = zip(self.phi, self.curvatures, strict=True)
        return sum(np.kron(k, np.outer(p, p)) for p, k in samples) / len(self.phi)

    @cached_property
    def damped(self):
        """``H + lam``."""
        return self.hessian + np.diag(np.tile(self.lam, self.theta.shape[1]))

    @cached_property
    def inverse(self):
        """``(H + lam)^{-1}``, the pseudo-inverse where it is singular."""
        return np.linalg.pinv(self.damped, rcond=1e-10, hermitian=True)

    def solve(self, matrix):
        """``(H + lam)^{-1}`` times a matrix ``(d, C)``."""
        return unflat(self.inverse @ flat(matrix), self.theta.shape[1])

    def self_products(self):
        """``(H^{-1} g_i)^T phi_i``, shape ``(N, C)``: how the pre-activations of ``i`` react to it."""
        pairs = zip(self.gradients, self.phi, strict=True)
        return np.stack([self.solve(g).T @ p for g, p in pairs])

    def leverages(self):
        """``Q (N, C, C)``, ``<phi_i (x) e_a, H^{-1} (phi_i (x) e_b)>``."""
        eye = np.eye(self.theta.shape[1])
        columns = [np.stack([self.solve(np.outer(p, e)).T @ p for e in eye], 1) for p in self.phi]
        return np.stack(columns)

    def leave_one_out(self):
        """Pre-activations ``(N, C)`` of every sample without itself, to first order."""
        return self.phi @ self.theta + self.self_products() / len(self.phi)

    def refit(self, steps=50):
        """Weights that minimise ``mean loss + sum_a lam_a |theta_a|^2 / 2``, by Newton's method."""
        layer = self
        for _ in range(steps):
            slope = layer.gradients.mean(axis=0) + self.lam[:, None] * layer.theta
            layer = layer.at(layer.theta - layer.solve(slope))
            if np.abs(slope).max() < 1e-12:
                break
        return layer.theta


# ---- local Jacobian expansion -------------------------------------------------------------------


@dataclass(frozen=True)
class LocalJacobianExpansion:
    """Sui, Wu and Sanner's decomposition of a :class:`Dense` layer, every ``W_i`` written out."""

    dense: Dense
    step_size: float = 1e-4

    @cached_property
    def expanded(self):
        """The layer after one step of gradient ascent."""
        ascent = self.step_size * self.dense.gradients.mean(axis=0)
        return self.dense.at(self.dense.theta + ascent)

    @cached_property
    def weights(self):
        """``W (N, d, C)``, ``W_i = (theta' - H^{-1} g_i) / N``."""
        layer = self.expanded
        return np.stack([layer.theta - layer.solve(g) for g in layer.gradients]) / len(layer.phi)

    @cached_property
    def theta_dagger(self):
        """The weights that all ``W_i`` sum to."""
        return self.weights.sum(axis=0)

    def influences(self, phi):
        """``v (T, N, C)``: influence of every training sample on every output of every sample."""
        return np.stack([[w.T @ p for w in self.weights] for p in np.asarray(phi, np.float64)])

    def self_influences(self, outputs):
        """``|v_j(i, i)|`` with ``j = outputs[i]``, shape ``(N,)``."""
        triples = zip(self.weights, self.dense.phi, outputs, strict=True)
        return np.array([abs(w[:, j] @ p) for w, p, j in triples])

    def elementwise_alphas(self, epsilon=1e-5):
        """``alpha (N, C)`` of the formula printed in the paper, with guarded divisions."""
        layer, n_samples = self.expanded, len(self.dense.phi)
        alphas = []
        for p, g in zip(layer.phi, layer.gradients, strict=True):
            divisor = (n_samples * p + epsilon)[:, None]
            alphas.append((layer.theta / divisor - layer.solve(g / divisor)).sum(axis=0))
        return np.stack(alphas)


def ridge_without_each(phi, rows, weight=None):
    """What a ridge regression of ``rows (N, C)`` on standardised directions of ``phi`` says of each sample.

    Fitted anew to all others, by the normal equations; means, deviations and strength are those of all.
    """
    weight = np.ones(len(phi)) if weight is None else weight
    share = weight / weight.sum()
    centred = phi - share @ phi
    standard = centred / np.sqrt(share @ centred**2)
    units = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    votes = rows - share @ rows
    cosines = units @ units.T
    strength = sum(
        share[i] * share[k] * cosines[i, k] ** 2 for i in range(len(phi)) for k in range(len(phi))
    )
    said = []
    for i in range(len(phi)):
        matrix, right = strength * np.eye(phi.shape[1]), np.zeros((phi.shape[1], rows.shape[1]))
        for k in range(len(phi)):
            if k != i:
                matrix = matrix + share[k] * np.outer(units[k], units[k])
                right = right + share[k] * np.outer(units[k], votes[k])
        said.append(np.linalg.solve(matrix, right).T @ units[i])
    return np.stack(said)
