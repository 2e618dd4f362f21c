"""Predictions along a sequence, against sums over positions written out: masks, weights, padding."""

from functools import cached_property

import numpy as np
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

import whence

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

N, L, D, C = 12, 4, 3, 3
STEP, DAMPING = 0.05, 0.1
RNG = np.random.default_rng(0)


def sentences(n):
    """Words, 0 where there are none, and a label for each word."""
    visible = np.arange(L) < RNG.integers(1, L + 1, n)[:, None]
    return np.where(visible, RNG.integers(1, 9, (n, L)), 0), RNG.integers(0, C, (n, L))


X, Y = sentences(N)
NEW_X, NEW_Y = sentences(5)
VISIBLE, NEW_VISIBLE = X > 0, NEW_X > 0


def model(units=C, loss="sparse_categorical_crossentropy", activation="softmax"):
    keras.utils.set_random_seed(3)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        table = keras.layers.Embedding(9, D, mask_zero=True, embeddings_initializer="normal")
        head = keras.layers.Dense(units, activation=activation)
        net = keras.Sequential([keras.Input((None,)), table, head])
    finally:
        keras.config.set_dtype_policy(policy)
    table.set_weights([20 * table.get_weights()[0]])
    net.compile(loss=loss)
    return net


def expansion(net=None, data=(X, Y), factory=None, **options):
    wrapped = whence.InfluenceModel(model() if net is None else net)
    options = {"step_size": STEP, "progress": False} | options
    factory = whence.ExactIHVPFactory(DAMPING) if factory is None else factory
    return whence.RepresenterPointLJE(wrapped, data, factory, **options)


class Expected:
    """Everything by loops over samples and positions."""

    def __init__(self, net, weight):
        table, kernel, bias = net.get_weights()
        self.table = table
        self.weight = weight
        self.theta = np.concatenate([kernel, bias[None]])
        self.layer = self.at(self.theta)
        self.expanded = self.theta + STEP * self.gradients(self.layer).mean(axis=0)
        self.system = L * self.at(self.expanded).hessian + DAMPING * np.eye(C * (D + 1))
        self.solved = np.stack(
            [
                reference.unflat(np.linalg.solve(self.system, reference.flat(g)), C)
                for g in self.gradients(self.at(self.expanded))
            ]
        )
        self.parts = (self.expanded - self.solved) / N

    def phi(self, x):
        rows = self.table[x]
        return np.concatenate([rows, np.ones((*x.shape, 1))], axis=-1)

    def at(self, theta):
        phi, target = self.phi(X).reshape(N * L, -1), Y.ravel()
        return reference.Dense(theta, phi, target, reference.softmax_cross_entropy, self.weight.ravel())

    @staticmethod
    def gradients(layer):
        return layer.gradients.reshape(N, L, -1, C).sum(axis=1)

    def values(self, x, outputs, weight):
        """``v(i, t)``, shape ``(T, N)``."""
        return np.asarray(
            [
                [sum(w * (p @ part)[j] for p, j, w in zip(*t, strict=True)) for part in self.parts]
                for t in zip(self.phi(x), outputs, weight, strict=True)
            ]
        )

    def predicted(self, x):
        return np.argmax(self.phi(x) @ self.theta, axis=2)

    @cached_property
    def left_out(self):
        moved = np.stack([p @ s for p, s in zip(self.phi(X), self.solved, strict=True)])
        return self.phi(X) @ self.theta + moved / N


def even(visible):
    return visible / visible.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def lje():
    return expansion()


@pytest.fixture(scope="module")
def expected(lje):
    return Expected(lje.influence_model.model, even(VISIBLE))


def by_id(explanation):
    """Values in the order of the training set, shape ``(T, N)``."""
    order = np.argsort(explanation.ids, axis=1)
    return np.take_along_axis(explanation.values, order, axis=1)


def test_the_mean_over_positions_is_explained(lje, expected):
    found = lje.explain((NEW_X, NEW_Y), k=N)
    outputs = expected.predicted(NEW_X)
    assert_close(by_id(found), expected.values(NEW_X, outputs, even(NEW_VISIBLE)), SOLVE)
    np.testing.assert_array_equal(found.outputs, np.where(NEW_VISIBLE, outputs, -1))
    np.testing.assert_array_equal(found.predictions, found.outputs)
    np.testing.assert_array_equal(found.labels, np.where(NEW_VISIBLE, NEW_Y, -1))
    np.testing.assert_array_equal(found.signs, np.where(NEW_VISIBLE, 1, np.nan))
    np.testing.assert_array_equal(found.training_labels, np.where(VISIBLE, Y, -1)[found.ids])
    u = np.take_along_axis(expected.phi(NEW_X) @ expected.theta, outputs[..., None], 2)[..., 0]
    assert_close(found.pre_activations, (u * even(NEW_VISIBLE)).sum(axis=1), FLOAT64)


