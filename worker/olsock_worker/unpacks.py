"""Uploads, unpacked for the front: each in a sandbox that is used once, whose records go straight to the front.

No byte of an archive is looked at here: the broker opens the file beneath the front's own store, and hands it on.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable

import olsock
from olsock import archives
from olsock_worker import broker_protocol
from olsock_worker.beneath import open_beneath
from olsock_worker.broker_protocol import Failed, ToFront, Unpack, Unpacking
from olsock_worker.logs import WorkerLog
from olsock_worker.settings import Settings

_SLOTS = 2  # at one time
_WAITING = 64


class Unpacks:
    """Unpacks a few archives at a time. To be used on one loop."""

    def __init__(
        self, settings: Settings, store_fd: int, send: Callable[[ToFront, tuple[int, ...]], None], log: WorkerLog
    ) -> None:
        self._settings, self._store, self._send, self._log = settings, store_fd, send, log
        self._slots = asyncio.Semaphore(_SLOTS)
        self._waiting = 0

    async def unpack(self, message: Unpack) -> None:
        """Begin to unpack, and answer with the end of a pipe that the records come from."""
        if self._waiting >= _WAITING:
            self._send(Failed(message.id, "busy", "too many uploads wait to be unpacked"), ())
            return
        self._waiting += 1
        try:
            async with self._slots:
                await self._run(message)
        finally:
            self._waiting -= 1

    async def _run(self, message: Unpack) -> None:
        loop = asyncio.get_running_loop()
        source, sink = os.pipe2(os.O_CLOEXEC)
        told = False

        def tell() -> None:
            nonlocal told
            if not told:
                told = True
                self._send(Unpacking(message.id), (source,))
                os.close(source)

        def started() -> None:
            loop.call_soon_threadsafe(tell)

        mine = os.dup(sink)  # the thread's own: the task may be cancelled, and close its, while that goes on

        def work() -> None:
            try:
                archive = self._open(message.path)
                try:
                    size, files = int(self._settings.code), self._settings.code_files
                    archives.unpack(archive, message.form, mine, size, files, started)
                finally:
                    os.close(archive)
            finally:
                os.close(mine)

        try:
            await asyncio.to_thread(work)
        except Exception as error:  # whatever it was, someone waits for the answer
            self._log("warning", "not_unpacked", path=message.path, error=str(error) or repr(error))
            if not told:
                told = True
                os.close(source)
                self._send(Failed(message.id, "kernel", str(error) or repr(error)), ())
        finally:
            broker_protocol.close_all([sink] if told else [source, sink])

    def _open(self, path: str) -> int:
        """Open an archive of the front's; what is not plainly its own is not handed to a sandbox."""
        fd = open_beneath(self._store, path, os.O_RDONLY | os.O_NONBLOCK, "path")
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.fstat(self._store).st_uid:
            os.close(fd)
            raise olsock.SpecError("path", path, "a file of the store")
        return fd
