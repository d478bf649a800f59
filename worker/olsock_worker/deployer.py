"""From a version in the store to one that may run: what it requires is resolved and installed first.

Meanwhile the version before it keeps serving. One that cannot be installed is tried again, with growing waits, for as
long as it is the newest: an index that did not answer may answer later.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import msgspec

from olsock_worker import broker_protocol, locks
from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Failed, Install, Installed, Release
from olsock_worker.locks import Locks
from olsock_worker.registry import Deployment

_FIRST_WAIT, _LONGEST_WAIT = 60.0, 3600.0  # seconds between attempts
_BUSY_WAIT = 1.0


class InstallError(Exception):
    """What the broker said about why something was not installed."""


class Deployer:
    """Calls `on_ready` with each version that may run, and `on_failed` with why one may not."""

    def __init__(
        self,
        broker: BrokerClient,
        kept: Locks,
        on_ready: Callable[[Deployment], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._broker, self._locks = broker, kept
        self._on_ready, self._on_failed = on_ready, on_failed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, Deployment] = {}
        self._waiting: set[str] = set()  # functions of which the newest version could not be installed for now

    @property
    def paths(self) -> set[str]:
        """Versions that are being installed, or will be tried again."""
        return {each.path for each in self._wanted.values()}

    @property
    def pending(self) -> dict[str, str]:
        """Version that is being installed now, by the name of the function."""
        return {name: each.version for name, each in self._wanted.items() if name not in self._waiting}

    def deploy(self, deployment: Deployment) -> None:
        """Install what a version requires. Anything for an earlier one of the function has to be forgotten before."""
        if not deployment.requirements and not deployment.config.runtime:
            self._on_ready(deployment)
            return
        self._wanted[deployment.name] = deployment
        self._tasks[deployment.name] = asyncio.create_task(self._deploy(deployment))

    def forget(self, name: str) -> Deployment | None:
        """Stop what is being done for a function; return the version it was done for."""
        self._waiting.discard(name)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        return self._wanted.pop(name, None)

    def release(self, deployment: Deployment) -> None:
        """Let go of what a version that is not current any more has installed; its instances keep it."""
        if deployment.installation:
            message = Release(id=self._broker.number(), installation=deployment.installation)
            if not self._broker.request(message, lambda _reply, _fds: None):
                asyncio.get_running_loop().call_later(_BUSY_WAIT, self.release, deployment)

    async def _deploy(self, deployment: Deployment) -> None:
        """Try until it works. Cancelled when there is a newer version, or none."""
        wait = _FIRST_WAIT
        while True:
            self._waiting.discard(deployment.name)
            try:
                ready = await self._install(deployment)
            except (OSError, ValueError, InstallError) as error:
                self._waiting.add(deployment.name)
                self._on_failed(deployment.name, str(error))
            else:
                del self._wanted[deployment.name], self._tasks[deployment.name]
                self._on_ready(ready)
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _install(self, deployment: Deployment) -> Deployment:
        """Have it installed, and keep its lock."""
        loop = asyncio.get_running_loop()
        lines = "".join(f"{line}\n" for line in deployment.requirements)
        await loop.run_in_executor(None, self._locks.require, deployment.path, lines)
        answer = self._ask(deployment)
        try:
            installed, fd = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: self._drop(deployment, done))
            raise
        ready = msgspec.structs.replace(deployment, installation=installed.installation, packages=installed.packages)
        try:
            await asyncio.shield(loop.run_in_executor(None, self._keep, deployment.path, fd))
        except BaseException:
            self.release(ready)
            raise
        return ready

    def _ask(self, deployment: Deployment) -> asyncio.Future[tuple[Installed, int]]:
        """Send the request. Its answer, the installation and a descriptor of the lock, has to be taken or dropped."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Installed, int]] = loop.create_future()

        def on_reply(reply: Reply, fds: list[int]) -> None:
            if isinstance(reply, Installed) and fds:
                answer.set_result((reply, fds[0]))
                return
            broker_protocol.close_all(fds)
            if isinstance(reply, Installed):  # there was no room for its lock here
                self.release(msgspec.structs.replace(deployment, installation=reply.installation))
            answer.set_exception(InstallError(reply.message if isinstance(reply, Failed) else "no answer"))

        message = Install(id=self._broker.number(), path=deployment.path, runtime=deployment.config.runtime)
        if not self._broker.request(message, on_reply):
            answer.set_exception(InstallError("the broker does not keep up"))
        return answer

    def _drop(self, deployment: Deployment, answer: asyncio.Future[tuple[Installed, int]]) -> None:
        """Let go of what was installed for somebody who has gone."""
        if answer.exception() is None:
            installed, fd = answer.result()
            os.close(fd)
            self.release(msgspec.structs.replace(deployment, installation=installed.installation))

    def _keep(self, path: str, fd: int) -> None:
        try:
            self._locks.write(path, locks.LOCK, locks.read(fd))
            self._locks.prune(path)
        finally:
            os.close(fd)
