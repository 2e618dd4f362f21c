"""Files that are there whole or not at all, and what of a user's may be written over.

A file is written under another name beside its place, synced to the disk, and moved there: a full disk, an
error or a process that is killed leaves what was there before, and at most a ``.part`` that no one reads.
On a file system of fsspec a file is put whole: object stores do that at once; elsewhere it is renamed too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from whence._errors import WhenceError
from whence._paths import as_path, explain_failures, is_remote

__all__ = ["FileKind", "check_file", "is_part", "remove_parts", "replaced", "written_whole"]

#: Names of files that are being written, also of those of version 0.1.
PARTS = re.compile(r"\.whence-[0-9a-f]{32}\.part|[a-z]+(-[a-z0-9]+)*\.(npy|json)\.[0-9a-f]{8}\.part")

#: File systems of fsspec on which a file that is put is there whole or not at all.
PUT_WHOLE = {"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "s3", "s3a"}


@dataclass(frozen=True)
class FileKind:
    """A kind of file that whence writes where a user says: only one of its kind is written over.

    Attributes
    ----------
    name : str
        With an article.
    recognises : callable
        ``recognises(handle)`` says whether an open file is one; it may raise for any other.
    """

    name: str
    recognises: Callable[[BinaryIO], bool]


@contextlib.contextmanager
def written_whole(file: Path, like: os.stat_result | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name once it is complete and on the disk.

    What has that name already is replaced, also a link; where a link leads, nothing is written.

    Parameters
    ----------
    file : Path
    like : os.stat_result, optional
        Of an older file, whose owner and permissions the new one gets.
    """
    # A unique name: Dask may run a task again while its first worker is still writing.
    part = file.with_name(f".whence-{uuid.uuid4().hex}.part")
    if is_remote(file):
        buffer = io.BytesIO()
        yield buffer
        with explain_failures(file.parent):
            _put(file, part, buffer.getvalue())
        return
    with explain_failures(file.parent):
        try:
            with open(part, "xb") as handle:
                yield handle
                handle.flush()
                if like is not None:
                    _imitate(handle.fileno(), like)
                os.fsync(handle.fileno())
            os.replace(part, file)
            _sync_folder(file.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # gives its room back; the first error is the one to tell
                part.unlink()
            raise


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[BinaryIO]:
    """Open a file that a user named for writing; what is there stays until the new one is complete.

    A link is followed, and the file that it leads to keeps its owner and permissions. Pipes and devices,
    such as ``/dev/stdout``, are written to.
    """
    if is_remote(file):
        with written_whole(file) as handle:
            yield handle
        return
    target = Path(os.path.realpath(file))
    with explain_failures(file):
        there = target.stat() if target.exists() else None
        if there is not None and not stat.S_ISREG(there.st_mode):
            with target.open("wb") as stream:
                yield stream
            return
    with written_whole(target, there) as handle:
        yield handle


def check_file(path: Any, kind: FileKind) -> Path:
    """Return ``path`` if a file can be written there without the loss of another one.

    Raises
    ------
    WhenceError
        If it is a folder, in no folder, or a file that is not empty and not of that kind.
    """
    file = as_path(path, "a file")
    local = not is_remote(file)
    with explain_failures(file):
        target = Path(os.path.realpath(file)) if local else file
        is_folder, exists = target.is_dir(), target.exists()
        has_folder = not local or target.parent.is_dir()
    if is_folder:
        raise WhenceError("path", "a file", f"the folder {str(file)!r}", "Name a file in it.")
    if not has_folder:
        raise WhenceError(
            "path", "a file in a folder that exists", repr(str(file)), "Make the folder first."
        )
    if local and not os.access(target if exists else target.parent, os.W_OK):
        with explain_failures(file):
            raise PermissionError(13, "Permission denied")
    if exists and not (local and not target.is_file()) and not _may_go(target, kind):
        raise WhenceError(
            f"path {str(file)!r}",
            f"a new file, or {kind.name} to write over",
            "another file, which is left as it is",
            "Choose another path, or remove that file first.",
        )
    return file


def _may_go(file: Path, kind: FileKind) -> bool:
    """Return whether nothing is lost when a file is written over: it is empty, or of that kind."""
    with explain_failures(file), file.open("rb") as handle:
        if not handle.read(1):
            return True
        handle.seek(0)
        try:
            return kind.recognises(handle)
        except Exception:  # whatever a reader says of a file that it does not know
            return False


def is_part(name: str) -> bool:
    """Return whether a file of this name is one of ours that was being written.

    Examples
    --------
    >>> is_part("begun.json.0a1b2c3d.part"), is_part("thesis.zip.part")
    (True, False)
    """
    return PARTS.fullmatch(name) is not None


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left behind; no other may be writing there."""
    for file in folder.iterdir():
        if is_part(file.name):
            file.unlink(missing_ok=True)


def _put(file: Any, part: Any, content: bytes) -> None:
    if file.protocol in PUT_WHOLE:
        file.fs.pipe_file(file.path, content)
        return
    file.fs.pipe_file(part.path, content)
    file.fs.mv(part.path, file.path)


def _imitate(handle: int, like: os.stat_result) -> None:
    """Give an open file the owner, as far as that may be done, and the permissions of another."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        os.fchown(handle, like.st_uid, like.st_gid)
    os.fchmod(handle, stat.S_IMODE(like.st_mode))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened; a rename is then as safe as it gets
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
