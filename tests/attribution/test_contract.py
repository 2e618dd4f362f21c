"""The contract: names, order and defaults of arguments, and what the five methods give on tf.data."""

import inspect

import numpy as np
import pytest
from tolerances import FLOAT32, SOLVE_FLOAT32, assert_close

import whence
from whence import CACHE, ORDER, RepresenterPointLJE

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

N, T, D, C = 30, 7, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(0, C, N)
X_NEW = RNG.normal(size=(T, D)).astype(np.float32)
Y_NEW = RNG.integers(0, C, T)


def batches(*arrays, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((D,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(C),
            keras.layers.Softmax(),
        ]
    )
    net.compile("adam", "sparse_categorical_crossentropy")
    return whence.InfluenceModel(net)


@pytest.fixture(scope="module")
def train():
    return batches(X, Y)


@pytest.fixture(scope="module")
def evaluated():
    return batches(X_NEW, Y_NEW, size=3)


@pytest.fixture(scope="module")
def lje(model, train):
    return RepresenterPointLJE(model, train, whence.ExactIHVPFactory(damping=0.01), progress=False)


def all_values(lje, evaluated, train, *args, **kwargs):
    nested = lje.estimate_influence_values_in_batches(evaluated, train, *args, **kwargs)
    return np.concatenate([np.concatenate([v.numpy() for _, v in d], axis=1) for _, d in nested])


@pytest.fixture(scope="module")
def values(lje, evaluated, train):
    """All values ``(T, N)``, against which the searches are compared."""
    return all_values(lje, evaluated, train)


# ---- signatures ---------------------------------------------------------------------------------

SIGNATURES = {
    "__init__": {
        "influence_model": ...,
        "dataset": ...,
        "ihvp_calculator_factory": ...,
        "n_samples_for_hessian": None,
        "target_layer": -1,
        "shuffle_buffer_size": 10000,
        "epsilon": 1e-05,
    },
    "compute_influence_values": {"train_set": ..., "device": None},
    "compute_influence_vector": {
        "train_set": ...,
        "save_influence_vector_ds_path": None,
        "device": None,
    },
    "compute_top_k_from_training_dataset": {"train_set": ..., "k": ..., "order": ORDER.DESCENDING},
    "estimate_influence_values_in_batches": {
        "dataset_to_evaluate": ...,
        "train_set": ...,
        "influence_vector_in_cache": CACHE.MEMORY,
        "load_influence_vector_path": None,
        "save_influence_vector_path": None,
        "save_influence_value_path": None,
        "device": None,
    },
    "top_k": {
        "dataset_to_evaluate": ...,
        "train_set": ...,
        "k": 5,
        "nearest_neighbors": None,  # a LinearNearestNeighbors made for each call, never shared
        "influence_vector_in_cache": CACHE.MEMORY,
        "load_influence_vector_ds_path": None,
        "save_influence_vector_ds_path": None,
        "save_top_k_ds_path": None,
        "order": ORDER.DESCENDING,
        "d_type": np.float32,
        "device": None,
    },
}


@pytest.mark.parametrize("method", SIGNATURES)
def test_names_order_and_defaults_of_arguments(method):
    parameters = list(inspect.signature(getattr(RepresenterPointLJE, method)).parameters.values())[1:]
    fixed = SIGNATURES[method]
    found = {
        p.name: ... if p.default is p.empty else p.default
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD
    }
    assert list(found) == list(fixed)
    assert found == fixed
    added = parameters[len(fixed) :]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added)


def test_values_of_the_enumerations():
    assert {c.name: c.value for c in CACHE} == {"MEMORY": 0, "DISK": 1, "NO_CACHE": 2}
    assert {o.name: o.value for o in ORDER} == {"ASCENDING": 1, "DESCENDING": 2}


# ---- the five methods ---------------------------------------------------------------------------


def test_influence_values_come_with_their_batches(lje, train):
    result = lje.compute_influence_values(train)
    assert isinstance(result, tf.data.Dataset)
    assert result.element_spec[1].shape.as_list() == [None]
    assert result.cardinality() == train.cardinality()
    for (samples, scores), batch in zip(result, train, strict=True):
        for given, returned in zip(batch, samples, strict=True):
            np.testing.assert_array_equal(returned, given)
        assert scores.shape == batch[1].shape
        assert (scores.numpy() >= 0).all()
    again = [scores.numpy() for _, scores in result]
    for mine, (_, scores) in zip(again, result, strict=True):
        np.testing.assert_array_equal(mine, scores)


