"""Solvers on datasets of samples and of vectors, and under the method that uses them."""

import numpy as np
import pytest
from tolerances import FLOAT64, assert_close

import whence
from whence import (
    CGDIHVPFactory,
    ExactIHVPFactory,
    KroneckerIHVPFactory,
    LissaIHVPFactory,
    RepresenterPointLJE,
    WhenceError,
)
from whence.ihvp import ExactIHVP
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import SquaredError

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

N, D, C = 60, 5, 3

#: name: factory, and how far sums may be off: its tolerance times the size of what is solved
SOLVERS = {
    "exact": (ExactIHVPFactory(), 1e-6),
    "conjugate gradient": (CGDIHVPFactory(tolerance=1e-9), 1e-6),
    "plain conjugate gradient": (CGDIHVPFactory(300, tolerance=1e-9, preconditioner=None), 1e-6),
    "LiSSA": (LissaIHVPFactory(tolerance=1e-6), 1e-3),
    "stochastic LiSSA": (LissaIHVPFactory(tolerance=1e-6, batch_size=20), 1e-3),
    "EK-FAC": (KroneckerIHVPFactory(), 1e-6),
    "K-FAC": (KroneckerIHVPFactory(eigenvalues="product"), 1e-6),
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, C, N)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((D,)), keras.layers.Dense(C)])
    net.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return whence.InfluenceModel(net)


def gradients(model, arrays):
    """Gradients ``(N, d, C)`` by automatic differentiation, the bias as last row."""
    kernel, bias = (tf.Variable(tf.cast(w, tf.float64)) for w in model.model.layers[-1].get_weights())
    x, y = arrays
    with tf.GradientTape() as tape:
        u = tf.cast(x, tf.float64) @ kernel + bias
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(y, u)
    parts = tape.jacobian(values, [kernel, bias])
    return np.concatenate([parts[0].numpy(), parts[1].numpy()[:, None, :]], axis=1)


@solvers
def test_datasets_of_samples(solver, model, arrays):
    factory, tolerance = SOLVERS[solver]
    train = tf.data.Dataset.from_tensor_slices(arrays).batch(16)
    ihvp = factory.build(model, train)
    found = ihvp.compute_ihvp(train)
    assert isinstance(found, tf.data.Dataset)
    assert [tuple(part.shape) for part in found] == [(16, D + 1, C)] * 3 + [(12, D + 1, C)]
    stacked = np.concatenate([part.numpy() for part in found])
    expected = ihvp.solve(gradients(model, arrays)).value
    assert_close(stacked, expected, 10 * tolerance)
    products = np.concatenate([part.numpy() for part in ihvp.compute_hvp(train)])
    assert_close(products, ihvp.product(gradients(model, arrays)), 1e-5)


@solvers
def test_arrays_in_batches_out(solver, model, arrays):
    factory, tolerance = SOLVERS[solver]
    ihvp = factory.build(model, arrays)
    (found,) = ihvp.compute_ihvp(arrays)
    assert found.shape == (N, D + 1, C)
    # Back again: vectors, in a list of batches.
    batches = [found[:40], found[40:]]
    back = np.concatenate(list(ihvp.compute_hvp(batches, use_gradient=False)))
    if "FAC" not in solver:
        assert_close(back, gradients(model, arrays), 1e-5 + tolerance)
    forth = np.concatenate(list(ihvp.compute_ihvp(batches, use_gradient=False)))
    assert_close(forth, ihvp.solve(found).value, 10 * tolerance)
    assert_close(ihvp.compute_hvp(found, use_gradient=False), back, FLOAT64)


