"""A table as a CSV file inside a page, which a spreadsheet opens without running anything in it."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Export"]

#: Where a spreadsheet may begin a cell, and what it takes for the start of a formula there: at the
#: beginning, and behind whatever separates cells. One that separates by semicolons cuts a field at these,
#: quoted or not, and begins a line at each line break.
FORMULA = re.compile(
    r"(?:^|(?<=[;,|\n])|(?<=[^\s;,|]\t))(?=[\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=\t)"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: Tells spreadsheets that the text is UTF-8.
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Export:
    r"""Records that a table is exported as: whole numbers and ids, where the table itself is for reading.

    Attributes
    ----------
    file_name : str
    heads : sequence of str
    records : sequence of sequences
        In the order of the table's rows: numbers and texts.

    Examples
    --------
    A formula gets an apostrophe in front, also behind what separates cells in other spreadsheets:

    >>> Export("a.csv", ["id", "label"], [[7, "cat"], ["-1", "=1+1"], [8, "a;=1+1"]]).csv.split("\r\n")
    ['\ufeffid,label', '7,cat', "-1,'=1+1", "8,a;'=1+1", '']
    """

    file_name: str
    heads: Sequence[str]
    records: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        r"""The file's text; ``\r\n`` ends a record and stands nowhere else, so that it can be cut there."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([_harmless(head) for head in self.heads])
        writer.writerows([[_harmless(value) for value in record] for record in self.records])
        return BYTE_ORDER_MARK + file.getvalue()

    @property
    def address(self) -> str:
        """The file as a ``data:`` address."""
        text = self.csv.encode("utf-8", "replace")  # it may hold half a character
        return "data:text/csv;base64," + base64.b64encode(text).decode("ascii")


def _harmless(value: Any) -> Any:
    """Return a value as it may stand in a spreadsheet: numbers as they are, texts never a formula."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return text if _is_number(text) else FORMULA.sub("'", text)


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None
