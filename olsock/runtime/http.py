"""One HTTP request of an ASGI application."""

from __future__ import annotations

import asyncio
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import reply, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

    reply = handler.neighbour("reply")

if TYPE_CHECKING:
    from typing import Any, Iterable

GRACE = 0.005  # seconds after which a body that is whole is sent, though its application has not returned yet


def plain_headers(headers: Iterable[Any]) -> list[tuple[str, str]]:
    """Return an application's headers, which are bytes, as text."""
    found = []
    for name, value in headers:
        if not isinstance(name, (bytes, bytearray)) or not isinstance(value, (bytes, bytearray)):
            raise reply.BadReply(f"header {name!r}: {value!r}: bytes are expected")
        found.append((name.decode("latin-1").lower(), value.decode("latin-1")))
    return found


class Http:
    """What one call of an application receives and sends."""

    def __init__(self, application: Any, request: int, meta: dict[str, Any]) -> None:
        self.request = request
        self._application, self._server = application, application.server
        self._reply = reply.Reply(self._server.channel, request, meta.get("method", "GET"))
        self._whole: bytes | None = None  # a body that came in one piece: sent when the application returns, or soon
        self._timer: asyncio.TimerHandle | None = None
        self._complete = self._gone = False
        self._broken: BaseException | None = None  # what the application was told, in the midst of a body
        self._parts: deque[tuple[bytes, bool]] = deque()
        self._waiting = 0  # bytes in them
        self._news = asyncio.Event()

    def on_frame(self, kind: int, flags: int, payload: bytes) -> None:
        """Take a part of the request's body."""
        if kind == wire.BODY and not self._complete:
            self._parts.append((payload, bool(flags)))
            self._waiting += len(payload)
            self._news.set()
            self._application.hold(self._waiting)

    def disconnect(self) -> None:
        """Take note that the client has gone."""
        self._gone = True
        self._news.set()

    async def receive(self) -> dict[str, Any]:
        """Give the application the next part of the body, or in the end that its client has gone."""
        while True:
            if self._parts and not self._complete:
                data, more = self._parts.popleft()
                self._waiting -= len(data)
                self._application.hold(self._waiting)
                return {"type": "http.request", "body": data, "more_body": more}
            if self._gone or self._complete:
                return {"type": "http.disconnect"}
            self._news.clear()
            await self._news.wait()

    async def send(self, message: dict[str, Any]) -> None:
        """Take what the application answers."""
        kind = message["type"]
        if self._complete:
            raise RuntimeError(f"unexpected message {kind!r}: the response is complete")
        if kind == "http.response.start":
            if self._reply.headed:
                raise RuntimeError("the response was started already")
            self._reply.head(message["status"], plain_headers(message.get("headers") or ()))
        elif kind == "http.response.body":
            await self._body(message.get("body", b""), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"unexpected message {kind!r} in a response")

    async def _body(self, data: Any, more: bool) -> None:
        if isinstance(data, (bytearray, memoryview)):
            data = bytes(data)
        try:
            self._reply.check(data)
            if more or self._reply.sent:
                self._reply.part(data)
        except reply.BadReply as error:
            self._broken = error
            raise
        if not more:
            self._complete = True
            self._parts.clear()
            self._news.set()
            if not self._reply.sent:
                self._whole = data
                self._timer = asyncio.get_running_loop().call_later(GRACE, self._send_whole)
        await self._application.drained()

    def _send_whole(self) -> None:
        """Send the body without its end: there is work behind it."""
        if not self._reply.sent and not self._server.channel.forked:
            self._reply.part(self._whole or b"")

    def finish(self, error: BaseException | None) -> None:
        """End the reply, the application having returned or raised `error`."""
        complete, self._complete = self._complete, True
        if self._timer is not None:
            self._timer.cancel()
        if error is not None and complete and self._broken is None:
            self._server.report(error)  # the response is complete all the same
            error = None
        error = error or self._broken
        try:
            if error is not None:
                raise error
            if not complete and not (self._gone and self._reply.sent):
                raise reply.BadReply("the application ended without a complete response")
            self._server.streams.flush()
            if self._whole is not None and not self._reply.sent:
                self._reply.whole(self._whole)
            else:
                self._reply.end()
        except BaseException as failed:
            self._server.fail(self.request, failed, "serialize" if isinstance(failed, reply.BadReply) else "handler")
