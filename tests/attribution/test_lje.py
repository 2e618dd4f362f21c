"""Local Jacobian expansion: complete, as the dense reference says, whatever the batches."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import reference
from tolerances import FLOAT32, FLOAT64, SOLVE, assert_close

import whence
from whence import WhenceError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

layers = keras.layers
losses = keras.losses
N, T, D = 23, 5, 4
DAMPING, STEP = 0.05, 0.3
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(N, D)), RNG.normal(size=(T, D))
CLASSES = RNG.integers(0, 3, N)
NEW_CLASSES = RNG.integers(0, 3, T)
WEIGHT = RNG.uniform(0.5, 2, N)


def batches(*arrays, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def cut(*arrays, size=8):
    """A list of batches: the same numbers as from ``tf.data``, sooner."""
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


@dataclass(frozen=True)
class Case:
    """A loss as Keras knows it and as the reference does, and labels for both."""

    keras_loss: object
    plain: object
    labels: np.ndarray
    units: int = 3
    activation: str | None = None


CASES = {
    "softmax, classes": Case(
        losses.SparseCategoricalCrossentropy(from_logits=True),
        reference.softmax_cross_entropy,
        CLASSES,
    ),
    "softmax inside, soft labels": Case(
        losses.CategoricalCrossentropy(label_smoothing=0.1),
        lambda u, y: reference.softmax_cross_entropy(u, y, 0.1),
        RNG.dirichlet(np.ones(3), N),
        activation="softmax",
    ),
    "one sigmoid": Case(
        losses.BinaryCrossentropy(),
        reference.binary_cross_entropy,
        (CLASSES > 0)[:, None].astype(np.float32),
        units=1,
        activation="sigmoid",
    ),
    "several sigmoids": Case(
        losses.BinaryCrossentropy(from_logits=True),
        reference.binary_cross_entropy,
        RNG.integers(0, 2, (N, 3)),
    ),
    "squared error": Case(
        losses.MeanSquaredError(), reference.squared_error, RNG.normal(size=(N, 2)), units=2
    ),
}


def made(case, use_bias, dtype="float64", x=X, **options):
    """The method on a model that is one dense layer, so that its features are its inputs."""
    keras.utils.set_random_seed(3)
    head = layers.Dense(case.units, case.activation, use_bias, name="head", dtype=dtype)
    model = keras.Sequential([keras.Input((D,), dtype=dtype), head])
    if use_bias:
        head.bias.assign(np.linspace(-0.3, 0.3, case.units))
    model.compile(loss=case.keras_loss)
    train = cut(x.astype(dtype), case.labels, WEIGHT.astype(dtype))
    options = {"step_size": STEP, "progress": False} | options
    factory = whence.ExactIHVPFactory(damping=DAMPING)
    return whence.RepresenterPointLJE(whence.InfluenceModel(model), train, factory, **options), train


def with_constant(x, use_bias):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1) if use_bias else x


def dense_of(lje, case, use_bias, x=X):
    """The reference of what ``made`` makes, from the model's own weights."""
    head = lje.influence_model.model.layers[-1]
    theta = head.kernel.numpy() if not use_bias else np.vstack([head.kernel, head.bias])
    phi = with_constant(x, use_bias)
    dense = reference.Dense(theta, phi, case.labels, case.plain, WEIGHT, DAMPING)
    return reference.LocalJacobianExpansion(dense, STEP)


def all_values(lje, evaluated, train):
    """Values ``(T, N)`` as the contract gives them, batches put side by side."""
    nested = lje.estimate_influence_values_in_batches(evaluated, train)
    return np.concatenate([np.concatenate([v for _, v in d], axis=1) for _, d in nested])


def new_samples(case, dtype="float64"):
    return cut(X_NEW.astype(dtype), case.labels[:T], size=2)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def exact(request, case):
    """Case, whether it has a bias, method, training set and reference, in float64."""
    lje, train = made(case, request.param)
    return case, request.param, lje, train, dense_of(lje, case, request.param)


# ---- completeness -------------------------------------------------------------------------------


