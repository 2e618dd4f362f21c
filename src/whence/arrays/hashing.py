"""A hash of each row of an array, all rows at once; and bytes of cells that are no numbers."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import CACHE_BYTES, as_numpy, row_slices

__all__ = ["cell_digests", "hashed_rows"]

#: Bytes of a digest.
DIGEST_BYTES = 16

#: Types whose ``repr`` says all of a value, and tells it from those of other types.
PLAIN = (bool, int, float, str, type(None))


def cell_digests(rows: Iterable[Any]) -> np.ndarray:
    """Return a digest of each row of cells of any kind, shape ``(n, 16)``, ``uint8``.

    A cell is a number, a text, or something that holds others: an array, a list, a dict. Its own bytes
    count, since a ``repr`` may be cut short, or be the same for two that differ.

    Raises
    ------
    WhenceError
        If a cell is an object that cannot be turned into bytes.

    Examples
    --------
    >>> a, b, c = cell_digests([[1, "x"], [1.0, "x"], [1, "x"]])
    >>> (a == c).all(), (a == b).all()
    (np.True_, np.False_)
    """
    parts = [hashlib.blake2b(_row_bytes(row), digest_size=DIGEST_BYTES).digest() for row in rows]
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), DIGEST_BYTES)


def _row_bytes(row: Any) -> bytes:
    is_cells = isinstance(row, np.generic) or (isinstance(row, np.ndarray) and row.dtype.hasobject)
    cells = row.tolist() if is_cells else row
    if _is_plain(cells):
        return repr(cells).encode("utf-8", "surrogatepass")
    return b"".join(_encoded(cells))


def _is_plain(cells: Any) -> bool:
    """Return whether a cell, or a list of lists of them, is of plain values only."""
    if type(cells) is list:
        return all(type(cell) in PLAIN or (type(cell) is list and _is_plain(cell)) for cell in cells)
    return type(cells) in PLAIN


def _encoded(cell: Any) -> list[bytes]:
    """Return a cell as bytes, each part led by its kind and length, so that no two cells share them."""
    if isinstance(cell, np.generic) and not isinstance(cell, np.void):
        cell = cell if cell.dtype.kind in "mM" else cell.item()
    kind = type(cell)
    name = f"{kind.__module__}.{kind.__qualname__}".encode()
    if kind in PLAIN or kind is complex:
        return _framed(name, repr(cell).encode("utf-8", "surrogatepass"))
    if isinstance(cell, bytes | bytearray | memoryview):
        return _framed(name, bytes(cell))
    if isinstance(cell, str):  # a class of the user's own: its text counts
        return _framed(name, str.__str__(cell).encode("utf-8", "surrogatepass"))
    if isinstance(cell, Mapping):
        pairs = [b"".join(_encoded(key) + _encoded(value)) for key, value in cell.items()]
        return _framed(name, *sorted(pairs))
    if isinstance(cell, list | tuple):
        return _framed(name, *(b"".join(_encoded(part)) for part in cell))
    if isinstance(cell, set | frozenset):
        return _framed(name, *sorted(b"".join(_encoded(part)) for part in cell))
    if isinstance(cell, np.ndarray) or (hasattr(cell, "__array__") and hasattr(cell, "shape")):
        return _framed(name, *_array_parts(as_numpy(cell)))
    try:
        return _framed(name, pickle.dumps(cell, protocol=5))
    except Exception as error:
        raise WhenceError(
            "dataset",
            "cells that can be told apart by their bytes: numbers, texts, arrays, lists of them",
            f"{described(cell)}, which cannot be pickled ({type(error).__name__})",
            "Leave the column out, or turn it into numbers or texts.",
        ) from error


def _array_parts(array: np.ndarray) -> list[bytes]:
    head = f"{array.dtype.str} {array.shape}".encode()
    if array.dtype.hasobject:
        return [head, *(b"".join(_encoded(part)) for part in array.ravel().tolist())]
    return [head, np.ascontiguousarray(array).tobytes()]


def _framed(name: bytes, *parts: bytes) -> list[bytes]:
    lengths = b" ".join(str(len(part)).encode() for part in parts)
    return [name, b"(", lengths, b":", *parts, b")"]


def hashed_rows(rows: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row of bytes ``(n, n_bytes)``, all rows at once.

    A hash function of a library would be called row by row, which costs more than the hashing. Each word
    of eight bytes is added to a key of its place and mixed; the sum is mixed again. Rows that differ share
    a hash once in 2**64; nobody is kept from looking for two that do.

    Examples
    --------
    >>> a, b, c = hashed_rows(np.asarray([[1, 2], [2, 1], [1, 2]], dtype=np.uint8))
    >>> a == c, a == b
    (np.True_, np.False_)
    """
    n_rows, n_bytes = rows.shape
    n_words = -(-n_bytes // 8)
    keys = _mixed(np.arange(1, n_words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    result = np.empty(n_rows, dtype=np.uint64)
    for some in row_slices(n_rows, max(1, CACHE_BYTES // (32 * max(1, n_words)))):
        words = np.zeros((some.stop - some.start, 8 * n_words), dtype=np.uint8)
        words[:, :n_bytes] = rows[some]
        result[some] = _mixed(words.view(np.uint64) + keys).sum(axis=1, dtype=np.uint64)
    return _mixed(result + np.uint64(n_bytes))


def _mixed(words: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit words in place, one to one: the last step of MurmurHash3 (Appleby, 2011)."""
    shift = np.uint64(33)
    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        words ^= words >> shift
        words *= factor
    words ^= words >> shift
    return words
