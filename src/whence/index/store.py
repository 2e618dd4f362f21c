"""The index on disk: shards of ``.npy`` files beside a JSON manifest, read memory-mapped.

::

    manifest.json            what the whole is; written last, so that its presence says "complete"
    begun.json               what is being built; written first
    shard-00000.json         the files of a shard, with their checksums; written after them
    features-00000.npy       and target-, weight-, fingerprint-; sparse features are three (see ``layout``)
    ids.npy                  if the user named the samples
    method-<digest>/         the coefficients and the state of each method
    lock

Every file is written under another name, synced and renamed. A shard has the same number of rows whatever
the batches, so that an interrupted run and the one that goes on from it give the bytes of a single one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError, warn
from whence._files import is_part
from whence._paths import as_path, explain_failures, is_remote
from whence.arrays.base import Array
from whence.engine.base import Engine, cut
from whence.engine.chosen import as_engine
from whence.index.base import Index
from whence.index.files import (
    LOCK,
    Stamp,
    check_checksum,
    check_size,
    file_mark,
    is_lock,
    open_array,
)
from whence.index.layout import ARRAYS, array_of, misfit
from whence.index.methods import METHOD_FILE, Method, StoredMethod, write_method
from whence.index.records import WHOLE, difference
from whence.index.several import curvature_in, gradients_in, layers_misfit
from whence.index.shard import Shard
from whence.layers.linear_layer import Block
from whence.progress import track

__all__ = ["StoredIndex", "check_folder", "holds_index"]

FORMAT = "whence index"
FORMAT_VERSION = 1
#: The version of an index of several layers, which earlier versions of the library do not read.
SEVERAL_LAYERS = 2

MANIFEST = "manifest.json"
BEGUN = "begun.json"

#: How digests of integers begin: they may turn out to be counters, which an index leaves out.
COUNTER = "integers:"

#: How messages begin to say what is wrong with an index.
DAMAGED = "a damaged one: "


def holds_index(path: str | Path) -> bool:
    """Return whether a folder holds a complete index."""
    folder = as_path(path)
    with explain_failures(folder):
        return (folder / MANIFEST).is_file()


def check_folder(folder: Path) -> None:
    """Raise if ``folder`` exists and is something that whence did not write."""
    with explain_failures(folder):
        if not folder.exists():
            return
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else None
    # A manifest is read before anything is written: it says whether it is ours.
    if names is not None and ({MANIFEST, BEGUN} & names or all(_is_left(folder, name) for name in names)):
        return
    raise WhenceError(
        f"path {str(folder)!r}",
        "a new path, an empty folder, or a folder written by whence",
        "a file" if names is None else "a folder with other files in it",
        "Choose another path; nothing was written.",
    )


def _is_left(folder: Path, name: str) -> bool:
    """Return whether a file is what a process leaves that is killed before it wrote a manifest."""
    return is_part(name) or (name == LOCK and not is_remote(folder) and is_lock(folder / name))


def read_json(file: Path, fix: str, form: Any) -> dict[str, Any]:
    """Return a manifest, or say what is wrong with it."""
    where = f"path {str(file.parent)!r}"
    try:
        with explain_failures(file):
            content = json.loads(file.read_text(encoding="utf-8"))
    except WhenceError:
        raise
    except (ValueError, RecursionError) as error:
        raise WhenceError(where, f"JSON in {file.name}", str(error), fix) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WhenceError(
            where,
            f"an index of whence, by {file.name}",
            "another file of that name",
            f"Choose another path. If whence made the rest of the folder: {fix}",
        )
    if content.get("format_version") not in (FORMAT_VERSION, SEVERAL_LAYERS):
        raise WhenceError(
            where,
            f"format version {FORMAT_VERSION} or {SEVERAL_LAYERS}",
            f"version {content.get('format_version')!r}, of whence {content.get('library_version')}",
            "Read it with that version of whence, or index again to a new path.",
        )
    wrong = difference(content, form)
    if wrong is not None:
        raise WhenceError(where, f"{file.name} as it was written", f"another one: {wrong}", fix)
    return content


class StoredShards(Sequence[Shard]):
    """Shards of a folder, each mapped when it is asked for, so that memory is one shard's.

    A slice of them is what another process needs to read its part.

    Parameters
    ----------
    folder : Path
    records : list of dict
        What the manifest says of each shard.
    method : Path, optional
        The folder of a method.
    coefficients : list of dict, optional
        The files of the method's coefficients, one a shard.
    """

    def __init__(
        self,
        folder: Path,
        records: list[dict[str, Any]],
        method: Path | None = None,
        coefficients: list[Stamp] | None = None,
    ) -> None:
        self._folder = folder
        self._records = records
        self._method = method
        self._coefficients = coefficients

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            some = None if self._coefficients is None else self._coefficients[item]
            return StoredShards(self._folder, self._records[item], self._method, some)
        stamp = None if self._coefficients is None else self._coefficients[item]
        return StoredShard(self._folder, self._records[item], self._method, stamp)


class StoredShard(Shard):
    """A shard on disk: each array is mapped, or read, when it is first asked for.

    Parameters
    ----------
    folder : Path
    record : dict
        What the manifest says of it.
    method : Path, optional
        The folder of a method.
    coefficients : dict, optional
        The file of the method's coefficients.
    """

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        method: Path | None = None,
        coefficients: Stamp | None = None,
    ) -> None:
        self._folder = folder
        self._record = record
        self._method = method
        self._stamp = coefficients

    @property
    def n_samples(self) -> int:
        return int(self._record["n_samples"])

    def _array(self, name: str) -> Any:
        def open_file(stamp: Stamp) -> np.ndarray:
            return open_array(self._folder / stamp["file"], stamp)

        try:
            array = array_of(name, self._record, open_file)
        except WhenceError:
            raise
        except (KeyError, OverflowError, TypeError, ValueError) as error:  # parts that make no matrix
            reason = f"{name} that cannot be put together ({type(error).__name__}: {error})"
            raise _damaged(self._folder, reason) from error
        wrong = misfit(name, array, self._record)
        if wrong is None and name in ("target", "weight") and array is not None:
            # Mapped, the features cost nothing to look at.
            lead = () if is_remote(self._folder) else self.features.shape[:-1]
            if array.shape[: len(lead)] != lead or (name == "weight" and lead and array.shape != lead):
                wrong = f"{name} of shape {array.shape} for features of {lead}"
        refuse_damage(self._folder, wrong)
        return array

    features: Any = cached_property(lambda self: self._array("features"))
    target: Any = cached_property(lambda self: self._array("target"))
    weight: Any = cached_property(lambda self: self._array("weight"))
    fingerprint: Any = cached_property(lambda self: self._array("fingerprint"))

    @cached_property
    def gradients(self) -> Any:  # type: ignore[override]
        return self._of_layers("gradients", gradients_in)

    @cached_property
    def curvature(self) -> Any:  # type: ignore[override]
        return self._of_layers("curvature", curvature_in)

    def _of_layers(self, name: str, read: Callable[..., Any]) -> Any:
        def open_file(stamp: Stamp) -> np.ndarray:
            return open_array(self._folder / stamp["file"], stamp)

        try:
            stored = read(self._record, open_file)
            wrong = layers_misfit(name, stored, self.n_samples)
        except WhenceError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            wrong = f"{name} that cannot be put together ({type(error).__name__}: {error})"
        refuse_damage(self._folder, wrong)
        return stored

    @cached_property
    def coefficients(self) -> Any:  # type: ignore[override]
        if self._method is None or self._stamp is None:
            return None
        array = open_array(self._method / self._stamp["file"], self._stamp)
        if array.dtype.kind != "f" or array.shape[:-1] != self.features.shape[:-1]:
            refuse_damage(self._folder, f"coefficients of shape {array.shape} and dtype {array.dtype}")
        return array


class StoredIndex(Index):
    """An index in a folder.

    Parameters
    ----------
    path : path
    verify : bool, default=True
        Whether to compare every file with its checksum; lengths are compared in any case.
    engine : optional
        Where work on the shards is done; see :func:`~whence.engine.chosen.as_engine`.

    Raises
    ------
    WhenceError
        If there is no complete index, or a file of it is not what was written: the message says what to
        do.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        verify: bool = True,
        engine: Any = None,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        self.engine: Engine = as_engine(engine)
        self.progress = progress
        self.folder: Path = as_path(path).absolute()
        self.manifest: dict[str, Any] = _manifest_of(self.folder)
        self.identity: dict[str, Any] = self.manifest["identity"]
        self.method: StoredMethod | None = None
        self.unordered = str(self.manifest["unordered"]) if "unordered" in self.manifest else None
        self._marks: dict[str, Any] = {}  # of the files that say what the folder holds, as last read
        self.shards: Sequence[Shard] = StoredShards(self.folder, self.manifest["shards"])
        widths = {record["n_features"] for record in self.manifest["shards"]}
        if widths != {self.manifest["n_features"]} or self.n_samples != self.manifest["n_samples"]:
            refuse_damage(self.folder, f"shards of {self.n_samples} samples in all, {widths} features wide")
        folder, parts = self.folder, cut(self.counts)
        records = (self.manifest["shards"][some.start : some.stop] for some in parts)
        steps = track(records, "checking the index", len(parts), progress, "part")
        for wrong in self.engine.map(lambda part: first_damage(folder, part, verify), steps):
            refuse_damage(folder, wrong)
        if self.manifest["ids"] is not None:
            look = check_checksum if verify else check_size
            refuse_damage(self.folder, look(self.folder, self.manifest["ids"]))
            names = open_array(self.folder / self.manifest["ids"]["file"], self.manifest["ids"])
            if names.shape != (self.n_samples,) or names.dtype.kind not in "iuU":
                refuse_damage(self.folder, f"ids of shape {names.shape} and dtype {names.dtype}")
            self._ids = names

    @property
    def counts(self) -> list[int]:
        """How many samples each shard holds."""
        return [record["n_samples"] for record in self.manifest["shards"]]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What was left out with ``on_error="skip"``: each ``{"row": position, "error": reason}``."""
        return [entry for record in self.manifest["shards"] for entry in record.get("skipped", [])]

    @property
    def order(self) -> str:
        """A text that changes with the training set, its order included."""
        return str(self.manifest["order"])

    def check(self, identity: dict[str, Any], order: str | None = None) -> None:
        """Raise unless the index is of this layer, loss and training set; the message says what differs."""
        refuse_other(self.folder, identity, self.identity)
        if order is not None and order != self.order:
            raise WhenceError(
                f"path {str(self.folder)!r}",
                "an index of the same training set in the same order",
                f"one of other samples or another order (N = {self.n_samples})",
                "Give the path of an index of this training set, or a new path.",
            )

    def check_current(self) -> None:
        """Raise if the folder no longer holds what was opened, such as after it was built anew."""
        watched = [(self.folder / MANIFEST, self.manifest)]
        if self.method is not None:
            watched.append((self.method.folder / METHOD_FILE, self.method.record))
        for file, opened in watched:
            mark = file_mark(file)
            if mark is not None and self._marks.get(file.name) == mark:
                continue
            if mark is None or not _holds(file, opened):
                raise WhenceError(
                    f"path {str(self.folder)!r}",
                    "the index that was opened",
                    f"another {file.name}: it was built anew since" if mark else f"no {file.name} any more",
                    "Open it again, once it is complete: load_index, or index_path= this folder.",
                )
            self._marks[file.name] = mark

    def with_method(self, stored: StoredMethod, *, verify: bool = True) -> StoredIndex:
        """Return the same index with the coefficients of a method of the folder."""
        refuse_damage(self.folder, stored.damage(thoroughly=verify))
        return self._with(stored)

    def with_coefficients(
        self,
        function: Callable[[Block], Array],
        method: Callable[[], Method],
        engine: Engine | None = None,
    ) -> StoredIndex:
        """Return the same index with the coefficients of a method, in a folder of its own.

        Nothing is written if it is there.
        """

        def parts() -> Iterator[Any]:
            return track(self.parts(), "storing coefficients", self.n_parts, self.progress, "part")

        return self._with(write_method(self.folder, parts, function, method(), engine or self.engine))

    def _with(self, method: StoredMethod) -> StoredIndex:
        if len(method.record["coefficients"]) != len(self.manifest["shards"]):
            refuse_damage(self.folder, f"coefficients of {len(method.record['coefficients'])} shards")
        other = copy.copy(self)
        other.method = method
        records = self.manifest["shards"]
        other.shards = StoredShards(self.folder, records, method.folder, method.record["coefficients"])
        return other


def _holds(file: Path, content: dict[str, Any]) -> bool:
    """Whether a JSON file says the same as before."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")) == content)
    except (OSError, ValueError, RecursionError):
        return False


