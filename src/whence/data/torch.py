"""DataLoaders of PyTorch, and the map-style datasets behind them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import (
    ARRAY_BATCH_ROWS,
    LOOKED_AT,
    Batch,
    Dataset,
    fingerprints,
    leaves,
    map_leaves,
    register_dataset,
)
from whence.data.drawn import Drawn, batches_of
from whence.data.readers import Piece, Reader

__all__ = ["LoaderReader", "TorchDataset", "loader_of", "open_torch"]

#: Modules of loaders whose passes are known to give what their datasets and ``collate_fn`` do.
KNOWN_LOADERS = ("torch.", "torchdata.", "accelerate.", "whence.")


def _is_of_torch(dataset: Any) -> bool:
    data = sys.modules.get("torch.utils.data")  # not there unless the user has imported it
    if any(base.__module__.startswith("datasets.") for base in type(dataset).__mro__):
        return False  # a table that streams derives from both
    return data is not None and isinstance(dataset, data.DataLoader | data.Dataset)


@register_dataset("a DataLoader", _is_of_torch)
def open_torch(dataset: Any, argument: str) -> TorchDataset:
    """Return a DataLoader, or a dataset that is asked for samples by number, as a :class:`Dataset`.

    Raises
    ------
    WhenceError
        If it is a dataset that is iterated, sample by sample.
    """
    data = _torch().utils.data
    if isinstance(dataset, data.DataLoader):
        from whence.data._torch_samplers import without_wrappers

        return TorchDataset(without_wrappers(dataset), argument)
    if isinstance(dataset, data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise WhenceError(
            argument,
            "a torch.utils.data.DataLoader, which makes batches",
            f"a {type(dataset).__name__} of single samples",
            "Wrap it: DataLoader(dataset, batch_size=64).",
        )
    return TorchDataset(data.DataLoader(dataset, batch_size=ARRAY_BATCH_ROWS), argument)


class TorchDataset(Dataset):
    """Batches of a ``torch.utils.data.DataLoader``. What comes out is a DataLoader of CPU tensors.

    A loader of a map-style dataset is passed over in the order of that dataset, whatever its sampler does.
    """

    def __init__(self, loader: Any, argument: str) -> None:
        self._loader = loader
        self._drawn: Drawn | None = None
        self._has_own_pass = False
        self.argument = argument

    def prepare(self) -> None:
        """Find out which samples the loader draws, and read them in the order of its dataset."""
        from whence.data._torch_results import Results

        dataset = self._loader.dataset
        if isinstance(dataset, Results):
            return
        if hasattr(dataset, "__getitem__") and not isinstance(dataset, _torch().utils.data.IterableDataset):
            self._take_in_order()
        else:
            self._take_as_it_comes()

    def _take_in_order(self) -> None:
        from whence.data._torch_samplers import drawn_by

        loader = self._loader
        drawn = drawn_by(loader)
        if drawn is None:
            self.unordered = "draws its samples by something else than numbers that stay"
            return
        if loader.batch_size is None and loader.batch_sampler is None:
            self._take_whole_batches(drawn)
            return
        if not drawn.rows.size:
            return
        ordered = _plain(loader, drawn)
        if not _is_known(loader):
            if drawn.note is None or self.form.names_samples:
                self.may_vary = True
                return
            ordered = self._with_own_pass(ordered)
        self._loader, self._drawn, self.note = ordered, drawn, drawn.note
        if not np.array_equal(drawn.rows, np.arange(drawn.n_in_dataset)):
            self.positions, self.n_in_dataset = drawn.rows, drawn.n_in_dataset

    def _with_own_pass(self, ordered: Any) -> Any:
        """Return what gives the batches of a loader with an ``__iter__`` of its own in order, or raise.

        That is ``ordered`` if it gives the same, else the loader with another sampler, if the labels show
        that it goes by the sampler.
        """
        own = copy.copy(self._loader)
        vars(own).update(
            batch_sampler=ordered.batch_sampler,
            sampler=ordered.sampler,
            persistent_workers=False,
            _iterator=None,
        )
        self.labels_are_needed = False
        seen, plain = (_first_samples(self, loader) for loader in (own, ordered))
        self.labels_are_needed = True
        if np.array_equal(seen.prints, plain.prints):
            return ordered
        told_apart = plain.labels.size and len(np.unique(plain.labels)) > 1
        if told_apart and np.array_equal(seen.labels, plain.labels):
            self._has_own_pass = True
            return own
        raise WhenceError(
            self.argument,
            "a DataLoader that gives the samples that its sampler draws",
            f"a {type(own).__name__}, which makes batches in a way of its own, in an unknown order",
            "Pass its dataset, batched in order: DataLoader(loader.dataset, 64, "
            "collate_fn=loader.collate_fn); or let the samples bring their ids: InfluenceModel(..., "
            "batch=('x', 'y', 'id')).",
        )

    def _take_whole_batches(self, drawn: Drawn) -> None:
        """Read a dataset whose samples are whole batches, or that is asked for several at a time."""
        loader = self._loader
        with_numbers = next(iter(loader.sampler), None)
        if isinstance(with_numbers, list | tuple):
            size = len(with_numbers)
            self._drawn = drawn._replace(size=size)
            self._loader = _plain(loader, self._drawn, whole=True)
            self.note = drawn.note
            if not np.array_equal(drawn.rows, np.arange(drawn.n_in_dataset)):
                self.positions, self.n_in_dataset = drawn.rows, drawn.n_in_dataset
            return
        parts = leaves(loader.dataset[int(drawn.rows[0])]) if drawn.rows.size else []
        if parts and len(getattr(parts[0], "shape", ())) < 2:
            raise WhenceError(
                self.argument,
                "a torch.utils.data.DataLoader, which makes batches",
                f"a {type(loader).__name__} of single samples",
                "Give it a batch_size: DataLoader(dataset, batch_size=64).",
            )
        if drawn.note is None:
            return
        if drawn.rows.size < drawn.n_in_dataset:
            self.unordered = "gives some of its batches, so that positions in it have no meaning"
            return
        self._loader = _plain(loader, drawn, whole=True, single=True)
        self.note = drawn.note

    def _take_as_it_comes(self) -> None:
        """Read a dataset that is iterated, by one worker at most."""
        loader = self._loader
        self.may_vary = True
        if shuffles(loader.dataset):
            self.unordered = "shuffles: it is a table that streams, after shuffle()"
        if loader.num_workers > 1 and not self.form.names_samples:
            self._loader = _with_one_worker(loader)
            self.note = (
                f"its {loader.num_workers} workers are set aside: what is iterated is read by one, so that "
                "each sample comes once, in the order of the dataset"
            )

    @property
    def native(self) -> Any:
        return self._loader

    def elements(self) -> Iterator[Any]:
        yield from self._loader

    def batch(self, element: Any, number: int) -> Batch:
        """Split one element, and check that it holds the samples that were asked for."""
        check_columns(element, self._loader.dataset, f"batch {number} of {self.argument}")
        batch = super().batch(element, number)
        if self._drawn is not None and batch.ids is None:
            size, n = self._drawn.size, len(self._drawn.rows)
            _check_number(batch.n_samples, min(size, n - number * size), batch.where)
        return batch

    def reader(self, engine: Any) -> LoaderReader | None:
        if self._drawn is None or self._has_own_pass or self._loader.batch_sampler is None:
            return None
        return LoaderReader(self._loader, self._drawn, self.argument, self.form.names_samples)

    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        self.probe(function)
        return self._paired(function)

    def _paired(self, function: Callable[[Batch], Any]) -> Any:
        def generate() -> Iterator[Any]:
            for number, element in enumerate(self._loader):
                yield element, _tensors(function(self.batch(element, number)))

        return loader_of(generate, self.n_batches)

    def results(self, function: Callable[[Batch], Any]) -> Any:
        paired = self.pair_with(function)
        return loader_of(lambda: (result for _, result in paired), self.n_batches)

    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        made = [_tensors(element) for element in elements]
        return loader_of(lambda: iter(made), len(made))

    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        def inner(i: int) -> Any:
            return self._paired(lambda batch: function(i, batch))

        def generate() -> Iterator[Any]:
            for i, element in enumerate(outer):
                yield element, inner(i)

        self.probe(lambda batch: function(0, batch))
        return loader_of(generate, len(outer))


class LoaderReader(Reader):
    """What a DataLoader reads, sample by sample in its dataset's order: one that fails is known."""

    def __init__(self, loader: Any, drawn: Drawn, argument: str, names_samples: bool = False) -> None:
        self._dataset = loader.dataset
        self._collate = loader.collate_fn
        self._rows = drawn.rows
        self._argument = argument
        self._names_samples = names_samples
        n_samples, size = len(drawn.rows), drawn.size
        self.starts = np.minimum(np.arange(0, n_samples + size, size), n_samples)

    def read(self, unit: int) -> Iterator[Piece]:
        samples: list[Any] = []
        row = start = int(self.starts[unit])
        for row in range(start, int(self.starts[unit + 1])):
            try:
                samples.append(self._dataset[int(self._rows[row])])
            except Exception as error:
                if samples:
                    yield self._piece(row - len(samples), samples, unit)
                samples = []
                yield Piece(row, 1, None, unit, self._argument, error)
        if samples:
            yield self._piece(row + 1 - len(samples), samples, unit)

    def _piece(self, row: int, samples: list[Any], unit: int) -> Piece:
        element = self._collate(samples)
        check_columns(element, self._dataset, f"batch {unit} of {self._argument}")
        if not self._names_samples:
            found = {len(leaf) for leaf in leaves(element) if getattr(leaf, "ndim", 0)}
            if len(found) == 1:
                _check_number(found.pop(), len(samples), f"batch {unit} of {self._argument}")
        return Piece(row, len(samples), element, unit, self._argument)


