"""Numbers where numbers are hard: extreme scales, separated classes, singular training sets, threads.

References are in 60 digits. A solver either agrees with them or refuses, with the reason.
"""

import mpmath
import numpy as np
import pytest
import threadpoolctl
from problems import Blocks
from tolerances import assert_close

import whence
from whence import NotConvergedError, NotPositiveDefiniteError, WhenceError
from whence.ihvp import WoodburyIHVPFactory
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, log_softmax

RNG = np.random.default_rng(0)
N, D, C = 12, 4, 3
PHI, THETA, CLASSES = RNG.normal(size=(N, D)), RNG.normal(size=(D, C)), RNG.integers(0, C, N)
PREDICTED = np.argmax(PHI @ THETA, axis=1)
RIGHT = RNG.normal(size=(D, C))

#: name: features, weights, classes
DATA = {
    "plain": (PHI, THETA, CLASSES),
    "features of 1e-6": (1e-6 * PHI, THETA, CLASSES),
    "features of 1e6": (1e6 * PHI, 1e-6 * THETA, CLASSES),
    "features of all sizes": (PHI * [1e-6, 1, 1e6, 1], THETA * [[1e6], [1], [1e-6], [1]], CLASSES),
    "every sample three times": (np.repeat(PHI[:4], 3, axis=0), THETA, np.repeat(CLASSES[:4], 3)),
    "a constant feature": (np.column_stack([PHI[:, :3], np.full(N, 5.0)]), THETA, CLASSES),
    "collinear features": (np.column_stack([PHI[:, :3], 2 * PHI[:, 0]]), THETA, CLASSES),
    "fewer samples than features": (PHI[:3], THETA, CLASSES[:3]),
    "one class": (PHI, THETA, 0 * CLASSES),
    "separated": (PHI, 30 * THETA, PREDICTED),
    "logits of 1e4, wrong": (PHI, 1e4 * THETA, CLASSES),
    "logits of 1e4, right": (PHI, 1e4 * THETA, PREDICTED),
    "features in half precision": (PHI.astype(np.float16).astype(float), THETA, CLASSES),
}
#: What float64 cannot solve with a damping of 1e-3: it is 1e-15 of the largest eigenvalue.
TOO_HARD = {"features of 1e6", "features of all sizes"}
#: name: the factory, and how far it may be off, relative to the largest entry
SOLVERS = {
    "exact": (whence.ExactIHVPFactory, 1e-4),
    "woodbury": (WoodburyIHVPFactory, 1e-9),
    "conjugate gradient": (whence.CGDIHVPFactory, 1e-5),
    "lissa": (whence.LissaIHVPFactory, 5e-3),
}


def softmax_of(u):
    """``p`` and ``1 - p``, in 60 digits."""
    terms = [mpmath.exp(x - max(u)) for x in u]
    total = mpmath.fsum(terms)
    rest = [mpmath.fsum(terms[:c] + terms[c + 1 :]) / total for c in range(len(u))]
    return [x / total for x in terms], rest


