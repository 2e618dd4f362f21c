"""Inputs that are not plain arrays: pandas and polars frames, and SciPy's sparse matrices.

They pass through the library as they came, so that a pipeline finds its columns by name and a sparse
matrix stays sparse. All that the library does to them is cut rows, join, and look at bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import warn
from whence.arrays.hashing import cell_digests

__all__ = ["are_names", "is_table", "join_tables", "plain_id", "row_names", "table_bytes", "table_rows"]


def is_table(leaf: Any) -> bool:
    """Return whether ``leaf`` is a frame (or a column of one) or a sparse matrix."""
    if scipy.sparse.issparse(leaf):
        return True
    return type(leaf).__module__.split(".")[0] in ("pandas", "polars") and hasattr(leaf, "shape")


def table_rows(table: Any, rows: Any) -> Any:
    """Return rows of a table as the same kind; rows of shape ``(T, k)`` give an array ``(T, k, ...)``.

    Examples
    --------
    >>> table_rows(scipy.sparse.coo_matrix([[1.0], [2.0]]), slice(1, 2)).toarray()
    array([[2.]])
    """
    if isinstance(rows, np.ndarray) and rows.ndim > 1:
        flat = table_rows(table, rows.ravel())
        dense = flat.toarray() if scipy.sparse.issparse(flat) else np.asarray(flat)
        return dense.reshape(*rows.shape, *dense.shape[1:])
    if scipy.sparse.issparse(table):
        return table.tocsr()[rows]
    return table.iloc[rows] if hasattr(table, "iloc") else table[rows]


def join_tables(parts: Sequence[Any]) -> Any:
    """Join tables of one kind along their rows."""
    if scipy.sparse.issparse(parts[0]):
        return scipy.sparse.vstack(parts, format="csr")
    if hasattr(parts[0], "iloc"):
        import pandas  # the parts are its own

        return pandas.concat(list(parts))
    polars = importlib.import_module("polars")
    return polars.concat(list(parts))


def table_bytes(table: Any) -> np.ndarray:
    """Return a digest of each row, shape ``(n, 16)``, ``uint8``: over values, not over row names."""
    if scipy.sparse.issparse(table):
        table = table.tocsr()
        ends = table.indptr
        rows = [
            table.indices[a:b].tobytes() + table.data[a:b].tobytes() for a, b in itertools.pairwise(ends)
        ]
        digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
        return np.frombuffer(digests, dtype=np.uint8).reshape(len(rows), 16)
    # Cells tell 1 from 1.0 and from "1"; NaN and missing values have one form each.
    return cell_digests(np.asarray(table, dtype=object))


def row_names(dataset: Any, argument: str = "dataset") -> np.ndarray | None:
    """Return the index of the pandas frame that stands first in a tuple ``(x, y)``, or None.

    An index that cannot name samples, such as of times or with equal names, is left aside, with a warning:
    positions are the ids then.
    """
    if not isinstance(dataset, tuple) or not dataset:
        return None
    inputs = dataset[0]
    if type(inputs).__module__.split(".")[0] != "pandas" or not hasattr(inputs, "index"):
        return None
    names = inputs.index.tolist()
    if not are_names(names):
        found = f"{type(inputs.index).__name__} of {inputs.index.dtype}"
    elif len(set(names)) < len(names):
        found = "index with equal names"
    else:
        return np.asarray(names)
    warn(
        f"{argument}: the frame's {found} cannot name its rows, so their positions, from 0 on, are the ids."
    )
    return None


def are_names(names: Sequence[Any]) -> bool:
    """Return whether the names of a frame's rows are all texts, or all integers.

    Examples
    --------
    >>> are_names(["a", "b"]), are_names([3, 4]), are_names([0.5, 1.0]), are_names(["a", 1])
    (True, True, False, False)
    """
    return all(isinstance(name, str) for name in names) or all(type(name) is int for name in names)


def plain_id(sample_id: Any) -> Any:
    """Return an id as the user would write it, to look it up."""
    return getattr(sample_id, "tolist", lambda: sample_id)()
