"""Any loss, any tail: against TensorFlow's derivatives of the whole model, and bad input."""

import numpy as np
import pytest

import whence
from whence.layers import losses as losses
from whence.layers.linear_layer import Block
from whence.models.differentiated import DifferentiatedLoss

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

N, D = 24, 4
layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
INTS = RNG.integers(0, 3, N)
ONE_HOT = np.eye(3)[INTS]
REALS = RNG.normal(size=(N, 3))


def tail_norm():
    norm = layers.BatchNormalization()
    norm.build((None, 3))
    norm.set_weights(np.asarray([[1, 0.5, 2], [0, 0.3, -0.2], [0.1, 0, -0.4], [1, 2, 0.5]]))
    return norm


def focal(y_true, y_pred):
    """Focal loss of the softmax, on logits, written with the framework's own operations."""
    p = keras.ops.softmax(y_pred)
    return -keras.ops.sum(y_true * (1 - p) ** 2 * keras.ops.log(p), axis=-1)


def net(*tail, head="linear", dtype="float64", units=3):
    """A small model; its target layer is called head, and what follows is made by ``tail``."""
    keras.utils.set_random_seed(1)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        first = layers.Dense(4, activation="tanh")
        target = layers.Dense(units, activation=head if isinstance(head, str) else head(), name="head")
        return keras.Sequential([keras.Input((D,)), first, target, *(make() for make in tail)])
    finally:
        keras.config.set_dtype_policy(policy)


def wrap(model, loss, **options):
    return whence.InfluenceModel(model, "head", loss_function=loss, **options)


def reference(model, loss, y, layer="head"):
    """Gradient and Hessian of the mean loss, flattened output by output, bias last, in float64."""
    layer = model.get_layer(layer)
    weights = [layer.kernel.value, layer.bias.value]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            output = model(X, training=False)
            mean = tf.reduce_mean(loss(tf.cast(y, output.dtype), output))
        gradient = tf.concat(
            [g if len(g.shape) == 2 else g[None] for g in inner.gradient(mean, weights)], axis=0
        )
        flat = tf.reshape(tf.transpose(gradient), [-1])
    parts = outer.jacobian(flat, weights, unconnected_gradients="zero")
    size = flat.shape[0]
    rows = tf.concat([tf.reshape(parts[0], [size, -1, weights[0].shape[1]]), parts[1][:, None]], axis=1)
    return gradient.numpy(), tf.reshape(tf.transpose(rows, [0, 2, 1]), [size, size]).numpy()


CASES = {
    "huber": (keras.losses.Huber(0.7), REALS, {}),
    "poisson": (keras.losses.Poisson(), INTS[:, None] + ONE_HOT, {"head": "softplus"}),
    "cosine similarity": (keras.losses.CosineSimilarity(), REALS, {}),
    "squared hinge": (keras.losses.SquaredHinge(), 2 * ONE_HOT - 1, {}),
    "focal": (keras.losses.CategoricalFocalCrossentropy(), ONE_HOT, {"head": "softmax"}),
    "a function": (focal, ONE_HOT, {}),
    "an ignored class": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1),
        INTS,
        {},
    ),
    "Brier score": (keras.losses.MeanSquaredError(), ONE_HOT, {"head": "softmax"}),
    "smoothing behind normalisation": (
        keras.losses.CategoricalCrossentropy(label_smoothing=0.2),
        ONE_HOT,
        {"tail": (tail_norm, lambda: layers.Dropout(0.5), layers.Softmax)},
    ),
    "another dense layer": (
        keras.losses.MeanSquaredError(),
        REALS[:, :1],
        {"tail": (layers.LeakyReLU, lambda: layers.Dense(1, activation="gelu"))},
    ),
    "an activation layer": (keras.losses.MeanSquaredError(), REALS, {"head": layers.ELU}),
    "an image": (
        keras.losses.MeanSquaredError(),
        REALS.repeat(2, 1).reshape(N, 2, 3),
        {"tail": (lambda: layers.Dense(6), lambda: layers.Reshape((2, 3)))},
    ),
}


