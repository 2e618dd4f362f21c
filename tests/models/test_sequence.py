"""Layers along a sequence: against TensorFlow's derivatives of what Keras computes, sample by sample."""

import numpy as np
import pytest
from tolerances import FLOAT64, assert_close

import whence
from whence.layers import losses as losses
from whence.models.differentiated import DifferentiatedLoss

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

layers = keras.layers
N, L, D, C = 6, 4, 3, 3
RNG = np.random.default_rng(0)
LENGTHS = np.asarray([4, 2, 1, 3, 4, 2])
VISIBLE = np.arange(L) < LENGTHS[:, None]
WORDS = np.where(VISIBLE, RNG.integers(1, 7, (N, L)), 0)
ROWS = np.where(VISIBLE[:, :, None], RNG.normal(size=(N, L, D)), 0.0)
CLASSES = RNG.integers(0, C, (N, L))
ONE_HOT = np.eye(C)[CLASSES]
REALS = RNG.normal(size=(N, L, C))
IMAGES = RNG.normal(size=(N, 2, 3, D))
PIXELS = RNG.integers(0, C, (N, 2, 3))


def net(*front, shape, head, tail=()):
    """A small model in float64, whose target layer is called head."""
    keras.utils.set_random_seed(1)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        made = [make() for make in (*front, head, *tail)]
        return keras.Sequential([keras.Input(shape), *made])
    finally:
        keras.config.set_dtype_policy(policy)


def dense(activation="softmax"):
    return lambda: layers.Dense(C, activation=activation, name="head", bias_initializer="normal")


def words():
    return layers.Embedding(7, 3, mask_zero=True)


def masking():
    return layers.Masking()


def recurrent():
    return layers.SimpleRNN(3, return_sequences=True, unroll=True)


def hidden():
    return layers.Dense(3, activation="tanh")


def distributed():
    return layers.TimeDistributed(layers.Dense(C, name="head"))


def in_double(name, **options):
    return getattr(keras.losses, name)(dtype="float64", **options)


CROSS_ENTROPY = in_double("SparseCategoricalCrossentropy")
FROM_LOGITS = in_double("SparseCategoricalCrossentropy", from_logits=True)
IGNORING = in_double("SparseCategoricalCrossentropy", from_logits=True, ignore_class=-1)

#: Keras adds 1e-7 to what it divides weighted losses by.
EPSILON = 2e-7

#: Layers, shape of a sample, loss, inputs, labels, and which loss it comes to.
CASES = {
    "rows": ((hidden, dense()), (L, D), CROSS_ENTROPY, ROWS, CLASSES, losses.SoftmaxCrossEntropy),
    "masked words": (
        (words, hidden, dense()),
        (None,),
        CROSS_ENTROPY,
        WORDS,
        CLASSES,
        losses.SoftmaxCrossEntropy,
    ),
    "masked rows": (
        (masking, recurrent, dense("linear")),
        (L, D),
        FROM_LOGITS,
        ROWS,
        CLASSES,
        losses.SoftmaxCrossEntropy,
    ),
    "time-distributed": (
        (masking, distributed),
        (L, D),
        FROM_LOGITS,
        ROWS,
        CLASSES,
        losses.SoftmaxCrossEntropy,
    ),
    "tags": (
        (words, dense("sigmoid")),
        (L,),
        in_double("BinaryCrossentropy"),
        WORDS,
        ONE_HOT,
        losses.BinaryCrossEntropy,
    ),
    "values": (
        (words, dense("linear")),
        (L,),
        in_double("MeanSquaredError"),
        WORDS,
        REALS,
        losses.SquaredError,
    ),
    "pixels": ((hidden, dense()), (2, 3, D), CROSS_ENTROPY, IMAGES, PIXELS, losses.SoftmaxCrossEntropy),
    "another loss": (
        (words, dense("tanh")),
        (L,),
        in_double("Huber", delta=0.7),
        WORDS,
        REALS,
        DifferentiatedLoss,
    ),
    "an ignored class": (
        (hidden, dense("linear")),
        (L, D),
        IGNORING,
        ROWS,
        np.where(VISIBLE, CLASSES, -1),
        DifferentiatedLoss,
    ),
    "pixels with another loss": (
        (hidden, dense("softplus")),
        (2, 3, D),
        in_double("Poisson"),
        IMAGES,
        np.eye(C)[PIXELS],
        DifferentiatedLoss,
    ),
}


def build(name):
    made, shape, loss, x, y, kind = CASES[name]
    model = net(*made[:-1], shape=shape, head=made[-1])
    return model, loss, x, y, kind


def reference(model, loss, x, y, weight=None):
    """Gradient and Hessian of the mean over samples of the loss that Keras has for each one alone."""
    kernel, bias = model.layers[-1].trainable_variables
    variables = [kernel.value, bias.value]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            values = []
            for i in range(len(x)):
                one = slice(i, i + 1)
                part = None if weight is None else weight[one]
                values.append(loss(y[one], model(x[one], training=False), sample_weight=part))
            mean = tf.add_n(values) / len(x)
        kernel_slope, bias_slope = inner.gradient(mean, variables)
        gradient = tf.concat([kernel_slope, bias_slope[None]], axis=0)
        entries = tf.unstack(tf.reshape(tf.transpose(gradient), [-1]))
    rows = []
    for entry in entries:
        slopes = outer.gradient(entry, variables, unconnected_gradients="zero")
        both = tf.concat([slopes[0], slopes[1][None]], axis=0)
        rows.append(tf.reshape(tf.transpose(both), [-1]))
    return np.asarray(values), gradient.numpy(), tf.stack(rows).numpy()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return build(request.param)


