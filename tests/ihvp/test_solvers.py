"""Every solver against dense linear algebra in float64: solver x loss x bias x dtype x damping."""

import tracemalloc

import numpy as np
import problems
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

from whence import (
    CGDIHVPFactory,
    ExactIHVPFactory,
    KroneckerIHVPFactory,
    LissaIHVPFactory,
    NotConvergedError,
    NotPositiveDefiniteError,
    WhenceError,
)
from whence.arrays.base import as_numpy
from whence.ihvp import SOLVERS, iterative, lissa, operator
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import SoftmaxCrossEntropy, SquaredError

# OpenBLAS reads, and does not use, memory behind a narrow float32 matrix; what lies there may be a NaN.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")

#: name: factory for a damping, and the relative residual that it promises
ITERATIVE = {
    "cg": (lambda damping: CGDIHVPFactory(damping=damping), 1e-6),
    "to ten digits": (lambda damping: CGDIHVPFactory(damping=damping, tolerance=1e-10), 1e-10),
    "plain": (lambda damping: CGDIHVPFactory(300, damping, preconditioner=None), 1e-6),
    "lissa": (lambda damping: LissaIHVPFactory(damping=damping), 1e-3),
    "LiSSA to six digits": (lambda damping: LissaIHVPFactory(damping=damping, tolerance=1e-6), 1e-6),
    "stochastic LiSSA": (lambda damping: LissaIHVPFactory(damping=damping, batch_size=8), 1e-3),
}
KRONECKER = {
    "kronecker": lambda damping: KroneckerIHVPFactory(damping),
    "K-FAC": lambda damping: KroneckerIHVPFactory(damping, eigenvalues="product"),
}
#: Every solver that is registered, and some with other settings than their own.
EVERY = {
    **{name: lambda damping, name=name: SOLVERS[name](damping=damping) for name in SOLVERS},
    **{name: make for name, (make, _) in ITERATIVE.items() if name not in ("cg", "lissa")},
    "K-FAC": KRONECKER["K-FAC"],
}
DAMPINGS = [1e-1, 1e-3, 1e-5]

table = pytest.mark.parametrize("damping", DAMPINGS)
biases = pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
losses = pytest.mark.parametrize("loss", problems.CONVEX)
solvers = pytest.mark.parametrize("solver", EVERY)

#: What float32 makes of a damping of 0.1: lam is a number in the weights' precision.
LAM_IN = {"float64": 0.0, "float32": 1e-7}


def case(loss, has_bias=True, dtype="float64", damping=1e-3):
    problem = problems.problem(loss, has_bias, weighted=has_bias)
    layer, blocks = problem.layer(dtype=dtype), problem.blocks(dtype=dtype)
    return problem, layer, blocks, problem.dense(damping)


def flat_rows(stack):
    return np.stack([reference.flat(matrix) for matrix in as_numpy(stack)], axis=1)


def norm(columns, matrix=None):
    """Norm of every column, in the inner product of ``matrix``."""
    images = columns if matrix is None else matrix @ columns
    return np.sqrt(np.sum(columns * images, axis=0))


@pytest.mark.pairwise
@table
@dtypes
@biases
@losses
@pytest.mark.parametrize("solver", [name for name in ITERATIVE if name != "lissa"])
def test_iterative_solvers_keep_their_tolerance(solver, loss, has_bias, dtype, damping):
    make, tolerance = ITERATIVE[solver]
    problem, layer, blocks, dense = case(loss, has_bias, dtype, damping)
    right = problem.matrices()
    solution = make(damping).build(layer, blocks).solve(right)
    assert solution.converged
    assert solution.value.dtype == np.float64
    assert solution.iterations > 0
    assert solution.relative_residual <= tolerance
    b, x = flat_rows(right), flat_rows(solution.value)
    bound = tolerance + LAM_IN[dtype]
    assert (norm(b - dense.damped @ x) <= bound * norm(b)).all()
    # |X - X*| = |H^{-1} (residual)|, at most the residual over the smallest eigenvalue.
    smallest = np.linalg.eigvalsh(dense.damped)[0]
    assert (norm(x - dense.inverse @ b) <= bound * norm(b) / smallest + SOLVE * norm(x)).all()