def check_columns(element: Any, table: Any, where: str) -> None:
    """Raise for columns of lists, which PyTorch collates the other way round: a tensor for each place."""
    if not (type(table).__module__.startswith("datasets.") and isinstance(element, Mapping)):
        return
    turned = [k for k, v in element.items() if isinstance(v, list) and v and hasattr(v[0], "detach")]
    if turned:
        raise WhenceError(
            where,
            "columns as arrays, one row a sample",
            f"column {turned[0]!r} as a list of {len(element[turned[0]])} tensors",
            "Have the table give tensors: dataset.with_format('torch'); or pass the table itself.",
        )


def shuffles(table: Any) -> bool:
    """Return whether a table of ``datasets`` that streams is shuffled."""
    parts = [getattr(table, "_ex_iterable", None)]
    while parts:
        part = parts.pop()
        if part is None:
            continue
        if "Shuffl" in type(part).__name__:
            return True
        parts.append(getattr(part, "ex_iterable", None))
        parts.extend(getattr(part, "ex_iterables", ()))
    return False


def _check_number(found: int, wanted: int, where: str) -> None:
    """Raise if a collate_fn gives more or fewer samples than went into it."""
    if found == wanted:
        return
    raise WhenceError(
        where,
        f"{wanted} samples, as many as the loader's collate_fn is given",
        f"{found}",
        "Drop or split samples in the dataset, not in collate_fn, or let them bring their ids: "
        "InfluenceModel(..., batch=('x', 'y', 'id')).",
    )


