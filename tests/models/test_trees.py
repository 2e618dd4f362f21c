"""Tree ensembles of XGBoost, LightGBM and scikit-learn: margins, sums, and what is refused."""

import json
import warnings

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tolerances import FLOAT64, assert_close

import whence
from whence import WhenceError
from whence._sparse import SparseRows

#: Margins as rebuilt from leaves, in units of the largest: XGBoost sums them in float32.
MARGIN = 1e-6

BINARY = load_breast_cancer(return_X_y=True)
CLASSES = load_wine(return_X_y=True)
DIGITS = tuple(part[:600] for part in load_digits(return_X_y=True))
VALUES = load_diabetes(return_X_y=True)
COUNTS = VALUES[0], np.rint(VALUES[1] / 50)
TWO_VALUES = VALUES[0], np.stack([VALUES[1], np.sqrt(VALUES[1])], axis=1)
NAMES = CLASSES[0], np.asarray(["barolo", "grignolino", "barbera"])[CLASSES[1]]


def with_gaps(data):
    """A frame with names, a category and missing values."""
    frame = pd.DataFrame(data[0], columns=[f"c{i}" for i in range(data[0].shape[1])])
    frame["c1"] = pd.Categorical(
        np.asarray(["low", "middle", "high"])[pd.qcut(frame["c1"], 3, labels=False)]
    )
    frame.loc[::7, "c0"] = np.nan
    return frame, data[1]


def with_nan(data):
    x = data[0].copy()
    x[::5, 0] = np.nan
    return x, data[1]


def stopped_early(model, data, **options):
    x, y = data
    return model.fit(x[::2], y[::2], eval_set=[(x[1::2], y[1::2])], **options)


def xgboost_booster(objective, data, n_rounds=8, **options):
    matrix = xgb.DMatrix(data[0], label=data[1], enable_categorical=True)
    parameters = {"objective": objective, "max_depth": 3, "seed": 0, "nthread": 1, **options}
    return xgb.train(parameters, matrix, num_boost_round=n_rounds)


def lightgbm_booster(objective, data, n_rounds=8, **options):
    parameters = {"objective": objective, "verbose": -1, "num_leaves": 8, "num_threads": 1, **options}
    return lgb.train(parameters, lgb.Dataset(data[0], label=data[1]), num_boost_round=n_rounds)


def xgboost(kind=xgb.XGBClassifier, **options):
    return kind(**{"n_estimators": 8, "max_depth": 3, "random_state": 0, "n_jobs": 1, **options})


def lightgbm(kind=lgb.LGBMClassifier, **options):
    small = {"n_estimators": 8, "num_leaves": 8, "verbose": -1, "random_state": 0, "n_jobs": 1}
    return kind(**{**small, **options})