def test_values_sum_to_the_expanded_prediction(exact):
    case, use_bias, lje, train, _ = exact
    values = all_values(lje, new_samples(case), train)
    u = with_constant(X_NEW, use_bias) @ lje.layer.theta
    total = with_constant(X_NEW, use_bias) @ lje.theta_dagger
    assert_close(values.sum(axis=1), total[np.arange(T), u.argmax(axis=1)], FLOAT64)


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_values_sum_to_the_expanded_prediction_in_single_precision(case, use_bias):
    lje, train = made(case, use_bias, "float32")
    values = all_values(lje, new_samples(case, "float32"), train)
    assert values.dtype == np.float32
    phi = with_constant(X_NEW.astype(np.float32), use_bias)
    outputs = (phi @ lje.layer.theta).argmax(axis=1)
    total = (phi @ lje.theta_dagger)[np.arange(T), outputs]
    assert_close(values.sum(axis=1, dtype=np.float64), total, 1e-4)


def test_expanded_weights_are_those_of_the_reference(exact):
    _, _, lje, _, expected = exact
    assert_close(lje.theta_dagger, expected.theta_dagger, SOLVE)
    assert_close(lje.expanded_layer.theta, expected.expanded.theta, SOLVE)


# ---- against the dense reference ----------------------------------------------------------------


def test_values_are_those_of_the_reference_for_every_output(exact):
    case, use_bias, lje, train, expected = exact
    v = expected.influences(with_constant(X_NEW, use_bias))  # (T, N, C)
    outputs = (with_constant(X_NEW, use_bias) @ lje.layer.theta).argmax(axis=1)
    values = all_values(lje, new_samples(case), train)
    assert_close(values, v[np.arange(T), :, outputs], SOLVE)
    for j in range(case.units):
        ranked = lje.explain(new_samples(case), k=N, outputs=j)
        unranked = np.empty((T, N))
        np.put_along_axis(unranked, ranked.ids, ranked.values * ranked.signs[:, None], axis=1)
        assert_close(unranked, v[:, :, j], SOLVE)


def test_self_influence_is_that_of_the_reference(exact):
    _, _, lje, train, expected = exact
    outputs = (expected.dense.phi @ expected.dense.theta).argmax(axis=1)
    values = np.concatenate([v for _, v in lje.compute_influence_values(train)])
    assert_close(values, expected.self_influences(outputs), SOLVE)


def test_the_label_may_be_the_given_one():
    case = CASES["softmax, classes"]
    lje, train = made(case, True, label="given")
    expected = dense_of(lje, case, True)
    values = np.concatenate([v for _, v in lje.compute_influence_values(train)])
    assert_close(values, expected.self_influences(CLASSES), SOLVE)
    v = expected.influences(with_constant(X_NEW, True))
    predicted = (with_constant(X_NEW, True) @ lje.layer.theta).argmax(axis=1)
    given = NEW_CLASSES
    assert (given != predicted).any()
    found = all_values(lje, cut(X_NEW, given), train)
    assert_close(found, v[np.arange(T), :, given], SOLVE)
    np.testing.assert_array_equal(lje.explain(cut(X_NEW, given), k=1).outputs, given)


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_elementwise_alphas_are_those_of_the_printed_formula(use_bias):
    case = CASES["softmax, classes"]
    x = np.where(np.arange(D) == 1, np.maximum(X, 0), X)  # zeros, as behind a ReLU
    assert (x == 0).sum() > 5
    lje, train = made(case, use_bias, x=x, decomposition="elementwise", epsilon=1e-2)
    expected = dense_of(lje, case, use_bias, x)
    alphas = expected.elementwise_alphas(epsilon=1e-2)
    vectors = [v for _, v in lje.compute_influence_vector(train)]
    assert_close(np.concatenate([a for _, a in vectors]), alphas, SOLVE)

    phi_new, phi = with_constant(X_NEW, use_bias), expected.dense.phi
    outputs = (phi_new @ lje.layer.theta).argmax(axis=1)
    kernel = phi_new @ phi.T
    assert_close(all_values(lje, new_samples(case), train), kernel * alphas[:, outputs].T, SOLVE)
    own = (phi @ lje.layer.theta).argmax(axis=1)
    values = np.concatenate([v for _, v in lje.compute_influence_values(train)])
    assert_close(values, np.abs(alphas[np.arange(N), own]), SOLVE)
    explained = lje.explain(new_samples(case), k=N)
    assert_close(explained.values.sum(axis=1), explained.totals, SOLVE)


def test_the_step_size_moves_the_weights_up_the_mean_loss():
    case = CASES["softmax, classes"]
    still, _ = made(case, True, step_size=0.0)
    np.testing.assert_array_equal(still.expanded_layer.theta, still.layer.theta)
    moved, _ = made(case, True, step_size=0.5)
    expected = dense_of(moved, case, True).dense
    assert expected.mean_loss(moved.expanded_layer.theta) > expected.mean_loss(still.layer.theta)
    gradient = expected.gradients.mean(axis=0)
    assert_close(moved.expanded_layer.theta - still.layer.theta, 0.5 * gradient, SOLVE)


