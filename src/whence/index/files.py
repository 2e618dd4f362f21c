"""Arrays and records in files, what tells that they are unharmed, and a lock.

A file on a file system of fsspec is read whole, and compared with its checksum each time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._files import written_whole
from whence._paths import explain_failures, is_remote

__all__ = [
    "LOCK",
    "Lock",
    "Stamp",
    "check_checksum",
    "check_size",
    "file_mark",
    "is_lock",
    "open_array",
    "plain",
    "write_array",
    "write_json",
]

#: The file that the lock is on.
LOCK = "lock"

#: What is recorded of a file: its name, its length in bytes, and the CRC-32 of all of them.
Stamp = dict[str, Any]

CHUNK_BYTES = 4 * 2**20


def write_array(file: Path, array: np.ndarray) -> Stamp:
    """Write an ``.npy`` file and return its stamp."""
    whole = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(whole))
    crc, n_bytes = 0, 0
    with written_whole(file) as handle:
        for chunk in (header.getbuffer(), *_chunks(whole)):
            handle.write(chunk)
            crc = zlib.crc32(chunk, crc)
            n_bytes += len(chunk)
    return {"file": file.name, "bytes": n_bytes, "crc32": crc}


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    text = json.dumps(content, indent=1, default=plain)
    with written_whole(file) as handle:
        handle.write(f"{text}\n".encode())


def plain(value: Any) -> Any:
    """Return a number of NumPy's as JSON has it; for ``json.dumps(..., default=plain)``.

    Examples
    --------
    >>> json.dumps({"step_size": np.float64(0.5), "seed": np.int64(3)}, default=plain)
    '{"step_size": 0.5, "seed": 3}'
    """
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def open_array(file: Path, stamp: Stamp) -> np.ndarray:
    """Return an ``.npy`` file: memory-mapped, or read whole where that cannot be.

    Raises
    ------
    WhenceError
        If what was read is not what was written, or is no such file.
    """
    try:
        if is_remote(file):
            return _read_array(file, stamp)
        # No other format is read than this one, and no Python object in it.
        mapped = np.lib.format.open_memmap(file, mode="r")
    except WhenceError:
        raise
    except Exception as error:  # a header may be wrong in many ways
        raise WhenceError(
            f"path {str(file.parent)!r}",
            "an array of numbers or texts",
            f"{file.name}, which gives {type(error).__name__}: {error}",
            "Take the index from where it was made, or make it again.",
        ) from error
    return np.asarray(mapped)  # a plain array over the map, which lives as long as the array


def _read_array(file: Path, stamp: Stamp) -> np.ndarray:
    with explain_failures(file.parent):
        content = file.read_bytes()
    if len(content) != stamp["bytes"] or zlib.crc32(content) != stamp["crc32"]:
        raise WhenceError(
            f"path {str(file)!r}",
            "a file as it was written",
            "another content (CRC-32)",
            "Read it once more; if it stays so, make the method again with index_path= its folder.",
        )
    handle = io.BytesIO(content)
    np.lib.format.read_magic(handle)
    shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
    return np.frombuffer(content, dtype, offset=handle.tell()).reshape(shape)


def file_mark(file: Any) -> Any:
    """Return what changes when a file is written anew, or None if there is none."""
    try:
        if is_remote(file):
            file.fs.invalidate_cache()
            return {key: str(value) for key, value in file.fs.info(file.path).items()}
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_size(folder: Path, stamp: Stamp) -> str | None:
    """Return what is wrong with a file, as far as its length tells, or None."""
    file = folder / stamp["file"]
    if not file.is_file():
        return f"{stamp['file']} is missing"
    n_bytes = file.stat().st_size
    if n_bytes != stamp["bytes"]:
        return f"{stamp['file']} has {n_bytes} bytes instead of {stamp['bytes']}"
    return None


def check_checksum(folder: Path, stamp: Stamp) -> str | None:
    """Return what is wrong with a file's length or content, or None."""
    wrong = check_size(folder, stamp)
    if wrong is not None:
        return wrong
    crc = 0
    with (folder / stamp["file"]).open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return None if crc == stamp["crc32"] else f"{stamp['file']} is not what was written (CRC-32)"


class Lock:
    """The right to write into a folder; it ends with the process that holds it, however that ends.

    Parameters
    ----------
    folder : Path
    wait : bool, default=False
        Whether to wait for another process to finish, instead of raising.

    Raises
    ------
    WhenceError
        If another process holds it, or the folder cannot be written to.

    Notes
    -----
    A file system of fsspec has no locks: there, nothing is held.
    """

    def __init__(self, folder: Path, *, wait: bool = False) -> None:
        self._handle = -1
        if is_remote(folder):
            return
        with explain_failures(folder):
            self._handle = _open_itself(folder / LOCK, os.O_RDWR | os.O_CREAT)
            if not _is_lock(self._handle):
                os.close(self._handle)
                raise WhenceError(
                    f"path {str(folder)!r}",
                    f"a folder without another file of the name {LOCK!r}, which is needed to lock it",
                    "one that somebody else put there",
                    "Choose another path, or move that file.",
                )
        try:
            _lock(self._handle, wait)
        except OSError as error:
            holder = os.read(self._handle, 32).decode(errors="replace").strip()
            os.close(self._handle)
            raise WhenceError(
                f"path {str(folder)!r}",
                "a folder that no other process is writing to",
                f"one that process {holder or '(unknown)'} is indexing into",
                "Wait until it is done and run the same again, or choose another path.",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
            os.ftruncate(self._handle, 0)
            os.write(self._handle, str(os.getpid()).encode())

    def release(self) -> None:
        """Give it up; harmless if that was done before."""
        if self._handle >= 0:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_lock(file: Path) -> bool:
    """Return whether a file is a lock: there is nothing in it but the number of a process."""
    handle = _open_itself(file, os.O_RDONLY)
    try:
        return _is_lock(handle)
    finally:
        os.close(handle)


def _is_lock(handle: int) -> bool:
    there = os.fstat(handle)
    if not stat.S_ISREG(there.st_mode) or there.st_size > 32:
        return False
    content = os.read(handle, 32)
    os.lseek(handle, 0, os.SEEK_SET)
    return not content or content.strip(b"\0").isdigit()


def _open_itself(file: str | Path, flags: int) -> int:
    """Open a file to write, but nothing that a link of its name leads to."""
    return os.open(file, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _lock(handle: int, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined]
        # Far behind the end, so that others may still read who holds the file.
        os.lseek(handle, 2**30, os.SEEK_SET)
        msvcrt.locking(handle, mode, 1)  # type: ignore[attr-defined]
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    raw = memoryview(array.reshape(-1).view(np.uint8).data)
    for start in range(0, len(raw), CHUNK_BYTES):
        yield raw[start : start + CHUNK_BYTES]
