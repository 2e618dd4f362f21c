"""Reading parts of a dataset elsewhere: what a worker needs to read its own share.

A reader is a dataset in units (batches, or shards of the user's) that can be read by number, in any
process. It says at which row each unit starts, so that work can be divided before anything is read.
"""

from __future__ import annotations

import mmap
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import check_number, import_extra
from whence.data.base import (
    ARRAY_BATCH_ROWS,
    Batch,
    BatchList,
    Dataset,
    SequenceDataset,
    batch_at,
    leaves,
    length_of,
    map_leaves,
    register_dataset,
    take_rows,
)

__all__ = ["ArraysReader", "BatchReader", "Piece", "Reader", "Sharded", "ShardedDataset", "is_small"]

#: Bytes of a pickled dataset up to which it goes to the workers whole. A larger one holds its samples in
#: memory, and is read by the client.
SMALL_BYTES = 16 * 2**20

#: Held by the thread that reads a dataset.
_reading = threading.Lock()


class Piece(NamedTuple):
    """Some consecutive samples as they were read, or what kept them from it.

    Attributes
    ----------
    row : int
        The number of the first in the dataset.
    n_samples : int
    element : object
        A batch as the dataset gives it; ``None`` if it could not be read.
    number, argument : int, str
        How messages call it: ``batch <number> of <argument>``.
    error : Exception, optional
    """

    row: int
    n_samples: int
    element: Any
    number: int
    argument: str
    error: Exception | None = None


