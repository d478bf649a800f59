"""The beginning of a WebSocket (RFC 6455, 4.2), by wsproto's rules: refused with 426 or 400, or accepted later."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import TYPE_CHECKING

from h11 import LocalProtocolError
from wsproto import ConnectionType
from wsproto.connection import Connection as Frames
from wsproto.events import AcceptConnection, RejectConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from olsock_worker.heads import tokens

if TYPE_CHECKING:
    from olsock_worker.calls import Call

_ASKED = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
_NONCE = 16  # bytes


class RefusedError(Exception):
    """A request that no application gets to see."""

    def __init__(self, status: int, kind: str, message: str, extra: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.extra = extra  # header lines


def wishes(call: Call) -> bool:
    """Say whether a request asks for a WebSocket, well or badly."""
    headers = call.headers
    return (
        "upgrade" in headers
        and call.method == "GET"
        and call.version == "1.1"
        and "websocket" in tokens(headers["upgrade"])
        and "upgrade" in tokens(headers.get("connection", ""))
    )


class Handshake:
    """What a client asked for; raises `RefusedError` if nothing can come of it."""

    def __init__(self, call: Call) -> None:
        headers = call.headers
        if "sec-websocket-key" in headers and not _is_nonce(headers["sec-websocket-key"]):
            raise RefusedError(400, "bad_handshake", "Sec-WebSocket-Key is not 16 bytes in base64")
        # Only what is about the handshake: wsproto has opinions on other headers too. Extensions are not offered, since
        # a few compressed bytes can stand for gigabytes.
        given = [(name.encode(), headers[name].encode("latin-1")) for name in _ASKED if name in headers]
        self._handshake = H11Handshake(ConnectionType.SERVER)
        try:
            self._handshake.initiate_upgrade_connection([(b"host", b"localhost"), *given], b"/")
            asked = next(self._handshake.events())
        except RemoteProtocolError as error:
            raise _refusal(error) from None
        except (LocalProtocolError, UnicodeError) as error:  # what no token of a header is made of
            raise RefusedError(400, "bad_handshake", f"not the handshake of a WebSocket: {error}") from None
        assert isinstance(asked, Request)
        self.subprotocols = list(asked.subprotocols)

    def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, Frames]:
        """Return the reply, and what reads and writes frames from now on."""
        reply = self._handshake.send(AcceptConnection(subprotocol=subprotocol, extra_headers=headers))
        frames = self._handshake.connection
        assert frames is not None
        return reply, frames


def _is_nonce(value: str) -> bool:
    try:
        return len(b64decode(value, validate=True)) == _NONCE
    except (binascii.Error, ValueError):
        return False


def _refusal(error: RemoteProtocolError) -> RefusedError:
    hint = error.event_hint
    if not isinstance(hint, RejectConnection) or hint.status_code != 426:
        return RefusedError(400, "bad_handshake", f"not the handshake of a WebSocket: {error}")
    lines = b"".join(b"%b: %b\r\n" % (name.lower(), value) for name, value in hint.headers)
    lines += b"upgrade: websocket\r\n"
    return RefusedError(426, "bad_handshake", "only version 13 of the WebSocket protocol is spoken", lines)