@pytest.mark.pairwise
@table
@biases
@losses
def test_the_exact_solver_is_exact(loss, has_bias, damping):
    problem, layer, blocks, dense = case(loss, has_bias, damping=damping)
    right = problem.matrices()
    solution = ExactIHVPFactory(damping).build(layer, blocks).solve(right)
    assert_close(dense.damped @ flat_rows(solution.value), flat_rows(right), FLOAT64)


@pytest.mark.pairwise
@table
@dtypes
@biases
@losses
@pytest.mark.parametrize("solver", KRONECKER)
def test_kronecker_is_off_by_no_more_than_it_states(solver, loss, has_bias, dtype, damping):
    problem, layer, blocks, dense = case(loss, has_bias, dtype, damping)
    right = problem.matrices()
    ihvp = KRONECKER[solver](damping).build(layer, blocks)
    solution = ihvp.solve(right)
    b, x = flat_rows(right), flat_rows(solution.value)
    exact = dense.inverse @ b
    bound = ihvp.error_bound
    off = norm(x - exact, dense.damped)
    assert (off <= (bound * 1.01 + LAM_IN[dtype] + SOLVE) * norm(exact, dense.damped)).all()
    mix = np.random.default_rng(0).standard_normal(len(right))
    measured = np.linalg.norm((dense.damped @ x - b) @ mix) / np.linalg.norm(b @ mix)
    assert solution.relative_residual == pytest.approx(measured, rel=1e-3, abs=2e-7)
    if loss.startswith("squared"):
        assert bound < FLOAT64
        assert_close(solution.value, [dense.solve(m) for m in right], SOLVE + LAM_IN[dtype])
    else:
        assert bound > 1e-3  # these are approximations, and say so


@pytest.mark.pairwise
@biases
@losses
def test_corrected_eigenvalues_are_the_hessian_s_diagonal(loss, has_bias):
    _, layer, blocks, dense = case(loss, has_bias)
    factors = KroneckerIHVPFactory().build(layer, blocks).factors
    basis = np.kron(factors.outputs, factors.features)
    diagonal = np.diag(basis.T @ dense.damped @ basis)
    assert_close(factors.eigenvalues.T.ravel(), diagonal, SOLVE)


@pytest.mark.pairwise
@solvers
@pytest.mark.parametrize("loss", ["softmax", "sigmoids", "squared", "pseudo-Huber, dense"])
def test_self_products_and_leverages(solver, loss):
    problem, layer, blocks, dense = case(loss, damping=1e-1)
    ihvp = EVERY[solver](1e-1).build(layer, blocks)
    block = problem.block()
    moved = ihvp.self_products(block.phi, layer.residuals(block))
    leverages = ihvp.leverages(block.phi)
    promised = ITERATIVE.get(solver, (None, SOLVE))[1]
    if solver in KRONECKER and loss != "squared":
        # Approximate, but the matrix whose inverse it is must be one and the same everywhere.
        solved = ihvp.solve(layer.gradients(block)).value
        expected = np.einsum("ndc,nd->nc", solved, block.phi)
        assert_close(moved, expected, FLOAT64)
        assert_close(np.einsum("nab,nb->na", leverages, layer.residuals(block)), expected, FLOAT64)
    else:
        assert_close(moved, dense.self_products(), 50 * promised)
        assert_close(leverages, dense.leverages(), 50 * promised)
    outputs = np.arange(problems.N) % layer.n_outputs
    chosen = ihvp.self_products(block.phi, layer.residuals(block), outputs)
    assert_close(chosen, moved[np.arange(problems.N), outputs], 50 * promised)


@pytest.mark.pairwise
@solvers
def test_every_namespace(solver, xp):
    problem, layer, blocks, _ = case("softmax")
    right = problem.matrices()
    expected = EVERY[solver](1e-3).build(layer, blocks).solve(right).value
    there = EVERY[solver](1e-3).build(problem.layer(xp), problem.blocks(xp))
    assert_close(as_numpy(there.solve(xp.asarray(right)).value), expected, 1e-9)
    block = problem.block(xp)
    r = there.layer.residuals(block)
    assert as_numpy(there.self_products(block.phi, r)).shape == (problems.N, problems.C)