# Each: how it is trained, and on what. Margins come from the library's own methods.
ENSEMBLES = {
    "xgboost, two classes": (lambda d: xgboost().fit(*d), BINARY),
    "xgboost, three classes": (lambda d: xgboost().fit(*d), CLASSES),
    "xgboost, ten classes": (lambda d: xgboost().fit(*d), DIGITS),
    "xgboost, values": (lambda d: xgboost(xgb.XGBRegressor).fit(*d), VALUES),
    "xgboost, counts": (lambda d: xgboost(xgb.XGBRegressor, objective="count:poisson").fit(*d), COUNTS),
    "xgboost, dropped trees": (
        lambda d: xgboost(booster="dart", rate_drop=0.4).fit(*d),
        BINARY,
    ),
    "xgboost, forest": (lambda d: xgboost(xgb.XGBRFClassifier).fit(*d), CLASSES),
    "xgboost, stopped early": (
        lambda d: stopped_early(xgboost(n_estimators=60, early_stopping_rounds=2), d, verbose=False),
        BINARY,
    ),
    "xgboost, three classes, stopped early": (
        lambda d: stopped_early(xgboost(n_estimators=60, early_stopping_rounds=2), d, verbose=False),
        CLASSES,
    ),
    "xgboost, missing values": (lambda d: xgboost().fit(*d), with_nan(BINARY)),
    "xgboost, categories": (lambda d: xgboost(enable_categorical=True).fit(*d), with_gaps(BINARY)),
    "xgboost, lossguide": (lambda d: xgboost(grow_policy="lossguide", max_leaves=7).fit(*d), BINARY),
    "xgboost, base score": (lambda d: xgboost(base_score=0.2).fit(*d), BINARY),
    "xgboost, weighed classes": (lambda d: xgboost(scale_pos_weight=3.0).fit(*d), BINARY),
    "booster, logistic": (lambda d: xgboost_booster("binary:logistic", d), BINARY),
    "booster, raw": (lambda d: xgboost_booster("binary:logitraw", d), BINARY),
    "booster, softmax": (lambda d: xgboost_booster("multi:softmax", d, num_class=3), CLASSES),
    "booster, values": (lambda d: xgboost_booster("reg:squarederror", d), VALUES),
    "lightgbm, two classes": (lambda d: lightgbm().fit(*d), BINARY),
    "lightgbm, three classes": (lambda d: lightgbm().fit(*d), NAMES),
    "lightgbm, against the rest": (lambda d: lightgbm(objective="multiclassova").fit(*d), CLASSES),
    "lightgbm, values": (lambda d: lightgbm(lgb.LGBMRegressor, reg_lambda=2.0).fit(*d), VALUES),
    "lightgbm, counts": (lambda d: lightgbm(lgb.LGBMRegressor, objective="poisson").fit(*d), COUNTS),
    "lightgbm, dropped trees": (lambda d: lightgbm(boosting_type="dart", drop_rate=0.5).fit(*d), BINARY),
    "lightgbm, stopped early": (
        lambda d: stopped_early(
            lightgbm(n_estimators=80, learning_rate=0.5),
            d,
            callbacks=[lgb.early_stopping(2, verbose=False)],
        ),
        BINARY,
    ),
    "lightgbm, missing values": (lambda d: lightgbm().fit(*d), with_nan(BINARY)),
    "lightgbm, categories": (lambda d: lightgbm().fit(*d), with_gaps(BINARY)),
    "lightgbm booster": (lambda d: lightgbm_booster("binary", d), BINARY),
    "lightgbm booster, three classes": (lambda d: lightgbm_booster("multiclass", d, num_class=3), CLASSES),
    "boosting, two classes": (lambda d: GradientBoostingClassifier(n_estimators=8).fit(*d), BINARY),
    "boosting, three classes": (lambda d: GradientBoostingClassifier(n_estimators=5).fit(*d), NAMES),
    "boosting, exponential": (
        lambda d: GradientBoostingClassifier(n_estimators=8, loss="exponential", init="zero").fit(*d),
        BINARY,
    ),
    "boosting, stopped early": (
        lambda d: GradientBoostingClassifier(n_estimators=50, n_iter_no_change=1, random_state=0).fit(*d),
        BINARY,
    ),
    "boosting, values": (lambda d: GradientBoostingRegressor(n_estimators=8).fit(*d), VALUES),
    "histograms, two classes": (lambda d: HistGradientBoostingClassifier(max_iter=8).fit(*d), BINARY),
    "histograms, three classes": (lambda d: HistGradientBoostingClassifier(max_iter=5).fit(*d), NAMES),
    "histograms, categories": (
        lambda d: HistGradientBoostingClassifier(max_iter=8, categorical_features="from_dtype").fit(*d),
        with_gaps(BINARY),
    ),
    "histograms, stopped early": (
        lambda d: HistGradientBoostingRegressor(max_iter=60, early_stopping=True, random_state=0).fit(*d),
        VALUES,
    ),
    "histograms, counts": (
        lambda d: HistGradientBoostingRegressor(max_iter=8, loss="poisson").fit(*d),
        COUNTS,
    ),
    "forest, two classes": (lambda d: RandomForestClassifier(8, random_state=0).fit(*d), BINARY),
    "forest, three classes": (lambda d: RandomForestClassifier(8, random_state=0).fit(*d), NAMES),
    "forest, values": (lambda d: RandomForestRegressor(8, random_state=0, max_depth=4).fit(*d), VALUES),
    "forest, two values": (
        lambda d: RandomForestRegressor(8, random_state=0, max_depth=4).fit(*d),
        TWO_VALUES,
    ),
    "extremely random trees": (lambda d: ExtraTreesClassifier(8, max_depth=6).fit(*d), CLASSES),
    "extremely random values": (lambda d: ExtraTreesRegressor(8, max_depth=4).fit(*d), VALUES),
    "pipeline": (lambda d: make_pipeline(StandardScaler(), xgboost()).fit(*d), BINARY),
}


