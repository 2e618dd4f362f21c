"""Tree ensembles of XGBoost, LightGBM and scikit-learn: margins, sums, and what is refused."""

import re
from contextlib import nullcontext

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from ensembles import (
    BINARY,
    CLASSES,
    COUNTS,
    ENSEMBLES,
    MARGIN,
    MORE,
    TWO_VALUES,
    VALUES,
    lightgbm,
    lightgbm_booster,
    own_margins,
    trained,
    xgboost,
    xgboost_booster,
)
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from threadpoolctl import threadpool_limits
from tolerances import FLOAT64, assert_close

import whence
from whence import WhenceError
from whence.arrays.sparse import SparseRows


def method(model, data, **options):
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(model, **options), data, whence.ExactIHVPFactory(damping=1e-3)
    )


@pytest.mark.parametrize(
    "case", [*ENSEMBLES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]
)
def test_margins_are_the_librarys_own(case):
    model, data = trained(case)
    is_stopped = case.startswith("booster") and "stopped early" in case
    with pytest.warns(UserWarning, match="rounds after its best") if is_stopped else nullcontext():
        wrapped = whence.InfluenceModel(model)
    index = wrapped.index(data)
    layer = wrapped.layer
    u = np.concatenate([layer.pre_activations(block.phi) for block in index])
    last, x = model, data[0]
    if case == "pipeline":
        last, x = model[-1], model[:-1].transform(x)
    assert_close(u, own_margins(last, x), MARGIN)
    features = index.shards[0].features
    assert isinstance(features, SparseRows)
    per_row = np.diff(features.matrix.indptr)
    if case != "xgboost, pruned":  # whose L1 penalty holds leaves at 0: these are no features
        assert (per_row == per_row[0]).all()  # one leaf a tree, and the base score
    assert set(np.unique(features.matrix.data)) == {1.0}


SUMMED = [
    "xgboost, three classes",
    "xgboost, values",
    "xgboost, categories",
    "lightgbm, against the rest",
    "boosting, exponential",
    "histograms, counts",
    "forest, three classes",
]


@pytest.mark.parametrize("case", SUMMED)
def test_influences_sum_to_the_expanded_prediction(case):
    model, data = trained(case)
    lje = method(model, data)
    queries = data[0][:7], data[1][:7]
    explanation = lje.explain(queries, 3)
    assert_close(lje.influences(queries).sum(axis=1), explanation.totals, 1e-9)


@pytest.mark.parametrize("case", ["xgboost, two classes", "xgboost, three classes"])
def test_values_are_those_of_dense_linear_algebra(case):
    """Written out: H = (1/N) sum K_i (x) phi_i phi_i^T + lam, v = phi_t^T (theta' - H^-1 g_i) / N."""
    model, (x, y) = trained(case)
    x, y = x[::3], y[::3]
    lje = method(model, (x, y))
    phi = np.concatenate([np.asarray(block.phi) for block in lje.index])
    n, d = phi.shape
    u = phi @ lje.layer.theta
    n_outputs = u.shape[1]
    if n_outputs == 1:
        labels = y[:, None].astype(float)

        def shares(u):
            return 1 / (1 + np.exp(-u))
    else:
        labels = np.eye(n_outputs)[y]

        def shares(u):
            return np.exp(u) / np.exp(u).sum(axis=1, keepdims=True)

    theta = lje.layer.theta + 1e-4 * phi.T @ (shares(u) - labels) / n
    p = shares(phi @ theta)
    r = p - labels
    h = np.zeros((d * n_outputs, d * n_outputs))
    for i in range(n):
        k = np.diag(p[i]) - np.outer(p[i], p[i])
        h += np.kron(k, np.outer(phi[i], phi[i])) / n
    # XGBoost's reg_lambda is 1, next to the sum of the losses; eight rounds imply more.
    first = phi.T @ (shares(u) - labels) / n
    implied = -(first[:-1] * lje.layer.theta[:-1]).sum() / (lje.layer.theta[:-1] ** 2).sum()
    assert implied > 1 / n
    lam = np.full(d, 1e-3 + implied)
    lam[-1] = 1e-3
    h += np.diag(np.tile(lam, n_outputs))
    gradients = np.stack([np.outer(phi[i], r[i]).T.ravel() for i in range(n)], axis=1)
    moved = np.linalg.solve(h, gradients)
    weights = [theta - moved[:, i].reshape(n_outputs, d).T for i in range(n)]
    outputs = np.zeros(5, dtype=int) if n_outputs == 1 else u[:5].argmax(axis=1)
    expected = np.stack([[phi[t] @ w[:, outputs[t]] / n for w in weights] for t in range(5)])
    if n_outputs == 1:
        expected *= np.where(u[:5] < 0, -1.0, 1.0)
    assert_close(lje.influences((x[:5], y[:5])), expected, 1e-8)


STRENGTHS = {
    "xgboost": (lambda: xgboost(reg_lambda=4.0).fit(*BINARY), BINARY, 4.0),
    "xgboost, values": (lambda: xgboost(xgb.XGBRegressor, reg_lambda=4.0).fit(*VALUES), VALUES, 8.0),
    "lightgbm": (lambda: lightgbm(reg_lambda=4.0).fit(*BINARY), BINARY, 4.0),
    "lightgbm, against the rest": (
        lambda: lightgbm(reg_lambda=3.0, objective="multiclassova").fit(*CLASSES),
        CLASSES,
        1.0,
    ),
    "histograms": (
        lambda: HistGradientBoostingClassifier(max_iter=3, l2_regularization=4.0).fit(*BINARY),
        BINARY,
        4.0,
    ),
    "forest": (lambda: RandomForestClassifier(3).fit(*BINARY), BINARY, 0.0),
}