def _plain(loader: Any, drawn: Drawn, *, whole: bool = False, single: bool = False) -> Any:
    """Return a loader of the same samples in the order of the dataset, with the same workers.

    ``whole`` is for datasets that make batches themselves: of several numbers, or of one if ``single``.
    """
    if single:
        order: dict[str, Any] = {"batch_size": None, "sampler": drawn.rows.tolist()}
    elif whole:
        order = {"batch_size": None, "sampler": batches_of(drawn.rows, drawn.size)}
    else:
        order = {"batch_sampler": batches_of(drawn.rows, drawn.size)}
    torch = _torch()
    options = order | _workers(loader, loader.num_workers) | {"generator": torch.Generator()}
    return torch.utils.data.DataLoader(loader.dataset, **options)


def _with_one_worker(loader: Any) -> Any:
    """Return a loader of what is iterated, with one worker."""
    return _torch().utils.data.DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        generator=loader.generator,
        **_workers(loader, 1),
    )


def _workers(loader: Any, n_workers: int) -> dict[str, Any]:
    options = {
        "num_workers": n_workers,
        "collate_fn": loader.collate_fn,
        "worker_init_fn": loader.worker_init_fn,
    }
    if n_workers:
        options |= {
            "multiprocessing_context": loader.multiprocessing_context,
            "timeout": loader.timeout,
            "prefetch_factor": loader.prefetch_factor,
        }
    return options


def _is_known(loader: Any) -> bool:
    owner = next(base for base in type(loader).__mro__ if "__iter__" in vars(base))
    return f"{owner.__module__}.".startswith(KNOWN_LOADERS)


class _Seen(NamedTuple):
    prints: np.ndarray
    labels: np.ndarray


def _first_samples(opened: Dataset, loader: Any) -> _Seen:
    """Return fingerprints and labels of the first samples that a loader gives."""
    prints: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for number, element in enumerate(loader):
        batch = opened.batch(element, number)
        prints.append(fingerprints(batch))
        labels.append(np.ravel(as_numpy(batch.labels)) if batch.labels is not None else np.zeros(0))
        if sum(map(len, prints)) >= LOOKED_AT:
            break
    return _Seen(np.concatenate(prints), np.concatenate(labels))


def _torch() -> Any:
    return import_extra("torch", "torch")


def loader_of(generate: Callable[[], Iterator[Any]], length: int | None) -> Any:
    """Return a DataLoader of batches that are made anew in each pass."""
    from whence.data import _torch_results

    return _torch_results.loader_of(generate, length)


def _tensors(tree: Any) -> Any:
    """Return a tree of arrays as tensors on the CPU, where torch has their dtype."""
    return map_leaves(_tensor, tree)


def _tensor(leaf: Any) -> Any:
    if hasattr(leaf, "detach"):
        return leaf.detach().cpu()
    array = as_numpy(leaf)
    if array.dtype.kind not in "biufc":
        return array
    return _torch().from_numpy(array if array.flags.writeable else array.copy())
