"""Everything on a cluster gives what it gives here, to the last bit."""

import clusters
import numpy as np
import pytest

import whence
from whence.engine.cluster import Cluster

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

D = 5
X, Y = clusters.samples(d=D)


@pytest.fixture(scope="module", params=[2, 4])
def client(request):
    clusters.by_value(__name__)
    with clusters.small_parts(D + 1), clusters.cluster(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def model():
    linear_model = pytest.importorskip("sklearn.linear_model")
    return whence.InfluenceModel(linear_model.LogisticRegression(C=0.05).fit(X, Y))


METHODS = {
    "exact": lambda *a, **o: whence.RepresenterPointLJE(*a, whence.ExactIHVPFactory(), **o),
    "elementwise": lambda *a, **o: whence.RepresenterPointLJE(
        *a, whence.ExactIHVPFactory(), decomposition="elementwise", **o
    ),
    "drawn": lambda *a, **o: whence.RepresenterPointLJE(*a, whence.ExactIHVPFactory(), 300, **o),
    "kronecker": lambda *a, **o: whence.RepresenterPointLJE(*a, whence.KroneckerIHVPFactory(), **o),
    "CG": lambda *a, **o: whence.RepresenterPointLJE(
        *a, whence.CGDIHVPFactory(self_influence="kronecker"), **o
    ),
    "influence": lambda *a, **o: whence.InfluenceFunctions(
        *a, whence.ExactIHVPFactory(), leverage=True, **o
    ),
    "L2": lambda *a, **o: whence.RepresenterPointL2(*a, gradient_norm=1e-6, **o),
    "dot": whence.GradientDotProduct,
    "cosine": whence.GradientCosine,
    "similarity": whence.FeatureSimilarity,
    "loss": whence.TrainingLoss,
}


def answers(method):
    explanation = method.explain((X[:9], Y[:9]), k=4)
    doubtful = "self_influence" if method.method == "GradientCosine" else "leave_one_out"
    suspects = method.suspects((X, Y), None, score=doubtful)
    return {
        "ids": explanation.ids,
        "values": explanation.values,
        "opponents": explanation.opponent_ids,
        "totals": explanation.totals,
        "suspects": suspects.ids,
        "scores": suspects.scores,
        "self": method.suspects((X, Y), 7, score="self_influence").scores,
        "influences": method.influences((X[:3], Y[:3]), groups=np.arange(len(X)) % 7),
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_as_it_does_here(client, model, name, tmp_path):
    if len(client.ncores()) == 4 and name not in ("exact", "CG", "L2"):
        return  # two workers have shown it
    options = {"progress": False}
    here = METHODS[name](model, (X, Y), index_path=tmp_path / "here", **options)
    there = METHODS[name](model, (X, Y), index_path=tmp_path / "there", engine=client, **options)
    assert len(list(there.index.parts())) == 15
    expected, found = answers(here), answers(there)
    for key, value in expected.items():
        # Additions are in the same order; products of small matrices may differ in the last bit with
        # where an array lies in memory.
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-15, err_msg=key)
    if name == "exact":
        assert clusters.contents(tmp_path / "there").keys() == clusters.contents(tmp_path / "here").keys()


def test_a_stored_index_is_searched_on_a_cluster(client, model, tmp_path):
    made = METHODS["exact"](model, (X, Y), index_path=tmp_path / "index", progress=False)
    loaded = whence.load_index(tmp_path / "index", engine=client, progress=False)
    expected, found = made.explain((X[:9], Y[:9])), loaded.explain(X[:9])
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)


def test_a_solver_that_solves_for_each_sample_sends_only_its_products(client, model, tmp_path):
    some = X[:60], Y[:60]
    solver = whence.CGDIHVPFactory(preconditioner=None, tolerance=1e-3)
    options = {"progress": False, "index_path": tmp_path / "index"}
    here = whence.RepresenterPointLJE(model, some, solver, **options)
    there = whence.RepresenterPointLJE(model, some, solver, **options, engine=client)
    np.testing.assert_allclose(there._self_influences(), here._self_influences(), rtol=1e-12)


def test_what_is_large_goes_to_each_worker_once(client):
    matrix = np.ones((300, 300))
    assert list(Cluster(client).map(lambda number: number + matrix.sum(), range(40))) == [
        90_000.0 + number for number in range(40)
    ]
    assert max(client.run(_functions_kept).values()) <= 2


def _functions_kept():
    from whence.engine import cluster as engine_dask

    return len(engine_dask._kept)


def test_an_error_of_the_user_comes_through(client):
    def fail(number):
        raise whence.WhenceError("this", "that", f"number {number}")

    with pytest.raises(whence.WhenceError, match="this: expected that, got number 0"):
        list(Cluster(client).map(fail, range(9)))
    with pytest.raises(whence.WhenceError, match="this: expected that"):
        Cluster(client).total(fail, range(9))


def test_what_cannot_be_pickled_is_named(client):
    import threading

    lock = threading.Lock()
    with pytest.raises(whence.WhenceError, match="something in it that cannot be pickled"):
        list(Cluster(client).map(lambda number: lock, range(3)))


def test_a_cluster_needs_a_path_that_its_workers_reach(client, model):
    with pytest.raises(whence.WhenceError, match="index_path: expected a folder that all workers reach"):
        METHODS["exact"](model, (X, Y), engine=client)


def test_what_is_no_client_is_refused():
    with pytest.raises(whence.WhenceError, match=r"client: expected a dask\.distributed\.Client"):
        Cluster("tcp://somewhere:8786")
