"""``LabelErrors`` against scikit-learn's own checks of an estimator, and against ``suspects``."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xgboost as xgb
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tolerances import FLOAT64, assert_close

import whence
from whence import LabelErrors, WhenceError


@parametrize_with_checks([LabelErrors()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_checks_of_scikit_learn(estimator, check):
    if check.func.__name__ == "check_array_api_input":
        return  # asks for an environment variable at start-up; arrays of other libraries are not promised
    check(estimator)


def flipped():
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(y)) < 0.1
    return StandardScaler().fit_transform(x), np.where(wrong, 1 - y, y), wrong


@pytest.mark.parametrize(
    "rank_by", [None, "label_noise", "ridge", "leave_one_out", "self_influence", "loss"]
)
def test_scores_are_those_of_suspects(rank_by):
    x, y, _ = flipped()
    errors = LabelErrors(rank_by=rank_by, damping=1e-2).fit(x, y)
    model = whence.InfluenceModel(LogisticRegression().fit(x, y))
    lje = whence.RepresenterPointLJE(model, (x, y), whence.ExactIHVPFactory(1e-2))
    suspects = lje.suspects((x, y), None, score=rank_by)
    assert np.array_equal(errors.ranking_, suspects.ids)
    assert_close(errors.scores_[suspects.ids], suspects.scores, FLOAT64)
    assert (np.diff(errors.scores_[errors.ranking_]) <= 0).all()


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
        xgb.XGBClassifier(n_estimators=30, max_depth=2, learning_rate=0.1, n_jobs=1),
    ],
    ids=["pipeline", "xgboost"],
)
def test_it_finds_labels_that_were_flipped(estimator):
    x, y, wrong = flipped()
    errors = LabelErrors(estimator).fit(x, y)
    assert roc_auc_score(wrong, errors.scores_) > 0.95
    assert wrong[errors.suspects(20)].mean() > 0.9
    assert not hasattr(estimator, "classes_")  # a copy was fitted


def test_rows_of_frames_are_ranked_by_position():
    frame, y = load_wine(return_X_y=True, as_frame=True)
    frame.index = [f"bottle {i}" for i in range(len(frame))]
    errors = LabelErrors(make_pipeline(StandardScaler(), LogisticRegression())).fit(frame, y)
    assert sorted(errors.ranking_) == list(range(len(frame)))
    assert list(errors.feature_names_in_) == list(frame.columns)
    assert frame.index[errors.ranking_[0]].startswith("bottle")
    plain = LabelErrors(make_pipeline(StandardScaler(), LogisticRegression())).fit(frame.to_numpy(), y)
    assert_close(errors.scores_, plain.scores_, FLOAT64)


def test_sparse_matrices_names_of_classes_and_weights():
    x, y, _ = flipped()
    names = np.where(y == 1, "benign", "malignant")
    weights = np.random.default_rng(1).random(len(y))
    sparse = scipy.sparse.csr_array(np.where(np.abs(x) > 0.5, x, 0))
    errors = LabelErrors().fit(sparse, names, sample_weight=weights)
    dense = LabelErrors().fit(sparse.toarray(), pd.Series(names), sample_weight=weights)
    assert errors.classes_.tolist() == ["benign", "malignant"]
    assert_close(errors.scores_, dense.scores_, 1e-6)  # of two fits


def test_it_takes_regressors():
    x, y = load_diabetes(return_X_y=True)
    wrong = y.copy()
    wrong[7] += 1000
    errors = LabelErrors(RandomForestRegressor(10, max_depth=3, random_state=0)).fit(x, wrong)
    assert errors.ranking_[0] == 7


def test_parameters_reach_the_estimator():
    errors = LabelErrors(LogisticRegression(C=2.0))
    assert errors.get_params()["estimator__C"] == 2.0
    assert clone(errors.set_params(estimator__C=3.0, rank_by="loss")).estimator.C == 3.0


def test_a_forest_of_more_leaves_than_samples_takes_the_solver_of_samples(monkeypatch):
    x, y, wrong = (part[:150] for part in flipped())
    forest = RandomForestClassifier(12, random_state=0)
    found = LabelErrors(forest).fit(x, y).scores_
    assert sum(tree.get_n_leaves() for tree in clone(forest).fit(x, y).estimators_) > len(y)
    monkeypatch.setattr("whence.label_errors.WoodburyIHVPFactory", whence.ExactIHVPFactory)
    assert_close(found, LabelErrors(forest).fit(x, y).scores_, 1e-6)
    assert roc_auc_score(wrong, found) > 0.8


def test_texts_have_no_columns():
    texts = np.asarray(
        ["good fine", "fine good", "good", "bad poor", "poor", "bad", "good fine", "poor bad"]
    )
    y = [0, 0, 0, 1, 1, 1, 1, 1]  # that of text 6 is wrong
    pipe = make_pipeline(TfidfVectorizer(), LogisticRegression(C=100))
    for x in (texts, texts.tolist(), pd.Series(texts)):
        errors = LabelErrors(pipe).fit(x, y)
        assert errors.ranking_[0] in (0, 1, 6)
        assert not hasattr(errors, "n_features_in_")


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(class_weight="balanced"),
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
        RidgeClassifier(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_what_is_fitted_is_explained(estimator):
    x, y, wrong = flipped()
    errors = LabelErrors(estimator).fit(x, y)
    assert roc_auc_score(wrong, errors.scores_) > 0.9


def test_bad_input():
    x, y, _ = flipped()
    with pytest.raises(WhenceError, match="rank_by"):
        LabelErrors(rank_by="entropy").fit(x, y)
    with pytest.raises(WhenceError, match="damping"):
        LabelErrors(damping=-1).fit(x, y)
    with pytest.raises(WhenceError, match="refit=True"):
        LabelErrors(GridSearchCV(LogisticRegression(), {"C": [1.0]}, refit=False)).fit(x, y)
    with pytest.raises(ValueError, match="not fitted"):
        LabelErrors().suspects(3)


def test_other_names_are_still_unknown():
    with pytest.raises(AttributeError, match="LabelError"):
        _ = whence.LabelError
