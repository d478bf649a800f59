"""Zygotes that are being closed, in threads, since that waits for the kernel."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import olsock


class Closeable(Protocol):
    """What has an end."""

    def close(self) -> None: ...


class Closings:
    """Begins them, and knows when all are over."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[None]] = set()

    def begin(self, thing: Closeable) -> None:
        """Close something in a thread."""
        future = asyncio.ensure_future(asyncio.to_thread(_close, thing))
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    async def wait(self, timeout: float) -> None:
        """Wait until what was begun is over."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)


def _close(thing: Closeable) -> None:
    with contextlib.suppress(olsock.OlsockError, OSError):
        thing.close()
