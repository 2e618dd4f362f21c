"""Models that are one dense layer, so that its features are its inputs, and the reference of each."""

from dataclasses import dataclass

import keras
import numpy as np
import reference
import tensorflow as tf

import whence

N, T, D = 23, 5, 4
RNG = np.random.default_rng(5)
X, X_NEW = RNG.normal(size=(N, D)), RNG.normal(size=(T, D))
CLASSES, NEW_CLASSES = RNG.integers(0, 3, N), RNG.integers(0, 3, T)
WEIGHT = RNG.uniform(0.5, 2, N)


@dataclass(frozen=True)
class Case:
    """A loss as Keras knows it and as the reference does; labels of training and new samples."""

    keras_loss: object
    plain: object
    labels: np.ndarray
    new_labels: np.ndarray
    units: int = 3


CASES = {
    "softmax": Case(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        reference.softmax_cross_entropy,
        CLASSES,
        NEW_CLASSES,
    ),
    "one sigmoid": Case(
        keras.losses.BinaryCrossentropy(from_logits=True),
        reference.binary_cross_entropy,
        (CLASSES > 0)[:, None].astype(float),
        (NEW_CLASSES > 0)[:, None].astype(float),
        units=1,
    ),
    "squared error": Case(
        keras.losses.MeanSquaredError(),
        reference.squared_error,
        RNG.normal(size=(N, 2)),
        RNG.normal(size=(T, 2)),
        units=2,
    ),
}


def batches(*arrays, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


class Head:
    """A model, its data sets, and its reference."""

    def __init__(self, case, *, use_bias=True, weighted=True, dtype="float64", damping=0.05):
        self.case = case
        keras.utils.set_random_seed(3)
        layer = keras.layers.Dense(case.units, use_bias=use_bias, dtype=dtype)
        self.keras_model = keras.Sequential([keras.Input((D,), dtype=dtype), layer])
        if use_bias:
            layer.bias.assign(np.linspace(-0.3, 0.3, case.units))
        self.keras_model.compile(loss=case.keras_loss)
        self.model = whence.InfluenceModel(self.keras_model)
        x, new = X.astype(dtype), X_NEW.astype(dtype)
        self.train = batches(x, case.labels, *([WEIGHT.astype(dtype)] if weighted else []))
        self.new = batches(new, case.new_labels, size=2)
        self.phi = self._with_constant(x, use_bias)
        self.phi_new = self._with_constant(new, use_bias)
        self.damping = damping
        self.factory = whence.ExactIHVPFactory(damping=damping)
        theta = layer.kernel.numpy() if not use_bias else np.vstack([layer.kernel, layer.bias])
        weight = WEIGHT if weighted else None
        self.dense = reference.Dense(theta, self.phi, case.labels, case.plain, weight, damping)
        self.dense_new = reference.Dense(theta, self.phi_new, case.new_labels, case.plain)

    def _with_constant(self, x, use_bias):
        return (
            np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(float) if use_bias else x.astype(float)
        )

    def set_weights(self, theta):
        """Give the model weights ``(d, C)``, with the bias, if it has one, as last row.

        ``dense`` and ``dense_new`` stay at the old ones.
        """
        layer = self.keras_model.layers[-1]
        layer.set_weights([theta[:-1], theta[-1]] if layer.use_bias else [theta])

    @property
    def outputs_new(self):
        """The predicted output of each new sample."""
        return np.argmax(self.phi_new @ self.dense.theta, axis=1)


def values_of(method, head):
    """Values ``(T, N)`` as the contract gives them."""
    nested = method.estimate_influence_values_in_batches(head.new, head.train)
    return np.concatenate([np.concatenate([v.numpy() for _, v in d], axis=1) for _, d in nested])


def self_values_of(method, head):
    return np.concatenate([v.numpy() for _, v in method.compute_influence_values(head.train)])
