"""Which loss and which output a Keras model has; on the backend that KERAS_BACKEND names."""

import numpy as np
import pytest

import whence
from whence import WhenceError
from whence.layers.losses import SoftmaxCrossEntropy
from whence.models.differentiated import DifferentiatedLoss

keras = pytest.importorskip("keras")
layers, ops = keras.layers, keras.ops
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning"),  # Keras's own, of NumPy 2
    pytest.mark.filterwarnings("ignore:.build\\(\\)"),  # a subclassed model that is called before
]

RNG = np.random.default_rng(0)
N = 20
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = np.arange(N) % 3
Z = RNG.normal(size=N).astype(np.float32)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def log_softmax(u):
    u = u - u.max(axis=1, keepdims=True)
    return u - np.log(np.exp(u).sum(axis=1, keepdims=True))


class Net(keras.Model):
    def __init__(self, units=3):
        super().__init__()
        self.body, self.head = layers.Dense(4, activation="tanh"), layers.Dense(units)

    def call(self, x):
        return self.head(self.body(x))


class Temperature(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = keras.losses.sparse_categorical_crossentropy(y, y_pred / 0.3, from_logits=True)
        return ops.mean(losses)


class Renumbered(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, 2 - y, y_pred, sample_weight)


class Plain(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight)


class OfInputs(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight) * ops.mean(x**2)


class OfBatch(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight) + ops.mean(ops.var(y_pred, axis=0))


class Step(Net):
    def train_step(self, *data):
        raise NotImplementedError


class Tripled(keras.losses.SparseCategoricalCrossentropy):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 3 * super().__call__(y_true, y_pred, sample_weight)


def mostly_slow(names, *always):
    """What is tried on each backend; in every run, some of it: each takes seconds to compile."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.slow) for name in names]


def made(kind, loss=CROSS_ENTROPY, **options):
    keras.utils.set_random_seed(0)
    net = kind()
    net(X[:2])
    if loss is not None:
        net.compile("sgd", loss, **options)
    return net


def head_pre_activations(net, body="body", head="head"):
    layer = getattr(net, head)
    phi = ops.convert_to_numpy(getattr(net, body)(X)).astype(np.float64)
    return phi @ ops.convert_to_numpy(layer.kernel.value) + ops.convert_to_numpy(layer.bias.value)


def losses_of(method):
    return np.concatenate([np.asarray(method.layer.losses(shard.block)) for shard in method.index.shards])


def lje(model, data, **options):
    wrapped = whence.InfluenceModel(model, **options)
    return whence.RepresenterPointLJE(wrapped, data, whence.ExactIHVPFactory(damping=0.1), progress=False)


#: A model, its compiled loss, and the loss of each sample for its logits.
OWN = {
    "as compiled": (Plain, CROSS_ENTROPY, lambda u: -log_softmax(u)[range(N), Y]),
    "a temperature": (Temperature, CROSS_ENTROPY, lambda u: -log_softmax(u / 0.3)[range(N), Y]),
    "no compiled loss": (Temperature, None, lambda u: -log_softmax(u / 0.3)[range(N), Y]),
    "renumbered": (Renumbered, CROSS_ENTROPY, lambda u: -log_softmax(u)[range(N), 2 - Y]),
    "a factor": (Net, Tripled(from_logits=True), lambda u: -3 * log_softmax(u)[range(N), Y]),
}


@pytest.mark.parametrize("case", mostly_slow(OWN, "as compiled", "a temperature"))
def test_a_model_is_believed_about_its_own_loss(case):
    kind, loss, expected = OWN[case]
    net = made(kind, loss)
    method = lje(net, (X, Y))
    u = head_pre_activations(net)
    np.testing.assert_allclose(losses_of(method), expected(u), atol=1e-5)
    assert isinstance(
        method.layer.loss, SoftmaxCrossEntropy if case == "as compiled" else DifferentiatedLoss
    )
    # the residuals, by central differences in float64
    residuals = np.concatenate([np.asarray(method.layer.residuals(s.block)) for s in method.index.shards])
    for c in range(3):
        step = 1e-4 * np.eye(3)[c]
        slope = (expected(u + step) - expected(u - step)) / 2e-4
        np.testing.assert_allclose(residuals[:, c], slope, atol=1e-5)


@pytest.mark.parametrize("kind", [OfInputs, OfBatch, Step])
def test_a_loss_that_samples_do_not_have_alone_is_refused(kind):
    with pytest.raises(WhenceError, match="loss_function") as caught:
        lje(made(kind), (X, Y))
    assert "the model" in str(caught.value) or "neither" in str(caught.value)
    # the remedy
    method = lje(made(kind), (X, Y), loss_function=CROSS_ENTROPY)
    assert isinstance(method.layer.loss, SoftmaxCrossEntropy)


def test_the_weight_of_a_compiled_loss_counts():
    net = made(Net, loss_weights=[0.25])
    (shard,) = lje(net, (X, Y)).index.shards
    assert np.array_equal(shard.weight, np.full(N, 0.25))
    (shard,) = lje(net, (X, Y), loss_function=CROSS_ENTROPY).index.shards
    assert shard.weight is None


# ------------------------------------------------------------------------------------ the output


def functional(outputs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    body = layers.Dense(4, activation="tanh", name="body")
    one, other = layers.Dense(3, name="classes"), layers.Dense(1, name="value")
    hidden = body(inputs)
    model = keras.Model(inputs, outputs(one(hidden), other(hidden)))
    model.body, model.classes, model.value = body, one, other
    return model


SEVERAL = {
    "dict": lambda a, b: {"a": a, "b": b},
    "list": lambda a, b: [a, b],
    "list, turned": lambda a, b: [b, a],
}


@pytest.mark.parametrize("case", mostly_slow(SEVERAL, "dict"))
@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_output_is_the_one_that_comes_from_the_layer(case, is_compiled):
    net = functional(SEVERAL[case])
    options = [{}, {}]
    losses = {"classes": CROSS_ENTROPY, "value": "mse"}
    if is_compiled:
        by_form = {
            "dict": {"a": losses["classes"], "b": losses["value"]},
            "list": [losses["classes"], losses["value"]],
            "list, turned": losses,
        }
        weights = {"dict": {"a": 1.0, "b": 0.5}, "list": [1.0, 0.5], "list, turned": None}
        net.compile("sgd", by_form[case], loss_weights=weights[case])
    else:
        options = [{"loss_function": losses["classes"]}, {"loss_function": losses["value"]}]
    for name, labels, how in (("classes", Y, options[0]), ("value", Z, options[1])):
        wrapped = whence.InfluenceModel(net, name, **how)
        method = whence.RepresenterPointLJE(wrapped, (X, labels), whence.ExactIHVPFactory(damping=0.1))
        u = head_pre_activations(net, head=name)
        expected = -log_softmax(u)[range(N), Y] if name == "classes" else (u[:, 0] - Z) ** 2
        np.testing.assert_allclose(losses_of(method), expected, atol=1e-5)
        counts_half = is_compiled and name == "value" and case != "list, turned"
        weight = method.index.shards[0].weight
        assert (weight is None) if not counts_half else np.array_equal(weight, np.full(N, 0.5))


def test_a_model_that_also_gives_an_embedding():
    class Both(Net):
        def call(self, x):
            hidden = self.body(x)
            return self.head(hidden), hidden

    net = made(Both, None)
    method = lje(net, (X, Y), loss_function=CROSS_ENTROPY)
    expected = -log_softmax(head_pre_activations(net))[range(N), Y]
    np.testing.assert_allclose(losses_of(method), expected, atol=1e-5)


def test_a_layer_that_several_outputs_come_from_is_refused():
    net = functional(SEVERAL["list"])
    wrapped = whence.InfluenceModel(net, "body", loss_function=CROSS_ENTROPY)
    with pytest.raises(WhenceError, match="2 of 2 outputs"):
        wrapped.index((X, Y))


# ------------------------------------------------------------------------------ the default layer


class HeadFirst(keras.Model):
    """Its layers in another order than that of their calls."""

    def __init__(self):
        super().__init__()
        self.head, self.body = layers.Dense(3, name="head"), layers.Dense(4, name="body")

    def call(self, x):
        return self.head(ops.tanh(self.body(x)))


class Convolved(HeadFirst):
    def __init__(self):
        super().__init__()
        self.last = layers.Conv1D(3, 1, name="last")
        self.body = layers.Dense(4, name="body")

    def call(self, x):
        return self.last(self.body(x)[:, None, :])[:, 0]


class Tied(HeadFirst):
    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(7, 4, name="embedding")
        self.body = layers.Dense(4, name="body")

    def call(self, x):
        self.embedding(ops.zeros_like(x[:, 0], dtype="int32"))
        return self.body(x) @ ops.transpose(self.embedding.embeddings)


@pytest.mark.parametrize(
    ("kind", "words"), [(HeadFirst, "'head'"), (Convolved, "'last'"), (Tied, "7 columns")]
)
def test_a_hidden_layer_is_not_taken_for_the_last(kind, words):
    with pytest.raises(WhenceError, match="comes from") as caught:
        lje(made(kind), (X, Y))
    assert words in str(caught.value)
    assert "body" in str(caught.value)


def test_the_layer_that_is_named_instead():
    net = made(HeadFirst)
    wrapped = whence.InfluenceModel(net, "head")
    method = whence.RepresenterPointLJE(wrapped, (X, Y), whence.ExactIHVPFactory(damping=0.1))
    assert isinstance(method.layer.loss, SoftmaxCrossEntropy)


@pytest.mark.parametrize(
    "last", [lambda: layers.EinsumDense("ab,bc->ac", output_shape=3), layers.LayerNormalization]
)
def test_a_last_layer_that_is_not_dense_names_those_that_are(last):
    net = keras.Sequential([keras.Input((5,)), layers.Dense(3, name="body"), last()])
    with pytest.raises(WhenceError, match="Name one of 'body'"):
        whence.InfluenceModel(net, loss_function=CROSS_ENTROPY)


@pytest.mark.parametrize("where", ["head", "behind"])
def test_losses_that_are_added_behind_the_layer_are_refused(where):
    added = {"activity_regularizer": "l2"}
    net = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activity_regularizer="l2"),  # in front of the layer: no matter
            layers.Dense(3, name="head", **(added if where == "head" else {})),
            layers.Activation("linear", **(added if where == "behind" else {})),
        ]
    )
    with pytest.raises(WhenceError, match="activity regulariser"):
        lje(net, (X, Y), loss_function=CROSS_ENTROPY)


# ------------------------------------------------------------------------------- squeezed outputs

SQUEEZED = {
    "Reshape": lambda: layers.Reshape(()),
    "Lambda": lambda: layers.Lambda(lambda t: t[:, 0], output_shape=()),
}
ON_ONE = {
    "huber": (keras.losses.Huber(0.7), Z, None),
    "log-cosh": (keras.losses.LogCosh(), Z, None),
    "absolute": (keras.losses.MeanAbsoluteError(), Z, None),
    "squared": (keras.losses.MeanSquaredError(), Z, None),
    "log error": (keras.losses.MeanSquaredLogarithmicError(), np.abs(Z), "softplus"),
    "poisson": (keras.losses.Poisson(), np.abs(Z), "exponential"),
    "logits": (keras.losses.BinaryCrossentropy(from_logits=True), Y % 2, None),
    "probabilities": (keras.losses.BinaryCrossentropy(), Y % 2, "sigmoid"),
    "focal": (keras.losses.BinaryFocalCrossentropy(from_logits=True), Y % 2, None),
    "hinge": (keras.losses.SquaredHinge(), 2.0 * (Y % 2) - 1, None),
    "a function": (lambda y, p: ops.mean((y - p) ** 4, axis=-1), Z, None),
}
SOME = ("huber", "a function")


@pytest.mark.pairwise
@pytest.mark.filterwarnings("ignore:.*second derivatives")
@pytest.mark.parametrize("how", mostly_slow(SQUEEZED, "Reshape"))
@pytest.mark.parametrize("name", mostly_slow(ON_ONE, *SOME))
def test_a_squeezed_output_has_every_loss(name, how):
    loss, labels, activation = ON_ONE[name]
    keras.utils.set_random_seed(0)
    body = [keras.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(1, activation=activation)]
    plain, squeezed = keras.Sequential(body), keras.Sequential([*body, SQUEEZED[how]()])
    assert squeezed(X).shape == (N,)
    expected = lje(plain, (X, labels[:, None]), loss_function=loss)
    for net, y in ((squeezed, labels), (squeezed, labels[:, None]), (plain, labels)):
        method = lje(net, (X, y), loss_function=loss)
        np.testing.assert_allclose(losses_of(method), losses_of(expected), rtol=1e-5, atol=1e-6)
        values = method.explain((X[:3], y[:3]), 4).values
        np.testing.assert_allclose(values, expected.explain((X[:3], labels[:3, None]), 4).values, rtol=1e-4)


class Broadcast(keras.losses.Loss):
    """Of outputs ``(n, 1)`` and labels ``(n,)`` it makes ``(n, n)``: Keras brings these to one rank for
    functions, and for classes of the user's not."""

    def call(self, y_true, y_pred):
        return ops.mean((y_true - y_pred) ** 2, axis=-1)


def test_a_loss_that_broadcasts_over_the_batch_is_noticed():
    net = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    with pytest.raises(WhenceError, match="changes with the others"):
        lje(net, (X, Z), loss_function=Broadcast())
    lje(net, (X, Z[:, None]), loss_function=Broadcast())


# ---------------------------------------------------------------------------------- lasting names


def anonymous():
    keras.utils.set_random_seed(0)
    body = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh")])
    return keras.Sequential([body, layers.Dense(3), layers.Softmax()])


def test_an_index_does_not_hinge_on_automatic_names(tmp_path):
    loss = keras.losses.SparseCategoricalCrossentropy()
    net, again = anonymous(), anonymous()
    for mine, its in zip(again.weights, net.weights, strict=True):
        mine.assign(its.value)
    options = {"loss_function": loss}
    factory = whence.ExactIHVPFactory(damping=0.1)
    method = whence.RepresenterPointLJE(
        whence.InfluenceModel(net, **options), (X, Y), factory, index_path=tmp_path / "index"
    )
    expected = method.explain((X[:3], Y[:3]), 4)
    wrapped = whence.InfluenceModel(again, **options)
    assert wrapped.layer_name != whence.InfluenceModel(net, **options).layer_name
    assert wrapped.fingerprint() == whence.InfluenceModel(net, **options).fingerprint()
    for method in (
        whence.RepresenterPointLJE(wrapped, (X, Y), factory, index_path=tmp_path / "index"),
        whence.load_index(tmp_path / "index", influence_model=wrapped),
    ):
        assert np.array_equal(method.explain((X[:3], Y[:3]), 4).ids, expected.ids)
    # names of the user's are names, and other weights another model
    other = whence.InfluenceModel(anonymous(), **options)
    for weight in other.model.weights:
        weight.assign(weight.value + 1)
    with pytest.raises(WhenceError, match="model_weights"):
        whence.load_index(tmp_path / "index", influence_model=other)


# ------------------------------------------------------------------------------------ regularisers


def test_a_regulariser_of_the_users_own_counts_if_it_is_l2():
    def half(w):
        return 0.05 * ops.sum(w**2)

    net = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, kernel_regularizer=half, bias_regularizer="l1")]
    )
    method = lje(net, (X, Y), loss_function=CROSS_ENTROPY)
    assert method.layer.l2 == pytest.approx(0.1, rel=1e-4)
    assert method.layer.bias_l2 == 0.0


