"""Reading functions' logs: lines as they were meant, and a log as one stream of lines however often it is rotated."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Generator, Iterator
from typing import Literal

import msgspec

_LINE = re.compile(r"(\S+Z) (\S+) (out|platform)/(\d+) ?(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4})")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = 65_536
_LONGEST = 1 << 20  # bytes; a line of a function log is never so long
_FILES = 102  # more than `log_files` allows
_MARK = 256  # bytes
_TRIES = 50  # to see all files between two rotations


class Record(msgspec.Struct, frozen=True):
    """One line: who has said what, during which request."""

    time: str
    request: str
    by: Literal["function", "platform"]
    instance: int  # its number in the worker that ran then; 0: of none
    text: str


def parse(line: str) -> Record | None:
    """Return a line of a function log; None for what is none."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    text = _ESCAPED.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), found[5])
    return Record(found[1], found[2], "function" if found[3] == "out" else "platform", int(found[4][:18]), text)


def shown(line: str) -> str:
    """Return a line that drives no terminal, whoever has written into the log."""
    return _CONTROL.sub("?", line)


class LogReader:
    """Reads `<name>.log` and what was rotated away of it, beneath a directory descriptor, each line once.

    What the file in hand was called does not matter, only which file it is: it is kept open, so its inode is no other's.
    """

    def __init__(self, directory_fd: int, name: str) -> None:
        self._directory, self._name = directory_fd, f"{name}.log"
        self._fd = -1
        self._rest = b""
        self.missed = False  # a file was removed before all of it, or of what came after it, was read

    def read(self) -> Iterator[str]:
        """Yield the lines that have come since the last time, oldest first."""
        for lines in self.chunks():
            yield from lines

    def chunks(self) -> Generator[list[str]]:
        """Do so by chunks; after each, `position` is where to go on."""
        while True:
            yield from self._lines()
            newer = self._newer()
            if not newer:
                return
            try:
                yield from self._lines()  # what came before it was rotated away
                yield from self._end()
                self._fd = newer.pop()
                while newer:
                    yield from self._lines()
                    yield from self._end()
                    self._fd = newer.pop()
            finally:  # whoever reads may have had enough
                for fd in newer:
                    os.close(fd)

    @property
    def position(self) -> str:
        """Text for `seek`, in another reader."""
        if self._fd < 0:
            return ""
        offset = os.lseek(self._fd, 0, os.SEEK_CUR) - len(self._rest)
        return f"{os.fstat(self._fd).st_ino}-{_mark(self._fd) if offset else 0}-{offset}"

    def seek(self, position: str) -> None:
        """Go on where another reader was. If that file is gone, `missed` says so, and the oldest is next."""
        inode, mark, offset = map(int, position.split("-"))
        for number in range(_FILES):
            fd = self._open(f"{self._name}.{number}" if number else self._name)
            if fd < 0:
                continue
            status = os.fstat(fd)
            if status.st_ino == inode and status.st_size >= offset and (not offset or _mark(fd) == mark):
                os.lseek(fd, offset, os.SEEK_SET)
                self._fd = fd
                return
            os.close(fd)
        self.missed = True

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lines(self) -> Iterator[list[str]]:
        while self._fd >= 0 and (data := os.read(self._fd, _READ)):
            data = self._rest + data
            end = data.rfind(b"\n") + 1
            self._rest = data[end:]
            if len(self._rest) > _LONGEST:
                end, self._rest = len(data), b""
            if end:
                yield data[:end].decode("utf-8", "replace").removesuffix("\n").split("\n")

    def _end(self) -> Iterator[list[str]]:
        """Be done with the file in hand."""
        self.close()
        if self._rest:
            rest, self._rest = self._rest, b""
            yield [rest.decode("utf-8", "replace")]

    def _newer(self) -> list[int]:
        """Open the files that are newer than the one in hand, newest first."""
        for _ in range(_TRIES):
            opened = self._scan()
            if opened is not None:
                return opened
        return []  # next time, then

    def _scan(self) -> list[int] | None:
        """Do so; None if the log was rotated meanwhile, which would put them out of order."""
        hand = _identity(self._fd)
        opened: dict[tuple[int, int] | None, int] = {}
        gaps, met, first = 0, False, None
        for number in range(_FILES):
            fd = self._open(f"{self._name}.{number}" if number else self._name)
            identity = _identity(fd)
            first = identity if not number else first
            gaps = gaps + 1 if fd < 0 else 0
            met = fd >= 0 and identity == hand
            if fd >= 0 and (met or identity in opened):
                os.close(fd)
            elif fd >= 0:
                opened[identity] = fd
            if met or gaps > 1:  # a rename leaves one for a moment
                break
        if not self._is_current(first):
            for fd in opened.values():
                os.close(fd)
            return None
        self.missed = self.missed or (hand is not None and not met and bool(opened))
        return list(opened.values())

    def _is_current(self, identity: tuple[int, int] | None) -> bool:
        fd = self._open(self._name)
        try:
            return _identity(fd) == identity
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self, name: str) -> int:
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._directory)
        except OSError:  # not there, or a link
            return -1
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return -1


def _mark(fd: int) -> int:
    """Tell a file from another that has its inode later: by its first line, which has a time and a request."""
    return zlib.crc32(os.pread(fd, _MARK, 0).partition(b"\n")[0])


def _identity(fd: int) -> tuple[int, int] | None:
    if fd < 0:
        return None
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
