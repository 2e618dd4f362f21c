"""What is said on stderr, a line each, beside errors and progress."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["note", "one_line"]


def note(message: Any) -> None:
    """Say something that is worth knowing, also when no progress is shown."""
    print(f"whence: note: {one_line(message)}", file=sys.stderr)


def one_line(text: Any) -> str:
    r"""Return a text on one line.

    Examples
    --------
    >>> one_line("no such\n  layer")
    'no such layer'
    """
    return " ".join(str(text).split())