@pytest.mark.parametrize("case", STRENGTHS)
def test_leaves_are_regularised_as_in_training(case):
    train, data, strength = STRENGTHS[case]
    wrapped = whence.InfluenceModel(train())
    index = wrapped.index(data)
    layer = wrapped.layer
    assert wrapped._adapter.weights().l2_of_sum == strength
    implied = 0 if case == "forest" else layer.implied_l2(index)
    assert layer.l2 == pytest.approx(max(strength / index.n_samples, implied))
    assert layer.bias_l2 == 0


def test_the_regulariser_needs_a_training_set():
    wrapped = whence.InfluenceModel(GradientBoostingClassifier(n_estimators=3).fit(*BINARY))
    with pytest.raises(WhenceError, match="a training set first"):
        _ = wrapped.layer


def test_what_a_slow_booster_was_held_back_by_is_part_of_its_regulariser():
    """Its totals then stay near its own margins; ``reg_lambda`` alone lets the layer run far ahead."""
    model = xgboost(n_estimators=20, learning_rate=0.01).fit(*BINARY)
    queries = BINARY[0][:50], BINARY[1][:50]
    gaps = []
    for options in ({}, {"reg_lambda": 1.0}):
        lje = method(model, BINARY, **options)
        explanation = lje.explain(queries, 1)
        gaps.append(np.abs(explanation.totals - explanation.pre_activations).mean())
    assert gaps[0] < 2 * np.abs(explanation.pre_activations).mean()
    assert gaps[1] > 3 * gaps[0]


def test_one_whole_step_implies_the_boosters_own_regulariser():
    model = xgboost(xgb.XGBRegressor, n_estimators=1, learning_rate=1.0, reg_lambda=5.0).fit(*VALUES)
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index(VALUES)
    assert wrapped.layer.implied_l2(index) == pytest.approx(2 * 5 / index.n_samples, rel=1e-4)


@pytest.mark.parametrize("case", ["xgboost", "lightgbm"])
def test_the_regulariser_can_be_given(case):
    train, data, _ = STRENGTHS[case]
    wrapped = whence.InfluenceModel(train(), reg_lambda=2.5)
    wrapped.index(data)
    assert wrapped.layer.l2 == pytest.approx(2.5 / len(data[1]))
    with pytest.raises(WhenceError, match="reg_lambda: expected a number >= 0"):
        whence.InfluenceModel(train(), reg_lambda=-1.0)


def test_a_forest_knows_no_regulariser():
    with pytest.raises(WhenceError, match="reg_lambda: expected a booster"):
        whence.InfluenceModel(RandomForestClassifier(3).fit(*BINARY), reg_lambda=1.0)


def test_a_full_step_on_squared_error_lands_on_the_optimum_of_its_leaves():
    """Gradient and pull of the regulariser cancel on every leaf, which fixes ``lam``."""
    model = xgboost(xgb.XGBRegressor, n_estimators=1, learning_rate=1.0, reg_lambda=5.0).fit(*VALUES)
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index(VALUES)
    layer = wrapped.layer
    pull = layer.regulariser()[:, None] * layer.theta
    gap = (layer.mean_gradient(index) + pull)[:-1]
    assert np.abs(gap).max() <= 1e-5 * np.abs(pull).max()


def test_classes_weighed_in_training_are_weighed_here():
    model, data = trained("xgboost, weighed classes")
    index = whence.InfluenceModel(model).index(data)
    weights = np.concatenate([shard.weight for shard in index.shards])
    assert np.array_equal(weights, np.where(data[1] == 1, 3.0, 1.0))


N_OF_CLASS = np.bincount(BINARY[1])
BALANCED = len(BINARY[1]) / (2 * N_OF_CLASS)

#: How a model counts its classes, what else is said, and what a sample of each class then counts.
WEIGHED = {
    "given to XGBoost": (lambda: xgboost(), {0: 5.0, 1: 1.0}, [5, 1]),
    "given to a Booster": (lambda: xgboost_booster("binary:logistic", BINARY), [5.0, 1.0], [5, 1]),
    "given in place of scale_pos_weight": (lambda: xgboost(scale_pos_weight=9.0), [5.0, 1.0], [5, 1]),
    "balanced, given to XGBoost": (lambda: xgboost(), "balanced", BALANCED),
    "given to boosting": (lambda: GradientBoostingClassifier(n_estimators=3), {0: 5.0}, [5, 1]),
    "LightGBM's dict": (lambda: lightgbm(class_weight={0: 5.0}), None, [5, 1]),
    "LightGBM's balanced": (lambda: lightgbm(class_weight="balanced"), None, BALANCED),
    "LightGBM's is_unbalance": (lambda: lightgbm(is_unbalance=True), None, N_OF_CLASS.max() / N_OF_CLASS),
    "LightGBM's dict and factor": (
        lambda: lightgbm(class_weight={0: 5.0}, scale_pos_weight=2.0),
        None,
        [5, 2],
    ),
    "balanced histograms": (
        lambda: HistGradientBoostingClassifier(max_iter=2, class_weight="balanced"),
        None,
        BALANCED,
    ),
    "a balanced forest": (lambda: RandomForestClassifier(3, class_weight="balanced"), None, BALANCED),
}