#: What is tried in every run; the others differ in the loss alone, and each takes seconds to compile.
ALWAYS = {"huber", "a function", "smoothing behind normalisation", "another dense layer"}


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(
    scope="module",
    params=[*sorted(ALWAYS), *slow(*(name for name in CASES if name not in ALWAYS))],
    ids=str,
)
def case(request):
    loss, y, how = CASES[request.param]
    model = net(*how.get("tail", ()), head=how.get("head", "linear"))
    wrapped = wrap(model, loss)
    lje = whence.RepresenterPointLJE(
        wrapped, (X, y), whence.ExactIHVPFactory(damping=2.0), step_size=0.0, progress=False
    )
    return model, getattr(loss, "call", loss), y, wrapped, lje


def test_derivatives_are_those_of_the_whole_model(case):
    model, loss, y, wrapped, lje = case
    assert isinstance(wrapped.loss, DifferentiatedLoss)
    gradient, hessian = reference(model, loss, y)
    np.testing.assert_allclose(wrapped.layer.mean_gradient(lje.index), gradient, atol=1e-10)
    np.testing.assert_allclose(wrapped.layer.hessian(lje.index).matrix(), hessian, atol=1e-10)
    vector = RNG.normal(size=(1, *gradient.shape))
    product = (hessian @ vector[0].T.ravel()).reshape(gradient.T.shape).T
    np.testing.assert_allclose(wrapped.layer.hessian_product(lje.index, vector)[0], product, atol=1e-10)


def test_values_are_complete(case):
    model, loss, y, wrapped, lje = case
    gradient, hessian = reference(model, loss, y)
    solved = np.linalg.solve(hessian + 2 * np.eye(len(hessian)), gradient.T.ravel())
    dagger = wrapped.layer.theta - solved.reshape(gradient.T.shape).T
    phi = lje.index.shards[0].phi
    explanation = lje.explain((X, y), k=N)
    expected = (phi @ dagger)[np.arange(N), explanation.outputs]
    np.testing.assert_allclose(explanation.values.sum(axis=1), expected, atol=1e-9)
    assert len(lje.suspects((X, y), k=3)) == 3


@pytest.mark.parametrize(
    ("framework", "closed", "head", "y"),
    [
        (
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3),
            losses.SoftmaxCrossEntropy(label_smoothing=0.3),
            "linear",
            ONE_HOT,
        ),
        (keras.losses.CategoricalCrossentropy(), losses.SoftmaxCrossEntropy(), "softmax", ONE_HOT),
        (
            keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.3),
            losses.BinaryCrossEntropy(label_smoothing=0.3),
            "linear",
            ONE_HOT,
        ),
        (keras.losses.BinaryCrossentropy(), losses.BinaryCrossEntropy(), "sigmoid", ONE_HOT),
        (keras.losses.MeanSquaredError(), losses.SquaredError(), "linear", REALS),
    ],
    ids=["smoothed softmax", "softmax", "smoothed sigmoid", "sigmoid", "squared error"],
)
def test_equals_the_closed_form(framework, closed, head, y):
    # The function hides which loss it is.
    general = wrap(net(head=head), lambda y_true, y_pred: framework.call(y_true, y_pred))
    known = wrap(net(head=head), framework)
    index = general.index((X, y))
    known.index((X, y))
    assert isinstance(general.loss, DifferentiatedLoss)
    assert known.loss == closed
    block = Block(RNG.normal(scale=2, size=(N, 5)), y)
    for part in (block, index.shards[0].block):
        np.testing.assert_allclose(general.layer.losses(part), known.layer.losses(part), atol=1e-10)
        np.testing.assert_allclose(general.layer.residuals(part), known.layer.residuals(part), atol=1e-10)
        np.testing.assert_allclose(
            general.layer.curvatures(part).matrices(),
            known.layer.curvatures(part).matrices(),
            atol=1e-10,
        )


def test_sample_weights_multiply_the_loss():
    weight = RNG.random(N)
    wrapped = wrap(net(), keras.losses.Huber())
    index = wrapped.index((X, REALS, weight))
    gradient, hessian = reference(
        wrapped.model, lambda y, p: weight * keras.losses.Huber().call(y, p), REALS
    )
    np.testing.assert_allclose(wrapped.layer.mean_gradient(index), gradient, atol=1e-10)
    np.testing.assert_allclose(wrapped.layer.hessian(index).matrix(), hessian, atol=1e-10)


