"""Solvers of several layers, against the matrix of all weights written out."""

import numpy as np
import pytest
import tolerances

from whence import NotPositiveDefiniteError, WhenceError
from whence.ihvp import dual
from whence.ihvp.conjugate_gradient import RowsDescent
from whence.ihvp.dual import BlocksIHVP, DualIHVP, PrimalIHVP, exact_solver
from whence.ihvp.iterative import Options
from whence.ihvp.rows import CurvatureRows, as_vectors, from_vectors
from whence.ihvp.rows_cg import CGDRows
from whence.ihvp.rows_kronecker import KroneckerRows
from whence.layers.rows import Factors, Matrices, Rows, Tokens

N, M, DAMPING = 11, 17, 0.3


def rows_of(n, seed):
    rng = np.random.default_rng(seed)
    normal = rng.normal
    return Rows(
        {
            "dense": (Factors(normal(size=(n, 1, 1, 4)), normal(size=(n, 1, 1, 3))),),
            "conv": (Factors(normal(size=(n, 2, 3, 4)), normal(size=(n, 2, 3, 2))),),
            "embedding": (Tokens(rng.integers(0, 5, size=(n, 6)), normal(size=(n, 6, 2)), 5),),
            "scales": (Matrices(normal(size=(n, 3, 2, 1))),),
        }
    )


def system(n_rows=M):
    z = rows_of(n_rows, 0)
    l2 = {name: np.linspace(0.1, 0.2, shape[1]) for name, shape in z.shapes.items()}
    return CurvatureRows(z, N, l2)


def matrix(of, damping=DAMPING, apart=False):
    z = as_vectors(of.rows)
    result = z.T @ z / of.n_samples
    lam, owner = [], []
    for number, (name, (g, d, c)) in enumerate(of.rows.shapes.items()):
        lam += [of.l2[name][a] + damping for _ in range(g) for a in range(d) for _ in range(c)]
        owner += [number] * (g * d * c)
    if apart:
        result *= np.equal.outer(owner, owner)
    return result + np.diag(lam)


def options(**changed):
    return Options(
        DAMPING, 1e-10, 200, changed.get("preconditioner", "kronecker"), "solve", "hessian", "raise"
    )


