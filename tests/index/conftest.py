"""Disks that are full or cannot be written to: a small file system of its own where one may be mounted."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whence.index import files, shard

sys.path.insert(0, str(Path(__file__).parent))  # making.py, also in importlib mode

import making


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of a few rows, so that a small index has many, and no waiting for the disk."""
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    before = making.small_shards()
    yield
    shard.SHARD_BYTES = before


class Disk:
    """A folder on a small disk: a tmpfs where mounting is allowed, else a writer that refuses."""

    def __init__(self, folder, monkeypatch, size):
        self.folder = folder
        self._patch = monkeypatch
        self._left = size
        self._read_only = False
        self.is_mounted = self._mount(f"size={size}")
        if not self.is_mounted:
            monkeypatch.setattr(files.os, "fsync", self._fsync)
            monkeypatch.setattr(files.os, "open", self._open)

    def _mount(self, options, *more):
        if os.name != "posix" or os.geteuid() != 0:
            return False
        command = ["mount", "-t", "tmpfs", "-o", options, *more, "none", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def grow(self):
        if self.is_mounted:
            subprocess.run(["mount", "-o", "remount,size=50m", str(self.folder)], check=True)
        self._left = 50 * 2**20

    def make_read_only(self):
        if self.is_mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        self._read_only = True

    def unmount(self):
        if self.is_mounted:
            subprocess.run(["umount", str(self.folder)], check=True)

    def _fsync(self, handle):
        self._left -= os.fstat(handle).st_size
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self, path, flags, *mode):
        if self._read_only and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return _OPEN(path, flags, *mode)


_OPEN = os.open


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk with room for a good part of an index."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder, monkeypatch, 100 * 1024)
    yield made
    made.unmount()
