"""Linear models, perceptrons and pipelines of scikit-learn, on its own data sets."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import AdaBoostClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from tolerances import FLOAT64, assert_close

import whence
from whence import WhenceError


def scaled(load, n=None):
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x)[:n], y[:n]


BINARY = scaled(load_breast_cancer)
CLASSES = scaled(load_wine)
VALUES = scaled(load_diabetes)
VALUES = VALUES[0], (VALUES[1] - VALUES[1].mean()) / VALUES[1].std()
TWO_VALUES = VALUES[0], np.stack([VALUES[1], VALUES[0][:, 0] - VALUES[1]], axis=1)
NAMES = CLASSES[0], np.asarray(["barolo", "grignolino", "barbera"])[CLASSES[1]]


def fitted(model, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(*data)


def method(model, data, **options):
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(model, **options), data, whence.ExactIHVPFactory(damping=1e-3)
    )


def own_pre_activations(model, x):
    """What the estimator itself computes before its link, from its public methods."""
    if hasattr(model, "decision_function"):
        u = model.decision_function(x)
    elif hasattr(model, "predict_log_proba"):
        u = model.predict_log_proba(x)
        return u[:, 1:] - u[:, :1]  # logits, up to a constant for each sample
    else:
        u = model.predict(x)
    return u.reshape(len(x), -1)


EXACT = {"tol": 1e-10, "max_iter": 100_000}
LBFGS = {"solver": "lbfgs", "random_state": 0, "max_iter": 3000, "tol": 1e-9, "max_fun": 10**5}

# How far a fit is from its own optimum depends on its solver: the last entry.
STATIONARY = {
    "logistic, two classes": (LogisticRegression(**EXACT), BINARY, 1e-4),
    "logistic, names of classes": (LogisticRegression(C=0.1, **EXACT), NAMES, 1e-4),
    "logistic without intercept": (LogisticRegression(fit_intercept=False, **EXACT), CLASSES, 1e-4),
    "logistic by liblinear": (
        LogisticRegression(solver="liblinear", intercept_scaling=2.0, **EXACT),
        BINARY,
        1e-4,
    ),
    "ridge classifier, two classes": (RidgeClassifier(alpha=2.0, solver="cholesky"), BINARY, 1e-6),
    "ridge classifier": (RidgeClassifierCV([3.0], class_weight="balanced"), CLASSES, 1e-6),
    "logistic, weights by class": (LogisticRegression(class_weight={0: 3.0}, **EXACT), BINARY, 1e-4),
    "logistic without penalty": (LogisticRegression(C=np.inf, max_iter=300), CLASSES, None),
    "support vectors": (LinearSVC(tol=1e-8, max_iter=10**6, intercept_scaling=3.0), BINARY, 1e-4),
    "support vectors, three classes": (LinearSVC(tol=1e-8, max_iter=10**6), CLASSES, 1e-4),
    "least squares": (LinearRegression(), VALUES, None),
    "ridge": (Ridge(alpha=3.0), VALUES, 1e-10),
    "ridge, two targets": (Ridge(alpha=3.0), TWO_VALUES, 1e-10),
    "ridge by cross-validation": (RidgeCV(alphas=[10.0, 100.0]), VALUES, 1e-10),
    "stochastic, log loss": (
        SGDClassifier(loss="log_loss", alpha=0.1, max_iter=500, tol=None, random_state=0),
        BINARY,
        0.25,
    ),
    "stochastic, three classes": (
        SGDClassifier(loss="modified_huber", alpha=0.1, max_iter=2000, tol=None, random_state=0),
        CLASSES,
        0.25,
    ),
    "stochastic, squared hinge": (
        SGDClassifier(loss="squared_hinge", alpha=0.1, max_iter=1000, tol=None, random_state=0),
        BINARY,
        0.25,
    ),
    "stochastic regression": (
        SGDRegressor(alpha=0.1, max_iter=2000, tol=None, eta0=0.01, random_state=0),
        VALUES,
        0.25,
    ),
    "perceptron, three classes": (MLPClassifier((6,), alpha=1.0, **LBFGS), CLASSES, 0.1),
    "perceptron, two classes": (
        MLPClassifier((6,), alpha=5.0, activation="tanh", **LBFGS),
        BINARY,
        0.25,
    ),
    "perceptron, values": (
        MLPRegressor(hidden_layer_sizes=(6,), alpha=20.0, activation="tanh", **LBFGS),
        VALUES,
        0.25,
    ),
    "perceptron, two values": (
        MLPRegressor(hidden_layer_sizes=(6,), alpha=20.0, activation="tanh", **LBFGS),
        TWO_VALUES,
        0.25,
    ),
}


@pytest.mark.parametrize("case", STATIONARY)
def test_regularisers_are_those_of_the_fit(case):
    """At the optimum the mean gradient and the regulariser's cancel, which fixes every factor."""
    model, data, tolerance = STATIONARY[case]
    model = fitted(model, data)
    wrapped = whence.InfluenceModel(model)
    index = wrapped.index(data)
    layer = wrapped.layer
    u = np.concatenate([layer.pre_activations(block.phi) for block in index])
    own = own_pre_activations(model, data[0])
    if case == "perceptron, three classes":
        u = u[:, 1:] - u[:, :1]
    assert_close(u, own, 1e-9 if case.startswith("perceptron") else FLOAT64)
    gradient = layer.mean_gradient(index)
    pull = layer.regulariser()[:, None] * layer.theta
    if tolerance is None:
        assert not layer.regulariser().any()
    else:
        assert np.abs(gradient + pull).max() <= tolerance * np.abs(pull).max()