SOLVERS = {
    "dual": lambda of: DualIHVP(of, DAMPING),
    "primal": lambda of: PrimalIHVP(of, DAMPING),
    "cg": lambda of: CGDRows(of, options(), RowsDescent),
    "plain cg": lambda of: CGDRows(of, options(preconditioner=None), RowsDescent),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_are_those_of_the_matrix_of_all_weights(name):
    of = system()
    solver, right = SOLVERS[name](of), rows_of(5, 1)
    expected = np.linalg.solve(matrix(of), as_vectors(right).T).T
    tolerances.assert_close(as_vectors(solver.solve_rows(right)), expected, tolerances.SOLVE)
    left = rows_of(5, 2)
    both = (as_vectors(left) * expected).sum(axis=1)
    tolerances.assert_close(solver.inner_products(left, right), both, tolerances.SOLVE)
    vectors = as_vectors(right)[:, :, None]
    solution = solver.solve(vectors)
    tolerances.assert_close(solution.value[:, :, 0], expected, tolerances.SOLVE)
    assert solution.relative_residual < 1e-9
    tolerances.assert_close(
        solver.product(vectors)[:, :, 0], as_vectors(right) @ matrix(of), tolerances.FLOAT64
    )
    about = solver.about()
    assert about["n_curvature_rows"] == M
    assert about["curvature_kept"] == 1
    assert about["curvature"] == "gauss_newton"


def test_layers_apart_leave_out_what_stands_between_them():
    of, right = system(), rows_of(5, 1)
    solver = exact_solver(of, DAMPING, "apart")
    expected = np.linalg.solve(matrix(of, apart=True), as_vectors(right).T).T
    tolerances.assert_close(as_vectors(solver.solve_rows(right)), expected, tolerances.SOLVE)
    both = (as_vectors(right) * expected).sum(axis=1)
    tolerances.assert_close(solver.inner_products(right, right), both, tolerances.SOLVE)
    assert solver.forms == {"dense": "primal", "conv": "primal", "embedding": "primal", "scales": "primal"}
    assert solver.relative_residual > 0.01  # of the matrix of all layers together


def test_the_smaller_form_is_taken_and_neither_if_none_fits(monkeypatch):
    few, many = system(5), system(100)
    assert isinstance(exact_solver(few, DAMPING), DualIHVP)
    assert isinstance(exact_solver(many, DAMPING), PrimalIHVP)
    assert isinstance(exact_solver(few, DAMPING, "apart"), BlocksIHVP)
    monkeypatch.setattr(dual, "memory_bytes", lambda: 16 * 5**2)
    with pytest.raises(WhenceError, match=r"5 curvature rows, whose kernel takes 0.0 GiB, and 44 weights"):
        exact_solver(few, DAMPING)


def test_without_damping_or_l2_the_pseudo_inverse_is_taken():
    of = system()
    bare = CurvatureRows(of.rows, N, {name: 0 * l2 for name, l2 in of.l2.items()})
    z, right = as_vectors(bare.rows), bare.rows[:4]
    solver = exact_solver(bare, 0.0)
    expected = as_vectors(right) @ np.linalg.pinv(z.T @ z / N, hermitian=True)
    tolerances.assert_close(as_vectors(solver.solve_rows(right)), expected, tolerances.SOLVE)
    with pytest.raises(NotPositiveDefiniteError, match="damping"):
        DualIHVP(bare, 0.0)


def test_the_kronecker_form_has_the_diagonal_of_the_matrix_in_its_basis():
    of = system()
    solver, right = KroneckerRows(of, DAMPING), rows_of(3, 1)
    for name, basis in solver.bases.items():
        g, d, c = of.rows.shapes[name]
        z = as_vectors(of.only([name]).rows).reshape(M, g, d, c)
        w = np.eye(d)[None] if basis.inputs is None else basis.inputs
        turned = np.einsum("gda,mgdc,gcb->mgab", np.broadcast_to(w, (g, d, d)), z, basis.outputs)
        lam = np.einsum("gda,d->ga", np.broadcast_to(w, (g, d, d)) ** 2, of.l2[name] + DAMPING)
        diagonal = (turned**2).sum(axis=0) / N + lam[:, :, None]
        tolerances.assert_close(basis.eigenvalues + lam[:, :, None], diagonal, tolerances.FLOAT64)
        b = as_vectors(right.only([name])).reshape(3, g, d, c)
        inside = np.einsum("gda,mgdc,gcb->mgab", np.broadcast_to(w, (g, d, d)), b, basis.outputs) / diagonal
        expected = np.einsum("gda,mgab,gcb->mgdc", np.broadcast_to(w, (g, d, d)), inside, basis.outputs)
        got = solver.solve_rows(right).matrices(name)
        tolerances.assert_close(got, expected, tolerances.FLOAT64)
    assert 0 < solver.relative_residual < 1


def test_preconditioning_saves_iterations():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(200, 1, 1, 30)) * np.logspace(0, -2, 30)
    z = Rows({"dense": (Factors(left, rng.normal(size=(200, 1, 1, 3))),)})
    of = CurvatureRows(z, 200, {"dense": np.full(30, -DAMPING + 1e-5)})
    right = rng.normal(size=(2, 90, 1))
    taken = []
    for preconditioner in ("kronecker", None):
        loose = options(preconditioner=preconditioner)._replace(tolerance=1e-3, max_iterations=5000)
        taken.append(CGDRows(of, loose, RowsDescent)._descent.solve(right).iterations)
    assert taken[0] < taken[1] / 2


def test_vectors_go_back_to_the_layers():
    rows = rows_of(3, 0)
    back = from_vectors(as_vectors(rows), rows)
    assert all(np.array_equal(back.matrices(name), rows.matrices(name)) for name in rows.layers)


def test_right_hand_sides_of_another_shape_are_refused():
    with pytest.raises(WhenceError, match=r"shape \(m, 44, 1\)"):
        DualIHVP(system(), DAMPING).solve(np.zeros((2, 3)))
