"""Symmetric matrices: updates, factors and inverses, in every library of arrays."""

import numpy as np
import pytest
from tolerances import FLOAT32, FLOAT64, SOLVE, assert_close

from whence.arrays import symmetric as _linalg
from whence.arrays.base import as_numpy
from whence.arrays.symmetric import cholesky, rank_k_update


def positive_definite(size, rng):
    root = rng.normal(size=(size, size))
    return root @ root.T + np.eye(size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rank_k_updates_sum_up_in_the_lower_triangle(dtype, xp, rng):
    first, second = rng.normal(size=(5, 4)).astype(dtype), rng.normal(size=(3, 4)).astype(dtype)
    total = rank_k_update(None, xp.asarray(first), 0.5)
    total = rank_k_update(total, xp.asarray(second), -2.0)
    assert as_numpy(total).dtype == np.dtype(dtype)
    expected = 0.5 * first.astype(float).T @ first - 2.0 * second.astype(float).T @ second
    tolerance = {"float32": FLOAT32, "float64": FLOAT64}[dtype]
    assert_close(np.tril(as_numpy(total)), np.tril(expected), tolerance)


def test_rank_k_updates_of_numpy_are_in_place_and_leave_the_rows(rng):
    rows = rng.normal(size=(5, 4))
    before = rows.copy()
    total = rank_k_update(None, rows, 1.0)
    assert rank_k_update(total, rows, 1.0) is total
    np.testing.assert_array_equal(rows, before)
    # Rows in the other order of memory, of which BLAS would take a copy.
    assert_close(
        np.tril(rank_k_update(None, np.asfortranarray(rows), 1.0)), np.tril(rows.T @ rows), FLOAT64
    )


def test_cholesky_solves_and_inverts(xp, rng):
    matrix = positive_definite(6, rng)
    right = rng.normal(size=(6, 2))
    lower_only = np.tril(matrix) + np.triu(np.full((6, 6), np.nan), 1)  # the upper one is never read
    factor = cholesky(xp.asarray(lower_only if xp is np else matrix))
    assert_close(as_numpy(factor.solve(xp.asarray(right))), np.linalg.solve(matrix, right), SOLVE)
    assert_close(as_numpy(factor.inverse()), np.linalg.inv(matrix), SOLVE)
    assert factor.inverse() is factor.inverse()
    assert_close(as_numpy(factor.solve(xp.asarray(right))), np.linalg.solve(matrix, right), SOLVE)


def test_the_upper_triangle_is_not_read(xp, rng):
    matrix = positive_definite(4, rng)
    other = np.tril(matrix) + 7 * np.triu(np.ones((4, 4)), 1)
    right = np.eye(4)
    solved = as_numpy(cholesky(xp.asarray(other)).solve(xp.asarray(right)))
    assert_close(solved, np.linalg.inv(matrix), SOLVE)


@pytest.mark.parametrize("matrix", [[[1.0, 0], [0, -1]], [[1.0, 1], [1, 1 - 1e-9]]])
def test_cholesky_refuses_what_is_not_positive_definite(matrix, xp):
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(xp.asarray(matrix, dtype=xp.float64))


def test_the_inverse_of_a_matrix_of_several_tiles_is_symmetric(rng):
    size = 1100  # more than two tiles of the mirrored triangle, the last one ragged
    matrix = positive_definite(size, rng) / size
    inverse = cholesky(matrix.copy(order="F")).inverse()
    np.testing.assert_array_equal(inverse, inverse.T)
    assert np.abs(inverse @ matrix - np.eye(size)).max() < SOLVE


def test_mirrored_tiles():
    full = np.arange(25.0).reshape(5, 5)
    expected = np.tril(full) + np.tril(full, -1).T
    for block in (1, 2, 3, 5, 9):
        matrix = full.copy()
        _linalg._mirror_lower(matrix, block)
        np.testing.assert_array_equal(matrix, expected)
