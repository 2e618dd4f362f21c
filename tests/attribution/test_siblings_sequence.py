"""Sibling methods of a layer along a sequence: against one dense layer whose rows are the positions."""

import numpy as np
import pytest
import reference
from tolerances import SOLVE, assert_close

import whence

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

N, T, L, D, C = 9, 3, 4, 3, 3
DAMPING, L2 = 0.05, 0.02


@pytest.fixture(scope="module")
def problem():
    """Model, data sets, and the reference over positions; its mean over rows is that over samples."""
    rng = np.random.default_rng(2)
    x, new = rng.normal(size=(N, L, D)), rng.normal(size=(T, L, D))
    y, y_new = rng.integers(0, C, (N, L)), rng.integers(0, C, (T, L))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((L, D), dtype="float64"), keras.layers.Dense(C, use_bias=False, dtype="float64")]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    theta = model.layers[-1].kernel.numpy().astype(float)
    rows = x.reshape(-1, D), y.ravel(), reference.softmax_cross_entropy
    dense = reference.Dense(theta, *rows, lam=DAMPING)
    dense_new = reference.Dense(theta, new.reshape(-1, D), y_new.ravel(), rows[2])
    return whence.InfluenceModel(model), (x, y), (new, y_new), dense, dense_new


def means(gradients, n):
    """Gradients of samples, whose loss is the mean over positions."""
    return gradients.reshape(n, L, D, C).mean(axis=1)


def directions(new, theta):
    """What is asked: the mean over positions of the predicted output there."""
    units = np.eye(C)[np.argmax(new @ theta, axis=2)]
    return np.einsum("tld,tlc->tdc", new, units) / L


@pytest.mark.parametrize("inverse", [True, False], ids=["influence", "dot product"])
def test_gradients_sum_over_positions(problem, inverse):
    model, train, (new, y_new), dense, dense_new = problem
    gradients = means(dense.gradients, N)
    moves = np.stack([dense.solve(g) for g in gradients]) if inverse else gradients
    asked = {"loss": -means(dense_new.gradients, T), "pre_activation": directions(new, dense.theta)}
    for effect_on, of in asked.items():
        options = {"effect_on": effect_on, "progress": False}
        if inverse:
            method = whence.InfluenceFunctions(model, train, whence.ExactIHVPFactory(DAMPING), **options)
        else:
            method = whence.GradientDotProduct(model, train, **options)
        expected = -np.einsum("tdc,ndc->tn", of, moves) / N
        assert_close(method.influences((new, y_new)), expected, SOLVE)
        explanation = method.explain((new, y_new), k=2)
        assert_close(explanation.totals, expected.sum(axis=1), SOLVE)
    own = np.einsum("ndc,ndc->n", gradients, moves)
    method = (
        whence.InfluenceFunctions(model, train, whence.ExactIHVPFactory(DAMPING))
        if inverse
        else whence.GradientDotProduct(model, train)
    )
    assert_close(np.concatenate([v for _, v in method.compute_influence_values(train)]), own, SOLVE)
    assert sorted(method.suspects(train, None).ids) == list(range(N))


@pytest.mark.parametrize("weighted", [False, True])
def test_changes_of_the_loss_are_means_over_positions(problem, weighted):
    model, train, (new, y_new), dense, dense_new = problem
    weight = np.ones((T, L))
    if weighted:
        weight = np.random.default_rng(0).uniform(0.1, 2, (T, L))
        weight[1, 2] = 0
    share = weight / weight.sum(axis=1, keepdims=True)
    method = whence.InfluenceFunctions(model, train, whence.ExactIHVPFactory(DAMPING), progress=False)
    found = method.loss_changes((new, y_new, weight) if weighted else (new, y_new))
    moves = [dense.solve(g) / N for g in means(dense.gradients, N)]
    rows = list(zip(dense_new.phi, dense_new.target, strict=True))

    def losses(theta):
        return (np.reshape([dense.loss(p @ theta, y) for p, y in rows], (T, L)) * share).sum(axis=1)

    expected = [losses(dense.theta + move) - losses(dense.theta) for move in moves]
    assert_close(found, np.stack(expected, axis=1), SOLVE)


def test_cosines_of_whole_samples(problem):
    model, train, (new, y_new), dense, dense_new = problem
    method = whence.GradientCosine(model, train, progress=False)
    left, right = means(dense_new.gradients, T), means(dense.gradients, N)
    norms = [np.sqrt((g**2).sum(axis=(1, 2))) for g in (left, right)]
    expected = np.einsum("tdc,ndc->tn", left, right) / np.outer(*norms)
    assert_close(method.influences((new, y_new)), expected, SOLVE)


@pytest.mark.parametrize("fit_to", ["predictions", "labels"])
def test_representer_values_sum_to_the_refitted_mean(problem, fit_to):
    model, train, (new, y_new), dense, _ = problem
    method = whence.RepresenterPointL2(model, train, L2, fit_to=fit_to, progress=False)
    target = dense.target
    if fit_to == "predictions":
        target = np.exp(dense.phi @ dense.theta)
        target = target / target.sum(axis=1, keepdims=True)
    expected = reference.Dense(dense.theta, dense.phi, target, dense.loss, lam=2 * L2).refit()
    assert_close(method.refitted_layer.theta, expected, 1e-7)
    total = np.einsum("tdc,dc->t", directions(new, dense.theta), expected)
    assert_close(method.influences((new, y_new)).sum(axis=1), total, 1e-7)
    assert sorted(method.suspects(train, None).ids) == list(range(N))


def test_leverage_is_refused(problem):
    model, train, _, _, _ = problem
    with pytest.raises(whence.WhenceError, match="leverage"):
        whence.InfluenceFunctions(model, train, whence.ExactIHVPFactory(DAMPING), leverage=True)
