"""Closed forms through a wrapped Keras model, against TensorFlow's derivatives of the whole model."""

import numpy as np
import pytest
import tolerances
from tolerances import assert_close

import whence
from whence.data.base import open_dataset
from whence.layers.linear_layer import Block, flatten, unflatten

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

if keras.backend.backend() != "tensorflow":
    pytest.skip("differentiates with TensorFlow", allow_module_level=True)

N, D, C = 12, 5, 3
losses = keras.losses
# name: the layer's activation, the layer after it, the number of outputs, the Keras loss
CASES = {
    "softmax": ("softmax", None, C, losses.CategoricalCrossentropy),
    "softmax, on logits": (None, None, C, lambda **k: losses.CategoricalCrossentropy(True, **k)),
    "softmax, a layer of its own": (None, "softmax", C, losses.SparseCategoricalCrossentropy),
    "softmax, smoothed": (
        None,
        None,
        C,
        lambda **k: losses.CategoricalCrossentropy(True, label_smoothing=0.2, **k),
    ),
    "sigmoid": ("sigmoid", None, 1, losses.BinaryCrossentropy),
    "sigmoids, on logits": (None, None, C, lambda **k: losses.BinaryCrossentropy(True, **k)),
    "squared error": (None, None, C, losses.MeanSquaredError),
}


class Blocks(list):
    n_samples = N


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


def make(name, dtype, use_bias):
    """A small model, its loss in float64, inputs, labels and sample weights."""
    activation, after, n_outputs, loss = CASES[name]
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(4, activation="tanh", dtype=dtype)
    head = keras.layers.Dense(n_outputs, activation, use_bias=use_bias, name="head", dtype=dtype)
    tail = [] if after is None else [keras.layers.Activation(after, dtype=dtype)]
    net = keras.Sequential([keras.Input((D,), dtype=dtype), hidden, head, *tail])
    if use_bias:
        head.bias.assign(np.linspace(-0.3, 0.4, n_outputs))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(dtype)
    classes = rng.integers(0, C, N)
    labels = np.eye(C)[classes]
    if "Sparse" in getattr(loss, "__name__", ""):
        labels = classes
    elif name == "squared error":
        labels = rng.normal(size=(N, C)).astype(np.float32)
    elif n_outputs == 1:
        labels = (classes > 0)[:, None].astype(float)
    weight = rng.choice([0.5, 1.0, 2.0], N)
    return net, loss, x, labels, weight.astype(dtype)


def differentiated(net, loss, x, labels, weight, use_bias):
    """Per-sample gradients ``(N, d, C)`` and the Hessian of the mean, with respect to the weights.

    In float64 whatever the model's precision: the model is rebuilt, with the same numbers in it.
    """
    config = [layer.get_config() | {"dtype": "float64"} for layer in net.layers]
    built = [type(layer).from_config(c) for layer, c in zip(net.layers, config, strict=True)]
    double = keras.Sequential([keras.Input((D,), dtype="float64"), *built])
    double.set_weights(net.get_weights())
    head = double.get_layer("head")
    weights = [v.value for v in ([head.kernel, head.bias] if use_bias else [head.kernel])]
    function = loss(reduction=None, dtype="float64")
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape(persistent=True) as inner:
            output = double(tf.constant(x, tf.float64), training=False)
            each = function(tf.constant(labels), output) * tf.constant(weight, tf.float64)
        # Without the vectorised loop, whose tracing takes longer than these few rows.
        jacobian = inner.jacobian(each, weights, experimental_use_pfor=False)
        rows = [g if g.shape.rank == 3 else g[:, None] for g in jacobian]
        gradients = tf.concat(rows, axis=1)
        mean = tf.reshape(tf.transpose(tf.reduce_mean(gradients, axis=0)), [-1])
    parts = outer.jacobian(mean, weights, unconnected_gradients="zero", experimental_use_pfor=False)
    columns = tf.concat([p if p.shape.rank == 3 else p[:, None] for p in parts], axis=1)
    hessian = tf.reshape(tf.transpose(columns, [0, 2, 1]), [mean.shape[0], -1])
    return gradients.numpy(), hessian.numpy()


@pytest.mark.pairwise
@pytest.mark.parametrize(
    "kind",
    [("float64", True), ("float32", True), ("float64", False)],
    ids=["float64", "float32", "no bias"],
)
def test_residuals_gradients_hessian_and_its_product(case, kind):
    dtype, use_bias = kind
    net, loss, x, labels, weight = make(case, dtype, use_bias)
    gradients, hessian = differentiated(net, loss, x, labels, weight, use_bias)
    model = whence.InfluenceModel(net, "head", loss_function=loss())
    batches = tf.data.Dataset.from_tensor_slices((x, labels, weight)).batch(5)
    observed = [model.observe(batch) for batch in open_dataset(batches, "train_set")]
    blocks = Blocks(Block(seen.phi, seen.target, seen.weight) for seen in observed)
    layer, tolerance = model.layer, tolerances.of(dtype)

    assert all(block.phi.dtype == np.dtype(dtype) for block in blocks)
    actual = np.concatenate([layer.gradients(block) for block in blocks])
    assert_close(actual, gradients, tolerance)
    if use_bias:  # the bias's gradient is the residual itself
        residuals = np.concatenate([layer.residuals(block) for block in blocks])
        assert_close(residuals, gradients[:, -1], tolerance)
    assert_close(layer.mean_gradient(blocks), gradients.mean(axis=0), tolerance)
    assert_close(layer.hessian(blocks).matrix(), hessian, tolerance)
    vectors = np.random.default_rng(3).normal(size=(3, *gradients.shape[1:])).astype(dtype)
    expected = unflatten(flatten(vectors.astype(np.float64)) @ hessian, gradients.shape[2])
    assert_close(layer.hessian_product(blocks, vectors), expected, tolerance)