@pytest.mark.parametrize("case", WEIGHED)
def test_what_each_class_counts(case):
    make, given, expected = WEIGHED[case]
    model = make()
    model = model.fit(*BINARY) if hasattr(model, "fit") else model
    index = whence.InfluenceModel(model, class_weight=given).index(BINARY)
    weights = np.concatenate([shard.weight for shard in index.shards])
    assert_close(weights, np.asarray(expected, dtype=float)[BINARY[1]], 1e-12)


@pytest.mark.parametrize(
    "case", ["LightGBM's is_unbalance", "LightGBM's balanced", "LightGBM's dict and factor"]
)
def test_class_weights_are_those_that_lightgbm_trained_with(case):
    """One full step from the base score: each leaf is the Newton step of the weighted samples in it."""
    make, _, _ = WEIGHED[case]
    options = {"n_estimators": 1, "learning_rate": 1.0, "reg_lambda": 5.0, "boost_from_average": False}
    model = make().set_params(**options).fit(*BINARY)
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index(BINARY)
    ((phi, target, weight),) = [tuple(block)[:3] for block in index]
    phi, w, y = np.asarray(phi)[:, :-1], np.asarray(weight), np.asarray(target)[:, 0]
    expected = -(phi.T @ (w * (0.5 - y))) / (phi.T @ (w * 0.25) + 5.0)
    assert_close(wrapped.layer.theta[:-1, 0], expected, 1e-5)


@pytest.mark.pairwise
@pytest.mark.parametrize("given", ["nonsense", {7: 1.0}, [1.0, 2.0, 3.0], [1.0, -1.0], [[1.0], "x"]])
@pytest.mark.parametrize("make", [xgboost, lightgbm, lambda: GradientBoostingClassifier(n_estimators=2)])
def test_class_weights_that_are_none(make, given):
    with pytest.raises(WhenceError, match="class_weight: expected"):
        whence.InfluenceModel(make().fit(*BINARY), class_weight=given)


def test_values_have_no_class_weights():
    with pytest.raises(WhenceError, match="class_weight: expected a classifier"):
        whence.InfluenceModel(xgboost(xgb.XGBRegressor).fit(*VALUES), class_weight=[1.0])


@pytest.mark.parametrize("tree_method", ["exact", "hist", "approx"])
def test_pruned_nodes_are_no_leaves(tree_method):
    model = xgboost(gamma=3.0, tree_method=tree_method, max_depth=6).fit(*BINARY)
    leaves = (model.get_booster().trees_to_dataframe().Feature == "Leaf").sum()
    assert whence.InfluenceModel(model).theta().shape[0] == leaves + 1


RELOADED = {
    "depth 3": {"n_estimators": 8},
    "stumps": {"max_depth": 1, "n_estimators": 12},
    "exact": {"tree_method": "exact", "gamma": 0.5},
    "bounded steps": {"max_delta_step": 0.7, "n_estimators": 30},
    "dropped trees": {"booster": "dart", "rate_drop": 0.3},
    "subsamples": {"subsample": 0.6, "num_parallel_tree": 2},
}


@pytest.mark.pairwise
@pytest.mark.parametrize("case", RELOADED)
@pytest.mark.parametrize(("l2", "l1"), [(1.0, 0.0), (60.0, 0.0), (3.0, 1.5)])
def test_penalties_survive_a_file_that_does_not_keep_them(case, l2, l1, tmp_path):
    if l1 and case in ("stumps", "bounded steps"):
        l1 = 0.0  # of which such splits say too little
    model = xgboost(reg_lambda=l2, reg_alpha=l1, **RELOADED[case]).fit(*BINARY)
    model.save_model(tmp_path / "model.ubj")
    again = xgb.XGBClassifier()
    again.load_model(tmp_path / "model.ubj")
    for loaded in (model, again, xgb.Booster(model_file=tmp_path / "model.ubj")):
        weights = whence.InfluenceModel(loaded)._adapter.weights()
        assert weights.l2_of_sum == pytest.approx(l2, rel=1e-3)
        assert weights.l1_of_sum == pytest.approx(l1, rel=1e-3)


def test_splits_that_do_not_tell_their_penalty(tmp_path):
    model = xgboost(reg_lambda=8.0, monotone_constraints=(1,) * 30, n_estimators=3).fit(*BINARY)
    assert whence.InfluenceModel(model)._adapter.weights().l2_of_sum == 8.0
    model.save_model(tmp_path / "model.json")
    booster = xgb.Booster(model_file=tmp_path / "model.json")
    with pytest.warns(UserWarning, match="XGBoost does not save it"):
        whence.InfluenceModel(booster)
    assert whence.InfluenceModel(booster, reg_lambda=8.0)._adapter.weights().l2_of_sum == 8.0


