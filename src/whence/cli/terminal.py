"""Results on a terminal: text that is shown as it stands, in whatever encoding the terminal has."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from whence.report.names import visible

__all__ = ["Terminal"]

#: Plain forms of signs that the encoding of the terminal may lack.
PLAIN = str.maketrans({"−": "-", "×": "x", "…": "...", "█": "#", "∞": "inf", "–": "-", "’": "'"})
RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


class Terminal:
    """Writes results to stdout. Tests replace stdout, so one is made for each result.

    Nothing in a text is markup or a control sequence: what cannot be seen is written as an escape.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)

    def text(self, *parts: str | tuple[str, str | None]) -> Text:
        """Return text for a line or a cell; a part is a text, or a text and its style."""
        pairs = [(part, None) if isinstance(part, str) else part for part in parts]
        return Text.assemble(*((self._fitting(text), style or "") for text, style in pairs))

    def line(self, *parts: str | tuple[str, str | None], wrap: bool = True) -> None:
        """Print a line; ``wrap=False`` leaves a long one whole, such as one with a path to copy."""
        self._console.print(self.text(*parts), soft_wrap=not wrap)

    def table(self, table: Table) -> None:
        """Print a table; its cells are of :meth:`text`."""
        self._console.print(table)

    def _fitting(self, text: str) -> str:
        encoding = self._console.encoding
        shown = visible(text)
        if _fits(shown, encoding):
            return shown
        plain = RAISED.sub(lambda found: "^" + found[0].translate(LOWERED), shown.translate(PLAIN))
        return plain.encode(encoding, "backslashreplace").decode(encoding)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
