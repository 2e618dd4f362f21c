"""What draws answers, handed in by name: answers know that they can be drawn, and not how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whence._errors import WhenceError
from whence._registry import Registry

__all__ = ["VIEWS", "view_of"]

#: Views by ``answer:name``, such as ``explanation:plot``: functions of an answer and options.
VIEWS: Registry[Callable[..., Any]] = Registry("view")


def view_of(answer: str, name: str) -> Callable[..., Any]:
    """Return what draws an answer.

    Raises
    ------
    WhenceError
        If there is no such view.
    """
    found = VIEWS.get(f"{answer}:{name}") if isinstance(name, str) else None
    if found is not None:
        return found
    known = [one.removeprefix(f"{answer}:") for one in VIEWS if one.startswith(f"{answer}:")]
    raise WhenceError("view", f"one of {', '.join(known)}", repr(name), "Register it: answers.views.VIEWS.")
