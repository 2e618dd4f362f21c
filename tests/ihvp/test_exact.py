"""The exact solver against dense linear algebra, and what it refuses."""

import re

import numpy as np
import problems
import pytest
import reference
import tolerances
from tolerances import LANCZOS, SOLVE, SOLVE_FLOAT32, assert_close

from whence import ExactIHVPFactory, NotPositiveDefiniteError, WhenceError
from whence.arrays import base as arrays
from whence.arrays.base import as_numpy
from whence.ihvp import InverseHessianVectorProduct, exact
from whence.ihvp.exact import ExactIHVP
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import SoftmaxCrossEntropy, SquaredError


@pytest.fixture(params=problems.CONVEX, ids=str)
def name(request):
    return request.param


def solved(problem, damping, matrices, **l2):
    """What the reference gives for a stack of matrices."""
    dense = problem.dense(damping, **l2)
    return np.stack([dense.solve(matrix) for matrix in matrices])


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-5])
def test_solve(name, damping, dtype, xp):
    # No L2: damping alone lies between the solver and a singular matrix.
    problem = problems.problem(name, weighted=True)
    layer, blocks = problem.layer(xp, dtype, l2=0.0, bias_l2=0.0), problem.blocks(xp, dtype)
    ihvp = ExactIHVPFactory(damping=damping).build(layer, blocks)
    right = problem.matrices()
    solution = ihvp.solve(xp.asarray(right.astype(dtype)))
    assert solution.value.dtype == xp.float64
    assert solution.converged
    assert solution.iterations == 0
    expected = solved(problem, damping, right, l2=0.0, bias_l2=0.0)
    tolerance = SOLVE
    if dtype == "float32":
        # Rounding dH of the matrix moves the solution by up to |dH| / damping. Where that is more than
        # a hundredth, the features are summed in float64.
        largest = np.linalg.eigvalsh(problem.dense().hessian)[-1]
        rounding = np.finfo(np.float32).eps * largest / damping
        tolerance = SOLVE if rounding > 0.02 else max(SOLVE, 4 * rounding)
        assert damping < 1e-1 or tolerance < SOLVE_FLOAT32
    assert_close(as_numpy(solution.value), expected, tolerance)
    assert solution.relative_residual < tolerance


