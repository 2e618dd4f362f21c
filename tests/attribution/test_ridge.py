"""The ridge score: against fits without each sample, one by one; what must not matter; defaults."""

import numpy as np
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

import whence
from whence.engine.base import Threads
from whence.layers.losses import SoftmaxCrossEntropy
from whence.methods.ridge import Ridge as RidgeVotes
from whence.methods.ridge import target_rows

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

N, D = 30, 5
RNG = np.random.default_rng(2)
X = RNG.normal(size=(N, D)) * [1, 10, 0.1, 3, 1] + [0, 50, 0, -3, 1]
CLASSES = RNG.permutation(np.arange(N) % 3)
WEIGHT = RNG.uniform(0.2, 3, N)

MODELS = {
    "three classes": (LogisticRegression(max_iter=10_000), CLASSES),
    "two classes": (LogisticRegression(max_iter=10_000), (CLASSES > 0).astype(int)),
    "one against the rest": (LinearSVC(loss="squared_hinge"), CLASSES),
}


def made(name="three classes", x=X, weight=None, **options):
    estimator, y = MODELS[name]
    fitted = clone(estimator).fit(x, y, sample_weight=weight)
    data = (x, y) if weight is None else (x, y, weight)
    model = whence.InfluenceModel(fitted)
    return whence.RepresenterPointLJE(
        model, data, whence.ExactIHVPFactory(), progress=False, **options
    ), data


def scores_of(method, data, score="ridge"):
    suspects = method.suspects(data, None, score=score)
    every = np.empty(len(data[1]))
    every[suspects.ids] = suspects.scores
    return every


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_ridge_regression_fitted_again_without_each_sample(name, weight):
    method, data = made(name, weight=weight)
    y = data[1]
    if name == "two classes":
        said = reference.ridge_without_each(X, y[:, None].astype(float), weight)
        margins = np.where(y == 1, said[:, 0], -said[:, 0])
    else:
        said = reference.ridge_without_each(X, np.eye(3)[y], weight)
        mine = said[np.arange(N), y]
        if name == "one against the rest":
            margins = np.minimum(mine, -np.where(np.eye(3)[y] == 1, -np.inf, said).max(axis=1))
        else:
            margins = mine - np.where(np.eye(3)[y] == 1, -np.inf, said).max(axis=1)
    assert_close(RidgeVotes(method.layer, method.index).left_out(), said, SOLVE)
    assert_close(scores_of(method, data), -margins, SOLVE)


def test_a_sample_that_counts_nothing_is_told_by_the_others():
    weight = WEIGHT.copy()
    weight[4] = 0
    method, data = made(weight=weight)
    others = np.arange(N) != 4
    fewer, _ = made(x=X, weight=np.where(others, WEIGHT, 1e-9))
    assert_close(
        scores_of(method, data), scores_of(fewer, (*data[:2], np.where(others, WEIGHT, 1e-9))), 1e-6
    )


def test_units_and_offsets_of_features_do_not_matter():
    method, data = made()
    moved = X * [1e-3, 7, -2, 1, 1e4] + [5, 0, -1, 2, 3]
    other, moved_data = made(x=moved)
    assert_close(scores_of(other, moved_data), scores_of(method, data), SOLVE)


def test_features_that_never_change_do_not_matter():
    method, data = made()
    with_constants = np.concatenate([X, np.full((N, 1), 0.1), np.zeros((N, 1))], axis=1)
    other, other_data = made(x=with_constants)
    assert_close(scores_of(other, other_data), scores_of(method, data), FLOAT64)
    nothing, no_data = made(x=np.ones((N, 2)))
    assert_close(scores_of(nothing, no_data), np.zeros(N), FLOAT64)


def test_order_and_shards_do_not_matter(monkeypatch):
    method, data = made()
    order = np.random.default_rng(1).permutation(N)
    estimator = clone(MODELS["three classes"][0]).fit(X, CLASSES)
    monkeypatch.setattr("whence.index.shard.SHARD_BYTES", 7 * (D + 1) * 8)
    shuffled = X[order], CLASSES[order]
    other = whence.RepresenterPointLJE(
        whence.InfluenceModel(estimator), shuffled, whence.ExactIHVPFactory(), progress=False
    )
    assert len(other.index.shards) > 3
    assert_close(scores_of(other, shuffled), scores_of(method, data)[order], SOLVE)


def test_single_precision_is_near_double():
    method, data = made()
    single, single_data = made(x=X.astype(np.float32))
    assert_close(scores_of(single, single_data), scores_of(method, data), 1e-5)


def test_sparse_features_are_those_of_dense_ones():
    import scipy.sparse

    thin = np.where(np.abs(X) > 1, X, 0)
    method, data = made(x=thin)
    sparse = scipy.sparse.csr_array(thin)
    model = whence.InfluenceModel(LogisticRegression(max_iter=10_000).fit(thin, CLASSES))
    other = whence.RepresenterPointLJE(model, (sparse, CLASSES), whence.ExactIHVPFactory(), progress=False)
    assert_close(scores_of(other, (sparse, CLASSES)), scores_of(method, data), SOLVE)
    assert other.suspects((sparse, CLASSES), 1).score == method.suspects(data, 1).score == "label_noise"


