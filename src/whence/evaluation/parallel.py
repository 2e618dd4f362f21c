"""One function over many seeds or subsets: here, or on several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from whence._errors import WhenceError
from whence.arrays.base import check_number, import_extra
from whence.progress import track

__all__ = ["parallel_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    n_jobs: int,
    description: str,
    progress: bool | None,
    unit: str = "fit",
) -> list[Result]:
    """Return ``[function(item) for item in items]``, on ``n_jobs`` processes if that is not 1.

    Raises
    ------
    MissingExtraError
        If joblib is not installed and ``n_jobs`` is not 1.
    WhenceError
        If ``n_jobs`` is 0 or not an integer.

    Examples
    --------
    >>> parallel_map(lambda number: number**2, [1, 2, 3], 1, "squares", False)
    [1, 4, 9]
    """
    every = list(items)
    if n_jobs == -1:
        jobs: Any = -1
    else:
        check_number(n_jobs, "n_jobs", minimum=1, integer=True)
        jobs = int(n_jobs)
    if jobs == 1:
        return [function(item) for item in track(every, description, len(every), progress, unit)]
    joblib = import_extra("joblib", "sklearn")
    if not every:
        raise WhenceError(description, "at least one item", "none", "Give some.")
    run = joblib.Parallel(n_jobs=jobs, return_as="generator")
    results = run(joblib.delayed(function)(item) for item in every)
    return list(track(results, description, len(every), progress, unit))
