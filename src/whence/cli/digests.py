"""Texts that tell a file, or a set of weights, from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

__all__ = ["digest_of_arrays", "digest_of_file"]


def digest_of_file(path: Path) -> str:
    """Return a digest of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_arrays(named: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return a digest of arrays and their names, in whatever order they come.

    Examples
    --------
    >>> a, b = ("kernel", np.ones(2)), ("bias", np.zeros(1))
    >>> digest_of_arrays([a, b]) == digest_of_arrays([b, a])
    True
    """
    digest = hashlib.sha256()
    for name, array in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
