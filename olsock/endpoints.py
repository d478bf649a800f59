"""What connects a library process with a handler: the channel, and the pipes of what the handler prints."""

from __future__ import annotations

import os
import socket

from olsock._core import process


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


def read_tail(fd: int, into: bytearray, limit: int) -> bool:
    """Read what a non-blocking pipe holds and keep the last `limit` bytes; False when the other end is closed."""
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        into += data
        del into[:-limit]
