"""Scratch directories: where something is made before it is renamed into place, and where what is removed goes first.

Each is locked by its maker as long as that lives. Whoever opens the store next removes those whose lock can be taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import time
from collections.abc import Iterator
from typing import Self

FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
MUTEX = ".lock"
LAST_BREATH = 2.0  # seconds that a dead process's sandbox may take to end
WORK = "work"  # the part that a sandbox may write


@contextlib.contextmanager
def locked(directory_fd: int, name: str) -> Iterator[None]:
    """Hold the lock of that name: against other threads and other processes alike. Nobody waits for it: no file of it."""
    fd = _lock(directory_fd, name)
    try:
        yield
    finally:
        # Who waits for it sees that its file is not the one of that name any more, and starts over.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_fd)
        os.close(fd)


def _lock(directory_fd: int, name: str) -> int:
    while True:
        fd = os.open(name, LOCK_FLAGS, 0o600, dir_fd=directory_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if same(directory_fd, name, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def unlock_if_dead(directory_fd: int, name: str) -> None:
    """Remove a lock's file whose holder was killed."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same(directory_fd, name, fd):
                os.unlink(name, dir_fd=directory_fd)
        finally:
            os.close(fd)


def same(directory_fd: int, name: str, fd: int) -> bool:
    """Whether a name still means the open file."""
    try:
        found, opened = os.stat(name, dir_fd=directory_fd, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def hold(directory_fd: int, name: str) -> int | None:
    """Open a directory and keep it against eviction until the fd is closed; None if it is gone or going."""
    try:
        fd = os.open(name, FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if same(directory_fd, name, fd):
            os.utime(fd)  # when it was used last
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


class Scratch:
    """A directory of our own, 0700, with one that a sandbox may write in it. Removed at the end, whatever is in it."""

    def __init__(self, parent: str, parent_fd: int) -> None:
        self.name = secrets.token_hex(8)
        self.path = os.path.join(parent, self.name)
        self._parent_fd = parent_fd
        with mutex(parent_fd):  # so that nobody sees it unlocked
            os.mkdir(self.name, 0o700, dir_fd=parent_fd)
            self.fd = os.open(self.name, FLAGS, dir_fd=parent_fd)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def work(self) -> str:
        """Make the directory that a sandbox may write, and return its path. Nobody else on the host reaches it."""
        os.mkdir(WORK, 0o700, dir_fd=self.fd)
        os.mkdir(f"{WORK}/tmp", 0o700, dir_fd=self.fd)
        for name in (WORK, f"{WORK}/tmp"):
            os.chmod(name, 0o777, dir_fd=self.fd)
        return os.path.join(self.path, WORK)

    def close(self) -> None:
        """Remove it and all in it."""
        try:
            remove_tree(self._parent_fd, self.name)
        finally:
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def mutex(directory_fd: int) -> Iterator[None]:
    """Hold the one lock of a directory, for a moment."""
    fd = os.open(MUTEX, LOCK_FLAGS, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def clean(parent_fd: int) -> int:
    """Remove the scratch directories of dead processes; return how many there were."""
    removed = 0
    for name in os.listdir(parent_fd):
        fd = _lock_if_dead(parent_fd, name)
        if fd is not None:
            try:
                removed += _remove_abandoned(parent_fd, name)
            finally:
                os.close(fd)
    return removed


def _remove_abandoned(parent_fd: int, name: str) -> bool:
    """Remove the directory of a dead process, whose sandbox ends a moment after it and may write until then.

    It can get in the way, but not lead out: all is done by descriptors that follow no links. What cannot be removed yet
    is left to the next one.
    """
    end = time.monotonic() + LAST_BREATH
    while True:
        try:
            remove_tree(parent_fd, name)
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        select.poll().poll(10)


def _lock_if_dead(parent_fd: int, name: str) -> int | None:
    """Return an fd that holds the lock of a dead process's directory; None if it lives or another removes it."""
    with mutex(parent_fd):
        try:
            fd = os.open(name, FLAGS, dir_fd=parent_fd)
        except OSError:  # the mutex itself, or gone
            return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if same(parent_fd, name, fd):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def remove_tree(parent_fd: int, name: str) -> None:
    """Remove a directory and all in it, however deep: what is below the first level is moved up before it is removed.

    No link is followed, whatever happens in it meanwhile. A path of any length and a hundred thousand levels
    cost neither stack nor descriptors.
    """
    top = os.open(name, FLAGS, dir_fd=parent_fd)
    try:
        moved = 0
        todo = [""]
        while todo:
            at = todo.pop()
            fd = os.open(at, FLAGS, dir_fd=top) if at else os.dup(top)
            try:
                with os.scandir(fd) as entries:
                    found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
                for child, is_directory in found:
                    if not is_directory:
                        os.unlink(child, dir_fd=fd)
                    elif not at:
                        todo.append(child)
                    else:
                        moved += 1
                        new = f".removed-{secrets.token_hex(8)}-{moved}"
                        os.rename(child, new, src_dir_fd=fd, dst_dir_fd=top)
                        todo.append(new)
            finally:
                os.close(fd)
            if at:
                os.rmdir(at, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent_fd)
