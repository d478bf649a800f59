"""Keeping a store within its size: packages that no closure uses go first, then closures, the least recently used first.

What is held, by any process, stays. A package in use by a closure stays as long as that: removing it would free nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass

from olsock.packages.layout import Layout, Tag
from olsock.packages.scratch import FLAGS, Scratch


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a store."""

    packages: int
    closures: int
    bytes: int


@dataclass(slots=True)
class _Thing:
    tag: Tag
    name: str
    used: float
    bytes: int

    @property
    def key(self) -> tuple[str, str]:
        """What it is told apart by."""
        return self.tag.name, self.name


def measure(layout: Layout) -> Contents:
    """Count what is there."""
    with layout.mutex():
        packages, closures, _ = _list(layout)
    return Contents(len(packages), len(closures), sum(each.bytes for each in (*packages, *closures)))


def evict(layout: Layout, max_bytes: int) -> int:
    """Remove the least valuable until what is left fits; return how many bytes are left, more if all of that is held."""
    with layout.scratch() as scratch, layout.mutex():
        packages, closures, used = _list(layout)
        left = sum(each.bytes for each in (*packages, *closures))
        unused = sorted((each for each in packages if each.key not in used), key=lambda each: each.used)
        merged = sorted(closures, key=lambda each: each.used)
        while left > max_bytes and (unused or merged):
            if unused:
                package = unused.pop(0)
                left -= package.bytes if _remove_package(scratch, package) else 0
                continue
            closure = merged.pop(0)
            if _remove_closure(scratch, closure):
                left -= closure.bytes
                closures.remove(closure)
                before, used = used, _used(closures)
                unused = sorted((each for each in packages if each.key in before - used), key=lambda each: each.used)
    return left


def _list(layout: Layout) -> tuple[list[_Thing], list[_Thing], set[tuple[str, str]]]:
    packages, closures = [], []
    for tag in layout.tags():
        for name in tag.packages():
            record = tag.package(name)
            packages.append(_Thing(tag, name, _used_last(tag.fd, name), record.bytes if record else 0))
        for key in tag.merged():
            merged = tag.closure(key)
            closures.append(_Thing(tag, key, _used_last(tag.closures, key), merged.bytes if merged else 0))
    return packages, closures, _used(closures)


def _used(closures: list[_Thing]) -> set[tuple[str, str]]:
    """(tag, directory) of all packages that closures use."""
    found = set()
    for each in closures:
        record = each.tag.closure(each.name)
        found |= {(each.tag.name, name) for name in (record.packages if record else ())}
    return found


def _used_last(directory_fd: int, name: str) -> float:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mtime
    return 0.0


def _remove_package(scratch: Scratch, package: _Thing) -> bool:
    if not _take_away(scratch, package.tag.fd, package.name):
        return False
    for digest in os.listdir(package.tag.pins):
        if package.tag.pin(digest) == package.name:
            os.unlink(digest, dir_fd=package.tag.pins)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{package.name}.json", dir_fd=package.tag.records)
    return True


def _remove_closure(scratch: Scratch, closure: _Thing) -> bool:
    if not _take_away(scratch, closure.tag.closures, closure.name):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{closure.name}.json", dir_fd=closure.tag.closures)
    return True


def _take_away(scratch: Scratch, directory_fd: int, name: str) -> bool:
    """Move a directory that nobody holds to where it is removed from; False if somebody does."""
    try:
        fd = os.open(name, FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its lock is kept until it has another name, so that whoever opened it meanwhile sees that it is gone.
        os.rename(name, f"evicted-{len(os.listdir(scratch.fd))}", src_dir_fd=directory_fd, dst_dir_fd=scratch.fd)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