class Reader(ABC):
    """A dataset in units that are read by number, wherever the reader is.

    Attributes
    ----------
    starts : array of shape (n_units + 1,)
        The row of each unit's first sample; last, ``N``.
    """

    starts: np.ndarray
    #: Whether several threads may read at once, since no code of the user's runs.
    is_thread_safe: bool = False
    #: Whether a unit is one batch, so that all of it fits in memory.
    units_are_batches: bool = True

    @abstractmethod
    def read(self, unit: int) -> Iterator[Piece]:
        """Yield the batches of a unit."""

    def units(self, start: int, stop: int) -> range:
        """Return the units that hold some rows."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        return range(first, int(np.searchsorted(self.starts, stop, side="left")))

    @property
    def n_samples(self) -> int:
        """``N``."""
        return int(self.starts[-1])


def read_alone(reader: Reader, unit: int, *, concurrent: bool) -> Iterator[Piece]:
    """Yield the batches of a unit, while no other thread of this process reads a dataset.

    A dataset is the user's own code, and may hold a file that is at one place at a time. A unit of many
    batches is read, and what is done with each is done, before another thread has its turn.

    Parameters
    ----------
    reader : Reader
    unit : int
    concurrent : bool
        Whether the user says that threads may read at once.
    """
    if concurrent or reader.is_thread_safe:
        yield from reader.read(unit)
        return
    if reader.units_are_batches:
        with _reading:
            pieces = list(reader.read(unit))
        yield from pieces
        return
    with _reading:
        yield from reader.read(unit)


def _count(load: Callable[[int], Any], concurrent: bool, number: int) -> int:
    """Return how many samples a shard holds."""
    with nullcontext() if concurrent else _reading:
        return sum(map(n_samples_of, load(number)))


class BatchReader(Reader):
    """Batches that can be asked for by number, all but the last with as many samples."""

    def __init__(self, batches: Any, argument: str) -> None:
        self._batches = batches
        self._argument = argument
        n_batches = length_of(batches, argument)

        def size(number: int) -> int:
            return n_samples_of(batch_at(batches, number, argument))

        if isinstance(batches, list) or n_batches == 0:
            sizes = [size(number) for number in range(n_batches)]
        else:
            first, last = size(0), size(n_batches - 1)
            sizes = [first] * (n_batches - 1) + [last]
        self.starts = np.cumsum([0, *sizes])

    def read(self, unit: int) -> Iterator[Piece]:
        row, stop = int(self.starts[unit]), int(self.starts[unit + 1])
        piece = Piece(row, stop - row, None, unit, self._argument)
        try:
            element = self._batches[unit]
        except Exception as error:
            yield piece._replace(error=error)
            return
        _check_count(element, piece)
        yield piece._replace(element=element)


class ArraysReader(Reader):
    """Whole arrays, cut into batches; those that are mapped from files are mapped again elsewhere."""

    is_thread_safe = True

    def __init__(self, arrays: tuple[Any, ...], argument: str) -> None:
        self._arrays = map_leaves(_without_content, arrays)
        self._argument = argument
        n_samples = n_samples_of(arrays)
        self.starts = np.minimum(np.arange(0, n_samples + ARRAY_BATCH_ROWS, ARRAY_BATCH_ROWS), n_samples)

    def read(self, unit: int) -> Iterator[Piece]:
        rows = slice(int(self.starts[unit]), int(self.starts[unit + 1]))
        cut = take_rows(map_leaves(_opened, self._arrays), rows)
        yield Piece(rows.start, rows.stop - rows.start, cut, unit, self._argument)


class _MappedFile:
    """An array that lies in a file, without its content."""

    def __init__(self, mapped: np.memmap) -> None:
        self._options: dict[str, Any] = {
            "dtype": mapped.dtype,
            "offset": mapped.offset,
            "shape": mapped.shape,
        }
        self._name = str(mapped.filename)

    def open(self) -> np.memmap:
        """Map it again."""
        return np.memmap(self._name, mode="r", **self._options)


def _without_content(leaf: Any) -> Any:
    if isinstance(leaf, np.memmap) and isinstance(leaf.base, mmap.mmap) and leaf.flags.c_contiguous:
        return _MappedFile(leaf)
    return leaf


def _opened(leaf: Any) -> Any:
    return leaf.open() if isinstance(leaf, _MappedFile) else leaf


class Sharded:
    """A training set in shards that a function loads, so that each worker of a cluster reads its own.

    Parameters
    ----------
    load : callable
        ``load(number)`` returns an iterable of the batches ``(x, y)`` or ``(x, y, sample_weight)`` of
        shard ``number``, the same each time. It is called on the workers.
    n_shards : int
    counts : sequence of int, optional
        How many samples each shard holds. ``None``: every shard is loaded once more, to count them.

    Raises
    ------
    WhenceError
        If ``load`` cannot be called, or the counts are not those of ``n_shards`` shards.

    Examples
    --------
    >>> def load(number):
    ...     yield np.full((3, 2), number), np.zeros(3)
    >>> shards = Sharded(load, 2, counts=[3, 3])
    >>> [x[0, 0].item() for x, _ in shards]
    [0, 1]
    """

    def __init__(
        self, load: Callable[[int], Any], n_shards: int, counts: Sequence[int] | None = None
    ) -> None:
        if not callable(load):
            fix = "Pass a function that loads a shard by its number."
            raise WhenceError("load", "a function", described(load), fix)
        check_number(n_shards, "n_shards", minimum=1, integer=True)
        if counts is not None:
            given = np.asarray(counts)
            if given.shape != (n_shards,) or given.dtype.kind not in "iu" or (given < 1).any():
                fix = "Leave it out to have them counted."
                raise WhenceError("counts", f"{n_shards} positive integers", repr(counts), fix)
        self.load = load
        self.n_shards: int = int(n_shards)
        self.counts: list[int] | None = None if counts is None else [int(count) for count in counts]

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.n_shards):
            yield from self.load(number)


class ShardedReader(Reader):
    """The shards of a :class:`Sharded` dataset."""

    units_are_batches = False

    def __init__(self, load: Callable[[int], Any], counts: Sequence[int], argument: str) -> None:
        self._load = load
        self._argument = argument
        self.starts = np.cumsum([0, *counts])

    def read(self, unit: int) -> Iterator[Piece]:
        row, stop = int(self.starts[unit]), int(self.starts[unit + 1])
        where = f"shard {unit} of {self._argument}"
        number = 0
        try:
            batches = iter(self._load(unit))
            for number, element in enumerate(batches):
                piece = Piece(row, n_samples_of(element), element, number, where)
                row += piece.n_samples
                yield piece
        except Exception as error:  # what is left of the shard cannot be read
            yield Piece(row, stop - row, None, number + 1, where, error)
            row = stop
        if row != stop:
            expected = stop - int(self.starts[unit])
            raise WhenceError(
                where,
                f"{expected} samples, as counts say",
                f"{row - int(self.starts[unit])}",
                "Mend counts, or leave it out.",
            )


@register_dataset("a whence.Sharded", lambda dataset: isinstance(dataset, Sharded))
class ShardedDataset(Dataset):
    """Batches of a :class:`Sharded`. What comes out can be iterated again and again."""

    def __init__(self, shards: Sharded, argument: str) -> None:
        self._shards = shards
        self.argument = argument

    @property
    def native(self) -> Any:
        return self._shards

    def elements(self) -> Iterator[Any]:
        return iter(self._shards)

    def reader(self, engine: Any) -> Reader:
        counts = self._shards.counts
        if counts is None:
            count = partial(_count, self._shards.load, engine.concurrent_reads)
            counts = list(engine.map(count, range(self._shards.n_shards)))
        return ShardedReader(self._shards.load, counts, self.argument)

    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        self.probe(function)
        return _Pairs(self, function)

    def results(self, function: Callable[[Batch], Any]) -> Any:
        return _Pairs(self, function, with_element=False)

    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        return BatchList(len(elements), lambda number: elements[number])

    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        self.probe(lambda batch: function(0, batch))
        return BatchList(len(outer), lambda i: (outer[i], _Pairs(self, lambda batch: function(i, batch))))


class _Pairs:
    """Batches and what a function gives for each, computed anew in each pass."""

    def __init__(
        self, dataset: Dataset, function: Callable[[Batch], Any], *, with_element: bool = True
    ) -> None:
        self._dataset = dataset
        self._function = function
        self._with_element = with_element

    def __iter__(self) -> Iterator[Any]:
        for number, element in enumerate(self._dataset.elements()):
            result = self._function(self._dataset.batch(element, number))
            yield (element, result) if self._with_element else result


def n_samples_of(element: Any) -> int:
    """Return the length of a batch's first leaf; 0 if it has none."""
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves(element)[:1]]
    return int(shapes[0][0]) if shapes and shapes[0] else 0


