"""Where influence vectors and answers are kept: loaded and saved as the contract's paths say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.index import CACHE, Index, check_folder, holds_index

__all__ = ["check_cache", "check_values_folder", "save_arrays", "stored_vectors"]


def stored_vectors(
    index: Index,
    manifest: dict[str, Any],
    cache: CACHE,
    load_path: str | Path | None,
    save_path: str | Path | None,
) -> Index:
    """Return the index that vectors come from, loaded or saved as the paths say."""
    if load_path is not None:
        return Index.load(load_path, manifest)
    if save_path is not None:
        if holds_index(save_path):
            return Index.load(save_path, manifest)
        index.save(save_path, manifest)
        return Index.load(save_path, manifest) if cache is CACHE.DISK else index
    if cache is CACHE.DISK:
        raise WhenceError(
            "influence_vector_in_cache",
            "a path to load the influence vectors from or to save them to, with CACHE.DISK",
            "neither",
            "Pass a load_ or save_ path, or use CACHE.MEMORY.",
        )
    return index


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write some arrays to a folder of answers, one ``.npy`` file each."""
    folder = Path(path)
    check_values_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    content = {"format": "whence values", **manifest}
    (folder / "values.json").write_text(json.dumps(content, indent=1) + "\n")


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


def check_values_folder(folder: Path) -> None:
    """Raise if a folder exists that holds something else than answers."""
    if (folder / "values.json").is_file():
        return
    check_folder(folder)
