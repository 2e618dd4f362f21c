"""A table as a CSV file inside a page, which a spreadsheet opens without running anything in it."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Export"]

#: What spreadsheets take for the start of a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
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
    Texts that a spreadsheet would run get an apostrophe in front:

    >>> Export("a.csv", ["id", "label"], [[7, "cat"], ["-1", "=1+1"]]).csv.split("\r\n")
    ['\ufeffid,label', '7,cat', "-1,'=1+1", '']
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
    return "'" + text if text.startswith(FORMULA_STARTS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