def test_two_methods_share_a_model_with_their_own_number_of_samples():
    model = fitted(LogisticRegression(), BINARY)
    wrapped = whence.InfluenceModel(model)
    factory = whence.ExactIHVPFactory()
    whole = whence.RepresenterPointLJE(wrapped, BINARY, factory)
    part = whence.RepresenterPointLJE(wrapped, (BINARY[0][:100], BINARY[1][:100]), factory)
    assert whole.layer.l2 == pytest.approx(1 / 569)
    assert part.layer.l2 == pytest.approx(1 / 100)


CLASSIFIERS = ["logistic, names of classes", "support vectors, three classes", "perceptron, two classes"]


@pytest.mark.parametrize("case", [*CLASSIFIERS, "ridge, two targets"])
def test_influences_sum_to_the_expanded_prediction(case):
    model, data, _ = STATIONARY[case]
    lje = method(fitted(model, data), data)
    queries = data[0][:7], data[1][:7]
    explanation = lje.explain(queries, 4)
    assert_close(lje.influences(queries).sum(axis=1), explanation.totals, 1e-9)


def test_predictions_are_class_numbers_in_the_order_of_classes():
    model = fitted(LogisticRegression(), NAMES)
    explanation = method(model, NAMES).explain((NAMES[0], NAMES[1]), 1)
    assert np.array_equal(model.classes_[explanation.predictions], model.predict(NAMES[0]))
    assert np.array_equal(model.classes_[explanation.labels], NAMES[1])


# ------------------------------------------------------------------- what X may be


def frame_and_pipeline():
    frame, y = load_wine(return_X_y=True, as_frame=True)
    frame = frame.iloc[:, :4].copy()
    frame["origin"] = np.where(frame["alcohol"] > 13, "north", "south")
    frame.index = [f"bottle {i}" for i in range(len(frame))]
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), list(frame.columns[:4])), ("names", OneHotEncoder(), ["origin"])]
    )
    return frame, y, Pipeline([("columns", columns), ("last", LogisticRegression())]).fit(frame, y)


def test_a_pipeline_on_a_frame_explains_in_the_names_of_its_rows():
    frame, y, model = frame_and_pipeline()
    lje = method(model, (frame, y))
    explanation = lje.explain((frame.iloc[:3], y.iloc[:3]), 2)
    assert set(explanation.ids.ravel()) <= set(frame.index)
    assert explanation.sample_ids.tolist() == ["bottle 0", "bottle 1", "bottle 2"]
    assert lje.suspects((frame, y), 3).ids[0].startswith("bottle")
    x = model[:-1].transform(frame)
    plain = method(model[-1], (x, y.to_numpy())).explain((x[:3], y[:3].to_numpy()), 2)
    assert_close(explanation.values, plain.values, FLOAT64)
    assert np.array_equal(explanation.ids, frame.index.to_numpy()[plain.ids])


def test_top_k_returns_rows_of_frames_and_of_sparse_matrices_as_arrays():
    frame, y, model = frame_and_pipeline()
    ((_, values, rows),) = method(model, (frame, y)).top_k((frame.iloc[:2], y.iloc[:2]), (frame, y), k=3)
    assert np.asarray(values).shape == (2, 3)
    assert np.asarray(rows).shape == (2, 3, 5)


def test_a_sparse_matrix_gives_what_the_dense_one_does_and_stays_sparse():
    x, y = CLASSES
    x = np.where(np.abs(x) > 1, x, 0.0)
    model = fitted(LogisticRegression(), (x, y))
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array):
        sparse = kind(x)
        lje = method(model, (sparse, y))
        assert lje.index.shards[0].features.nbytes < x.nbytes
        queries = scipy.sparse.csr_array(sparse)[:9]
        ours = lje.explain((queries, y[:9]), 3)
        theirs = method(model, (x, y)).explain((x[:9], y[:9]), 3)
        assert_close(ours.values, theirs.values, 1e-9)
        assert np.array_equal(ours.ids, theirs.ids)