@pytest.mark.parametrize(
    "model",
    [
        xgboost(xgb.XGBRegressor, n_estimators=1, learning_rate=1.0, reg_lambda=5.0, reg_alpha=300.0),
        lightgbm(lgb.LGBMRegressor, n_estimators=1, learning_rate=1.0, reg_lambda=5.0, reg_alpha=1000.0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_an_l1_penalty_leaves_the_l2_as_it_is_and_its_zeros_out(model):
    """At the optimum of a full step ``g + l2 w + l1 sign(w) = 0`` on every leaf that is not 0."""
    wrapped = whence.InfluenceModel(model.fit(*VALUES))
    index = wrapped.index(VALUES)
    layer = wrapped.layer
    n, theta = index.n_samples, layer.theta[:-1]
    l1 = wrapped._adapter.weights().l1_of_sum
    assert l1 == 2 * model.reg_alpha  # boosters halve squared error
    assert layer.l2 == pytest.approx(2 * 5 / n, rel=1e-3)
    moves = theta[:, 0] != 0
    assert 0 < moves.sum() < len(moves)
    gradient = layer.mean_gradient(index)[:-1]
    gap = gradient + layer.l2 * theta + l1 / n * np.sign(theta)
    assert np.abs(gap).max() <= 1e-4 * np.abs(layer.l2 * theta).max()
    reached = np.concatenate([np.asarray(block.phi) for block in index])[:, :-1]
    assert not reached[:, ~moves].any()


@pytest.mark.parametrize("options", [{}, {"reg_alpha": 40.0}, {"learning_rate": 1.0}, {"reg_lambda": 7.0}])
def test_the_base_score_of_lightgbm_is_no_leafs(options):
    """It is not regularised: values far from 0 say nothing of what held the leaves back."""
    model = lightgbm(lgb.LGBMRegressor, **options).fit(*VALUES)
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index(VALUES)
    assert wrapped.layer.theta[-1, 0] == pytest.approx(VALUES[1].mean(), rel=1e-6)
    moved = whence.InfluenceModel(lightgbm(lgb.LGBMRegressor, **options).fit(VALUES[0], VALUES[1] - 1000))
    moved.index((VALUES[0], VALUES[1] - 1000))
    assert moved.layer.l2 == pytest.approx(wrapped.layer.l2, rel=1e-3)
    assert index.n_samples == len(VALUES[1])


def test_rounds_after_the_best_of_a_native_booster_are_spoken_of():
    x, y = BINARY
    matrix, other = xgb.DMatrix(x[::2], label=y[::2]), xgb.DMatrix(x[1::2], label=y[1::2])
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 3, "nthread": 1},
        matrix,
        60,
        evals=[(other, "other")],
        early_stopping_rounds=3,
        verbose_eval=False,
    )
    with pytest.warns(UserWarning, match=r"booster\[: "):
        wrapped = whence.InfluenceModel(booster)
    index = wrapped.index(BINARY)
    u = np.concatenate([wrapped.layer.pre_activations(block.phi) for block in index])[:, 0]
    assert_close(u, booster.predict(xgb.DMatrix(x), output_margin=True), MARGIN)
    best = booster[: booster.best_iteration + 1]
    wrapped = whence.InfluenceModel(best)
    u = np.concatenate([wrapped.layer.pre_activations(b.phi) for b in wrapped.index(BINARY)])[:, 0]
    assert_close(u, best.predict(xgb.DMatrix(x), output_margin=True), MARGIN)


def test_a_frames_rows_name_the_samples():
    model, (frame, y) = trained("xgboost, categories")
    frame = frame.set_axis([f"patient {i}" for i in range(len(frame))])
    explanation = method(model, (frame, y)).explain((frame[:4], y[:4]), 2)
    assert str(explanation.ids[0, 0]).startswith("patient")


@pytest.mark.parametrize("case", ["xgboost, two classes", "xgboost, three classes"])
def test_sparse_features_give_what_dense_ones_do(case, monkeypatch):
    from whence.models.sklearn.trees import TreeAdapter

    model, data = trained(case)
    queries = data[0][:9], data[1][:9]

    def answers():
        lje = method(model, data)
        scores = lje.suspects(data, None, score="leave_one_out").scores
        own = np.concatenate([np.asarray(values) for _, values in lje.compute_influence_values(data)])
        return lje.influences(queries), scores, own

    sparse = answers()
    features = TreeAdapter.features
    monkeypatch.setattr(TreeAdapter, "features", lambda self, x: np.asarray(features(self, x)))
    for ours, theirs in zip(sparse, answers(), strict=True):
        assert_close(ours, theirs, FLOAT64)


@pytest.mark.parametrize("case", ["xgboost, two classes", "xgboost, three classes"])
@pytest.mark.parametrize("feature_dtype", [None, "float16"])
def test_leaves_on_disk_are_sparse_and_explain_as_in_memory(case, feature_dtype, tmp_path):
    model, data = trained(case)
    queries = data[0][:5], data[1][:5]
    wrapped, factory = whence.InfluenceModel(model), whence.WoodburyIHVPFactory(1e-3)
    plain = whence.RepresenterPointLJE(wrapped, data, factory)
    here = plain.explain(queries, 3)
    stored = whence.RepresenterPointLJE(
        wrapped, data, factory, index_path=tmp_path / "leaves", feature_dtype=feature_dtype
    )
    tolerance = FLOAT64 if feature_dtype is None else 1e-5  # ones and zeros, but then in single precision
    assert isinstance(stored.index.shards[0].features, SparseRows)
    assert_close(stored.explain(queries, 3).values, here.values, tolerance)
    ours, theirs = (lje.suspects(data, None).scores for lje in (stored, plain))
    assert_close(ours, theirs, tolerance)
    # elsewhere, without the model: by the indicators of the leaves
    features = plain.index.shards[0].features.matrix[:5, :-1]  # the base score's 1 is added again
    again = whence.load_index(tmp_path / "leaves")
    for kind in (features, features.tocoo(), features.toarray()):
        explanation = again.explain(kind, 3, outputs=here.outputs)
        assert_close(explanation.values, here.values, tolerance)
    assert np.array_equal(explanation.ids, here.ids) or feature_dtype == "float16"


def test_a_folder_of_leaves_is_much_smaller_than_the_dense_array(tmp_path):
    model, data = trained("xgboost, ten classes")
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), data, whence.WoodburyIHVPFactory(1e-3), index_path=tmp_path / "leaves"
    )
    written = sum(file.stat().st_size for file in (tmp_path / "leaves").glob("features-*"))
    entries = sum(shard.features.matrix.nnz for shard in lje.index.shards)
    assert written <= 12.2 * entries
    assert written < 8 * lje.index.n_samples * lje.index.n_features / 4


