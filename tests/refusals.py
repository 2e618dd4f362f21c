"""A small model, its samples, and what every refusal of bad input must say."""

import numpy as np
import pytest

from whence import ExactIHVPFactory, InfluenceModel, RepresenterPointLJE, WhenceError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

layers, losses = keras.layers, keras.losses
N, D, C = 20, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(0, C, N)
ONES = np.ones(N, np.float32)
SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = losses.BinaryCrossentropy(from_logits=True)


def batches(*arrays, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def with_value(array, value, row=9):
    """A copy in which one entry of the second batch is another."""
    changed = array.astype(np.float32)
    changed[row] = value
    return changed


def net(loss=SPARSE, units=C, activation=None):
    model = keras.Sequential(
        [
            keras.Input((D,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dropout(0.2, name="dropped"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(units, activation=activation, name="head"),
        ]
    )
    model.compile(loss=loss)
    return model


def overflowing():
    model = net()
    model.layers[0].kernel.assign(np.full((D, 5), 3e38))
    return model


def made(dataset=None, model=None, factory=None, **options):
    """The method's constructor, with one thing at a time that is wrong."""
    model = net() if model is None else model
    wrapped = model if isinstance(model, InfluenceModel) else InfluenceModel(model)
    dataset = batches(X, Y) if dataset is None else dataset
    factory = ExactIHVPFactory() if factory is None else factory
    return RepresenterPointLJE(wrapped, dataset, factory, progress=False, **options)


TRAIN, TESTED = batches(X, Y), batches(X[:4], Y[:4])
UNBATCHED = tf.data.Dataset.from_tensor_slices((X, Y))
LISTING = "hidden (Dense), dropped (Dropout), norm (BatchNormalization), head (Dense)"


def check(call, argument, expected, got, fix):
    """Raise unless ``call`` is refused with an error that says these four things."""
    with pytest.raises(WhenceError) as caught:
        call()
    error = caught.value
    for part, text in (
        (error.argument, argument),
        (error.expected, expected),
        (error.got, got),
        (error.fix, fix),
    ):
        assert text in part, f"{text!r} is not in {part!r}"
        assert part.rstrip(".") in str(error)
    assert str(error).endswith(".")
    assert "\n" not in str(error)
