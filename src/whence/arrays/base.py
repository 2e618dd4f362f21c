"""Arrays of any framework, as the mathematics sees them.

Everything above this file is written against the array API standard and works on NumPy arrays,
torch tensors and JAX arrays alike. Here stands what the standard leaves out: finding the namespace,
moving to NumPy, checking, and the three linear-algebra kernels for which LAPACK on NumPy arrays is
worth a path of its own.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from whence._errors import MissingExtraError, WhenceError
from whence.arrays.sparse import SparseRows

__all__ = [
    "Array",
    "as_array",
    "as_numpy",
    "assign",
    "astype",
    "check_finite",
    "check_number",
    "check_seed",
    "import_extra",
    "itemsize",
    "like",
    "namespace",
    "one_hot",
    "row_slices",
    "rows_at_once",
]

Array = Any
"""An array of NumPy, torch, JAX, or any library that follows the array API standard."""


def namespace(*arrays: Array) -> ModuleType:
    """Return the array API namespace that all ``arrays`` belong to.

    Examples
    --------
    >>> namespace(np.zeros(2)).__name__
    'array_api_compat.numpy'
    """
    given = [a for a in arrays if a is not None]
    xp = array_api_compat.array_namespace(*given)
    if array_api_compat.is_torch_namespace(xp):
        return _torch_on(array_api_compat.device(given[0]))
    return xp


class _TorchOnDevice(ModuleType):
    """PyTorch's namespace, in which new arrays are made on the device of those that led to it."""

    def __init__(self, xp: ModuleType, device: Any) -> None:
        super().__init__(xp.__name__)
        self._xp = xp
        for name in ("arange", "empty", "eye", "full", "linspace", "ones", "zeros"):
            setattr(self, name, functools.partial(getattr(xp, name), device=device))

        def asarray(values: Any, **options: Any) -> Any:
            if isinstance(values, np.ndarray) and not values.flags.writeable:
                values = values.copy()  # torch would warn that it cannot keep it from being written
            return xp.asarray(values, **{"device": device, **options})

        self.asarray = asarray

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)


@functools.lru_cache(maxsize=16)
def _torch_on(device: Any) -> ModuleType:
    return _TorchOnDevice(importlib.import_module("array_api_compat.torch"), device)


def like(array: Array, reference: Array) -> Array:
    """Return ``array`` in the library and on the device of ``reference``, with its own dtype.

    Examples
    --------
    >>> like(np.asarray([1, 2]), np.zeros(1))
    array([1, 2])
    """
    if isinstance(reference, np.ndarray):
        return as_numpy(array)
    if isinstance(reference, SparseRows):
        return array if isinstance(array, SparseRows) else as_numpy(array)
    xp = namespace(reference)
    if isinstance(array, np.ndarray):
        return xp.asarray(array)
    return array_api_compat.to_device(array, array_api_compat.device(reference))


def as_numpy(array: Any) -> np.ndarray:
    """Return ``array`` as a NumPy array, without a copy where its memory can be viewed.

    TensorFlow's eager CPU tensors and torch's CPU tensors are viewed; others are copied to the host.
    """
    if isinstance(array, np.ndarray):
        return array
    detach = getattr(array, "detach", None)
    if detach is not None:  # a torch tensor, perhaps with a gradient, perhaps on a device
        array = detach().cpu()
        if str(array.dtype) == "torch.bfloat16":  # NumPy has no bfloat16
            array = array.float()
    result = np.asarray(array)
    if result.dtype.name == "bfloat16":
        result = result.astype(np.float32)
    return result


def astype(array: Array, dtype: Any) -> Array:
    """Return ``array`` with ``dtype``, itself if it already has it."""
    return namespace(array).astype(array, dtype, copy=False)


def assign(array: Array, index: Any, value: Any) -> Array:
    """Return ``array`` with ``array[index] = value``, in place where arrays can be changed.

    Examples
    --------
    >>> assign(np.zeros(2), -1, 3.0)
    array([0., 3.])
    """
    if array_api_compat.is_jax_array(array):
        return array.at[index].set(value)
    array[index] = value
    return array


def itemsize(array: Array) -> int:
    """Return the bytes of one element of a floating-point ``array``."""
    return int(namespace(array).finfo(array.dtype).bits) // 8


def one_hot(labels: Array, n_classes: int, dtype: Any) -> Array:
    """Return the ``(n, n_classes)`` indicator rows of integer ``labels (n,)``.

    Examples
    --------
    >>> one_hot(np.asarray([1, 0]), 2, np.float64)
    array([[0., 1.],
           [1., 0.]])
    """
    xp = namespace(labels)
    classes = xp.arange(n_classes, dtype=labels.dtype, device=array_api_compat.device(labels))
    return xp.astype(labels[:, None] == classes[None, :], dtype)


