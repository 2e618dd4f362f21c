"""Small tree ensembles of every library, how each is trained, and its own margins."""

import os
import warnings
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
import scipy.sparse
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
    frame = pd.DataFrame(data[0].copy(), columns=[f"c{i}" for i in range(data[0].shape[1])])
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


def german_credit():
    """German credit where it is at hand: it is not ours to distribute."""
    file = Path(os.environ.get("WHENCE_DATA", "missing")) / "german_credit" / "train.csv"
    if not file.is_file():
        return {}
    frame = pd.read_csv(file)
    return {"german credit": (frame.drop(columns="label").to_numpy(), frame["label"].to_numpy())}


def lgb_on_arrays(x, y, **options):
    """LightGBM's own way with categories: columns of an array by their numbers."""
    x = x.copy()
    x[:, 1] = np.digitize(x[:, 1], np.quantile(x[:, 1], [0.25, 0.5, 0.75]))
    booster = lgb.train(
        {"objective": "binary", "verbose": -1, "num_leaves": 8, "num_threads": 1, "min_data_per_group": 5},
        lgb.Dataset(x, label=y, categorical_feature=[1]),
        num_boost_round=8,
    )
    return booster


def xgboost_early(data, **options):
    """A native booster that stopped early; its own ``predict`` takes all trees."""
    x, y = data
    train, valid = xgb.DMatrix(x[::2], label=y[::2]), xgb.DMatrix(x[1::2], label=y[1::2])
    parameters = {"max_depth": 3, "seed": 0, "nthread": 1, **options}
    return xgb.train(
        parameters, train, 60, evals=[(valid, "valid")], early_stopping_rounds=2, verbose_eval=False
    )


def lightgbm_early(data, **options):
    """A native booster that stopped early; its own ``predict`` takes the best iteration."""
    x, y = data
    parameters = {"verbose": -1, "num_leaves": 8, "num_threads": 1, "learning_rate": 0.5, **options}
    train = lgb.Dataset(x[::2], label=y[::2])
    valid = lgb.Dataset(x[1::2], label=y[1::2], reference=train)
    stop = lgb.early_stopping(2, verbose=False)
    return lgb.train(parameters, train, 80, valid_sets=[valid], callbacks=[stop])


def with_sentinel(data):
    x, y = with_nan(data)
    return np.where(np.isnan(x), -999.0, x), y


def sparse(data):
    x, y = data
    return scipy.sparse.csr_matrix(np.where(x > np.median(x, axis=0), x, 0)), y


SHARES = BINARY[0], np.clip(BINARY[1] * 0.8 + 0.1, 0, 1)

# Each kind of model on each data set that it takes.
CLASSIFIERS = {
    "xgboost": lambda: xgboost(n_estimators=5),
    "lightgbm": lambda: lightgbm(n_estimators=5),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=4),
    "histograms": lambda: HistGradientBoostingClassifier(max_iter=4),
    "forest": lambda: RandomForestClassifier(5, random_state=0),
    "extremely random trees": lambda: ExtraTreesClassifier(5, random_state=0),
}
REGRESSORS = {
    "xgboost": lambda: xgboost(xgb.XGBRegressor, n_estimators=5),
    "xgboost forest": lambda: xgboost(xgb.XGBRFRegressor, n_estimators=5),
    "lightgbm": lambda: lightgbm(lgb.LGBMRegressor, n_estimators=5),
    "boosting": lambda: GradientBoostingRegressor(n_estimators=5),
    "histograms": lambda: HistGradientBoostingRegressor(max_iter=5),
    "forest": lambda: RandomForestRegressor(5, random_state=0),
    "extremely random trees": lambda: ExtraTreesRegressor(5, random_state=0),
}
DATA = {"breast cancer": BINARY, "wine": CLASSES, "digits": DIGITS, **german_credit()}