@solvers
def test_how_samples_are_cut_into_blocks_does_not_matter(solver):
    problem, layer, _, _ = case("softmax")
    right = problem.matrices()
    values = [EVERY[solver](1e-2).build(layer, problem.blocks(rows=n)).solve(right).value for n in (5, 37)]
    assert_close(values[0], values[1], 1e-9)


@solvers
def test_inputs_are_left_as_they_were(solver):
    problem, layer, blocks, _ = case("softmax")
    right = problem.matrices()
    before = right.copy(), problem.phi.copy()
    ihvp = EVERY[solver](1e-2).build(layer, blocks)
    first = ihvp.solve(right).value
    np.testing.assert_array_equal(right, before[0])
    np.testing.assert_array_equal(blocks.whole.phi, before[1])
    # What a solver gives does not depend on what it was asked before.
    if "stochastic" not in solver:
        np.testing.assert_array_equal(ihvp.solve(right).value, first)


@solvers
def test_along_a_sequence(solver):
    rng = np.random.default_rng(0)
    phi, target = rng.normal(size=(12, 3, 4)), rng.integers(0, 3, (12, 3))
    weight = rng.choice([0.0, 0.5, 1.0], (12, 3))
    blocks = problems.Blocks(Block(phi, target, weight), 5)
    layer = LinearLayer(rng.normal(size=(4, 3)), SoftmaxCrossEntropy())
    ihvp = EVERY[solver](1e-1).build(layer, blocks)
    right = rng.normal(size=(2, 4, 3))
    matrix = layer.hessian(blocks).matrix() + 0.1 * np.eye(12)
    image = matrix @ flat_rows(ihvp.solve(right).value)
    promised = ITERATIVE.get(solver, (None, FLOAT64))[1]
    allowed = 0.5 if solver in KRONECKER else 10 * promised
    assert_close(image, flat_rows(right), allowed)
    block = Block(phi, target, weight)
    assert ihvp.self_products(phi, layer.residuals(block)).shape == (12, 3, 3)


# ---- what happens on the way ---------------------------------------------------------------------


def test_right_hand_sides_that_are_solved_drop_out(monkeypatch):
    problem, layer, blocks, _ = case("softmax")
    widths = []
    product = operator.DampedHessian.__call__

    def counted(self, vectors):
        widths.append(vectors.shape[0])
        return product(self, vectors)

    ihvp = CGDIHVPFactory(preconditioner=None).build(layer, blocks)
    eigenvectors = np.linalg.eigh(problem.dense(1e-3).damped)[1]
    easy = reference.unflat(eigenvectors[:, 3], problems.C)
    right = np.stack([easy, problem.matrices(1)[0], 0 * problem.theta])
    monkeypatch.setattr(operator.DampedHessian, "__call__", counted)
    solution = ihvp.solve(right)
    # The zero is solved before the first product, the eigenvector after it.
    assert widths[0] == 2
    assert widths[1] == 1
    assert not solution.value[2].any()
    assert solution.converged


@pytest.mark.parametrize("count", [1, 2, 4])
def test_conjugate_gradient_takes_a_step_for_each_eigenvalue(count):
    problem, layer, blocks, _ = case("softmax")
    vectors = np.linalg.eigh(problem.dense(1e-1).damped)[1]
    mixed = reference.unflat(vectors[:, -count:].sum(axis=1), problems.C)[None]
    ihvp = CGDIHVPFactory(damping=1e-1, preconditioner=None).build(layer, blocks)
    solution = ihvp.solve(mixed)
    assert solution.iterations == count
    assert solution.relative_residual < 1e-8
    # The last step that is allowed is taken, and none after it.
    assert CGDIHVPFactory(count, 1e-1, preconditioner=None).build(layer, blocks).solve(mixed).converged
    if count > 1:
        fewer = CGDIHVPFactory(count - 1, 1e-1, preconditioner=None, on_failure="warn").build(layer, blocks)
        with pytest.warns(UserWarning, match="relative residual"):
            assert fewer.solve(mixed).iterations == count - 1