@pytest.mark.parametrize("dtype", ["mixed_float16", *slow("float32", "mixed_bfloat16")])
def test_layers_of_less_precision_are_differentiated_in_double(dtype):
    model = net(tail_norm, layers.Softmax, dtype=dtype)
    exact = net(tail_norm, layers.Softmax)
    exact.set_weights(model.get_weights())
    wrapped, double = (wrap(m, "kl_divergence") for m in (model, exact))
    x = X.astype(np.float32)
    index = wrapped.index((x, ONE_HOT))
    double.index((X, ONE_HOT))
    assert index.dtype == np.float32
    assert wrapped.loss.derivatives.precision == "float64"
    block = index.shards[0].block
    wide = Block(block.phi.astype(np.float64), block.target)
    for mine, theirs in [
        (wrapped.layer.residuals(wide), double.layer.residuals(wide)),
        (wrapped.layer.curvatures(wide).matrices(), double.layer.curvatures(wide).matrices()),
    ]:
        np.testing.assert_allclose(mine, theirs, atol=1e-10)


def test_code_that_fixes_a_precision_is_differentiated_in_it():
    scale = tf.constant([1.0, 2.0, 3.0])

    def weighted(y_true, y_pred):
        return tf.reduce_sum(scale * (y_true - y_pred) ** 4, axis=1)

    wrapped = wrap(net(dtype="float32"), weighted)
    index = wrapped.index((X.astype(np.float32), REALS))
    assert wrapped.loss.derivatives.precision == "float32"
    u = index.shards[0].phi @ wrapped.layer.theta
    np.testing.assert_allclose(
        wrapped.layer.residuals(index.shards[0].block),
        4 * scale * (u - REALS) ** 3,
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_model_is_left_as_it_was():
    model = net(tail_norm, layers.Softmax, dtype="mixed_float16")
    every = [model, *model._flatten_layers(include_self=False)]
    before = [dict(vars(layer)) for layer in every], model.get_weights(), model(X).numpy()
    whence.RepresenterPointLJE(wrap(model, "kld"), (X, ONE_HOT), whence.ExactIHVPFactory(1.0))
    for layer, attributes in zip(every, before[0], strict=True):
        assert set(vars(layer)) == set(attributes)
        assert layer.dtype_policy is attributes["_dtype_policy"]
    for now, then in zip(model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(model(X).numpy(), before[2])


def test_any_dense_layer_by_index_and_name():
    model = net(head="softmax")
    model.compile(loss="categorical_crossentropy")
    hidden = whence.InfluenceModel(model, 0)
    assert hidden.layer_name == model.layers[0].name
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), (X, ONE_HOT), whence.ExactIHVPFactory(2.0), target_layer=0
    )
    loss = keras.losses.categorical_crossentropy
    _, hessian = reference(model, loss, ONE_HOT, layer=model.layers[0].name)
    np.testing.assert_allclose(lje.layer.hessian(lje.index).matrix(), hessian, atol=1e-10)
    explanation = lje.explain((X, ONE_HOT), k=N)
    np.testing.assert_array_equal(explanation.predictions, model(X).numpy().argmax(axis=1))
    np.testing.assert_array_equal(explanation.labels, INTS)
    u = X @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy()
    np.testing.assert_array_equal(explanation.outputs, u.argmax(axis=1))
    given = whence.RepresenterPointLJE(hidden, (X, ONE_HOT), whence.ExactIHVPFactory(2.0), label="given")
    with pytest.raises(whence.WhenceError, match="do not name outputs"):
        given.explain((X, ONE_HOT))


def test_classes_of_losses_on_classes():
    hinge = wrap(net(units=1), "hinge")
    signs = np.where(INTS == 0, -1.0, 1.0)
    with pytest.warns(UserWarning, match="expected second derivatives"):
        hinge.index((X, signs))
    assert hinge.loss.is_classification
    np.testing.assert_array_equal(hinge.loss.labels(signs), INTS > 0)
    np.testing.assert_array_equal(hinge.loss.predictions(np.asarray([[-0.1], [0.1]])), [0, 1])
    mine = wrap(net(), focal, classes=True)
    mine.index((X, ONE_HOT))
    assert mine.loss.is_classification
    np.testing.assert_array_equal(mine.loss.given_output(ONE_HOT), INTS)
    assert not wrap_and_index(net(), focal, ONE_HOT).loss.is_classification


def wrap_and_index(model, loss, y):
    wrapped = wrap(model, loss)
    wrapped.index((X, y))
    return wrapped


