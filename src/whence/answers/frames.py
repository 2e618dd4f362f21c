"""Rows of answers by id, and their way into data frames and Parquet files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._files import FileKind, check_file, replaced
from whence.arrays.base import import_extra

__all__ = [
    "by_method",
    "frame_cells",
    "is_named",
    "label_kind",
    "named_classes",
    "pluralised",
    "rows_by_id",
    "to_frame",
    "write_parquet",
]

#: How many characters of a key a message shows.
LONGEST_KEY = 80
#: How many ids a message names.
NAMES_LISTED = 10
#: The packages that a frame can be made with, and the extra that brings each.
LIBRARIES = {"pandas": "report", "polars": "polars"}


def to_frame(columns: Mapping[str, Any], library: str) -> Any:
    """Return columns as a data frame of ``"pandas"`` or ``"polars"``.

    Examples
    --------
    >>> to_frame({"id": np.asarray([3, 1])}, "pandas")["id"].tolist()
    [3, 1]
    """
    if not isinstance(library, str) or library not in LIBRARIES:
        raise WhenceError("library", " or ".join(map(repr, LIBRARIES)), repr(library), "Choose one.")
    make = import_extra(library, LIBRARIES[library]).DataFrame
    with _of_columns(library):
        return make(dict(columns))


@contextlib.contextmanager
def _of_columns(holder: str) -> Iterator[None]:
    """Say in our words that ids or labels are nothing that a table can hold."""
    try:
        yield
    except Exception as error:  # each library has its own for what it cannot hold
        raise WhenceError(
            "ids",
            f"ids and labels that a column of {holder} can hold",
            f"others ({type(error).__name__}: {error})",
            "Give ids of one kind, such as texts or integers: explain(..., ids=...).",
        ) from error


def write_parquet(columns: Mapping[str, Any], about: Mapping[str, Any], path: str | Path) -> Path:
    """Write columns to a Parquet file, with ``about`` as JSON under ``whence`` in the schema's metadata."""
    pyarrow = import_extra("pyarrow", "parquet")
    parquet = import_extra("pyarrow.parquet", "parquet")
    kind = FileKind(
        "a Parquet file of whence", lambda handle: b"whence" in parquet.read_schema(handle).metadata
    )
    file = check_file(path, kind)
    with _of_columns("Parquet"):
        table = pyarrow.table(dict(columns))
    metadata = {"whence": json.dumps(dict(about), default=str)}
    with replaced(file) as handle:
        parquet.write_table(table.replace_schema_metadata(metadata), handle)
    return file


def frame_cells(values: np.ndarray) -> Any:
    """Return one cell of a frame for each row: a number or text, or the list of those of all positions.

    Examples
    --------
    >>> frame_cells(np.asarray([[1, 2], [3, -1]]))
    [[1, 2], [3, -1]]
    """
    # Arrays of objects, such as ids from a frame's index, as lists: each library finds their type.
    return values.tolist() if values.ndim > 1 or values.dtype == object else values


def label_kind(about: Mapping[str, Any], predictions: np.ndarray) -> str:
    """Return the kind of labels and predictions: ``"class"``, ``"tags"`` or ``"value"``."""
    return str(about.get("label_kind", "value" if predictions.dtype.kind == "f" else "class"))


def named_classes(labels: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Return labels or predictions as the user calls classes, where the model knows names of its own.

    Examples
    --------
    >>> named_classes(np.asarray([1, 0]), {"label_kind": "class", "class_names": ["no", "yes"]}).tolist()
    ['yes', 'no']
    """
    names = about.get("class_names")
    if names is None or about.get("label_kind") != "class" or labels.dtype.kind not in "iu":
        return labels
    named = np.asarray(names, dtype=object)[labels]
    named[labels < 0] = None  # a position that does not count
    return named


def rows_by_id(key: Any, names: np.ndarray, answer: str, noun: str) -> Any:
    """Return where the names are that ``key`` asks for: a slice, one of them, or a list of them."""
    if isinstance(key, slice):
        return key
    is_list = isinstance(key, list | np.ndarray) and np.ndim(key)
    wanted = list(key) if is_list else [key]
    if is_list and wanted and all(isinstance(one, bool | np.bool_) for one in wanted):
        if len(wanted) == len(names):
            return np.flatnonzero(wanted)
        expected = f"{len(names)} truth values, one for each of {answer}"
        raise WhenceError(f"{answer}[...]", expected, f"{len(wanted)}", "Pass ids, or a slice.")
    places: list[int] = []
    for one in wanted:
        found = [place for place, name in enumerate(names) if is_named(name, one)]
        if not found:
            listed = ", ".join(str(name) for name in names[:NAMES_LISTED])
            more = f" and {len(names) - NAMES_LISTED:,} more" if len(names) > NAMES_LISTED else ""
            raise WhenceError(
                f"{answer}[{shortened(one)}]",
                f"the id of {noun}",
                "one that is not there",
                f"The ids are {listed}{more}.",
            )
        places += found
    return np.asarray(places, dtype=np.intp)


def is_named(name: Any, wanted: Any) -> bool:
    """Return whether an id is the one that is wanted; a truth value is no number."""
    if isinstance(wanted, tuple) or isinstance(name, tuple):
        return isinstance(wanted, tuple) and isinstance(name, tuple) and wanted == name
    if isinstance(wanted, bool | np.bool_) != isinstance(name, bool | np.bool_) or np.ndim(wanted):
        return False
    same = name == wanted
    return isinstance(same, bool | np.bool_) and bool(same)


def shortened(thing: Any) -> str:
    """Return what a message calls a key: a line of bounded length."""
    text = " ".join(repr(thing).split())
    return text if len(text) <= LONGEST_KEY else f"{text[:LONGEST_KEY]} …"


def pluralised(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if need be."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def by_method(about: Mapping[str, Any]) -> str:
    """Return the method in brackets, if it is known."""
    return f" ({about['method']})" if "method" in about else ""