# ------------------------------------------------------------------------ bad input


def refused(model, data, **options):
    with pytest.raises(WhenceError) as caught:
        method(model, data, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "model",
    [xgb.XGBClassifier(), lgb.LGBMClassifier(), GradientBoostingClassifier(), RandomForestClassifier()],
    ids=lambda model: type(model).__name__,
)
def test_an_ensemble_that_was_not_fitted(model):
    assert "not fitted" in refused(model, BINARY)


def squared(margin, matrix):
    gap = margin - matrix.get_label()
    return gap, np.ones_like(gap)


def ranked(kind, **options):
    return xgboost(kind, **options).fit(VALUES[0], COUNTS[1], qid=np.arange(442) // 50)


def of_xgboost(objective, data=VALUES, **options):
    return lambda: xgboost_booster(objective, data, n_rounds=2, **options)


def of_lightgbm(objective, data=VALUES, **options):
    return lambda: lightgbm_booster(objective, data, n_rounds=2, **options)


LEVELS = VALUES[0], COUNTS[1].astype(int)
SHARES = VALUES[0], VALUES[1] / 400
TWO_LABELS = BINARY[0], np.stack([BINARY[1], 1 - BINARY[1]], axis=1)

NOT_REBUILT = {
    # survival and ranking
    "objective='survival:cox'": of_xgboost("survival:cox"),
    "objective='survival:aft'": lambda: aft_booster(),
    "objective='rank:ndcg'": lambda: ranked(xgb.XGBRanker, objective="rank:ndcg"),
    "objective='rank:pairwise'": lambda: ranked(xgb.XGBRanker, objective="rank:pairwise"),
    "objective='rank:map'": lambda: xgboost(xgb.XGBRanker, objective="rank:map").fit(
        VALUES[0], VALUES[1] > 140, qid=np.arange(442) // 50
    ),
    "objective 'lambdarank'": lambda: lightgbm(lgb.LGBMRanker).fit(*LEVELS, group=[442]),
    "objective 'rank_xendcg": lambda: lightgbm(lgb.LGBMRanker, objective="rank_xendcg").fit(
        *LEVELS, group=[442]
    ),
    # losses without a closed form here
    "objective='reg:absoluteerror'": lambda: xgboost(xgb.XGBRegressor, objective="reg:absoluteerror").fit(
        *VALUES
    ),
    "objective='reg:quantileerror'": of_xgboost("reg:quantileerror", quantile_alpha=0.5),
    "objective='binary:hinge'": of_xgboost("binary:hinge", BINARY),
    **{f"objective '{name}": of_lightgbm(name) for name in ("regression_l1", "quantile", "mape")},
    "objective 'cross_entropy_lambda'": of_lightgbm("cross_entropy_lambda", SHARES),
    "objective 'binary sigmoid:2'": of_lightgbm("binary", BINARY, sigmoid=2.0),
    "loss='huber'": lambda: GradientBoostingRegressor(n_estimators=3, loss="huber").fit(*VALUES),
    "loss='absolute_error'": lambda: HistGradientBoostingRegressor(max_iter=2, loss="absolute_error").fit(
        *VALUES
    ),
    "loss='quantile'": lambda: HistGradientBoostingRegressor(max_iter=2, loss="quantile", quantile=0.5).fit(
        *VALUES
    ),
    # what is no sum of one value a tree
    "booster='gblinear'": lambda: xgb.XGBClassifier(booster="gblinear", n_estimators=3).fit(*BINARY),
    "several targets": lambda: xgboost(xgb.XGBRegressor).fit(*TWO_VALUES),
    "multi_output_tree": lambda: xgboost(multi_strategy="multi_output_tree", tree_method="hist").fit(
        *CLASSES
    ),
    "linear_tree=True": lambda: lightgbm(linear_tree=True).fit(*BINARY),
    "boosting='rf'": lambda: lightgbm(
        boosting_type="rf", subsample=0.7, subsample_freq=1, colsample_bytree=0.7
    ).fit(*BINARY),
    "reg_sqrt=True": lambda: lightgbm(lgb.LGBMRegressor, reg_sqrt=True).fit(*VALUES),
    "init, an estimator": lambda: GradientBoostingClassifier(
        n_estimators=3, init=RandomForestClassifier(2)
    ).fit(*BINARY),
    "criterion='poisson'": lambda: RandomForestRegressor(3, criterion="poisson").fit(*COUNTS),
    "a RandomForestClassifier with several targets": lambda: RandomForestClassifier(3).fit(*TWO_LABELS),
    "RandomForestClassifier(class_weight='balanced_subsample')": lambda: RandomForestClassifier(
        3, class_weight="balanced_subsample"
    ).fit(*BINARY),
    "no trees": lambda: xgboost_booster("binary:logistic", BINARY, n_rounds=0),
}


def aft_booster():
    matrix = xgb.DMatrix(VALUES[0])
    matrix.set_float_info("label_lower_bound", VALUES[1])
    matrix.set_float_info("label_upper_bound", VALUES[1])
    return xgb.train({"objective": "survival:aft"}, matrix, num_boost_round=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("objective='survival:cox'", "no sample has a loss of its own"),
        ("objective='rank:pairwise'", "no sample has a loss of its own"),
        ("objective='reg:absoluteerror'", "such as Huber"),
        ("objective 'quantile", "such as Huber"),
    ],
)
def test_no_remedy_is_named_that_does_not_exist(words, remedy):
    message = refused(NOT_REBUILT[words](), VALUES)
    assert remedy in message
    assert "binary_crossentropy" not in message


