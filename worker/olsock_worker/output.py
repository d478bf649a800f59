"""What the processes of one sandbox print: read as it comes, and logged under the request that was running."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.logs import FunctionLog

_READ = 65_536
_BURST = 1 << 20  # bytes between two beats of the fleet; more has to wait in the pipe


class Output:
    """Moves lines from the pipe `fd`, which stays its owner's to close, to the log of a function."""

    __slots__ = ("_fd", "_line", "_log", "_loop", "_number", "_read_since", "_request", "fresh", "muted")

    def __init__(self, fd: int, log: FunctionLog, number: int) -> None:
        """`number` is that of the sandbox."""
        self.fresh = False  # may hold what the last request printed and nobody has read yet
        self.muted = False  # has printed too much since the last beat
        self._fd = fd
        self._log = log
        self._number = number
        self._line = b""  # the beginning of a line
        self._read_since = 0  # bytes since the last beat
        self._request = "-"  # id of the latest request
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._on_readable)

    def begin(self, request: str) -> None:
        """Note that what is printed from now on belongs to `request`."""
        if self.fresh:
            self.read()
        if self._line:
            self.end_line()
        self._request = request

    def settle(self) -> None:
        """Note that the latest request is over, and that what it printed can all be read."""
        if self.muted and self.fresh:
            self.read()  # or nobody would until the next beat
        self.fresh = False
        if self._line:
            self.end_line()

    def _on_readable(self) -> None:
        if not self.read():
            self._loop.remove_reader(self._fd)
            self.muted = False
        elif self._read_since > _BURST:
            self._loop.remove_reader(self._fd)
            self.muted = True

    def read(self) -> bool:
        """Take what is there; False at the end of the pipe."""
        self.fresh = False
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        more = bool(data)
        self._read_since += len(data)
        if self._line:
            data = self._line + data
        end = data.rfind(b"\n") + 1
        self._line = data[end:]  # a line that is written in pieces is logged as one
        if end:
            self._log.write(self._request, data[:end], self._number)
        if len(self._line) > _READ:
            self.end_line()
        return more

    def end_line(self) -> None:
        """Log what is there of a line that has not ended: its request has."""
        if self._line:
            line, self._line = self._line, b""
            self._log.write(self._request, line, self._number)

    def beat(self) -> None:
        """Count anew, and go on reading if there was too much."""
        self._read_since = 0
        if self.muted:
            self.muted = False
            self._loop.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Read no more."""
        if self.fresh:
            self.read()
        self.end_line()
        self.muted = False
        self._loop.remove_reader(self._fd)
