"""Estimators that are sums over their training samples, against their own scores and by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestCentroid,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, NuSVC, NuSVR, OneClassSVM

import whence
from whence import WhenceError


def scaled(load, n):
    x, y = load(return_X_y=True)
    keep = np.random.default_rng(0).permutation(len(y))[:n]
    return StandardScaler().fit_transform(x)[keep], y[keep]


TWO, THREE = scaled(load_breast_cancer, 150), scaled(load_wine, 120)
NAMED = TWO[0], np.asarray(["bad", "good"])[TWO[1]]
VALUES = scaled(load_diabetes, 120)
PAIR = VALUES[0], np.stack([VALUES[1], -(VALUES[1] ** 0.5)], axis=1)
RADIAL = RBF(3.0, "fixed") + WhiteKernel(0.1, "fixed")


def decision(model, x):
    return np.asarray(model.decision_function(x)).reshape(len(x), -1)


def predicted(model, x):
    return np.asarray(model.predict(x)).reshape(len(x), -1)


def probability(model, x):
    return model.predict_proba(x)


def laplacian(a, b):
    return np.exp(-np.abs(a[:, None] - b[None]).sum(axis=2) / 30)


def shifted(a, b):
    return float(a @ b) + 1


#: The estimator, its data, and its own public scores.
EXACT = {
    "svc": (SVC(), TWO, decision),
    "svc, names": (SVC(C=0.3, class_weight="balanced"), NAMED, decision),
    "svc, linear": (SVC(kernel="linear"), TWO, decision),
    "svc, polynomial": (SVC(kernel="poly", degree=2, coef0=1.0, gamma="auto"), TWO, decision),
    "svc, sigmoid": (SVC(kernel="sigmoid", gamma=0.01), TWO, decision),
    "svc, of the user": (SVC(kernel=laplacian), TWO, decision),
    "svc, pairs": (SVC(decision_function_shape="ovo"), THREE, decision),
    "nu svc": (NuSVC(nu=0.3), TWO, decision),
    "svr": (SVR(C=50.0), VALUES, predicted),
    "nu svr": (NuSVR(C=20.0), VALUES, predicted),
    "one class": (OneClassSVM(nu=0.3), TWO, decision),
    "kernel ridge": (KernelRidge(alpha=1.0, kernel="rbf", gamma=0.05), VALUES, predicted),
    "kernel ridge, two targets": (KernelRidge(alpha=0.5, kernel="poly", degree=2), PAIR, predicted),
    "kernel ridge, of the user": (KernelRidge(kernel=shifted), VALUES, predicted),
    "process": (GaussianProcessRegressor(RADIAL, optimizer=None), VALUES, predicted),
    "process, normalised": (
        GaussianProcessRegressor(RADIAL, optimizer=None, normalize_y=True),
        VALUES,
        predicted,
    ),
    "neighbours": (KNeighborsClassifier(5), THREE, probability),
    "neighbours by distance": (KNeighborsClassifier(7, weights="distance"), THREE, probability),
    "neighbours, of the user": (KNeighborsClassifier(7, weights=lambda d: np.exp(-d)), NAMED, probability),
    "mean of neighbours": (KNeighborsRegressor(4, weights="distance"), VALUES, predicted),
    "in a radius": (RadiusNeighborsClassifier(8.0, weights="distance"), THREE, probability),
    "mean in a radius": (RadiusNeighborsRegressor(9.0), VALUES, predicted),
    "forest": (RandomForestClassifier(7, random_state=0), THREE, probability),
    "forest, balanced": (
        RandomForestClassifier(7, max_depth=3, class_weight="balanced", random_state=0),
        NAMED,
        probability,
    ),
    "forest, balanced by tree": (
        RandomForestClassifier(5, max_depth=3, class_weight="balanced_subsample", random_state=0),
        THREE,
        probability,
    ),
    "forest of some": (RandomForestClassifier(5, max_samples=0.5, random_state=0), TWO, probability),
    "forest of values": (RandomForestRegressor(7, min_samples_leaf=3, random_state=0), VALUES, predicted),
    "extra trees": (ExtraTreesClassifier(5, max_depth=4, random_state=0), THREE, probability),
    "extra trees of values": (ExtraTreesRegressor(5, random_state=0), VALUES, predicted),
}


def queries_of(x):
    return np.concatenate([x[:6], x[:6] + 0.3, x[6:10] * 1.2])


@pytest.mark.parametrize("case", EXACT)
def test_values_and_intercept_are_the_estimators_own_scores(case):
    model, (x, y), own = EXACT[case]
    model.fit(x, y)
    duals = whence.DualRepresenters(model, (x, y))
    queries = queries_of(x)
    scores = own(model, queries)
    unused = np.isin(np.arange(len(y)), duals.unused_ids)
    scale = max(1.0, np.abs(scores).max())
    for c in range(scores.shape[1]):
        values = duals.influences(queries, outputs=c)
        assert values.shape == (len(queries), len(y))
        assert not values[:, unused].any()
        explanation = duals.explain(queries, k=len(y), outputs=c)
        signs = explanation.signs
        sums = values.sum(axis=1) + signs * duals.intercept[c]
        np.testing.assert_allclose(sums, signs * scores[:, c], rtol=0, atol=1e-10 * scale)
        np.testing.assert_allclose(explanation.values.sum(axis=1), explanation.totals, atol=1e-9 * scale)
        np.testing.assert_allclose(explanation.pre_activations, signs * scores[:, c], atol=1e-12 * scale)
    said = model.predict(queries)
    if hasattr(model, "classes_"):
        said = np.searchsorted(model.classes_, said)
    assert np.array_equal(np.squeeze(explanation.predictions), np.squeeze(said))


@pytest.mark.parametrize("case", ["svc, names", "neighbours", "forest, balanced"])
def test_the_predicted_class_is_what_is_explained(case):
    model, (x, y), _ = EXACT[case]
    duals = whence.DualRepresenters(model.fit(x, y), (x, y))
    explanation = duals.explain((x, y), k=3)
    numbers = np.searchsorted(model.classes_, y)
    assert np.array_equal(explanation.labels, numbers)
    assert np.array_equal(explanation.training_labels, numbers[explanation.ids])
    if duals.intercept.shape[0] == 1:
        assert np.array_equal(explanation.signs, np.where(explanation.predictions == 1, 1.0, -1.0))
    else:
        assert np.array_equal(explanation.outputs, explanation.predictions)
    assert (np.diff(explanation.values, axis=1) <= 0).all()
    assert (np.diff(explanation.opponent_values, axis=1) >= 0).all()
    assert explanation.decomposes_prediction
    assert len(explanation.to_frame()) == 6 * len(y)


def test_three_classes_of_a_support_vector_machine_are_asked_about_by_pairs():
    x, y = THREE
    model = SVC(kernel="linear", C=0.05).fit(x, y)
    explanation = whence.DualRepresenters(model, (x, y)).explain(x, k=2)
    pairs = np.asarray([(0, 1), (0, 2), (1, 2)])[explanation.outputs]
    said = model.predict(x)
    assert (pairs == said[:, None]).any(axis=1).all()
    assert (explanation.pre_activations > 0).mean() > 0.99  # turned to speak for what is predicted


@pytest.mark.parametrize("data", [TWO, THREE], ids=["two classes", "three"])
def test_the_latent_mean_of_a_process_decides_for_the_prediction(data):
    x, y = data[0][:60], data[1][:60]
    model = GaussianProcessClassifier(RBF(4.0, "fixed"), optimizer=None).fit(x, y)
    duals = whence.DualRepresenters(model, (x, y))
    explanation = duals.explain(x, k=60)
    said = explanation.outputs if len(duals.intercept) > 1 else explanation.signs > 0
    assert np.mean(explanation.predictions == said) > 0.95  # of three classes variances count too
    assert len(duals.intercept) > 1 or np.array_equal(explanation.predictions, said)
    np.testing.assert_allclose(explanation.values.sum(axis=1), explanation.totals, atol=1e-10)


def test_centroids_decide_by_what_their_samples_add():
    x, y = THREE
    model = NearestCentroid().fit(x, y)
    duals = whence.DualRepresenters(model, (x, y))
    assert np.array_equal(duals.explain(x, k=3).outputs, model.predict(x))
    distances = ((x[:, None] - model.centroids_) ** 2).sum(axis=2)
    scores = np.stack([duals.influences(x, outputs=c).sum(axis=1) for c in range(3)], axis=1)
    np.testing.assert_allclose(scores, (x**2).sum(axis=1, keepdims=True) - distances, atol=1e-9)


def test_a_vote_of_three_neighbours_by_hand():
    x, y = np.asarray([[0.0], [1.0], [2.0], [10.0]]), np.asarray([0, 0, 1, 1])
    duals = whence.DualRepresenters(KNeighborsClassifier(3).fit(x, y), (x, y), ids=["a", "b", "c", "d"])
    explanation = duals.explain(np.asarray([[0.4]]), k=2)
    assert explanation.ids.tolist() == [["a", "b"]]
    np.testing.assert_allclose(explanation.values, [[1 / 3, 1 / 3]])
    np.testing.assert_allclose(duals.influences(np.asarray([[0.4]]), outputs=1), [[0, 0, 1 / 3, 0]])


def test_what_is_no_support_vector_is_named():
    x, y = TWO
    model = SVC().fit(x, y)
    names = [f"row {i}" for i in range(len(y))]
    duals = whence.DualRepresenters(model, (x, y), ids=names)
    rest = np.setdiff1d(np.arange(len(y)), model.support_)
    assert duals.unused_ids.tolist() == [f"row {i}" for i in rest]
    assert duals.explain(x[:2]).about["n_unused"] == len(rest)


def test_pipelines_searches_frames_and_sparse_matrices_are_passed_through():
    x, y = TWO
    frame = pd.DataFrame(x * 3 + 1, columns=[f"c{i}" for i in range(x.shape[1])])
    frame.index = [f"patient {i}" for i in range(len(y))]
    pipe = make_pipeline(StandardScaler(), GridSearchCV(SVC(), {"C": [1.0]}, cv=2)).fit(frame, y)
    explanation = whence.DualRepresenters(pipe, (frame, y)).explain(frame[:5], k=2)
    np.testing.assert_allclose(explanation.pre_activations, np.abs(pipe.decision_function(frame[:5])))
    assert str(explanation.ids[0, 0]).startswith("patient")
    sparse = scipy.sparse.csr_array(np.where(np.abs(x) > 1, x, 0))
    model = SVC(kernel="rbf").fit(sparse, y)
    explanation = whence.DualRepresenters(model, (sparse, y)).explain(sparse[:5], k=2)
    np.testing.assert_allclose(explanation.pre_activations, np.abs(model.decision_function(sparse[:5])))


def test_sample_weights_of_a_forest_are_counted(rng):
    x, y = VALUES
    weight = rng.uniform(0.1, 3, len(y))
    for kind in (RandomForestRegressor, ExtraTreesRegressor):
        model = kind(5, min_samples_leaf=4, random_state=0).fit(x, y, weight)
        whence.DualRepresenters(model, (x, y, weight)).explain(x[:5])
    with pytest.raises(WhenceError, match="with its weights"):
        whence.DualRepresenters(model, (x, y)).explain(x[:5])


REFUSED = {
    "other samples": lambda: (SVC().fit(*TWO), (TWO[0][::-1], TWO[1])),
    "50 samples": lambda: (KernelRidge().fit(*VALUES), (VALUES[0][:50], VALUES[1][:50])),
    "others in these places": lambda: (
        KNeighborsRegressor().fit(*VALUES),
        (VALUES[0] + 1, VALUES[1]),
    ),
    "what the GaussianProcessRegressor": lambda: (
        GaussianProcessRegressor(optimizer=None).fit(*VALUES),
        (VALUES[0] + 1, VALUES[1]),
    ),
    "not fitted": lambda: (SVC(), TWO),
    "one of": lambda: (Ridge().fit(*VALUES), VALUES),
    "absolute_error": lambda: (
        RandomForestRegressor(2, criterion="absolute_error").fit(*VALUES),
        VALUES,
    ),
    "the classes of the fit": lambda: (KNeighborsClassifier().fit(*TWO), (TWO[0], TWO[1] + 5)),
    "150 labels": lambda: (SVC().fit(*TWO), (TWO[0], TWO[1][:10])),
    "sample_weight": lambda: (SVC().fit(*TWO), TWO[0]),
    "metric": lambda: (NearestCentroid(metric="manhattan").fit(*TWO), TWO),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_such_sum_is_refused(words):
    model, data = REFUSED[words]()
    with pytest.raises(WhenceError, match=words):
        whence.DualRepresenters(model, data)


def test_bad_questions():
    duals = whence.DualRepresenters(SVC().fit(*TWO), TWO)
    with pytest.raises(WhenceError, match="outputs: expected numbers from 0 to 0"):
        duals.explain(TWO[0][:3], outputs=1)
    with pytest.raises(WhenceError, match="k: "):
        duals.explain(TWO[0][:3], k=0)
    with pytest.raises(WhenceError, match="ids: expected 3 ids"):
        duals.explain(TWO[0][:3], ids=["a"])
    with pytest.raises(WhenceError, match="one sample at least"):
        duals.explain(TWO[0][:0])


@pytest.mark.parametrize(
    "estimator",
    [
        SVC(),
        SVR(gamma="auto"),
        KernelRidge(kernel="rbf"),
        GaussianProcessRegressor(alpha=0.1),
        GaussianProcessClassifier(),
        KNeighborsClassifier(),
        NearestCentroid(),
        RandomForestRegressor(5, random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_frames_are_taken_as_they_are(estimator):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        rng.standard_normal((40, 3)), columns=list("abc"), index=[f"r{i}" for i in range(40)]
    )
    y = (frame["a"] > 0).to_numpy().astype(int)
    estimator = clone(estimator).fit(frame, y)
    found = whence.DualRepresenters(estimator, (frame, y)).explain(frame[:4], k=2)
    same = whence.DualRepresenters(clone(estimator).fit(frame.to_numpy(), y), (frame.to_numpy(), y))
    np.testing.assert_allclose(found.values, same.explain(frame.to_numpy()[:4], k=2).values, rtol=1e-10)
    assert found.ids[0, 0].startswith("r")