def test_a_piecewise_linear_loss_has_its_damping_as_hessian():
    wrapped = wrap(net(), "mean_absolute_error")
    with pytest.warns(UserWarning, match="its damping"):
        lje = whence.RepresenterPointLJE(
            wrapped, (X, REALS), whence.ExactIHVPFactory(damping=0.5), step_size=0.0
        )
    gradient, _ = reference(wrapped.model, keras.losses.mean_absolute_error, REALS)
    np.testing.assert_allclose(lje.theta_dagger, lje.layer.theta - gradient / 0.5, atol=1e-12)


@pytest.mark.slow
def test_fingerprint_tells_losses_and_tails_apart():
    def power(exponent):
        return lambda y_true, y_pred: keras.ops.sum((y_true - y_pred) ** exponent, axis=1)

    def fingerprint(loss, *tail):
        head = layers.Dense(3, name="head", kernel_initializer="ones")
        return wrap_and_index(net_of(head, *tail), loss, REALS).fingerprint()

    assert fingerprint(power(4)) == fingerprint(power(4))
    assert fingerprint(keras.losses.Huber()) == fingerprint(keras.losses.Huber())
    prints = {
        fingerprint(power(4)),
        fingerprint(power(6)),
        fingerprint(keras.losses.Huber()),
        fingerprint(keras.losses.Huber(0.5)),
        fingerprint(keras.losses.Huber(), tail_norm()),
        fingerprint(keras.losses.Huber(), layers.BatchNormalization()),
    }
    assert len(prints) == 6


def skip_connection():
    inputs = keras.Input((D,))
    head = layers.Dense(D, name="head")(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Add()([inputs, head])))


def two_outputs():
    inputs = keras.Input((D,))
    head = layers.Dense(3, name="head")(inputs)
    return keras.Model(inputs, [head, head])


class Doubled(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


BAD = {
    "scalar": (net, lambda y, p: tf.reduce_mean((y - p) ** 2), REALS, "got a single number"),
    "reduced by Keras": (net, keras.losses.Dice(), ONE_HOT, "got a single number"),
    "summed over the batch": (
        net,
        lambda y, p: tf.reduce_sum((y - p) ** 2, axis=0),
        REALS,
        "shape",
    ),
    "samples that depend on each other": (
        net,
        lambda y, p: tf.reduce_mean((y - p + tf.reduce_mean(p, axis=0)) ** 2, axis=1),
        REALS,
        "the others of batch 0",
    ),
    "a metric": (
        net,
        lambda y, p: tf.cast(tf.argmax(p, axis=1) == 0, p.dtype),
        REALS,
        "without a gradient",
    ),
    "a logarithm of negative numbers": (
        net,
        lambda y, p: tf.reduce_sum(tf.math.log(p), axis=1),
        REALS,
        "batch 0.*NaN",
    ),
    "labels of another form": (net, keras.losses.Huber(), REALS[:, :2], "batch 0.*refused"),
    "labels outside the classes": (
        net,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
        INTS + 7,
        "batch 0",
    ),
    "texts as labels": (net, keras.losses.Huber(), np.asarray(["a"] * N), "expected numbers"),
    "a skip connection": (skip_connection, "huber", REALS, "skip connection"),
    "two outputs": (two_outputs, "huber", REALS, "2 outputs"),
    "a list of losses": (net, ["huber", "mse"], REALS, "got a list"),
    "an unknown name": (net, "hubert", REALS, "Keras knows"),
    "logits taken for probabilities": (
        net,
        keras.losses.CategoricalCrossentropy(),
        ONE_HOT,
        "from_logits=True if and only if",
    ),
    "probabilities taken for logits": (
        lambda: net(head="softmax"),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        ONE_HOT,
        "from_logits=True if and only if",
    ),
    "a dense layer that is not": (
        lambda: net_of(Doubled(3, name="head")),
        "mse",
        REALS,
        "something else from them",
    ),
}


def net_of(*parts):
    return keras.Sequential([keras.Input((D,)), *parts])


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    model, loss, y, match = BAD[name]
    with pytest.raises(whence.WhenceError, match=match):
        wrap(model(), loss).index((X, y))


def test_a_loss_without_closed_form_needs_a_batch():
    wrapped = wrap(net(), "huber")
    with pytest.raises(whence.WhenceError, match="a batch first"):
        _ = wrapped.layer
    layer, index = wrapped.linear_system((X, REALS))
    assert layer.mean_gradient(index).shape == (5, 3)