def check_finite(array: Array, what: str, where: str, fix: str) -> None:
    """Raise if ``array`` holds NaN or infinity.

    Parameters
    ----------
    array : array
        Any shape; integer arrays pass.
    what, where : str
        What the array is and which batch it came from, for the message.
    fix : str
        What the user should do.

    Raises
    ------
    WhenceError
        If a value is NaN or infinite.
    """
    xp = namespace(array)
    if not xp.isdtype(array.dtype, ("real floating", "complex floating")):
        return
    if bool(xp.all(xp.isfinite(array))):
        return
    n_bad = int(xp.sum(xp.astype(~xp.isfinite(array), xp.int64)))
    raise WhenceError(what, f"finite values in {where}", f"{n_bad} NaN or infinite values", fix)


def check_number(
    value: Any, argument: str, *, minimum: float = 0.0, strictly: bool = False, integer: bool = False
) -> None:
    """Raise unless ``value`` is a finite number ``>= minimum`` (``> minimum`` if ``strictly``).

    Examples
    --------
    >>> check_number(-1, "damping")
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: damping: expected a number >= 0, got -1. Pass a value in that range.
    """
    kinds: tuple[type, ...] = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if is_number and _is_finite(value) and (value > minimum if strictly else value >= minimum):
        return
    noun = "an integer" if integer else "a number"
    sign = ">" if strictly else ">="
    raise WhenceError(argument, f"{noun} {sign} {minimum:g}", repr(value), "Pass a value in that range.")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no floating-point number can hold
        return False


def check_seed(value: Any) -> None:
    """Raise unless ``value`` seeds random numbers, the same in every run."""
    check_number(value, "seed", integer=True)


def as_array(values: Any, argument: str, expected: str, fix: str) -> np.ndarray:
    """Return what a user gave as an array, or say what was expected of nested lists of unequal length.

    Examples
    --------
    >>> as_array([[1], [2, 3]], "groups", "one integer a sample", "Give them in order.")
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: groups: expected one integer a sample, got lists of unequal length. Give
    them in order.
    """
    try:
        return np.asarray(values)
    except ValueError:
        raise WhenceError(argument, expected, "lists of unequal length", fix) from None


#: Bytes that a temporary of blockwise work may take.
WORKSPACE_BYTES = 16 * 2**20

#: Bytes that stay in a processor's cache, so that a temporary costs no traffic with memory.
CACHE_BYTES = 2 * 2**20

#: Rows from which on a matrix product is as fast as with any more.
ENOUGH_ROWS = 512


def rows_at_once(row_bytes: int) -> int:
    """Return how many rows of a temporary to make at once: fast for BLAS, bounded in memory.

    Examples
    --------
    >>> rows_at_once(64), rows_at_once(10_000), rows_at_once(1_000_000)
    (32768, 512, 16)
    """
    wanted = max(ENOUGH_ROWS, CACHE_BYTES // row_bytes)
    return max(16, min(wanted, WORKSPACE_BYTES // row_bytes))


def row_slices(n_rows: int, block_rows: int) -> Iterator[slice]:
    """Yield the slices that cut ``n_rows`` into blocks of ``block_rows``, the last one ragged.

    Examples
    --------
    >>> [(s.start, s.stop) for s in row_slices(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, n_rows, block_rows):
        yield slice(start, min(start + block_rows, n_rows))


class Workspace:
    """Memory for one product after another, which is given out again each time.

    Where an allocator hands large blocks back to the system as soon as they are free, as that of a Dask
    worker does, asking for them again costs about as much as filling them.

    Examples
    --------
    >>> workspace = Workspace()
    >>> workspace.matmul(np.eye(2), np.ones((2, 2))).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def matmul(self, left: Array, right: Array) -> Array:
        """Return ``left @ right`` of two matrices; of NumPy's, until the next call only."""
        if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)):
            return left @ right
        shape, dtype = (left.shape[0], right.shape[1]), np.result_type(left, right)
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._memory.size < n_bytes:
            self._memory = np.empty(n_bytes, dtype=np.uint8)
        return np.matmul(left, right, out=self._memory[:n_bytes].view(dtype).reshape(shape))


def import_extra(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of whence brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there and broken: its own message says more
        raise MissingExtraError(module.split(".")[0], extra) from error
