"""One answer with a status, headers and a body, as frames: whole, or in parts as they come.

What cannot be sent as HTTP is refused here already, where the function can still be told.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

if TYPE_CHECKING:
    import _socket
    from typing import Iterable

TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
CONTROL = frozenset(map(chr, (*range(9), *range(10, 32), 127)))  # characters that no value has: RFC 9110, 5.5
LONGEST_NAME = 256
BODYLESS = (204, 304)  # statuses

_peeking: _socket.socket | None = None


class BadReply(Exception):
    """What a function answers cannot be sent."""


def check_headers(headers: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return headers as they are sent: names that are names, values that end no line."""
    checked = []
    for name, value in headers:
        if type(name) is not str or type(value) is not str:
            raise BadReply(f"header {name!r}: {value!r}: text is expected")
        if not name or len(name) > LONGEST_NAME or not TOKEN.issuperset(name):
            raise BadReply(f"header {name!r}: not the name of a header")
        if not CONTROL.isdisjoint(value):
            raise BadReply(f"header {name}: {value!r} has a line break, or another control character, in it")
        try:
            value.encode("latin-1")
        except UnicodeError:
            raise BadReply(f"header {name}: {value!r} is not latin-1 text") from None
        checked.append([name, value.strip(" \t")])
    return checked


class Reply:
    """The answer to one request. Raises `BadReply`, before or, in a body that does not keep its promises, after REPLY."""

    def __init__(self, channel: handler.Channel, request: int, method: str = "GET") -> None:
        self._channel, self._request, self._method = channel, request, method
        self._status, self._headers = 0, [["", ""]]
        self.headed = False  # status and headers are known
        self.sent = False  # REPLY has gone
        self.empty = False  # the body of this one is not sent, whatever it is
        self.over = False  # nothing more may be said
        self.left: int | None = None  # bytes that its content-length still promises

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Set status and headers; once more, as long as nothing was sent."""
        if type(status) is not int or not 200 <= status <= 599:
            raise BadReply(f"status {status!r}: expected a number from 200 to 599")
        checked = check_headers(headers)
        lengths = {value for name, value in checked if name.lower() == "content-length"}
        if len(lengths) > 1 or not all(value.isascii() and value.isdigit() for value in lengths):
            raise BadReply(f"content-length {', '.join(sorted(lengths))}: expected one number")
        self._status, self._headers = status, checked
        self.left = int(lengths.pop()) if lengths else None
        self.empty = self._method == "HEAD" or status in BODYLESS
        self.headed = True

    def whole(self, data: bytes) -> None:
        """Send all of it."""
        self.check(data)
        if self.left is not None and self.left != len(data) and not self.empty:
            raise BadReply(f"content-length promises {self.left} bytes, and the body has {len(data)}")
        self._begin(b"" if self.empty else data, stream=False)
        self.over = True

    def part(self, data: bytes) -> None:
        """Send a part of the body at once, perhaps an empty one for the sake of the headers."""
        self.check(data)
        if self.empty:
            return
        if self.left is not None:
            self.left -= len(data)
        if not self.sent:
            self._begin(data, stream=True)
        else:
            self._body(data)

    def check(self, data: bytes) -> None:
        """Refuse what is no part of this body, such as what somebody has to say when it is over."""
        if self.over:
            raise BadReply("the reply has ended")
        if type(data) is not bytes:
            raise BadReply(f"a body of {type(data).__name__}: bytes are expected")
        if not self.headed:
            raise BadReply("a body before status and headers")
        if self.left is not None and len(data) > self.left and not self.empty:
            raise BadReply("the body is longer than its content-length promises")

    def end(self) -> None:
        """Send what ends it."""
        if not self.sent:
            self.whole(b"")
            return
        if self.left:
            raise BadReply(f"the body ended {self.left} bytes before its content-length")
        self._send(wire.frame(wire.BODY, self._request))
        self.over = True

    def _begin(self, data: bytes, *, stream: bool) -> None:
        meta = handler._encode({"status": self._status, "headers": self._headers, "stream": stream}).encode()
        if len(meta) > wire.MAX_META:
            raise BadReply(f"headers of {len(meta)} bytes, at most {wire.MAX_META} are possible")
        self.sent = True
        if not stream:
            self._send(b"".join(wire.split_message(wire.REPLY, self._request, meta, data)))
            return
        first = wire.MAX_PAYLOAD - wire.META.size - len(meta)
        self._send(wire.message(wire.REPLY, self._request, meta, data[:first], wire.MORE))
        self._body(data[first:])

    def _body(self, data: bytes) -> None:
        for start in range(0, len(data), wire.MAX_PAYLOAD):
            self._send(wire.frame(wire.BODY, self._request, data[start : start + wire.MAX_PAYLOAD], wire.MORE))

    def _send(self, data: bytes) -> None:
        if self._channel.forked:
            raise ChildProcessError("only the process that was called may answer")
        self._channel.send(data)


def is_abandoned(channel: handler.Channel, request: int) -> bool:
    """Tell whether the host has said meanwhile that nobody reads this answer. Nothing is taken off the channel."""
    global _peeking
    import _socket

    if _peeking is None:
        _peeking = _socket.socket(fileno=channel.fd)  # kept: it would close the channel with itself
    try:
        data = _peeking.recv(wire.HEADER.size, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except OSError:
        return False  # nothing there
    if not data:
        os._exit(0)
    return data == wire.frame(wire.DISCONNECT, request)
