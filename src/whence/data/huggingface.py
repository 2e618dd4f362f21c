"""Tables of ``datasets``: whole, in their own format, and those that stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import ARRAY_BATCH_ROWS, register_dataset
from whence.data.form import is_texts
from whence.data.torch import TorchDataset, loader_of, shuffles

__all__ = ["open_table"]

#: Formats of a table that give columns as something else than arrays or lists.
OTHER_FORMATS = ("pandas", "polars", "arrow")


def _is_of_datasets(dataset: Any) -> bool:
    modules = (base.__module__ for base in type(dataset).__mro__)
    return any(name.startswith("datasets.") for name in modules) and hasattr(dataset, "column_names")


@register_dataset("a datasets.Dataset", _is_of_datasets)
def open_table(table: Any, argument: str) -> TorchDataset:
    """Return a table of ``datasets`` cut into batches.

    Raises
    ------
    WhenceError
        If it is several tables by name, or a column has rows of different lengths.
    """
    if isinstance(table, Mapping):
        some = ", ".join(map(repr, table))
        fix = f"Choose one: dataset[{next(iter(table), 'train')!r}]."
        raise WhenceError(argument, "one table of datasets", f"a {type(table).__name__} of {some}", fix)
    if not hasattr(table, "__len__"):
        return _open_stream(table, argument)
    formatted = _formatted(table)

    def cut(rows: list[int]) -> dict[str, Any]:
        try:
            columns = formatted[rows]
        except Exception as error:  # of a transform of the user's, or of datasets itself
            raise WhenceError(
                argument,
                "a table whose columns can be arrays, and a transform that takes them",
                f"rows {rows[0]} to {rows[-1]}, refused with {type(error).__name__}: {error}",
                "Leave out rows with None in them: dataset.filter(...). Or leave out columns: "
                "dataset.remove_columns(...).",
            ) from error
        return _columns(columns, argument)

    starts = range(0, len(table), ARRAY_BATCH_ROWS)
    batches = [list(range(i, min(i + ARRAY_BATCH_ROWS, len(table)))) for i in starts]
    loader = import_extra("torch", "torch").utils.data.DataLoader(batches, batch_size=None, collate_fn=cut)
    return _Table(loader, argument)


class _Table(TorchDataset):
    """Batches of a table, in its own order."""

    def prepare(self) -> None:
        return None


def _open_stream(table: Any, argument: str) -> TorchDataset:
    def generate() -> Iterator[dict[str, Any]]:
        formatted = table.with_format("numpy") if _format_of(table) is None else table
        for columns in formatted.iter(batch_size=ARRAY_BATCH_ROWS):
            yield _columns(columns, argument)

    opened = _Table(loader_of(generate, None), argument)
    opened.may_vary = True
    if shuffles(table):
        opened.unordered = "shuffles: it is a table that streams, after shuffle()"
    return opened


def _format_of(table: Any) -> str | None:
    """Return the format that a user gave a table, if it is one of arrays or lists."""
    kind = getattr(table, "format", {}).get("type") if hasattr(table, "format") else None
    kind = getattr(getattr(table, "_formatting", None), "format_type", kind)
    return None if kind in OTHER_FORMATS or kind == "python" else kind


def _formatted(table: Any) -> Any:
    """Return a table that gives arrays: in the user's own format, with a transform, where there is one."""
    if _format_of(table) is not None:
        return table
    kept = table.format
    return table.with_format(
        "numpy", columns=kept["columns"], output_all_columns=kept["output_all_columns"]
    )


def _columns(columns: Any, argument: str) -> dict[str, Any]:
    """Return a batch with its columns of numbers as tensors, and its texts as lists."""
    if not isinstance(columns, Mapping):
        fix = "Let the transform return a dict of columns."
        raise WhenceError(argument, "batches as dicts of columns", f"a {type(columns).__name__}", fix)
    made = {key: _column(key, value, argument) for key, value in columns.items()}
    return {key: value for key, value in made.items() if value is not None}


def _column(name: str, column: Any, argument: str) -> Any:
    """Return a column as a tensor or a list of texts; None if it is neither."""
    if hasattr(column, "detach"):
        return column
    listed = column.tolist() if isinstance(column, np.ndarray) and column.dtype.kind in "OUS" else column
    if is_texts(listed):
        return listed
    rows = column if hasattr(column, "shape") and column.dtype != object else list(column)
    if isinstance(rows, list):
        if any(isinstance(row, Mapping) for row in rows):
            return None
        rows = [as_numpy(row) if hasattr(row, "shape") else row for row in rows]
    try:
        array = as_numpy(rows) if hasattr(rows, "shape") else np.asarray(rows)
    except ValueError:
        array = None
    if array is None or (array.dtype == object and array.ndim == 1 and hasattr(rows[0], "__len__")):
        raise WhenceError(
            argument,
            "columns of one length",
            f"column {name!r}, whose rows differ in length",
            "Pad them: DataLoader(dataset, batch_size=64, collate_fn=DataCollatorWithPadding(...)). Or "
            f"leave it out: dataset.remove_columns([{name!r}]).",
        )
    if array.dtype.kind not in "biuf":
        return None
    return import_extra("torch", "torch").from_numpy(array if array.flags.writeable else array.copy())
