"""The record of how ``whence index`` made an index, so that nobody has to say it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence._errors import WhenceError
from whence._paths import explain_failures
from whence._version import __version__
from whence.cli.data import DataSpec
from whence.cli.forms import InputSpec
from whence.cli.models import ModelSpec
from whence.index.files import write_json

__all__ = ["Record", "check_record", "read_record", "write_record"]

RECORD = "command.json"
FORMAT, FORMAT_VERSION = "whence command", 1


@dataclass(frozen=True)
class Record:
    """How an index was made.

    Attributes
    ----------
    model : ModelSpec
    digest : str
        Of the model's weights.
    data : str
        The path of the training set.
    reading : DataSpec
    form : InputSpec
    batch_size : int
    solver : dict
        Its name, arguments and options, to make the method again; see ``whence.cli.indexing``.
    method : str
        The folder of the method that was made last.
    """

    model: ModelSpec
    digest: str
    data: str
    reading: DataSpec
    form: InputSpec
    batch_size: int
    solver: dict[str, Any]
    method: str | None


def write_record(folder: Path, record: Record) -> None:
    """Write down how the index in a folder was made."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "model": record.model.as_json(),
        "digest": record.digest,
        "data": record.data,
        "reading": record.reading.as_json(),
        "form": record.form.as_json(),
        "batch_size": record.batch_size,
        "solver": record.solver,
        "method": record.method,
    }
    write_json(folder / RECORD, content)


def check_record(folder: Path) -> None:
    """Raise if the file that would be written holds something else than a record of whence."""
    file = folder / RECORD
    with explain_failures(folder):
        if not file.exists():
            return
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            content = None
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return
    raise WhenceError(
        f"path {str(folder)!r}",
        f"a folder whose {RECORD} whence wrote, or without one",
        "another file of that name",
        "Choose another path, or move that file.",
    )


def read_record(folder: Path) -> Record | None:
    """Return how an index was made; None if that was not by the command line."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {content['format']!r} {content['format_version']!r}")
        return Record(
            ModelSpec.from_json(content["model"]),
            content["digest"],
            content["data"],
            DataSpec.from_json(content["reading"]),
            InputSpec(**content["form"]),
            content["batch_size"],
            content["solver"],
            content["method"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WhenceError(
            f"DIR {str(folder)!r}",
            f"a {RECORD} that this version of whence wrote",
            f"another one ({type(error).__name__}: {error})",
            "Run whence index again with the same arguments: only what is missing is computed.",
        ) from error
