"""The life of an ASGI application: told to start up before the first request, and to shut down after the last one."""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

SHUTDOWN = 2.0  # seconds for what an application does at its end; who ends a sandbox need not wait for them


class StartupFailed(Exception):
    """The application says that it cannot start."""


class Lifespan:
    """Speaks the lifespan protocol with an application, if it does."""

    def __init__(self, app: Any, report: Callable[[BaseException], None]) -> None:
        self._app, self._report = app, report
        self._task: asyncio.Future[Any] | None = None
        self._asked = 0
        self.state: dict[str, Any] = {}
        self.supported = False

    async def startup(self) -> None:
        """Have the application start. One that does not know of it, and says so by raising, has nothing to start."""
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = loop.create_future()
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._stop = asyncio.Event()
        self._task = loop.create_task(self._run())
        await asyncio.wait([self._task, self._started], return_when=asyncio.FIRST_COMPLETED)
        if self._started.done():
            self._started.result()
            self.supported = True
            return
        error = self._task.exception()
        if error is None:
            return
        if not isinstance(error, Exception):
            raise error
        if self._asked:
            self._report(error)

    async def shutdown(self) -> None:
        """Have the application clean up, as long as that takes no longer than a moment."""
        if not self.supported or self._task is None or self._task.done():
            return
        self._stop.set()
        await asyncio.wait([self._task, self._stopped], timeout=SHUTDOWN, return_when=asyncio.FIRST_COMPLETED)
        for future in (self._stopped, self._task):
            error = future.exception() if future.done() and not future.cancelled() else None
            if error is not None:
                self._report(error)
                return

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        if self._asked > 2:
            await asyncio.get_running_loop().create_future()  # there is nothing more to be told, ever
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        future = {"lifespan.startup": self._started, "lifespan.shutdown": self._stopped}.get(kind.rpartition(".")[0])
        if future is None or not kind.endswith((".complete", ".failed")) or future.done():
            raise RuntimeError(f"unexpected message {kind!r} in the lifespan of an application")
        if kind.endswith(".complete"):
            future.set_result(None)
        else:
            future.set_exception(StartupFailed(str(message.get("message", "")) or f"{kind} without a message"))
            future.exception()  # it is told where it is waited for