@pytest.mark.pairwise
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_the_layer_s_own_l2_is_part_of_the_system(name, has_bias, xp):
    problem = problems.problem(name, has_bias)
    ihvp = ExactIHVP(problem.layer(xp), problem.blocks(xp), 1e-3)
    right = problem.matrices()
    solution = as_numpy(ihvp.solve(xp.asarray(right)).value)
    assert_close(solution, solved(problem, 1e-3, right), SOLVE)
    assert_close(as_numpy(ihvp.product(xp.asarray(solution))), right, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("damping", [1e-3, 0.0])
def test_self_products_and_leverages(name, damping, xp):
    problem = problems.problem(name, weighted=True)
    layer, block = problem.layer(xp), problem.block(xp)
    dense = problem.dense(damping)
    ihvp = ExactIHVP(layer, problem.blocks(xp), damping)
    r = layer.residuals(block)
    expected = dense.self_products()
    assert_close(as_numpy(ihvp.self_products(block.phi, r)), expected, SOLVE)
    outputs = np.arange(problems.N) % layer.n_outputs
    chosen = ihvp.self_products(block.phi, r, xp.asarray(outputs))
    assert_close(as_numpy(chosen), expected[np.arange(problems.N), outputs], SOLVE)
    last = np.full(problems.N, layer.n_outputs - 1)  # an output that no sample asks for has no rows
    chosen = ihvp.self_products(block.phi, r, xp.asarray(last))
    assert_close(as_numpy(chosen), expected[:, -1], SOLVE)
    assert_close(as_numpy(ihvp.leverages(block.phi)), dense.leverages(), SOLVE)
    # The ways of the base class, open to every solver, by solving for each sample.
    base = InverseHessianVectorProduct
    assert_close(as_numpy(base.self_products(ihvp, block.phi, r)), expected, SOLVE)
    chosen = base.self_products(ihvp, block.phi, r, xp.asarray(outputs))
    assert_close(as_numpy(chosen), expected[np.arange(problems.N), outputs], SOLVE)
    assert_close(as_numpy(base.leverages(ihvp, block.phi)), dense.leverages(), SOLVE)


def test_pieces_and_blocks_of_any_size_give_the_same(name, monkeypatch):
    problem = problems.problem(name)
    layer, block, right = problem.layer(), problem.block(), problem.matrices()
    r, outputs = layer.residuals(block), np.arange(problems.N) % layer.n_outputs
    whole = ExactIHVP(layer, problem.blocks(rows=problems.N), 1e-3)
    for name in ("ENOUGH_ROWS", "CACHE_BYTES", "WORKSPACE_BYTES"):  # 16 rows at once, the least
        monkeypatch.setattr(arrays, name, 1)
    pieces = ExactIHVP(layer, problem.blocks(rows=3), 1e-3)
    assert_close(pieces.solve(right).value, whole.solve(right).value, SOLVE)
    chosen = whole.self_products(block.phi, r, outputs)
    assert_close(pieces.self_products(block.phi, r, outputs), chosen, SOLVE)


@pytest.mark.pairwise
def test_no_samples_and_no_right_hand_sides(name, xp):
    problem = problems.problem(name)
    ihvp = ExactIHVP(problem.layer(xp), problem.blocks(xp), 1e-3)
    d, n_outputs = problem.theta.shape
    empty = [xp.asarray(np.zeros((0, width))) for width in (d, n_outputs)]
    assert ihvp.self_products(*empty).shape == (0, n_outputs)
    assert ihvp.self_products(*empty, xp.asarray(np.zeros(0, np.int64))).shape == (0,)
    assert ihvp.solve(xp.asarray(np.zeros((0, d, n_outputs)))).value.shape == (0, d, n_outputs)


def test_built_once_and_used_by_every_call():
    problem = problems.problem("softmax")
    blocks = problem.blocks()
    ihvp = ExactIHVP(problem.layer(), blocks, 1e-3)
    right = problem.matrices()
    before = right.copy()
    first = ihvp.solve(right)
    passes = blocks.passes
    again = ihvp.solve(right)
    assert blocks.passes == passes
    np.testing.assert_array_equal(first.value, again.value)
    np.testing.assert_array_equal(right, before)


@pytest.mark.pairwise
def test_without_damping_the_pseudo_inverse_is_taken(name, xp):
    problem = problems.problem(name, weighted=True)
    # A feature that is always zero makes every loss singular, softmax once more by itself.
    wider = np.concatenate([np.zeros((problems.N, 1)), problem.phi], axis=1)
    theta = np.concatenate([np.zeros_like(problem.theta[:1]), problem.theta])
    dense = problem.dense(l2=0.0, bias_l2=0.0)
    dense = reference.Dense(theta, wider, dense.target, problem.function, dense.weight)
    block = problem.block(xp)._replace(phi=xp.asarray(wider))
    layer = LinearLayer(xp.asarray(theta), problem.loss, has_bias=True)
    ihvp = ExactIHVPFactory(damping=0).build(layer, problems.Blocks(block, 10))
    right = np.random.default_rng(0).normal(size=(2, *theta.shape))
    solution = ihvp.solve(xp.asarray(right))
    assert_close(as_numpy(solution.value), [dense.solve(b) for b in right], SOLVE)
    assert np.abs(as_numpy(solution.value)[:, 0]).max() < 1e-12
    # What lies in the range is reached, what lies outside is left: both are a small residual.
    assert solution.relative_residual < SOLVE
    assert np.linalg.matrix_rank(dense.hessian, tol=1e-10) < dense.hessian.shape[0]


def test_the_residual_of_the_pseudo_inverse_is_measured():
    problem = problems.problem("softmax")
    ihvp = ExactIHVP(problem.layer(l2=0.0, bias_l2=0.0), problem.blocks(), 0.0)
    ihvp._factors[0]._inverse *= 1.5
    assert ihvp.solve(problem.matrices()).relative_residual == pytest.approx(0.5, rel=1e-6)


def test_a_cutoff_leaves_out_what_is_below_it():
    phi, y = np.diag([10.0, 1.0]), np.zeros((2, 1))
    layer = LinearLayer(np.zeros((2, 1)), SquaredError())  # H = diag(100, 1)
    blocks, right = problems.Blocks(Block(phi, y), 2), np.ones((1, 2, 1))
    for cutoff, expected in [(None, [0.01, 1]), (0.5e-2, [0.01, 1]), (2e-2, [0.01, 0])]:
        value = ExactIHVP(layer, blocks, 0.0, cutoff=cutoff).solve(right).value
        np.testing.assert_allclose(value.ravel(), expected, rtol=1e-12)


@pytest.mark.pairwise
@pytest.mark.parametrize("damping", [1e-1, 1e-5, 0.0])
def test_condition(name, damping, xp):
    problem = problems.problem(name)
    condition = ExactIHVP(problem.layer(xp), problem.blocks(xp), damping).condition
    values = np.linalg.eigvalsh(problem.dense(damping).damped)
    assert condition.smallest == pytest.approx(values[0], rel=1e-8)
    assert condition.largest == pytest.approx(values[-1], rel=1e-8)
    assert condition.is_positive_definite


def test_condition_of_a_singular_system():
    problem = problems.problem("softmax")
    condition = ExactIHVP(problem.layer(l2=0.0, bias_l2=0.0), problem.blocks(), 0.0).condition
    assert abs(condition.smallest) < 1e-12
    damped = ExactIHVP(problem.layer(l2=0.0, bias_l2=0.0), problem.blocks(), 1e-3).condition
    assert damped.smallest == pytest.approx(1e-3, rel=1e-8)


def test_condition_of_a_large_layer(rng):
    d = 1600  # beyond what is worth a full eigendecomposition
    blocks = problems.Blocks(Block(rng.normal(size=(40, d)), rng.normal(size=(40, 1))), 40)
    ihvp = ExactIHVP(LinearLayer(np.zeros((d, 1)), SquaredError()), blocks, 0.5)
    largest = np.linalg.eigvalsh(blocks.whole.phi @ blocks.whole.phi.T)[-1] * 2 / 40 + 0.5
    assert ihvp.condition.largest == pytest.approx(largest, rel=LANCZOS)
    assert ihvp.condition.smallest == pytest.approx(0.5, rel=LANCZOS)


@pytest.mark.pairwise
@pytest.mark.parametrize("damping", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("name", ["Welsch", "Welsch, one output"])
def test_an_indefinite_hessian_is_named_with_its_smallest_eigenvalue(name, damping, xp):
    problem = problems.problem(name)
    smallest = np.linalg.eigvalsh(problem.dense(damping, l2=0.0, bias_l2=0.0).damped)[0]
    assert smallest < -1e-3
    layer = problem.layer(xp, l2=0.0, bias_l2=0.0)
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue of -") as e:
        ExactIHVPFactory(damping=damping).build(layer, problem.blocks(xp))
    assert e.value.smallest_eigenvalue == pytest.approx(smallest, rel=1e-6)
    assert f"{e.value.smallest_eigenvalue:.6g}" in str(e.value)
    # Damped by more than that, it is solved.
    enough = 2 * abs(smallest) + damping
    right = problem.matrices()
    ihvp = ExactIHVP(layer, problem.blocks(xp), enough)
    expected = solved(problem, enough, right, l2=0.0, bias_l2=0.0)
    assert_close(as_numpy(ihvp.solve(xp.asarray(right)).value), expected, SOLVE)


class _Untouchable:
    n_samples = 1

    def __iter__(self):
        raise AssertionError("iterated before the size was looked at")


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(SoftmaxCrossEntropy(), (10**6, 100)), (SquaredError(), (10**8, 1))],
)
def test_a_layer_too_large_for_memory_is_refused_at_once(loss, shape):
    theta = np.broadcast_to(np.zeros(1), shape)  # takes no memory
    with pytest.raises(
        WhenceError, match=rf"a layer of {shape[0]} x {shape[1]} weights, whose factor takes \d+ GiB"
    ):
        ExactIHVPFactory().build(LinearLayer(theta, loss), _Untouchable())