@pytest.mark.parametrize("factory", [CGDIHVPFactory, LissaIHVPFactory])
def test_no_more_is_done_than_the_tolerance_asks(factory):
    layer, blocks, right = hard()
    loose, strict = (
        factory(2000, 0.1, tolerance, preconditioner=None).build(layer, blocks).solve(right)
        if factory is CGDIHVPFactory
        else factory(2000, 0.1, tolerance).build(layer, blocks).solve(right)
        for tolerance in (1e-1, 1e-8)
    )
    assert loose.converged
    assert strict.converged
    assert loose.iterations < strict.iterations
    assert 1e-4 < loose.relative_residual <= 1e-1


def test_the_batches_of_an_epoch_hold_every_row_once():
    blocks = problems.problem("softmax", weighted=True).blocks(rows=10)
    batches = lissa._Batches(blocks, 8, seed=0)
    epochs = [list(batches.epoch()) for _ in range(2)]
    rows = [[np.concatenate([part.phi for part in batch]) for batch in epoch] for epoch in epochs]
    assert [len(batch) for batch in rows[0]] == [8, 8, 8, 8, 5]
    assert [batch.n_samples for batch in epochs[0]] == [8, 8, 8, 8, 5]
    for epoch in rows:
        every = np.concatenate(epoch)
        np.testing.assert_array_equal(np.sort(every, axis=0), np.sort(blocks.whole.phi, axis=0))
    assert not np.array_equal(rows[0][0], rows[1][0])
    singles = list(lissa._Batches(blocks, 1, seed=0).epoch())
    assert [len(part.phi) for batch in singles for part in batch] == [1] * problems.N


def test_lissa_s_scale_is_just_above_the_largest_eigenvalue():
    problem, layer, blocks, _ = case("softmax")
    ihvp = LissaIHVPFactory(damping=1e-1, preconditioner=None).build(layer, blocks)
    largest = np.linalg.eigvalsh(problem.dense(1e-1).damped)[-1]
    assert largest < ihvp.scale < 1.2 * largest


