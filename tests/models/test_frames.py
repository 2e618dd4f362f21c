"""polars frames give what the pandas frames of the same values do, with every kind of model."""

import warnings

import lightgbm as lgb
import numpy as np
import pytest
import xgboost as xgb
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits
from tolerances import FLOAT64, assert_close

import whence
from whence import WhenceError

polars = pytest.importorskip("polars")

PLAIN, Y = load_wine(return_X_y=True, as_frame=True)
PLAIN = ((PLAIN - PLAIN.mean()) / PLAIN.std()).iloc[:, :5]
NAMED = PLAIN.assign(origin=np.where(PLAIN["malic_acid"] > 0, "north", "south"))
GAPS = PLAIN.mask(PLAIN["ash"] > 1)


def as_polars(frame):
    columns = {
        name: [None if value != value else value for value in frame[name].tolist()] for name in frame
    }
    result = polars.DataFrame(columns)
    if "origin" in frame and frame["origin"].dtype == "category":
        result = result.with_columns(polars.col("origin").cast(polars.Categorical))
    return result


def columns_of(last):
    numbers = ("numbers", StandardScaler(), list(PLAIN))
    return make_pipeline(ColumnTransformer([numbers, ("names", OneHotEncoder(), ["origin"])]), last)


CATEGORY = NAMED.assign(origin=NAMED["origin"].astype("category"))
MODELS = {
    "linear": (lambda: LogisticRegression(), PLAIN),
    "perceptron": (lambda: MLPClassifier((4,), max_iter=20, random_state=0), PLAIN),
    "pipeline": (lambda: columns_of(LogisticRegression()), NAMED),
    "pipeline in a pipeline": (lambda: Pipeline([("inner", columns_of(LogisticRegression()))]), NAMED),
    "pipeline to trees": (lambda: columns_of(xgb.XGBClassifier(n_estimators=4, n_jobs=1)), NAMED),
    "pipeline to a forest": (lambda: columns_of(RandomForestClassifier(4, random_state=0)), NAMED),
    "forest": (lambda: RandomForestClassifier(4, random_state=0), PLAIN),
    "boosting": (lambda: GradientBoostingClassifier(n_estimators=4, random_state=0), PLAIN),
    "histograms": (lambda: HistGradientBoostingClassifier(max_iter=4), GAPS),
    "histograms, categories": (
        lambda: HistGradientBoostingClassifier(max_iter=4, categorical_features="from_dtype"),
        CATEGORY,
    ),
    "xgboost": (lambda: xgb.XGBClassifier(n_estimators=4, n_jobs=1), GAPS),
    "xgboost, categories": (
        lambda: xgb.XGBClassifier(n_estimators=4, enable_categorical=True, n_jobs=1),
        CATEGORY,
    ),
    "lightgbm": (lambda: lgb.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1), PLAIN),
}


def answers(make, frame, labels):
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of fits: convergence, and LightGBM's of its own arguments
        model = make().fit(frame, labels)
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), (frame, labels), whence.WoodburyIHVPFactory(1e-2)
    )
    explanation = lje.explain((frame[:7], labels[:7]), 3)
    ((_, values, rows),) = lje.top_k((frame[:2], labels[:2]), (frame, labels), k=2)
    return explanation, lje.suspects((frame, labels), 5), np.asarray(values), np.asarray(rows)


@pytest.mark.parametrize("case", MODELS)
def test_polars_frames_give_what_pandas_frames_do(case):
    make, frame = MODELS[case]
    ours = answers(make, as_polars(frame), polars.Series(Y.to_list()))
    theirs = answers(make, frame, Y)
    tolerance = 1e-6 if case in ("linear", "perceptron") else FLOAT64  # fits of differently laid out arrays
    assert_close(ours[0].values, theirs[0].values, tolerance)
    assert np.array_equal(ours[0].ids, theirs[0].ids)
    assert np.array_equal(ours[0].predictions, theirs[0].predictions)
    assert np.array_equal(ours[0].training_labels, theirs[0].training_labels)
    assert np.array_equal(ours[1].ids, theirs[1].ids)
    assert_close(ours[2], theirs[2], tolerance)
    assert ours[3].shape == theirs[3].shape == (2, 2, frame.shape[1])