def own_margins(model, x):
    """The library's own margins, from its public methods."""
    if isinstance(model, xgb.XGBModel):
        u = model.predict(x, output_margin=True)
    elif isinstance(model, xgb.Booster):
        u = model.predict(xgb.DMatrix(x), output_margin=True)
    elif isinstance(model, lgb.LGBMModel | lgb.Booster):
        u = model.predict(x, raw_score=True)
    elif isinstance(model, RandomForestClassifier | ExtraTreesClassifier):
        u = model.predict_proba(x)
    elif hasattr(model, "decision_function"):
        u = model.decision_function(x)
    else:
        u = model.predict(x)
        u = np.log(u) if getattr(model, "loss", "") == "poisson" else u
    return np.asarray(u, dtype=np.float64).reshape(len(x), -1)


def trained(case):
    train, data = ENSEMBLES[case]
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # LightGBM's, of frames, of dart and of its arguments
        return train(data), data


def method(model, data, **options):
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(model, **options), data, whence.ExactIHVPFactory(damping=1e-3)
    )


@pytest.mark.parametrize("case", ENSEMBLES)
def test_margins_are_the_librarys_own(case):
    model, data = trained(case)
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
    lam = np.full(d, 1e-3 + 1 / n)  # XGBoost's reg_lambda is 1, next to the sum of the losses
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
    assert wrapped.layer.l2 == pytest.approx(strength / index.n_samples)
    assert wrapped.layer.bias_l2 == 0


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


def test_a_frames_rows_name_the_samples():
    model, (frame, y) = trained("xgboost, categories")
    frame = frame.set_axis([f"patient {i}" for i in range(len(frame))])
    explanation = method(model, (frame, y)).explain((frame[:4], y[:4]), 2)
    assert str(explanation.ids[0, 0]).startswith("patient")


@pytest.mark.parametrize("case", ["xgboost, two classes", "xgboost, three classes"])
def test_sparse_features_give_what_dense_ones_do(case, monkeypatch):
    from whence.models.trees import TreeAdapter

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


NOT_REBUILT = {
    "objective='survival:cox'": lambda: xgboost_booster("survival:cox", VALUES),
    "objective='rank:ndcg'": lambda: ranked(xgb.XGBRanker, objective="rank:ndcg"),
    "objective 'lambdarank'": lambda: lightgbm(lgb.LGBMRanker).fit(
        VALUES[0], COUNTS[1].astype(int), group=[442]
    ),
    "objective='reg:absoluteerror'": lambda: xgboost(xgb.XGBRegressor, objective="reg:absoluteerror").fit(
        *VALUES
    ),
    "booster='gblinear'": lambda: xgb.XGBClassifier(booster="gblinear", n_estimators=3).fit(*BINARY),
    "several targets": lambda: xgboost(xgb.XGBRegressor).fit(*TWO_VALUES),
    "linear_tree=True": lambda: lightgbm(linear_tree=True).fit(*BINARY),
    "boosting='rf'": lambda: lightgbm(
        boosting_type="rf", subsample=0.7, subsample_freq=1, colsample_bytree=0.7
    ).fit(*BINARY),
    "loss='huber'": lambda: GradientBoostingRegressor(n_estimators=3, loss="huber").fit(*VALUES),
    "init, an estimator": lambda: GradientBoostingClassifier(
        n_estimators=3, init=RandomForestClassifier(2)
    ).fit(*BINARY),
    "criterion='poisson'": lambda: RandomForestRegressor(3, criterion="poisson").fit(*COUNTS),
    "class weights": lambda: lightgbm(class_weight="balanced").fit(*BINARY),
}


@pytest.mark.parametrize("words", NOT_REBUILT)
@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_by_name(words):
    assert words in refused(NOT_REBUILT[words](), VALUES)


def test_an_objective_of_the_users_own_needs_its_loss():
    matrix = xgb.DMatrix(VALUES[0], label=VALUES[1])
    booster = xgb.train({"max_depth": 3}, matrix, num_boost_round=5, obj=squared)
    name = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if name == "reg:squarederror":  # what XGBoost notes of a booster trained like that
        wrapper = xgboost(xgb.XGBRegressor, objective=lambda y, u: (u - y, np.ones_like(u))).fit(*VALUES)
        assert "objective of your own" in refused(wrapper, VALUES)
        booster = wrapper
    lje = method(booster, VALUES, loss_function="squared_error")
    assert lje.influence_model.loss.name == "squared error"
    assert "loss_function: expected one of" in refused(booster, VALUES, loss_function="mse")


def test_frames_with_other_columns_than_at_fit():
    model, (frame, y) = trained("histograms, categories")
    assert "without c3" in refused(model, (frame.drop(columns="c3"), y))


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