def test_influence_vectors_give_the_values(lje, train, evaluated, values):
    result = lje.compute_influence_vector(train)
    assert isinstance(result, tf.data.Dataset)
    for (samples, (phi, r)), batch in zip(result, train, strict=True):
        np.testing.assert_array_equal(samples[0], batch[0])
        assert phi.shape == (batch[0].shape[0], 6)
        assert r.shape == (batch[0].shape[0], C)
    phi, r = (np.concatenate(parts) for parts in zip(*(v for _, v in result), strict=True))
    x_new = np.concatenate([x for x, _ in evaluated])
    hidden = lje.influence_model.model.layers[0]
    phi_new = np.concatenate([np.asarray(hidden(x_new)), np.ones((T, 1))], axis=1).astype(np.float64)
    outputs = (phi_new @ lje.layer.theta).argmax(axis=1)
    by_hand = np.empty((T, N))
    for t, (p, j) in enumerate(zip(phi_new, outputs, strict=True)):
        unit = np.outer(p, np.eye(C)[j])[None]
        solved = lje.ihvp.solve(unit).value[0]
        own = p @ lje.expanded_layer.theta[:, j]
        by_hand[t] = (own - np.einsum("nd,dc,nc->n", phi, solved, r)) / N
    assert_close(values, by_hand, SOLVE_FLOAT32)


@pytest.mark.parametrize("order", ORDER)
def test_the_most_and_the_least_influential_training_samples(lje, train, order):
    scores = np.concatenate([v.numpy() for _, v in lje.compute_influence_values(train)])
    samples, found = lje.compute_top_k_from_training_dataset(train, 4, order)
    assert isinstance(samples, tf.Tensor)
    assert isinstance(found, tf.Tensor)
    ranked = np.argsort(scores if order is ORDER.ASCENDING else -scores, kind="stable")[:4]
    np.testing.assert_array_equal(found, scores[ranked])
    np.testing.assert_array_equal(samples, X[ranked])


def test_values_in_batches_are_nested_datasets(lje, train, evaluated):
    result = lje.estimate_influence_values_in_batches(evaluated, train)
    assert isinstance(result, tf.data.Dataset)
    for (given, inner), batch in zip(result, evaluated, strict=True):
        np.testing.assert_array_equal(given[0], batch[0])
        np.testing.assert_array_equal(given[1], batch[1])
        for (samples, scores), batch_of_train in zip(inner, train, strict=True):
            np.testing.assert_array_equal(samples[0], batch_of_train[0])
            assert scores.shape == (batch[0].shape[0], batch_of_train[0].shape[0])


@pytest.mark.parametrize("order", ORDER)
def test_top_k_finds_the_ends_of_the_values(lje, train, evaluated, values, order):
    result = lje.top_k(evaluated, train, k=4, order=order)
    assert isinstance(result, tf.data.Dataset)
    ranked = np.argsort(values if order is ORDER.ASCENDING else -values, axis=1)[:, :4]
    start = 0
    for (samples, found, training), batch in zip(result, evaluated, strict=True):
        np.testing.assert_array_equal(samples[0], batch[0])
        rows = ranked[start : start + len(found)]
        assert found.dtype == tf.float32
        assert_close(found, np.take_along_axis(values[start : start + len(found)], rows, 1), FLOAT32)
        np.testing.assert_array_equal(training, X[rows])
        start += len(found)
    assert start == T


def test_top_k_finds_five_by_default_in_the_type_asked_for(lje, train, evaluated):
    for d_type in (np.float64, tf.float16, "float64"):
        _, found, training = next(iter(lje.top_k(evaluated, train, d_type=d_type)))
        assert found.dtype == d_type
        assert found.shape == (3, 5)
        assert training.shape == (3, 5, D)