def refuse_damage(folder: Path, wrong: str | None) -> None:
    """Raise if something is wrong with a file of a complete index."""
    if wrong is not None:
        raise _damaged(folder, wrong)


def _damaged(folder: Path, wrong: str) -> WhenceError:
    return WhenceError(
        f"path {str(folder)!r}",
        "an index as it was written",
        f"{DAMAGED}{wrong}",
        "Make the method again with index_path= this folder: what is damaged is computed again, all "
        "else is kept.",
    )


def _manifest_of(folder: Path) -> dict[str, Any]:
    fix = "Give the path that an index was saved to."
    if holds_index(folder):
        return read_json(
            folder / MANIFEST,
            f"Delete {MANIFEST} and make the method again with index_path= this folder: it is made again "
            "from the shards, which are kept.",
            WHOLE,
        )
    got = f"no {MANIFEST} there"
    if (folder / BEGUN).is_file():
        got = f"one that is not complete: {got}"
        fix = "Make the method again with index_path= this folder: it goes on where it stopped."
    raise WhenceError(f"path {str(folder)!r}", "a saved index", got, fix)


def damage(folder: Path, record: dict[str, Any], *, thoroughly: bool) -> str | None:
    look = check_checksum if thoroughly else check_size
    wrong = (look(folder, stamp) for stamp in record["files"].values())
    found = next((text for text in wrong if text is not None), None)
    if found is None and not is_remote(folder):  # of those elsewhere, when they are read
        try:
            for name in (*ARRAYS, "gradients", "curvature"):
                getattr(StoredShard(folder, record), name)
        except WhenceError as error:
            return error.got.removeprefix(DAMAGED)
    return found


