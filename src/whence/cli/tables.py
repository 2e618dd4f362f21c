"""Rows of tables and arrays as they lie in files: ``.npz``, ``.csv`` and ``.parquet``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import import_extra
from whence.cli.images import Frame

__all__ = ["LABEL_NAMES", "SUFFIXES", "Arrays", "DataSpec", "Table", "read_table"]

SUFFIXES = (".npz", ".csv", ".parquet")

#: Where labels are looked for when nobody says where they are.
LABEL_NAMES = ("label", "labels", "y", "target", "class")
#: Texts that pandas takes for a missing number.
MISSING = frozenset(
    (
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    )
)
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: Where the inputs are looked for in an ``.npz`` of more arrays.
INPUT_NAMES = ("x", "X")


@dataclass(frozen=True)
class DataSpec:
    """Where in a file everything stands; ``None`` for what nobody said.

    Attributes
    ----------
    label, id, weight : str or None
        Columns of a table, or arrays of an ``.npz``.
    inputs : list of str or None
        Columns or arrays that the model is given.
    frame : Frame
        The size and channels that images are brought to.
    """

    label: str | None = None
    id: str | None = None
    weight: str | None = None
    inputs: list[str] | None = None
    frame: Frame = field(default_factory=Frame)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DataSpec:
        """Return what :meth:`as_json` gave."""
        return cls(**content | {"frame": Frame(**content["frame"])})


class Table:
    """Columns of a table that a model is given."""

    are_images = False

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: Any) -> Any:
        """Return rows as a frame."""
        return self.frame.iloc[rows]

    def shown(self, row: int) -> Any:
        """Return what a person sees of a sample: its values by their names."""
        return {str(name): value for name, value in self.frame.iloc[row].to_dict().items()}

    def table(self) -> Any:
        """Return all samples as a frame."""
        return self.frame


class Arrays:
    """One array of inputs, or several by their names."""

    are_images = False

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: Any) -> Any:
        """Return rows of the array, or a dict of rows of each."""
        if len(self.arrays) == 1:
            return next(iter(self.arrays.values()))[rows]
        return {name: array[rows] for name, array in self.arrays.items()}

    def shown(self, row: int) -> Any:
        """Return what a person sees of a sample."""
        return self.take(row)

    def table(self) -> Any:
        """Return all samples as a frame, or None if they are no rows of numbers."""
        first = next(iter(self.arrays.values()))
        if len(self.arrays) > 1 or first.ndim != 2 or first.dtype.kind not in "biuf":
            return None
        return import_extra("pandas", "cli").DataFrame(first)


class Rows(NamedTuple):
    """The contents of a file, in the order of the attributes of :class:`~whence.cli.data.Samples`."""

    source: Table | Arrays
    reading: DataSpec
    labels: np.ndarray | None
    weight: np.ndarray | None
    ids: np.ndarray | None


def read_table(
    path: Path, reading: DataSpec, columns: list[str] | None, argument: str, remembered: frozenset[str]
) -> Rows:
    """Return the samples in a file.

    Parameters
    ----------
    path : Path
    reading : DataSpec
    columns : list of str or None
        Those that the model was fitted on, which are taken where nobody says which.
    argument : str
        The name of the path in messages.
    remembered : set of str
        Attributes of ``reading`` that are left out where they are not there.
    """
    where = f"{argument} {str(path)!r}"
    if path.suffix.lower() == ".npz":
        return _read_npz(path, reading, where, remembered)
    return _read_frame(path, reading, columns, where, remembered)


def _label_among(there: Sequence[str]) -> str | None:
    """Return the column of labels that is taken where nobody says which."""
    return next((name for name in LABEL_NAMES if name in there), None)


def _pick(given: str | None, there: Sequence[str], option: str, path: Path) -> str | None:
    """Return the name that was given, checked against what is there."""
    if given is None or given in there:
        return given
    raise WhenceError(
        option,
        f"one of {', '.join(there[:20])}, which {path.name} holds",
        repr(given),
        "Check its spelling.",
    )


def _places(reading: DataSpec, there: list[str], path: Path, remembered: frozenset[str]) -> DataSpec:
    """Return where everything stands, checked; the label is looked for if nobody says where it is."""
    for name in remembered:
        if getattr(reading, name) not in there:
            absent: dict[str, Any] = {name: None}
            reading = replace(reading, **absent)
    _pick(reading.label, there, "--label", path)
    _pick(reading.id, there, "--id", path)
    _pick(reading.weight, there, "--weight", path)
    for name in reading.inputs or []:
        _pick(name, there, "--inputs", path)
    if reading.label is not None or "label" in remembered:
        return reading
    found = [name for name in LABEL_NAMES if name in there]
    if len(found) > 1:
        raise WhenceError(
            "--label",
            f"which of {', '.join(found)} in {path.name} holds the labels",
            "nothing",
            f"Say it, e.g. --label {found[0]}.",
        )
    return replace(reading, label=found[0] if found else None)


# ------------------------------------------------------------------------------------------ .npz


def _read_npz(path: Path, reading: DataSpec, where: str, remembered: frozenset[str]) -> Rows:
    try:
        # Opened here, since numpy leaves a file open that is no zip.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            there = list(content.files)
            reading = _places(reading, there, path, remembered)
            if reading.inputs is None:
                reading = replace(reading, inputs=_input_arrays(reading, there, path))
            names = [*(reading.inputs or []), reading.label, reading.weight, reading.id]
            arrays = {name: content[name] for name in dict.fromkeys(names) if name is not None}
    except WhenceError:
        raise
    except Exception as error:  # zip, zlib and NumPy have many for what is broken or made to break
        fix = "Save it again with numpy.savez."
        if "allow_pickle" in str(error):
            fix = "It holds Python objects, which could run code: save plain arrays with numpy.savez."
        got = f"a file that cannot be read ({error})"
        raise WhenceError(where, "arrays of numpy.savez", got, fix) from error
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) > 1 or () in lengths:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in sorted(arrays.items()))
        raise WhenceError(
            where, "arrays with one row for each sample", f"shapes {shapes}", "Save arrays of one length."
        )
    inputs = {name: arrays[name] for name in reading.inputs or []}
    label, weight, ids = (
        None if name is None else arrays[name] for name in (reading.label, reading.weight, reading.id)
    )
    return Rows(Arrays(inputs), reading, label, weight, ids)


def _input_arrays(reading: DataSpec, there: list[str], path: Path) -> list[str]:
    rest = [name for name in there if name not in (reading.label, reading.weight, reading.id)]
    named = [name for name in INPUT_NAMES if name in rest]
    if len(named) == 1 or len(rest) == 1:
        return named if len(named) == 1 else rest
    raise WhenceError(
        "--inputs",
        f"which of the arrays in {path.name} the model is given",
        f"none of {', '.join(there)}" if there else "none, for it is empty",
        "Name it, once for each: --inputs x",
    )


# ---------------------------------------------------------------------------------------- frames


def _read_frame(
    path: Path, reading: DataSpec, columns: list[str] | None, where: str, remembered: frozenset[str]
) -> Rows:
    frame, ids = _frame_in(path, where, reading)
    there = list(frame.columns)
    reading = _places(reading, there, path, remembered)
    inputs = reading.inputs
    if inputs is None and columns is not None:
        # LightGBM has an underscore for every blank.
        known = {name.replace(" ", "_"): name for name in there} | {name: name for name in there}
        missing = [name for name in columns if name not in known]
        if missing:
            raise WhenceError(
                where,
                f"the {len(columns)} columns that the model was fitted on",
                f"a table without {', '.join(missing[:5])}",
                "Add them, or name the columns to use with --inputs.",
            )
        inputs = [known[name] for name in columns]
    if inputs is None:
        inputs = [name for name in there if name not in (reading.label, reading.weight, reading.id)]
    if not inputs:
        raise WhenceError(where, "columns for the model", "none beside the labels", "Add them.")
    label, weight, named = (
        None if name is None else np.asarray(frame[name])
        for name in (reading.label, reading.weight, reading.id)
    )
    found = replace(reading, inputs=inputs)
    return Rows(Table(frame[inputs]), found, label, weight, ids if named is None else named)


def _frame_in(path: Path, where: str, reading: DataSpec) -> tuple[Any, np.ndarray | None]:
    """Return a table with texts for column names, and the names of its rows if it holds some."""
    pandas = import_extra("pandas", "cli")
    kind = path.suffix.lower().lstrip(".")
    if kind == "parquet":
        import_extra("pyarrow", "parquet")
    try:
        frame = _read_csv(pandas, path, reading) if kind == "csv" else pandas.read_parquet(path)
    except Exception as error:  # pandas and pyarrow have an error of their own for each kind of damage
        got = f"one that cannot be read ({type(error).__name__}: {error})"
        raise WhenceError(where, f"a {kind} file", got, "Check the file, or save it again.") from error
    has_names = kind == "parquet" and not isinstance(frame.index, pandas.RangeIndex)
    frame.columns = [str(name) for name in frame.columns]
    return frame, np.asarray(frame.index) if has_names else None


def _read_csv(pandas: Any, path: Path, reading: DataSpec) -> Any:
    """Return a CSV file as a frame; ids and labels are what stands there, such as 007 and NA."""
    there = pandas.read_csv(path, nrows=0).columns
    label = reading.label if reading.label is not None else _label_among([str(name) for name in there])
    as_texts = [name for name in there if str(name) in (label, reading.id)]
    frame = pandas.read_csv(path)
    if as_texts:
        texts = pandas.read_csv(
            path, usecols=lambda name: name in as_texts, dtype=str, keep_default_na=False
        )
        for name in as_texts:
            frame[name] = plain_column(texts[name].tolist(), are_labels=str(name) == label)
    return frame


def plain_column(texts: list[str], are_labels: bool) -> np.ndarray:
    """Return a column of labels or ids as numbers if they are written like such, else as the texts.

    Examples
    --------
    >>> plain_column(["7", "10"], False), plain_column(["007", "010"], False).tolist()
    (array([ 7, 10]), ['007', '010'])
    >>> plain_column(["NA", "NZ"], True).tolist(), plain_column(["0.5", "NA"], True).tolist()
    (['NA', 'NZ'], [0.5, nan])
    """
    if are_labels:
        texts = [text.strip() for text in texts]
        present = [text for text in texts if text not in MISSING]
        values = {"true": True, "false": False}
        if present and all(text.lower() in values for text in texts):
            return np.asarray([values[text.lower()] for text in texts])
        if present and all(map(_is_number, present)):
            if len(present) == len(texts) and all(map(_is_integer, texts)):
                return np.asarray([int(text) for text in texts])
            return np.asarray([np.nan if text in MISSING else float(text) for text in texts])
    elif all(map(_is_integer, texts)):
        return np.asarray([int(text) for text in texts])
    return np.asarray([text or None for text in texts], dtype=object)


def _is_integer(text: str) -> bool:
    """Return whether a text is an integer as integers are written, without zeros in front."""
    digits = text.removeprefix("-")
    return (
        digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0") and len(digits) < 19
    )


def _is_number(text: str) -> bool:
    """Return whether a text is a number as numbers are written, without zeros in front."""
    return NUMBER.fullmatch(text) is not None