def test_default_arguments_are_the_documented_ones():
    case = CASES["softmax, classes"]
    lje, _ = made(case, True)
    plain = whence.RepresenterPointLJE(
        lje.influence_model, batches(X, case.labels), whence.ExactIHVPFactory()
    )
    about = plain.explain(batches(X_NEW, NEW_CLASSES), k=1).about
    assert about["step_size"] == 1e-4
    assert about["epsilon"] == 1e-5
    assert about["decomposition"] == "exact"
    assert about["label"] == "predicted"
    net = plain.influence_model.model
    # without the number that Keras gives to a name of its own
    assert about["model"] == f"{re.sub(r'_[0-9]+$', '', net.name)} ({type(net).__name__})"
    assert about["decomposes_prediction"] is True
    assert 0 < about["relative_residual"] < 1e-12
    assert about["damping"] == plain.ihvp.damping > 0
    assert plain.ihvp.blocks.n_samples == N  # n_samples_for_hessian=None uses all


# ---- the Hessian from some of the samples -------------------------------------------------------


def test_the_hessian_of_some_samples_is_drawn_at_random_and_reproducible():
    case = CASES["softmax, classes"]

    def drawn(seed, n=9, buffer=10_000):
        lje, _ = made(case, True, n_samples_for_hessian=n, shuffle_buffer_size=buffer, seed=seed)
        (block,) = lje.ihvp.blocks
        return lje, block.phi

    lje, phi = drawn(0)
    assert phi.shape == (9, D + 1)
    assert lje.index.n_samples == N
    rows = [int(np.flatnonzero((x == X).all(axis=1))[0]) for x in phi[:, :D]]
    assert len(set(rows)) == 9
    np.testing.assert_array_equal(drawn(0)[1], phi)
    assert not np.array_equal(drawn(1)[1], phi)
    _, near = drawn(0, n=4, buffer=2)  # a small buffer holds only the stream's beginning
    assert all((X[:6] == x).all(axis=1).any() for x in near[:, :D])

    everything, _ = made(case, True, n_samples_for_hessian=None)
    for n in (N, N + 10):
        same, _ = drawn(0, n=n)
        np.testing.assert_array_equal(same.theta_dagger, everything.theta_dagger)


def test_the_hessian_of_some_samples_is_the_mean_over_these():
    case = CASES["softmax, classes"]
    lje, train = made(case, True, n_samples_for_hessian=11, seed=4)
    (block,) = lje.ihvp.blocks
    whole = dense_of(lje, case, True)
    rows = [int(np.flatnonzero((x == X).all(axis=1))[0]) for x in block.phi[:, :D]]
    few = reference.Dense(whole.expanded.theta, block.phi, CLASSES[rows], case.plain, WEIGHT[rows], DAMPING)
    solved = few.solve(whole.expanded.gradients.mean(axis=0))
    assert_close(lje.theta_dagger, whole.expanded.theta - solved, SOLVE)
    values = all_values(lje, new_samples(case), train)
    assert_close(values.sum(axis=1), lje.explain(new_samples(case), k=1).totals, FLOAT64)


# ---- invariance ---------------------------------------------------------------------------------


def network(dtype="float64"):
    keras.utils.set_random_seed(3)
    return [
        layers.Dense(6, activation="tanh", dtype=dtype),
        layers.Dense(3, name="head", dtype=dtype),
    ]


def as_sequential(parts, dtype):
    return keras.Sequential([keras.Input((D,), dtype=dtype), *parts])


def as_functional(parts, dtype):
    inputs = keras.Input((D,), dtype=dtype)
    return keras.Model(inputs, parts[1](parts[0](inputs)))


class AsSubclass(keras.Model):
    def __init__(self, parts, dtype):
        super().__init__(dtype=dtype)  # or it would round its inputs to float32
        self.parts = parts
        self(np.zeros((1, D), dtype))

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs))


def wrapped(kind=as_sequential, dtype="float64"):
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    return whence.InfluenceModel(kind(network(dtype), dtype), "head", loss_function=loss)