@pytest.mark.parametrize("given", [None, "balanced", "numbers"])
def test_class_weights_that_were_balanced_are_counted_or_given(given):
    model = fitted(LogisticRegression(class_weight="balanced", **EXACT), BINARY)
    if given == "numbers":
        given = len(BINARY[1]) / (2 * np.bincount(BINARY[1]))
    wrapped = whence.InfluenceModel(model, class_weight=given)
    index = wrapped.index(BINARY)
    layer = wrapped.layer
    pull = layer.regulariser()[:, None] * layer.theta
    assert np.abs(layer.mean_gradient(index) + pull).max() <= 1e-4 * np.abs(pull).max()


@pytest.mark.parametrize(
    "kind",
    [
        LogisticRegression(class_weight="balanced", **EXACT),
        LinearSVC(class_weight="balanced", dual=False, tol=1e-10, max_iter=100_000),
    ],
    ids=lambda model: type(model).__name__,
)
def test_balanced_class_weights_beside_sample_weights_lead_to_the_optimum(kind, rng):
    """Whether scikit-learn counts samples by their weights changed with its versions."""
    x = StandardScaler().fit_transform(BINARY[0])
    data = (x, BINARY[1], rng.uniform(0.2, 3, size=len(x)) * (1 + 4 * BINARY[1]))
    wrapped = whence.InfluenceModel(kind.fit(*data))
    index = wrapped.index(data)
    layer = wrapped.layer
    pull = layer.regulariser()[:, None] * layer.theta
    assert np.abs(layer.mean_gradient(index) + pull).max() <= 1e-3 * np.abs(pull).max()


def test_balanced_class_weights_are_found_again_in_a_stored_index(tmp_path):
    data = BINARY[0][::3], BINARY[1][::3]
    model = fitted(LogisticRegression(class_weight="balanced", **EXACT), data)
    factory = whence.ExactIHVPFactory(damping=1e-3)
    wrapped = whence.InfluenceModel(model)
    here = whence.RepresenterPointLJE(wrapped, data, factory, index_path=tmp_path / "stored")
    again = whence.load_index(tmp_path / "stored", influence_model=whence.InfluenceModel(model))
    queries = data[0][:4], data[1][:4]
    assert_close(again.explain(queries, 3).values, here.explain(queries, 3).values, 1e-12)


@pytest.mark.parametrize(
    "search",
    [
        GridSearchCV(LogisticRegression(**EXACT), {"C": [0.1, 1.0]}, cv=3),
        make_pipeline(StandardScaler(), GridSearchCV(LogisticRegression(**EXACT), {"C": [1.0]}, cv=3)),
        GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(**EXACT)),
            {"logisticregression__C": [1.0]},
            cv=3,
        ),
    ],
    ids=["search", "search in a pipeline", "search of a pipeline"],
)
def test_a_search_is_its_best_estimator(search):
    x = StandardScaler().fit_transform(BINARY[0])[:200]
    data = x, BINARY[1][:200]
    search.fit(*data)
    queries = x[:4], data[1][:4]
    explanation = method(search, data).explain(queries, 3)
    margins = search.decision_function(x[:4])
    assert_close(explanation.pre_activations, np.abs(margins), 1e-9)
    whole = search.best_estimator_ if hasattr(search, "best_estimator_") else search
    assert_close(method(whole, data).explain(queries, 3).values, explanation.values, 1e-12)


class Doubler:
    """A sampler, as imbalanced-learn's are: it changes training sets and nothing else."""

    def fit_resample(self, x, y):
        return np.concatenate([x, x]), np.concatenate([y, y])


def test_a_sampler_in_a_pipeline_is_passed_over_and_spoken_of():
    last = fitted(LogisticRegression(**EXACT), BINARY)
    pipe = Pipeline([("sampler", Doubler()), ("last", last)])
    with pytest.warns(UserWarning, match="Doubler changed"):
        wrapped = whence.InfluenceModel(pipe)
    assert wrapped.features(whence.data.base.Batch(BINARY[0][:3], None, None, 0)).shape == (3, 31)


