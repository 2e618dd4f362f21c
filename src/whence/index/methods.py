"""What a method stores beside the index: its coefficients, and what it takes to ask it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._files import remove_parts
from whence._paths import is_remote
from whence.arrays.base import Array, as_numpy
from whence.engine.base import Engine
from whence.index.files import (
    Lock,
    Stamp,
    check_checksum,
    check_size,
    open_array,
    write_array,
    write_json,
)
from whence.index.records import METHOD, difference
from whence.index.shard import Shard

__all__ = ["METHOD_FILE", "Method", "StoredMethod", "stored_methods", "write_method"]

#: The record of a method, written when all else of it is there.
METHOD_FILE = "method.json"

#: How far the weights of a method may differ from those stored, relative to the largest: rounding on
#: another machine stays far below, another method does not.
STATE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Method:
    """A method on an index.

    Attributes
    ----------
    about : dict
        What is computed and how; two methods with the same are the same.
    settings : dict
        What its class needs to be made again from the index alone, as JSON; see ``load_index``.
    check : array
        Weights that change with everything that it computes.
    state : dict of arrays
        What is costly to compute again.
    """

    about: dict[str, Any]
    settings: dict[str, Any]
    check: np.ndarray
    state: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def folder_name(self) -> str:
        """The folder that it has in an index."""
        text = json.dumps(self.about, sort_keys=True, default=str)
        return f"method-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


class StoredMethod:
    """A method in a folder of an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = _record_of(folder)

    @property
    def about(self) -> dict[str, Any]:
        """What is computed and how."""
        return self.record["about"]

    @property
    def settings(self) -> dict[str, Any]:
        """What its class needs to be made again."""
        return self.record["settings"]

    @property
    def check(self) -> np.ndarray:
        """Weights that change with everything that it computes."""
        return self._array("check")

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What was costly to compute."""
        return {name: self._array(name) for name in self.record["state"]}

    def _array(self, name: str) -> np.ndarray:
        if name not in self.record["files"]:
            raise _changed(self.folder, f"files.{name} is missing")
        stamp = self.record["files"][name]
        return open_array(self.folder / stamp["file"], stamp)

    def check_weights(self, method: Method) -> None:
        """Raise if a method of the same description computes something else."""
        there, here = self.check, as_numpy(method.check)
        if there.shape == here.shape and there.dtype.kind == "f":
            scale = float(np.abs(here).max(initial=0.0)) or 1.0
            if np.abs(there - here).max(initial=0.0) <= STATE_TOLERANCE * scale:
                return
        raise WhenceError(
            f"path {str(self.folder.parent)!r}",
            "a method with the weights that are computed here",
            f"one of the same description and other weights in {self.folder.name}",
            "It was computed otherwise, as by another solver of the same name: choose another path.",
        )

    def damage(self, *, thoroughly: bool) -> str | None:
        """Return what is wrong with its files, or None."""
        look = check_checksum if thoroughly else check_size
        stamps = [*self.record["files"].values(), *self.record["coefficients"]]
        wrong = (look(self.folder, stamp) for stamp in stamps)
        return next((text for text in wrong if text is not None), None)


def _record_of(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / METHOD_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _changed(folder, f"it is not JSON ({error})") from None
    wrong = difference(record, METHOD)
    if wrong is not None:
        raise _changed(folder, wrong)
    return dict(record)


def _changed(folder: Path, wrong: str) -> WhenceError:
    return WhenceError(
        f"path {str(folder.parent)!r}",
        f"a method as it was written, by {METHOD_FILE}",
        f"another file in {folder.name}: {wrong}",
        "Delete that folder and make the method again with index_path= this index.",
    )


def stored_methods(folder: Path) -> list[StoredMethod]:
    """Return the methods that an index holds, those that were written to the end."""
    found = sorted(folder.glob(f"method-*/{METHOD_FILE}"))
    return [StoredMethod(file.parent) for file in found if file.is_file()]


def write_method(
    index_folder: Path,
    parts: Callable[[], Iterator[Any]],
    function: Callable[[Any], Array],
    method: Method,
    engine: Engine,
) -> StoredMethod:
    """Return the stored method, written first unless it is there already and unharmed.

    Raises
    ------
    WhenceError
        If the folder holds a method of that description that computes something else.
    """
    folder = index_folder / method.folder_name
    found = _reusable(folder, method)
    if found is not None:
        return found
    with Lock(index_folder, wait=True):
        found = _reusable(folder, method)  # another process may have been faster
        if found is not None:
            return found
        if _is_link(folder):  # nothing is written where a link leads
            raise WhenceError(
                f"path {str(index_folder)!r}",
                f"a folder {folder.name}, or none",
                "a link of that name",
                "Remove it.",
            )
        folder.mkdir(exist_ok=True)
        arrays = {"check": method.check, **method.state}
        files = {name: write_array(folder / f"{name}.npy", as_numpy(a)) for name, a in arrays.items()}
        steps = engine.map(lambda part: _written(folder, part, function), parts())
        coefficients = [stamp for stamps in steps for stamp in stamps]
        remove_parts(folder)
        record = {
            "about": method.about,
            "settings": method.settings,
            "state": list(method.state),
            "files": files,
            "coefficients": coefficients,
        }
        write_json(folder / METHOD_FILE, record)
    return StoredMethod(folder)


def _written(folder: Path, part: Any, function: Callable[[Any], Array]) -> list[Stamp]:
    """Write the coefficients of some shards and return what is recorded of their files."""
    return [
        write_array(folder / f"coefficients-{number:05d}.npy", _computed(function, shard))
        for number, shard in enumerate(part.shards, part.first)
    ]


def _computed(function: Callable[[Any], Array], shard: Shard) -> np.ndarray:
    computed = as_numpy(function(shard.block))
    return computed.astype(np.float32, copy=False) if shard.features.dtype.itemsize <= 4 else computed


def _reusable(folder: Path, method: Method) -> StoredMethod | None:
    if _is_link(folder) or not (folder / METHOD_FILE).is_file():
        return None
    try:
        stored = StoredMethod(folder)
    except WhenceError:  # no longer what was written: it is written again
        return None
    if stored.damage(thoroughly=True) is not None or (method.settings and not stored.settings):
        return None  # harmed, or of a version that did not say how it is made again
    stored.check_weights(method)
    return stored


def _is_link(folder: Path) -> bool:
    return not is_remote(folder) and folder.is_symlink()
