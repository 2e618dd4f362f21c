"""Features of which few are not zero, as another kind of array.

:class:`SparseRows` holds a compressed matrix of SciPy's and does what the mathematics does to features:
products with dense matrices, cutting and joining rows, scaling them. It has a namespace of its own, so that
``namespace(phi)`` finds it like that of any library; whatever else is asked of it is computed on a dense
copy. Blocks of features are small (see ``index.SHARD_BYTES``), so that such a copy is too.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as dense_namespace
import numpy as np
import scipy.sparse

__all__ = ["SparseRows", "dense"]


class SparseRows:
    """A matrix ``(n, d)`` in compressed rows.

    Parameters
    ----------
    matrix : scipy.sparse matrix or array of shape (n, d)

    Examples
    --------
    >>> phi = SparseRows(scipy.sparse.csr_array([[0.0, 2.0], [1.0, 0.0]]))
    >>> phi @ np.asarray([[10.0], [100.0]])
    array([[200.],
           [ 10.]])
    >>> phi.T @ (phi * np.asarray([[1.0], [3.0]]))
    array([[3., 0.],
           [0., 4.]])
    """

    ndim = 2
    device = "cpu"
    __array_ufunc__ = None  # NumPy's operators leave their work to those below

    def __init__(self, matrix: Any) -> None:
        self.matrix = _narrow(scipy.sparse.csr_array(matrix))

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the entries."""
        return self.matrix.dtype

    @property
    def size(self) -> int:
        """How many entries there are, zeros included."""
        return int(self.shape[0]) * int(self.shape[1])

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.matrix.data.nbytes + self.matrix.indices.nbytes + self.matrix.indptr.nbytes

    @property
    def T(self) -> _Transposed:
        """The transpose, for products only."""
        return _Transposed(self)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.matrix.toarray() if dtype is None else self.matrix.toarray().astype(dtype, copy=False)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> Any:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        is_whole = all(part is Ellipsis or part == slice(None) for part in rest if part is not None)
        if is_whole and None not in rest and (isinstance(rows, slice) or _is_index(rows)):
            return SparseRows(self.matrix[rows])
        return np.asarray(self)[key]

    def __matmul__(self, other: Any) -> np.ndarray:
        if isinstance(other, _Transposed):
            return (self.matrix @ other.rows.matrix.T).toarray()
        return self.matrix @ np.asarray(other)

    def __rmatmul__(self, other: Any) -> np.ndarray:
        return (self.matrix.T @ np.asarray(other).T).T

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, SparseRows):
            return SparseRows(self.matrix.multiply(other.matrix))
        factor = np.asarray(other)
        if factor.ndim == 0 or factor.shape == (self.shape[0], 1):
            product = self.matrix.copy()
            factors = np.broadcast_to(factor.reshape(-1), (self.shape[0],))
            product.data = product.data * np.repeat(factors, np.diff(product.indptr))
            return SparseRows(product)
        if factor.shape in ((1, self.shape[1]), (self.shape[1],)):
            product = self.matrix.copy()
            product.data = product.data * factor.reshape(-1)[product.indices]
            return SparseRows(product)
        return np.asarray(self) * factor

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self * (1 / np.asarray(other))

    def __pow__(self, exponent: Any) -> Any:
        if exponent > 0:
            product = self.matrix.copy()
            product.data = product.data**exponent
            return SparseRows(product)
        return np.asarray(self) ** exponent

    def __add__(self, other: Any) -> np.ndarray:
        return np.asarray(self) + np.asarray(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> np.ndarray:
        return np.asarray(self) - np.asarray(other)

    def __rsub__(self, other: Any) -> np.ndarray:
        return np.asarray(other) - np.asarray(self)

    def __neg__(self) -> SparseRows:
        return SparseRows(-self.matrix)

    def astype(self, dtype: Any, copy: bool = True) -> SparseRows:
        """Return the same entries in another dtype.

        SciPy has no half precision: entries are rounded to it and held in single.
        """
        if self.dtype == dtype and not copy:
            return self
        if np.dtype(dtype) == np.float16:
            halved = self.matrix.astype(np.float32)
            halved.data = halved.data.astype(np.float16).astype(np.float32)
            return SparseRows(halved)
        return SparseRows(self.matrix.astype(dtype))


class _Transposed:
    """The transpose of sparse rows: products with what stands to its right."""

    ndim = 2
    __array_ufunc__ = None

    def __init__(self, rows: SparseRows) -> None:
        self.rows = rows
        self.dtype = rows.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """``(d, n)``."""
        return self.rows.shape[1], self.rows.shape[0]

    @property
    def T(self) -> SparseRows:
        """The rows themselves."""
        return self.rows

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.rows, dtype=dtype).T

    def __matmul__(self, other: Any) -> np.ndarray:
        if isinstance(other, SparseRows):
            return (self.rows.matrix.T @ other.matrix).toarray()
        return self.rows.matrix.T @ np.asarray(other)

    def __rmatmul__(self, other: Any) -> np.ndarray:
        return (self.rows.matrix @ np.asarray(other).T).T