def exactly(phi, theta, classes, damping):
    """Residuals ``(N, C)`` and ``(H + lam)^{-1} RIGHT``, in 60 digits."""
    with mpmath.workdps(60):
        n, (d, n_outputs) = len(phi), theta.shape
        size = d * n_outputs
        matrix, residuals = damping * mpmath.eye(size), np.zeros((n, n_outputs))
        for i in range(n):
            x = [mpmath.mpf(v) for v in phi[i].tolist()]
            u = [
                mpmath.fsum(a * b for a, b in zip(x, theta[:, c].tolist(), strict=True))
                for c in range(n_outputs)
            ]
            p, rest = softmax_of(u)
            residuals[i] = [-rest[c] if c == classes[i] else p[c] for c in range(n_outputs)]
            for a in range(size):
                for b in range(size):
                    (c, row), (e, column) = divmod(a, d), divmod(b, d)
                    k = p[c] * rest[c] if c == e else -p[c] * p[e]
                    matrix[a, b] += k * x[row] * x[column] / n
        solved = mpmath.lu_solve(matrix, mpmath.matrix(RIGHT.T.ravel().tolist()))
        return residuals, np.asarray([float(v) for v in solved]).reshape(n_outputs, d).T


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DATA)
def test_solvers_agree_with_sixty_digits_or_refuse(name, solver, dtype, references):
    phi, theta, classes = DATA[name]
    phi = phi.astype(dtype)
    factory, tolerance = SOLVERS[solver]
    layer, blocks = LinearLayer(theta, SoftmaxCrossEntropy()), Blocks(Block(phi, classes), 5)
    if name in TOO_HARD:
        with pytest.raises((NotConvergedError, NotPositiveDefiniteError)) as caught:
            factory(damping=1e-3).build(layer, blocks).solve(RIGHT[None])
        assert caught.value.fix
        return
    key = name, dtype
    if key not in references:
        references[key] = exactly(phi, theta, classes, 1e-3)[1]
    solution = factory(damping=1e-3).build(layer, blocks).solve(RIGHT[None])
    assert_close(solution.value[0], references[key], tolerance)


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", DATA)
def test_residuals_keep_their_digits_where_samples_are_fitted(name, dtype):
    phi, theta, classes = DATA[name]
    expected, _ = exactly(phi.astype(dtype), theta.astype(dtype), classes, 1.0)
    layer = LinearLayer(theta.astype(dtype), SoftmaxCrossEntropy())
    residuals = layer.residuals(Block(phi.astype(dtype), classes))
    info = np.finfo(dtype)
    # The rounding of pre-activations u is that of their largest terms; below the smallest normal number
    # there are no digits to keep.
    size = 1 + np.abs(phi).max(axis=1) * np.abs(theta).max() * D
    tolerance = 8 * info.eps * size[:, None] * np.abs(expected) + info.tiny
    assert (np.abs(residuals - expected) <= tolerance).all()


def test_losses_of_fitted_samples_keep_their_digits():
    u = np.asarray([[0.0, 30.0], [0.0, -2e4]], dtype=np.float32)
    np.testing.assert_allclose(-log_softmax(u)[:, 1], [np.exp(-30.0), 2e4], rtol=1e-5)
    residuals = BinaryCrossEntropy().residual(np.float32([[30.0], [-30.0]]), np.float32([[1.0], [0.0]]))
    np.testing.assert_allclose(residuals.ravel(), [-np.exp(-30.0), np.exp(-30.0)], rtol=1e-5)
    for u in (-1e4, 1e4):
        for y in (0.0, 1.0):
            loss, point, label = BinaryCrossEntropy(), np.asarray([[u]]), np.asarray([[y]])
            assert loss.value(point, label) == max(0.0, u * (1 - 2 * y))
            assert loss.residual(point, label) == (u > 0) - y
            assert loss.curvature(point, label).diagonal == 0


# ---- the same numbers -----------------------------------------------------------------------------


def answers(dtype, factory):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 30)), rng.integers(0, 3, 300)
    model = whence.InfluenceModel(linear_model.LogisticRegression(max_iter=1000).fit(x, y))
    lje = whence.RepresenterPointLJE(model, (x, y), factory(), feature_dtype=dtype, progress=False)
    explanation, suspects = lje.explain((x[:50], y[:50]), k=7), lje.suspects((x, y), k=None)
    return explanation.ids, explanation.values, suspects.ids, suspects.scores


FACTORIES = [
    whence.ExactIHVPFactory,
    whence.CGDIHVPFactory,
    whence.LissaIHVPFactory,
    whence.KroneckerIHVPFactory,
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_two_runs_give_the_same_bits_and_two_threads_the_same_order(factory):
    with threadpoolctl.threadpool_limits(1):
        first, again = answers(None, factory), answers(None, factory)
    with threadpoolctl.threadpool_limits(2):
        threaded = answers(None, factory)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(first, threaded, strict=True):
        if one.dtype.kind == "i":
            np.testing.assert_array_equal(one, other)
        else:
            assert_close(one, other, 1e-9)


# ---- storing in half precision --------------------------------------------------------------------


def test_features_that_half_precision_loses_are_refused():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    x, y = 1e-6 * rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    model = whence.InfluenceModel(linear_model.LogisticRegression(C=1e12).fit(x, y))
    with pytest.raises(WhenceError, match=r"feature_dtype.*float32"):
        whence.RepresenterPointLJE(
            model, (x, y), whence.ExactIHVPFactory(), feature_dtype="float16", progress=False
        )