def test_a_regulariser_that_is_not_l2_is_spoken_of():
    net = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, kernel_regularizer=keras.regularizers.OrthogonalRegularizer())]
    )
    with pytest.warns(UserWarning, match="no multiple of the sum of squares"):
        lje(net, (X, Y), loss_function=CROSS_ENTROPY)


# ------------------------------------------------------------------------- functions of the user


def huber_of(outputs, batch):
    gap = ops.abs(outputs[:, 0] - batch[1])
    return ops.where(gap < 0.7, gap**2 / 2, 0.7 * (gap - 0.35))


def test_functions_of_the_user_call_the_model_and_give_its_losses():
    net = functional(SEVERAL["list"])
    options = {
        "forward": lambda model, batch: model(batch[0], training=False)[1],
        "loss": huber_of,
    }
    wrapped = whence.InfluenceModel(net, "value", **options)
    method = whence.RepresenterPointLJE(wrapped, (X, Z), whence.ExactIHVPFactory(damping=0.1))
    gap = np.abs(head_pre_activations(net, head="value")[:, 0] - Z)
    expected = np.where(gap < 0.7, gap**2 / 2, 0.7 * (gap - 0.35))
    np.testing.assert_allclose(losses_of(method), expected, atol=1e-5)
    assert method.explain((X[:3], Z[:3]), 2).ids.shape == (3, 2)
    plain = whence.InfluenceModel(net, "value", loss_function=keras.losses.Huber(0.7))
    other = whence.RepresenterPointLJE(plain, (X, Z), whence.ExactIHVPFactory(damping=0.1))
    np.testing.assert_allclose(method.influences((X, Z)), other.influences((X, Z)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": huber_of, "loss_function": "mse"}, "not both"),
        ({"loss": lambda outputs: outputs}, "loss\\(outputs, batch\\)"),
        ({"forward": "call"}, "forward\\(model, batch\\)"),
        ({"loss": lambda outputs, batch: ops.mean(outputs)}, "loss of each sample"),
        ({"loss": lambda outputs, batch: outputs[:, 0] - ops.mean(batch[1])}, "changes with the others"),
        ({"loss": lambda outputs, batch: huber_of(outputs, batch) * batch[0][:, 0]}, "NoneType"),
    ],
)
def test_functions_that_are_none(options, words):
    net = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    with pytest.raises(WhenceError, match=words):
        lje(net, (X, Z), **options)
