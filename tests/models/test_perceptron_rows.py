"""Whole perceptrons of scikit-learn, against gradients by PyTorch of the same network."""

import warnings

import numpy as np
import pytest
import tolerances

import whence
from whence import WhenceError
from whence.layers.products import inner

neural = pytest.importorskip("sklearn.neural_network")
torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4))
CLASSES = (X @ RNG.normal(size=(4, 3))).argmax(axis=1)
SLOPES = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid, "identity": lambda u: u}


def fitted(activation, regression=False, **options):
    kind = neural.MLPRegressor if regression else neural.MLPClassifier
    model = kind(hidden_layer_sizes=(5, 4), activation=activation, max_iter=20, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        return model.fit(X, X[:, 0] if regression else CLASSES)


def outputs(model, x, weights):
    n = len(model.coefs_)
    for place in range(n):
        x = x @ weights[2 * place] + weights[2 * place + 1]
        x = SLOPES[model.activation](x) if place < n - 1 else x
    return x


@pytest.mark.parametrize("activation", SLOPES)
def test_rows_and_curvature_are_those_of_autograd(activation):
    model = fitted(activation)
    wrapped = whence.InfluenceModel(model, "all")
    index = wrapped.index((X, CLASSES))
    weights = [torch.tensor(w) for pair in zip(model.coefs_, model.intercepts_, strict=True) for w in pair]
    expected = []
    for i in range(len(X)):
        leaves = [w.clone().requires_grad_() for w in weights]
        u = outputs(model, torch.tensor(X[i : i + 1]), leaves)
        loss = torch.nn.functional.cross_entropy(u, torch.tensor(CLASSES[i : i + 1]))
        expected.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves)]).numpy())
    g = np.stack(expected)
    rows = index.shards[0].gradients
    tolerances.assert_close(inner(rows, rows), g @ g.T, tolerances.FLOAT64)
    method = whence.InfluenceFunctions(wrapped, (X, CLASSES), whence.ExactIHVPFactory(0.1))
    own = np.diag(method.influences((X, CLASSES)))
    found = method.suspects(k=None, score="self_influence")
    tolerances.assert_close(found.scores, own[found.ids] * len(X), tolerances.SOLVE)


@pytest.mark.parametrize(("solver", "divisor"), [("lbfgs", 30), ("adam", 30)])
def test_the_penalty_is_on_weights_and_not_on_biases(solver, divisor):
    model = fitted("tanh", solver=solver, alpha=0.5)
    wrapped = whence.InfluenceModel(model, "all")
    wrapped.index((X, CLASSES))
    for l2 in wrapped.several.source.l2(30).values():
        assert np.allclose(l2, [*[0.5 / divisor] * (len(l2) - 1), 0])


def test_regressions_and_lists_of_layers():
    model = fitted("relu", regression=True)
    wrapped = whence.InfluenceModel(model, [0, "coefs_[2]"])
    method = whence.RepresenterPointLJE(wrapped, (X, X[:, 0]), whence.ExactIHVPFactory(0.1))
    sums = method.influences((X[:3], X[:3, 0])).sum(axis=1)
    explanation = method.explain((X[:3], X[:3, 0]))
    tolerances.assert_close(sums, explanation.totals, tolerances.FLOAT64)
    assert explanation.about["layers"] == ["coefs_[0]", "coefs_[2]"]
    assert explanation.about["left_out"] == {"coefs_[1]": "not chosen"}


def test_lists_that_name_no_layers_are_refused():
    model = fitted("relu")
    with pytest.raises(WhenceError, match=r"got 'coefs_.3.'"):
        whence.InfluenceModel(model, ["coefs_[3]", 0])
    with pytest.raises(WhenceError, match=r"'coefs_.2.' twice"):
        whence.InfluenceModel(model, [-1, "coefs_[2]"])