@pytest.mark.parametrize("words", NOT_REBUILT)
@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_by_name(words):
    with threadpool_limits(1):
        model = NOT_REBUILT[words]()
    assert words.strip() in refused(model, VALUES)


def squared_of_lightgbm(margin, data):
    return margin - data.get_label(), np.ones_like(margin)


def by_xgboost():
    return xgb.train({"max_depth": 3}, xgb.DMatrix(VALUES[0], label=VALUES[1]), 5, obj=squared)


def by_lightgbm():
    parameters = {"objective": squared_of_lightgbm, "verbose": -1, "num_leaves": 8}
    return lgb.train(parameters, lgb.Dataset(*VALUES), num_boost_round=5)


def own(y, u):
    return u - y, np.ones_like(u)


CUSTOM = {
    "xgboost": lambda: xgboost(xgb.XGBRegressor, objective=own).fit(*VALUES),
    "xgboost booster": by_xgboost,
    "lightgbm": lambda: lightgbm(lgb.LGBMRegressor, objective=own).fit(*VALUES),
    "lightgbm booster": by_lightgbm,
}


@pytest.mark.parametrize("case", CUSTOM)
def test_an_objective_of_the_users_own_needs_its_loss(case):
    with threadpool_limits(1):
        model = CUSTOM[case]()
    message = refused(model, VALUES)
    assert "an objective of your own" in message
    assert "loss_function=" in message
    lje = method(model, VALUES, loss_function="squared_error")
    assert lje.influence_model.loss.name == "squared error"
    x, y = VALUES[0][:5], VALUES[1][:5]
    assert_close(lje.explain((x, y), 1).pre_activations, own_margins(model, x)[:, 0], 1e-5)
    assert "loss_function: expected one of" in refused(model, VALUES, loss_function="mse")


def test_squared_error_without_an_objective_is_what_xgboost_takes_by_default():
    booster = xgb.train({"max_depth": 3}, xgb.DMatrix(VALUES[0], label=VALUES[1]), 3)
    assert method(booster, VALUES).influence_model.loss.name == "squared error"


def on_frames():
    """Boosters of every kind, fitted on a frame whose columns have names with spaces."""
    frame, y = load_breast_cancer(return_X_y=True, as_frame=True)
    frame = frame.iloc[:, :6]
    return frame, y, {
        "xgboost": xgboost(n_estimators=3).fit(frame, y),
        "xgboost booster": xgboost_booster("binary:logistic", (frame, y), 3),
        "lightgbm": lightgbm(n_estimators=3).fit(frame, y),
        "lightgbm booster": lightgbm_booster("binary", (frame, y), 3),
        "boosting": GradientBoostingClassifier(n_estimators=3).fit(frame, y),
        "histograms": HistGradientBoostingClassifier(max_iter=3).fit(frame, y),
        "forest": RandomForestClassifier(3).fit(frame, y),
    }  # fmt: skip


FRAME, LABELS, ON_FRAMES = on_frames()


@pytest.mark.parametrize("case", ON_FRAMES)
def test_frames_with_other_columns_than_at_fit(case):
    model = ON_FRAMES[case]
    assert method(model, (FRAME, LABELS)).index.n_samples == len(LABELS)
    assert "another order" in refused(model, (FRAME[FRAME.columns[::-1]], LABELS))
    message = refused(model, (FRAME.drop(columns="mean area"), LABELS))
    assert re.search("without mean.area", message)
    renamed = FRAME.rename(columns={"mean area": "surface"})
    assert "with surface" in refused(model, (renamed, LABELS))


def test_frames_to_boosters_that_were_trained_on_arrays_have_no_columns_to_compare():
    model, (x, y) = trained("lightgbm, two classes")
    frame = pd.DataFrame(x, columns=[f"column {i}" for i in range(x.shape[1])])
    queries = x[:3], y[:3]
    ours = method(model, (frame, y)).explain(queries, 2).values
    assert_close(ours, method(model, (x, y)).explain(queries, 2).values, FLOAT64)


