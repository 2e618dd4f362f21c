"""Progress bars on long steps: tqdm's, where it is installed and a person is looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["track"]

Item = TypeVar("Item")


def track(
    items: Iterable[Item], description: str, total: int | None, show: bool | None, unit: str = "batch"
) -> Iterator[Item]:
    """Yield ``items``, with a bar that says what is done and how much is left.

    Parameters
    ----------
    items : iterable
    description : str
        What is being done, e.g. ``"features of the training set"``.
    total : int or None
        How many items there are, if known.
    show : bool or None
        ``None`` shows the bar on a terminal or in a notebook and only if the work takes longer than
        half a second; ``True`` always shows it, ``False`` never.
    unit : str, default="batch"
    """
    if show is False:
        yield from items
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield from items
        return
    silent = None if show is None else False  # ``None`` asks tqdm whether there is a terminal
    delay = 0.5 if show is None else 0
    yield from tqdm(
        items, desc=description, total=total, unit=unit, disable=silent, delay=delay, leave=False
    )
