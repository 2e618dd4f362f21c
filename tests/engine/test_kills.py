"""Workers that are killed at random moments cost their own work, and change nothing."""

import os
import threading
import time

import clusters
import numpy as np
import pytest

import whence
from whence.engine.cluster import Cluster

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

D = 5
X, Y = clusters.samples(n=1200, d=D)


class Slowly:
    """A training set in shards that take a moment to read, so that there is time to be killed."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, number):
        time.sleep(self.seconds)
        rows = slice(number * 60, (number + 1) * 60)
        yield X[rows], Y[rows]


class Killer:
    """Kills one of the workers now and then, until it has killed enough."""

    def __init__(self, client, n_kills, rng):
        self.client, self.n_kills, self.rng = client, n_kills, rng
        self.killed = []
        self._thread = threading.Thread(target=self._run)
        self._done = threading.Event()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _run(self):
        while len(self.killed) < self.n_kills and not self._done.wait(self.rng.uniform(0.1, 0.6)):
            alive = [nanny.pid for nanny in self.client.cluster.workers.values() if nanny.pid]
            alive = [pid for pid in alive if pid not in self.killed]
            if len(alive) > 1:  # one goes on while the others start again
                self.killed.append(int(self.rng.choice(alive)))
                clusters.kill(self.killed[-1])


@pytest.fixture
def client():
    clusters.by_value(__name__)
    with clusters.small_parts(D + 1, rows=60), clusters.cluster(3) as made:
        yield made


@pytest.fixture(scope="module")
def model():
    linear_model = pytest.importorskip("sklearn.linear_model")
    return whence.InfluenceModel(linear_model.LogisticRegression(C=0.05).fit(X, Y))


def test_ten_kills_change_nothing(client, model, tmp_path):
    rng = np.random.default_rng()
    here = whence.RepresenterPointLJE(
        model, (X, Y), whence.ExactIHVPFactory(), index_path=tmp_path / "here", progress=False
    )
    expected = here.explain((X[:9], Y[:9]), k=4)
    kills = []
    rounds = 0
    while sum(kills) < 10:
        rounds += 1
        assert rounds <= 20, "the work is done before anyone is killed"
        shards = whence.Sharded(Slowly(0.15), 20, counts=[60] * 20)
        folder = tmp_path / f"there-{rounds}"
        with Killer(client, 4, rng) as indexing:
            index = model.index(shards, path=folder, engine=client, progress=False)
        kills.append(len(indexing.killed))
        layer = whence.LinearLayer(here.layer.theta, _Slow(), here.layer.has_bias)
        with Killer(client, 3, rng) as assembling:
            hessian = layer.hessian(index).matrix()
        kills.append(len(assembling.killed))
        np.testing.assert_allclose(hessian, here.layer.hessian(here.index).matrix(), rtol=1e-12, atol=1e-15)
        there = whence.RepresenterPointLJE(
            model, shards, whence.ExactIHVPFactory(), index_path=folder, engine=client, progress=False
        )
        with Killer(client, 3, rng) as searching:
            for _ in range(4):
                found = there.explain((X[:9], Y[:9]), k=4)
                time.sleep(0.2)
        kills.append(len(searching.killed))
        for field in ("ids", "opponent_ids"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-12, atol=1e-15)
        ours, theirs = clusters.contents(tmp_path / "here"), clusters.contents(folder)
        assert theirs.keys() == ours.keys()
        assert not [name for name in ours if theirs[name] != ours[name] and not name.startswith("method")]


class _Slow(whence.layers.losses.SoftmaxCrossEntropy):
    """The loss, a moment later: the sums of parts take longer than a kill."""

    def curvature(self, u, target):
        time.sleep(0.1)
        return super().curvature(u, target)


def test_data_that_all_workers_lost_is_sent_again(client):
    matrix = np.arange(90_000.0)  # too large to go with every part

    def slowly(number):
        time.sleep(0.3)
        return matrix[number] + number

    sums = []
    thread = threading.Thread(target=lambda: sums.append(Cluster(client).total(slowly, range(12))))
    thread.start()
    time.sleep(0.8)
    for nanny in list(client.cluster.workers.values()):
        clusters.kill(nanny.pid)
    thread.join(120)
    assert sums == [2 * sum(range(12))]


def test_work_that_kills_every_worker_is_given_up():
    def fatal(number):
        if number == 2:
            clusters.kill(os.getpid())
        return number

    clusters.by_value(__name__)
    at_once = {"distributed.scheduler.allowed-failures": 0}
    with (
        clusters.cluster(2, at_once) as client,
        pytest.raises(whence.WhenceError, match="workers that stay alive"),
    ):
        list(Cluster(client).map(fatal, range(3)))


def test_a_lost_scheduler_leaves_an_index_to_go_on_from(model, tmp_path):
    shards = whence.Sharded(Slowly(0.3), 20, counts=[60] * 20)
    clusters.by_value(__name__)

    def stored():
        return len(list((tmp_path / "index").glob("shard-*.json")))

    def close(cluster):
        while stored() < 3:
            time.sleep(0.02)
        cluster.close()

    with clusters.small_parts(D + 1, rows=60):
        with clusters.cluster(2) as made:
            closing = threading.Thread(target=close, args=(made.cluster,), daemon=True)
            closing.start()
            with pytest.raises(whence.WhenceError, match="a Dask scheduler that answers"):
                model.index(shards, path=tmp_path / "index", engine=made, progress=False)
            closing.join()
        assert 3 <= stored() < 20
        with clusters.cluster(2) as made:
            index = model.index(shards, path=tmp_path / "index", engine=made, progress=False)
        np.testing.assert_array_equal(np.concatenate([block.phi for block in index])[:, :-1], X)
