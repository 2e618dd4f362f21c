"""Where influence vectors and answers are kept: loaded and saved as the contract's paths say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._paths import as_path, explain_failures
from whence.arrays.base import Array
from whence.index import (
    CACHE,
    Index,
    Method,
    StoredIndex,
    check_folder,
    holds_index,
    stored_methods,
    write_index,
)
from whence.index.files import plain, write_array, write_json
from whence.layers.linear_layer import Block

__all__ = ["check_cache", "check_values_folder", "save_arrays", "stored_vectors"]


def stored_vectors(
    index: Index,
    method: Callable[[], Method],
    coefficients: Callable[[Block], Array],
    cache: CACHE,
    load_path: str | Path | None,
    save_path: str | Path | None,
) -> Index:
    """Return the index that vectors come from, loaded or saved as the paths say."""
    if load_path is not None:
        return _loaded(index, method(), load_path)
    if save_path is not None:
        stored = _opened(index, save_path) if holds_index(save_path) else write_index(index, save_path)
        stored.store_coefficients(coefficients, method)
        return stored if cache is CACHE.DISK else index
    if cache is CACHE.DISK and not isinstance(index, StoredIndex):
        raise WhenceError(
            "influence_vector_in_cache",
            "a path to load the influence vectors from or to save them to, with CACHE.DISK",
            "neither",
            "Pass a load_ or save_ path, or use CACHE.MEMORY.",
        )
    return index


def _opened(index: Index, path: str | Path) -> StoredIndex:
    stored = StoredIndex(path)
    stored.check(index.identity, index.order)
    return stored


def _loaded(index: Index, method: Method, path: str | Path) -> StoredIndex:
    """Return a stored index with the vectors of this method, or raise: the message says what differs."""
    stored = _opened(index, path)
    found = stored_methods(stored.folder)
    wanted = json.loads(json.dumps(method.about, default=plain))
    for candidate in found:
        if candidate.about == wanted:
            stored.use_method(candidate)
            candidate.check_weights(method)
            return stored
    there = found[0].about if found else {}
    differing = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
    raise WhenceError(
        f"path {str(stored.folder)!r}",
        "influence vectors with " + ", ".join(f"{key} {wanted.get(key)!r}" for key in differing),
        "none of any method" if not found else ", ".join(f"{key} {there.get(key)!r}" for key in differing),
        "Give it as a save_ path: the vectors are then written beside what is there.",
    )


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write some arrays to a folder of answers, one ``.npy`` file each."""
    folder = as_path(path)
    check_values_folder(folder)
    with explain_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", array)
    write_json(folder / "values.json", {"format": "whence values", **manifest})


def check_cache(cache: Any) -> CACHE:
    """Return ``cache``, or raise if it is not a :class:`CACHE`."""
    if isinstance(cache, CACHE):
        return cache
    raise WhenceError(
        "influence_vector_in_cache",
        "CACHE.MEMORY, CACHE.DISK or CACHE.NO_CACHE",
        repr(cache),
        "Import CACHE from whence.",
    )


def check_values_folder(path: str | Path) -> None:
    """Raise if a folder exists that holds something else than answers."""
    folder = as_path(path)
    with explain_failures(folder):
        if (folder / "values.json").is_file():
            return
    check_folder(folder)