def test_a_wrong_label_that_the_model_fits_comes_first():
    x, y = make_classification(200, 6, n_informative=4, class_sep=3, flip_y=0, random_state=0)
    y[17] = 1 - y[17]
    fitted = LogisticRegression(C=1e4).fit(x, y)
    method = whence.RepresenterPointLJE(
        whence.InfluenceModel(fitted), (x, y), whence.ExactIHVPFactory(), progress=False
    )
    suspects = method.suspects((x, y), 3, score="ridge")
    assert suspects.score == suspects.about["score"] == "ridge"
    assert suspects.ids[0] == 17


# ---- defaults -----------------------------------------------------------------------------------


def test_what_is_ranked_by_unless_told_otherwise():
    method, data = made()
    assert method.suspects(data, 1).score == "label_noise"
    influence = whence.InfluenceFunctions(
        method.influence_model, data, whence.ExactIHVPFactory(), progress=False
    )
    assert influence.suspects(data, 1).score == "leave_one_out"
    assert_close(scores_of(influence, data, "ridge"), scores_of(method, data), FLOAT64)
    for estimator, labels in (
        (GradientBoostingClassifier(n_estimators=3).fit(X, CLASSES), CLASSES),
        (Ridge().fit(X, X[:, 0]), X[:, 0]),
    ):
        model = whence.InfluenceModel(estimator)
        lje = whence.RepresenterPointLJE(model, (X, labels), whence.ExactIHVPFactory(0.1), progress=False)
        assert lje.suspects((X, labels), 1).score == "leave_one_out"


def test_layers_of_very_many_features_are_ranked_by_themselves(monkeypatch):
    monkeypatch.setattr("whence.methods.ridge.FEATURES", D)  # and the constant of the bias
    method, data = made()
    assert method.suspects(data, 1).score == "leave_one_out"


def test_samples_that_spread_over_few_directions_are_ranked_by_the_layer():
    method, data = made(x=X[:, :2])
    assert method.suspects(data, 1).score == "leave_one_out"
    # one direction and some noise
    bent = X[:, :1] + 0.1 * np.random.default_rng(0).normal(size=X.shape)
    method, data = made(x=bent)
    assert RidgeVotes(method.layer, method.index).lam > 1 / 3
    assert method.suspects(data, 1).score == "leave_one_out"


# ---- what is refused ----------------------------------------------------------------------------


def test_values_are_no_classes():
    model = whence.InfluenceModel(Ridge().fit(X, X[:, 0]))
    method = whence.RepresenterPointLJE(model, (X, X[:, 0]), whence.ExactIHVPFactory(), progress=False)
    with pytest.raises(whence.WhenceError, match=r"score.*classes.*squared error"):
        method.suspects((X, X[:, 0]), 1, score="ridge")


def test_nothing_counts():
    method, data = made(weight=WEIGHT)
    for shard in method.index.shards:
        shard.weight = np.zeros_like(shard.weight)
    with pytest.raises(whence.WhenceError, match="sample_weight"):
        method.suspects(data, 1, score="ridge")


def test_too_many_features_for_memory(monkeypatch):
    monkeypatch.setattr("whence.methods.ridge.memory_bytes", lambda: 100.0)
    method, data = made()
    with pytest.raises(whence.WhenceError, match=r"second moments fit into memory \(0 GiB here\)"):
        method.suspects(data, 1, score="ridge")


def test_targets_as_rows():
    assert target_rows(np.asarray([1, 0, 2]), 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert target_rows(np.asarray([1, 0]), 1).tolist() == [[1], [0]]  # values of one output
    assert target_rows(np.asarray([[0.25, 0.75]]), 2).tolist() == [[0.25, 0.75]]


def test_a_call_may_ask_for_a_bar(capsys):
    pytest.importorskip("tqdm")
    method, data = made()
    method.suspects(data, 1, score="leave_one_out")
    assert not capsys.readouterr().err  # the method's own setting
    method.suspects(data, 1, score="leave_one_out", progress=True)
    assert "suspects" in capsys.readouterr().err


def test_samples_that_count_nothing_have_predictions_all_the_same():
    weight = np.where(np.arange(N) % 4, 1.0, 0.0)
    method, data = made(weight=weight)
    suspects = method.suspects(data, None, score="loss")
    assert np.array_equal(suspects.predictions, method.influence_model.model.predict(X[suspects.ids]))


def test_the_engine_does_not_matter():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(9000, 4)), rng.integers(0, 3, 9000)
    index = whence.Index()
    for rows in np.array_split(np.arange(9000), 6):
        index.append(x[rows], y[rows], None, rows.astype(np.uint64))
        index.shards.append(index._buffer.take(rows.size))
    index.finish()
    layer = whence.LinearLayer(np.zeros((4, 3)), SoftmaxCrossEntropy())
    here = RidgeVotes(layer, index).left_out()
    index.engine = Threads(2)
    np.testing.assert_array_equal(RidgeVotes(layer, index).left_out(), here)
