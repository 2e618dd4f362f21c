"""How the arrays of a shard lie in files: one each, or three for sparse features, in compressed rows.

::

    features-00000.npy                                dense
    features-data-00000.npy, -indices-, -indptr-      sparse: SciPy's three arrays, columns ascending
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from whence.arrays.base import as_numpy
from whence.arrays.sparse import SparseRows
from whence.index.shard import Shard

__all__ = ["array_of", "arrays_of", "misfit"]

#: The arrays of a shard.
ARRAYS = ("features", "target", "weight", "fingerprint")
#: What sparse features consist of.
PARTS = ("data", "indices", "indptr")


def arrays_of(shard: Shard, feature_dtype: str) -> dict[str, np.ndarray]:
    """Return what is written of a shard, by the names of the files.

    Parameters
    ----------
    shard : Shard
    feature_dtype : str
        What entries of sparse features are written as: in memory they are never in half precision.

    Examples
    --------
    >>> rows = SparseRows(scipy.sparse.csr_array([[0.0, 2.0], [3.0, 0.0]]))
    >>> arrays = arrays_of(Shard(rows, np.zeros(2), None, np.zeros(2, dtype=np.uint64)), "float16")
    >>> [arrays[f"features-{part}"].tolist() for part in PARTS]
    [[2.0, 3.0], [1, 0], [0, 1, 2]]
    >>> arrays["features-data"].dtype
    dtype('float16')
    """
    arrays = {name: getattr(shard, name) for name in ARRAYS}
    if isinstance(shard.features, SparseRows):
        arrays.pop("features")
        arrays = _parts(shard.features.matrix, feature_dtype) | arrays
    return {name: as_numpy(array) for name, array in arrays.items() if array is not None}


def _parts(matrix: Any, dtype: str) -> dict[str, np.ndarray]:
    if not matrix.has_canonical_format:  # one form for equal rows, and nothing left to sort in a map
        matrix = matrix.copy()
        matrix.sum_duplicates()
    # Their own integers depend on how many entries there were before the rows were cut: these do not. A
    # shard's entries are no more than its bytes, or those of one row.
    width = np.int32 if matrix.shape[1] <= np.iinfo(np.int32).max else np.int64
    kinds = {"data": dtype, "indices": width, "indptr": width}
    return {f"features-{part}": getattr(matrix, part).astype(kinds[part], copy=False) for part in PARTS}


def array_of(name: str, record: Mapping[str, Any], open_file: Callable[[dict[str, Any]], Any]) -> Any:
    """Return one array of a shard by its record, or None; ``open_file(stamp)`` opens each file."""
    files = record["files"]
    if name in files:
        return open_file(files[name])
    if name != "features":
        return None
    parts = {part: open_file(files[f"features-{part}"]) for part in PARTS}
    return _sparse(**parts, n_features=record["n_features"])


def _sparse(*, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_features: int) -> SparseRows:
    if data.dtype == np.float16:  # for storing only: SciPy has no half precision
        data = data.astype(np.float32)
    matrix = scipy.sparse.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_features))
    matrix.has_canonical_format = True  # as written; nothing is sorted in place, the files are read-only
    return SparseRows(matrix)


def misfit(name: str, array: Any, record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the shape and kind of an array of a shard, or None.

    Of sparse features the columns too: products would read wherever they lead.
    """
    n_samples, n_features = record["n_samples"], record["n_features"]
    if array is None:
        return None if name == "weight" else f"{name} that are missing"
    shape, kind = tuple(array.shape), array.dtype.kind
    fits = {
        "features": len(shape) in (2, 3) and shape[-1] == n_features and kind == "f",
        "target": len(shape) > 0 and kind in "biuf",
        "weight": len(shape) in (1, 2) and kind == "f",
        "fingerprint": len(shape) == 1 and array.dtype == np.uint64,
    }
    if not fits[name] or shape[0] != n_samples:
        return f"{name} of {n_samples} samples of shape {shape} and dtype {array.dtype}"
    if isinstance(array, SparseRows) and not _is_inside(array.matrix):
        return "sparse features with entries outside"
    return None


def _is_inside(matrix: Any) -> bool:
    indices, ends = matrix.indices, matrix.indptr
    if not (np.diff(ends) >= 0).all():
        return False
    return not indices.size or bool(indices.min() >= 0 and indices.max() < matrix.shape[1])
