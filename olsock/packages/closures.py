"""Closures: the distributions of one lock as one directory of hard links, which is what a sandbox mounts and imports from.

`.pth` files have no effect in it: interpreters of sandboxes start without `site`. Parts of a namespace package from several
distributions come together by being in one directory.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from olsock.owned import Owned
from olsock.packages.layout import ClosureRecord
from olsock.packages.lock import Lock
from olsock.packages.scratch import FLAGS

BLOCK = 4096
NAMESPACES = 3  # levels of packages without __init__ that are looked into
_SUFFIXES = (".py", ".pyc", ".so")


class Closure(Owned):
    """The packages that a function sees, held against eviction until `close`."""

    def __init__(self, directory: str, fd: int, lock: Lock, record: ClosureRecord) -> None:
        """Take over `fd`, which holds the directory."""
        self.directory: Final = directory  # the host's path
        self.lock: Final = lock
        self.conflicts: Final = tuple(record.conflicts)  # (path, whose was taken, whose was left out)
        self._record, self._fd = record, fd
        self._own()

    @property
    def packages(self) -> frozenset[str]:
        """The distributions as "name==version"."""
        return self.lock.packages

    @property
    def key(self) -> str:
        """The key of the lock."""
        return self.lock.key

    def owners(self) -> dict[str, str]:
        """Return which distribution ("name==version") a module is of, by its top-level name.

        What is below a namespace package, to which several distributions may contribute, has dotted names besides.
        """
        return dict(self._record.owners)

    def _end(self) -> None:
        try:
            os.utime(self._fd)  # when it was used last
        except OSError:
            pass  # a disk that cannot be written to any more: it only goes earlier than it might
        finally:
            os.close(self._fd)


@dataclass(slots=True)
class Part:
    """A distribution that goes into a closure."""

    distribution: str  # "name==version"
    fd: int
    modules: Sequence[str]


@dataclass(slots=True)
class Merge:
    """What a merge did."""

    bytes: int = 0
    conflicts: list[tuple[str, str, str]] = field(default_factory=list)
    _of: dict[str, str] = field(default_factory=dict)  # path -> distribution that it was taken from

    def add(self, part: Part, target_fd: int) -> None:
        """Link everything of a distribution into a directory. What is there already stays."""
        self._level(part, part.fd, target_fd, "")

    def _level(self, part: Part, source_fd: int, target_fd: int, path: str) -> None:
        self.bytes += BLOCK
        with os.scandir(source_fd) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_directory in found:
            at = f"{path}/{name}" if path else name
            if is_directory:
                self._directory(part, source_fd, target_fd, name, at)
            else:
                self._file(part, source_fd, target_fd, name, at)

    def _directory(self, part: Part, source_fd: int, target_fd: int, name: str, path: str) -> None:
        try:
            os.mkdir(name, 0o555, dir_fd=target_fd)  # root may write it all the same
            self._of[path] = part.distribution
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=target_fd, follow_symlinks=False).st_mode):
                self._conflict(path, part)
                return
        below = os.open(name, FLAGS, dir_fd=source_fd)
        try:
            into = os.open(name, FLAGS, dir_fd=target_fd)
            try:
                self._level(part, below, into, path)
            finally:
                os.close(into)
        finally:
            os.close(below)

    def _file(self, part: Part, source_fd: int, target_fd: int, name: str, path: str) -> None:
        try:
            _link(name, source_fd, target_fd)
            self._of[path] = part.distribution
        except FileExistsError:
            if not _equal(name, source_fd, target_fd):
                self._conflict(path, part)

    def _conflict(self, path: str, part: Part) -> None:
        self.conflicts.append((path, self._of[path], part.distribution))


def merge(parts: Sequence[Part], target_fd: int) -> tuple[Merge, dict[str, str]]:
    """Link distributions into an empty directory, in the order of their names; return what was done and who owns what.

    Where two have a file of the same path and other content, the first one's is taken and the conflict recorded.
    """
    done, owners = Merge(), dict[str, str]()
    for part in sorted(parts, key=lambda part: part.distribution):
        done.add(part, target_fd)
        for module in part.modules:
            owners.setdefault(module, part.distribution)
    os.fchmod(target_fd, 0o555)
    return done, owners


def modules(fd: int) -> list[str]:
    """Return what a directory gives to import: top-level names, and dotted ones below namespace packages."""
    return sorted(_modules(fd, "", NAMESPACES))


def _modules(fd: int, prefix: str, levels: int) -> set[str]:
    found = set()
    with os.scandir(fd) as entries:
        listed = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_directory in listed:
        module = name if is_directory else name.partition(".")[0]
        if not module.isidentifier() or module == "__pycache__":
            continue
        if not is_directory:
            if name.endswith(_SUFFIXES) and module != "__init__":
                found.add(prefix + module)
            continue
        below = os.open(name, FLAGS, dir_fd=fd)
        try:
            regular = any(each.partition(".")[0] == "__init__" for each in os.listdir(below))
            inner = _modules(below, f"{prefix}{name}.", levels - 1) if levels and not regular else set()
        finally:
            os.close(below)
        if regular or inner:
            found |= {prefix + name, *inner}
    return found


def _link(name: str, source_fd: int, target_fd: int) -> None:
    try:
        os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            raise
        _copy(name, source_fd, target_fd)  # too many links, or a file system without any


def _copy(name: str, source_fd: int, target_fd: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
    with open(source, "rb") as reader:
        mode = stat.S_IMODE(os.fstat(source).st_mode)
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target_fd)
        with open(target, "wb") as writer:
            shutil.copyfileobj(reader, writer)
            os.fchmod(target, mode)


def _equal(name: str, one_fd: int, other_fd: int) -> bool:
    files = []
    try:
        for at in (one_fd, other_fd):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            files.append(open(fd, "rb"))
        one, other = files
        if not all(stat.S_ISREG(os.fstat(file.fileno()).st_mode) for file in files):
            return False
        if os.fstat(one.fileno()).st_size != os.fstat(other.fileno()).st_size:
            return False
        while chunk := one.read(1 << 16):
            if chunk != other.read(1 << 16):
                return False
        return True
    finally:
        for file in files:
            file.close()