def first_damage(folder: Path, records: list[dict[str, Any]], thoroughly: bool) -> str | None:
    """Return what is wrong with the first of some shards that is not as it was written, or None."""
    found = (damage(folder, record, thoroughly=thoroughly) for record in records)
    return next((wrong for wrong in found if wrong is not None), None)


def refuse_other(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise if an index is of something else than what is wanted."""
    differing = [key for key in wanted if key != "state" and found.get(key) != wanted[key]]
    if differing:
        raise WhenceError(
            f"path {str(folder)!r}",
            "an index with " + ", ".join(f"{key} {wanted[key]!r}" for key in differing),
            "one with " + ", ".join(f"{key} {found.get(key)!r}" for key in differing),
            "Give the path of an index of this model, loss and training set, or a new path.",
        )
    if wanted.get("state"):
        _refuse_other_state(folder, wanted["state"], found.get("state"))


def _refuse_other_state(folder: Path, wanted: dict[str, str], found: Any) -> None:
    if found is None:
        warn(
            f"path {str(folder)!r}: an index of whence 0.1, which does not say what the weights before the "
            "layer were: that they are those of this model is not checked."
        )
        return
    there: dict[str, Any] = found if isinstance(found, dict) else {}
    names = [*wanted, *(name for name in there if name not in wanted)]
    changed = [name for name in names if there.get(name) != wanted.get(name)]
    changed = [n for n in changed if n in there or not wanted[n].startswith(COUNTER)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise WhenceError(
            f"path {str(folder)!r}",
            "an index of the model with the weights that it has now",
            f"one of other weights before the layer or behind it: {changed[0]}{more}",
            "The model was trained on since, or is another one: choose a new path.",
        )
