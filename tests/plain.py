"""A model that is one dense layer of NumPy arrays, with no framework at all, and the reference of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import reference

import whence
from whence.layers.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from whence.models.adapter import Adapter, LossSpec, Weights, register_adapter

N, T, D = 23, 5, 4
RNG = np.random.default_rng(11)
X, X_NEW = RNG.normal(size=(N, D)), RNG.normal(size=(T, D))
CLASSES, NEW_CLASSES = RNG.integers(0, 3, N), RNG.integers(0, 3, T)
WEIGHT = RNG.uniform(0.5, 2, N)


@dataclass
class Dense:
    """The model: ``x @ kernel + bias``, and the loss that it was trained with."""

    kernel: np.ndarray
    bias: np.ndarray | None
    loss: Loss


@register_adapter(Dense)
class DenseAdapter(Adapter):
    """All that the library needs to know of it."""

    layer_name = "dense"

    def __init__(self, model, start_layer=-1, loss_function=None):
        self._model = model

    def with_layer(self, layer):
        return self

    def weights(self):
        return Weights(self._model.kernel, self._model.bias)

    def loss_spec(self):
        return LossSpec(self._model.loss, "identity", self._model.loss.name)

    def features(self, inputs):
        return np.asarray(inputs)

    def tail(self, inputs, pre_activations):
        return pre_activations


@dataclass(frozen=True)
class Case:
    """A loss as the library and as the reference know it; labels of training and of new samples."""

    loss: Loss
    plain: object
    labels: np.ndarray
    new_labels: np.ndarray
    units: int = 3


CASES = {
    "softmax": Case(SoftmaxCrossEntropy(), reference.softmax_cross_entropy, CLASSES, NEW_CLASSES),
    "one sigmoid": Case(
        BinaryCrossEntropy(),
        reference.binary_cross_entropy,
        (CLASSES > 0)[:, None].astype(float),
        (NEW_CLASSES > 0)[:, None].astype(float),
        units=1,
    ),
    "squared error": Case(
        SquaredError(),
        reference.squared_error,
        RNG.normal(size=(N, 2)),
        RNG.normal(size=(T, 2)),
        units=2,
    ),
}


def batches(*arrays, size=8):
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


class Head:
    """A model, its data sets and its reference."""

    def __init__(self, case, *, use_bias=True, weighted=True, damping=0.05):
        self.case, self.damping = case, damping
        rng = np.random.default_rng(3)
        bias = np.linspace(-0.3, 0.3, case.units) if use_bias else None
        self.net = Dense(rng.normal(size=(D, case.units)), bias, case.loss)
        self.train = batches(X, case.labels, *([WEIGHT] if weighted else []))
        self.new = batches(X_NEW, case.new_labels, size=2)
        one = np.ones((N, 1))
        self.phi = np.concatenate([X, one], axis=1) if use_bias else X
        self.phi_new = np.concatenate([X_NEW, one[:T]], axis=1) if use_bias else X_NEW
        theta = self.net.kernel if bias is None else np.vstack([self.net.kernel, bias])
        weight = WEIGHT if weighted else None
        self.dense = reference.Dense(theta, self.phi, case.labels, case.plain, weight, damping)
        self.dense_new = reference.Dense(theta, self.phi_new, case.new_labels, case.plain)

    @cached_property
    def factory(self):
        return whence.ExactIHVPFactory(damping=self.damping)

    @property
    def model(self):
        return whence.InfluenceModel(self.net)

    def set_weights(self, theta):
        """Give the model weights ``(d, C)``, with the bias, if it has one, as last row."""
        if self.net.bias is None:
            self.net.kernel = theta
        else:
            self.net.kernel, self.net.bias = theta[:-1], theta[-1]

    def outputs(self, phi):
        """The predicted output of each sample."""
        return np.argmax(phi @ self.dense.theta, axis=1)


def values_of(method, head):
    """Values ``(T, N)`` as the contract gives them."""
    nested = method.estimate_influence_values_in_batches(head.new, head.train)
    return np.concatenate([np.concatenate([v for _, v in d], axis=1) for _, d in nested])


def self_values_of(method, head):
    return np.concatenate([v for _, v in method.compute_influence_values(head.train)])