def _check_count(element: Any, piece: Piece) -> None:
    found = n_samples_of(element)
    if found != piece.n_samples:
        raise WhenceError(
            f"batch {piece.number} of {piece.argument}",
            f"{piece.n_samples} samples, as in the first batch",
            f"{found}",
            "Give batches of one size, all but the last, or whence.Sharded(load, n_shards, counts=...).",
        )


def is_small(reader: Reader) -> bool:
    """Return whether a reader can go to the workers: it can be pickled, and holds no large arrays."""
    pickler = import_extra("cloudpickle", "distributed").Pickler(_Limited(), protocol=5)
    try:
        pickler.dump(reader)
    except Exception:
        return False
    return True


class _Limited:
    """A file that takes ``SMALL_BYTES``."""

    def __init__(self) -> None:
        self._left = SMALL_BYTES

    def write(self, data: Any) -> int:
        n_bytes = memoryview(data).nbytes
        self._left -= n_bytes
        if self._left < 0:
            raise OverflowError
        return n_bytes


def splitter(opened: Dataset) -> Dataset:
    """Return what takes elements apart as ``opened`` does, without its data."""
    empty = SequenceDataset([], opened.argument)
    empty.form = opened.form
    empty.of_arrays = opened.of_arrays
    empty.labels_are_needed = opened.labels_are_needed
    return empty
