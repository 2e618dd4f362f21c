"""Building an index on disk, from the beginning or from where an earlier run stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError, warn
from whence._files import remove_parts
from whence._paths import as_path, explain_failures
from whence._version import __version__
from whence.arrays.base import Array, as_numpy
from whence.arrays.sparse import SparseRows
from whence.ihvp.collected import CurvaturePart
from whence.index.base import Index, check_ids
from whence.index.files import Lock, open_array, write_array, write_json
from whence.index.layout import arrays_of
from whence.index.methods import METHOD_FILE
from whence.index.narrowing import Narrowing
from whence.index.records import PLAN, SHARD, WHOLE, difference
from whence.index.several import arrays_of_layers
from whence.index.shard import Shard, check_feature_dtype, shard_rows
from whence.index.store import (
    BEGUN,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SEVERAL_LAYERS,
    StoredIndex,
    StoredShard,
    check_folder,
    damage,
    holds_index,
    read_json,
    refuse_other,
)
from whence.layers.rows import Rows

__all__ = ["Writer", "write_index", "write_shard"]

#: How far features may differ from those stored, relative to the largest: what another device or batch
#: size makes of the same model stays far below.
FEATURE_TOLERANCE = 1e-2

PLANNED = (
    "format",
    "format_version",
    "library_version",
    "identity",
    "feature_dtype",
    "n_features",
    "shard_rows",
)


class Writer(Index):
    """Builds an index on disk and goes on where an earlier run stopped.

    What is complete and unharmed is kept: its samples are recognised and skipped. Use it like an
    :class:`Index`; ``finish`` returns the :class:`StoredIndex`.

    Parameters
    ----------
    path : path
    feature_dtype : {None, "float16", "float32"}, default=None
    verify : bool, default=True
        Whether to compare the files that are there with their checksums at once; else whoever goes on
        from them does.

    Raises
    ------
    WhenceError
        If the folder holds other files, or another process is building there.
    """

    def __init__(self, path: str | Path, feature_dtype: Any = None, *, verify: bool = True) -> None:
        super().__init__(feature_dtype)
        self.folder: Path = as_path(path).absolute()
        self._verify = verify
        check_folder(self.folder)
        with explain_failures(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock: Lock | None = None
        self._plan: dict[str, Any] | None = None
        self._manifest: dict[str, Any] | None = None
        #: What is recorded of each shard that is there, by its number.
        self.records: dict[int, dict[str, Any]] = {}
        #: The shards that were written from here on.
        self._written: set[int] = set()
        #: How many samples there are so far.
        self.n_seen = 0
        self._look()
        if self._manifest is None or not verify or len(self.records) < len(self._manifest["shards"]):
            self._lock = Lock(self.folder)
            self._look()  # another process may have gone on in between

    def _look(self) -> None:
        """Find out what the folder holds."""
        fix = f"Delete {BEGUN} and {MANIFEST} only if you want to begin anew."
        if (self.folder / BEGUN).is_file():
            self._plan = read_json(self.folder / BEGUN, fix, PLAN)
        if holds_index(self.folder):
            self._manifest = read_json(
                self.folder / MANIFEST,
                f"Delete {MANIFEST}: it is made again from the shards, which are kept.",
                WHOLE,
            )
            self._plan = self._plan or {key: self._manifest[key] for key in PLANNED}
        if self._plan is not None:
            self._feature_dtype = _agreed_dtype(self.folder, self._feature_dtype, self._plan)
            self._shard_rows = self._plan["shard_rows"]
        self.records = {}
        for number, record in self._known_shards():
            wrong = damage(self.folder, record, thoroughly=self._verify)
            if wrong is None:
                self.records[number] = record
            elif self._lock is not None:
                warn(f"path {str(self.folder)!r}: {wrong}; shard {number} is computed again.")

    def _known_shards(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._manifest is not None:
            yield from enumerate(self._manifest["shards"])
            return
        plan = self._plan
        for file in sorted(self.folder.glob("shard-*.json")) if plan is not None else ():
            number = file.stem.removeprefix("shard-")
            record: dict[str, Any] = {}
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            is_right = number.isdecimal() and difference(record, SHARD) is None
            if is_right and plan is not None and record["n_features"] == plan["n_features"]:
                yield int(number), record  # any other is computed again

    # ------------------------------------------------------------------ building

    def begin(self, identity: dict[str, Any]) -> None:
        """Say what the features belong to; raise if the folder holds those of something else."""
        self.identity = identity
        if self._plan is not None:
            refuse_other(self.folder, identity, self._plan["identity"])

    def holds(self, fingerprint: np.ndarray) -> bool:
        """Whether the next samples are stored already; they are then passed over."""
        stop = self.n_seen + len(fingerprint)
        if not self._shard_rows or len(fingerprint) == 0:
            return False
        numbers = range(self.n_seen // self._shard_rows, (stop - 1) // self._shard_rows + 1)
        if not all(number in self.records for number in numbers):
            return False
        for number, rows, place in self._pieces(len(fingerprint)):
            self._compare_prints(fingerprint[rows], number, place)
        self.n_seen = stop
        return True

    def append(
        self,
        phi: Array,
        target: Array,
        weight: Array | None,
        fingerprint: Any,
        gradients: Rows | None = None,
        curvature: CurvaturePart | None = None,
    ) -> None:
        """Add a batch of samples; those that are stored already are compared with what is there."""
        if self._narrowing.dtype != self._feature_dtype:  # that of what is there already
            self._narrowing = Narrowing(self._feature_dtype)
        features = self._narrowing(phi)
        features = features if isinstance(features, SparseRows) else as_numpy(features)
        self.plan_for(features, phi, gradients)
        n_complete = None if self._manifest is None else self._manifest["n_samples"]
        if n_complete is not None and self.n_seen + len(features) > n_complete:
            raise self._other_training_set(f"{n_complete} samples, where the training set goes on")
        weight = None if weight is None else as_numpy(weight)
        several = None, gradients, curvature
        batch = Shard(features, as_numpy(target), weight, np.asarray(fingerprint), *several)
        for number, rows, place in self._pieces(batch.n_samples):
            piece = batch.rows(rows.start, rows.stop)
            if number in self.records:
                self._compare_prints(piece.fingerprint, number, place)
                if features.ndim == 2:  # along a sequence they may be padded
                    self._compare_targets(piece.target, number, place)
                self._compare_features(piece.features, number, place)
                continue
            self._buffer.add(piece)
            if self._buffer.n_rows == self._shard_rows:
                self._write_shard(number)
        self.n_seen += batch.n_samples

    def add(self, records: dict[int, dict[str, Any]]) -> None:
        """Take up what is recorded of shards, of which others wrote those that were not there."""
        self._written |= records.keys() - self.records.keys()
        self.records.update(records)

    def forget(self) -> None:
        """Let the shards that were written from here on count for nothing: they are computed again."""
        for number in self._written:
            (self.folder / f"shard-{number:05d}.json").unlink(missing_ok=True)
            self.records.pop(number, None)
        self._written.clear()

    @property
    def plan(self) -> dict[str, Any]:
        """What the index will be; once there is a plan."""
        assert self._plan is not None
        return self._plan

    @property
    def feature_dtype(self) -> str | None:
        """What features are narrowed to, if they are."""
        return self._feature_dtype

    def plan_for(self, features: Array, phi: Array | None = None, gradients: Rows | None = None) -> None:
        """Plan an index of such features, of ``phi`` before they were narrowed, or go by the plan."""
        if self._plan is None:
            self._write_plan(features if phi is None else phi, features, gradients)
        if list(features.shape[-1:]) != [self.plan["n_features"]]:
            refuse_other(self.folder, {"d": features.shape[-1]}, {"d": self.plan["n_features"]})

    def finish(self, ids: Any = None) -> StoredIndex:
        """Close the index, name its samples (positions by default) and return it."""
        self._narrowing.check()
        if self._buffer.n_rows:
            self._write_shard((self.n_seen - 1) // self._shard_rows)
        n_stored = sum(record["n_samples"] for record in self.records.values())
        if n_stored != self.n_seen:
            raise self._other_training_set(f"{n_stored} samples, where the training set has {self.n_seen}")
        names = check_ids(ids, self.n_seen)
        if self._manifest is not None and self._manifest["n_samples"] != self.n_seen:
            self._forget()
        stamp = None if self._manifest is None else self._manifest["ids"]
        if self._manifest is not None and names is not None:
            there = None if stamp is None else open_array(self.folder / stamp["file"], stamp)
            if there is None or not np.array_equal(there, names):
                raise WhenceError(
                    "ids",
                    f"the ids that the index in {str(self.folder)!r} was built with",
                    "other ids" if there is not None else "ids, where it has none",
                    "Leave ids out to take those that are stored, or choose another path.",
                )
        if self._lock is not None:
            remove_parts(self.folder)
            if names is not None:
                stamp = write_array(self.folder / "ids.npy", names)
            self._write_manifest(stamp)
        self.close()
        return StoredIndex(self.folder, verify=False)

    def _forget(self) -> None:
        """Take back what was said of shards that hold other samples now, such as some once left out."""
        for file in self.folder.glob(f"method-*/{METHOD_FILE}"):
            file.unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._manifest = None

    def close(self) -> None:
        """Let others build here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ------------------------------------------------------------------- writing

    def _write_plan(self, phi: Array, features: Array, gradients: Rows | None) -> None:
        self._shard_rows = shard_rows(phi, gradients)
        self._plan = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION if gradients is None else SEVERAL_LAYERS,
            "library_version": __version__,
            "identity": self.identity,
            "feature_dtype": self._feature_dtype or features.dtype.name,
            "n_features": int(features.shape[-1]),
            "shard_rows": self._shard_rows,
        }
        write_json(self.folder / BEGUN, self._plan)

    def _write_shard(self, number: int) -> None:
        shard = self._buffer.take(self._buffer.n_rows)
        self.add({number: write_shard(self.folder, self.plan, number, shard)})

    def _write_manifest(self, ids: dict[str, Any] | None) -> None:
        assert self._plan is not None
        records = [self.records[number] for number in range(len(self.records))]
        self.shards = [StoredShard(self.folder, record) for record in records]
        content = self._plan | {
            "n_samples": self.n_seen,
            "order": self.order,
            "ids": ids,
            "shards": records,
        }
        if self.unordered is not None:
            content["unordered"] = self.unordered
        self.shards = []
        if content != self._manifest:
            write_json(self.folder / MANIFEST, content)

    # ----------------------------------------------------------------- comparing

    def _pieces(self, n_rows: int) -> Iterator[tuple[int, slice, slice]]:
        """Cut the next rows by shard: its number, which of the rows, and their place in the shard."""
        start, stop = self.n_seen, self.n_seen + n_rows
        while start < stop:
            number, offset = divmod(start, self._shard_rows)
            n = min(stop - start, self._shard_rows - offset)
            first = start - self.n_seen
            yield number, slice(first, first + n), slice(offset, offset + n)
            start += n

    def _compare_prints(self, fingerprint: np.ndarray, number: int, place: slice) -> None:
        stored = StoredShard(self.folder, self.records[number]).fingerprint[place]
        if len(stored) < len(fingerprint):
            n_stored = number * self._shard_rows + self.records[number]["n_samples"]
            raise self._other_training_set(f"{n_stored} samples, where the training set goes on")
        if not np.array_equal(stored, fingerprint):
            first = int(np.flatnonzero(stored != fingerprint)[0])
            row = number * self._shard_rows + place.start + first
            raise self._other_training_set(self._difference(fingerprint[first], row))

    def _difference(self, fingerprint: np.ndarray, row: int) -> str:
        for record in self.records.values():
            if (StoredShard(self.folder, record).fingerprint == fingerprint).any():
                return f"the same samples in another order, from sample {row} on"
        return f"other samples, from sample {row} on"

    def _compare_targets(self, target: np.ndarray, number: int, place: slice) -> None:
        """Raise if samples that are known by their fingerprints, labels included, have other labels."""
        if not np.array_equal(StoredShard(self.folder, self.records[number]).target[place], target):
            raise self._other_training_set("other labels of the same samples")

    def _compare_features(self, features: Array, number: int, place: slice) -> None:
        """Raise if the model before the layer is not the one that the stored features are of."""
        stored = StoredShard(self.folder, self.records[number]).features[place]
        there, here = (as_numpy(part).astype(np.float64) for part in (stored, features))
        if there.shape[1:] != here.shape[1:]:
            n_positions = min(there.shape[1], here.shape[1])  # padded to the longest of the shard
            there, here = there[:, :n_positions], here[:, :n_positions]
        gap = float(np.abs(there - here).max(initial=0.0))
        scale = float(np.abs(there).max(initial=0.0)) or 1.0
        if gap > FEATURE_TOLERANCE * scale:
            raise WhenceError(
                f"path {str(self.folder)!r}",
                "an index with the features that the model gives",
                f"features that differ by {gap / scale:.2g} of the largest: those of other weights "
                "before the layer",
                "Give the path of an index of this model, or a new path.",
            )

    def _other_training_set(self, got: str) -> WhenceError:
        return WhenceError(
            f"path {str(self.folder)!r}",
            "an index of the same training set in the same order",
            f"one of {got}",
            "Iterate it in the order that was stored (without a shuffle), or choose a new path.",
        )


