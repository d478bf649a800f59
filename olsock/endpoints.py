"""What connects a library process with a handler: the channel, and the pipes of what the handler prints."""

from __future__ import annotations

import os
import socket

from olsock._core import process

MAX_READS = 64  # of one pipe at one time: 4 MiB


class Endpoints:
    """A channel (stream socketpair), a log (pipe) and perhaps a second one: ours to keep, theirs to hand over."""

    def __init__(self, *, separate_stderr: bool = False) -> None:
        self.channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.log = self.errors = -1
        self._their_pipes: list[int] = []
        try:
            self.log = self._pipe()
            if separate_stderr:
                self.errors = self._pipe()
        except BaseException:
            self.close()
            raise

    def _pipe(self) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self._their_pipes.append(theirs)
        return ours

    @property
    def theirs(self) -> list[int]:
        """The handler's ends: channel, log, and if it is separate what stderr goes to."""
        return [self._theirs.fileno(), *self._their_pipes]

    def send(self, frame: bytes) -> None:
        """Put a frame into the channel, to be found by a handler that is yet to start."""
        self.channel.sendall(frame)

    def close_theirs(self) -> None:
        """Close the handler's ends here, once it has its own. Idempotent."""
        self._theirs.close()
        process.close_all(*self._their_pipes)
        self._their_pipes.clear()

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.close_theirs()
        self.channel.close()
        process.close_all(self.log, self.errors)
        self.log = self.errors = -1


class Tail:
    """The end of what comes out of a pipe, whose fd stays the caller's."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.cut = False  # there was more than is kept
        self._limit = limit
        self._kept = bytearray()

    def read(self) -> bool:
        """Take what is there; False when the other end is closed. Bounded: who prints for ever does not keep us."""
        for _ in range(MAX_READS):
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._kept += data
            if len(self._kept) > self._limit:
                self.cut = True
                del self._kept[: -self._limit]
        return True

    def __str__(self) -> str:
        return self._kept.decode(errors="replace")
