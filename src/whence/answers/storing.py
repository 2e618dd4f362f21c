"""Where influence vectors and answers are kept: loaded and saved as the contract's paths say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._files import is_part, written_whole
from whence._paths import as_path, explain_failures
from whence.arrays.base import Array
from whence.index import (
    CACHE,
    Index,
    Method,
    StoredIndex,
    holds_index,
    stored_methods,
    write_index,
)
from whence.index.files import plain
from whence.layers.linear_layer import Block

__all__ = ["check_cache", "check_values_folder", "save_arrays", "stored_vectors"]

#: What describes the answers in a folder, and its format.
VALUES, VALUES_FORMAT = "values.json", "whence values"


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
        stored = stored.with_coefficients(coefficients, method)
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
            found_there = stored.with_method(candidate)
            candidate.check_weights(method)
            return found_there
    there = found[0].about if found else {}
    differing = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
    raise WhenceError(
        f"path {str(stored.folder)!r}",
        "influence vectors with " + ", ".join(f"{key} {wanted.get(key)!r}" for key in differing),
        "none of any method" if not found else ", ".join(f"{key} {there.get(key)!r}" for key in differing),
        "Give it as a save_ path: the vectors are then written beside what is there.",
    )


def save_arrays(path: str | Path, kind: str, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write some arrays to a folder of answers, one ``.npy`` file each, all of them or none."""
    folder = as_path(path)
    check_values_folder(folder, kind)
    with explain_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps({"format": VALUES_FORMAT, "kind": kind, **about}, indent=1, default=plain)
    with contextlib.ExitStack() as files:  # they take their names when it ends, the manifest last
        files.enter_context(written_whole(folder / VALUES)).write(f"{manifest}\n".encode())
        for name, array in arrays.items():
            handle = files.enter_context(written_whole(folder / f"{name}.npy"))
            np.save(handle, array, allow_pickle=False)


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


def check_values_folder(path: str | Path, kind: str) -> None:
    """Raise if a folder exists that holds something else than answers of this kind."""
    folder = as_path(path)
    with explain_failures(folder):
        if not folder.exists():
            return
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else None
    if names is not None and all(map(is_part, names)):
        return
    found = _values_record(folder) if names is not None and VALUES in names else None
    got = "a file" if names is None else "a folder with other files in it"
    if found is not None:
        if found.get("kind", kind) == kind and not holds_index(folder):
            return
        got = f"one with answers of another kind ({found.get('kind')})"
    raise WhenceError(
        f"path {str(folder)!r}",
        f"a new path, an empty folder, or one with the {kind} that whence wrote",
        got,
        "Choose another path; nothing was written.",
    )


def _values_record(folder: Path) -> dict[str, Any] | None:
    """Return what is recorded of the answers in a folder; None if that is not of whence."""
    try:
        record = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(record, dict) and record.get("format") == VALUES_FORMAT
    return record if is_ours else None