def write_shard(
    folder: Path,
    plan: dict[str, Any],
    number: int,
    shard: Shard,
    skipped: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write the files of a shard and return what is recorded of it; ``skipped`` was left out of it."""
    files = {
        name: write_array(folder / f"{name}-{number:05d}.npy", array)
        for name, array in (arrays_of(shard, plan["feature_dtype"]) | arrays_of_layers(shard)).items()
    }
    record: dict[str, Any] = {
        "n_samples": shard.n_samples,
        "n_features": plan["n_features"],
        "files": files,
    }
    if shard.gradients is not None:
        record["layers"] = list(shard.gradients.layers)
    if skipped:
        record["skipped"] = list(skipped)
    write_json(folder / f"shard-{number:05d}.json", record)
    return record


def write_index(index: Index, path: str | Path) -> StoredIndex:
    """Return ``index`` as stored in a folder, copied there shard by shard unless it is there already."""
    if isinstance(index, StoredIndex) and as_path(path).resolve() == index.folder.resolve():
        return StoredIndex(index.folder, verify=False)
    writer = Writer(path)
    try:
        writer.begin(index.identity)
        writer.unordered = index.unordered
        for shard in index.shards:
            fingerprint = as_numpy(shard.fingerprint)
            if not writer.holds(fingerprint):
                several = shard.gradients, shard.curvature
                writer.append(shard.features, shard.target, shard.weight, fingerprint, *several)
        return writer.finish(index._ids)
    finally:
        writer.close()


def _agreed_dtype(folder: Path, wanted: str | None, plan: dict[str, Any]) -> str | None:
    stored = plan["feature_dtype"]
    if wanted is not None and wanted != stored:
        refuse_other(folder, {"feature_dtype": wanted}, {"feature_dtype": stored})
    return stored if stored in ("float16", "float32") else check_feature_dtype(None)
