"""Every method on the sparse leaves of an ensemble gives what it does on the dense array."""

import numpy as np
import pytest
from ensembles import trained
from tolerances import FLOAT64, assert_close

import whence
from whence.arrays.sparse import SparseRows
from whence.models.sklearn.trees import TreeAdapter

METHODS = {
    "expansion": (whence.RepresenterPointLJE, {}),
    "expansion, element by element": (whence.RepresenterPointLJE, {"decomposition": "elementwise"}),
    "expansion, given label": (whence.RepresenterPointLJE, {"label": "given"}),
    "influence": (whence.InfluenceFunctions, {}),
    "influence on the prediction": (whence.InfluenceFunctions, {"effect_on": "pre_activation"}),
    "influence of one step": (whence.InfluenceFunctions, {"leverage": True}),
    "relative influence": (whence.InfluenceFunctions, {"normalisation": "parameters"}),
    "relative influence by loss": (whence.InfluenceFunctions, {"normalisation": "loss"}),
    "representer points": (whence.RepresenterPointL2, {}),
    "representer points of the labels": (whence.RepresenterPointL2, {"fit_to": "labels"}),
    "gradient product": (whence.GradientDotProduct, {}),
    "gradient product on the prediction": (whence.GradientDotProduct, {"effect_on": "pre_activation"}),
    "gradient cosine": (whence.GradientCosine, {}),
    "similarity": (whence.FeatureSimilarity, {}),
    "loss": (whence.TrainingLoss, {}),
}
SOLVED = (whence.RepresenterPointLJE, whence.InfluenceFunctions)
#: Of a fit by L-BFGS, whose steps depend on the order of sums.
REFITTED = 1e-6

MODELS = [
    "xgboost, two classes",
    pytest.param("xgboost, three classes", marks=pytest.mark.slow),
    pytest.param("xgboost, values", marks=pytest.mark.slow),
]


def some(name):
    """A model and a part of what it was trained on."""
    model, (x, y) = trained(name)
    return model, (x[::3], y[::3])


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return some(request.param)


def answers(kind, options, case, factory):
    model, (x, y) = case
    arguments = (factory,) if kind in SOLVED else ()
    method = kind(whence.InfluenceModel(model), (x, y), *arguments, progress=False, **options)
    features = method.index.shards[0].features
    queries = x[:9], y[:9]
    own = np.concatenate([np.asarray(values) for _, values in method.compute_influence_values((x, y))])
    given = {"influences": method.influences(queries), "own": own}
    given["explained"] = method.explain(queries, 3).values
    for score in ("leave_one_out", "loss"):
        if kind in SOLVED or score == "loss":
            suspects = method.suspects((x, y), None, score=score)
            given[score] = suspects.scores[np.argsort(suspects.ids)]
    return features, given


@pytest.mark.parametrize("name", METHODS)
def test_sparse_leaves_give_what_dense_ones_do(name, case, monkeypatch):
    kind, options = METHODS[name]
    factory = whence.ExactIHVPFactory(1e-2)
    features, ours = answers(kind, options, case, factory)
    assert isinstance(features, SparseRows)
    own_features = TreeAdapter.features
    monkeypatch.setattr(TreeAdapter, "features", lambda self, x: np.asarray(own_features(self, x)))
    features, theirs = answers(kind, options, case, factory)
    assert not isinstance(features, SparseRows)
    tolerance = REFITTED if kind is whence.RepresenterPointL2 else 100 * FLOAT64
    for key, values in ours.items():
        assert_close(values, theirs[key], tolerance)
    assert theirs.keys() == ours.keys()


FACTORIES = {
    "woodbury": whence.WoodburyIHVPFactory(1e-2),
    "conjugate gradient": whence.CGDIHVPFactory(500, damping=1e-2, tolerance=1e-10),
    "conjugate gradient, plain": whence.CGDIHVPFactory(
        500, damping=1e-2, tolerance=1e-10, preconditioner=None
    ),
    "lissa": whence.LissaIHVPFactory(damping=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("kind", SOLVED)
def test_every_solver_takes_sparse_leaves(kind, name):
    case = some("xgboost, three classes")
    factory = FACTORIES[name]
    _, ours = answers(kind, {}, case, factory)
    _, exact = answers(kind, {}, case, whence.ExactIHVPFactory(0.1 if name == "lissa" else 1e-2))
    for key in ("influences", "explained"):
        assert_close(ours[key], exact[key], 1e-2 if name == "lissa" else 1e-6)