@pytest.mark.parametrize("case", ["xgboost, two classes", "lightgbm, two classes"])
def test_arrays_of_another_width(case):
    model, (x, y) = trained(case)
    assert "inputs" in refused(model, (x[:, :4], y))


@pytest.mark.parametrize(
    "case", ["xgboost, two classes", "lightgbm, three classes", "forest, three classes"]
)
def test_labels_that_the_fit_did_not_see(case):
    model, (x, y) = trained(case)
    other = y.copy()
    other[3] = "new" if y.dtype.kind == "U" else 7
    assert "the classes of the fit" in refused(model, (x, other))


def test_a_model_that_adds_something_to_its_leaves_is_caught():
    class Shifted(GradientBoostingRegressor):
        def predict(self, x):
            return super().predict(x) + x[:, 0]

    model = Shifted(n_estimators=3).fit(*VALUES)
    assert "differ from that sum" in refused(model, VALUES)


# --------------------------------------------------------------------- base margins

EXPOSURE = np.random.default_rng(3).normal(size=len(COUNTS[1]))
BINARY_EXPOSURE = np.random.default_rng(3).normal(size=len(BINARY[1]))
CLASS_EXPOSURE = np.random.default_rng(3).normal(size=(len(CLASSES[1]), 3))


def with_init_score(model, data, margins):
    return model.fit(*data, init_score=margins)


#: A model trained from base margins, its data and these, and the loss of its own margins.
FROM_MARGINS = {
    "xgboost, counts": (
        lambda d, m: xgboost(xgb.XGBRegressor, objective="count:poisson").fit(*d, base_margin=m),
        COUNTS,
        EXPOSURE,
        lambda u, y: np.exp(u[:, 0]) - y * u[:, 0],
    ),
    "xgboost, two classes": (
        lambda d, m: xgboost().fit(*d, base_margin=m),
        BINARY,
        BINARY_EXPOSURE,
        lambda u, y: np.log1p(np.exp(u[:, 0])) - y * u[:, 0],
    ),
    "xgboost, three classes": (
        lambda d, m: xgboost().fit(*d, base_margin=m),
        CLASSES,
        CLASS_EXPOSURE,
        lambda u, y: np.log(np.exp(u).sum(axis=1)) - u[np.arange(len(u)), y],
    ),
    "lightgbm, counts": (
        lambda d, m: with_init_score(lightgbm(lgb.LGBMRegressor, objective="poisson"), d, m),
        COUNTS,
        EXPOSURE,
        lambda u, y: np.exp(u[:, 0]) - y * u[:, 0],
    ),
    "lightgbm, two classes": (
        lambda d, m: with_init_score(lightgbm(), d, m),
        BINARY,
        BINARY_EXPOSURE,
        lambda u, y: np.log1p(np.exp(u[:, 0])) - y * u[:, 0],
    ),
}


@pytest.mark.parametrize("case", FROM_MARGINS)
def test_base_margins_are_part_of_every_loss(case):
    train, (x, y), margins, loss = FROM_MARGINS[case]
    model = train((x, y), margins)
    if case.startswith("xgboost"):
        matrix = xgb.DMatrix(x, base_margin=margins)
        own = model.get_booster().predict(matrix, output_margin=True).reshape(len(y), -1)
    else:
        own = model.booster_.predict(x, raw_score=True).reshape(len(y), -1) + margins.reshape(len(y), -1)
    lje = method(model, ((x, margins), y), base_margin=True)
    losses = np.concatenate([np.asarray(lje.layer.losses(shard.block)) for shard in lje.index.shards])
    assert_close(losses, loss(own, y), 1e-5)
    # residuals, by central differences of the loss of the model's own margins
    residuals = np.concatenate([np.asarray(lje.layer.residuals(s.block)) for s in lje.index.shards])
    for c in range(own.shape[1]):
        step = 1e-5 * np.eye(own.shape[1])[c]
        slope = (loss(own + step, y) - loss(own - step, y)) / 2e-5
        np.testing.assert_allclose(residuals[:, c], slope, atol=1e-4 * np.abs(slope).max())
    queries = (x[:5], margins[:5]), y[:5]
    explanation = lje.explain(queries, 3)
    assert_close(lje.influences(queries).sum(axis=1), explanation.totals, 1e-9)
    said = model.predict(x[:5], base_margin=margins[:5]) if case.startswith("xgboost") else None
    if said is not None:
        assert_close(np.asarray(explanation.predictions, dtype=float), np.asarray(said, dtype=float), 1e-5)
    assert np.array_equal(np.ravel(explanation.labels), y[:5])
    assert len(lje.suspects(k=4).ids) == 4


