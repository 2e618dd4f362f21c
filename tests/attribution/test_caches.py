"""Influence vectors in memory, on disk, loaded, in another process: the same numbers from every method."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import whence
from whence import CACHE, ORDER, WhenceError
from whence.answers.storing import stored_vectors
from whence.index import StoredIndex, shard
from whence.index.files import Lock

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

N, T, D, C = 90, 7, 4, 3
RNG = np.random.default_rng(8)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = np.argmax(X[:, :C] + 0.5 * RNG.normal(size=(N, C)), axis=1)
X[11], Y[11] = X[5], Y[5]  # a sample that is there twice
X_NEW = RNG.normal(size=(T, D)).astype(np.float32)
Y_NEW = RNG.integers(0, C, T)
SHARD_BYTES = 32 * (D + 1) * 8
TRAIN = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, N, 16)]
TESTED = [(X_NEW[i : i + 4], Y_NEW[i : i + 4]) for i in range(0, T, 4)]


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    """Three shards: sums over more or fewer of them differ in the last bit."""
    before = shard.SHARD_BYTES
    shard.SHARD_BYTES = SHARD_BYTES
    yield
    shard.SHARD_BYTES = before


def wrapped(strength=1.0):
    return whence.InfluenceModel(LogisticRegression(C=strength).fit(X, Y))


def made(**options):
    factory = options.pop("factory", None) or whence.ExactIHVPFactory()
    model = options.pop("model", None) or wrapped()
    return whence.RepresenterPointLJE(
        model, options.pop("train", TRAIN), factory, progress=False, **options
    )


def answers(method, *, train=TRAIN, cache=CACHE.MEMORY, load=None, save=None):
    """What the five methods of the contract and ``explain`` return, as arrays."""
    saves = [None, None, None] if save is None else [f"{save}-{i}" for i in range(3)]
    result = {}
    pairs = list(method.compute_influence_values(train))
    result["values"] = np.concatenate([value for _, value in pairs])
    pairs = list(method.compute_influence_vector(train, save_influence_vector_ds_path=saves[0]))
    result["features"] = np.concatenate([vector[0] for _, vector in pairs])
    result["coefficients"] = np.concatenate([vector[1] for _, vector in pairs])
    samples, values = method.compute_top_k_from_training_dataset(train, 4)
    result |= {"most samples": samples, "most": values}
    nested = method.estimate_influence_values_in_batches(
        TESTED, train, cache, load_influence_vector_path=load, save_influence_vector_path=saves[1]
    )
    result["in batches"] = np.concatenate(
        [np.concatenate([value for _, value in inner], axis=1) for _, inner in nested]
    )
    found = list(
        method.top_k(
            TESTED,
            train,
            3,
            influence_vector_in_cache=cache,
            load_influence_vector_ds_path=load,
            save_influence_vector_ds_path=saves[2],
            order=ORDER.ASCENDING,
        )
    )
    result["top values"] = np.concatenate([value for _, value, _ in found])
    result["top samples"] = np.concatenate([samples for _, _, samples in found])
    explained = method.explain(TESTED, k=3)
    for name in ("ids", "values", "opponent_ids", "opponent_values", "training_labels", "totals"):
        result[f"explain {name}"] = getattr(explained, name)
    return {name: np.asarray(value) for name, value in result.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.fixture(scope="module")
def expected(small_shards):
    """The answers from memory."""
    return answers(made())


@pytest.mark.parametrize("cache", list(CACHE))
def test_every_cache_gives_the_same(cache, expected, tmp_path):
    saved = tmp_path / "saved" if cache is CACHE.DISK else None
    assert_same(answers(made(), cache=cache, save=saved), expected)


@pytest.mark.parametrize("cache", list(CACHE))
def test_loading_gives_what_was_saved(cache, expected, tmp_path):
    first = made()
    list(first.compute_influence_vector(TRAIN, tmp_path / "saved"))
    assert_same(answers(made(), cache=cache, load=tmp_path / "saved"), expected)
    assert_same(answers(made(), cache=cache, save=tmp_path / "again"), expected)
    assert_same(answers(made(), cache=cache, save=tmp_path / "again"), expected)  # found there


@pytest.mark.parametrize("cache", list(CACHE))
def test_an_index_on_disk_gives_the_same(cache, expected, tmp_path):
    for _ in range(2):  # built, then opened
        method = made(index_path=tmp_path / "index")
        assert isinstance(method.index, StoredIndex)
        assert len(method.index.shards) == 3
        assert_same(answers(method, cache=cache), expected)


def test_another_process_gives_the_same(expected, tmp_path):
    list(made().compute_influence_vector(TRAIN, tmp_path / "saved"))
    made(index_path=tmp_path / "index")
    root = Path(whence.__file__).parents[1]
    paths = [str(root), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    code = (
        "import sys, numpy as np, test_caches as t\n"
        "t.shard.SHARD_BYTES = t.SHARD_BYTES\n"
        "np.savez(sys.argv[3], **t.answers(t.made(), load=sys.argv[1]))\n"
        "np.savez(sys.argv[4], **t.answers(t.made(index_path=sys.argv[2]), cache=t.CACHE.DISK))\n"
    )
    results = [str(tmp_path / f"{i}.npz") for i in range(2)]
    command = [sys.executable, "-c", code, str(tmp_path / "saved"), str(tmp_path / "index"), *results]
    subprocess.run(command, check=True, env=environment)
    for result in results:
        assert_same(dict(np.load(result)), expected)


@pytest.mark.parametrize("options", [{"decomposition": "elementwise"}, {"label": "given"}])
def test_every_decomposition_is_stored(options, tmp_path):
    expected = answers(made(**options))
    assert_same(answers(made(**options, index_path=tmp_path / "index")), expected)
    assert_same(answers(made(**options), cache=CACHE.DISK, save=tmp_path / "saved"), expected)


def test_half_precision_stays_near_and_agrees_with_itself(expected, tmp_path):
    memory = answers(made(feature_dtype="float16"))
    assert_same(answers(made(feature_dtype="float16", index_path=tmp_path / "index")), memory)
    assert_same(answers(made(feature_dtype="float16"), cache=CACHE.NO_CACHE), memory)
    assert not np.array_equal(memory["in batches"], expected["in batches"])
    scale = np.abs(expected["in batches"]).max()
    assert np.abs(memory["in batches"] - expected["in batches"]).max() < 1e-2 * scale


def test_a_reshuffled_training_set_is_matched_sample_by_sample(expected, tmp_path, rng):
    order = rng.permutation(N)
    shuffled = [(X[rows], Y[rows]) for rows in np.array_split(order, 7)]
    method = made(index_path=tmp_path / "index")
    found = answers(method, train=shuffled)
    assert np.array_equal(found["values"], expected["values"][order])
    assert np.array_equal(found["in batches"], expected["in batches"][:, order])
    assert np.array_equal(found["top values"], expected["top values"])
    assert np.array_equal(found["top samples"], expected["top samples"])
    with pytest.raises(WhenceError, match="the same samples in another order"):
        made(train=shuffled, index_path=tmp_path / "index")
    other = made(train=shuffled)
    with pytest.raises(WhenceError, match="same training set in the same order"):
        list(other.top_k(TESTED, shuffled, load_influence_vector_ds_path=tmp_path / "index"))


def test_the_model_sees_the_training_set_once(monkeypatch, tmp_path):
    seen = []
    whole = whence.InfluenceModel.observe

    def observe(self, batch):
        seen.append(batch.n_samples)
        return whole(self, batch)

    monkeypatch.setattr(whence.InfluenceModel, "observe", observe)
    method = made(index_path=tmp_path / "index")
    assert sum(seen) == N
    seen.clear()
    answers(method, save=tmp_path / "saved")
    answers(method, cache=CACHE.NO_CACHE)
    method.suspects(TRAIN, k=3)
    assert sum(seen) == 2 * 3 * T  # the samples to explain, once a call
    seen.clear()
    made(index_path=tmp_path / "index", factory=whence.ExactIHVPFactory(damping=0.1))
    assert sum(seen) == 16  # one batch shows that the features are those of the model


def test_a_method_waits_until_another_process_has_written(tmp_path):
    made(index_path=tmp_path / "index")
    lock = Lock(tmp_path / "index")
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    start = time.monotonic()
    made(index_path=tmp_path / "index", step_size=1e-2)
    assert time.monotonic() - start >= 0.25
    timer.join()


def test_vectors_on_disk_are_read_from_there(tmp_path):
    method = made()
    for cache, kind in ((CACHE.DISK, StoredIndex), (CACHE.MEMORY, type(method.index))):
        paths = None, tmp_path / "vectors"
        vectors = stored_vectors(
            method.index,
            lambda: method._to_store(method.index),
            method.rule.coefficients,
            cache,
            *paths,
        )
        assert type(vectors) is kind
    assert vectors is method.index


def test_values_are_saved_where_others_were(tmp_path):
    method, folder = made(), tmp_path / "new" / "values"
    for n_batches in (1, 2):
        tested = TESTED[:n_batches]
        list(method.estimate_influence_values_in_batches(tested, TRAIN, save_influence_value_path=folder))
        kept = np.load(folder / "values.npy")
        np.testing.assert_array_equal(kept, method.influences(tested))


def test_what_differs_is_named(tmp_path):
    made(index_path=tmp_path / "index")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(WhenceError, match="model_weights"):
        made(model=wrapped(0.01), index_path=tmp_path / "index")
    load = {"load_influence_vector_ds_path": tmp_path / "index"}
    with pytest.raises(WhenceError, match="model_weights"):
        made(model=wrapped(0.01)).top_k(TESTED, TRAIN, **load)
    damped = made(factory=whence.ExactIHVPFactory(damping=0.5))
    with pytest.raises(WhenceError, match=r"damping 0\.5.*damping 0\.001.*save_ path"):
        damped.top_k(TESTED, TRAIN, **load)
    assert {file: file.read_bytes() for file in before} == before
    damped.top_k(TESTED, TRAIN, save_influence_vector_ds_path=tmp_path / "index")
    assert len(list((tmp_path / "index").glob("method-*"))) == 2
    damped.top_k(TESTED, TRAIN, **load)


def test_ids_are_those_of_the_user_in_every_answer(tmp_path):
    names = np.asarray([f"row {i:03d}" for i in range(N)])
    positions = made().explain(TESTED, k=3)
    for path in (None, tmp_path / "index"):
        method = made(ids=names, index_path=path)
        explained = method.explain(TESTED, k=3)
        assert np.array_equal(explained.ids, names[positions.ids])
        assert np.array_equal(explained.opponent_ids, names[positions.opponent_ids])
        list(method.top_k(TESTED, TRAIN, 3, save_top_k_ds_path=tmp_path / f"answers {path is None}"))
        stored = np.load(tmp_path / f"answers {path is None}" / "ids.npy")
        assert np.array_equal(stored, names[positions.ids])
    assert np.array_equal(made(index_path=tmp_path / "index").explain(TESTED, k=3).ids, explained.ids)


# ---- without the model --------------------------------------------------------------------------

FACTORIES = {
    "exact": whence.ExactIHVPFactory(),
    "pseudo-inverse": whence.ExactIHVPFactory(damping=0),
    "conjugate gradient": whence.CGDIHVPFactory(n_cgd_iters=200, damping=0.01, tolerance=1e-7),
    "kronecker": whence.KroneckerIHVPFactory(damping=0.01),
}


@pytest.mark.parametrize("options", [{}, {"decomposition": "elementwise"}, {"n_samples_for_hessian": 50}])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_loaded_index_explains_from_features(name, options, tmp_path):
    method = made(factory=FACTORIES[name], index_path=tmp_path / "index", **options)
    loaded = whence.load_index(tmp_path / "index", progress=False)
    assert type(loaded) is type(method)
    expected = method.explain([X_NEW], k=4)
    found = loaded.explain(X_NEW, k=4)
    for field in ("ids", "values", "opponent_ids", "opponent_values", "training_labels", "predictions"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
    for measured in {"relative_residual", "sum_error", "solver_error"} & set(expected.about):
        one, other = (answer.about.pop(measured) for answer in (found, expected))
        assert one == pytest.approx(other, abs=1e-13)  # of a restored inverse: rounding
    assert found.about == expected.about
    assert np.array_equal(loaded.suspects(TRAIN, k=5).ids, method.suspects(TRAIN, k=5).ids)


def test_the_exact_factor_is_not_computed_again(monkeypatch, tmp_path):
    made(index_path=tmp_path / "index")
    monkeypatch.setattr(whence.LinearLayer, "hessian", None)
    whence.load_index(tmp_path / "index", progress=False).explain(X_NEW, k=4)


def test_a_saved_index_can_be_opened_too(tmp_path):
    method = made()
    list(method.compute_influence_vector(TRAIN, tmp_path / "saved"))
    found = whence.load_index(tmp_path / "saved", progress=False).explain(X_NEW, k=4)
    assert np.array_equal(found.values, method.explain([X_NEW], k=4).values)


def test_one_of_several_methods_is_asked_for_by_name(tmp_path):
    one = made(index_path=tmp_path / "index")
    made(index_path=tmp_path / "index", factory=whence.ExactIHVPFactory(damping=0.5))
    with pytest.raises(WhenceError, match=r"damping 0\.5") as caught:
        whence.load_index(tmp_path / "index")
    text = caught.value.fix.removeprefix("It holds ")
    name = next(part.split(":")[0] for part in text.split("; ") if part.endswith("damping 0.001"))
    found = whence.load_index(tmp_path / "index", method=name, progress=False).explain(X_NEW)
    assert np.array_equal(found.values, one.explain([X_NEW]).values)


def perceptron(seed):
    """A model whose features are not its inputs."""
    net = MLPClassifier((6,), solver="lbfgs", max_iter=30, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # it need not converge
        return whence.InfluenceModel(net.fit(X, Y))


def test_with_the_model_a_loaded_index_explains_its_inputs(tmp_path):
    model = perceptron(0)
    expected = made(model=model, index_path=tmp_path / "index").explain(TESTED, k=4)
    loaded = whence.load_index(tmp_path / "index", influence_model=model, progress=False)
    found = loaded.explain(TESTED, k=4)
    assert np.array_equal(found.values, expected.values)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.labels, expected.labels)
    with pytest.raises(WhenceError, match="shape"):
        whence.load_index(tmp_path / "index", progress=False).explain(X_NEW)  # those are no features


def test_a_loaded_index_refuses_another_model(tmp_path):
    made(model=perceptron(0), index_path=tmp_path / "index")
    with pytest.raises(WhenceError, match="model_weights"):
        whence.load_index(tmp_path / "index", influence_model=perceptron(1))
    with pytest.raises(WhenceError, match="target layer"):
        whence.load_index(tmp_path / "index", influence_model=wrapped())
    with pytest.raises(WhenceError, match="Wrap the model"):
        whence.load_index(tmp_path / "index", influence_model=perceptron(0).model)


def test_all_that_is_stored_is_suspected_by_default(tmp_path):
    method = made(index_path=tmp_path / "index", ids=[f"row {i}" for i in range(N)])
    expected = method.suspects(TRAIN, k=None)
    loaded = whence.load_index(tmp_path / "index", progress=False)
    for found in (method.suspects(k=None), loaded.suspects(k=None)):
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.scores, expected.scores)


class OwnFactory(whence.ExactIHVPFactory):
    """A solver that the library does not know by name."""


def test_a_solver_of_the_users_own_is_passed_again(tmp_path):
    method = made(index_path=tmp_path / "index", factory=OwnFactory())
    with pytest.raises(WhenceError, match="ihvp_calculator_factory"):
        whence.load_index(tmp_path / "index")
    loaded = whence.load_index(tmp_path / "index", ihvp_calculator_factory=OwnFactory(), progress=False)
    assert np.array_equal(loaded.explain(X_NEW).values, method.explain([X_NEW]).values)


@pytest.mark.parametrize(
    ("features", "part"),
    [
        (X_NEW[0], "shape"),
        (X_NEW[:, :-1], "4"),
        (np.full((2, D), np.nan, dtype=np.float32), "finite"),
        (X_NEW[:0], "shape"),
        ("x", "samples"),
    ],
)
def test_other_than_features_are_refused(features, part, tmp_path):
    made(index_path=tmp_path / "index")
    loaded = whence.load_index(tmp_path / "index", progress=False)
    with pytest.raises(WhenceError, match=part):
        loaded.explain(features)


def test_a_damaged_method_is_found_and_made_again(tmp_path):
    expected = made(index_path=tmp_path / "index").explain(TESTED)
    (file,) = (tmp_path / "index").glob("method-*/coefficients-00001.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WhenceError, match=r"coefficients-00001.*CRC-32.*index_path"):
        whence.load_index(tmp_path / "index")
    with pytest.raises(WhenceError, match="coefficients-00001"):
        made().top_k(TESTED, TRAIN, load_influence_vector_ds_path=tmp_path / "index")
    again = made(index_path=tmp_path / "index").explain(TESTED)
    assert np.array_equal(again.values, expected.values)
    whence.load_index(tmp_path / "index", progress=False)
