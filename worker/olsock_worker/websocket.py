"""A client connection that has become a WebSocket: wsproto reads and writes its frames, all bounds are ours.

Messages go to the sandbox whole, and no faster than it takes them; its own no faster than the client reads. Pings and the
closing handshake are the front's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

if TYPE_CHECKING:
    from wsproto.connection import Connection as Frames
    from wsproto.events import Event

    from olsock_worker.calls import Call
    from olsock_worker.conversations import Conversation
    from olsock_worker.handshakes import Handshake
    from olsock_worker.http import Connection

_GOING_AWAY, _TOO_BIG, _FAILED = 1001, 1009, 1011
_CLOSING = 5.0  # seconds for the client's half of the closing handshake


class WebSocket(asyncio.Protocol):
    """One client, one conversation with a sandbox. It takes the connection's place in its call."""

    def __init__(self, connection: Connection, call: Call, conversation: Conversation, largest: int) -> None:
        self._edge = connection.edge
        self._connection = connection
        self._call = call
        self._conversation = conversation
        self._largest = largest
        self._transport: asyncio.Transport
        self._frames: Frames
        self._message = bytearray()  # what has come of one
        self._full = False  # the client does not read
        self._waiting = False  # the sandbox does not
        self._pinged = False
        self._closing = False
        self.deadline = float("inf")

    def open(self, handshake: Handshake, subprotocol: str | None, headers: list[tuple[str, str]]) -> None:
        """Answer the handshake, and take what the client has sent already."""
        date = self._edge.date.partition(b": ")[2].strip()
        ours = [(b"date", date), (b"x-request-id", self._call.id.encode())]
        theirs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        reply, self._frames = handshake.accept(subprotocol, [*ours, *theirs])
        self._transport, early = self._connection.hand_over(self)
        self._call.connection = self
        self._transport.write(reply)
        self._alive()
        if early:
            self.data_received(early)

    # -- asyncio ------------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the sandbox, unless it knows."""
        self._edge.remove(self)
        self._closing = True
        if self._call.connection is self:
            self._call.abandon()

    def eof_received(self) -> bool:
        """Take the end of the client's bytes for its going away."""
        return False

    def pause_writing(self) -> None:
        """Note that the client does not read: it is not read either, lest it has us answer pings without end."""
        self._full = True
        self.deadline = self._edge.now() + self._edge.http.write_timeout
        self._transport.pause_reading()
        self._conversation.hold()

    def resume_writing(self) -> None:
        """Go on both ways."""
        self._full = False
        self._alive()
        self._conversation.resume()
        self.go_on()

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        if self._frames.state in (ConnectionState.CLOSED, ConnectionState.REMOTE_CLOSING):
            return
        self._alive()
        self._frames.receive_data(data)
        for event in self._frames.events():
            self._on_event(event)
            if self._transport.is_closing():
                break

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CloseConnection):
            self._on_close(event)
        elif self._closing:
            pass  # it is too late to say anything
        elif isinstance(event, Ping):
            self._write(event.response())
        elif isinstance(event, TextMessage):
            self._on_message(True, event.data.encode(), event.message_finished)
        elif isinstance(event, BytesMessage):
            self._on_message(False, bytes(event.data), event.message_finished)

    def _on_message(self, text: bool, data: bytes, finished: bool) -> None:
        self._message += data
        if len(self._message) > self._largest:
            self._conversation.closed(_TOO_BIG, "message too big")
            self.close(_TOO_BIG, f"a message is over {self._largest} bytes")
            return
        if finished:
            whole = bytes(self._message)
            self._message.clear()
            if not self._conversation.message(text, whole) and not self._waiting:
                self._waiting = True
                self._transport.pause_reading()

    def _on_close(self, event: CloseConnection) -> None:
        code, reason = int(event.code), event.reason or ""
        if self._frames.state is ConnectionState.OPEN:  # not the client's word, but what is wrong with what it sent
            self._conversation.closed(code, reason)
            self.close(code, reason)
            return
        self._conversation.closed(code, reason)
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            self._write(event.response())
        self._closing = True
        self._transport.close()

    # -- what the sandbox and the front say ---------------------------------------------------------------------------

    def send(self, message: str | bytes) -> None:
        """Send a message of the sandbox's."""
        if not self._closing:
            self._write(TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message))

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake, or leave it as it is."""
        if self._closing:
            return
        self._closing = True
        self._write(CloseConnection(code=code if _may_be_sent(code) else _FAILED, reason=reason))
        self.deadline = self._edge.now() + _CLOSING
        self.go_on()

    def reply(self, _call: Call, _status: int, _content_type: bytes, _body: bytes, _extra: bytes) -> None:
        """Close: the function has failed, and a WebSocket has no other way to say so."""
        self.close(_FAILED, "the function has failed")

    def go_on(self) -> None:
        """Read from the client, if nothing is in the way any more."""
        if self._waiting:
            self._waiting = False
            self._alive()
        if not self._full and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, event: Event) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._frames.send(event))

    # -- deadlines, looked at by the edge's heartbeat -----------------------------------------------------------------

    def _alive(self) -> None:
        """Note a sign of life; half the idle time without one brings a ping."""
        self._pinged = False
        if not self._closing:
            self.deadline = self._edge.now() + self._edge.http.websocket_idle / 2

    def expire(self) -> None:
        """Ping who is silent, and give up who stays so."""
        if self._waiting and not self._closing and not self._full:
            self._alive()  # it is the sandbox that is slow, and no sign of life is looked for
        elif self._closing or self._full or self._pinged:
            self.deadline = float("inf")
            self._transport.abort()
        else:
            self._pinged = True
            self.deadline = self._edge.now() + self._edge.http.websocket_idle / 2
            self._write(Ping())

    def drain(self) -> None:
        """Say that the front goes away."""
        if not self._closing:
            self._conversation.closed(_GOING_AWAY, "")
            self.close(_GOING_AWAY, "the worker stops")

    @property
    def busy(self) -> bool:
        """Say whether the conversation goes on."""
        return not self._closing


def _may_be_sent(code: int) -> bool:
    """Say whether a code may stand in a frame (RFC 6455, 7.4)."""
    return code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1014 or 3000 <= code <= 4999
