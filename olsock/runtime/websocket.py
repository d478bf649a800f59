"""One WebSocket of an ASGI application: a request that lasts until the application returns."""

from __future__ import annotations

import asyncio
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, http, reply, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

    http, reply = handler.neighbour("http"), handler.neighbour("reply")

if TYPE_CHECKING:
    from typing import Any

LOST, NORMAL = 1006, 1000
MAX_REASON = 123  # bytes, in a frame of the protocol
RESERVED = (1004, 1005, 1006, 1015)  # codes that nobody may send


class WebSocket:
    """What one call of an application receives and sends."""

    def __init__(self, application: Any, request: int, meta: dict[str, Any]) -> None:
        self.request = request
        self._offered = meta.get("subprotocols") or ()
        self._application, self._server = application, application.server
        self._refusal = reply.Reply(self._server.channel, request)
        self._refused = self._accepted = False
        self._code: int | None = None  # how the application closed it
        self._reason = ""
        self._left: tuple[int, str] | None = None  # how the client did
        self._messages: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._begun: list[bytes] = []  # of a message whose end is still to come
        self._text = False
        self._waiting = 0
        self._news = asyncio.Event()

    # -- from the client --------------------------------------------------------------------------------------------

    def on_frame(self, kind: int, flags: int, payload: bytes) -> None:
        """Take a part of a message, or the end."""
        if kind == wire.WS_CLOSE:
            meta = handler._scan(wire.split(payload)[0].decode(), 0)[0]
            self._leave(meta.get("code", NORMAL), meta.get("reason", ""))
            return
        if kind == wire.WS_MESSAGE:
            text, payload = wire.split(payload)
            self._text = bool(handler._scan(text.decode(), 0)[0].get("text"))
        self._begun.append(payload)
        if not flags:
            data, self._begun = b"".join(self._begun), []
            said: dict[str, Any] = {"text": data.decode("utf-8", "replace")} if self._text else {"bytes": data}
            self._messages.append({"type": "websocket.receive", "_size": len(data), **said})
            self._waiting += len(data)
            self._news.set()
            self._application.hold(self._waiting)

    def disconnect(self) -> None:
        """Take note that the client has gone without a word."""
        self._leave(LOST, "")

    def _leave(self, code: int, reason: str) -> None:
        if self._left is None:
            self._left = (code, reason)
            self._news.set()

    async def receive(self) -> dict[str, Any]:
        """Give the application the next message, or in the end that its client has gone."""
        while True:
            if self._messages and self._code is None:
                message = self._messages.popleft()
                self._waiting -= message.pop("_size", 0)
                self._application.hold(self._waiting)
                return message
            if self._left is not None:
                return {"type": "websocket.disconnect", "code": self._left[0], "reason": self._left[1]}
            if self._code is not None:
                return {"type": "websocket.disconnect", "code": self._code, "reason": self._reason}
            self._news.clear()
            await self._news.wait()

    # -- from the application ---------------------------------------------------------------------------------------

    async def send(self, message: dict[str, Any]) -> None:
        """Take what the application says."""
        kind = message["type"]
        if self._code is not None or (self._refused and kind != "websocket.http.response.body"):
            raise RuntimeError(f"unexpected message {kind!r}: the WebSocket is closed")
        if kind == "websocket.accept" and not self._accepted:
            self._accept(message)
        elif kind == "websocket.send" and self._accepted:
            await self._say(message)
        elif kind == "websocket.close":
            self._close(message)
        elif kind == "websocket.http.response.start" and not self._accepted:
            self._refusal.head(message["status"], http.plain_headers(message.get("headers") or ()))
            self._refused = True
        elif kind == "websocket.http.response.body" and self._refused:
            self._refusal.part(message.get("body", b""))
        else:
            raise RuntimeError(
                f"unexpected message {kind!r} {'after' if self._accepted else 'before'} websocket.accept"
            )

    def _accept(self, message: dict[str, Any]) -> None:
        protocol = message.get("subprotocol")
        if protocol is not None and protocol not in self._offered:
            raise reply.BadReply(f"subprotocol {protocol!r}: the client offers {', '.join(self._offered) or 'none'}")
        headers = reply.check_headers(http.plain_headers(message.get("headers") or ()))
        meta = handler._encode({"subprotocol": protocol, "headers": headers}).encode()
        if len(meta) > wire.MAX_META:
            raise reply.BadReply(f"headers of {len(meta)} bytes, at most {wire.MAX_META} are possible")
        self._accepted = True
        self._server.channel.send(wire.message(wire.WS_ACCEPT, self.request, meta))

    async def _say(self, message: dict[str, Any]) -> None:
        text, data = message.get("text"), message.get("bytes")
        if type(text) is str:
            data = text.encode("utf-8", "replace")
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("websocket.send: expected text, or bytes")
        if self._left is not None:
            return  # nobody hears it
        meta = b'{"text":true}' if type(text) is str else b'{"text":false}'
        self._server.channel.send(b"".join(wire.split_message(wire.WS_MESSAGE, self.request, meta, bytes(data))))
        await self._application.drained()

    def _close(self, message: dict[str, Any]) -> None:
        code, reason = message.get("code", NORMAL), message.get("reason") or ""
        if type(code) is not int or not 1000 <= code <= 4999 or code in RESERVED or type(reason) is not str:
            raise ValueError(f"websocket.close: {code!r} and {reason!r} are no code and reason")
        if not self._accepted:
            self._refusal.head(403, [])
            self._refused = True
        self._code, self._reason = code, reason.encode()[:MAX_REASON].decode("utf-8", "ignore")
        self._news.set()

    def finish(self, error: BaseException | None) -> None:
        """End it, the application having returned or raised `error`."""
        server = self._server
        over = self._left is not None or self._code is not None
        last, self._code = self._last(), self._code or NORMAL
        if error is not None and (over or self._refused):
            if type(error).__name__ != "WebSocketDisconnect":  # Starlette's word for what everybody knows
                server.report(error)
            error = None
        try:
            if error is not None:
                raise error
            server.streams.flush()
            if self._accepted:
                server.channel.send(last)
            elif self._refused:
                self._refusal.end()
            elif self._left is not None:
                raise reply.BadReply("the client has gone before it was accepted")
            else:
                raise reply.BadReply("the application has neither accepted nor refused the WebSocket")
        except BaseException as failed:
            server.fail(self.request, failed, "serialize" if isinstance(failed, reply.BadReply) else "handler")

    def _last(self) -> bytes:
        code, reason = self._code or NORMAL, self._reason
        if self._code is None and self._left is not None and self._left[0] not in RESERVED:
            code, reason = self._left
        return wire.message(wire.WS_CLOSE, self.request, handler._encode({"code": code, "reason": reason}).encode())