@pytest.mark.parametrize("positions", [0, np.asarray([int(v.sum()) - 1 for v in NEW_VISIBLE])])
def test_one_position_is_explained(lje, expected, positions):
    found = lje.explain((NEW_X, NEW_Y), k=N, positions=positions)
    one = np.broadcast_to(positions, len(NEW_X))
    outputs = expected.predicted(NEW_X)
    unit = np.arange(L) == one[:, None]
    assert_close(by_id(found), expected.values(NEW_X, outputs, unit), SOLVE)
    rows = np.arange(len(NEW_X))
    np.testing.assert_array_equal(found.outputs, outputs[rows, one])
    np.testing.assert_array_equal(found.predictions, outputs[rows, one])
    np.testing.assert_array_equal(found.labels, NEW_Y[rows, one])
    assert found.training_labels.shape == (len(NEW_X), N, L)


def test_values_are_complete(lje, expected):
    """They sum to what the weights of all parts give: of the mean, and of one position."""
    dagger = expected.parts.sum(axis=0)
    assert_close(lje.theta_dagger, dagger, SOLVE)
    u = expected.phi(NEW_X) @ dagger
    own = np.take_along_axis(u, expected.predicted(NEW_X)[..., None], axis=2)[..., 0]
    mean = lje.explain((NEW_X,), k=N)
    assert_close(mean.values.sum(axis=1), (own * even(NEW_VISIBLE)).sum(axis=1), SOLVE)
    assert_close(mean.totals, mean.values.sum(axis=1), SOLVE)
    first = lje.explain((NEW_X,), k=N, positions=0)
    assert_close(first.values.sum(axis=1), own[:, 0], SOLVE)
    assert_close(first.totals, own[:, 0], SOLVE)


def test_outputs_may_be_named(lje, expected):
    each = np.random.default_rng(1).integers(0, C, NEW_X.shape)
    for outputs, full in [(2, np.full(NEW_X.shape, 2)), (each[:, 0], each[:, [0] * L]), (each, each)]:
        found = lje.explain((NEW_X,), k=N, outputs=outputs)
        assert_close(by_id(found), expected.values(NEW_X, full, even(NEW_VISIBLE)), SOLVE)
    one = lje.explain((NEW_X,), k=N, outputs=each[:, 1], positions=0)
    np.testing.assert_array_equal(one.outputs, each[:, 1])
    given = expansion(label="given").explain((NEW_X, NEW_Y), k=N)
    assert_close(by_id(given), expected.values(NEW_X, NEW_Y, even(NEW_VISIBLE)), SOLVE)


def test_self_influence_is_a_samples_influence_on_itself(lje, expected):
    (pairs,) = [lje.compute_influence_values((X, Y))]
    own = np.concatenate([np.asarray(values) for _, values in pairs])
    wanted = np.diag(expected.values(X, expected.predicted(X), even(VISIBLE)))
    assert_close(own, np.abs(wanted), SOLVE)


def test_suspects_average_over_positions(lje, expected):
    u, weight = expected.left_out, even(VISIBLE)
    margin = np.zeros((N, L))
    for i, at in np.ndindex(N, L):
        others = np.delete(u[i, at], Y[i, at])
        margin[i, at] = u[i, at, Y[i, at]] - others.max()
    plain = [
        [reference.softmax_cross_entropy(p @ expected.theta, np.eye(C)[y]) for p, y in zip(*s, strict=True)]
        for s in zip(expected.phi(X), Y, strict=True)
    ]
    for score, each in (("leave_one_out", -margin), ("loss", np.asarray(plain))):
        found = lje.suspects((X, Y), k=None, score=score)
        assert_close(found.scores[np.argsort(found.ids)], (each * weight).sum(axis=1), SOLVE)
        np.testing.assert_array_equal(found.labels, np.where(VISIBLE, Y, -1)[found.ids])
        said = np.where(VISIBLE, expected.predicted(X), -1)
        np.testing.assert_array_equal(found.predictions, said[found.ids])


def test_weights_of_samples_and_positions():
    weight = np.random.default_rng(2).random((N, L)) + 0.1
    net = model()
    lje = expansion(net, (X, Y, weight))
    expected = Expected(net, weight * even(VISIBLE))
    found = lje.explain((X, Y, weight), k=N)
    share = weight * VISIBLE / (weight * VISIBLE).sum(axis=1, keepdims=True)
    values = expected.values(X, expected.predicted(X), share)
    assert_close(by_id(found), values, SOLVE)
    own = lje.suspects((X, Y, weight), k=None, score="self_influence")
    assert_close(own.scores[np.argsort(own.ids)], np.abs(np.diag(values)), SOLVE)


