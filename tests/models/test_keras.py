"""Keras models: which layer is read and what is read of it, against TensorFlow's autodiff."""

import random

import numpy as np
import pytest
from tolerances import FLOAT32, FLOAT64, assert_close

import whence
from whence.data.base import open_dataset
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError
from whence.layers.margin_losses import Poisson

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

ZERO = tf.UnconnectedGradients.ZERO
layers = keras.layers
losses = keras.losses
N, D, HIDDEN = 18, 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
CLASSES = RNG.integers(0, 3, N)
SOFT = RNG.dirichlet(np.ones(3), N)
SEVERAL = RNG.integers(0, 2, (N, 3))
REALS = RNG.normal(size=(N, 3))


def entrance(size=D):
    """A ``keras.Input`` in the precision of the layers made now; its own default is float32."""
    return keras.Input((size,), dtype=keras.config.dtype_policy().compute_dtype)


def hidden(x):
    return layers.Dense(HIDDEN, activation="tanh", name="hidden")(x)


def sequential(head, *tail):
    first = layers.Dense(HIDDEN, activation="tanh", name="hidden")
    return keras.Sequential([entrance(), first, head, *tail])


def functional(head, *tail):
    inputs = entrance()
    x = head(hidden(inputs))
    for layer in tail:
        x = layer(x)
    return keras.Model(inputs, x)


class Subclassed(keras.Model):
    def __init__(self, head, *tail):
        super().__init__()
        self.first = layers.Dense(HIDDEN, activation="tanh", name="hidden")
        self.dropout = layers.Dropout(0.5)
        self.head = head
        self.rest = list(tail)

    def call(self, inputs, training=False):
        x = self.head(self.dropout(self.first(inputs), training=training))
        for layer in self.rest:
            x = layer(x)
        return x


def subclassed(head, *tail):
    model = Subclassed(head, *tail)
    model(X[:1])
    return model


def inner_head(head, *tail):
    """The head is the last layer of an inner model of an inner model."""
    inner = keras.Sequential([entrance(HIDDEN), head, *tail], name="inner")
    middle = keras.Sequential([entrance(HIDDEN), inner], name="middle")
    inputs = entrance()
    return keras.Model(inputs, middle(hidden(inputs)))


KINDS = {
    "Sequential": sequential,
    "functional": functional,
    "subclassed": subclassed,
    "inner model": inner_head,
}


