"""Rows of a table side by side with their neighbours, and the columns in which they differ.

A row is compared column by column: numbers with a fraction by how far they are apart, next to how much the
column varies over the training samples; everything else (integers, which may be codes, texts, categories,
truth values) by whether it is the same. Two missing values are the same.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import WhenceError
from whence.answers.explanation import Explanation
from whence.arrays.base import as_numpy, check_number
from whence.data.tables import are_names, is_table, plain_id
from whence.report.names import visible
from whence.report.numbers import number
from whence.report.page import Cell, Column, Table
from whence.report.samples import checked_samples, listed_names

__all__ = [
    "N_COLUMNS",
    "TOLERANCE",
    "Comparison",
    "Rows",
    "is_tabular",
    "kept_columns",
    "neighbours_table",
    "shown",
]

#: How far apart numbers with a fraction must be to differ, in standard deviations of their column.
TOLERANCE = 0.1

#: How many columns of the data a page shows of one explained row: those that differ come first.
N_COLUMNS = 40


def is_tabular(samples: Any) -> bool:
    """Return whether samples are rows of a table: a frame, a matrix, or rows by name.

    Examples
    --------
    >>> is_tabular(np.zeros((3, 2))), is_tabular([{"age": 31}]), is_tabular(["a text"])
    (True, True, False)
    """
    if samples is None or isinstance(samples, str | bytes):
        return False
    if isinstance(samples, Mapping | Sequence):
        first = next(iter(_each(samples)), None)
        return isinstance(first, Mapping)
    return len(getattr(samples, "shape", ())) == 2


class Rows:
    """Rows of a table by the ids of samples.

    Parameters
    ----------
    samples : frame, array or sparse matrix of shape (n, d), sequence of mappings, or mapping
        A pandas frame is asked by its index, unless that holds other things than the ids, such as times,
        which are then positions; every other table by position; a mapping by id.
    argument : str
        The name of the argument in messages.
    names : sequence of str, optional
        The columns of an array; numbers by default.

    Examples
    --------
    >>> rows = Rows([{"age": 31, "town": "Ulm"}, {"age": 40, "town": "Bonn"}], "samples")
    >>> rows.names, rows.row(1)
    (('age', 'town'), [40, 'Bonn'])
    """

    def __init__(self, samples: Any, argument: str, names: Sequence[str] | None = None) -> None:
        self._argument = argument
        samples = checked_samples(samples, argument)
        if not is_tabular(samples):
            raise WhenceError(
                argument,
                "a table: a frame, an array (n, d), a sparse matrix, or rows as dicts",
                f"a {type(samples).__name__}",
                "Pass the rows that a person should see, in the order of the samples.",
            )
        self._samples = samples.tocsr() if scipy.sparse.issparse(samples) else samples
        self._places: dict[Any, int] | None = None
        listed = samples.index.tolist() if hasattr(samples, "iloc") else []
        self._names_are_integers: bool = any(type(name) is int for name in listed)
        if hasattr(samples, "iloc") and (are_names(listed) or self._names_are_integers):
            self._places = {name: i for i, name in enumerate(listed)} if are_names(listed) else {}
            if 0 < len(self._places) < len(samples):
                fix = "Give its rows distinct names: frame.reset_index(drop=True)."
                raise WhenceError(argument, "a frame with distinct row names", "one with equal ones", fix)
        self.names = self._names(names)

    def _names(self, given: Sequence[str] | None) -> tuple[str, ...]:
        samples = self._samples
        if isinstance(samples, Mapping | Sequence):
            found = tuple(map(str, next(iter(_each(samples)))))
        elif hasattr(samples, "columns"):
            found = tuple(map(str, samples.columns))
        else:
            width = range(samples.shape[1])
            found = tuple(
                map(str, width) if given is None else listed_names(given, "column_names", "every column")
            )
            if len(found) != samples.shape[1]:
                raise WhenceError(
                    "column_names", f"{samples.shape[1]} names, one a column", f"{len(found)} names"
                )
        return found

    def __len__(self) -> int:
        return len(self._samples) if not hasattr(self._samples, "shape") else int(self._samples.shape[0])

    def in_order(self, ids: np.ndarray) -> list[list[Any]]:
        """Return the rows of explained samples: in their order if there are as many, else by id."""
        if not _is_map(self._samples) and len(self) == len(ids):
            return [self._at(place) for place in range(len(ids))]
        return [self.row(one) for one in ids]

    def row(self, sample_id: Any) -> list[Any]:
        """Return the values of one row.

        Raises
        ------
        WhenceError
            If there is no row of that id.
        """
        name = plain_id(sample_id)
        if _is_map(self._samples):
            if name in self._samples:
                return self._listed(self._samples[name])
        elif self._places is not None and name in self._places:
            return self._at(self._places[name])
        elif isinstance(name, int) and 0 <= name < len(self) and not self._names_are_integers:
            return self._at(name)
        raise WhenceError(
            self._argument,
            f"a row of id {name!r}",
            f"{len(self)} rows without it",
            "Pass every row in the order of the ids, a frame with the ids as its index, or a dict.",
        )

    def _at(self, place: int) -> list[Any]:
        samples = self._samples
        if hasattr(samples, "iloc"):
            return [_plain(samples.iloc[place, column]) for column in range(len(self.names))]
        if hasattr(samples, "row") and hasattr(samples, "columns"):  # polars
            return [_plain(value) for value in samples.row(place)]
        if scipy.sparse.issparse(samples):
            return samples[[place], :].toarray()[0].tolist()
        if isinstance(samples, Sequence):
            return self._listed(samples[place])
        return as_numpy(samples[place]).tolist()

    def _listed(self, row: Mapping[Any, Any]) -> list[Any]:
        by_name = {str(name): _plain(value) for name, value in row.items()}
        return [by_name.get(name) for name in self.names]

    def spread(self) -> np.ndarray:
        """Return the deviation of each column of numbers with a fraction, else 0, shape ``(d,)``."""
        samples = self._samples
        if not is_table(samples) and hasattr(samples, "shape"):
            array = as_numpy(samples)
            if array.dtype.kind != "f":
                return np.zeros(array.shape[1])
            return np.nan_to_num(np.nanstd(array.astype(np.float64), axis=0))
        if scipy.sparse.issparse(samples):
            if samples.dtype.kind != "f":
                return np.zeros(samples.shape[1])
            mean = np.asarray(samples.mean(axis=0)).ravel()
            square = np.asarray(samples.multiply(samples).mean(axis=0)).ravel()
            return np.sqrt(np.maximum(square - mean**2, 0.0))
        if hasattr(samples, "columns"):
            columns = [
                samples.iloc[:, c] if hasattr(samples, "iloc") else samples[:, c]
                for c in range(len(self.names))
            ]
            return np.asarray([_spread(column) for column in columns])
        by_column = zip(*(self._listed(row) for row in _each(samples)), strict=True)
        return np.asarray([_spread_of_values(column) for column in by_column])


class Comparison:
    """Says in which columns rows differ.

    Parameters
    ----------
    samples, training_samples : table
        See :class:`Rows`.
    column_names : sequence of str, optional
        The columns of arrays.
    tolerance : float
        See ``TOLERANCE``.

    Examples
    --------
    The column varies by 10: numbers that are 0.5 apart do not differ, 5 apart they do.

    >>> training = np.asarray([[0.0], [20.0]])
    >>> compared = Comparison(np.asarray([[3.0]]), training)
    >>> compared.differs([3.0], [3.5]), compared.differs([3.0], [8.0])
    ([False], [True])
    """

    def __init__(
        self,
        samples: Any,
        training_samples: Any,
        *,
        column_names: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        check_number(tolerance, "tolerance")
        self.explained = Rows(samples, "samples", column_names)
        self.training = Rows(training_samples, "training_samples", column_names)
        if self.explained.names != self.training.names:
            raise WhenceError(
                "samples",
                f"the columns of the training samples: {', '.join(self.training.names[:10])}",
                f"{', '.join(self.explained.names[:10])}",
                "Give both with the same columns, in the same order.",
            )
        self._margins = tolerance * self.training.spread()

    def differs(self, row: Sequence[Any], other: Sequence[Any]) -> list[bool]:
        """Return for each column whether two rows differ."""
        return [
            _differs(one, two, margin) for one, two, margin in zip(row, other, self._margins, strict=True)
        ]


def neighbours_table(explanation: Explanation, t: int, comparison: Comparison) -> Table:
    """Return explained row ``t`` beside its neighbours, for a page: one line for each column of the data.

    Entries that differ from the explained row are marked.
    """
    row = comparison.explained.in_order(explanation.sample_ids)[t]
    ids = np.concatenate([explanation.ids[t], explanation.opponent_ids[t]])
    values = np.concatenate([explanation.values[t], explanation.opponent_values[t]])
    others = [comparison.training.row(one) for one in ids]
    marks = [comparison.differs(row, other) for other in others]
    names = comparison.training.names
    kept = kept_columns(np.asarray(marks, dtype=bool).reshape(-1, len(names)).sum(axis=0))
    heads = [f"{number(v, sign=True)} id {visible(i)}" for v, i in zip(values, ids, strict=True)]
    columns = [Column("Column"), Column("Explained"), *map(Column, heads)]
    cells = [
        [
            Cell(names[c]),
            Cell(shown(row[c])),
            *(Cell(shown(o[c]), mark=m[c]) for o, m in zip(others, marks, strict=True)),
        ]
        for c in kept
    ]
    left = len(names) - len(kept)
    more = f"; {left} more columns, in which fewer differ, are not shown" if left else ""
    caption = f"Row {visible(explanation.sample_ids[t])} beside its neighbours, what differs marked{more}"
    return Table(caption, columns, cells)


def kept_columns(n_differing: np.ndarray) -> np.ndarray:
    """Return the columns that a page shows: those in which most rows differ, in the order of the data."""
    return np.sort(np.argsort(-n_differing, kind="stable")[:N_COLUMNS])


def shown(value: Any) -> str:
    """Return a value as a table shows it.

    Examples
    --------
    >>> shown(0.123456), shown(True), shown(None), shown(float("nan"))
    ('0.1235', 'True', 'missing', 'missing')
    """
    if _is_missing(value):
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _differs(one: Any, two: Any, margin: float) -> bool:
    missing = _is_missing(one), _is_missing(two)
    if any(missing):
        return missing[0] is not missing[1]
    if margin and isinstance(one, numbers.Real) and isinstance(two, numbers.Real):
        return bool(abs(float(one) - float(two)) > margin)
    return bool(one != two)


def _is_missing(value: Any) -> bool:
    # pandas' own NA and NaT have no truth value when they are compared.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def _each(samples: Mapping[Any, Any] | Sequence[Any]) -> Iterable[Any]:
    return samples.values() if isinstance(samples, Mapping) else samples


def _is_map(samples: Any) -> bool:
    return isinstance(samples, Mapping)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _spread(column: Any) -> float:
    """Return the standard deviation of a frame's column if it holds numbers with a fraction, else 0."""
    if "float" not in str(column.dtype).lower():
        return 0.0
    options = {"dtype": np.float64, "na_value": np.nan} if hasattr(column, "iloc") else {}
    values = np.asarray(column.to_numpy(**options), dtype=np.float64)
    return float(np.nanstd(values)) if np.isfinite(values).any() else 0.0


def _spread_of_values(column: Sequence[Any]) -> float:
    present = [value for value in column if not _is_missing(value)]
    if not present or not any(isinstance(v, float) for v in present):
        return 0.0
    return float(np.std(present)) if all(isinstance(v, numbers.Real) for v in present) else 0.0