#: What the default suite leaves to the slow one.
MORE = {
    **{
        f"{name}, {where}": (lambda d, make=make: make().fit(*d), data)
        for name, make in CLASSIFIERS.items()
        for where, data in DATA.items()
    },
    **{
        f"{name}, diabetes": (lambda d, make=make: make().fit(*d), VALUES)
        for name, make in REGRESSORS.items()
    },
    "xgboost, exact": (lambda d: xgboost(tree_method="exact").fit(*d), BINARY),
    "xgboost, approx": (lambda d: xgboost(tree_method="approx").fit(*d), CLASSES),
    "xgboost, forests boosted": (lambda d: xgboost(num_parallel_tree=3, subsample=0.7).fit(*d), CLASSES),
    "xgboost, dropped trees of three classes": (
        lambda d: xgboost(booster="dart", rate_drop=0.4, normalize_type="forest").fit(*d),
        CLASSES,
    ),
    "xgboost, dropped trees, stopped early": (
        lambda d: stopped_early(
            xgboost(booster="dart", rate_drop=0.3, n_estimators=40, early_stopping_rounds=2),
            d,
            verbose=False,
        ),
        BINARY,
    ),
    "xgboost, constraints": (
        lambda d: xgboost(
            monotone_constraints=(1, *[0] * 29), interaction_constraints="[[0, 1], [2, 3]]"
        ).fit(*d),
        BINARY,
    ),
    "xgboost, pruned": (lambda d: xgboost(gamma=2.0, reg_alpha=1.0, min_child_weight=5).fit(*d), BINARY),
    "xgboost, weighed samples": (
        lambda d: xgboost().fit(*d, sample_weight=np.linspace(0.1, 2, len(d[1]))),
        BINARY,
    ),
    "xgboost, values stopped early": (
        lambda d: stopped_early(
            xgboost(xgb.XGBRegressor, n_estimators=60, early_stopping_rounds=2), d, verbose=False
        ),
        VALUES,
    ),
    "xgboost, missing values of three classes": (lambda d: xgboost().fit(*d), with_nan(CLASSES)),
    "xgboost, missing values in regression": (
        lambda d: xgboost(xgb.XGBRegressor).fit(*d),
        with_nan(VALUES),
    ),
    "xgboost, a number for missing": (lambda d: xgboost(missing=-999.0).fit(*d), with_sentinel(BINARY)),
    "xgboost, a category a leaf": (
        lambda d: xgboost(enable_categorical=True, max_cat_to_onehot=10).fit(*d),
        with_gaps(BINARY),
    ),
    "xgboost, categories of three classes": (
        lambda d: xgboost(enable_categorical=True, max_cat_to_onehot=1).fit(*d),
        with_gaps(CLASSES),
    ),
    "xgboost, sparse matrix": (lambda d: xgboost().fit(*d), sparse(BINARY)),
    "xgboost, logistic regression": (
        lambda d: xgboost(xgb.XGBRegressor, objective="reg:logistic").fit(*d),
        SHARES,
    ),
    "booster, shares of classes": (lambda d: xgboost_booster("multi:softprob", d, num_class=3), CLASSES),
    "booster, counts": (lambda d: xgboost_booster("count:poisson", d), COUNTS),
    "booster, shares": (lambda d: xgboost_booster("reg:logistic", d), SHARES),
    "booster, dropped trees": (
        lambda d: xgboost_booster("binary:logistic", d, booster="dart", rate_drop=0.5),
        BINARY,
    ),
    "booster, frame": (lambda d: xgboost_booster("binary:logistic", d), with_gaps(BINARY)),
    "booster, stopped early": (lambda d: xgboost_early(d, objective="binary:logistic"), BINARY),
    "booster, three classes stopped early": (
        lambda d: xgboost_early(d, objective="multi:softprob", num_class=3),
        CLASSES,
    ),
    "booster, refreshed": (
        lambda d: xgb.train(
            {
                "process_type": "update",
                "updater": "refresh",
                "objective": "binary:logistic",
                "refresh_leaf": 1,
                "nthread": 1,
            },
            xgb.DMatrix(d[0][::2], label=d[1][::2]),
            8,
            xgb_model=xgboost_booster("binary:logistic", d),
        ),
        BINARY,
    ),
    "lightgbm, one side": (
        lambda d: lightgbm(data_sample_strategy="goss", top_rate=0.3).fit(*d),
        BINARY,
    ),
    "lightgbm, bagging": (lambda d: lightgbm(subsample=0.5, subsample_freq=1).fit(*d), CLASSES),
    "lightgbm, extremely random": (lambda d: lightgbm(extra_trees=True, path_smooth=2.0).fit(*d), BINARY),
    "lightgbm, from zero": (lambda d: lightgbm(boost_from_average=False).fit(*d), BINARY),
    "lightgbm, weighed classes": (lambda d: lightgbm(scale_pos_weight=3.0).fit(*d), BINARY),
    "lightgbm, names of two classes": (
        lambda d: lightgbm().fit(*d),
        (BINARY[0], np.where(BINARY[1] == 1, "benign", "malignant")),
    ),
    "lightgbm, dropped trees of three classes": (
        lambda d: lightgbm(boosting_type="dart", drop_rate=0.5).fit(*d),
        CLASSES,
    ),
    "lightgbm, three classes stopped early": (
        lambda d: stopped_early(
            lightgbm(n_estimators=80, learning_rate=0.5),
            d,
            callbacks=[lgb.early_stopping(2, verbose=False)],
        ),
        CLASSES,
    ),
    "lightgbm, missing values in regression": (
        lambda d: lightgbm(lgb.LGBMRegressor).fit(*d),
        with_nan(VALUES),
    ),
    "lightgbm, zeros are missing": (
        lambda d: lightgbm(zero_as_missing=True).fit(*d),
        (np.where(BINARY[0] > np.median(BINARY[0], axis=0), BINARY[0], 0), BINARY[1]),
    ),
    "lightgbm, categories of three classes": (lambda d: lightgbm().fit(*d), with_gaps(CLASSES)),
    "lightgbm, sparse matrix": (lambda d: lightgbm().fit(*d), sparse(BINARY)),
    "lightgbm booster, categories by number": (lambda d: lgb_on_arrays(*d), BINARY),
    "lightgbm booster, against the rest": (
        lambda d: lightgbm_booster("multiclassova", d, num_class=3),
        CLASSES,
    ),
    "lightgbm booster, cross entropy": (lambda d: lightgbm_booster("cross_entropy", d), SHARES),
    "lightgbm booster, values": (lambda d: lightgbm_booster("regression", d), VALUES),
    "lightgbm booster, counts": (lambda d: lightgbm_booster("poisson", d), COUNTS),
    "lightgbm booster, stopped early": (lambda d: lightgbm_early(d, objective="binary"), BINARY),
    "lightgbm booster, three classes stopped early": (
        lambda d: lightgbm_early(d, objective="multiclass", num_class=3),
        CLASSES,
    ),
    "lightgbm booster, loaded": (
        lambda d: lgb.Booster(model_str=lightgbm_booster("multiclass", d, num_class=3).model_to_string()),
        CLASSES,
    ),
    "boosting, from zero": (
        lambda d: GradientBoostingClassifier(n_estimators=4, init="zero").fit(*d),
        CLASSES,
    ),
    "boosting, subsampled": (
        lambda d: GradientBoostingClassifier(n_estimators=8, subsample=0.5, max_features=3).fit(*d),
        BINARY,
    ),
    "boosting, values from zero": (
        lambda d: GradientBoostingRegressor(n_estimators=8, init="zero").fit(*d),
        VALUES,
    ),
    "boosting, sparse matrix": (
        lambda d: GradientBoostingClassifier(n_estimators=4).fit(*d),
        sparse(BINARY),
    ),
    "histograms, missing values": (
        lambda d: HistGradientBoostingClassifier(max_iter=5).fit(*d),
        with_nan(BINARY),
    ),
    "histograms, three classes stopped early": (
        lambda d: HistGradientBoostingClassifier(max_iter=60, early_stopping=True, random_state=0).fit(*d),
        CLASSES,
    ),
    "histograms, categories of three classes": (
        lambda d: HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype").fit(*d),
        with_gaps(CLASSES),
    ),
    "histograms, weighed classes": (
        lambda d: HistGradientBoostingClassifier(max_iter=5, class_weight={0: 3.0}).fit(*d),
        BINARY,
    ),
    "histograms, constraints": (
        lambda d: HistGradientBoostingRegressor(
            max_iter=5, monotonic_cst=[1] + [0] * 9, interaction_cst=[{0, 1}], l2_regularization=2.0
        ).fit(*d),
        VALUES,
    ),
    "forest, missing values": (
        lambda d: RandomForestClassifier(5, random_state=0).fit(*d),
        with_nan(BINARY),
    ),
    "forest, missing values in regression": (
        lambda d: RandomForestRegressor(5, random_state=0).fit(*d),
        with_nan(VALUES),
    ),
    "forest, entropy and weighed classes": (
        lambda d: RandomForestClassifier(5, criterion="entropy", class_weight={0: 2.0}).fit(*d),
        CLASSES,
    ),
    "forest, whole samples": (
        lambda d: RandomForestClassifier(5, bootstrap=False, ccp_alpha=0.01).fit(*d),
        DIGITS,
    ),
    "forest, sparse matrix": (lambda d: RandomForestClassifier(5, random_state=0).fit(*d), sparse(BINARY)),
}


def own_margins(model, x):
    """The library's own margins, from its public methods."""
    if isinstance(model, xgb.XGBModel):
        u = model.predict(x, output_margin=True)
    elif isinstance(model, xgb.Booster):
        u = model.predict(xgb.DMatrix(x, enable_categorical=True), output_margin=True)
    elif isinstance(model, lgb.LGBMModel | lgb.Booster):
        u = model.predict(x, raw_score=True)
    elif isinstance(model, RandomForestClassifier | ExtraTreesClassifier):
        u = model.predict_proba(x)
    elif hasattr(model, "decision_function"):
        u = model.decision_function(x)
    else:
        u = model.predict(x)
        u = np.log(u) if getattr(model, "loss", "") == "poisson" else u
    return np.asarray(u, dtype=np.float64).reshape(x.shape[0], -1)


def trained(case):
    train, data = ENSEMBLES[case] if case in ENSEMBLES else MORE[case]
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # LightGBM's, of frames, of dart and of its arguments
        return train(data), data
