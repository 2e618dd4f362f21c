"""Where the work on blocks is done: here, in threads, or on a Dask cluster.

Everything about a training set is a map over parts of it or a sum over them. Which parts there are, and
the order in which sums are added up, is decided here by the training set alone, so that results do not
depend on the engine or on how many workers it has.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from whence.arrays.base import check_number
from whence.engine.blocks import Block, Blocks
from whence.progress import track

__all__ = [
    "Converted",
    "Engine",
    "Fold",
    "Part",
    "Serial",
    "Threads",
    "cut",
    "engine_of",
    "parts_of",
    "total",
]

#: Rows that a part has at least, so that adding its sum to the others weighs little beside making it.
PART_ROWS = 2048

#: The most parts that a stored training set is cut into.
MAX_PARTS = 2048

#: How many sums are added one after another before the result goes up one level.
BRANCHES = 8


class Part(list[Block]):
    """Some consecutive blocks of a training set.

    Attributes
    ----------
    first : int
        The number of the first block.
    """

    def __init__(self, blocks: Iterable[Block], first: int) -> None:
        super().__init__(blocks)
        self.first = first


class Converted:
    """Blocks, or a part of some, each of which is converted on the way.

    Parameters
    ----------
    blocks : Blocks or Part
    convert : callable
        Takes a block and returns one.
    """

    def __init__(self, blocks: Any, convert: Callable[[Block], Block]) -> None:
        self.blocks = blocks
        self.convert = convert
        self.first: int = getattr(blocks, "first", 0)

    @property
    def n_samples(self) -> int:
        """``N``."""
        return self.blocks.n_samples

    @property
    def engine(self) -> Engine:
        """Where work on the blocks is done."""
        return engine_of(self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return map(self.convert, self.blocks)


class Fold:
    """A sum of things that come one by one, added up in an order that only their number decides.

    ``BRANCHES`` of them are added one after another, then as many of these sums, and so on: memory is a
    sum for each level, and on a cluster sums are added where they lie.

    Parameters
    ----------
    add : callable
        ``add(left, right)`` returns their sum; it may change ``left``.

    Examples
    --------
    >>> fold = Fold(lambda left, right: f"({left}+{right})")
    >>> for letter in "abcdefghij":
    ...     fold.push(letter)
    >>> fold.result()
    '((((((((a+b)+c)+d)+e)+f)+g)+h)+(i+j))'
    """

    def __init__(self, add: Callable[[Any, Any], Any]) -> None:
        self._add = add
        self._levels: list[tuple[Any, int]] = []  # a sum, and how many it is of

    def push(self, value: Any, level: int = 0) -> None:
        """Take in the next one."""
        if level == len(self._levels):
            self._levels.append((None, 0))
        before, count = self._levels[level]
        value = value if count == 0 else self._add(before, value)
        full = count + 1 == BRANCHES
        self._levels[level] = (None, 0) if full else (value, count + 1)
        if full:
            self.push(value, level + 1)

    def result(self) -> Any:
        """Return the sum; None of nothing."""
        rest, is_empty = None, True
        for value, count in self._levels:
            if count:
                rest = value if is_empty else self._add(value, rest)
                is_empty = False
        return rest


class Engine(ABC):
    """Does work on the parts of a training set."""

    #: Whether several threads of a process may read a user's dataset at once.
    concurrent_reads: bool = False

    @abstractmethod
    def map(self, function: Callable[[Any], Any], parts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield ``function(part)`` of each part, in their order.

        Parameters
        ----------
        function : callable
            On a cluster it is sent to each worker once, with all that it refers to.
        parts : iterable
        **options
            For a cluster; see :class:`~whence.engine.cluster.Cluster`.
        """

    def total(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Any:
        """Return the sum of ``function(part)``: an array, a number, or a tuple of such, in new memory."""
        fold = Fold(add_in_place)
        for value in self.map(function, parts):
            fold.push(value)
        return fold.result()

    @property
    def is_remote(self) -> bool:
        """Whether parts are worked on by other processes."""
        return False


class Serial(Engine):
    """One part after another, in the caller's thread."""

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any], **options: Any) -> Iterator[Any]:
        return map(function, parts)


