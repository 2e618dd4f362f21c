"""The parts of a page, and its way through the template to one self-contained file.

A page is a list of sections; a section holds paragraphs, cards and tables. Nothing here knows where they
come from: ``html`` makes them of answers, and whoever has more to say adds sections of their own.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from whence._files import FileKind, check_file, replaced
from whence._version import __version__
from whence.arrays.base import import_extra
from whence.report.export import Export
from whence.report.pictures import Picture

__all__ = ["PAGE", "Card", "Cell", "Column", "Contribution", "Fact", "Page", "Section", "Side", "Table"]


#: The signs of a page: in its head, and in pages of version 0.1 right behind it.
SIGNS = (b'<meta name="generator" content="whence', b'<p class="brand">whence</p>')
#: Where they stand at the latest.
N_BYTES = 2**16


def _is_page(handle: BinaryIO) -> bool:
    head = handle.read(N_BYTES)
    return head.startswith(b"<!doctype html>") and any(sign in head for sign in SIGNS)


PAGE = FileKind("a page of whence", _is_page)


@dataclass(frozen=True)
class Fact:
    """A figure worth stating first: what it is, its value, and a few words."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table; ``numeric`` sets it flush right.

    In a table that can be sorted and filtered, ``sortable`` says whether by this column, and ``choices``
    whether its texts are offered to choose from.
    """

    name: str
    numeric: bool = False
    sortable: bool = True
    choices: bool = False


@dataclass(frozen=True)
class Cell:
    """One entry of a table: text, a picture, or a text set apart as a mark.

    ``key`` is the number that it is sorted by, where that is not to be read off its text.
    """

    text: str = ""
    picture: Picture | None = None
    mark: bool = False
    key: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a caption; a row is a sequence of :class:`Cell` s or texts, the first its heading.

    One with an ``export`` is a long list: sorted, filtered, shown a part at a time, and exported.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    export: Export | None = None

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, every entry a :class:`Cell`."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


@dataclass(frozen=True)
class Contribution:
    """The value of one training sample for one prediction, as it stands on a card.

    Attributes
    ----------
    name : str
        Which sample, e.g. ``"id 7"``.
    value, label : str
    width : float
        The length of its bar, as a share of the longest on the card.
    picture : Picture or None
    note : str
        Set apart as a mark.
    share : str
        Of the sum of all values, if that is known.
    """

    name: str
    value: str
    label: str
    width: float
    picture: Picture | None = None
    note: str = ""
    share: str = ""


@dataclass(frozen=True)
class Side:
    """The supporters (``kind="for"``) or the opponents (``kind="against"``) of one prediction."""

    title: str
    kind: str
    contributions: Sequence[Contribution]


@dataclass(frozen=True)
class Card:
    """One explained prediction; ``mark`` is set apart beside its name, ``tables`` stand below the sides."""

    title: str
    name: str
    facts: Sequence[tuple[str, str]]
    sides: Sequence[Side]
    picture: Picture | None = None
    mark: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    paragraphs: Sequence[str] = ()
    cards: Sequence[Card] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """One self-contained HTML file.

    Attributes
    ----------
    title : str
    lead : sequence of str
        Paragraphs under the title.
    summary : sequence of (name, value)
        Model, layer, method and so on; the date and the version of whence are added.
    facts : sequence of Fact
    sections : sequence of Section
    about : mapping
        How everything was computed, in full; stands at the foot of the page.
    """

    title: str
    lead: Sequence[str] = ()
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    summary: Sequence[tuple[str, str]] = ()

    def render(self) -> str:
        """Return the page as HTML. All text is escaped; nothing is loaded from outside.

        Raises
        ------
        MissingExtraError
            If jinja2 is not installed.
        """
        jinja2 = import_extra("jinja2", "report")
        loader = jinja2.PackageLoader("whence.report")
        environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

        script = ""
        if any(table.export for section in self.sections for table in section.tables):
            script = loader.get_source(environment, "page.js")[0]
        # The policy allows this script's hash alone: injected markup cannot run even if escaping failed.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        return environment.get_template("page.html.j2").render(
            page=self,
            about={name.replace("_", " "): _plain(value) for name, value in self.about.items()},
            version=__version__,
            written=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            script=script,
            allowed=f"'sha256-{digest}'" if script else "'none'",
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file.

        Raises
        ------
        WhenceError
            If the file cannot be written there, or another file than a page of whence would be lost.
        """
        file = check_file(path, PAGE)
        page = self.render().encode("utf-8", "replace")  # text may hold half a character
        with replaced(file) as handle:
            handle.write(page)
        return file


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
