"""What comes out of PyTorch's datasets. It derives from torch's classes: imported on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["Results", "loader_of"]


class Results(torch.utils.data.IterableDataset):
    """Elements that are made anew in each pass."""

    def __init__(self, generate: Callable[[], Iterator[Any]]) -> None:
        self._generate = generate

    def __iter__(self) -> Iterator[Any]:
        return self._generate()


class _SizedResults(Results):
    """The same, where it is known how many there are."""

    def __init__(self, generate: Callable[[], Iterator[Any]], length: int) -> None:
        super().__init__(generate)
        self._length = length

    def __len__(self) -> int:
        return self._length


def loader_of(generate: Callable[[], Iterator[Any]], length: int | None) -> Any:
    """Return a DataLoader of elements that are made anew in each pass."""
    results = Results(generate) if length is None else _SizedResults(generate, length)
    return torch.utils.data.DataLoader(results, batch_size=None, collate_fn=_unchanged)


def _unchanged(element: Any) -> Any:
    return element
