"""Ids that no live sandbox on this host shares with another: blocks of 65,536, each mapped into one user
namespace.

The blocks lie between 1879048192 and 2147352575, a range that no convention gives to anybody (systemd's
UIDS-GIDS lists it as unused; nspawn, podman and /etc/subuid's defaults are all below). Blocks that overlap a
range in /etc/subuid or /etc/subgid are left out all the same. Block 0 is never claimed: its first id is the
one that the worker's unprivileged front falls back to.

A claim is a lock on one byte of /run/olsock/ids. It is an open file description lock: whatever ends a
process, the kernel frees its blocks, and threads of a process do not stumble over each other's as they would
with POSIX locks. A number in the same file says where to look next, for the whole host, so that a block that
was freed is reused as late as can be: after a kill -9, its last processes are long gone by then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from olsock import rundir
from olsock.errors import KernelError

FIRST = 1879048192
LAST = 2147352575
SIZE = 65536
COUNT = (LAST + 1 - FIRST) // SIZE

_SUBORDINATE = ("/etc/subuid", "/etc/subgid")
_NEXT = struct.Struct("<I")
_LOCKS_AT = 4096  # the lock of block n is on byte _LOCKS_AT + n: beyond the file's content, where locks may lie as well


@dataclass(slots=True)
class Block:
    """The host ids from `base` to `base + size - 1`, ours until `release`."""

    base: int
    size: int
    _ids: Ids = field(repr=False, compare=False)
    _claims: dict[int, int] = field(repr=False, compare=False)  # number -> generation

    def release(self) -> None:
        """Give the block back. Idempotent. The processes that had these ids must have ended."""
        for number, generation in self._claims.items():
            self._ids._release(number, generation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Ids:
    """The claims of this process. Safe in threads; a fork has none of its parent's blocks, and does not free them."""

    def __init__(self, run: str = rundir.RUN, subordinate: Iterable[str] = _SUBORDINATE) -> None:
        self._run, self._subordinate = run, tuple(subordinate)
        self._lock = threading.Lock()
        self._fd = -1
        self._mine: dict[int, int] = {}  # block -> generation of the claim, so that a late second release is harmless
        self._generation = 0
        self._reserved: frozenset[int] = frozenset()
        os.register_at_fork(after_in_child=self._forked)

    def claim(self, count: int = 1) -> Block:
        """Claim a block that nobody on this host has; `count` of them, side by side, as one."""
        with self._lock:
            self._open()
            start = self._next()
            claims: dict[int, int] = {}
            for step in range(COUNT + count - 1):
                number = (start + step) % COUNT
                if claims and number == 0:
                    self._give_back(claims)  # what lies side by side does not go round the end
                # Our own locks never conflict with each other, so what is ours is remembered beside them.
                if number in self._reserved or number in self._mine or not self._try_lock(number):
                    self._give_back(claims)
                    continue
                self._generation += 1
                claims[number] = self._mine[number] = self._generation
                if len(claims) == count:
                    # Two processes that read the same number here cost each other a failed try at most.
                    os.pwrite(self._fd, _NEXT.pack((number + 1) % COUNT), 0)
                    return Block(FIRST + min(claims) * SIZE, SIZE * count, self, claims)
            self._give_back(claims)
        what = f"all {COUNT} blocks are in use" if count == 1 else f"no {count} blocks side by side that are not in use"
        raise KernelError("claim a block of ids", self._path, errno.EUSERS, what)

    def _give_back(self, claims: dict[int, int]) -> None:
        for number in claims:
            del self._mine[number]
            _set_lock(self._fd, fcntl.F_UNLCK, number)
        claims.clear()

    def _release(self, number: int, generation: int) -> None:
        with self._lock:
            if self._mine.get(number) != generation:
                return
            del self._mine[number]
            _set_lock(self._fd, fcntl.F_UNLCK, number)

    @property
    def _path(self) -> str:
        return os.path.join(self._run, "ids")

    def close(self) -> None:
        """Give every block back and forget the file, as the end of the process does."""
        with self._lock:
            fd, self._fd, self._mine = self._fd, -1, {}
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        if self._fd >= 0:
            return self._fd
        run = rundir.open_run(self._run)
        try:
            self._fd = os.open("ids", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=run)
        except OSError as error:
            raise KernelError("open", self._path, error.errno or errno.EIO) from None
        finally:
            os.close(run)
        self._reserved = frozenset({0}).union(*(reserved(_read(path)) for path in self._subordinate))
        return self._fd

    def _next(self) -> int:
        content = os.pread(self._fd, _NEXT.size, 0)
        return _NEXT.unpack(content)[0] % COUNT if len(content) == _NEXT.size else 1

    def _try_lock(self, number: int) -> bool:
        try:
            _set_lock(self._fd, fcntl.F_WRLCK, number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _forked(self) -> None:
        """In a forked child: drop the parent's open file. The parent's own copy keeps its locks."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self.close()


def reserved(text: str) -> set[int]:
    """Return the blocks that overlap a range named in the text of a subuid or subgid file."""
    blocks: set[int] = set()
    for line in text.splitlines():
        fields = line.split("#", 1)[0].strip().split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal() and int(fields[2]):
            first, last = int(fields[1]), int(fields[1]) + int(fields[2]) - 1
            if first <= LAST and last >= FIRST:
                low, high = (max(first, FIRST) - FIRST) // SIZE, (min(last, LAST) - FIRST) // SIZE
                blocks.update(range(low, high + 1))
    return blocks


def claim(count: int = 1) -> Block:
    """Claim a block of ids for this process, or `count` of them side by side, as one."""
    return _ids.claim(count)


def _set_lock(fd: int, kind: int, number: int) -> None:
    """F_OFD_SETLK on one byte: struct flock with type, whence, start, length and (always 0 for these) pid."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, _LOCKS_AT + number, 1, 0))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


_ids = Ids()
