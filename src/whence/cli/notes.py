"""Notes on stderr, a line each, beside errors and progress."""

from __future__ import annotations

import sys
from typing import Any

from whence.report.names import plain_line

__all__ = ["note", "one_line", "say"]

one_line = plain_line


def note(message: Any) -> None:
    """Say something that is worth knowing, also when no progress is shown."""
    say(f"whence: note: {message}")


def say(message: Any) -> None:
    """Write a line; what cannot be seen in it is written as an escape."""
    print(plain_line(message), file=sys.stderr)
