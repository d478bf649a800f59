"""Code by content: `code/<digest>/` is a tree of plain files that never changes, there whole or not at all.

What comes in is copied into a scratch directory, synced and renamed. Two functions with equal code share a directory; it goes
when no version refers to it. What runs has hard links to it in a directory of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from olsock_worker.unpack import Copy

_CODE, _UPLOADS, _SCRATCH = "code", "uploads", "scratch"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class CodeStore:
    """The directory `store_fd`. Everything blocks on the disk; any thread may call."""

    def __init__(self, store_fd: int) -> None:
        self._store = store_fd
        self._numbers = itertools.count(1)
        self._pinned: Counter[str] = Counter()  # contents that a version is being made of
        self._lock = threading.Lock()
        for name in (_UPLOADS, _SCRATCH):  # whoever wanted these has gone
            shutil.rmtree(name, ignore_errors=True, dir_fd=store_fd)
        for name in (_CODE, _UPLOADS, _SCRATCH):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=store_fd)

    @contextlib.contextmanager
    def upload(self, archive: bytes) -> Iterator[str]:
        """Keep an archive for as long as the block runs; gives its path below the store."""
        path = f"{_UPLOADS}/{next(self._numbers)}-{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(path, flags, 0o600, dir_fd=self._store), "wb") as file:
                file.write(archive)
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path, dir_fd=self._store)

    def add(self, fill: Callable[[Copy], None], size: int, files: int) -> str:
        """Take in what `fill` copies; return its digest, which stays until `unpin`, and after that if it is referred to."""
        scratch = f"{_SCRATCH}/{next(self._numbers)}"
        os.mkdir(scratch, 0o755, dir_fd=self._store)
        try:
            with self._open(scratch) as target:
                copy = Copy(target, size, files, lasting=True)
                fill(copy)
                for name in (*copy.directories, "."):
                    self._sync(target, name)
            digest = copy.digest
            with self._lock:
                self._pinned[digest] += 1
                if not self._has(digest):
                    os.rename(scratch, f"{_CODE}/{digest}", src_dir_fd=self._store, dst_dir_fd=self._store)
            self._sync(self._store, _CODE)
            return digest
        finally:
            shutil.rmtree(scratch, ignore_errors=True, dir_fd=self._store)

    def unpin(self, digest: str) -> None:
        """Keep contents no longer for the sake of whoever added them."""
        with self._lock:
            self._pinned[digest] -= 1
            self._pinned += Counter()  # without what has come to nothing

    def read(self, digest: str, name: str, size: int) -> bytes | None:
        """Return the first `size` bytes of a file, None if there is none."""
        try:
            with open(os.open(f"{_CODE}/{digest}/{name}", _READ, dir_fd=self._store), "rb") as file:
                return file.read(size)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def link(self, digests: Sequence[str], target_fd: int, path: str) -> None:
        """Make `path` (a folder and a name) below another directory of the same file system out of links to contents.

        Later contents are laid over earlier ones. What is there already stays as it is.
        """
        folder, _, _ = path.partition("/")
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o755, dir_fd=target_fd)
        with contextlib.suppress(FileNotFoundError):
            os.stat(path, dir_fd=target_fd, follow_symlinks=False)
            return
        scratch = f".link-{next(self._numbers)}"
        os.mkdir(scratch, 0o755, dir_fd=target_fd)
        try:
            with _opened(scratch, target_fd) as target:
                for digest in digests:
                    with self._open(f"{_CODE}/{digest}") as source:
                        _link_tree(source, target)
            os.rename(scratch, path, src_dir_fd=target_fd, dst_dir_fd=target_fd)
        finally:
            shutil.rmtree(scratch, ignore_errors=True, dir_fd=target_fd)

    @contextlib.contextmanager
    def opened(self, digest: str) -> Iterator[int | None]:
        """Open contents, which stay for as long as the block runs; gives None if there are none."""
        with self._lock:
            self._pinned[digest] += 1
        try:
            if not self._has(digest):
                yield None
                return
            with self._open(f"{_CODE}/{digest}") as fd:
                yield fd
        finally:
            self.unpin(digest)

    def scratch(self) -> BinaryIO:
        """Return a file without a name."""
        fd = os.open(_SCRATCH, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._store)
        return open(fd, "w+b")

    def weigh(self, digest: str) -> tuple[int, int]:
        """Return how many bytes contents have, and how many files."""
        with self._open(f"{_CODE}/{digest}") as fd:
            return _weigh(fd)

    def collect(self, referred: Callable[[], set[str]]) -> int:
        """Remove contents that nothing refers to; return how many."""
        removed = []
        with self._lock:  # what is added from here on finds its place empty, or was pinned before
            found = [each for each in self._digests() if not self._pinned[each]]
            wanted = referred() if found else set()
            for digest in found:
                if digest not in wanted:
                    gone = f"{_SCRATCH}/{next(self._numbers)}"
                    os.rename(f"{_CODE}/{digest}", gone, src_dir_fd=self._store, dst_dir_fd=self._store)
                    removed.append(gone)
        for gone in removed:
            shutil.rmtree(gone, ignore_errors=True, dir_fd=self._store)
        return len(removed)

    def _digests(self) -> list[str]:
        with self._open(_CODE) as fd:
            return os.listdir(fd)

    def _has(self, digest: str) -> bool:
        try:
            os.stat(f"{_CODE}/{digest}", dir_fd=self._store, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[int]:
        with _opened(path, self._store) as fd:
            yield fd

    def _sync(self, directory_fd: int, name: str) -> None:
        with _opened(name, directory_fd) as fd:
            os.fsync(fd)


@contextlib.contextmanager
def _opened(path: str, directory_fd: int) -> Iterator[int]:
    fd = os.open(path, _DIRECTORY, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _weigh(directory_fd: int) -> tuple[int, int]:
    size = files = 0
    with os.scandir(directory_fd) as entries:
        found = [(each.name, each.is_dir(follow_symlinks=False), each.stat(follow_symlinks=False)) for each in entries]
    for name, is_directory, status in found:
        if is_directory:
            with _opened(name, directory_fd) as inside:
                below = _weigh(inside)
            size, files = size + below[0], files + below[1] + 1
        else:
            size, files = size + status.st_size, files + 1
    return size, files


def _make_way(name: str, is_directory: bool, target_fd: int) -> bool:
    """Remove what a later layer puts something else in the place of; return whether a directory is there for both."""
    try:
        there = stat.S_ISDIR(os.stat(name, dir_fd=target_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    if there and is_directory:
        return True
    if there:
        shutil.rmtree(name, dir_fd=target_fd)
    else:
        os.unlink(name, dir_fd=target_fd)
    return False


def _link_tree(source_fd: int, target_fd: int) -> None:
    with os.scandir(source_fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        both = _make_way(name, is_directory, target_fd)
        if not is_directory:
            os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
            continue
        if not both:
            os.mkdir(name, 0o755, dir_fd=target_fd)
        with _opened(name, source_fd) as inside, _opened(name, target_fd) as copy:
            _link_tree(inside, copy)