REFUSED_WITH_A_REMEDY = {
    "CalibratedClassifierCV": lambda: CalibratedClassifierCV(LogisticRegression()).fit(*CLASSES),
    "VotingClassifier": lambda: VotingClassifier([("a", LogisticRegression())]).fit(*CLASSES),
    "OneVsRestClassifier": lambda: OneVsRestClassifier(LogisticRegression()).fit(*CLASSES),
    "TransformedTargetRegressor": lambda: TransformedTargetRegressor(
        Ridge(), func=np.sqrt, inverse_func=np.square
    ).fit(*CLASSES),
    "MultiOutputRegressor": lambda: MultiOutputRegressor(Ridge()).fit(CLASSES[0], CLASSES[0][:, :2]),
    "GridSearchCV": lambda: GridSearchCV(LogisticRegression(), {"C": [1.0]}, refit=False).fit(*CLASSES),
}


@pytest.mark.filterwarnings("ignore:.*failed to converge")
@pytest.mark.parametrize("name", REFUSED_WITH_A_REMEDY)
def test_what_is_refused_says_what_works(name):
    message = refused(REFUSED_WITH_A_REMEDY[name]())
    assert name in message
    assert "Explain" in message or "Fit it so" in message


def test_a_class_without_samples_cannot_be_balanced():
    model = fitted(LogisticRegression(class_weight="balanced"), CLASSES)
    some = CLASSES[1] != 2
    assert "samples of each class" in refused(model, (CLASSES[0][some], CLASSES[1][some]))


# ------------------------------------------------------------------------ bad input


def refused(model, data=CLASSES, **options):
    with pytest.raises(WhenceError) as caught:
        method(model, data, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "model", [LogisticRegression(), MLPClassifier(), make_pipeline(StandardScaler(), Ridge())]
)
def test_an_estimator_that_was_not_fitted(model):
    assert "not fitted" in refused(model)


#: How an L1 penalty is asked for: by its share alone from scikit-learn 1.8 on.
LASSO = {"l1_ratio": 1.0} if sklearn.__version__ >= "1.8" else {"penalty": "l1"}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (SGDClassifier(), "loss='hinge'"),
        (SGDClassifier(loss="log_loss", penalty="l1"), "penalty='l1'"),
        (LinearSVC(loss="hinge"), "loss='hinge'"),
        (LogisticRegression(**LASSO, solver="saga", max_iter=50), "L1 penalty"),
        (AdaBoostClassifier(n_estimators=2), "a AdaBoostClassifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_dense_layer_with_a_smooth_loss(model, words):
    assert words in refused(fitted(model, CLASSES))


def test_labels_that_the_fit_did_not_see():
    model = fitted(LogisticRegression(), NAMES)
    other = NAMES[1].copy()
    other[3] = "brunello"
    message = refused(model, (NAMES[0], other))
    assert "brunello" in message
    assert "barolo" in message


def test_frames_with_other_columns_than_at_fit():
    frame, y, model = frame_and_pipeline()
    assert "without alcohol" in refused(model, (frame.drop(columns="alcohol"), y))
    assert "another order" in refused(model, (frame[frame.columns[::-1]], y))


def test_frames_whose_rows_share_a_name():
    frame, y, model = frame_and_pipeline()
    frame = frame.set_axis(["same"] * len(frame))
    with pytest.warns(UserWarning, match="equal names cannot name its rows"):
        method = whence.RepresenterPointLJE(
            whence.InfluenceModel(model), (frame, y), whence.ExactIHVPFactory(), progress=False
        )
    assert method.index.ids is None or list(method.index.ids) == list(range(len(frame)))


def test_arrays_of_another_width():
    model = fitted(LogisticRegression(), CLASSES)
    assert "shape (batch, 13)" in refused(model, (CLASSES[0][:, :5], CLASSES[1]))


def test_values_that_are_missing():
    model = fitted(LogisticRegression(), CLASSES)
    x = CLASSES[0].copy()
    x[2, 2] = np.nan
    assert "NaN" in refused(model, (x, CLASSES[1]))


def test_another_layer_or_a_loss():
    model = fitted(MLPClassifier((4,), max_iter=5), CLASSES)
    assert "only layer" in refused(model, start_layer=1)
    assert "knows its loss" in refused(model, loss_function="squared_error")


def test_a_layer_before_any_training_set():
    wrapped = whence.InfluenceModel(fitted(LogisticRegression(), BINARY))
    with pytest.raises(WhenceError, match="a training set first"):
        _ = wrapped.layer


def test_frames_with_missing_values_reach_a_pipeline_that_fills_them():
    from sklearn.impute import SimpleImputer

    x, y = CLASSES
    frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])])
    frame.iloc[4, 2] = np.nan
    model = make_pipeline(SimpleImputer(), LogisticRegression()).fit(frame, y)
    assert np.isfinite(method(model, (frame, y)).explain((frame[:2], y[:2]), 1).values).all()
