"""Sparse rows against the dense array that they stand for; tables against what their library does."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from tolerances import FLOAT64, assert_close

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, astype, check_finite, like, namespace
from whence.arrays.sparse import SparseRows
from whence.data.tables import is_table, join_tables, row_names, table_bytes, table_rows


@pytest.fixture
def both(rng):
    matrix = rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.4)
    return SparseRows(scipy.sparse.csr_array(matrix)), matrix


COLUMN = np.arange(1.0, 8.0)[:, None]
ROW = np.arange(1.0, 6.0)[None, :]
RIGHT = np.arange(10.0).reshape(5, 2)
LEFT = np.arange(14.0).reshape(2, 7)

STAYS_SPARSE = {
    "rows": lambda phi: phi[2:5],
    "rows and all columns": lambda phi: phi[2:5, :],
    "rows and the rest": lambda phi: phi[1:, ...],
    "chosen rows": lambda phi: phi[np.asarray([3, 1, 1])],
    "scaled rows": lambda phi: phi * COLUMN,
    "scaled columns": lambda phi: phi * ROW,
    "by a number": lambda phi: 2.0 * phi,
    "divided": lambda phi: phi / COLUMN,
    "squared": lambda phi: phi**2,
    "times itself": lambda phi: phi * phi,
    "negated": lambda phi: -phi,
    "taken": lambda phi: namespace(phi).take(phi, np.asarray([4, 0]), axis=0),
    "joined": lambda phi: namespace(phi).concat([phi, phi], axis=0),
    "with a constant": lambda phi: namespace(phi).concat(
        [phi, namespace(phi).ones_like(phi[..., :1])], axis=-1
    ),
}
BECOMES_DENSE = {
    "product": lambda phi: phi @ RIGHT,
    "product from the left": lambda phi: LEFT @ phi,
    "transposed product": lambda phi: phi.T @ LEFT.T,
    "product with the transpose from the left": lambda phi: RIGHT.T @ phi.T,
    "second moment": lambda phi: phi.T @ phi,
    "similarities": lambda phi: phi @ phi.T,
    "as an array with positions": lambda phi: phi[:, None, :],
    "some columns": lambda phi: phi[:, 1:3],
    "sum": lambda phi: phi + COLUMN,
    "difference": lambda phi: COLUMN - phi,
    "sums of rows": lambda phi: namespace(phi).sum(phi, axis=1),
    "sums of columns, kept": lambda phi: namespace(phi).sum(phi, axis=0, keepdims=True),
    "sum of all": lambda phi: namespace(phi).sum(phi),
    "norms": lambda phi: namespace(phi).linalg.vector_norm(phi, axis=1),
    "reshaped": lambda phi: namespace(phi).reshape(phi, (35,)),
    "stacked product": lambda phi: namespace(phi).matmul(namespace(phi).matrix_transpose(phi), LEFT.T),
}


@pytest.mark.parametrize("operation", STAYS_SPARSE)
def test_operations_that_stay_sparse(operation, both):
    sparse, dense = both
    result = STAYS_SPARSE[operation](sparse)
    assert isinstance(result, SparseRows)
    assert_close(as_numpy(result), STAYS_SPARSE[operation](dense), FLOAT64)


@pytest.mark.parametrize("operation", BECOMES_DENSE)
def test_operations_that_become_dense(operation, both):
    sparse, dense = both
    result = BECOMES_DENSE[operation](sparse)
    assert isinstance(result, np.ndarray | np.floating)
    assert_close(result, BECOMES_DENSE[operation](dense), FLOAT64)


def test_operands_are_left_as_they_were(both):
    sparse, dense = both
    for operation in (*STAYS_SPARSE.values(), *BECOMES_DENSE.values()):
        operation(sparse)
    assert np.array_equal(as_numpy(sparse), dense)


def test_precision_kind_and_size(both):
    sparse, dense = both
    assert astype(sparse, np.float32).dtype == np.float32
    assert astype(sparse, np.float64) is sparse
    half = astype(sparse, np.float16)
    assert half.dtype == np.float32
    assert np.array_equal(as_numpy(half), dense.astype(np.float16))
    assert like(sparse, sparse) is sparse
    assert isinstance(like(dense, sparse), np.ndarray)
    assert len(sparse) == 7
    assert sparse.size == 35
    assert sparse.nbytes < dense.nbytes + 8 * 8 + 35 * 8


def test_nan_among_the_entries_is_seen(both):
    sparse, dense = both
    check_finite(sparse, "features", "batch 0", "Look.")
    dense[1, 2] = np.nan
    with pytest.raises(WhenceError, match="1 NaN"):
        check_finite(SparseRows(scipy.sparse.csr_array(dense)), "features", "batch 0", "Look.")


def test_rows_of_tables_are_told_apart_by_values_alone():
    frame = pd.DataFrame({"a": [1, 1, 2], "b": ["x", "x", None]}, index=[5, 6, 7])
    one, same, other = (bytes(row) for row in table_bytes(frame))
    assert one == same
    assert one != other
    sparse = scipy.sparse.csr_array([[0, 1.0], [0, 1.0], [1.0, 0]])
    one, same, other = (bytes(row) for row in table_bytes(sparse))
    assert one == same
    assert one != other


def test_rows_of_tables_are_cut_and_joined_as_tables():
    frame = pd.DataFrame({"a": [1, 2, 3]}, index=["p", "q", "r"])
    sparse = scipy.sparse.coo_array([[0, 1.0], [2.0, 0], [0, 3.0]])
    for table in (frame, frame["a"], sparse):
        assert is_table(table)
        parts = [table_rows(table, slice(0, 1)), table_rows(table, np.asarray([1, 2]))]
        whole = join_tables(parts)
        ours, theirs = (t.toarray() if scipy.sparse.issparse(t) else t.to_numpy() for t in (whole, table))
        assert np.array_equal(ours, theirs)
    assert table_rows(sparse, np.asarray([[0, 1], [2, 2]])).shape == (2, 2, 2)
    assert row_names((frame, np.arange(3))).tolist() == ["p", "q", "r"]
    assert row_names((np.zeros((3, 1)), np.arange(3))) is None
    assert not is_table(np.zeros(3))
