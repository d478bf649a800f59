"""Bytes on their way to a sandbox, which takes them when it likes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Outbox:
    """Writes to the channel `fd`, which stays its owner's to close, and keeps what does not fit into it.

    It is for whoever sends to see that not too much is kept: `drained` is called when nothing is any more.
    """

    __slots__ = ("_drained", "_fd", "_kept", "_loop")

    def __init__(self, fd: int, drained: Callable[[], None]) -> None:
        self._fd = fd
        self._drained = drained
        self._kept = bytearray()  # grows at one end and shrinks at the other without being copied
        self._loop = asyncio.get_running_loop()

    def send(self, data: bytes, *more: bytes) -> None:
        """Write now what can be written now, and the rest later."""
        if more:
            data = b"".join((data, *more))
        if self._kept:
            self._kept += data
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it is gone: the end of its channel will say so
        if sent < len(data):
            self._kept += memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        try:
            del self._kept[: os.write(self._fd, self._kept)]
        except BlockingIOError:
            return
        except OSError:
            self._kept.clear()
        if not self._kept:
            self._loop.remove_writer(self._fd)
            self._drained()

    @property
    def behind(self) -> bool:
        """Whether the sandbox has not taken all that was sent to it."""
        return bool(self._kept)

    def close(self) -> None:
        """Write no more."""
        self._loop.remove_writer(self._fd)
