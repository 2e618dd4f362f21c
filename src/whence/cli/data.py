"""Samples of every kind, seen the same way: rows of a table, arrays, or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.cli.forms import InputSpec
from whence.cli.images import IMAGE_SUFFIXES, Images, open_images
from whence.cli.tables import LABEL_NAMES, SUFFIXES, Arrays, DataSpec, Table, read_table

__all__ = ["Arrays", "Batches", "DataSpec", "Samples", "Table", "check_path", "read_samples"]


@dataclass(frozen=True)
class Samples:
    """Samples in a file.

    Attributes
    ----------
    source : Table, Arrays or Images
    reading : DataSpec
        Where everything was found.
    labels : array of shape (n, ...) or None
        As they stand there.
    weight : array of shape (n,) or None
    ids : array of shape (n,) or None
    classes : list of str or None
        Names of the classes, where folders tell.
    """

    source: Table | Arrays | Images
    reading: DataSpec
    labels: np.ndarray | None = None
    weight: np.ndarray | None = None
    ids: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> np.ndarray:
        """The ids, or positions."""
        return np.arange(len(self)) if self.ids is None else self.ids

    def table(self) -> Any:
        """Return the samples as a frame named by their ids, or None if they are no rows of a table."""
        frame = self.source.table()
        return None if frame is None else frame.set_axis(self.names, axis=0)

    def batch(self, rows: Any, form: InputSpec, where: str) -> tuple[Any, ...]:
        """Return some samples as the model takes them: ``(inputs, labels, weight)``, the last if given."""
        inputs = form.inputs(self.source.take(rows), self.source.are_images)
        labels = None if self.labels is None else form.labels(self.labels[rows], f"labels in {where}")
        if self.weight is None:
            return inputs, labels
        return inputs, labels, self.weight[rows]

    def select(self, rows: np.ndarray) -> Samples:
        """Return some of the samples, each with the name that it has among all."""
        source: Any = _Selected(self.source, rows)
        labels, weight = (None if a is None else a[rows] for a in (self.labels, self.weight))
        return replace(self, source=source, ids=self.names[rows], labels=labels, weight=weight)


class _Selected:
    def __init__(self, source: Any, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.are_images = source.are_images

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Any) -> Any:
        return self._source.take(self._rows[rows])

    def shown(self, row: int) -> Any:
        return self._source.shown(int(self._rows[row]))

    def table(self) -> Any:
        whole = self._source.table()
        return None if whole is None else whole.iloc[self._rows]


class Batches(Sequence[Any]):
    """Samples in batches, each read and brought into the model's form when it is asked for."""

    def __init__(self, samples: Samples, form: InputSpec, batch_size: int, where: str) -> None:
        self._samples, self._form, self._size, self._where = samples, form, batch_size, where

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    def __getitem__(self, number: Any) -> Any:
        start = range(0, len(self._samples), self._size)[number]
        rows = np.arange(start, min(start + self._size, len(self._samples)))
        return self._samples.batch(rows, self._form, self._where)


def read_samples(
    path: Path,
    reading: DataSpec,
    form: InputSpec,
    argument: str,
    *,
    remembered: frozenset[str] | None = None,
    progress: bool | None = None,
) -> Samples:
    """Return the samples in a file or folder.

    Parameters
    ----------
    path : Path
    reading : DataSpec
    form : InputSpec
        The inputs of the model: its columns, and the size of images.
    argument : str
        The name of the path in messages.
    remembered : set of str, optional
        Attributes of ``reading`` that are left out where they are not there. If it is given, so may the
        labels be.
    progress : bool or None
        Of the look at every image.

    Raises
    ------
    WhenceError
        If it is none of the known kinds, damaged, or what was asked for is not in it.
    """
    check_path(path, argument)
    suffix = path.suffix.lower()
    labels_are_needed = remembered is None
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        images, labels, names, classes = open_images(
            path, reading.frame, argument, labels_are_needed, progress
        )
        if labels_are_needed and labels is None:
            raise WhenceError(
                f"{argument} {str(path)!r}",
                "one folder of images for each class in it",
                "images outside of such",
                "Put the images of each class into a folder with its name.",
            )
        found = replace(reading, frame=images.frame)
        return Samples(images, found, labels, None, names, classes)
    samples = Samples(*read_table(path, reading, form.columns, argument, remembered or frozenset()))
    _check(samples, path, argument, labels_are_needed)
    return samples


def check_path(path: Path, argument: str) -> None:
    """Raise unless there is something at a path that looks like samples."""
    suffix = path.suffix.lower()
    if not path.exists():
        got, fix = "nothing there", "Check the path."
    elif path.is_dir() or suffix in SUFFIXES or suffix in IMAGE_SUFFIXES:
        return
    else:
        got = f"one that ends in {suffix!r}" if suffix else "one without such an ending"
        fix = "Save it as one of these."
    raise WhenceError(
        f"{argument} {str(path)!r}",
        f"a file that ends in {', '.join(SUFFIXES)}, or a folder with one folder of images for each class",
        got,
        fix,
    )


def _check(samples: Samples, path: Path, argument: str, labels_are_needed: bool) -> None:
    where = f"{argument} {str(path)!r}"
    if not len(samples):
        raise WhenceError(where, "at least one sample", "an empty file", "Check how it was made.")
    if labels_are_needed and samples.labels is None:
        raise WhenceError(
            where,
            f"labels, called {', '.join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}",
            "none of that name",
            "Name them with --label.",
        )
    if samples.labels is not None and samples.labels.dtype.kind == "O":
        missing = [row for row, label in enumerate(samples.labels) if _is_missing(label)]
        if missing:
            raise WhenceError(
                f"labels in {path.name}",
                "one for every sample",
                f"{len(missing)} missing, first in row {missing[0]}",
                "Leave these samples out.",
            )
    if samples.ids is not None and samples.ids.dtype.kind == "O":
        missing = [row for row, name in enumerate(samples.ids) if _is_missing(name)]
        if missing:
            raise WhenceError(
                f"--id {samples.reading.id or 'index'}",
                "an id for every sample",
                f"{len(missing)} missing, first in row {missing[0]}",
                "Fill them in, or name another column.",
            )
    if samples.ids is not None and len(np.unique(samples.ids.astype(str))) < len(samples.ids):
        raise WhenceError(
            f"--id {samples.reading.id or 'index'}",
            "another id for every sample",
            "some that occur twice",
            "Name a column of ids that are all different, or none.",
        )


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and np.isnan(label)) or str(label) == "<NA>"
