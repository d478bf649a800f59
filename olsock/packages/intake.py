"""Taking over what a sandbox wrote: looked at by root once the sandbox has ended, and made ours file by file.

Nothing in such a tree is believed. It is walked by directory descriptors without following a link; only regular files
and directories are taken, bounded in number, size, depth and length of names; anything else refuses all of it. What is
taken belongs to root afterwards, cannot be written, and has no set-id bits, access lists or other attributes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field

from olsock.packages.errors import PackageError, quote
from olsock.packages.scratch import FLAGS

MAX_ENTRIES = 200_000
MAX_DEPTH = 48  # levels of directories
MAX_PATH = 1024  # bytes
BLOCK = 4096  # what a file takes is rounded up to
LEFT_OUT = frozenset({".lock"})  # of the top: uv's own

# How a distribution was installed, rather than what was: not part of its digest. Bytecode is: it is what runs.
_INCIDENTAL = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"})
_BUFFER = 1 << 20


@dataclass(slots=True)
class Tree:
    """What was taken: paths are relative, with / between names."""

    files: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    bytes: int = 0  # on the disk, nearly
    digest: str = ""  # of names and contents


class _Intake:
    def __init__(self, limit: int) -> None:
        self.tree = Tree()
        self._limit = limit
        self._entries = 0
        self._lines: list[str] = []
        self._buffer = bytearray(_BUFFER)

    def finish(self) -> Tree:
        self.tree.digest = hashlib.sha256("".join(sorted(self._lines)).encode()).hexdigest()
        return self.tree

    def directory(self, fd: int, path: str, depth: int) -> None:
        """Take what is in a directory, then the directory itself."""
        if depth > MAX_DEPTH:
            raise _refused(path, f"more than {MAX_DEPTH} levels of directories")
        with os.scandir(fd) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            self._entry(fd, name, f"{path}/{name}" if path else name, depth)
        _own(fd, 0o555)
        self.tree.bytes += BLOCK

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise _refused(path, f"more than {MAX_ENTRIES} files")
        if not path.isprintable() or len(os.fsencode(path)) > MAX_PATH:
            raise _refused(path, f"names are at most {MAX_PATH} bytes of printable UTF-8")
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            fd = os.open(name, FLAGS, dir_fd=parent)
        elif not stat.S_ISREG(mode):
            raise _refused(path, f"only files and directories are taken, and this is {_kind(mode)}")
        elif not depth and name in LEFT_OUT:
            os.unlink(name, dir_fd=parent)
            return
        else:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            if stat.S_ISDIR(mode):
                self.tree.directories.append(path)
                self.directory(fd, path, depth + 1)
            else:
                self._file(fd, path)
        finally:
            os.close(fd)

    def _file(self, fd: int, path: str) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is another thing than it was")
        self.tree.bytes += -(-found.st_size // BLOCK) * BLOCK
        if self.tree.bytes > self._limit:
            raise _refused(path, f"more than {self._limit} bytes")
        executable = bool(found.st_mode & 0o111)
        self.tree.files.append(path)
        if not _incidental(path):
            self._lines.append(f"{self._sha256(fd)} {'x' if executable else '-'} {path}\n")
        _own(fd, 0o555 if executable else 0o444)

    def _sha256(self, fd: int) -> str:
        digest, view = hashlib.sha256(), memoryview(self._buffer)
        while size := os.readv(fd, [self._buffer]):
            digest.update(view[:size])
        return digest.hexdigest()


def take(parent_fd: int, name: str, limit: int) -> Tree:
    """Take over the directory `name`, of at most `limit` bytes. `PackageError` says what of it was refused and why."""
    intake = _Intake(limit)
    try:
        fd = os.open(name, FLAGS, dir_fd=parent_fd)
    except OSError as error:
        raise PackageError(f"the installer made no directory: {error.strerror}") from None
    try:
        intake.directory(fd, "", 0)
    finally:
        os.close(fd)
    return intake.finish()


def _own(fd: int, mode: int) -> None:
    """Give it to root, without a right for anybody to write it. An access list could give one, so those go as well."""
    for attribute in os.listxattr(fd):
        os.removexattr(fd, attribute)
    os.fchown(fd, 0, 0)
    os.fchmod(fd, mode)


def _incidental(path: str) -> bool:
    parts = path.split("/")
    return parts[0].endswith(".dist-info") and parts[-1] in _INCIDENTAL


def _refused(path: str, why: str) -> PackageError:
    return PackageError(f"an installed tree was refused at {quote(os.fsencode(path))[-200:]!r}: {why}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
