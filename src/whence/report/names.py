"""Names that users gave, such as ids and labels, as text that does nothing but stand there."""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["plain_line", "visible"]

#: Joiners of letters and emoji, which do nothing else.
JOINERS = "\u200c\u200d"
#: Categories of what shows nothing by itself: controls, formats (such as what turns the direction of
#: text), halves of characters, line and paragraph separators, and what has no meaning yet.
UNSEEN = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")


def visible(text: Any, kept: str = "") -> str:
    r"""Return a text with an escape in place of every character that cannot be seen, but those ``kept``.

    Examples
    --------
    >>> print(visible("a\x1b[2J\u202eb\n"))
    a\x1b[2J\u202eb\n
    """
    return "".join(
        one.encode("unicode_escape").decode("ascii")
        if one not in kept and one not in JOINERS and unicodedata.category(one) in UNSEEN
        else one
        for one in str(text)
    )


def plain_line(text: Any) -> str:
    r"""Return a text on one line, as :func:`visible` shows it.

    Examples
    --------
    >>> plain_line("no such\n  layer")
    'no such layer'
    """
    return visible(" ".join(str(text).split()))
