"""Features of a training set in shares, each read, put through the model and stored by itself.

A share is one or more shards of the index. Whoever takes it needs a reader of the dataset, the model and
the index's folder, and says what it wrote: the samples go nowhere else.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import as_numpy
from whence.arrays.sparse import SparseRows
from whence.data.base import Batch, Dataset, fingerprints, take_rows
from whence.data.form import is_texts
from whence.data.order import SampleNames
from whence.data.readers import Piece, Reader, is_small, read_alone, splitter
from whence.data.tables import is_table
from whence.engine.base import Engine
from whence.index import Index, Shard, StoredIndex, Writer
from whence.index.building import write_shard
from whence.index.narrowing import Narrowing
from whence.index.shard import RowBuffer
from whence.index.store import StoredShard, damage
from whence.indexing.observation import Observer, Watcher
from whence.progress import track

__all__ = ["Extraction", "fill", "refuse_changed"]

#: A model is used by one thread at a time, however many a worker has: adapters catch a layer's input by
#: hooks that all callers share.
_model_in_use = threading.Lock()


class Share(NamedTuple):
    """Consecutive shards of an index, to be filled.

    Attributes
    ----------
    numbers : range
        The shards.
    start, stop : int
        Their rows of the dataset.
    records : dict
        What is recorded of those that are stored already.
    pieces : list of Piece or None
        The samples, where the client has read them.
    """

    numbers: range
    start: int
    stop: int
    records: dict[int, dict[str, Any]]
    pieces: list[Piece] | None = None


class Filled(NamedTuple):
    """What came of a share.

    Attributes
    ----------
    records : dict
        What to record of each shard.
    counts : bool
        Whether some sample has a weight that is not 0.
    ids : dict
        The ids that samples brought, by the row of the first of each batch.
    """

    records: dict[int, dict[str, Any]]
    counts: bool
    ids: dict[int, np.ndarray]


class _OtherModelError(WhenceError):
    """No sample is at fault."""


class Extraction:
    """Fills shares of an index.

    Parameters
    ----------
    model : Observer or PickledObserver
    split : Dataset
        What takes the elements of the dataset apart.
    reader : Reader or None
    on_error : {"raise", "skip"}
    concurrent_reads : bool, default=False
        Whether several threads may read the dataset at once.
    """

    def __init__(
        self,
        model: Any,
        split: Dataset,
        reader: Reader | None,
        on_error: str,
        *,
        concurrent_reads: bool = False,
    ) -> None:
        self._given = model
        self._model: Observer | None = None
        self._split = split
        self._reader = reader
        self._on_error = on_error
        self._concurrent_reads = concurrent_reads
        self._theta: np.ndarray | None = None
        self._is_checked = False
        self._narrowing = Narrowing(None)
        self._folder = Path()
        self._plan: dict[str, Any] = {}

    def into(self, writer: Writer) -> Extraction:
        """Say which index is filled, once it is begun; return itself."""
        self._folder, self._plan = writer.folder, writer.plan
        self._narrowing = Narrowing(writer.feature_dtype)
        return self

    def __call__(self, share: Share) -> Filled:
        """Read, compute and store."""
        records = {
            number: record
            for number, record in share.records.items()
            if not damage(self._folder, record, thoroughly=True)
        }
        older = {number: records.pop(number) for number in self._mended(share, records)}
        rows = self._plan["shard_rows"]
        buffers = {number: RowBuffer() for number in share.numbers}
        places: dict[int, list[int]] = {number: [] for number in share.numbers}
        skipped: dict[int, list[dict[str, Any]]] = {number: [] for number in share.numbers}
        counts = bool(records)
        ids: dict[int, np.ndarray] = {}
        for piece in self._pieces(share):
            first, last = piece.row // rows, (piece.row + piece.n_samples - 1) // rows
            stored = all(number in records for number in range(first, last + 1) if number in buffers)
            failed: list[tuple[int, str]] = []
            if stored and piece.error is not None:  # left out then, and nothing to compare now
                continue
            for row, part in self._runs(piece, failed, ids, only_prints=stored):
                counts = counts or part.weight is None or bool(part.weight.any())
                for number in range(row // rows, (row + len(part.fingerprint) - 1) // rows + 1):
                    if number not in buffers:
                        continue
                    start = max(row, number * rows)
                    stop = min(row + len(part.fingerprint), (number + 1) * rows)
                    places[number].extend(range(start, stop))
                    known = records.get(number) or older.get(number)
                    if known is not None:
                        self._compare(known, part.fingerprint[start - row : stop - row], start)
                    if number not in records:
                        buffers[number].add(part.rows(start - row, stop - row))
            for row, reason in failed:
                if row // rows in skipped:
                    skipped[row // rows].append({"row": row, "error": reason})
            for number in share.numbers:
                ended = min((number + 1) * rows, share.stop) <= piece.row + piece.n_samples
                if ended and number not in records:
                    records[number] = self._write(number, buffers[number], skipped[number])
        self._narrowing.check()
        return Filled(records, counts, ids)

    def _mended(self, share: Share, records: dict[int, dict[str, Any]]) -> list[int]:
        """Return the shards from which samples were left out that can be read now."""
        rows = self._plan["shard_rows"]
        gone = sorted(entry["row"] for record in records.values() for entry in record.get("skipped", []))
        mended: set[int] = set()
        for piece in self._pieces(share) if gone else ():
            wanted = [row for row in gone if piece.row <= row < piece.row + piece.n_samples]
            for row in wanted:
                if row // rows not in mended and self._can_be_read(piece, row - piece.row):
                    mended.add(row // rows)
        return sorted(mended)

    def _can_be_read(self, piece: Piece, place: int) -> bool:
        if piece.error is not None:
            return False
        self._split.argument = piece.argument
        try:
            batch = self._split.batch(piece.element, piece.number)
            one = slice(place, place + 1)
            inputs, labels, weight = (take_rows(leaf, one) for leaf in batch[:3])
            self._seen(Batch(inputs, labels, weight, batch.number, batch.argument))
        except _OtherModelError:
            raise
        except Exception:  # as when it was left out, whatever it was
            return False
        return True

    def first(self, pieces: Iterable[Piece]) -> Shard:
        """Return what the layer sees of the first samples that can be read."""
        for piece in pieces:
            for _, part in self._runs(piece, [], {}):
                return part
        raise WhenceError(
            self._split.argument,
            "at least one sample",
            "an empty dataset, or none that could be read",
            "Check the paths and filters that it is made from.",
        )

    # ------------------------------------------------------------------------------ pieces

    def _pieces(self, share: Share) -> Iterator[Piece]:
        if share.pieces is not None:
            yield from share.pieces
            return
        assert self._reader is not None  # without one the client reads
        for unit in self._reader.units(share.start, share.stop):
            for piece in read_alone(self._reader, unit, concurrent=self._concurrent_reads):
                if piece.row >= share.stop:
                    return
                if piece.row + piece.n_samples > share.start:
                    yield piece

    def _runs(
        self,
        piece: Piece,
        failed: list[tuple[int, str]],
        ids: dict[int, np.ndarray],
        only_prints: bool = False,
    ) -> Iterator[tuple[int, Shard]]:
        """Yield runs of samples that the model takes, each with the row of its first; note the others."""
        if piece.error is not None:
            self._refuse(piece, piece.row, piece.n_samples, piece.error, failed)
            return
        split = copy.copy(self._split)  # which other threads use, too
        split.argument = piece.argument
        batch = split.batch(piece.element, piece.number)
        if batch.ids is not None:
            ids[piece.row] = batch.ids
        if only_prints:
            prints = fingerprints(batch)
            yield piece.row, Shard(None, None, None, prints)
            return
        with _model_in_use:
            self._wrapped()  # here, where no sample is to blame if it cannot be made
        yield from self._halved(batch, piece, piece.row, failed)

    def _halved(
        self, batch: Batch, piece: Piece, row: int, failed: list[tuple[int, str]]
    ) -> Iterator[tuple[int, Shard]]:
        try:
            part = self._seen(batch)
        except _OtherModelError:
            raise
        except Exception as error:
            n = batch.n_samples
            if n == 1:
                self._refuse(piece, row, 1, error, failed)
                return
            # Half by half, until what is at fault is found.
            for rows in (slice(0, n // 2), slice(n // 2, n)):
                inputs, labels, weight = (take_rows(leaf, rows) for leaf in batch[:3])
                half = Batch(inputs, labels, weight, batch.number, batch.argument)
                yield from self._halved(half, piece, row + rows.start, failed)
            return
        yield row, part

    def _seen(self, batch: Batch) -> Shard:
        with _model_in_use:
            model = self._wrapped()
            seen = model.observe(batch)
            if self._theta is None:
                self._theta = model.theta()
            model.check_losses(seen, self._theta, batch.where)
            rows = model.training_rows(seen)
            if model is not self._given and not self._is_checked:
                self._check_identity(model)
        features = self._narrowing(seen.phi)
        features = features if isinstance(features, SparseRows) else as_numpy(features)
        weight = None if seen.weight is None else as_numpy(seen.weight)
        return Shard(features, as_numpy(seen.target), weight, fingerprints(batch), None, *rows)

    def _check_identity(self, model: Observer) -> None:
        """Raise if the model that was made here is not the one that is explained."""
        differing = model.differs_in(self._plan["identity"])
        if differing:
            raise _OtherModelError(
                "engine",
                "workers that make the model that is explained",
                f"one with another {', '.join(differing)}",
                "Mend the function that makes it: Cluster(client, model=...).",
            )
        self._is_checked = True

    def _wrapped(self) -> Observer:
        if self._model is None:
            given = self._given
            self._model = given.wrapped() if hasattr(given, "wrapped") else given
        return self._model

    def _refuse(
        self, piece: Piece, row: int, n_samples: int, error: Exception, failed: list[tuple[int, str]]
    ) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._on_error == "skip":
            failed.extend((row + i, reason) for i in range(n_samples))
            return
        which = f"sample {row}" if n_samples == 1 else f"samples {row} to {row + n_samples - 1}"
        shard = f", shard {row // self._plan['shard_rows']} of the index" if self._plan else ""
        raise WhenceError(
            f"{which} of the training set (batch {piece.number} of {piece.argument}{shard})",
            "samples that can be read and that the model takes",
            reason,
            "Mend it, or leave such samples out, and have them listed: on_error='skip'.",
        ) from error

    def _compare(self, record: dict[str, Any], prints: np.ndarray, row: int) -> None:
        """Raise if stored samples are others than those that are read now."""
        left_out = {entry["row"] for entry in record.get("skipped", [])}
        base = row // self._plan["shard_rows"] * self._plan["shard_rows"]
        stored = StoredShard(self._folder, record).fingerprint
        before = sum(1 for gone in left_out if gone < row)
        kept = np.asarray([row + i not in left_out for i in range(len(prints))])
        place = row - base - before
        there = stored[place : place + int(kept.sum())]
        if not np.array_equal(there, prints[kept]):
            raise WhenceError(
                f"path {str(self._folder)!r}",
                "an index of the same training set in the same order",
                f"one of other samples, at sample {row} or after",
                "Iterate it in the order that was stored (without a shuffle), or choose a new path.",
            )

    def _write(self, number: int, buffer: RowBuffer, skipped: list[dict[str, Any]]) -> dict[str, Any]:
        if not buffer.n_rows:
            raise WhenceError(
                f"shard {number} of the index",
                "at least one sample that can be read",
                f"none: {skipped[0]['error'] if skipped else 'no samples'}",
                "Look at what is at fault: it is not single samples.",
            )
        return write_shard(self._folder, self._plan, number, buffer.take(buffer.n_rows), skipped)


def fill(
    model: Observer,
    writer: Writer,
    opened: Dataset,
    names: SampleNames,
    progress: bool | None,
    engine: Engine,
    on_error: str,
) -> StoredIndex:
    """Fill an index in shares, wherever an engine works, and return it."""
    names.look()
    reader = opened.reader(engine)
    read_here = reader is None or (engine.is_remote and not is_small(reader))
    split = splitter(opened)
    before = model.state()
    first = Extraction(model, split, reader, on_error).first(_pieces(opened, reader))
    watch = model.watch(before)
    refuse_changed(watch, writer)
    writer.begin(model.identity())
    writer.plan_for(first.features)
    sent: Any = model.pickled(getattr(engine, "model", None)) if engine.is_remote else model
    given = None if read_here else reader
    extraction = Extraction(sent, split, given, on_error, concurrent_reads=engine.concurrent_reads).into(
        writer
    )
    if reader is None or read_here:
        shares = _read_here(_pieces(opened, reader), writer)
    else:
        shares = _shares(reader, writer)
    stop = 0

    def noted() -> Iterator[Share]:
        nonlocal stop
        for share in shares:
            stop = share.stop
            yield share

    n_shards = None if reader is None else -(-reader.n_samples // writer.plan["shard_rows"])
    results = engine.map(extraction, noted(), runs_model=True)
    counts = False
    for filled in track(results, "features of the training set", n_shards, progress, "shard"):
        writer.add(filled.records)
        refuse_changed(watch, writer, thoroughly=False)
        counts = counts or filled.counts
        names.put(filled.ids)
    if not counts:
        fix = "Leave weights out to count every sample once."
        raise WhenceError(f"sample weights of {opened.argument}", "one that is not 0", "zeros only", fix)
    refuse_changed(watch, writer)
    index = _finished(writer, stop, names)
    index.watch = watch
    return index


def refuse_changed(watch: Watcher, index: Index, *, thoroughly: bool = True) -> None:
    """Raise if the model has changed while a training set goes through it; nothing of it is kept then."""
    got = watch.difference(thoroughly=thoroughly)
    if got is None:
        return
    index.forget()
    raise WhenceError(
        "influence_model",
        "a model that stays as it is while the training set goes through it",
        got,
        "Let training come to an end first, or wrap a copy of the model.",
    )


def _shares(reader: Reader, writer: Writer) -> Iterator[Share]:
    """Yield shares for workers that read; shards that begin in the same unit go together."""
    rows = writer.plan["shard_rows"]
    starts = np.arange(0, reader.n_samples, rows)
    unit_of_shard = np.searchsorted(reader.starts, starts, side="right")
    edges = [0, *(np.flatnonzero(np.diff(unit_of_shard)) + 1).tolist(), len(starts)]
    for first, last in itertools.pairwise(edges):
        numbers = range(first, last)
        records = {number: writer.records[number] for number in numbers if number in writer.records}
        yield Share(numbers, first * rows, min(last * rows, reader.n_samples), records)


def _read_here(pieces: Iterator[Piece], writer: Writer) -> Iterator[Share]:
    """Yield a share for each shard, with its samples."""
    rows = writer.plan["shard_rows"]
    held: list[Piece] = []
    number = stop = 0

    def share() -> Share:
        records = {number: writer.records[number]} if number in writer.records else {}
        return Share(
            range(number, number + 1), number * rows, min((number + 1) * rows, stop), records, held
        )

    for piece in pieces:
        held = [*held, piece._replace(element=_on_host(piece.element))]
        stop = piece.row + piece.n_samples
        while stop >= (number + 1) * rows:
            yield share()
            number += 1
            held = [p for p in held if p.row + p.n_samples > number * rows]
    if stop > number * rows:
        yield share()


def _on_host(tree: Any) -> Any:
    """Return a batch as it can be sent: arrays as NumPy's, tables and lists of texts as they are."""
    if is_texts(tree) or is_table(tree):
        return tree
    if isinstance(tree, Mapping):
        return {key: _on_host(part) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return tuple(_on_host(part) for part in tree)
    return None if tree is None else as_numpy(tree)


def _finished(writer: Writer, n_rows: int, names: SampleNames) -> StoredIndex:
    records = [writer.records[number] for number in sorted(writer.records)]
    gone = [entry["row"] for record in records for entry in record.get("skipped", [])]
    writer.unordered = names.unordered
    ids = names.names(n_rows, without=gone)
    if gone:
        warn(
            f"path {str(writer.folder)!r}: {len(gone)} of {n_rows} samples were left out; "
            "index.skipped says which and why."
        )
    writer.n_seen = n_rows - len(gone)
    return writer.finish(ids)


def _pieces(opened: Dataset, reader: Reader | None) -> Iterator[Piece]:
    """Yield the samples in order, read here."""
    if reader is not None:
        for unit in range(len(reader.starts) - 1):
            yield from reader.read(unit)
        return
    row = 0
    for number, element in enumerate(opened.elements()):
        n_samples = opened.batch(element, number).n_samples
        yield Piece(row, n_samples, element, number, opened.argument)
        row += n_samples
