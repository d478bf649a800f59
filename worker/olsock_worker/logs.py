"""Logs: the worker's own as JSON lines on stderr, and a rotating file a function for what it prints and how its calls go."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Protocol

import msgspec

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\\]")
_LOG = re.compile(r"\.log(\.\d+)?$")
_LINE = 16 * 1024  # a longer line is cut into pieces, each with its own prefix
_MOST = 1000  # things said that wait to be written


class WorkerLog:
    """JSON lines to stderr, which is what systemd and containers collect."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, level: str, event: str, **fields: object) -> None:
        """Write one line. JSON escapes whatever a field holds, so no value can begin a line of its own."""
        record = {"time": _now(), "level": level, "process": self._process, "event": event, **fields}
        with contextlib.suppress(OSError):  # nobody reads the log any more: serving goes on
            sys.stderr.buffer.write(msgspec.json.encode(record) + b"\n")
            sys.stderr.buffer.flush()


class Tail:
    """The end of what one request printed."""

    LIMIT = 4096

    def __init__(self) -> None:
        self.data = b""

    def add(self, data: bytes) -> None:
        """Take more in, and let go of what is too much."""
        self.data = (self.data + data)[-self.LIMIT :]


class Said(Protocol):
    """What the worker itself says in a function's log."""

    def lines(self, before: str, request: str) -> str:
        """Return it, as lines without control characters, each with `before` before it."""


class FunctionLog:
    """One function's log: `<name>.log`, `<name>.log.1`, ... of bounded size, beneath a directory descriptor.

    A line is time, request, source and text; the source is `out/` or `platform/` with the number of the instance, so that
    nothing that a function prints is a line of the worker's.
    """

    def __init__(
        self,
        directory_fd: int,
        name: str,
        size: int,
        files: int,
        later: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`later` calls a function in a moment: until then, what the worker says waits for more. Without it nothing does."""
        self._directory, self._name = directory_fd, f"{name}.log"
        self._limit, self._files, self._later = size, files, later
        self._fd = -1
        self._size = 0
        self._waiting: list[tuple[float, int, str, bytes | Said]] = []
        self.tails: dict[str, Tail] = {}  # of requests that are to be told what they printed

    def write(self, request: str, data: bytes, instance: int = 0) -> None:
        """Write what a handler printed during a request."""
        if self.tails and request in self.tails:
            self.tails[request].add(data)
        self._waiting.append((monotonic(), instance, request, data))
        self.flush()

    def tell(self, request: str, said: Said, instance: int, when: float) -> None:
        """Write what the worker says about a request; `when` is monotonic."""
        if self.tails and request in self.tails:
            self.tails[request].add(said.lines("", request).encode())
        waiting = self._waiting
        waiting.append((when, instance, request, said))
        if self._later is None or len(waiting) > _MOST:
            self.flush()
        elif len(waiting) == 1:
            self._later(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        wall = time.time() - monotonic()
        out: list[str] = []
        for when, instance, request, said in waiting:
            stamp = _stamp(int((wall + when) * 1000))
            if isinstance(said, bytes):
                prefix = f"{stamp} {request} out/{instance} "
                out += [f"{prefix}{line}\n" for line in _lines(said)]
            else:
                out.append(said.lines(f"{stamp} {request} platform/{instance} ", request))
        self._append("".join(out).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Write what waits and close the file; the next write opens it again."""
        self.flush()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        """Write whole lines, into one file where they fit into one."""
        try:
            if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
                self._let_go()  # it was removed to make room
            if self._fd < 0:
                self._open()
            for part in _parts(data, self._limit):
                if self._size and self._size + len(part) > self._limit:
                    self._rotate()
                os.write(self._fd, part)
                self._size += len(part)
        except OSError:
            self._let_go()  # a full disk must not stop a function

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._name, flags, 0o640, dir_fd=self._directory)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self._let_go()
        names = [self._name, *(f"{self._name}.{number}" for number in range(1, self._files))]
        for old, new in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        if self._files == 1:
            os.unlink(self._name, dir_fd=self._directory)
        self._open()


def _lines(data: bytes) -> Iterator[str]:
    """Yield what was printed as lines that can be logged."""
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        for start in range(0, len(line) or 1, _LINE):
            yield escape(line[start : start + _LINE])


def _parts(data: bytes, limit: int) -> Iterator[bytes]:
    """Cut text between lines, so that no part is longer than `limit` unless one line is."""
    start = 0
    while len(data) - start > limit:
        end = data.rfind(b"\n", start, start + limit) + 1 or data.find(b"\n", start) + 1
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:] if start else data


def prune(directory_fd: int, most: int) -> None:
    """Remove the logs that were written to longest ago, as far as all together are larger than `most` bytes."""
    found: list[tuple[float, int, str]] = []
    with os.scandir(directory_fd) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # it was rotated away
                if _LOG.search(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, entry.name))
    total = sum(size for _, size, _ in found)
    for _, size, name in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_fd)
        total -= size


def escape(text: str) -> str:
    """Make control characters visible, so that what a handler prints can neither forge a line nor drive a terminal."""
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _now() -> str:
    return _stamp(int(time.time() * 1000))


@lru_cache(64)  # many lines are of one moment
def _stamp(ms: int) -> str:
    """Return a time as text."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