def test_how_much_a_sample_counts_plays_no_part_when_it_is_explained(lje):
    nothing = np.zeros(len(NEW_X))
    found = lje.explain((NEW_X, NEW_Y, nothing), k=2)
    np.testing.assert_array_equal(found.values, lje.explain((NEW_X, NEW_Y), k=2).values)
    unused = expansion(data=(X, Y, (np.arange(N) > 0).astype(float)))
    scores = unused.suspects((X, Y, (np.arange(N) > 0).astype(float)), k=None, score="loss")
    assert scores.scores[scores.ids == 0] == 0


def test_padding_changes_nothing(lje):
    padded, labels = (np.pad(a, ((0, 0), (0, 2))) for a in (X, Y))
    other = expansion(data=(padded, labels))
    mine, theirs = (found.explain((np.pad(NEW_X, ((0, 0), (0, 5))),), k=3) for found in (lje, other))
    assert_close(other.theta_dagger, lje.theta_dagger, SOLVE)
    plain = lje.explain((NEW_X,), k=3)
    for found in (mine, theirs):
        np.testing.assert_array_equal(found.ids, plain.ids)
        assert_close(found.values, plain.values, SOLVE)
        np.testing.assert_array_equal(found.outputs[:, :L], plain.outputs)
        assert (found.outputs[:, L:] == -1).all()
    for score in ("leave_one_out", "loss", "self_influence"):
        one = lje.suspects((X, Y), k=None, score=score)
        two = other.suspects((padded, labels), k=None, score=score)
        np.testing.assert_array_equal(one.ids, two.ids)
        assert_close(two.scores, one.scores, SOLVE)


def test_samples_of_different_lengths(lje):
    parts = [(NEW_X[:2, :n], NEW_Y[:2, :n]) for n in (L, L)]
    long = np.pad(NEW_X[2:], ((0, 0), (0, 3))), np.pad(NEW_Y[2:], ((0, 0), (0, 3)))
    found = lje.explain([parts[0], long], k=2)
    plain = lje.explain((NEW_X, NEW_Y), k=2)
    assert_close(found.values, plain.values, SOLVE)
    assert found.labels.shape == (len(NEW_X), L + 3)
    np.testing.assert_array_equal(found.labels[:, :L], plain.labels)


def test_the_contract(lje, expected, tmp_path):
    data, new = [(X[:7], Y[:7]), (X[7:], Y[7:])], [(NEW_X, NEW_Y)]
    wanted = expected.values(NEW_X, expected.predicted(NEW_X), even(NEW_VISIBLE))
    vectors = [vector for _, vector in lje.compute_influence_vector(data, tmp_path / "vectors")]
    assert [tuple(phi.shape) for phi, _ in vectors] == [(7, L, D + 1), (5, L, D + 1)]
    assert [tuple(a.shape) for _, a in vectors] == [(7, L, C), (5, L, C)]
    for options in (
        {},
        {"influence_vector_in_cache": whence.CACHE.NO_CACHE},
        {"load_influence_vector_path": tmp_path / "vectors"},
    ):
        for _, inner in lje.estimate_influence_values_in_batches(new, data, **options):
            found = np.concatenate([np.asarray(values) for _, values in inner], axis=1)
            assert_close(found, wanted, SOLVE)
    ((_, values, samples),) = lje.top_k(new, data, k=3, d_type=np.float64)
    assert_close(values, -np.sort(-wanted, axis=1)[:, :3], SOLVE)
    np.testing.assert_array_equal(samples, X[np.argsort(-wanted, axis=1)[:, :3]])


def test_training_samples_of_different_lengths(lje):
    data = [(X[:4], Y[:4]), tuple(np.pad(a[4:], ((0, 0), (0, 1))) for a in (X, Y))]
    other = expansion(data=data)
    plain = lje.explain((NEW_X,), k=2)
    found = other.explain((NEW_X,), k=2)
    np.testing.assert_array_equal(found.ids, plain.ids)
    assert_close(found.values, plain.values, SOLVE)
    ((_, values, samples),) = other.top_k([(NEW_X, NEW_Y)], data, k=2, d_type=np.float64)
    assert_close(values, plain.values, SOLVE)
    np.testing.assert_array_equal(samples[..., :L], X[plain.ids])
    assert samples.shape[2] == L + 1


def test_one_sigmoid_output_is_turned_position_by_position():
    net = model(1, "binary_crossentropy", "sigmoid")
    lje = expansion(net, (X, (Y > 0).astype(float)))
    found = lje.explain((NEW_X,), k=N)
    u = lje.influence_model.observe(whence.data.base.Batch(NEW_X, None, None, 0)).phi @ lje.layer.theta
    signs = np.where(u[..., 0] < 0, -1.0, 1.0)
    assert {-1.0, 1.0} <= set(signs[NEW_VISIBLE])
    np.testing.assert_array_equal(found.signs, np.where(NEW_VISIBLE, signs, np.nan))
    mean = (np.abs(u[..., 0]) * even(NEW_VISIBLE)).sum(axis=1)
    assert_close(found.pre_activations, mean, FLOAT64)
    assert_close(found.values.sum(axis=1), found.totals, SOLVE)


