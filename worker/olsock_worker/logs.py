"""Logs: the worker's own as JSON lines on stderr, and one rotating file a function for what its handlers print."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import time
from datetime import UTC, datetime

import msgspec

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\\]")
_LINE = 16 * 1024  # a longer line is cut into pieces, each with its own prefix


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


class FunctionLog:
    """One function's log: `<name>.log`, `<name>.log.1`, ... of bounded size, beneath a directory descriptor."""

    def __init__(self, directory_fd: int, name: str, size: int, files: int) -> None:
        self._directory, self._name = directory_fd, f"{name}.log"
        self._limit, self._files = size, files
        self._fd = -1
        self._size = 0
        self.tails: dict[str, Tail] = {}  # of requests that are to be told what they printed

    def write(self, source: str, data: bytes) -> None:
        """Write what a handler printed; `source` says during which request."""
        if self.tails and source in self.tails:
            self.tails[source].add(data)
        text = data.decode("utf-8", "backslashreplace")
        stamp = _now()
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        out = []
        for line in lines:
            for start in range(0, len(line) or 1, _LINE):
                out.append(f"{stamp} {source} {escape(line[start : start + _LINE])}\n")
        self._append("".join(out).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()
            elif self._size + len(data) > self._limit:
                self._rotate()
            os.write(self._fd, data)
            self._size += len(data)
        except OSError:
            self.close()  # a full disk must not stop a function

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._name, flags, 0o640, dir_fd=self._directory)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._name, *(f"{self._name}.{number}" for number in range(1, self._files))]
        for old, new in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        if self._files == 1:
            os.unlink(self._name, dir_fd=self._directory)
        self._open()


def escape(text: str) -> str:
    """Make control characters visible, so that what a handler prints can neither forge a line nor drive a terminal."""
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _now() -> str:
    moment = time.time()
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S}.{int(moment * 1000) % 1000:03d}Z"
