"""ASGI applications (version 3): one event loop for the life of the instance, one request of the channel at a time.

The channel is read while a request runs: more of its body, messages of a WebSocket, and that its client has gone. A
request is over when its application returns, not when the body is complete: what is done behind that (tasks in the
background of Starlette, for one) is done under the function's timeout, by a process that is not frozen.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from urllib.parse import unquote

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, http, lifespan, loop, websocket, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

    http = handler.neighbour("http")
    lifespan = handler.neighbour("lifespan")
    loop = handler.neighbour("loop")
    websocket = handler.neighbour("websocket")

if TYPE_CHECKING:
    from typing import Any, Iterable, NoReturn

    Frame = tuple[int, int, int, bytes]

WAITING = 1 << 20  # bytes that an application has not received yet, from which on no more are read


def take_over(server: handler.Server) -> None:
    """Start the application of `server`, and have it answer from now on."""
    server.successor = Application(server).run


class Application(asyncio.Protocol):
    """An application, and this end of the channel to the host."""

    def __init__(self, server: handler.Server) -> None:
        self.server = server
        self.app: Any = server.function
        self._loop = loop.Loop()
        self._lifespan = lifespan.Lifespan(self.app, server.report)
        self._loop.complete(self._lifespan.startup())
        self._current: http.Http | websocket.WebSocket | None = None
        self._first: Iterable[Frame] = ()

    def run(self, frames: Iterable[Frame]) -> NoReturn:
        """Serve until the host closes its end, then end the process; `frames` have been read already."""
        self._first = frames
        try:
            self._loop.complete(self._serve())
        except BaseException as error:
            sys.stderr.write(f"olsock: runtime failed: {type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)

    async def _serve(self) -> None:
        running = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = running.create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._socket = socket.socket(fileno=self.server.channel.fd)
        await running.create_unix_connection(lambda: self, sock=self._socket)
        await self._gone
        await self._lifespan.shutdown()
        self.server.streams.flush()

    # -- the channel ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin: what is sent goes through the transport from now on."""
        self._transport = transport
        self.server.channel.send = self._write  # type: ignore[method-assign]
        for frame in self._first:
            self._on_frame(*frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: nobody asks any more."""
        if not self._gone.done():
            if exc is None or isinstance(exc, OSError):
                self._gone.set_result(None)
            else:
                self._gone.set_exception(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the host has sent."""
        try:
            for frame in self.server.parser.feed(data):
                self._on_frame(*frame)
        except wire.WireError as error:
            self.connection_lost(error)

    def pause_writing(self) -> None:
        """Have applications wait: the host does not read as fast as they write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._writable.set()

    async def drained(self) -> None:
        """Wait until there is room for more."""
        await self._writable.wait()

    def hold(self, waiting: int) -> None:
        """Stop reading while `waiting` bytes are too many."""
        if waiting > WAITING:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _write(self, data: bytes | memoryview) -> None:
        self._transport.write(data)

    # -- requests ---------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, flags: int, request: int, payload: bytes) -> None:
        current = self._current
        if kind == wire.REQUEST:
            if current is not None:
                raise wire.WireError("a request inside of another")
            self._begin(flags, request, payload)
        elif kind == wire.CONFIG:
            raise wire.WireError("a second CONFIG")
        elif current is not None and current.request == request:
            if kind == wire.DISCONNECT:
                current.disconnect()
            else:
                current.on_frame(kind, flags, payload)
        # Else it was meant for a request that has ended meanwhile.

    def _begin(self, flags: int, request: int, payload: bytes) -> None:
        text, body = wire.split(payload)
        meta = handler._scan(text.decode(), 0)[0]
        if not meta.get("web"):
            self.server.fail(
                request, ValueError("an ASGI application takes HTTP requests: this one is an event"), "malformed"
            )
            return
        kind = websocket.WebSocket if meta.get("type") == "websocket" else http.Http
        current = self._current = kind(self, request, meta)
        if kind is http.Http:
            current.on_frame(wire.BODY, flags, body)
        task = asyncio.get_running_loop().create_task(self._call(self._scope(meta), current))
        task.add_done_callback(lambda task: self._end(current, task))

    async def _call(self, scope: dict[str, Any], current: Any) -> None:
        await self.app(scope, current.receive, current.send)

    def _end(self, current: Any, task: asyncio.Task[Any]) -> None:
        """Answer for an application that has returned, or raised."""
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self.server.channel.forked:
            self.server.leave_if_forked(error)
        self._current = None
        self.hold(0)
        current.finish(error)
        self.server.mend()

    def _scope(self, meta: dict[str, Any]) -> dict[str, Any]:
        root, path = meta.get("root_path", self.server.config.get("root_path", "")), meta.get("path") or "/"
        kind = meta.get("type", "http")
        scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": meta.get("http_version", "1.1"),
            "scheme": {"http": "ws", "https": "wss"}.get(meta.get("scheme", "http"), "ws")
            if kind == "websocket"
            else meta.get("scheme", "http"),
            "path": unquote(root + path),
            "raw_path": (root + path).encode(),
            "root_path": unquote(root),
            "query_string": meta.get("query", "").encode(),
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in meta.get("headers") or ()],
            "server": tuple(meta["server"]) if meta.get("server") else None,
            "client": tuple(meta["client"]) if meta.get("client") else None,
        }
        if kind == "websocket":
            scope["subprotocols"] = meta.get("subprotocols") or []
            scope["extensions"] = {"websocket.http.response": {}}
        else:
            scope["method"] = meta.get("method", "GET")
        if self._lifespan.supported:
            scope["state"] = self._lifespan.state.copy()
        return scope