def test_derivatives_are_those_of_keras(case):
    model, loss, x, y, kind = case
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    index = wrapped.index((x, y))
    assert isinstance(wrapped.loss, kind)
    values, gradient, hessian = reference(model, loss, x, y)
    assert_close(np.concatenate([wrapped.layer.losses(b) for b in index]), values, EPSILON)
    assert_close(wrapped.layer.mean_gradient(index), gradient, EPSILON)
    assert_close(wrapped.layer.hessian(index).matrix(), hessian, EPSILON)


@pytest.mark.parametrize("shape", [(N,), (N, L)], ids=["a sample", "a position"])
@pytest.mark.parametrize("name", ["masked words", "an ignored class"])
def test_weights_are_those_of_keras(name, shape):
    model, loss, x, y, _ = build(name)
    weight = np.random.default_rng(1).random(shape)
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    index = wrapped.index((x, y, weight))
    if len(shape) == 1:  # of several axes Keras takes the first for the samples
        _, gradient, hessian = reference(model, loss, x, y, weight[:, None])
    else:
        _, gradient, hessian = reference(model, loss, x, y, weight)
    assert_close(wrapped.layer.mean_gradient(index), gradient, EPSILON)
    assert_close(wrapped.layer.hessian(index).matrix(), hessian, EPSILON)


def layer_and_index(name, x, y):
    model, loss, *_ = build(name)
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    index = wrapped.index([(x[:4], y[:4]), (x[4:], y[4:])])
    return wrapped.layer, index


@pytest.mark.parametrize("filler", [-1, 0, 10**6])
def test_padding_and_its_labels_change_nothing(filler):
    layer, index = layer_and_index("masked words", WORDS, CLASSES)
    padded = np.pad(WORDS, ((0, 0), (0, 3)))
    labels = np.pad(np.where(VISIBLE, CLASSES, filler), ((0, 0), (0, 3)), constant_values=filler)
    other_layer, other = layer_and_index("masked words", padded, labels)
    assert other.shards[0].phi.shape[1] == L + 3
    assert_close(other_layer.mean_gradient(other), layer.mean_gradient(index), FLOAT64)
    assert_close(other_layer.hessian(other).matrix(), layer.hessian(index).matrix(), FLOAT64)


def test_batches_of_different_lengths():
    model, loss, *_ = build("masked words")
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    batches = [(WORDS[i : i + 1, :n], CLASSES[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    index = wrapped.index(batches)
    layer, expected = layer_and_index("masked words", WORDS, CLASSES)
    assert_close(wrapped.layer.mean_gradient(index), layer.mean_gradient(expected), FLOAT64)
    assert_close(wrapped.layer.hessian(index).matrix(), layer.hessian(expected).matrix(), FLOAT64)


def test_the_model_is_observed_by_position():
    model, loss, x, y, _ = build("masked words")
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    weight = np.where(np.arange(N) == 1, 0.0, 2.0)
    seen = wrapped.observe(whence.data.base.Batch(x, y, weight, 0))
    assert seen.phi.shape == (N, L, 4)
    np.testing.assert_array_equal(seen.phi[:, :, -1], 1)
    np.testing.assert_array_equal(seen.visible, VISIBLE)
    expected = VISIBLE / LENGTHS[:, None] * weight[:, None]
    np.testing.assert_allclose(seen.weight, expected, rtol=1e-15)


BAD = {
    "all positions hidden": (
        "masked words",
        np.where(np.arange(N)[:, None] == 2, 0, WORDS),
        CLASSES,
        None,
        "at least one position.*sample 2",
    ),
    "labels of another length": ("masked words", WORDS, CLASSES[:, :3], None, "one for each position"),
    "one label a sample": ("masked words", WORDS, CLASSES[:, 0], None, "one for each position"),
    "a label outside the classes": ("masked words", WORDS, CLASSES + 1, None, "class 3"),
    "nothing but ignored labels": (
        "an ignored class",
        ROWS,
        np.full((N, L), -1),
        None,
        "at least one label",
    ),
    "weights of another length": ("masked words", WORDS, CLASSES, np.ones((N, 3)), "one a position"),
    "negative weights": ("masked words", WORDS, CLASSES, -np.ones((N, L)), ">= 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    which, x, y, weight, match = BAD[name]
    model, loss, *_ = build(which)
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    given = (x, y) if weight is None else (x, y, weight)
    with pytest.raises(whence.WhenceError, match=match):
        wrapped.index(given)


def scaled_by_position(u):
    return u * np.arange(1.0, L + 1)[:, None]


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        ([layers.GlobalAveragePooling1D, layers.Softmax], "brings positions together"),
        ([lambda: layers.Dense(C), lambda: layers.Dropout(0.5), layers.UnitNormalization], None),
        ([lambda: layers.Conv1D(C, 2, padding="same")], "depends on it alone"),
        ([lambda: layers.Lambda(scaled_by_position)], "treat all positions alike"),
    ],
    ids=["pooling", "layers by position", "convolution", "positions that differ"],
)
def test_what_stands_behind_the_layer(tail, match):
    model = net(hidden, shape=(L, D), head=dense("linear"), tail=tail)
    wrapped = whence.InfluenceModel(model, "head", loss_function="huber")
    y = REALS[:, 0] if match == "brings positions together" else REALS
    if match is None:
        index = wrapped.index((ROWS, y))
        assert isinstance(wrapped.loss, DifferentiatedLoss)
        assert index.shards[0].phi.shape == (N, L, 4)
        return
    with pytest.raises(whence.WhenceError, match=match):
        wrapped.index((ROWS, y))