def test_what_counts_is_the_memory_that_is_needed(monkeypatch):
    # Of squared error all outputs share one factor: 24 bytes * 4^2, however many outputs.
    problem = problems.problem("squared, several")
    monkeypatch.setattr(exact, "memory_bytes", lambda: 24 * 5**2 / 0.8)
    ExactIHVP(problem.layer(), problem.blocks(), 1e-3)
    for other in ("sigmoids", "softmax"):
        problem = problems.problem(other)
        with pytest.raises(WhenceError, match=r"fits into memory \(0 GiB here\)"):
            ExactIHVP(problem.layer(), problem.blocks(), 1e-3)
    monkeypatch.setattr(exact, "memory_bytes", lambda: 3 * 2**30)
    theta = np.broadcast_to(np.zeros(1), (20_000, 1))
    with pytest.raises(WhenceError, match=r"\(3 GiB here\).*whose factor takes 9 GiB"):
        ExactIHVP(LinearLayer(theta, SquaredError()), _Untouchable(), 1e-3)


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_a_system_that_does_not_tell_its_memory_has_enough(error, monkeypatch):
    def sysconf(name):
        raise error(name)

    assert 2**20 < exact.memory_bytes() < 2**50
    monkeypatch.setattr("os.sysconf", sysconf, raising=False)
    assert exact.memory_bytes() == np.inf


