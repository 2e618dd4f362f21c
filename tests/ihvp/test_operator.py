"""The damped Hessian as a function, and what it tells of its spectrum, against dense linear algebra."""

import numpy as np
import problems
import pytest

from whence import CGDIHVPFactory, NotPositiveDefiniteError
from whence.ihvp import operator
from whence.ihvp.operator import DampedHessian, second_moment
from whence.layers.linear_layer import Block


def symmetric(eigenvalues, rng):
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return (q * eigenvalues) @ q.T


def test_a_short_lanczos_run_finds_the_least_eigenvalue(rng):
    matrix = symmetric(np.concatenate([[-3.0, -1.0], np.linspace(0.5, 1.5, 58)]), rng)
    least = DampedHessian._least_ritz_value(matrix.__matmul__, rng.normal(size=60), 25)
    assert least == pytest.approx(-3.0, rel=1e-6)
    early = DampedHessian._least_ritz_value(matrix.__matmul__, rng.normal(size=60), 3)
    assert -3.0 < early < 0.5  # an upper bound


def test_a_lanczos_run_ends_where_its_space_does(rng):
    """Three different eigenvalues: after three steps there is no further direction."""
    matrix = symmetric(np.repeat([-2.0, 1.0, 4.0], 5), rng)
    calls = []

    def product(vector):
        calls.append(1)
        return matrix @ vector

    least = DampedHessian._least_ritz_value(product, rng.normal(size=15), 12)
    assert least == pytest.approx(-2.0, rel=1e-9)
    assert len(calls) == 3


def test_the_second_moment_of_samples_that_count_nothing_is_zero(rng):
    phi = rng.normal(size=(6, 3))
    moment, weights = second_moment(problems.Blocks(Block(phi, np.zeros(6), np.zeros(6)), 4))
    assert weights == 0.0
    assert np.array_equal(moment, np.zeros((3, 3)))


def test_a_direction_that_bends_down_is_named_with_how_far(monkeypatch):
    """What conjugate gradient runs into where the spectrum did not show it: the Rayleigh quotient."""
    problem = problems.problem("Welsch")
    layer, blocks = problem.layer(l2=0.0, bias_l2=0.0), problem.blocks()
    monkeypatch.setattr(operator.DampedHessian, "may_be_indefinite", False)
    dense = problem.dense(1e-3, l2=0.0, bias_l2=0.0).damped
    values, vectors = np.linalg.eigh(dense)
    assert values[0] < 0 < values[-1]
    # Along both ends at once it bends upwards, and the next direction does not.
    search = residual = vectors[:, 0] + 3 * vectors[:, -1]
    step = (residual @ residual) / (search @ dense @ search)
    assert step > 0
    before, residual = residual, residual - step * dense @ search
    search = residual + (residual @ residual) / (before @ before) * search
    quotient = (search @ dense @ search) / (search @ search)
    assert quotient < 0
    right = before.reshape(layer.n_outputs, layer.n_features).T[None]
    solver = CGDIHVPFactory(damping=1e-3, preconditioner=None).build(layer, blocks)
    with pytest.raises(NotPositiveDefiniteError, match="Raise the damping") as e:
        solver.solve(right)
    assert e.value.smallest_eigenvalue == pytest.approx(quotient, rel=1e-5)