def test_methods_take_a_part_of_the_training_set_in_any_order(lje, evaluated, values):
    rows = np.asarray([17, 3, 22, 4, 11])
    part = batches(X[rows], Y[rows], size=2)
    assert_close(all_values(lje, evaluated, part), values[:, rows], FLOAT32)
    every = np.concatenate([v.numpy() for _, v in lje.compute_influence_values(batches(X, Y))])
    some = np.concatenate([v.numpy() for _, v in lje.compute_influence_values(part)])
    np.testing.assert_array_equal(some, every[rows])
    _, found, training = next(iter(lje.top_k(evaluated, part, k=2)))
    best = np.argsort(-values[:, rows], axis=1)[:3, :2]
    np.testing.assert_array_equal(training, X[rows[best]])
    assert_close(found, np.take_along_axis(values[:3, rows], best, 1), FLOAT32)
    assert set(lje.suspects(part, k=None).ids) == set(rows)


def test_more_than_there_are_gives_all_and_says_so_once(lje, train, evaluated):
    part = batches(X[:5], Y[:5])
    calls = [
        (lambda: next(iter(lje.top_k(evaluated, train, k=99)))[1].shape, N),
        (lambda: next(iter(lje.top_k(evaluated, part, k=9)))[1].shape, 5),
        (lambda: lje.compute_top_k_from_training_dataset(train, 99)[1].shape, N),
        (lambda: lje.compute_top_k_from_training_dataset(part, 9)[1].shape, 5),
        (lambda: lje.explain(evaluated, k=99).ids.shape, N),
        (lambda: lje.suspects(train, k=99).ids.shape, N),
        (lambda: lje.suspects(part, k=9).ids.shape, 5),
    ]
    for call, count in calls:
        with pytest.warns(UserWarning, match=f"there are {count}: all are returned") as said:
            shape = call()
        assert shape[-1] == count
        assert len(said) == 1
        assert said[0].filename == __file__


# ---- caches, paths and devices ------------------------------------------------------------------


def test_every_cache_gives_the_same_values(lje, train, evaluated, values, tmp_path):
    for cache in CACHE:
        path = {"save_influence_vector_path": tmp_path} if cache is CACHE.DISK else {}
        found = all_values(lje, evaluated, train, influence_vector_in_cache=cache, **path)
        assert_close(found, values, FLOAT32)
    for cache in CACHE:
        path = {"load_influence_vector_ds_path": tmp_path} if cache is CACHE.DISK else {}
        _, found, _ = next(iter(lje.top_k(evaluated, train, 2, influence_vector_in_cache=cache, **path)))
        assert_close(found, -np.sort(-values[:3], axis=1)[:, :2], FLOAT32)