@pytest.mark.pairwise
@pytest.mark.parametrize("name", ["softmax", "sigmoids", "squared"])
@pytest.mark.parametrize(
    ("dtype", "damping", "assembled"),
    [
        ("float32", 1e-1, "float32"),
        ("float32", 1e-3, "float32"),
        ("float32", 1e-7, "float64"),
        ("float32", 0.0, "float64"),
        ("float64", 1e-1, "float64"),
        ("float64", 1e-7, "float64"),
    ],
)
def test_float32_is_assembled_in_float64_where_its_rounding_would_show(
    name, dtype, damping, assembled, monkeypatch
):
    precisions = []
    hessian = LinearLayer.hessian

    def spy(layer, blocks):
        result = hessian(layer, blocks)
        precisions.append(result.blocks.dtype)
        return result

    monkeypatch.setattr(LinearLayer, "hessian", spy)
    problem = problems.problem(name, weighted=True)
    layer, blocks = problem.layer(np, dtype, l2=0.0, bias_l2=0.0), problem.blocks(np, dtype)
    ExactIHVP(layer, blocks, damping)
    assert precisions == [np.dtype(assembled)]


def test_features_of_large_norm_are_assembled_in_float64():
    # Rounding grows with |H|: the same damping is small beside a large matrix.
    problem = problems.problem("squared")
    block = problem.block(np, "float32")
    block = block._replace(phi=100 * block.phi)
    ihvp = ExactIHVP(problem.layer(np, "float32", 0.0, 0.0), problems.Blocks(block, 10), 1e-1)
    dense = reference.Dense(problem.theta, block.phi, problem.target, problem.function, None, 1e-1)
    right = problem.matrices()
    expected = [dense.solve(b) for b in right]
    assert_close(ihvp.solve(right.astype(np.float32)).value, expected, tolerances.FLOAT32)


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5), (1, 5), (15,), (), (1, 1, 5, 3), (2, 4, 3)])
def test_right_hand_sides_of_the_wrong_shape_are_named(shape, xp):
    problem = problems.problem("softmax")
    ihvp = ExactIHVP(problem.layer(xp), problem.blocks(xp), 1e-3)
    got = re.escape(f"shape {shape}")
    for method in (ihvp.solve, ihvp.product):
        with pytest.raises(WhenceError, match=rf"right-hand sides: expected shape \(m, 5, 3\).*{got}"):
            method(xp.asarray(np.zeros(shape)))


@pytest.mark.parametrize("damping", [-1e-3, np.nan, np.inf, "1", None, True])
def test_a_damping_that_is_none_is_named(damping):
    with pytest.raises(WhenceError, match=r"^damping: expected a number >= 0, got"):
        ExactIHVPFactory(damping=damping)
