"""What a DataLoader draws of its dataset, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Drawn", "batches_of"]


class Drawn(NamedTuple):
    """What a DataLoader gives of a map-style dataset in an epoch.

    Attributes
    ----------
    rows : array of shape (n,)
        Which samples, ascending.
    n_in_dataset : int
        How many there are in the dataset.
    size : int
        How many make a batch.
    note : str or None
        What is to be said of it, where the order or the number is another than the loader's.
    """

    rows: np.ndarray
    n_in_dataset: int
    size: int
    note: str | None = None


def batches_of(rows: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """Return rows cut into batches.

    Examples
    --------
    >>> batches_of([0, 1, 2], 2)
    [[0, 1], [2]]
    """
    return [list(map(int, rows[start : start + size])) for start in range(0, len(rows), size)]
