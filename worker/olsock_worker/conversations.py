"""A WebSocket's messages on the channel of a sandbox, and which side has ended it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import msgspec

from olsock.runtime import wire
from olsock.runtime.wire import WireError
from olsock_worker import heads
from olsock_worker.websocket import WebSocket

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.http import Connection
    from olsock_worker.instances import Instance

_SWITCHING = 101
_ABNORMAL = 1006  # the client has gone without a word
_HANDSHAKE = frozenset(("sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol"))


class _Accept(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of WS_ACCEPT."""

    subprotocol: str | None = None
    headers: list[tuple[str, str]] = []


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of WS_MESSAGE."""

    text: bool


class _Close(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of WS_CLOSE."""

    code: Annotated[int, msgspec.Meta(ge=1000, le=4999)]
    reason: Annotated[str, msgspec.Meta(max_length=4096)] = ""


_encode = msgspec.json.Encoder().encode
_decode_accept = msgspec.json.Decoder(_Accept).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_close = msgspec.json.Decoder(_Close).decode
_TEXT, _BINARY = _encode(_Message(True)), _encode(_Message(False))


class Conversation:
    """The sandbox's side of a WebSocket, which it has just accepted."""

    __slots__ = ("_call", "_instance", "_message", "_text", "_told", "_websocket")

    def __init__(self, instance: Instance, call: Call, payload: bytes, flags: int) -> None:
        self._instance, self._call = instance, call
        self._message = bytearray()  # what has come of one
        self._text: bool | None = None  # kind of the message that is coming in
        self._told = False  # the sandbox knows that it is over
        self._websocket: WebSocket | None = None
        meta, body = wire.split(payload)
        given = _decode_accept(meta)
        if flags or body or call.handshake is None:
            raise WireError("a WebSocket accepted with more than metadata")
        if given.subprotocol is not None and given.subprotocol not in call.handshake.subprotocols:
            raise WireError("a subprotocol that the client has not offered")
        headers = heads.checked(given.headers, _HANDSHAKE)[0]
        connection = cast("Connection | None", call.connection)
        if connection is None:
            self.abandoned()
            return
        self._websocket = WebSocket(connection, call, self, instance.limits.websocket_message)
        self._websocket.open(call.handshake, given.subprotocol, headers)

    # -- what the sandbox sends ---------------------------------------------------------------------------------------

    def frame(self, kind: int, flags: int, payload: bytes, clean: bool) -> None:
        """Take a message, more of one, or the end."""
        if kind == wire.WS_CLOSE:
            meta, body = wire.split(payload)
            given = _decode_close(meta)
            if flags or body:
                raise WireError("a WebSocket closed with more than metadata")
            self._end(given.code, given.reason, clean)
            return
        if kind == wire.WS_MESSAGE:
            meta, payload = wire.split(payload)
            self._text = _decode_message(meta).text
        elif kind != wire.BODY or self._text is None:
            raise WireError(f"frame of kind {kind} on a WebSocket")
        self._message += payload
        if len(self._message) > self._instance.limits.websocket_message:
            raise WireError("a message of a WebSocket that is too long")
        if not flags:
            message = self._message.decode() if self._text else bytes(self._message)
            self._message.clear()
            self._text = None
            if self._websocket is not None:
                self._websocket.send(message)

    def _end(self, code: int, reason: str, clean: bool) -> None:
        instance, websocket = self._instance, self._websocket
        self._told = True
        instance.end_answer()
        instance.resume()

        def close() -> None:
            self._call.connection = None
            if websocket is not None:
                websocket.close(code, reason)

        instance.function.passed_on(instance, self._call, _SWITCHING, close, clean)

    def failed(self) -> None:
        """Take the function's word for having failed: the client is told by whoever answers the call."""
        if self._text is not None:
            raise WireError("an error inside of a message")
        self._told = True
        self._instance.resume()

    # -- what the client sends ----------------------------------------------------------------------------------------

    def message(self, text: bool, data: bytes) -> bool:
        """Pass a message on; False if the sandbox does not keep up, and the client has to wait for `drained`."""
        if not self._told:
            self._instance.push(wire.WS_MESSAGE, _TEXT if text else _BINARY, data)
        return not self._instance.behind

    def closed(self, code: int, reason: str) -> None:
        """Tell the sandbox that it is over. It still has to say the same, and has only the grace for that."""
        if not self._told:
            self._told = True
            self._instance.push(wire.WS_CLOSE, _encode(_Close(code, reason)))
            self._instance.resume()
            self._instance.hurry()

    def abandoned(self) -> None:
        """The client has gone without a word."""
        self.closed(_ABNORMAL, "")

    def drained(self) -> None:
        """Go on with what the client sends."""
        if self._websocket is not None:
            self._websocket.go_on()

    def hold(self) -> None:
        """The client does not read: take no more from the sandbox."""
        if not self._told:
            self._instance.hold()

    def resume(self) -> None:
        """The client reads again."""
        if not self._told:
            self._instance.resume()
