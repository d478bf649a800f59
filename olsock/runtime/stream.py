"""Generators as functions: each item is sent as it is made, bytes as they are, text as UTF-8, all else as a line of JSON."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, reply, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

    reply = handler.neighbour("reply")

if TYPE_CHECKING:
    from typing import Any

BYTES, TEXT = "application/octet-stream", "text/plain; charset=utf-8"
LINES, JSON = "application/x-ndjson", "application/json"


def take_over(server: handler.Server) -> None:
    """Have `server` answer with what its function generates."""

    def answer(request: int, payload: bytes) -> None:
        _Stream(server, request).answer(payload)

    server.answer = answer  # type: ignore[method-assign]


class _Stream:
    """One call of a function that generates."""

    def __init__(self, server: handler.Server, request: int) -> None:
        self._server, self._request = server, request
        self._reply = reply.Reply(server.channel, request)
        self._kind = "malformed"  # of the error, if there is one now

    def answer(self, payload: bytes) -> None:
        server = self._server
        try:
            meta, body = wire.split(payload)
            event = handler._decode(body.decode()) if body else {}
            self._kind = "handler"
            called: Any = server.function
            if server.context:
                found = called(event, server.context(self._request, handler._scan(meta.decode(), 0)[0]))
            else:
                found = called(event)
            if type(found) is handler._Coroutine:
                found = server.complete(found)
            whole: bytes | None = None
            if hasattr(found, "__anext__"):
                server.complete(self._every(found))
            elif hasattr(found, "__next__"):
                self._each(found)
            else:  # a decorator has made something else of it
                self._kind = "serialize"
                whole = handler._encode(found).encode()
            if server.channel.forked:
                server.leave_if_forked(None)
            server.streams.flush()
            if not self._reply.headed:
                self._reply.head(200, [("content-type", BYTES if whole is None else JSON)])
            if whole is None:
                self._reply.end()
            else:
                self._reply.whole(whole)
        except BaseException as error:
            server.fail(self._request, error, self._kind)

    def _each(self, generator: Any) -> None:
        try:
            for item in generator:
                if not self._emit(item):
                    break
        finally:
            _close(generator)

    async def _every(self, generator: Any) -> None:
        try:
            async for item in generator:
                if not self._emit(item):
                    break
        finally:
            close = getattr(generator, "aclose", None)
            if close is not None:
                await close()

    def _emit(self, item: Any) -> bool:
        """Send an item; tell whether there is still somebody to send the next one to."""
        self._kind = "serialize"
        data, means = _encoded(item)
        if not self._reply.headed:
            self._reply.head(200, [("content-type", means)])
        self._reply.part(data)
        self._kind = "handler"
        return not reply.is_abandoned(self._server.channel, self._request)


def _close(generator: Any) -> None:
    close = getattr(generator, "close", None)
    if close is not None:
        close()


def _encoded(item: Any) -> tuple[bytes, str]:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item), BYTES
    if isinstance(item, str):
        return item.encode(), TEXT
    return handler._encode(item).encode() + b"\n", LINES