def make(kind=sequential, units=3, activation=None, tail=(), dtype="float64", seed=1, **head):
    """A small model whose target layer is called head."""
    keras.utils.set_random_seed(seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        target = layers.Dense(units, activation=activation, name="head", **head)
        return kind(target, *(layer() for layer in tail))
    finally:
        keras.config.set_dtype_policy(policy)


def layer_of(model, name):
    (found,) = [x for x in model._flatten_layers(include_self=False) if x.name == name]
    return found


def features_by_hand(model, x=X):
    """The input of the head with its constant, by NumPy."""
    first, head = layer_of(model, "hidden"), layer_of(model, "head")
    phi = np.tanh(x @ np.asarray(first.kernel) + np.asarray(first.bias))
    return np.concatenate([phi, np.ones((len(x), 1))], axis=1) if head.use_bias else phi


# ---- features, weights, gradients, Hessians -----------------------------------------------------


def autodiff(model, loss, y, weight=1.0):
    """Each sample's gradient ``(N, d, C)`` and the mean's Hessian, by TensorFlow, on the full model."""
    head = layer_of(model, "head")
    variables = [head.kernel.value] + ([head.bias.value] if head.use_bias else [])

    def joined(parts, n_outputs):
        wide = [tf.reshape(p, [p.shape[0], -1, n_outputs]) for p in parts]
        return tf.concat(wide, axis=1)

    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape(persistent=True) as inner:
            output = model(X, training=False)
            each = weight * loss.call(tf.cast(y, output.dtype), output)
            mean = tf.reduce_mean(each)
        gradient = joined([g[None] for g in inner.gradient(mean, variables)], head.units)[0]
        flat = tf.reshape(tf.transpose(gradient), [-1])
    of_samples = joined(inner.jacobian(each, variables, experimental_use_pfor=False), head.units)
    rows = joined(outer.jacobian(flat, variables, ZERO, experimental_use_pfor=False), head.units)
    hessian = tf.reshape(tf.transpose(rows, [0, 2, 1]), [flat.shape[0]] * 2)
    return of_samples.numpy(), hessian.numpy()


LOSSES = {
    # name: Keras's loss, labels, how the head is made, what the library should take it for
    "sparse, logits": (
        losses.SparseCategoricalCrossentropy(from_logits=True),
        CLASSES,
        {},
        SoftmaxCrossEntropy(),
    ),
    "sparse, softmax inside": (
        losses.SparseCategoricalCrossentropy(reduction=None),
        CLASSES,
        {"activation": "softmax", "use_bias": False},
        SoftmaxCrossEntropy(),
    ),
    "one-hot, softmax layer": (
        losses.CategoricalCrossentropy(reduction="sum"),
        np.eye(3)[CLASSES],
        {"tail": (layers.Softmax,)},
        SoftmaxCrossEntropy(),
    ),
    "soft labels, smoothed": (
        losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        SOFT,
        {"use_bias": False},
        SoftmaxCrossEntropy(label_smoothing=0.2),
    ),
    "one sigmoid inside": (
        losses.BinaryCrossentropy(),
        (CLASSES > 0)[:, None],
        {"units": 1, "activation": "sigmoid"},
        BinaryCrossEntropy(),
    ),
    "several logits": (
        losses.BinaryCrossentropy(from_logits=True, reduction="sum", label_smoothing=0.1),
        SEVERAL,
        {"use_bias": False},
        BinaryCrossEntropy(label_smoothing=0.1),
    ),
    "squared error": (losses.MeanSquaredError(), REALS, {}, SquaredError()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_match_autodiff_on_the_full_model(name):
    loss, y, how, known = LOSSES[name]
    weight = RNG.uniform(0.5, 2, N)
    model = make(**how)
    gradients, hessian = autodiff(model, loss, y, weight)
    single = make(dtype="float32", **how)
    single.set_weights(model.get_weights())
    exact = make(**how)
    exact.set_weights(single.get_weights())  # the same rounded weights, in float64
    rounded = autodiff(exact, loss, y, weight)

    for net, x, expected, tolerance in (
        (model, X, (gradients, hessian), FLOAT64),
        (single, X.astype(np.float32), rounded, FLOAT32),
    ):
        net.compile(loss=loss)
        wrapped = whence.InfluenceModel(net)
        index = wrapped.index((x, y, weight.astype(x.dtype)))
        assert wrapped.loss == known
        assert index.dtype == x.dtype
        assert_close(np.concatenate([block.phi for block in index]), features_by_hand(net), tolerance)
        (block,) = index
        residuals = wrapped.layer.residuals(block)
        assert_close(block.phi[:, :, None] * residuals[:, None, :], expected[0], tolerance)
        assert_close(wrapped.layer.mean_gradient(index), expected[0].mean(axis=0), tolerance)
        assert_close(wrapped.layer.hessian(index).matrix(), expected[1], tolerance)
        vectors = np.random.default_rng(3).normal(size=(2, *gradients.shape[1:])).astype(x.dtype)
        products = [(expected[1] @ v.T.ravel()).reshape(v.T.shape).T for v in vectors]
        assert_close(wrapped.layer.hessian_product(index, vectors), products, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_every_kind_of_model_gives_features_and_weights(kind, use_bias):
    model = make(KINDS[kind], use_bias=use_bias, tail=(lambda: layers.Activation("softmax"),))
    model.compile(loss="sparse_categorical_crossentropy")
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index((X, CLASSES))
    assert wrapped.layer_name.split("/")[-1] == "head"
    head = layer_of(model, "head")
    assert_close(next(iter(index)).phi, features_by_hand(model), FLOAT64)
    weights = [head.kernel] if not use_bias else [head.kernel, head.bias[None]]
    np.testing.assert_array_equal(wrapped.layer.theta, np.concatenate(weights))
    u = wrapped.layer.pre_activations(next(iter(index)).phi)
    assert_close(np.asarray(model(X)), np.exp(u) / np.exp(u).sum(axis=1, keepdims=True), FLOAT64)


# ---- which layer --------------------------------------------------------------------------------


def deep():
    """Layers: dense 0, dropout 1, dense 2, softmax 3; the first with its activation inside."""
    return keras.Sequential(
        [
            keras.Input((D,)),
            layers.Dense(5, activation="relu", name="one"),
            layers.Dropout(0.5, name="dropped"),
            layers.Dense(3, name="two"),
            layers.Softmax(name="last"),
        ]
    )


@pytest.mark.parametrize(
    ("layer", "name"),
    [(-1, "two"), (3, "two"), (2, "two"), (-2, "two"), ("two", "two"), (1, "one"), (0, "one"), (-4, "one")],
)
def test_a_layer_by_index_and_by_name(layer, name):
    model = deep()
    model.compile(loss="sparse_categorical_crossentropy")
    assert whence.InfluenceModel(model, layer).layer_name == name


def test_index_of_a_layer_without_weights_counts_from_there_in_any_model():
    model = make(functional, tail=(lambda: layers.Dropout(0.3), layers.Softmax))
    model.compile(loss="sparse_categorical_crossentropy")
    assert [layer.name for layer in model.layers][1:3] == ["hidden", "head"]
    for index, name in ((-1, "head"), (-2, "head"), (-3, "head"), (2, "head"), (1, "hidden")):
        assert whence.InfluenceModel(model, index).layer_name == name
    nested = make(inner_head)
    nested.compile(loss="mse")
    for wanted in (-1, "head", "middle/inner/head"):
        assert whence.InfluenceModel(nested, wanted).layer_name == "middle/inner/head"


def test_the_constructor_may_name_another_layer_than_the_model():
    model = deep()
    model.compile(loss="sparse_categorical_crossentropy")
    wrapped = whence.InfluenceModel(model, 0)
    factory = whence.ExactIHVPFactory(damping=5.0)
    follows = whence.RepresenterPointLJE(wrapped, (X, CLASSES), factory)
    named = whence.RepresenterPointLJE(wrapped, (X, CLASSES), factory, target_layer="two")
    assert follows.influence_model.layer_name == "one"
    assert named.influence_model.layer_name == "two"
    assert wrapped.layer_name == "one"


def test_a_shared_name_is_told_apart_by_its_path():
    inner = [
        keras.Sequential([keras.Input((D,)), layers.Dense(D, name="same")], name=name) for name in "ab"
    ]
    model = keras.Sequential([keras.Input((D,)), *inner])
    model.compile(loss="mse")
    assert whence.InfluenceModel(model, "a/same").layer_name == "a/same"
    with pytest.raises(whence.WhenceError, match=r"'same', which is the name of 2.* a/same .* b/same"):
        whence.InfluenceModel(model, "same")


# ---- the loss -----------------------------------------------------------------------------------

REDUCTIONS = ["sum", "sum_over_batch_size", None]
if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 7):
    REDUCTIONS.append("mean_with_sample_weight")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_reduction_of_the_loss_changes_nothing(reduction):
    model = make()
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(loss=loss)
    compiled = whence.InfluenceModel(model)
    given = whence.InfluenceModel(make(), loss_function=loss)
    for wrapped in (compiled, given):
        index = wrapped.index((X, CLASSES))
        head = layer_of(wrapped.model, "head")
        phi = features_by_hand(wrapped.model)
        u = phi @ np.concatenate([head.kernel, head.bias[None]])
        p = np.exp(u) / np.exp(u).sum(axis=1, keepdims=True)
        gradient = phi.T @ (p - np.eye(3)[CLASSES]) / N
        assert_close(wrapped.layer.mean_gradient(index), gradient, FLOAT64)


@pytest.mark.parametrize(
    "loss",
    ["sparse_categorical_crossentropy", losses.sparse_categorical_crossentropy],
    ids=["name", "function"],
)
def test_a_loss_by_name_or_function_is_known(loss):
    model = make(activation="softmax")
    model.compile(loss=loss)
    for wrapped in (whence.InfluenceModel(model), whence.InfluenceModel(model, loss_function=loss)):
        wrapped.index((X, CLASSES))
        assert wrapped.loss == SoftmaxCrossEntropy()


def test_a_loss_that_is_given_goes_before_the_compiled_one():
    model = make()
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped = whence.InfluenceModel(model, loss_function="mean_squared_error")
    wrapped.index((X, REALS))
    assert wrapped.loss == SquaredError()


@pytest.mark.parametrize(
    ("regularizer", "curvature"),
    [(keras.regularizers.L2(0.05), 0.1), (keras.regularizers.L1L2(0.3, 0.02), 0.04), ("l2", 0.02)],
    ids=["L2", "L1L2", "by name"],
)
def test_the_layers_own_l2_is_part_of_lam(regularizer, curvature):
    model = make(kernel_regularizer=regularizer)
    model.compile(loss="mean_squared_error")
    layer = whence.InfluenceModel(model).layer
    np.testing.assert_allclose(layer.regulariser(0.5), [*[0.5 + curvature] * HIDDEN, 0.5], rtol=1e-12)


def test_l2_on_the_bias_is_read_too():
    model = make(bias_regularizer=keras.regularizers.L2(0.05))
    model.compile(loss="mean_squared_error")
    layer = whence.InfluenceModel(model).layer
    np.testing.assert_allclose(layer.regulariser(), [*[0.0] * HIDDEN, 0.1], rtol=1e-12)


def test_l2_is_the_second_derivative_of_keras_own_penalty():
    model = make(kernel_regularizer=keras.regularizers.L2(0.05))
    model.compile(loss="mean_squared_error")
    wrapped = whence.InfluenceModel(model)
    kernel = layer_of(model, "head").kernel.value
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            penalty = tf.add_n(model.losses)
        slope = inner.gradient(penalty, kernel)
    second = (
        outer.jacobian(slope, kernel, experimental_use_pfor=False)
        .numpy()
        .reshape(kernel.shape.num_elements(), -1)
    )
    np.testing.assert_allclose(second, wrapped.layer.l2 * np.eye(len(second)), atol=1e-7)


# ---- the model is left as it was ----------------------------------------------------------------


def with_state():
    """A model with everything that a forward pass could change: moving averages, dropout's seeds."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((D,)),
            layers.Dense(6),
            layers.BatchNormalization(),
            layers.GaussianNoise(0.3),
            layers.Dropout(0.4),
            layers.Dense(3, name="head", kernel_regularizer="l2"),
        ]
    )
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(X, CLASSES, epochs=1, batch_size=9, verbose=0)
    return model


def everything(model):
    """All that Python knows of a model and its layers, and the values of all variables."""
    every = [model, *model._flatten_layers(include_self=False)]
    held = [dict(vars(layer)) for layer in every]
    values = [v.numpy().copy() for v in [*model.variables, *model.optimizer.variables]]
    return held, values, [layer.trainable for layer in every]


def explain_everything(model):
    train = tf.data.Dataset.from_tensor_slices((X, CLASSES)).batch(5)
    lje = whence.RepresenterPointLJE(whence.InfluenceModel(model), train, whence.ExactIHVPFactory())
    lje.explain(train, k=2)
    lje.suspects(train, k=2)
    list(lje.compute_influence_values(train))
    list(lje.compute_influence_vector(train))
    lje.compute_top_k_from_training_dataset(train, 2)
    for _, inner in lje.estimate_influence_values_in_batches(
        train, train, influence_vector_in_cache=whence.CACHE.NO_CACHE
    ):
        list(inner)
    list(lje.top_k(train, train, k=2))


def test_the_model_is_never_changed_and_trains_on_as_if_nothing_had_happened():
    model, twin = with_state(), with_state()
    before, drawn = everything(model), random.getstate()
    compiled = model.get_compile_config()
    explain_everything(model)
    after = everything(model)
    for attributes, now in zip(before[0], after[0], strict=True):
        assert set(attributes) == set(now)
        for key, value in attributes.items():
            assert now[key] is value or now[key] == value, key
    for then, now in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(now, then)
    assert before[2] == after[2]
    assert model.compiled
    assert model.get_compile_config() == compiled
    assert random.getstate() == drawn
    for net in (model, twin):
        keras.utils.set_random_seed(9)
        net.fit(X, CLASSES, epochs=1, batch_size=9, verbose=0)
    for mine, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_layer_is_whole_again_after_a_call_that_failed():
    model = make()
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped = whence.InfluenceModel(model)
    before = dict(vars(layer_of(model, "head")))
    with pytest.raises(whence.WhenceError, match="a batch that the model accepts"):
        wrapped.index((X[:, :2], CLASSES))
    assert dict(vars(layer_of(model, "head"))) == before
    assert model(X).shape == (N, 3)
    assert wrapped.index((X, CLASSES)).n_samples == N


def test_a_model_that_trained_on_is_refused_where_it_would_be_run():
    model = make()
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped = whence.InfluenceModel(model)
    lje = whence.RepresenterPointLJE(wrapped, (X, CLASSES), whence.ExactIHVPFactory(), progress=False)
    theta = lje.layer.theta.copy()
    values = lje.explain((X, CLASSES), k=2).values
    bias = layer_of(model, "head").bias.numpy()
    layer_of(model, "head").bias.assign(np.ones(3))
    np.testing.assert_array_equal(lje.layer.theta, theta)
    for run in (
        lambda: lje.explain((X, CLASSES), k=2),
        lambda: lje.suspects((X, CLASSES), k=2),
        lambda: lje.compute_influence_values((X, CLASSES)),
        lambda: lje.compute_influence_vector((X, CLASSES)),
        lambda: lje.compute_top_k_from_training_dataset((X, CLASSES), 2),
        lambda: lje.top_k((X, CLASSES), (X, CLASSES)),
        lambda: lje.estimate_influence_values_in_batches((X, CLASSES), (X, CLASSES)),
    ):
        with pytest.raises(whence.WhenceError, match=r"other weights.*Make a new RepresenterPointLJE, or"):
            run()
    np.testing.assert_array_equal(wrapped.layer.theta[-1], np.ones(3))
    layer_of(model, "head").bias.assign(bias)
    np.testing.assert_array_equal(lje.explain((X, CLASSES), k=2).values, values)


# ---- what a batch may be ------------------------------------------------------------------------


def two_inputs():
    keras.utils.set_random_seed(2)
    a, b = keras.Input((D,), name="a"), keras.Input((2,), name="b")
    x = layers.Concatenate()([layers.Dense(HIDDEN, activation="tanh")(a), b])
    return {"a": a, "b": b}, layers.Dense(3, name="head")(x)


@pytest.mark.parametrize("form", ["dict", "tuple", "list"])
def test_models_of_several_inputs(form):
    inputs, output = two_inputs()
    model = keras.Model(inputs if form == "dict" else list(inputs.values()), output)
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    second = X[:, :2].astype("float32")
    x = {"a": X.astype("float32"), "b": second} if form == "dict" else (X.astype("float32"), second)
    dataset = tf.data.Dataset.from_tensor_slices((x, CLASSES)).batch(5)
    if form == "list":
        dataset = [([a, b], y) for (a, b), y in dataset]
    phi = np.concatenate([block.phi for block in whence.InfluenceModel(model).index(dataset)])
    np.testing.assert_array_equal(phi[:, HIDDEN : HIDDEN + 2], second)


def test_sample_weights_scale_gradients_and_nothing_else():
    weight = RNG.uniform(0, 2, N)
    model = make()
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped = whence.InfluenceModel(model)
    plain, weighted = wrapped.index((X, CLASSES)), wrapped.index((X, CLASSES, weight))
    (block,), (heavy,) = plain, weighted
    np.testing.assert_array_equal(block.phi, heavy.phi)
    expected = wrapped.layer.residuals(block) * weight[:, None]
    assert_close(wrapped.layer.residuals(heavy), expected, FLOAT64)
    gradient = block.phi.T @ expected / N
    assert_close(wrapped.layer.mean_gradient(weighted), gradient, FLOAT64)
    column = wrapped.index((X, CLASSES, weight[:, None]))
    assert_close(wrapped.layer.mean_gradient(column), gradient, FLOAT64)


@pytest.mark.parametrize("activation", ["exponential", "softplus"])
def test_poisson_has_a_closed_form_behind_an_exponential(activation, rng):
    x, y = rng.normal(size=(12, 3)).astype("float32"), rng.poisson(2, size=(12, 2)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation=activation)])
    model.compile(loss="poisson")
    wrapped = whence.InfluenceModel(model)
    (batch,) = open_dataset((x, y))
    seen = wrapped.observe(batch)
    is_closed = isinstance(wrapped.loss, Poisson)
    assert is_closed == (activation == "exponential")
    u = np.asarray(seen.phi, dtype=np.float64) @ wrapped.theta()
    own = keras.ops.convert_to_numpy(keras.losses.poisson(y, model(x)))
    np.testing.assert_allclose(wrapped.loss.value(u, seen.target), own, rtol=1e-5)