def test_rows_of_a_polars_frame_are_named_by_their_positions_or_by_the_user():
    model = LogisticRegression().fit(PLAIN, Y)
    names = [f"bottle {i}" for i in range(len(Y))]
    model = whence.InfluenceModel(model)
    data = (as_polars(PLAIN), polars.Series(Y.to_list()))
    lje = whence.RepresenterPointLJE(model, data, whence.ExactIHVPFactory(), ids=names)
    explanation = lje.explain((data[0][:2], data[1][:2]), 3)
    assert str(explanation.ids[0, 0]).startswith("bottle ")
    assert explanation.sample_ids.tolist() == [0, 1]
    near = whence.RepresenterPointLJE(model, data, whence.ExactIHVPFactory()).explain((data[0][:2],), 3)
    rows = near.neighbours(data[0][:2], data[0]).frame
    assert list(rows.columns) == list(PLAIN)
    first = int(near.ids[0, 0])
    assert rows.iloc[1].tolist() == PLAIN.iloc[first].tolist()


def test_values_to_predict_may_be_a_series():
    frame, y = load_diabetes(return_X_y=True, as_frame=True)
    model = RandomForestRegressor(4, max_depth=3, random_state=0).fit(frame, y)
    model = whence.InfluenceModel(model)
    ours = whence.RepresenterPointLJE(
        model, (as_polars(frame), polars.Series(y.to_list())), whence.ExactIHVPFactory()
    ).explain((as_polars(frame[:3]),), 2)
    theirs = whence.RepresenterPointLJE(model, (frame, y), whence.ExactIHVPFactory())
    assert_close(ours.values, theirs.explain((frame[:3],), 2).values, FLOAT64)


def test_label_errors_take_polars_frames():
    data = as_polars(NAMED), polars.Series(Y.to_list())
    errors = whence.LabelErrors(columns_of(LogisticRegression())).fit(*data)
    plain = whence.LabelErrors(columns_of(LogisticRegression())).fit(NAMED, Y)
    assert np.array_equal(errors.ranking_, plain.ranking_)
    assert list(errors.feature_names_in_) == list(NAMED)


def test_an_index_is_recognised_whatever_library_the_frame_is_of(tmp_path):
    """An index on disk goes on with the same frame; rows in another order are refused."""
    model = whence.InfluenceModel(LogisticRegression().fit(PLAIN, Y))
    data = (as_polars(PLAIN), polars.Series(Y.to_list()))
    factory = whence.ExactIHVPFactory()
    whence.RepresenterPointLJE(model, data, factory, index_path=tmp_path / "index")
    again = whence.RepresenterPointLJE(model, data, factory, index_path=tmp_path / "index")
    assert again.index.n_samples == len(Y)
    with pytest.raises(WhenceError, match="another order"):
        whence.RepresenterPointLJE(
            model, (data[0][::-1], data[1][::-1]), factory, index_path=tmp_path / "index"
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop("ash"), "without ash"),
        (lambda frame: frame.with_columns(extra=1.0), "with extra"),
        (lambda frame: frame.select(frame.columns[::-1]), "another order"),
        (lambda frame: frame.lazy(), "LazyFrame"),
        (lambda frame: frame[:0], "empty"),
    ],
    ids=["missing", "more", "order", "lazy", "empty"],
)
def test_frames_that_are_not_those_of_the_fit(change, words):
    frame = as_polars(PLAIN)
    model = LogisticRegression().fit(frame, Y)
    other = change(frame)
    labels = Y.to_numpy() if not hasattr(other, "height") else Y.to_numpy()[: other.height]
    with pytest.raises(WhenceError, match=words):
        whence.RepresenterPointLJE(whence.InfluenceModel(model), (other, labels), whence.ExactIHVPFactory())