def answers(model, train, evaluated, given_train=None, is_ordered=True):
    """Everything that the methods say, put in the order of ``X`` by the inputs that come with it."""
    given_train = train if given_train is None else given_train
    lje = whence.RepresenterPointLJE(
        model, train, whence.ExactIHVPFactory(damping=DAMPING), step_size=STEP, progress=False
    )

    def order(inputs, known=X):
        return [int(np.abs(known - np.asarray(x, np.float64)).sum(axis=1).argmin()) for x in inputs]

    values, self_influence = np.full((T, N), np.nan), np.full(N, np.nan)
    for (x, _), inner in lje.estimate_influence_values_in_batches(evaluated, given_train):
        for (x_train, _), v in inner:
            values[np.ix_(order(x, X_NEW), order(x_train))] = v
    for (x, _), v in lje.compute_influence_values(given_train):
        self_influence[order(x)] = v
    if is_ordered:
        suspicion = np.sort(lje.suspects(given_train, k=None, score="leave_one_out").scores)
    else:  # its positions would name other samples in the next pass
        with pytest.raises(WhenceError, match="an order that stays"):
            lje.suspects(given_train, k=None, score="leave_one_out")
        suspicion = None
    best = np.full((T, 3), -1)
    for (x, _), _, x_train in lje.top_k(evaluated, given_train, k=3):
        best[order(x, X_NEW)] = np.reshape([order(rows) for rows in x_train], (-1, 3))
    return values, self_influence, suspicion, best


@pytest.fixture(scope="module")
def expected_answers():
    return answers(wrapped(), batches(X, CLASSES, size=N), batches(X_NEW, NEW_CLASSES, size=T))


def same(found, expected, tolerance):
    for mine, theirs in zip(found[:3], expected[:3], strict=True):
        if mine is not None:
            assert_close(mine, theirs, tolerance)
    np.testing.assert_array_equal(found[3], expected[3])


@pytest.mark.parametrize("size", [1, 7, 64])  # 7: a ragged last batch of 2 in both sets
def test_the_batch_size_changes_nothing(size, expected_answers):
    train, evaluated = batches(X, CLASSES, size=size), batches(X_NEW, NEW_CLASSES, size=min(size, 3))
    same(answers(wrapped(), train, evaluated), expected_answers, SOLVE)


def test_shuffling_and_pipelines_change_nothing(expected_answers):
    samples = tf.data.Dataset.from_tensor_slices((X, CLASSES))
    train = samples.shuffle(N, seed=1, reshuffle_each_iteration=True).batch(7)
    piped = samples.map(lambda x, y: (x * 2 / 2, y)).cache().batch(4).prefetch(2)
    evaluated = batches(X_NEW, NEW_CLASSES, size=2).prefetch(1)
    same(answers(wrapped(), train, evaluated, is_ordered=False), expected_answers, SOLVE)
    same(answers(wrapped(), train, evaluated, piped, is_ordered=False), expected_answers, SOLVE)
    same(answers(wrapped(), piped, evaluated), expected_answers, SOLVE)


@pytest.mark.parametrize("kind", [as_functional, AsSubclass])
def test_the_kind_of_model_changes_nothing(kind, expected_answers):
    found = answers(wrapped(kind), batches(X, CLASSES, size=N), batches(X_NEW, NEW_CLASSES, size=T))
    same(found, expected_answers, SOLVE)


def test_single_precision_changes_little(expected_answers):
    x, x_new = X.astype("float32"), X_NEW.astype("float32")
    found = answers(
        wrapped(dtype="float32"), batches(x, CLASSES, size=7), batches(x_new, NEW_CLASSES, size=3)
    )
    exact = answers(
        wrapped_with_rounded_weights(),
        batches(x.astype(float), CLASSES),
        batches(x_new.astype(float), NEW_CLASSES),
    )
    same(found, exact, 10 * FLOAT32)


def wrapped_with_rounded_weights():
    model = wrapped()
    model.model.set_weights(wrapped(dtype="float32").model.get_weights())
    return model


def test_equal_samples_have_equal_influence():
    twice, labels = np.concatenate([X, X[:4]]), np.concatenate([CLASSES, CLASSES[:4]])
    train = cut(twice, labels)
    lje = whence.RepresenterPointLJE(wrapped(), train, whence.ExactIHVPFactory(DAMPING))
    values = all_values(lje, cut(X_NEW, NEW_CLASSES), train)
    np.testing.assert_array_equal(values[:, :4], values[:, N:])
    assert values.shape == (T, N + 4)
    explained = lje.explain(batches(X_NEW, NEW_CLASSES), k=N + 4)
    assert_close(explained.values.sum(axis=1), explained.totals, FLOAT64)
    for row in explained.ids:
        np.testing.assert_array_equal(np.sort(row), np.arange(N + 4))
