"""Bytecode for the versions that are deployed: asked for one after the other, in the background, written beside the code.

Nobody waits for it: what starts before it is there compiles for itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import olsock
from olsock import bytecode
from olsock_worker import broker_protocol
from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Compile, Compiled, Failed
from olsock_worker.logs import WorkerLog
from olsock_worker.registry import Deployment

_LARGEST = 16 << 20  # bytes of an answer
_AGAIN = 0.1  # seconds until the broker is asked what it could not be asked
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Bytecodes:
    """Compiles what `want` names, as long as `is_current` says so."""

    def __init__(
        self, broker: BrokerClient, store_fd: int, is_current: Callable[[Deployment], bool], log: WorkerLog
    ) -> None:
        self._broker, self._store, self._is_current, self._log = broker, store_fd, is_current, log
        self._wanted: dict[str, Deployment] = {}
        self._running = False

    def want(self, deployment: Deployment) -> None:
        """Have a version compiled when its turn comes."""
        self._wanted[deployment.path] = deployment
        if not self._running:
            self._next()

    def _next(self) -> None:
        self._running = bool(self._wanted)
        if not self._running:
            return
        path = next(iter(self._wanted))
        deployment = self._wanted[path]
        if not self._is_current(deployment):
            del self._wanted[path]
            asyncio.get_running_loop().call_soon(self._next)
            return
        message = Compile(id=self._broker.number(), code=path, installation=deployment.installation)
        if self._broker.request(message, lambda reply, fds: self._answered(deployment, reply, fds)):
            del self._wanted[path]
        else:
            asyncio.get_running_loop().call_later(_AGAIN, self._next)

    def _answered(self, deployment: Deployment, reply: Reply, fds: list[int]) -> None:
        if isinstance(reply, Compiled) and fds:
            written = asyncio.get_running_loop().run_in_executor(None, self._write, deployment.path, fds.pop())
            written.add_done_callback(lambda done: self._written(deployment, done))
        else:
            self._failed(deployment, reply.message if isinstance(reply, Failed) else "no answer")
            self._next()
        broker_protocol.close_all(fds)

    def _write(self, path: str, fd: int) -> None:
        try:
            with open(fd, "rb", closefd=False) as file:
                file.seek(0)
                files = bytecode.parse(file.read(_LARGEST))
            code = os.open(path, _DIRECTORY, dir_fd=self._store)
            try:
                bytecode.write(code, files)
            finally:
                os.close(code)
        finally:
            os.close(fd)

    def _written(self, deployment: Deployment, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if isinstance(error, OSError | olsock.OlsockError):
            self._failed(deployment, str(error))
        elif error is not None:
            self._log("error", "internal", function=deployment.name, error=repr(error))
        self._next()

    def _failed(self, deployment: Deployment, why: str) -> None:
        """Note it, unless the version has gone meanwhile. Its instances compile for themselves."""
        if self._is_current(deployment):
            self._log("warning", "not_compiled", function=deployment.name, version=deployment.version, why=why)
