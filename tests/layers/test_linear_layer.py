"""Everything first- and second-order about a dense layer, against references that share no code with it."""

import numpy as np
import problems
import pytest
import reference
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DIFFERENCES, FLOAT64, assert_close

from whence.arrays import base as arrays
from whence.arrays.base import as_numpy
from whence.layers import linear_layer
from whence.layers.linear_layer import Block, LinearLayer, flatten, outer_rows, unflatten
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError

DAMPING = 0.125


@pytest.fixture(params=problems.LOSSES, ids=str)
def name(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def has_bias(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def weighted(request):
    return request.param


@pytest.fixture
def problem(name, has_bias, weighted):
    return problems.problem(name, has_bias, weighted)


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_derivatives_match_the_reference(problem, xp, dtype):
    layer, block, blocks = problem.layer(xp, dtype), problem.block(xp, dtype), problem.blocks(xp, dtype)
    dense = problem.dense(DAMPING)
    kind = block.phi.dtype

    def check(actual, expected):
        assert actual.dtype == kind
        assert_close(as_numpy(actual), expected, tolerances.of(dtype))

    check(layer.pre_activations(block.phi), problem.phi @ problem.theta)
    check(layer.residuals(block), dense.residuals)
    check(layer.gradients(block), dense.gradients)
    check(layer.curvatures(block).matrices(), dense.curvatures)
    check(layer.mean_gradient(blocks), dense.gradients.mean(axis=0))
    check(layer.hessian(blocks).matrix(), dense.hessian)
    check(layer.regulariser(DAMPING), dense.lam)
    vectors = problem.matrices()
    products = [reference.unflat(dense.damped @ reference.flat(v), v.shape[1]) for v in vectors]
    product = layer.hessian_product(blocks, xp.asarray(vectors.astype(dtype)), DAMPING)
    check(product, np.stack(products))
    without_weights = [
        problem.function(p @ problem.theta, y) for p, y in zip(dense.phi, dense.target, strict=True)
    ]
    check(layer.losses(block), without_weights)


def test_the_reference_agrees_with_the_mean_loss_as_a_function_of_the_weights(name):
    problem = problems.problem(name, weighted=True, n=9)
    # The reference is itself built from derivatives with respect to u: here, with respect to theta.
    dense = problem.dense()
    shape = problem.theta.T.shape
    slope = reference.gradient(dense.mean_loss, problem.theta)
    assert_close(dense.gradients.mean(axis=0), slope, FLOAT64)
    second = reference.hessian(lambda t: dense.mean_loss(t.reshape(shape).T), reference.flat(problem.theta))
    assert_close(dense.hessian, second, DIFFERENCES)


@pytest.mark.parametrize("weighted", [True], ids=["weighted"])
@pytest.mark.parametrize("has_bias", [True], ids=["bias"])
def test_blocks_of_any_size_give_the_same(problem, monkeypatch):
    layer, vectors = problem.layer(), problem.matrices(5)
    one = problem.blocks(rows=problems.N)
    expected = layer.mean_gradient(one), layer.hessian(one).matrix(), layer.hessian_product(one, vectors)
    for rows in (1, 5, problems.N - 1):
        cut = problem.blocks(rows=rows)
        assert_close(layer.mean_gradient(cut), expected[0], FLOAT64)
        assert_close(layer.hessian(cut).matrix(), expected[1], FLOAT64)
        assert_close(layer.hessian_product(cut, vectors), expected[2], FLOAT64)
    # The pieces that a block is cut into where memory is short: rows and right-hand sides.
    monkeypatch.setattr(linear_layer, "TILE_ROWS", 7)
    for name in ("ENOUGH_ROWS", "CACHE_BYTES"):
        monkeypatch.setattr(arrays, name, 1)
    for workspace in (1, 700, 4000):
        monkeypatch.setattr(arrays, "WORKSPACE_BYTES", workspace)
        monkeypatch.setattr(linear_layer, "WORKSPACE_BYTES", workspace)
        assert_close(layer.hessian(one).matrix(), expected[1], FLOAT64)
        assert_close(layer.hessian_product(one, vectors), expected[2], FLOAT64)


def test_the_order_of_samples_does_not_matter(name):
    problem = problems.problem(name, weighted=True)
    order = np.random.default_rng(0).permutation(problems.N)
    shuffled = problems.Blocks(Block(*(a[order] for a in problem.block())), 10)
    layer, blocks = problem.layer(), problem.blocks()
    assert_close(layer.mean_gradient(shuffled), layer.mean_gradient(blocks), FLOAT64)
    assert_close(layer.hessian(shuffled).matrix(), layer.hessian(blocks).matrix(), FLOAT64)


def test_a_weight_of_two_is_a_sample_twice_and_of_zero_is_none(name):
    problem = problems.problem(name)
    block = problem.block()
    counts = np.random.default_rng(0).integers(0, 3, problems.N)
    weighted = problems.Blocks(block._replace(weight=counts.astype(float)), 10)
    repeated = problems.Blocks(Block(*(np.repeat(a, counts, axis=0) for a in block[:2])), 10)
    layer = problem.layer()
    scale = repeated.n_samples / problems.N
    assert_close(layer.mean_gradient(weighted), scale * layer.mean_gradient(repeated), FLOAT64)
    assert_close(layer.hessian(weighted).matrix(), scale * layer.hessian(repeated).matrix(), FLOAT64)


def test_kept_curvatures_give_the_same_product(name):
    problem = problems.problem(name, weighted=True)
    layer, blocks, vectors = problem.layer(), problem.blocks(), problem.matrices()
    kept = [layer.curvatures(block) for block in blocks]
    actual = layer.hessian_product(blocks, vectors, DAMPING, curvatures=kept)
    assert_close(actual, layer.hessian_product(blocks, vectors, DAMPING), FLOAT64)


@pytest.mark.pairwise
def test_inputs_are_left_as_they_were(name, xp):
    problem = problems.problem(name, weighted=True)
    layer, block = problem.layer(xp), problem.block(xp)
    blocks = problems.Blocks(block, 10)
    vectors = xp.asarray(problem.matrices(1))
    arrays = [layer.theta, vectors, *(a for a in block if a is not None)]
    before = [as_numpy(a).copy() for a in arrays]
    layer.residuals(block)
    layer.losses(block)
    layer.mean_gradient(blocks)
    layer.hessian(blocks).matrix()
    curvature = layer.curvatures(block)
    layer.hessian_product(blocks, vectors, DAMPING)
    rows = xp.asarray(np.ones((problems.N, layer.n_outputs)))
    curvature.apply(rows)
    assert (as_numpy(rows) == 1).all()
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(as_numpy(array), old)


def test_weights_in_double_with_features_in_single(xp):
    # As a wrapped model hands them over: what is summed in float64 stays there.
    problem = problems.problem("softmax")
    layer, blocks = problem.layer(xp, "float64"), problem.blocks(xp, "float32")
    dense = problem.dense(DAMPING)
    assert layer.pre_activations(blocks.whole.phi).dtype == blocks.whole.phi.dtype
    gradient = layer.mean_gradient(blocks)
    assert gradient.dtype == layer.theta.dtype
    assert_close(as_numpy(gradient), dense.gradients.mean(axis=0), tolerances.FLOAT32)
    vectors = problem.matrices()
    product = layer.hessian_product(blocks, xp.asarray(vectors), DAMPING)
    assert product.dtype == layer.theta.dtype
    expected = [reference.unflat(dense.damped @ reference.flat(v), problems.C) for v in vectors]
    assert_close(as_numpy(product), expected, FLOAT64)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_l2_lies_on_the_rows_that_it_regularises(xp, damping):
    theta = xp.asarray(np.zeros((3, 2)))
    rows = {
        False: [damping + 0.25] * 3,
        True: [damping + 0.25, damping + 0.25, damping + 0.0625],
    }
    for has_bias, expected in rows.items():
        layer = LinearLayer(theta, SquaredError(), has_bias, l2=0.25, bias_l2=0.0625)
        np.testing.assert_array_equal(as_numpy(layer.regulariser(damping)), expected)
        # Features that are all zero leave nothing but it.
        blocks = problems.Blocks(Block(xp.asarray(np.zeros((1, 3))), xp.asarray(np.zeros((1, 2)))), 1)
        product = layer.hessian_product(blocks, xp.asarray(np.ones((1, 3, 2))), damping)
        np.testing.assert_array_equal(as_numpy(product)[0], np.stack([expected, expected], axis=1))


def test_no_right_hand_side_gives_none(xp):
    problem = problems.problem("softmax")
    none = xp.asarray(np.zeros((0, *problem.theta.shape)))
    assert problem.layer(xp).hessian_product(problem.blocks(xp), none).shape == none.shape


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_l2_that_training_implies_leaves_out_the_bias(has_bias):
    """Ridge regression without a penalty on the bias: its weights tell the strength."""
    rng = np.random.default_rng(0)
    phi = np.concatenate([rng.normal(size=(40, 3)), np.ones((40, 1))], axis=1)
    target, l2 = rng.normal(size=(40, 1)) + 5, 0.3
    penalty = l2 * np.diag([1.0, 1.0, 1.0, 0.0 if has_bias else 1.0])
    # ell = (u - y)^2 for one output: the gradient's matrix is 2 phi^T phi / N
    theta = np.linalg.solve(2 * phi.T @ phi / 40 + penalty, 2 * phi.T @ target / 40)
    layer = LinearLayer(theta, SquaredError(), has_bias=has_bias)
    assert_close(layer.implied_l2(problems.Blocks(Block(phi, target), 16)), l2, FLOAT64)


def test_at_other_weights_everything_else_stays():
    problem = problems.problem("softmax")
    layer = problem.layer()
    other = layer.at(2 * layer.theta)
    np.testing.assert_array_equal(layer.theta, problem.theta)
    np.testing.assert_array_equal(other.theta, 2 * problem.theta)
    assert (other.loss, other.has_bias, other.l2, other.bias_l2) == (
        layer.loss,
        layer.has_bias,
        layer.l2,
        layer.bias_l2,
    )
    expected = problem.dense().at(2 * problem.theta).gradients.mean(axis=0)
    assert_close(other.mean_gradient(problem.blocks()), expected, FLOAT64)


def test_the_layout_is_output_by_output(xp):
    matrix = np.arange(6.0).reshape(2, 3)
    stacked = xp.asarray(np.stack([matrix, -matrix]))
    flat = flatten(stacked)
    np.testing.assert_array_equal(as_numpy(flat)[0], [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(as_numpy(flat)[0], reference.flat(matrix))
    np.testing.assert_array_equal(as_numpy(unflatten(flat, 3)), as_numpy(stacked))
    outer = outer_rows(xp.asarray(np.asarray([[1.0, 10.0]])), xp.asarray(np.asarray([[2.0, 3.0]])))
    np.testing.assert_array_equal(as_numpy(outer), [[2, 3, 20, 30]])


@pytest.mark.pairwise
def test_gauss_newton_cuts_the_negative_curvature_of_every_sample(name, xp):
    problem = problems.problem(name, weighted=True)
    dense = problem.dense()
    values, vectors = np.linalg.eigh(dense.curvatures)
    cut = (vectors * np.maximum(values, 0)[:, None, :]) @ vectors.transpose(0, 2, 1)
    expected = sum(np.kron(k, np.outer(p, p)) for p, k in zip(dense.phi, cut, strict=True)) / problems.N
    layer = problem.layer(xp)
    layer = LinearLayer(layer.theta, layer.loss, layer.has_bias, gauss_newton=True)
    actual = as_numpy(layer.hessian(problem.blocks(xp)).matrix())
    assert_close(actual, expected, DIFFERENCES)
    if name in problems.CONVEX:
        assert_close(actual, dense.hessian, DIFFERENCES)
    else:
        assert np.linalg.eigvalsh(dense.hessian)[0] < -1e-3
    assert np.linalg.eigvalsh(actual)[0] > -1e-12


@settings(max_examples=40, deadline=None)
@given(
    loss=st.sampled_from([SoftmaxCrossEntropy(), BinaryCrossEntropy(), SquaredError()]),
    n=st.integers(1, 40),
    d=st.integers(1, 6),
    n_outputs=st.integers(1, 5),
    m=st.integers(1, 9),
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_matrix_and_product_are_the_same_operator(loss, n, d, n_outputs, m, rows, seed):
    rng = np.random.default_rng(seed)
    target = (
        rng.integers(0, n_outputs, n) if loss.name.startswith("softmax") else rng.random((n, n_outputs))
    )
    blocks = problems.Blocks(Block(rng.normal(size=(n, d)), target, rng.random(n)), rows)
    layer = LinearLayer(rng.normal(size=(d, n_outputs)), loss)
    matrix = layer.hessian(blocks).matrix()
    np.testing.assert_array_equal(matrix, matrix.T)
    vectors = rng.normal(size=(m, d, n_outputs))
    product = flatten(layer.hessian_product(blocks, vectors, DAMPING))
    scale = np.abs(matrix).max() + DAMPING
    expected = flatten(vectors) @ (matrix + DAMPING * np.eye(len(matrix)))
    assert np.abs(product - expected).max() <= 1e-12 * scale * len(matrix) * np.abs(vectors).max()
    assert np.linalg.eigvalsh(matrix)[0] >= -1e-13 * scale * len(matrix)  # these losses are convex