def test_datasets_of_vectors(model, arrays):
    train = tf.data.Dataset.from_tensor_slices(arrays).batch(16)
    ihvp = ExactIHVPFactory().build(model, train)
    vectors = np.random.default_rng(1).normal(size=(5, D + 1, C))
    dataset = tf.data.Dataset.from_tensor_slices(vectors).batch(2)
    for method, expected in (
        (ihvp.compute_hvp, ihvp.product(vectors)),
        (ihvp.compute_ihvp, ihvp.solve(vectors).value),
    ):
        found = method(dataset, use_gradient=False)
        assert isinstance(found, tf.data.Dataset)
        assert_close(np.concatenate([part.numpy() for part in found]), expected, FLOAT64)
    with pytest.raises(WhenceError, match=r"right-hand sides: expected shape \(m, 6, 3\)"):
        list(ihvp.compute_ihvp([vectors[:, 1:]], use_gradient=False))


def test_a_solver_of_a_bare_layer_takes_blocks():
    rng = np.random.default_rng(0)

    class Blocks(list):
        n_samples = 8

    blocks = Blocks([Block(rng.normal(size=(4, 3)), rng.normal(size=(4, 2))) for _ in range(2)])
    layer = LinearLayer(np.zeros((3, 2)), SquaredError())
    ihvp = CGDIHVPFactory().build(layer, blocks)
    found = ihvp.compute_ihvp(blocks)
    back = ihvp.compute_hvp(found, use_gradient=False)
    for part, block in zip(back, blocks, strict=True):
        assert_close(part, layer.gradients(block), 1e-5)


@solvers
def test_influences_sum_to_the_prediction(solver, model, arrays):
    factory, tolerance = SOLVERS[solver]
    train = tf.data.Dataset.from_tensor_slices(arrays).batch(16)
    lje = RepresenterPointLJE(model, train, factory, progress=False)
    for output in range(C):
        explanation = lje.explain(train, k=N, outputs=output)
        assert explanation.values.shape == (N, N)
        phi = np.concatenate([arrays[0], np.ones((N, 1))], axis=1)
        predicted = (phi @ lje.theta_dagger)[:, output]
        # Residuals are float32, and H^{-1} takes their rounding, 6e-8, times up to 1 / damping.
        assert_close(explanation.values.sum(axis=1), predicted, max(tolerance, 1e-4))
        assert_close(explanation.totals, predicted, 1e-6)


@solvers
def test_results_name_the_solver(solver, model, arrays):
    factory, _ = SOLVERS[solver]
    lje = RepresenterPointLJE(model, arrays, factory)
    about = lje.explain(arrays, k=1).about
    assert about["solver"] == type(lje.ihvp).__name__
    assert about["damping"] == 1e-3
    assert about["curvature"] == "hessian"
    assert lje.ihvp.influence_model is model


def test_results_name_the_gauss_newton_matrix(model, arrays):
    lje = RepresenterPointLJE(model, arrays, CGDIHVPFactory(curvature="gauss_newton"))
    assert lje.explain(arrays, k=1).about["curvature"] == "gauss_newton"
    assert lje.suspects(arrays, k=1).about["curvature"] == "gauss_newton"


@solvers
def test_suspects_with_every_solver(solver, model, arrays):
    factory, _ = SOLVERS[solver]
    ranked = RepresenterPointLJE(model, arrays, factory).suspects(arrays, None, score="leave_one_out")
    exact = RepresenterPointLJE(model, arrays, ExactIHVPFactory()).suspects(
        arrays, None, score="leave_one_out"
    )
    order = np.argsort(ranked.ids), np.argsort(exact.ids)
    allowed = 0.3 if "FAC" in solver else 1e-3
    assert_close(ranked.scores[order[0]], exact.scores[order[1]], allowed)


class Returns(whence.InverseHessianVectorProductFactory):
    def __init__(self, made):
        self.made = made

    def build(self, model, dataset):
        return self.made


@pytest.mark.parametrize("made", [None, 3.0, np.eye(3), ExactIHVP])
def test_a_build_that_returns_something_else(made, model, arrays):
    with pytest.raises(WhenceError, match=r"build: expected an InverseHessianVectorProduct, got"):
        RepresenterPointLJE(model, arrays, Returns(made))
