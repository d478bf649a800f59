"""The standard streams of a program in a sandbox, bounded: what a sandbox writes never costs more memory than allowed."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import IO

from olsock.errors import SpecError

PIPE, STDOUT, DEVNULL = -1, -2, -3
_CHUNK = 65536


class Pipes:
    """Three streams: our ends as files (`stdin`, `stdout`, `stderr`), theirs as fds until the program has them."""

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.output, self.errors = bytearray(), bytearray()
        self.truncated = False
        self._opened: list[int] = []  # theirs, to be closed by us
        self.theirs: list[int] = []
        try:
            self.theirs.append(self._input(stdin))
            self.theirs.append(self._output("stdout", stdout))
            self.theirs.append(self.theirs[1] if stderr == STDOUT else self._output("stderr", stderr))
        except BaseException:
            self.close()
            raise

    def _null(self) -> int:
        self._opened.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        return self._opened[-1]

    def _input(self, stdin: int) -> int:
        if stdin == PIPE:
            theirs, ours = os.pipe2(os.O_CLOEXEC)
            self.stdin = open(ours, "wb", buffering=0)
            self._opened.append(theirs)
            return theirs
        return self._given("stdin", stdin)

    def _output(self, name: str, which: int) -> int:
        if which == PIPE:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            setattr(self, name, open(ours, "rb", buffering=0))
            self._opened.append(theirs)
            return theirs
        return self._given(name, which)

    def _given(self, name: str, which: int) -> int:
        if which == DEVNULL:
            return self._null()
        if which < 0:
            raise SpecError(name, which, "PIPE, DEVNULL, STDOUT (stderr only) or an open file descriptor")
        return which

    def communicate(
        self, input: bytes, timeout: float | None, limit: int, news: Sequence[int], ended: Callable[[], int | None]
    ) -> bool:
        """Write `input` and read both streams until the program has `ended`; False if `timeout` seconds pass first.

        The program's end, told through the fds `news`, is what ends this, not the streams' end: something that the program left
        behind may hold them open for ever.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        for fd in news:
            poll.register(fd, select.POLLIN)
        readers = {f.fileno(): into for f, into in ((self.stdout, self.output), (self.stderr, self.errors)) if f}
        for fd in readers:
            os.set_blocking(fd, False)
            poll.register(fd, select.POLLIN)
        pending = memoryview(input)
        if self.stdin:
            os.set_blocking(self.stdin.fileno(), False)
            poll.register(self.stdin.fileno(), select.POLLOUT)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for fd, _ in poll.poll(None if left is None else left * 1000 + 1):
                if fd in news:
                    if ended() is not None:
                        self.drain(limit)
                        return True
                elif fd in readers:
                    if not self._read(fd, readers[fd], limit):
                        poll.unregister(fd)
                else:
                    pending = self._write(fd, pending)
                    if not pending:
                        poll.unregister(fd)
                        assert self.stdin
                        self.stdin.close()

    def _write(self, fd: int, data: memoryview) -> memoryview:
        try:
            return data[os.write(fd, data[:_CHUNK]) :]
        except BlockingIOError:
            return data
        except OSError:  # the program does not read any more
            return data[:0]

    def _read(self, fd: int, into: bytearray, limit: int) -> bool:
        """Read once; False when there will be no more."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        room = limit - len(into)
        if len(data) > room:
            self.truncated = True
        into += data[:room]
        return bool(data)

    def drain(self, limit: int) -> None:
        """Read what is there, up to what a pipe can hold, without waiting."""
        for file, into in ((self.stdout, self.output), (self.stderr, self.errors)):
            if file is None or file.closed:
                continue
            os.set_blocking(file.fileno(), False)
            for _ in range(16):
                before = len(into)
                if not self._read(file.fileno(), into, limit) or len(into) == before:
                    break

    def close_theirs(self) -> None:
        """Close the program's ends here, once it has its own."""
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.close_theirs()
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()
