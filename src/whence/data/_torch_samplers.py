"""Which samples of its dataset a DataLoader gives, whatever the order in which it draws them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from whence.data.base import ARRAY_BATCH_ROWS
from whence.data.drawn import Drawn

__all__ = ["drawn_by", "without_wrappers"]

#: How many times its dataset a sampler may draw in an epoch before it is taken to go on for ever.
EPOCH_LIMIT = 10


#: What is said of samples that may come several times.
ONCE = "and each sample counts once, however often it is drawn"


def without_wrappers(loader: Any) -> Any:
    """Return the DataLoader inside those of accelerate, which only place and share out its batches."""
    while "base_dataloader" in vars(loader):
        loader = loader.base_dataloader
    return loader


def drawn_by(loader: Any) -> Drawn | None:
    """Return which samples a loader of a map-style dataset gives; None where they have no numbers."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while type(sampler).__module__.startswith("accelerate.") and hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    inner = getattr(sampler, "sampler", sampler)
    n = _length(loader.dataset)
    size = _batch_size(loader, sampler)
    if type(inner) is torch.utils.data.SequentialSampler and type(sampler) in (
        torch.utils.data.SequentialSampler,
        torch.utils.data.BatchSampler,
    ):
        return _in_order(len(inner), n, size, bool(getattr(sampler, "drop_last", False)))
    name = type(inner if type(sampler) is torch.utils.data.BatchSampler else sampler).__name__
    aside = f"the order of the loader's {name} is set aside: positions are those of the loader's dataset"
    if n is not None and _shares_out(inner):
        return Drawn(np.arange(n), n, size, f"{aside}, all of which is read here")
    if n is not None and isinstance(inner, torch.utils.data.WeightedRandomSampler):
        weights = torch.as_tensor(inner.weights).cpu().numpy()
        rows = np.flatnonzero(weights[:n] > 0)
        return Drawn(
            rows,
            n,
            size,
            f"{aside}, and each of the {len(rows)} samples that it draws counts once; if it should count "
            "by its weight, let the samples bring that: InfluenceModel(..., batch=('x', 'y', 'weight'))",
        )
    return _by_drawing(sampler, n, size, aside)


def _by_drawing(sampler: Any, n: int | None, size: int, aside: str) -> Drawn | None:
    """Return what a sampler gives that only an epoch or two of it can tell."""
    with _undisturbed(sampler):
        epochs = [_epoch(sampler, n) for _ in range(2)]
    first, second = epochs
    if first is None or second is None:
        return None
    rows = np.unique(first)
    is_fixed = np.array_equal(rows, np.unique(second))
    if n is None:
        if not is_fixed:
            return None
        n = int(rows[-1]) + 1
    elif rows.size and rows[-1] >= n:
        return None
    is_same = np.array_equal(first, second)
    if is_same and np.array_equal(first, np.arange(n)):
        return Drawn(rows, n, size)
    if not is_fixed:  # some, drawn anew from all
        return Drawn(np.arange(n), n, size, f"{aside}, {ONCE}")
    if rows.size < n:
        aside = f"{aside}, and the samples are the {rows.size} of its {n} that are drawn"
    elif len(first) > rows.size:
        aside = f"{aside}, {ONCE}"
    return Drawn(rows, n, size, aside)


def _in_order(n_drawn: int, n: int | None, size: int, drops_last: bool) -> Drawn:
    left_out = n_drawn % size if drops_last else 0
    note = f"drop_last=True leaves out the last {left_out} of {n_drawn} samples" if left_out else None
    return Drawn(np.arange(n_drawn - left_out), n_drawn if n is None else max(n, n_drawn), size, note)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _batch_size(loader: Any, sampler: Any) -> int:
    for size in (loader.batch_size, getattr(sampler, "batch_size", None)):
        if isinstance(size, int) and size > 0:
            return size
    return ARRAY_BATCH_ROWS


def _shares_out(sampler: Any) -> bool:
    """Return whether a sampler gives each of several processes its share of a dataset."""
    if isinstance(sampler, torch.utils.data.DistributedSampler):
        return True
    shares = getattr(sampler, "num_replicas", None)
    return isinstance(shares, int) and shares > 1


def _epoch(sampler: Any, n: int | None) -> np.ndarray | None:
    """Return the numbers that a sampler draws in an epoch, or None if they are none, or no numbers."""
    drawn = itertools.chain.from_iterable(
        entry if isinstance(entry, list | tuple) else (entry,) for entry in sampler
    )
    limit = None if n is None else EPOCH_LIMIT * n + 1
    listed = list(itertools.islice(drawn, limit))
    try:
        numbers = [number.__index__() for number in listed]
    except (AttributeError, TypeError, RuntimeError):
        return None
    if not numbers or min(numbers) < 0:
        return None
    return np.asarray(numbers, dtype=np.int64)


@contextmanager
def _undisturbed(sampler: Any) -> Iterator[None]:
    """Leave random numbers, a sampler's own and those of all, as they were."""
    import random

    own = [part for part in _parts(sampler) if isinstance(part, torch.Generator)]
    before = [generator.get_state() for generator in own]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (samplers use it)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for generator, state in zip(own, before, strict=True):
                generator.set_state(state)


def _parts(sampler: Any, depth: int = 3) -> Iterator[Any]:
    """Yield what a sampler holds, and what those hold that are samplers."""
    for part in getattr(sampler, "__dict__", {}).values():
        yield part
        if depth and isinstance(part, torch.utils.data.Sampler):
            yield from _parts(part, depth - 1)
