"""What a fitted step of a pipeline computes with, told by digests of its attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from whence.models.differentiated import identity_of
from whence.models.state import Part

__all__ = ["fitted_parts"]

#: Attributes that change how fast or loud a step works, or with each use, and not what it gives.
ASIDE = {
    "_stop_words_id",
    "cache_size",
    "copy",
    "copy_X",
    "copy_x",
    "memory",
    "n_jobs",
    "random_state",
    "verbose",
    "verbose_feature_names_out",
    "warm_start",
}


def fitted_parts(estimator: Any, name: str = "") -> Mapping[str, Part]:
    """Return the attributes of an estimator by name, each as what it computes with."""
    parts = {}
    for key, value in sorted(getattr(estimator, "__dict__", {}).items()):
        if key not in ASIDE:
            counts = isinstance(value, int) and not isinstance(value, bool)
            parts[f"{name}.{key}".lstrip(".")] = Part(_content(value), may_count=counts)
    return parts


def _content(value: Any) -> Any:
    def content() -> np.ndarray:
        digest = hashlib.blake2b(digest_size=16)
        for piece in _pieces(value, frozenset()):
            digest.update(piece)
        return np.frombuffer(digest.digest(), dtype=np.uint8)

    return content


def _pieces(thing: Any, above: frozenset[int]) -> Iterable[bytes]:
    """Yield bytes that change with what ``thing`` computes, and are the same in another process."""
    yield f"{type(thing).__module__}.{type(thing).__qualname__}".encode()
    if isinstance(thing, str | bytes | bool | int | float | np.generic | type | None):
        yield repr(thing).encode()
    elif id(thing) in above or isinstance(thing, np.random.Generator | np.random.RandomState):
        return
    elif isinstance(thing, np.ndarray) and thing.dtype != object:
        yield f"{thing.dtype} {thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif scipy.sparse.issparse(thing):
        coordinates = thing.tocoo()
        for array in (coordinates.data, coordinates.row, coordinates.col):
            yield np.ascontiguousarray(array).tobytes()
    elif callable(thing) and hasattr(thing, "__code__"):
        yield identity_of(thing).encode()
    else:
        for part in _inside(thing):
            yield from _pieces(part, above | {id(thing)})


def _inside(thing: Any) -> Iterable[Any]:
    """Return what a container or an object holds, in an order that does not change."""
    if isinstance(thing, Mapping):
        return [part for item in sorted(thing.items(), key=lambda item: repr(item[0])) for part in item]
    if isinstance(thing, set | frozenset):
        return sorted(thing, key=repr)
    if isinstance(thing, list | tuple):
        return thing
    if isinstance(thing, np.ndarray):
        return thing.ravel().tolist()
    inside = getattr(thing, "__dict__", None)  # of an object in C it is not known: samples will tell
    if not isinstance(inside, dict):
        return []
    return [part for item in sorted(inside.items()) if item[0] not in ASIDE for part in item]