def test_base_margins_in_a_column_of_a_frame():
    x, y = COUNTS
    frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])])
    model = xgboost(xgb.XGBRegressor, objective="count:poisson").fit(frame, y, base_margin=EXPOSURE)
    whole = frame.assign(log_exposure=EXPOSURE)
    ours = method(model, (whole, y), base_margin="log_exposure").influences((whole[:4], y[:4]))
    theirs = method(model, ((x, EXPOSURE), y), base_margin=True).influences(((x[:4], EXPOSURE[:4]), y[:4]))
    assert_close(ours, theirs, 1e-9)


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({"base_margin": "log_exposure"}, "array", "a frame with the columns"),
        ({"base_margin": ["a", "b"]}, "array", "the names of 1 columns"),
        ({"base_margin": 3}, "array", "the names of 1 columns"),
        ({"base_margin": True}, "array", r"\(X, base_margin\)"),
        ({"base_margin": True}, "two margins", "1 numbers a sample"),
        ({"base_margin": True}, "nan", "NaN"),
    ],
)
def test_base_margins_that_are_none(options, inputs, words):
    x, y = COUNTS
    model = xgboost(xgb.XGBRegressor, objective="count:poisson").fit(x, y, base_margin=EXPOSURE)
    given = {
        "array": x,
        "two margins": (x, np.stack([EXPOSURE, EXPOSURE], axis=1)),
        "nan": (x, np.where(np.arange(len(y)) == 3, np.nan, EXPOSURE)),
    }[inputs]
    with pytest.raises(WhenceError, match=words):
        method(model, (given, y), **options)


def test_lightgbm_that_was_trained_without_them_is_found_out():
    model = lightgbm(lgb.LGBMRegressor, objective="poisson").fit(*COUNTS)
    with pytest.raises(WhenceError, match="without init_score"):
        method(model, ((COUNTS[0], EXPOSURE), COUNTS[1]), base_margin=True)
    with pytest.raises(WhenceError, match="base_margin: expected a booster"):
        whence.InfluenceModel(RandomForestClassifier(3).fit(*BINARY), base_margin=True)


# ------------------------------------------------------------------ other objectives

POSITIVE = VALUES[0], VALUES[1] / 100

#: One whole step from the base score, its data, and whether its second derivatives are the loss's own.
ONE_STEP = {
    "xgboost, gamma": (lambda: xgboost(xgb.XGBRegressor, objective="reg:gamma"), POSITIVE, True),
    "xgboost, tweedie": (
        lambda: xgboost(xgb.XGBRegressor, objective="reg:tweedie", tweedie_variance_power=1.3),
        COUNTS,
        True,
    ),
    "xgboost, pseudo-Huber": (
        lambda: xgboost(
            xgb.XGBRegressor, objective="reg:pseudohubererror", huber_slope=0.8, base_score=1.0
        ),
        POSITIVE,
        True,
    ),
    "xgboost, logarithms": (
        lambda: xgboost(xgb.XGBRegressor, objective="reg:squaredlogerror", base_score=1.0),
        POSITIVE,
        False,  # they are bounded from below
    ),
    "lightgbm, gamma": (lambda: lightgbm(lgb.LGBMRegressor, objective="gamma"), POSITIVE, True),
    "lightgbm, tweedie": (
        lambda: lightgbm(lgb.LGBMRegressor, objective="tweedie", tweedie_variance_power=1.7),
        COUNTS,
        True,
    ),
    "lightgbm, fair": (lambda: lightgbm(lgb.LGBMRegressor, objective="fair", fair_c=20.0), VALUES, True),
    "lightgbm, huber": (lambda: lightgbm(lgb.LGBMRegressor, objective="huber", alpha=1.5), POSITIVE, False),
}


@pytest.mark.parametrize("case", ONE_STEP)
def test_a_boosters_first_leaves_are_newton_steps_of_its_loss(case):
    """``w = -sum r / (sum K + lambda)`` at the base score: residuals are those that it was trained with."""
    make, data, is_own = ONE_STEP[case]
    model = make().set_params(n_estimators=1, learning_rate=1.0, reg_lambda=2.0)
    if case.startswith("lightgbm"):
        model.set_params(boost_from_average=False)
    else:
        model.set_params(max_delta_step=0)
    wrapped = whence.InfluenceModel(model.fit(*data))
    index = wrapped.index(data)
    layer = wrapped.layer
    start = layer.at(
        np.where(np.arange(layer.n_features)[:, None] == layer.n_features - 1, layer.theta, 0.0)
    )
    (block,) = list(index)
    phi = np.asarray(block.phi)[:, :-1]
    slope = np.asarray(start.residuals(block))[:, 0]
    bend = np.asarray(start.loss.curvature(start.pre_activations(block.phi), block.target).diagonal)[:, 0]
    if not is_own:
        bend = np.ones_like(bend) if "huber" in case else np.maximum(bend, 1e-6)
    expected = -(phi.T @ slope) / (phi.T @ bend + 2.0)
    assert_close(layer.theta[:-1, 0], expected, 1e-4)


@pytest.mark.parametrize("case", [*ONE_STEP, "histograms, gamma"])
def test_other_objectives_are_explained(case):
    if case == "histograms, gamma":
        make, data = lambda: HistGradientBoostingRegressor(max_iter=5, loss="gamma"), POSITIVE
    else:
        make, data, _ = ONE_STEP[case]
    model = make().fit(*data)
    lje = method(model, data)
    queries = data[0][:5], data[1][:5]
    explanation = lje.explain(queries, 3)
    assert_close(lje.influences(queries).sum(axis=1), explanation.totals, 1e-9)
    assert_close(np.asarray(explanation.predictions), model.predict(data[0][:5]), 1e-5)


def test_labels_that_a_loss_does_not_take():
    model = ONE_STEP["xgboost, gamma"][0]().fit(*POSITIVE)
    with pytest.raises(WhenceError, match="numbers > 0, for loss gamma"):
        method(model, (POSITIVE[0], POSITIVE[1] * 0))
