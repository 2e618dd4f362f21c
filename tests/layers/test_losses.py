"""Residuals and curvatures against derivatives taken otherwise; labels good and bad."""

import numpy as np
import pytest
import reference
import tolerances
from tolerances import assert_close

from whence import WhenceError
from whence.arrays.base import as_numpy
from whence.layers.losses import BinaryCrossEntropy, Curvature, SoftmaxCrossEntropy, SquaredError

N = 6
RNG = np.random.default_rng(0)
CLASSES = np.asarray([0, 2, 1, 1, 0, 2])
SOFT = RNG.dirichlet(np.ones(3), N)
SEVERAL = np.asarray([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0.2, 0.7, 1]])
REALS = RNG.normal(size=(N, 3))

# name: loss, reference, labels as a user gives them
CASES = {
    "softmax, classes": (SoftmaxCrossEntropy(), reference.softmax_cross_entropy, CLASSES),
    "softmax, column of classes": (
        SoftmaxCrossEntropy(),
        reference.softmax_cross_entropy,
        CLASSES[:, None].astype(np.float32),
    ),
    "softmax, one-hot": (
        SoftmaxCrossEntropy(),
        reference.softmax_cross_entropy,
        np.eye(3, dtype=bool)[CLASSES],
    ),
    "softmax, soft": (SoftmaxCrossEntropy(), reference.softmax_cross_entropy, SOFT),
    "softmax, smoothed": (
        SoftmaxCrossEntropy(label_smoothing=0.2),
        lambda u, y: reference.softmax_cross_entropy(u, y, 0.2),
        CLASSES,
    ),
    "sigmoid, one output": (BinaryCrossEntropy(), reference.binary_cross_entropy, CLASSES % 2),
    "softmax, class weights": (
        SoftmaxCrossEntropy(class_weight=(0.5, 1.0, 3.0)),
        lambda u, y: reference.softmax_cross_entropy(u, y * np.asarray([0.5, 1.0, 3.0])),
        CLASSES,
    ),
    "softmax, class weights of soft labels": (
        SoftmaxCrossEntropy(class_weight=(0.5, 1.0, 3.0)),
        lambda u, y: reference.softmax_cross_entropy(u, y * np.asarray([0.5, 1.0, 3.0])),
        SOFT,
    ),
    "sigmoid, several outputs": (BinaryCrossEntropy(), reference.binary_cross_entropy, SEVERAL),
    "sigmoid, smoothed": (
        BinaryCrossEntropy(label_smoothing=0.2),
        lambda u, y: reference.binary_cross_entropy(u, y, 0.2),
        SEVERAL,
    ),
    "squared, one output": (SquaredError(), reference.squared_error, REALS[:, 0]),
    "squared, several outputs": (SquaredError(), reference.squared_error, REALS),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Loss, reference, pre-activations, encoded target, and the target's rows for the reference."""
    loss, function, labels = CASES[request.param]
    n_outputs = 1 if "one output" in request.param else 3
    target = loss.encode(labels, n_outputs, "batch 0")
    u = np.random.default_rng(1).normal(size=(N, n_outputs)) * 2
    return loss, function, u, target, reference.rows(target, n_outputs)


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_value_residual_and_curvature_match_differentiation(case, xp, dtype):
    loss, function, u, target, rows = case
    u, target = xp.asarray(u.astype(dtype)), xp.asarray(target)
    points = as_numpy(u).astype(np.float64)
    tolerance = tolerances.of(dtype)
    pairs = list(zip(points, rows, strict=True))

    value = loss.value(u, target)
    residual = loss.residual(u, target)
    curvature = loss.curvature(u, target)
    assert value.dtype == residual.dtype == curvature.matrices().dtype == u.dtype
    assert_close(as_numpy(value), [function(p, y) for p, y in pairs], tolerance)
    slopes = [reference.gradient(lambda v, y=y: function(v, y), p) for p, y in pairs]
    assert_close(as_numpy(residual), slopes, tolerance)
    matrices = np.stack([reference.hessian(lambda v, y=y: function(v, y), p) for p, y in pairs])
    assert_close(as_numpy(curvature.matrices()), matrices, tolerance)

    vectors = np.random.default_rng(2).normal(size=(*points.shape, 2)).astype(dtype)
    product = matrices @ vectors
    assert_close(as_numpy(curvature.apply(xp.asarray(vectors))), product, tolerance)
    first = curvature.apply(xp.asarray(np.ascontiguousarray(vectors[:, :, 0])))
    assert_close(as_numpy(first), product[:, :, 0], tolerance)
    weight = np.asarray([0.0, 0.5, 1.0, 2.0, 3.0, 7.0])
    weighted = curvature.scaled(xp.asarray(weight.astype(dtype))).matrices()
    assert_close(as_numpy(weighted), matrices * weight[:, None, None], tolerance)


def test_flags_describe_the_curvature(case):
    loss, _, u, target, _ = case
    curvature = loss.curvature(u, target)
    matrices = curvature.matrices()
    off_diagonal = matrices * (1 - np.eye(u.shape[1]))
    assert (not off_diagonal.any()) or not loss.outputs_are_independent
    assert not loss.curvature_is_constant or np.ptp(np.diagonal(matrices, axis1=1, axis2=2)) == 0
    assert not curvature.rows_sum_to_zero or np.abs(matrices.sum(axis=2)).max() < 1e-15


def test_dense_curvature_applies_and_scales():
    matrices = RNG.normal(size=(2, 3, 3))
    curvature = Curvature(dense=matrices)
    vectors = RNG.normal(size=(2, 3))
    expected = np.stack([m @ v for m, v in zip(matrices, vectors, strict=True)])
    np.testing.assert_allclose(curvature.apply(vectors), expected, rtol=1e-12)
    doubled = curvature.scaled(np.asarray([2.0, 0.0])).matrices()
    np.testing.assert_array_equal(doubled, matrices * np.asarray([2, 0])[:, None, None])


def test_against_tensorflow(case):
    tf = pytest.importorskip("tensorflow")
    loss, _, u, target, rows = case
    smoothing = getattr(loss, "label_smoothing", 0.0)
    functions = {
        "softmax cross-entropy": lambda v: tf.keras.losses.categorical_crossentropy(
            rows, v, from_logits=True, label_smoothing=smoothing
        ),
        "binary cross-entropy": lambda v: tf.keras.losses.binary_crossentropy(
            rows, v, from_logits=True, label_smoothing=smoothing
        ),
        "squared error": lambda v: tf.keras.losses.MeanSquaredError(reduction=None, dtype="float64")(
            rows, v
        ),
    }
    if getattr(loss, "class_weight", None) is not None:  # TensorFlow's labels sum to 1: one class at a time

        def of_class(v, c):
            return tf.keras.losses.categorical_crossentropy(np.eye(3)[[c] * N], v, from_logits=True)

        functions["softmax cross-entropy"] = lambda v: sum(
            rows[:, c] * weight * of_class(v, c) for c, weight in enumerate(loss.class_weight)
        )
    v = tf.Variable(u)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = functions[loss.name](v)
        slope = inner.gradient(value, v)
    second = outer.batch_jacobian(slope, v, unconnected_gradients="zero")
    assert_close(loss.value(u, target), value, tolerances.FLOAT64)
    assert_close(loss.residual(u, target), slope, tolerances.FLOAT64)
    assert_close(loss.curvature(u, target).matrices(), second, tolerances.FLOAT64)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_extreme_pre_activations(xp, dtype):
    def numbers(*rows):
        return xp.asarray(np.asarray(rows, dtype=dtype))

    softmax, sigmoid = SoftmaxCrossEntropy(), BinaryCrossEntropy()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        u, target = numbers([1e4, 0, -1e4], [1e4, 0, -1e4]), xp.asarray(np.asarray([0, 2]))
        np.testing.assert_array_equal(as_numpy(softmax.value(u, target)), [0, 2e4])
        np.testing.assert_array_equal(as_numpy(softmax.residual(u, target)), [[0, 0, 0], [1, 0, -1]])
        assert not as_numpy(softmax.curvature(u, target).matrices()).any()

        u, target = numbers([1e4], [1e4], [-1e4], [-1e4]), numbers([0], [1], [0], [1])
        np.testing.assert_array_equal(as_numpy(sigmoid.value(u, target)), [1e4, 0, 0, 1e4])
        np.testing.assert_array_equal(as_numpy(sigmoid.residual(u, target)), [[1], [0], [0], [-1]])
        assert not as_numpy(sigmoid.curvature(u, target).matrices()).any()

        # Far out, but not so far that nothing is left: p (1 - p) = e^-30 on both sides.
        tails = as_numpy(sigmoid.curvature(numbers([30], [-30]), numbers([1], [1])).diagonal)
        assert_close(tails, np.exp([[-30.0], [-30.0]]), tolerances.of(dtype))


def test_margins_by_hand(xp):
    def numbers(*rows):
        return xp.asarray(np.asarray(rows, dtype=np.float64))

    u = numbers([3, 1, 0], [3, 1, 0], [2, 2, 0])
    softmax, sigmoid, squared = SoftmaxCrossEntropy(), BinaryCrossEntropy(), SquaredError()
    # given minus the best other one
    target = xp.asarray(np.asarray([0, 2, 1]))
    np.testing.assert_array_equal(as_numpy(softmax.margin(u, target)), [2, -3, 0])
    rows = numbers([0.9, 0.1, 0], [0, 0.4, 0.6], [0.1, 0.8, 0.1])
    np.testing.assert_array_equal(as_numpy(softmax.margin(u, rows)), [2, -3, 0])
    np.testing.assert_array_equal(as_numpy(softmax.given_output(rows)), [0, 2, 1])
    # the output that speaks least for its label
    np.testing.assert_array_equal(as_numpy(sigmoid.margin(u, numbers(*np.eye(3)))), [-1, -3, -2])
    one = numbers([3], [-2])
    np.testing.assert_array_equal(as_numpy(sigmoid.margin(one, numbers([1], [1]))), [3, -2])
    np.testing.assert_array_equal(as_numpy(sigmoid.margin(one, numbers([0], [0]))), [-3, 2])
    # minus the loss
    np.testing.assert_array_equal(as_numpy(squared.margin(one, numbers([1], [1]))), [-4, -9])


def test_predictions_and_labels_by_hand(xp):
    def numbers(*rows):
        return xp.asarray(np.asarray(rows, dtype=np.float64))

    softmax, sigmoid, squared = SoftmaxCrossEntropy(), BinaryCrossEntropy(), SquaredError()
    u, one = numbers([3, 1, 0], [-1, -2, 0]), numbers([3], [-2])
    for loss, points, predicted in [
        (softmax, u, [0, 2]),
        (sigmoid, u, [[1, 1, 0], [0, 0, 0]]),
        (BinaryCrossEntropy(one_against_rest=True), u, [0, 2]),
        (sigmoid, one, [1, 0]),
        (squared, one, [3, -2]),
        (squared, u, [[3, 1, 0], [-1, -2, 0]]),
    ]:
        np.testing.assert_array_equal(as_numpy(loss.predictions(points)), predicted)
    classes = xp.asarray(np.asarray([2, 0]))
    for loss, target, labels in [
        (softmax, classes, [2, 0]),
        (softmax, u, [0, 2]),
        (sigmoid, numbers([1], [0]), [1, 0]),
        (sigmoid, numbers([0.3], [1]), [0.3, 1]),
        (sigmoid, numbers([0, 1, 1], [0, 0, 0]), [[0, 1, 1], [0, 0, 0]]),
        (sigmoid, numbers([0, 0.3], [1, 0]), [[0, 0.3], [1, 0]]),
        (BinaryCrossEntropy(one_against_rest=True), numbers([0, 1, 0], [0, 0, 1]), [1, 2]),
        (squared, one, [3, -2]),
        (squared, u, [[3, 1, 0], [-1, -2, 0]]),
    ]:
        np.testing.assert_array_equal(as_numpy(loss.labels(target)), labels)


def test_tags_name_an_output_only_where_a_sample_has_one():
    loss = BinaryCrossEntropy()
    one_each = np.asarray([[0.0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(loss.given_output(one_each), [1, 0])
    for tags, n_tags in (([0.0, 0, 0], 0), ([1.0, 0, 1], 2)):
        with pytest.raises(WhenceError, match=rf"^label: .* a sample with {n_tags} tags"):
            loss.given_output(np.vstack([one_each, tags]))


def test_one_output_has_no_other_to_be_compared_with():
    u = np.asarray([[2.0], [-1.0]])
    np.testing.assert_array_equal(SoftmaxCrossEntropy().margin(u, np.asarray([0, 0])), [2.0, -1.0])


def test_fractions_are_no_classes():
    with pytest.raises(WhenceError, match="class numbers from 0 to 2, or rows of 3 probabilities"):
        SoftmaxCrossEntropy().encode(np.asarray([0.5, 1.0]), 3, "batch 0")


def test_encoded_labels_keep_their_kind():
    softmax, squared = SoftmaxCrossEntropy(), SquaredError()
    assert softmax.encode(np.uint8([0, 2]), 3, "batch 0").dtype == np.int64
    assert softmax.encode(np.float32([0, 2]), 3, "batch 0").tolist() == [0, 2]
    assert softmax.encode(np.int8([[0, 1], [1, 0]]), 2, "batch 0").dtype == np.float32
    assert squared.encode(np.float64([[0.1]]), 1, "batch 0").dtype == np.float64
    assert squared.encode(np.float64([0.1, 0.2]), 1, "batch 0").shape == (2, 1)
    empty = np.zeros((0,), dtype=np.int64)
    assert softmax.encode(empty, 3, "batch 0").shape == (0,)


@pytest.mark.parametrize(
    ("loss", "labels", "n_outputs", "expected"),
    [
        (SoftmaxCrossEntropy(), [0, 3], 3, "class 3"),
        (SoftmaxCrossEntropy(), [-1, 0], 3, "class -1"),
        (SoftmaxCrossEntropy(), [0.0, 0.5], 3, "fractions such as 0.5"),
        (SoftmaxCrossEntropy(), [0.0, np.inf], 3, "inf"),
        (SoftmaxCrossEntropy(), [0.0, np.nan], 3, "nan"),
        (SoftmaxCrossEntropy(), [0.0, 2.0**70], 3, f"class {2**70}"),
        (SoftmaxCrossEntropy(), np.asarray([2**64 - 1], np.uint64), 3, f"class {2**64 - 1}"),
        (SoftmaxCrossEntropy(), [False, True], 1, "class 1"),
        (SoftmaxCrossEntropy(), ["cat", "dog"], 3, "dtype <U3"),
        (SoftmaxCrossEntropy(), np.eye(4), 3, r"shape \(4, 4\)"),
        (SoftmaxCrossEntropy(), np.ones((2, 2, 3)), 3, r"shape \(2, 2, 3\)"),
        (SoftmaxCrossEntropy(), [[1.0, 1.0, 0.0]], 3, "a row that sums to 2"),
        (SoftmaxCrossEntropy(), [[1.0, 0.0], [np.nan, 0.0]], 2, "nan"),
        (SoftmaxCrossEntropy(), [[0.5, 0.5], [1.5, -0.5]], 2, "a row that holds -0.5"),
        (BinaryCrossEntropy(), [0, 2], 1, "2"),
        (BinaryCrossEntropy(), [[0.0, -1.0]], 2, "-1"),
        (BinaryCrossEntropy(), [[0.0, np.nan]], 2, "nan"),
        (BinaryCrossEntropy(), [0, 1], 3, r"shape \(2,\)"),
        (BinaryCrossEntropy(), [["a"]], 1, "dtype <U1"),
        (SquaredError(), [[0.0, 1.0]], 3, r"shape \(1, 2\)"),
        (SquaredError(), [[np.nan]], 1, "nan"),
        (SquaredError(), [[np.inf]], 1, "inf"),
        (SquaredError(), np.asarray([[None]]), 1, "dtype object"),
    ],
)
def test_labels_of_the_wrong_kind_are_named(loss, labels, n_outputs, expected):
    with pytest.raises(WhenceError, match=rf"^labels in batch 7: expected .* got .*{expected}\."):
        loss.encode(np.asarray(labels), n_outputs, "batch 7")


def test_fingerprints_tell_losses_apart():
    losses = [
        SoftmaxCrossEntropy(),
        SoftmaxCrossEntropy(label_smoothing=0.1),
        BinaryCrossEntropy(),
        BinaryCrossEntropy(label_smoothing=0.1),
        SquaredError(),
    ]
    assert len({loss.fingerprint() for loss in losses}) == len(losses)
    assert SoftmaxCrossEntropy().fingerprint() == SoftmaxCrossEntropy(0.0).fingerprint()
