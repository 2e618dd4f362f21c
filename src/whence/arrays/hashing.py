"""A hash of each row of an array, all rows at once."""

from __future__ import annotations

import numpy as np

from whence.arrays.base import CACHE_BYTES, row_slices

__all__ = ["hashed_rows"]


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