def _narrow(matrix: Any) -> Any:
    """Return a matrix with the integers of half the size, where it does not need the larger ones."""
    largest = max(matrix.shape[1], matrix.nnz)
    if matrix.indices.dtype == np.int32 or largest > np.iinfo(np.int32).max:
        return matrix
    parts = matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return scipy.sparse.csr_array(parts, shape=matrix.shape)


def _is_index(rows: Any) -> bool:
    return isinstance(rows, np.ndarray) and rows.ndim == 1


def dense(array: Any) -> Any:
    """Return sparse rows as a NumPy array, anything else as it is."""
    return np.asarray(array) if isinstance(array, SparseRows | _Transposed) else array


class _Namespace:
    """NumPy's namespace, in which what can stay sparse does, and all else is made dense first."""

    __name__ = "whence.arrays.sparse"

    def __getattr__(self, name: str) -> Any:
        found = getattr(dense_namespace, name)
        if isinstance(found, type) or not callable(found):
            return _LinearAlgebra() if name == "linalg" else found

        def on_dense(*args: Any, **options: Any) -> Any:
            return found(*map(dense, args), **options)

        return on_dense

    @staticmethod
    def astype(array: Any, dtype: Any, copy: bool = True, **_: Any) -> Any:
        return array.astype(dtype, copy=copy)

    @staticmethod
    def concat(arrays: Any, axis: int = 0) -> Any:
        parts = list(arrays)
        if not any(isinstance(part, SparseRows) for part in parts):
            return np.concatenate(parts, axis=axis)
        matrices = [p.matrix if isinstance(p, SparseRows) else scipy.sparse.csr_array(p) for p in parts]
        join = scipy.sparse.vstack if axis == 0 else scipy.sparse.hstack
        return SparseRows(join(matrices, format="csr"))

    @staticmethod
    def take(array: Any, indices: Any, axis: int = 0) -> Any:
        if isinstance(array, SparseRows) and axis == 0:
            return SparseRows(array.matrix[np.asarray(indices)])
        return np.take(dense(array), indices, axis=axis)

    @staticmethod
    def matrix_transpose(array: Any) -> Any:
        return array.T if isinstance(array, SparseRows) else np.swapaxes(array, -1, -2)

    @staticmethod
    def matmul(left: Any, right: Any) -> Any:
        return left @ right

    @staticmethod
    def isfinite(array: Any) -> Any:
        """Entries that are not stored are zero: only the others are looked at, in an array of their own."""
        return np.isfinite(array.matrix.data if isinstance(array, SparseRows) else array)

    @staticmethod
    def sum(array: Any, axis: Any = None, keepdims: bool = False, **options: Any) -> Any:
        if isinstance(array, SparseRows) and axis in (0, 1) and not options:
            total = np.asarray(array.matrix.sum(axis=axis)).reshape(-1)
            return np.expand_dims(total, axis) if keepdims else total
        return dense_namespace.sum(dense(array), axis=axis, keepdims=keepdims, **options)


class _LinearAlgebra:
    """Linear algebra on dense copies."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(dense_namespace.linalg, name)
        return lambda *args, **options: found(*map(dense, args), **options)


NAMESPACE = _Namespace()
