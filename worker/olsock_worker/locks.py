"""What each version of a function requires and was resolved to: `<name>/<version>.in` and `.lock` in the state directory.

The front writes them and keeps them over restarts, so that a version runs with the same packages for as long as it is
deployed; the broker reads them, and believes them no more than any other byte of the front.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection

LARGEST = 8 << 20
"""Bytes of one file: hashes of every wheel of some hundred packages are about one megabyte."""

REQUIREMENTS, LOCK = ".in", ".lock"
_SCRATCH = ".new"
_VERSIONS = 8  # locks kept for a function: who goes back to an earlier version gets its packages too
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Locks:
    """The directory, by its descriptor. Everything here blocks on the disk."""

    def __init__(self, directory_fd: int) -> None:
        self._directory = directory_fd

    def read(self, path: str, suffix: str = LOCK) -> str:
        """Return a file of a version, its lock if nothing else is named; "" if there is none."""
        try:
            fd = os.open(path + suffix, _READ, dir_fd=self._directory)
        except FileNotFoundError:
            return ""
        try:
            return read(fd)
        finally:
            os.close(fd)

    def write(self, path: str, suffix: str, text: str) -> None:
        """Have a file of a version say this, whole or not at all. One that says it already is left alone."""
        folder = path.partition("/")[0]
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o750, dir_fd=self._directory)
        if self._says(path + suffix, text):
            return
        scratch = path + _SCRATCH
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(scratch, flags, 0o640, dir_fd=self._directory), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path + suffix, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def require(self, path: str, lines: str) -> None:
        """Note what a version requires, which makes it the newest of its function: see `prune`."""
        self.write(path, REQUIREMENTS, lines)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path + REQUIREMENTS, dir_fd=self._directory, follow_symlinks=False)

    def _says(self, path: str, text: str) -> bool:
        """Say whether a file has this text; no file has none. One that cannot be read does not."""
        try:
            return self.read(path, "") == text
        except (OSError, ValueError):
            return False

    def copy(self, source: str, target: str) -> None:
        """Give a version the files of another, unless it has its own."""
        if not self.read(target) and (lock := self.read(source)):
            self.write(target, LOCK, lock)

    def prune(self, path: str) -> None:
        """Remove the oldest files of a function, never those of the version at `path`."""
        folder, _, current = path.partition("/")
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            files = sorted(os.listdir(fd), key=lambda name: os.stat(name, dir_fd=fd).st_mtime_ns, reverse=True)
            others = dict.fromkeys(os.path.splitext(name)[0] for name in files)
            others.pop(current, None)
            for version in list(others)[_VERSIONS - 1 :]:
                for suffix in (REQUIREMENTS, LOCK, _SCRATCH):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(version + suffix, dir_fd=fd)
        finally:
            os.close(fd)

    def keep(self, names: Collection[str]) -> None:
        """Remove what belongs to other functions than these."""
        for name in os.listdir(self._directory):
            if name not in names:
                shutil.rmtree(name, ignore_errors=True, dir_fd=self._directory)


def read(fd: int) -> str:
    """Return the text of an open file from its beginning. Raises `ValueError` for what is no such file."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
        raise ValueError(f"not a file of at most {LARGEST} bytes")
    data = b""
    while len(data) <= LARGEST:
        more = os.pread(fd, 1 << 20, len(data))
        if not more:
            return data.decode()
        data += more
    raise ValueError(f"not a file of at most {LARGEST} bytes")