def test_vectors_are_saved_once_and_loaded_after(lje, train, evaluated, values, tmp_path):
    path = tmp_path / "vectors"
    first = [v for _, v in lje.compute_influence_vector(train, path)]
    saved = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert saved
    second = [v for _, v in lje.compute_influence_vector(train, path)]
    for one, other in zip(first, second, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    found = all_values(lje, evaluated, train, load_influence_vector_path=path)
    np.testing.assert_array_equal(found, values)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == saved


def test_answers_are_saved_where_asked(lje, train, evaluated, values, tmp_path):
    all_values(lje, evaluated, train, save_influence_value_path=tmp_path / "values")
    np.testing.assert_array_equal(np.load(tmp_path / "values" / "values.npy"), values)
    list(lje.top_k(evaluated, train, k=2, save_top_k_ds_path=tmp_path / "top"))
    ids = np.load(tmp_path / "top" / "ids.npy")
    np.testing.assert_array_equal(ids, np.argsort(-values, axis=1)[:, :2])
    best = np.take_along_axis(values, ids, axis=1)
    assert_close(np.load(tmp_path / "top" / "values.npy"), best, FLOAT32)


def test_a_device_of_the_framework_may_be_named(lje, train, evaluated, values):
    for device in ("CPU:0", "/cpu:0", "cpu"):
        assert_close(all_values(lje, evaluated, train, device=device), values, FLOAT32)
        assert len(list(lje.compute_influence_values(train, device=device))) == len(train)
        assert len(list(lje.compute_influence_vector(train, device=device))) == len(train)
        assert len(list(lje.top_k(evaluated, train, device=device))) == len(evaluated)


# ---- what users write themselves ----------------------------------------------------------------


class Diagonal(whence.InverseHessianVectorProduct):
    """Solves with the diagonal of the damped Hessian only."""

    def __init__(self, layer, blocks, damping):
        super().__init__(layer, blocks, damping)
        flat = np.diag(layer.hessian(blocks).matrix()).astype(np.float64)
        self.diagonal = flat.reshape(layer.n_outputs, -1).T + damping

    def solve(self, right):
        return whence.Solution(right / self.diagonal, True, 0, 0.0)


class DiagonalFactory(whence.InverseHessianVectorProductFactory):
    def build(self, model, dataset):
        self.given = model, dataset
        return Diagonal(model, dataset, 0.1)


class DuckFactory:
    """Not a subclass; it has what it takes."""

    def build(self, model, dataset):
        return Diagonal(model, dataset, 0.1)


@pytest.mark.parametrize("factory", [DiagonalFactory, DuckFactory])
def test_a_factory_that_the_user_wrote(model, train, evaluated, factory):
    lje = RepresenterPointLJE(model, train, factory(), progress=False)
    assert isinstance(lje.ihvp, Diagonal)
    # Complete for every solver: the values sum to what the weights of the expansion predict.
    explained = lje.explain(evaluated, k=N)
    assert_close(explained.values.sum(axis=1), explained.totals, SOLVE_FLOAT32)
    values = all_values(lje, evaluated, train)
    assert_close(np.sort(values, axis=1), np.sort(explained.values, axis=1), SOLVE_FLOAT32)
    # The base class derives self-influence and leave-one-out from ``solve`` alone.
    scores = np.concatenate([v.numpy() for _, v in lje.compute_influence_values(train)])
    vectors = [v for _, v in lje.compute_influence_vector(train)]
    phi, r = (np.concatenate(part) for part in zip(*vectors, strict=True))
    gradients = [lje.ihvp.solve(np.outer(p, q)[None]).value[0] for p, q in zip(phi, r, strict=True)]
    outputs = (phi @ lje.layer.theta).argmax(axis=1)
    by_hand = [
        abs(p @ (lje.expanded_layer.theta - g)[:, j]) / N
        for p, g, j in zip(phi, gradients, outputs, strict=True)
    ]
    assert_close(scores, by_hand, SOLVE_FLOAT32)
    assert len(lje.suspects(train, k=3)) == 3


class Remembering(whence.BaseNearestNeighbors):
    """A search by sorting everything, which keeps what it was given."""

    def build(
        self, dataset, dot_product_fun, k, query_batch_size, d_type=np.float32, order=ORDER.DESCENDING
    ):
        self.blocks = list(dataset)
        self.scores, self.k, self.order = dot_product_fun, k, order
        self.query_batch_size, self.d_type = query_batch_size, d_type

    def query(self, vector_to_find, batch_size=None):
        parts = [np.asarray(self.scores(vector_to_find, vector)) for _, vector in self.blocks]
        first = [start for start, _ in self.blocks]
        assert first == list(np.cumsum([0, *(p.shape[1] for p in parts[:-1])]))
        every = np.concatenate(parts, axis=1)
        sign = 1 if self.order is ORDER.ASCENDING else -1
        rows = np.argsort(sign * every, axis=1)[:, : self.k]
        return np.take_along_axis(every, rows, axis=1), rows


@pytest.mark.parametrize("order", ORDER)
def test_a_search_that_the_user_wrote(lje, train, evaluated, order):
    search = Remembering()
    mine = lje.top_k(evaluated, train, 3, nearest_neighbors=search, order=order)
    assert (search.k, search.order, search.query_batch_size) == (3, order, 3)
    default = lje.top_k(evaluated, train, 3, order=order)
    for (_, scores, samples), (_, expected, same) in zip(mine, default, strict=True):
        assert_close(scores, expected, FLOAT32)
        np.testing.assert_array_equal(samples, same)


def test_a_search_is_not_shared_between_calls(lje, train, evaluated):
    kept = lje.top_k(evaluated, train, 3)
    list(lje.top_k(evaluated, train, 1, order=ORDER.ASCENDING))
    assert next(iter(kept))[1].shape == (3, 3)


def test_inputs_are_left_unchanged(lje, train, evaluated):
    arrays = X.copy(), Y.copy(), X_NEW.copy()
    lje.explain((X_NEW, Y_NEW), k=2)
    lje.suspects((X, Y), k=2)
    list(lje.top_k(evaluated, train, 2))
    for then, now in zip(arrays, (X, Y, X_NEW), strict=True):
        np.testing.assert_array_equal(then, now)