class Threads(Engine):
    """Parts in threads of this process, which share its memory.

    BLAS computes in threads of its own already. More of them pay where reading, decoding or elementwise
    steps weigh as much as matrix products; while they run, BLAS is given the processors divided by their
    number, if ``threadpoolctl`` is installed.

    Parameters
    ----------
    n_threads : int or None, default=None
        ``None``: as many as there are processors.
    concurrent_reads : bool, default=False
        Whether several threads may read the training set at once. A dataset that holds one open file, or
        anything else that changes while a sample is read, would mix samples up; one that opens a file for
        each sample is read faster so.

    Examples
    --------
    >>> list(Threads(2).map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """

    def __init__(self, n_threads: int | None = None, *, concurrent_reads: bool = False) -> None:
        self.concurrent_reads: bool = bool(concurrent_reads)
        if n_threads is not None:
            check_number(n_threads, "n_threads", minimum=1, integer=True)
        self.n_threads: int = int(n_threads or os.cpu_count() or 1)

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any], **options: Any) -> Iterator[Any]:
        pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="whence")
        try:
            with _fewer_blas_threads(self.n_threads):
                yield from in_order(lambda part: pool.submit(function, part), parts, self.n_threads + 1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    submit: Callable[[Any], Any],
    parts: Iterable[Any],
    n_ahead: int,
    result: Callable[[Any, Any], Any] = lambda future, part: future.result(),
) -> Iterator[Any]:
    """Yield the results of futures in the order of ``parts``, ``n_ahead`` of them begun at a time."""
    begun: deque[tuple[Any, Any]] = deque()
    for part in parts:
        begun.append((submit(part), part))
        if len(begun) >= n_ahead:
            yield result(*begun.popleft())
    while begun:
        yield result(*begun.popleft())


def _fewer_blas_threads(n_threads: int) -> Any:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(max(1, (os.cpu_count() or 1) // n_threads), user_api="blas")


def engine_of(blocks: Any) -> Engine:
    """Return the engine of a training set that has one; else the work is done here."""
    return getattr(blocks, "engine", None) or Serial()


def parts_of(blocks: Any) -> Iterable[Any]:
    """Return a training set in parts: its own, or blocks that together have enough rows."""
    own = getattr(blocks, "parts", None)
    return _gathered(blocks) if own is None else own()


def _gathered(blocks: Iterable[Block]) -> Iterator[Part]:
    part, n_rows = Part([], 0), 0
    for number, block in enumerate(blocks):
        part.append(block)
        n_rows += block.phi.shape[0]
        if n_rows >= PART_ROWS:
            yield part
            part, n_rows = Part([], number + 1), 0
    if part:
        yield part


def cut(counts: Sequence[int]) -> list[range]:
    """Return which shards make up each part, given how many samples each holds.

    Examples
    --------
    >>> cut([1500, 1500, 1500, 500])
    [range(0, 2), range(2, 4)]
    """
    enough = max(PART_ROWS, -(-sum(counts) // MAX_PARTS))
    ranges, start, n_rows = [], 0, 0
    for number, count in enumerate(counts):
        n_rows += count
        if n_rows >= enough:
            ranges.append(range(start, number + 1))
            start, n_rows = number + 1, 0
    if start < len(counts):
        ranges.append(range(start, len(counts)))
    return ranges


def total(blocks: Blocks, function: Callable[[Any], Any], doing: str | None = None) -> Any:
    """Return the sum over a training set of what ``function`` gives for each part of it.

    Parameters
    ----------
    blocks : Blocks
    function : callable
        Takes a part, which is iterated for blocks; returns an array, a number, or a tuple of such, in
        memory of its own.
    doing : str, optional
        What it is, for a bar where the training set says that one is to be shown.

    Examples
    --------
    >>> import numpy as np
    >>> ones = [Block(np.ones((3, 2)), np.zeros(3)), Block(np.ones((1, 2)), np.zeros(1))]
    >>> total(ones, lambda part: sum(block.phi.sum(axis=0) for block in part))
    array([4., 4.])
    """
    if isinstance(blocks, Converted):
        convert = blocks.convert
        return total(blocks.blocks, lambda part: function(Converted(part, convert)), doing)
    parts = parts_of(blocks)
    if doing is not None:
        parts = track(
            parts, doing, getattr(blocks, "n_parts", None), getattr(blocks, "progress", False), "part"
        )
    return engine_of(blocks).total(function, parts)


def add_in_place(left: Any, right: Any) -> Any:
    """Return ``left + right``, in the memory of ``left`` where arrays can be changed."""
    if isinstance(left, tuple):
        return tuple(add_in_place(*pair) for pair in zip(left, right, strict=True))
    left += right
    return left