def test_the_hessian_of_some_samples():
    lje = expansion(n_samples_for_hessian=5)
    found = lje.explain((NEW_X,), k=N)
    assert_close(found.values.sum(axis=1), found.totals, SOLVE)


ITERATIVE = {
    "conjugate gradient": whence.CGDIHVPFactory(damping=DAMPING, tolerance=1e-11),
    "LiSSA": whence.LissaIHVPFactory(damping=DAMPING, tolerance=1e-11),
}


@pytest.mark.parametrize("solver", ITERATIVE)
def test_every_solver_sums_over_positions(lje, solver):
    other = expansion(factory=ITERATIVE[solver])
    mine, theirs = (which.explain((NEW_X,), k=N) for which in (other, lje))
    assert_close(by_id(mine), by_id(theirs), SOLVE)
    for score in ("leave_one_out", "self_influence"):
        mine, theirs = (w.suspects((X, Y), k=None, score=score) for w in (other, lje))
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        assert_close(mine.scores, theirs.scores, SOLVE)


def test_the_kronecker_form_is_complete_along_a_sequence():
    found = expansion(factory=whence.KroneckerIHVPFactory(damping=DAMPING)).explain((NEW_X,), k=N)
    assert_close(found.values.sum(axis=1), found.totals, SOLVE)


def test_the_kronecker_form_is_exact_for_squared_error():
    net, data = model(C, "mse", "linear"), (X, np.eye(C)[Y])
    factory = whence.KroneckerIHVPFactory(damping=DAMPING)
    mine, theirs = (expansion(net, data, solver).explain((NEW_X,), k=N) for solver in (factory, None))
    assert_close(by_id(mine), by_id(theirs), SOLVE)


def test_frames(lje):
    pytest.importorskip("pandas")
    frame = lje.explain((NEW_X, NEW_Y), k=2).to_frame()
    assert len(frame) == 4 * len(NEW_X)
    assert frame["label"][0] == np.where(NEW_VISIBLE, NEW_Y, -1)[0].tolist()
    suspects = lje.suspects((X, Y), k=3)
    assert suspects.to_frame()["label"].tolist() == suspects.labels.tolist()


def test_pages_list_the_labels_of_all_positions(lje, tmp_path):
    pytest.importorskip("jinja2")
    found = lje.explain((NEW_X, NEW_Y), k=2)
    names = ["noun", "verb", "other"]
    page = found.save_html(tmp_path / "page.html", class_names=names).read_text()
    assert "labelled " + " ".join(names[y] for y in NEW_Y[0][NEW_VISIBLE[0]]) in page
    table = lje.suspects((X, Y), k=3)
    page = table.save_html(tmp_path / "table.html", class_names=names).read_text()
    assert " ".join(names[y] for y in table.labels[0][table.labels[0] >= 0]) in page


BAD = {
    "a hidden position": ({"positions": L - 1}, "mask of sample"),
    "a position too many": ({"positions": L}, "from 0 to 3"),
    "a negative position": ({"positions": -1}, "got -1"),
    "positions that are no integers": ({"positions": 0.5}, "positions"),
    "too few positions": ({"positions": [0, 0]}, "positions"),
    "an output too many": ({"outputs": C}, "from 0 to 2"),
    "outputs of another length": ({"outputs": np.zeros((5, 2), int)}, "outputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(lje, name):
    options, match = BAD[name]
    with pytest.raises(whence.WhenceError, match=match):
        lje.explain((NEW_X, NEW_Y), **options)


def test_nothing_to_explain(lje):
    with pytest.raises(whence.WhenceError, match="at least one position"):
        lje.explain((np.where(np.arange(5)[:, None] == 1, 0, NEW_X),))
    with pytest.raises(whence.WhenceError, match="explain one position"):
        lje.explain((NEW_X, NEW_Y, np.zeros(NEW_X.shape)))
    with pytest.raises(whence.WhenceError, match="label='given'"):
        expansion(label="given").explain((NEW_X,))


def test_the_formula_with_divisions_is_refused():
    with pytest.raises(whence.WhenceError, match="elementwise"):
        expansion(decomposition="elementwise")


def test_positions_are_those_of_a_layer_along_a_sequence():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    net.compile(loss="mse")
    x, y = RNG.normal(size=(2, 6, 2))
    lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), (x, y), whence.ExactIHVPFactory())
    with pytest.raises(whence.WhenceError, match="applied once a sample"):
        lje.explain((x,), positions=0)
