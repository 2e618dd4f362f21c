"""Paths that users give, and what the operating system says of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whence._errors import WhenceError

__all__ = ["as_path", "check_file", "explain_failures"]


def as_path(path: Any, what: str = "a folder") -> Path:
    """Return a path that a user gave, or raise if it is none.

    Examples
    --------
    >>> as_path(3)
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: path: expected a folder, as text or a pathlib.Path, got 3. Pass its name.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if isinstance(text, str) and "\0" not in text:
        return Path(text)
    raise WhenceError("path", f"{what}, as text or a pathlib.Path", repr(path), "Pass its name.")


@contextlib.contextmanager
def explain_failures(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read or write into an error that says what to do."""
    try:
        yield
    except OSError as error:
        where = f"path {str(folder)!r}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WhenceError(
                where,
                "room for what is written there",
                f"a full disk ({error.strerror or error})",
                "Free some space and run the same again: what is complete is kept.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WhenceError(
                where,
                "a folder that can be written to",
                f"one that cannot ({error.strerror or error})",
                "Change its permissions, or choose another path.",
            ) from error
        raise WhenceError(
            where,
            "a path that can be used",
            f"one that cannot ({error.strerror or error})",
            "Choose another path.",
        ) from error


def check_file(path: str | Path) -> Path:
    """Return ``path`` if a file can be written there, or say what is in the way."""
    file = as_path(path, "a file")
    with explain_failures(file):
        is_folder, has_folder = file.is_dir(), file.parent.is_dir()
    if is_folder:
        raise WhenceError("path", "a file", f"the folder {str(file)!r}", "Name a file in it.")
    if not has_folder:
        raise WhenceError(
            "path", "a file in a folder that exists", repr(str(file)), "Make the folder first."
        )
    return file
