"""Paths that users give, and what the operating system says of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whence._errors import MissingExtraError, WhenceError

__all__ = ["as_path", "explain_failures", "is_remote"]


def as_path(path: Any, what: str = "a folder") -> Path:
    """Return a path that a user gave, or raise if it is none.

    A leading ``~`` is the home folder.

    An address such as ``s3://bucket/folder`` becomes a ``upath.UPath``, which does what a
    ``pathlib.Path`` does on any file system of fsspec.

    Examples
    --------
    >>> as_path(3)
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: path: expected a folder, as text or a pathlib.Path, got 3. Pass its name.
    """
    if is_remote(path):
        return path
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if isinstance(text, str) and "\0" not in text:
        scheme, _, rest = text.partition("://")
        if not rest:
            return _at_home(Path(text))
        return Path(rest) if scheme in ("file", "local") else _remote(text)
    raise WhenceError("path", f"{what}, as text or a pathlib.Path", repr(path), "Pass its name.")


def is_remote(path: Any) -> bool:
    """Return whether a path is on a file system of fsspec, which has neither maps nor locks."""
    return not isinstance(path, Path) and hasattr(path, "fs") and hasattr(path, "path")


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user, or a user without a home
        raise WhenceError(
            f"path {str(path)!r}", "a path below a home folder", str(error), "Write the path in full."
        ) from error


def _remote(address: str) -> Any:
    try:
        from upath import UPath
    except ImportError as error:
        raise MissingExtraError("upath", "distributed") from error
    try:
        path = UPath(address)
        path.fs  # noqa: B018  (connects, so that what is missing is told here)
    except (ImportError, ValueError) as error:
        fix = "Install what brings it, such as s3fs for s3:// or gcsfs for gs://, or mend the address."
        raise WhenceError(
            f"path {address!r}", "an address of a file system that fsspec knows", str(error), fix
        ) from error
    return path


@contextlib.contextmanager
def explain_failures(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read or write into an error that says what to do."""
    try:
        yield
    except NotImplementedError as error:
        raise WhenceError(
            f"path {str(folder)!r}",
            "a path that can be read and written to",
            f"one on a file system that cannot ({type(error).__name__})",
            "Choose another path.",
        ) from error
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