@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_batches_of_right_hand_sides(solver, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    problem, layer, blocks, _ = case("softmax")
    ihvp = EVERY[solver](1e-1).build(layer, blocks)
    block = problem.block()
    r = layer.residuals(block)
    whole = ihvp.self_products(block.phi, r)
    ihvp.solve(problem.matrices())
    assert not capsys.readouterr().err  # one batch has no bar
    monkeypatch.setattr(iterative, "VECTOR_BYTES", 10 * 8 * 8 * layer.n_features * layer.n_outputs)
    assert ihvp._n_at_once() == 10
    assert "it/s" not in capsys.readouterr().err
    ihvp.progress = True
    assert_close(ihvp.self_products(block.phi, r), whole, 5e-3)
    assert "solves for samples" in capsys.readouterr().err
    assert_close(ihvp.solve(layer.gradients(block)).value, ihvp.solve(layer.gradients(block)).value, 0)
    capsys.readouterr()
    monkeypatch.undo()
    ihvp.solve(problem.matrices())
    assert not capsys.readouterr().err  # one batch has no bar, whoever asks


@pytest.mark.parametrize("solver", EVERY)
def test_a_layer_of_one_feature(solver):
    phi, target = np.asarray([[1.0], [2.0], [-1.0]]), np.asarray([[1.0], [0.0], [2.0]])
    layer = LinearLayer(np.asarray([[0.5]]), SquaredError())
    ihvp = EVERY[solver](0.5).build(layer, problems.Blocks(Block(phi, target), 2))
    # ell = (u - y)^2: H = 2 (1 + 4 + 1) / 3 = 4
    assert_close(ihvp.solve(np.full((1, 1, 1), 9.0)).value, np.full((1, 1, 1), 2.0), 5e-3)


@pytest.mark.parametrize("solver", KRONECKER)
def test_a_residual_is_not_hidden_by_right_hand_sides_that_cancel(solver):
    """It is measured on one random combination of them."""
    problem, layer, blocks, _ = case("softmax")
    matrices = problem.matrices()[:1]
    alone = EVERY[solver](1e-3).build(layer, blocks).solve(matrices).relative_residual
    both = EVERY[solver](1e-3).build(layer, blocks).solve(np.concatenate([matrices, -matrices] * 8))
    assert alone > 1e-3
    assert both.relative_residual == pytest.approx(alone)


@pytest.mark.parametrize("solver", ["exact", "kronecker"])
def test_direct_solvers_do_not_iterate(solver):
    problem, layer, blocks, _ = case("softmax")
    assert EVERY[solver](1e-3).build(layer, blocks).solve(problem.matrices()).iterations == 0


def test_self_influence_in_the_kronecker_form():
    problem, layer, blocks, _ = case("softmax")
    block = problem.block()
    r = layer.residuals(block)
    ihvp = CGDIHVPFactory(self_influence="kronecker").build(layer, blocks)
    kronecker = KroneckerIHVPFactory().build(layer, blocks)
    np.testing.assert_array_equal(ihvp.self_products(block.phi, r), kronecker.self_products(block.phi, r))
    np.testing.assert_array_equal(ihvp.leverages(block.phi), kronecker.leverages(block.phi))
    assert ihvp.about()["self_influence"] == "kronecker"


@pytest.mark.parametrize("solver", ["cg", "lissa", "kronecker"])
def test_no_matrix_of_the_hessian_s_size_is_formed(solver):
    rng = np.random.default_rng(0)
    n, d, n_outputs = 60, 200, 100
    block = Block(rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, n_outputs, n))
    layer = LinearLayer(np.zeros((d, n_outputs)), SoftmaxCrossEntropy())
    tracemalloc.start()
    ihvp = EVERY[solver](1e-1).build(layer, problems.Blocks(block, n))
    ihvp.solve(rng.normal(size=(4, d, n_outputs)))
    ihvp.self_products(block.phi[:3], layer.residuals(block)[:3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 < 4 * (d * n_outputs) ** 2


def test_float32_reaches_what_float64_does():
    """A condition number of about 1e9, at which products in float32 alone leave no digit."""
    rng = np.random.default_rng(0)
    phi = (rng.normal(size=(200, 10)) * np.logspace(0, 3, 10)).astype(np.float32)
    target = rng.normal(size=(200, 2)).astype(np.float32)
    blocks = problems.Blocks(Block(phi, target), 64)
    layer = LinearLayer(np.zeros((10, 2)), SquaredError())
    right = rng.normal(size=(3, 10, 2))
    matrix = np.kron(np.eye(2), phi.astype(float).T @ phi / 200) + 1e-3 * np.eye(20)
    for factory in (CGDIHVPFactory(tolerance=1e-8), CGDIHVPFactory(1000, preconditioner=None)):
        solution = factory.build(layer, blocks).solve(right)
        residual = matrix @ flat_rows(solution.value) - flat_rows(right)
        assert (norm(residual) <= 1.1 * factory.options.tolerance * norm(flat_rows(right))).all()


# ---- what is refused -----------------------------------------------------------------------------


def hard():
    """A layer that ten iterations do not solve."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(200, 20)) * np.logspace(0, 2, 20)
    blocks = problems.Blocks(Block(phi, rng.integers(0, 3, 200)), 200)
    return (
        LinearLayer(rng.normal(size=(20, 3)) / 100, SoftmaxCrossEntropy()),
        blocks,
        rng.normal(size=(2, 20, 3)),
    )


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda **more: CGDIHVPFactory(3, 1e-5, preconditioner=None, **more), "n_cgd_iters"),
        (lambda **more: LissaIHVPFactory(3, 1e-5, **more), "n_opt_iters"),
        (lambda **more: LissaIHVPFactory(6, 1e-5, 1e-9, batch_size=50, **more), "n_opt_iters"),
    ],
    ids=["cg", "lissa", "stochastic LiSSA"],
)
def test_not_converging(make, argument):
    layer, blocks, right = hard()
    with pytest.raises(NotConvergedError, match=rf"{argument} \(=[36]\).*Raise {argument}") as e:
        make().build(layer, blocks).solve(right)
    assert e.value.relative_residual > 1e-9
    with pytest.warns(UserWarning, match="relative residual of") as caught:
        solution = make(on_failure="warn").build(layer, blocks).solve(right)
    assert [warning.filename for warning in caught] == [__file__]
    assert not solution.converged
    assert solution.relative_residual == pytest.approx(e.value.relative_residual)
    assert np.isfinite(solution.value).all()


def test_lissa_notices_that_its_scale_is_too_small():
    layer, blocks, right = hard()
    ihvp = LissaIHVPFactory(2000).build(layer, blocks)
    found = ihvp.scale
    ihvp.scale = found / 8
    solution = ihvp.solve(right)
    assert solution.converged
    assert ihvp.scale > found / 4


@solvers
@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_indefinite(solver, damping):
    problem = problems.problem("Welsch")
    layer, blocks = problem.layer(l2=0.0, bias_l2=0.0), problem.blocks()
    dense = problem.dense(damping, l2=0.0, bias_l2=0.0)
    smallest = np.linalg.eigvalsh(dense.damped)[0]
    if smallest > 0:
        EVERY[solver](damping).build(layer, blocks)
        return
    with pytest.raises(NotPositiveDefiniteError, match=r"smallest eigenvalue of -.*gauss_newton") as e:
        EVERY[solver](damping).build(layer, blocks).solve(problem.matrices())
    if solver == "woodbury":  # it sees curvatures of samples, not the Hessian
        smallest = np.linalg.eigvalsh(dense.curvatures).min()
    assert e.value.smallest_eigenvalue == pytest.approx(smallest, rel=2e-2)


def gauss_newton(problem, damping):
    """The reference with every ``K_i`` cut off at zero."""
    dense = problem.dense(damping, l2=0.0, bias_l2=0.0)
    values, vectors = np.linalg.eigh(dense.curvatures)
    dense.__dict__["curvatures"] = np.einsum("nab,nb,ncb->nac", vectors, np.maximum(values, 0), vectors)
    del dense.__dict__["hessian"]
    return dense


@pytest.mark.parametrize("loss", ["Welsch", "Welsch, one output"])
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (ExactIHVPFactory, SOLVE),
        (CGDIHVPFactory, 1e-5),
        (lambda **more: LissaIHVPFactory(tolerance=1e-6, **more), 1e-4),
        (KroneckerIHVPFactory, None),
    ],
)
def test_gauss_newton(make, tolerance, loss):
    problem = problems.problem(loss)
    layer, blocks = problem.layer(l2=0.0, bias_l2=0.0), problem.blocks()
    ihvp = make(damping=1e-2, curvature="gauss_newton").build(layer, blocks)
    assert ihvp.about()["curvature"] == "gauss_newton"
    right = problem.matrices()
    value = ihvp.solve(right).value
    dense = gauss_newton(problem, 1e-2)
    assert np.linalg.eigvalsh(dense.hessian)[0] > -1e-12
    assert_close(flat_rows(ihvp.product(right)), dense.damped @ flat_rows(right), SOLVE)
    if tolerance is not None:
        assert_close(value, [dense.solve(matrix) for matrix in right], tolerance)


@losses
def test_gauss_newton_of_a_convex_loss_is_the_hessian(loss):
    problem, layer, blocks, _ = case(loss)
    right = problem.matrices()
    plain = ExactIHVPFactory().build(layer, blocks).solve(right).value
    assert_close(
        ExactIHVPFactory(curvature="gauss_newton").build(layer, blocks).solve(right).value, plain, SOLVE
    )


@pytest.mark.pairwise
@pytest.mark.parametrize("solver", [name for name in EVERY if name != "exact"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoids", "squared"])
def test_no_damping_and_a_singular_hessian(solver, loss):
    problem = problems.problem(loss)
    layer = problem.layer(l2=0.0, bias_l2=0.0)
    block = problem.block()
    if loss != "softmax":  # whose Hessian is singular whatever the features
        block = block._replace(phi=np.concatenate([block.phi[:, :-1], block.phi[:, :1]], axis=1))
    blocks = problems.Blocks(block, 10)
    with pytest.raises(NotPositiveDefiniteError, match=r"smallest eigenvalue of .*Pass damping > 0") as e:
        EVERY[solver](0).build(layer, blocks)
    assert abs(e.value.smallest_eigenvalue) < 1e-10


@pytest.mark.parametrize("solver", [name for name in EVERY if name not in ("exact", "woodbury")])
def test_no_damping_and_none_needed(solver):
    problem = problems.problem("sigmoids")
    layer = problem.layer(l2=0.0, bias_l2=0.0)
    ihvp = EVERY[solver](0).build(layer, problem.blocks())
    assert ihvp.solve(problem.matrices()).converged


@pytest.mark.pairwise
@solvers
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 2), (2, 3, 5), (1, 2, 5, 3)])
def test_right_hand_sides_of_the_wrong_shape(solver, shape):
    _, layer, blocks, _ = case("softmax")
    ihvp = EVERY[solver](1e-3).build(layer, blocks)
    for method in (ihvp.solve, ihvp.product):
        with pytest.raises(WhenceError, match=r"right-hand sides: expected shape \(m, 5, 3\)"):
            method(np.zeros(shape))


@solvers
def test_right_hand_sides_that_are_not_finite_or_none(solver):
    _, layer, blocks, _ = case("softmax")
    ihvp = EVERY[solver](1e-3).build(layer, blocks)
    spoiled = np.ones((1, 5, 3))
    spoiled[0, 2, 1] = np.nan
    with pytest.raises(WhenceError, match="1 NaN or infinite"):
        ihvp.solve(spoiled)
    nothing = ihvp.solve(np.zeros((0, 5, 3)))
    assert nothing.value.shape == (0, 5, 3)
    assert (nothing.converged, nothing.iterations, nothing.relative_residual) == (True, 0, 0.0)
    assert not ihvp.solve(np.zeros((1, 5, 3))).value.any()


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (CGDIHVPFactory, {"damping": -1}, "damping: expected a number >= 0, got -1"),
        (CGDIHVPFactory, {"n_cgd_iters": 0}, "n_cgd_iters: expected an integer >= 1"),
        (CGDIHVPFactory, {"n_cgd_iters": 2.5}, "n_cgd_iters: expected an integer"),
        (CGDIHVPFactory, {"tolerance": 0}, "tolerance: expected a number > 0"),
        (CGDIHVPFactory, {"tolerance": 1.0}, "tolerance: expected a number below 1, got 1.0"),
        (LissaIHVPFactory, {"tolerance": 3.0}, "tolerance: expected a number below 1, got 3.0"),
        (CGDIHVPFactory, {"preconditioner": "jacobi"}, "preconditioner: expected 'kronecker' or None"),
        (CGDIHVPFactory, {"on_failure": "ignore"}, "on_failure: expected 'raise' or 'warn'"),
        (CGDIHVPFactory, {"self_influence": "inverse"}, "self_influence: expected 'solve' or 'kronecker'"),
        (LissaIHVPFactory, {"n_opt_iters": -3}, "n_opt_iters: expected an integer >= 1"),
        (LissaIHVPFactory, {"batch_size": 0}, "batch_size: expected an integer >= 1"),
        (LissaIHVPFactory, {"tolerance": float("nan")}, "tolerance: expected a number > 0"),
        (KroneckerIHVPFactory, {"damping": float("inf")}, "damping: expected a number >= 0"),
        (
            KroneckerIHVPFactory,
            {"eigenvalues": "diagonal"},
            "eigenvalues: expected 'corrected' or 'product'",
        ),
        (KroneckerIHVPFactory, {"curvature": "fisher"}, "curvature: expected 'hessian' or 'gauss_newton'"),
        (ExactIHVPFactory, {"curvature": "ggn"}, "curvature: expected 'hessian' or 'gauss_newton'"),
    ],
)
def test_arguments(factory, arguments, message):
    with pytest.raises(WhenceError, match=message):
        factory(**arguments)


def test_the_exact_solver_names_the_one_to_take_instead():
    theta = np.broadcast_to(np.zeros(1), (2049, 1000))
    with pytest.raises(
        WhenceError, match=r"takes 9\d{4} GiB.*CGDIHVPFactory\(\).*KroneckerIHVPFactory\(\)"
    ):
        ExactIHVPFactory().build(LinearLayer(theta, SoftmaxCrossEntropy()), problems.Blocks(None, 1))
