"""DataLoaders of PyTorch, and the tables of ``datasets`` that feed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import ARRAY_BATCH_ROWS, Batch, Dataset, map_leaves, register_dataset
from whence.data.readers import Piece, Reader

__all__ = ["LoaderReader", "TorchDataset", "open_torch"]


def _is_of_torch(dataset: Any) -> bool:
    is_table = type(dataset).__module__.startswith("datasets.") and hasattr(dataset, "column_names")
    bases = type(dataset).__mro__
    return is_table or any(base.__module__.startswith("torch.utils.data.") for base in bases)


@register_dataset("a DataLoader", _is_of_torch)
def open_torch(dataset: Any, argument: str) -> TorchDataset:
    """Return a DataLoader, or a table of ``datasets`` cut into batches, as a :class:`Dataset`.

    Raises
    ------
    WhenceError
        If it is a dataset of single samples.
    """
    if type(dataset).__module__.startswith("datasets."):
        return TorchDataset(_table(dataset, argument), argument)
    data = _torch().utils.data
    if isinstance(dataset, data.DataLoader):
        from whence.data._torch_results import Results

        if dataset.batch_sampler is None and not isinstance(dataset.dataset, Results):
            single = dataset.batch_size is None and dataset.collate_fn is not None
            if single and not isinstance(dataset.dataset, data.IterableDataset):
                raise _not_batched(dataset, argument)
        return TorchDataset(dataset, argument)
    raise _not_batched(dataset, argument)


def _not_batched(dataset: Any, argument: str) -> WhenceError:
    return WhenceError(
        argument,
        "a torch.utils.data.DataLoader, which makes batches",
        f"a {type(dataset).__name__} of single samples",
        "Wrap it: DataLoader(dataset, batch_size=64).",
    )


class TorchDataset(Dataset):
    """Batches of a ``torch.utils.data.DataLoader``. What comes out is a DataLoader of CPU tensors."""

    def __init__(self, loader: Any, argument: str) -> None:
        self._loader = loader
        self.argument = argument

    @property
    def native(self) -> Any:
        return self._loader

    def elements(self) -> Iterator[Any]:
        yield from self._loader

    def reader(self, engine: Any) -> LoaderReader | None:
        loader, data = self._loader, _torch().utils.data
        in_order = type(loader.batch_sampler) is data.BatchSampler and (
            type(loader.sampler) is data.SequentialSampler
        )
        return LoaderReader(loader, self.argument) if in_order else None

    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        self.probe(function)
        return self._paired(function)

    def _paired(self, function: Callable[[Batch], Any]) -> Any:
        def generate() -> Iterator[Any]:
            for number, element in enumerate(self._loader):
                yield element, _tensors(function(self.batch(element, number)))

        return _loader_of(generate, self.n_batches)

    def results(self, function: Callable[[Batch], Any]) -> Any:
        paired = self.pair_with(function)
        return _loader_of(lambda: (result for _, result in paired), self.n_batches)

    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        made = [_tensors(element) for element in elements]
        return _loader_of(lambda: iter(made), len(made))

    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        def inner(i: int) -> Any:
            return self._paired(lambda batch: function(i, batch))

        def generate() -> Iterator[Any]:
            for i, element in enumerate(outer):
                yield element, inner(i)

        self.probe(lambda batch: function(0, batch))
        return _loader_of(generate, len(outer))


class LoaderReader(Reader):
    """What a DataLoader without a shuffle reads, sample by sample, so that one that fails is known."""

    def __init__(self, loader: Any, argument: str) -> None:
        self._dataset = loader.dataset
        self._collate = loader.collate_fn
        self._argument = argument
        n_samples, size = len(loader.dataset), loader.batch_size
        n_samples -= n_samples % size if loader.drop_last else 0
        self.starts = np.minimum(np.arange(0, n_samples + size, size), n_samples)

    def read(self, unit: int) -> Iterator[Piece]:
        samples: list[Any] = []
        row = start = int(self.starts[unit])
        for row in range(start, int(self.starts[unit + 1])):
            try:
                samples.append(self._dataset[row])
            except Exception as error:
                if samples:
                    yield self._piece(row - len(samples), samples, unit)
                samples = []
                yield Piece(row, 1, None, unit, self._argument, error)
        if samples:
            yield self._piece(row + 1 - len(samples), samples, unit)

    def _piece(self, row: int, samples: list[Any], unit: int) -> Piece:
        return Piece(row, len(samples), self._collate(samples), unit, self._argument)


def _torch() -> Any:
    return import_extra("torch", "torch")


def _loader_of(generate: Callable[[], Iterator[Any]], length: int | None) -> Any:
    from whence.data._torch_results import loader_of

    return loader_of(generate, length)


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


def _table(table: Any, argument: str) -> Any:
    """Return batches of a ``datasets.Dataset`` as a DataLoader."""

    def cut(rows: list[int]) -> dict[str, Any]:
        columns = table.with_format("numpy")[rows]
        ragged = [k for k, v in columns.items() if v.dtype == object and isinstance(v[0], np.ndarray)]
        if ragged:
            raise WhenceError(
                argument,
                "columns of one length",
                f"column {ragged[0]!r}, whose rows differ in length",
                "Pad them: DataLoader(dataset, batch_size=64, collate_fn=DataCollatorWithPadding(...)).",
            )
        kept = {key: value for key, value in columns.items() if value.dtype.kind in "biuf"}
        return {key: _torch().from_numpy(value) for key, value in kept.items()}

    starts = range(0, len(table), ARRAY_BATCH_ROWS)
    batches = [list(range(i, min(i + ARRAY_BATCH_ROWS, len(table)))) for i in starts]
    return _torch().utils.data.DataLoader(batches, batch_size=None, collate_fn=cut)
