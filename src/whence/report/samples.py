"""Collections of single samples that users give to be shown; a dataset of batches is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whence._errors import WhenceError, described
from whence.arrays.base import as_numpy
from whence.data.tables import is_table

__all__ = ["check_notes", "checked_samples", "listed_names", "n_samples"]

#: Packages whose objects without a dtype are datasets, whose elements are more than a sample.
OF_DATASETS = {"datasets", "keras", "tensorflow", "torch"}


def checked_samples(samples: Any, argument: str) -> Any:
    """Return samples that can be asked for one by one, or raise; ``None`` stays ``None``.

    Sequences, mappings, frames and sparse matrices stay what they are, and datasets of single samples are
    asked as sequences; all else becomes an array.

    Examples
    --------
    >>> checked_samples("a text", "samples")
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: samples: expected a sequence of samples, got a str. Pass what a person
    should see of each sample, such as the texts, the images or the rows of a table, in a list.
    """
    if samples is None or is_table(samples):
        return samples
    if isinstance(samples, str | bytes | type):
        raise _no_samples(argument, described(samples))
    if _is_dataset(samples):
        return _Indexed(samples, argument)
    if isinstance(samples, Mapping | Sequence):
        return samples
    try:
        rows = as_numpy(samples)
    except Exception as error:  # of whatever it is
        raise _no_samples(argument, f"{described(samples)} ({type(error).__name__}: {error})") from error
    if rows.ndim == 0:
        raise _no_samples(argument, described(samples))
    return rows


def check_notes(notes: Any) -> None:
    """Raise unless notes are words by id, or ``None``."""
    if notes is None or isinstance(notes, Mapping):
        return
    raise WhenceError(
        "notes", "a few words on some training samples, by id", described(notes), "Pass a dict."
    )


def n_samples(samples: Any) -> int:
    """Return how many checked samples there are."""
    return int(samples.shape[0]) if hasattr(samples, "shape") else len(samples)


def listed_names(names: Any, argument: str, what: str) -> list[str]:
    """Return names as a list of texts, or raise.

    Parameters
    ----------
    names : sequence, array, or mapping from 0, 1, ... to a name
    argument, what : str
        For messages: what it is called, and what there is a name for.

    Examples
    --------
    >>> listed_names({1: "dog", 0: "cat"}, "class_names", "every class")
    ['cat', 'dog']
    """
    found: list[Any] | None = None
    if isinstance(names, Mapping):
        if set(names) == set(range(len(names))):
            found = [names[number] for number in range(len(names))]
    elif (
        isinstance(names, Iterable)
        and hasattr(names, "__len__")
        and not isinstance(names, str | bytes | set)
    ):
        try:
            found = list(names)
        except TypeError:  # an array of no axes
            found = None
    if found is None:
        raise WhenceError(argument, f"a name for {what}", described(names), "Pass a list of texts.")
    return [str(name) for name in found]


class _Indexed(Sequence[Any]):
    """A dataset that is asked by position, each of whose elements is a sample: not inputs and a label."""

    def __init__(self, dataset: Any, argument: str) -> None:
        self._dataset = dataset
        try:
            self._length = len(dataset)
            first = dataset[0] if self._length else None
        except Exception as error:  # of a loader, or of whatever the dataset is
            raise _no_samples(argument, described(dataset)) from error
        if isinstance(first, tuple | list):
            got = f"{described(dataset)}, whose elements are {described(first)} of {len(first)}"
            raise _no_samples(argument, got)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        if not -self._length <= place < self._length:
            raise IndexError(place)
        return self._dataset[place]


def _is_dataset(samples: Any) -> bool:
    """Return whether samples are a dataset: arrays ``(x, y)``, or an object that yields such."""
    if isinstance(samples, tuple) and len(samples) in (2, 3):
        shapes = [tuple(getattr(part, "shape", ())) for part in samples]
        return len(shapes[0]) > 1 and len(shapes[1]) == 1 and shapes[0][0] == shapes[1][0]
    packages = {base.__module__.split(".")[0] for base in type(samples).__mro__}
    return bool(packages & OF_DATASETS) and not hasattr(samples, "dtype")


def _no_samples(argument: str, got: str) -> WhenceError:
    return WhenceError(
        argument,
        "a sequence of samples",
        got,
        "Pass what a person should see of each sample, such as the texts, the images or the rows of a "
        "table, in a list.",
    )
