"""Hundreds of rounds in one process, many threads on one index, readers beside a writer."""

import contextlib
import gc
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

import whence
from whence import WhenceError
from whence.index import files, shard

linear_model = pytest.importorskip("sklearn.linear_model")

RNG = np.random.default_rng(0)
N, D = 200, 6
X, Y = RNG.normal(size=(N, D)), RNG.integers(0, 3, N)
NEW = RNG.normal(size=(40, D))


@pytest.fixture(scope="module")
def model():
    return whence.InfluenceModel(linear_model.LogisticRegression().fit(X, Y))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of 25 rows, so that there are several, and no waiting for the disk."""
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    monkeypatch.setattr(shard, "SHARD_BYTES", 25 * (D + 1) * 8)


def made(model, path=None, damping=1e-3):
    factory = whence.ExactIHVPFactory(damping)
    return whence.RepresenterPointLJE(model, (X, Y), factory, index_path=path, progress=False)


def same(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_two_hundred_rounds_leave_nothing_behind(model, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    process = psutil.Process()
    sizes, handles, threads, files = [], [], [], []
    first = made(model).explain([NEW], k=3)
    for number in range(200):
        path = tmp_path / f"index-{number % 2}"  # a new one, then one that is there already
        if number % 4 == 0:
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        method = made(model, path)
        same(method.explain([NEW], k=3), first)
        again = whence.load_index(path, progress=False)
        same(again.explain([NEW], k=3), first)
        with pytest.raises(WhenceError):
            again.explain(NEW[:, :2])
        del method, again
        if number % 20 == 19:
            gc.collect()
            sizes.append(process.memory_info().rss)
            handles.append(process.num_fds())
            threads.append(process.num_threads())
            files.append(sum(1 for _ in tmp_path.rglob("*")))
    assert not list(scratch.iterdir())
    assert not list(tmp_path.rglob("*.part"))
    assert len(set(handles[1:])) == 1
    assert len(set(threads[1:])) == 1
    assert len(set(files[1:])) == 1
    # From the second fifth on: what pools and caches keep is there by then.
    assert max(sizes[2:]) - sizes[1] < 8 * 2**20


def from_torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(D, 5), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(5, 3)
    )
    net.train()  # every call has to put it into eval mode, and back
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)), batch_size=50
    )
    wrapped = whence.InfluenceModel(net, loss_function=torch.nn.CrossEntropyLoss())
    return whence.RepresenterPointLJE(wrapped, data, whence.ExactIHVPFactory(), progress=False)


def from_keras():
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((D,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)])
    net.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = (X.astype(np.float32), Y)
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(net), data, whence.ExactIHVPFactory(), progress=False
    )


def from_sklearn():
    return made(whence.InfluenceModel(linear_model.LogisticRegression().fit(X, Y)))


def from_solver(factory):
    def make():
        model = whence.InfluenceModel(linear_model.LogisticRegression().fit(X, Y))
        return whence.RepresenterPointLJE(model, (X, Y), factory(), progress=False)

    return make


MAKERS = {
    "sklearn": from_sklearn,
    "conjugate gradient": from_solver(whence.CGDIHVPFactory),
    "lissa": from_solver(whence.LissaIHVPFactory),
    "torch": from_torch,
    "keras": from_keras,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_eight_threads_get_what_one_gets(maker):
    method = MAKERS[maker]()
    parts = [NEW[start : start + 5].astype(np.float32) for start in range(0, len(NEW), 5)]

    def ask(number):
        part = parts[number % len(parts)]
        return method.explain([part], k=3), method.suspects(k=5)

    alone = [ask(number) for number in range(len(parts))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(4 * len(parts))))
    for number, (explanation, suspects) in enumerate(together):
        expected = alone[number % len(parts)]
        np.testing.assert_array_equal(explanation.ids, expected[0].ids)
        np.testing.assert_allclose(explanation.values, expected[0].values, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(suspects.ids, expected[1].ids)


def test_readers_beside_a_writer_see_whole_indices(model, tmp_path):
    path, other = tmp_path / "index", tmp_path / "other"
    first = made(model, path)
    name = next(iter(path.glob("method-*"))).name
    expected = first.explain([NEW], k=3)
    done, failures, seen = threading.Event(), [], [0, 0]

    def read():
        while not done.is_set():
            try:
                same(whence.load_index(path, method=name, progress=False).explain([NEW], k=3), expected)
                seen[0] += 1
                with contextlib.suppress(WhenceError):  # not complete yet
                    same(whence.load_index(other, progress=False).explain([NEW], k=3), expected)
                    seen[1] += 1
            except BaseException as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(6):  # other methods on the same index; and an index that grows and is whole
            made(model, path, damping=1e-2 + number)
        made(model, other)
    finally:
        while not failures and seen[1] == 0 and any(reader.is_alive() for reader in readers):
            done.wait(0.05)
        done.set()
        for reader in readers:
            reader.join(60)
    assert not failures, failures[0]
    assert seen[0] > 0
    assert seen[1] > 0
