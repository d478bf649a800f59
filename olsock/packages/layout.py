"""The directories of a store, and what is written down about each thing in it.

    <directory>/<tag>/<name>-<version>-<hash>/    one installed distribution, read-only
    <directory>/<tag>/closures/<key>/             hard links to all distributions of one lock; <key>.json beside it
    <directory>/<tag>/.records/<package>.json     what is in a distribution
    <directory>/<tag>/.pins/<digest>              which distribution a pin turned out to be
    <directory>/<tag>/.locks/                     who is making what
    <directory>/.scratch/                         what is being made or removed

What has its name is whole: everything is made in a scratch directory and renamed. Whoever is about to use something
holds a shared lock on its directory (flock), and what is held is not evicted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from olsock.errors import KernelError
from olsock.packages import scratch
from olsock.packages.lock import TAG
from olsock.packages.scratch import FLAGS, Scratch

CLOSURES = "closures"
PINS, RECORDS, LOCKS = ".pins", ".records", ".locks"
SCRATCH = ".scratch"
MAX_RECORD = 64 << 20


class PackageRecord(msgspec.Struct):
    """One installed distribution."""

    distribution: str  # "name==version"
    bytes: int
    modules: list[str]  # what it gives to import; dotted below a namespace


class ClosureRecord(msgspec.Struct):
    """One merge."""

    packages: list[str]  # names of directories
    owners: dict[str, str]  # module -> distribution
    conflicts: list[tuple[str, str, str]]  # (path, whose was taken, whose was left out)
    bytes: int  # of its own: what is linked counts with its package


R = TypeVar("R", PackageRecord, ClosureRecord)


class Tag:
    """The part of a store for one kind of interpreter."""

    def __init__(self, parent: str, parent_fd: int, name: str) -> None:
        self.path, self.name = os.path.join(parent, name), name
        self._fds: list[int] = []
        try:
            self.fd = self._open(name, parent_fd)
            self.closures = self._open(CLOSURES, self.fd)
            self.pins = self._open(PINS, self.fd)
            self.records = self._open(RECORDS, self.fd)
            self.locks = self._open(LOCKS, self.fd)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, at: int) -> int:
        self._fds.append(open_directory(name, at))
        return self._fds[-1]

    def close(self) -> None:
        """Close what is open."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def packages(self) -> list[str]:
        """The names of all installed distributions' directories."""
        return [name for name in os.listdir(self.fd) if name != CLOSURES and not name.startswith(".")]

    def merged(self) -> list[str]:
        """The keys of all closures."""
        return [name for name in os.listdir(self.closures) if not name.endswith(".json")]

    def pin(self, digest: str) -> str | None:
        """The directory that a pin turned out to be, if it is known."""
        try:
            name = _read(self.pins, digest).decode()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return name if name and "/" not in name and not name.startswith(".") else None

    def package(self, name: str) -> PackageRecord | None:
        """What is in a distribution; None if that is not known (any more)."""
        return _record(self.records, name, PackageRecord)

    def closure(self, key: str) -> ClosureRecord | None:
        """What is in a closure."""
        return _record(self.closures, key, ClosureRecord)


class Layout:
    """The directory of a store."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        self.path = os.path.realpath(directory)
        self.fd = open_directory(self.path)
        self._tags: dict[str, Tag] = {}
        self._scratch_fd = -1
        try:
            self._scratch_fd = open_directory(SCRATCH, self.fd, mode=0o700)
            scratch.clean(self._scratch_fd)
            for name in os.listdir(self.fd):
                if TAG.fullmatch(name):
                    self._clean(self.tag(name))
        except BaseException:
            self.close()
            raise

    def tag(self, name: str) -> Tag:
        """The part for one kind of interpreter, made if need be."""
        if name not in self._tags:
            made = Tag(self.path, self.fd, name)
            if self._tags.setdefault(name, made) is not made:  # another thread was faster
                made.close()
        return self._tags[name]

    def tags(self) -> list[Tag]:
        """All parts, also those that another process made."""
        return [self.tag(name) for name in sorted(os.listdir(self.fd)) if TAG.fullmatch(name)]

    def scratch(self) -> Scratch:
        """A new scratch directory."""
        return Scratch(os.path.join(self.path, SCRATCH), self._scratch_fd)

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """Keep other threads and processes from publishing and evicting, for a moment."""
        with scratch.mutex(self.fd):
            yield

    def _clean(self, tag: Tag) -> None:
        """Remove what a dead process noted, or left locked, without getting further."""
        with self.mutex():
            packages, merged = set(tag.packages()), set(tag.merged())
            for fd, known in ((tag.records, packages), (tag.closures, merged)):
                for name in os.listdir(fd):
                    if name.endswith(".json") and name.removesuffix(".json") not in known:
                        os.unlink(name, dir_fd=fd)
            for digest in os.listdir(tag.pins):
                if tag.pin(digest) not in packages:
                    os.unlink(digest, dir_fd=tag.pins)
        for name in os.listdir(tag.locks):
            scratch.unlock_if_dead(tag.locks, name)

    def close(self) -> None:
        """Close what is open."""
        for tag in self._tags.values():
            tag.close()
        self._tags.clear()
        for fd in (self.fd, self._scratch_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._scratch_fd = -1


def open_directory(name: str, at: int | None = None, *, mode: int = 0o755) -> int:
    """Open a directory of the store, made if need be, and only if nobody but us can have put anything there."""
    try:
        os.mkdir(name, mode, dir_fd=at)
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError("mkdir", name, error.errno or errno.EIO) from None
    try:
        fd = os.open(name, FLAGS, dir_fd=at)
    except OSError as error:
        raise KernelError("open", name, error.errno or errno.EIO) from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        os.close(fd)
        raise KernelError("use", name, errno.EPERM, "it belongs to somebody else, or others may write it")
    return fd


def publish_file(scratch: Scratch, directory_fd: int, name: str, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = f"file-{name}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=scratch.fd)
    with open(fd, "wb") as file:
        file.write(content)
    os.rename(temporary, name, src_dir_fd=scratch.fd, dst_dir_fd=directory_fd)


def _read(directory_fd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    with open(fd, "rb") as file:
        return file.read(MAX_RECORD)


def _record(directory_fd: int, name: str, kind: type[R]) -> R | None:
    try:
        return msgspec.json.decode(_read(directory_fd, f"{name}.json"), type=kind)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
