"""Progress bars on long steps: tqdm's, where it is installed and a person is looking."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["track"]

Item = TypeVar("Item")

#: Seconds that work takes at least before a bar is shown of it.
DELAY = 0.5


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
        half a second, however long its first step takes; ``True`` always shows it, ``False`` never.
    unit : str, default="batch"
    """
    if show is False:
        yield from items
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets the bar of a notebook is made of text
            from tqdm.auto import tqdm
    except ImportError:
        yield from items
        return
    # ``None`` asks tqdm whether there is a terminal, which a notebook is not.
    silent = None if show is None and not _in_notebook() else False
    delay = DELAY if show is None else 0
    bar = tqdm(items, desc=description, total=total, unit=unit, disable=silent, delay=delay, leave=False)
    # tqdm looks at the delay only when a step is done, and the first may take minutes.
    timer = threading.Timer(DELAY, bar.refresh)
    timer.daemon = True
    if delay and not bar.disable:
        timer.start()
    try:
        yield from bar
    finally:
        timer.cancel()
        bar.close()


def _in_notebook() -> bool:
    """Return whether a kernel runs this, whose output a person reads in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
