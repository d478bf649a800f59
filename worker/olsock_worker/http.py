"""The HTTP/1 edge: the asking half of a client connection, over httptools, strict and bounded.

llhttp, run without any of its lenient flags, refuses what request smuggling is made of (both lengths, two lengths,
folded headers, bare line feeds, bad chunks); the rest of RFC 9112's rules are checked here. Requests of one connection
are answered one after the other. End of file from the client counts as its going away, as it does for nginx.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

import httptools

from olsock_worker import responses
from olsock_worker.calls import Call
from olsock_worker.handshakes import wishes
from olsock_worker.replies import BODY, HEAD, IDLE, NEVER, Replies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from olsock_worker.edge import Edge
    from olsock_worker.websocket import WebSocket

_EARLY = 65_536  # bytes
_CHUNKED = 9  # bytes that one byte of a body may take: even in a chunk by itself it is six
_ONCE = frozenset(("host", "content-length", "transfer-encoding", "content-type", "expect", "authorization"))
_HERE = ("127.0.0.1", 0)
_BAD = (400, "bad_request")


_NAMES: dict[bytes, str] = {}


# RFC 9110, 7.2 with RFC 3986, 3.2.2: a name or an address, perhaps a port, and nobody's user name.
_HOST = re.compile(r"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?].*|)", re.IGNORECASE)
_HOSTS: set[str] = set()  # well-formed ones


def _host_ok(host: str) -> bool:
    """Say whether a host is well-formed. It is remembered while there is room."""
    if not _HOST.fullmatch(host):
        return False
    if len(_HOSTS) < 256 and len(host) < 64:
        _HOSTS.add(host)
    return True


def _header_name(name: bytes) -> str:
    """Return a header's name as text in lower case, remembered while there is room."""
    key = name.decode("latin-1").lower()
    if len(_NAMES) < 256 and len(name) < 64:
        _NAMES[name] = key
    return key


class Connection(Replies):
    """One client connection."""

    __slots__ = (
        "_body", "_early", "_head_bytes", "_headers", "_number", "_parser", "_raw", "_repeats", "_size", "_target",
        "_upgrade",
    )  # fmt: skip

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self._parser = httptools.HttpRequestParser(self)
        self._upgrade = False  # the latest request wishes for another protocol
        self._early: bytearray | None = None  # what came after the handshake of a WebSocket
        self._number = 0  # of the request that is being parsed
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._repeats: Sequence[tuple[int, str, str]] = ()
        self._head_bytes = self._raw = self._size = 0
        self._body: bytes | bytearray = b""

    # -- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, unless there are too many already."""
        self._transport = cast(asyncio.Transport, transport)
        self.deadline = self.edge.now() + self.edge.http.header_timeout
        if not self.edge.add(self):
            if self.edge.flooded:
                self.edge.refused(503)
                self._refused = True
                self._transport.abort()
            else:
                self._refuse(503, "overloaded", "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what waits for this client."""
        self.edge.remove(self)
        self._release()
        active, self._active = self._active, None
        self._queue.clear()
        if active is not None:
            active.abandon()

    def eof_received(self) -> bool:
        """Take the end of the client's bytes for its going away."""
        return False

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refused or self._last:
            if self._early is not None:
                self._keep(data)
            return
        before, number = self._state, self._number
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Who does not speak the other protocol serves the request as if it had not asked; what follows is not HTTP.
            self._last = True
            call = self._queue[-1] if self._queue else self._active
            if isinstance(call, Call) and wishes(call):
                self._early = bytearray()
                self._keep(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(*_BAD, f"malformed HTTP: {error}")
            return
        if before != IDLE and before == self._state and number == self._number:
            # A header, a trailer or an extension of a chunk that has no end is never heard of, and the parser keeps it.
            self._raw += len(data)
            if self._raw > self.edge.http.header_bytes + _CHUNKED * self._size:
                self._refuse(431, "headers_too_large", "request line and headers, or what is around a body, too large")

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._refused or self._last:
            return
        self._state = HEAD
        self._number += 1
        if self._active is None and not self._writing:
            self.deadline = self.edge.now() + self.edge.http.header_timeout

    def on_url(self, url: bytes) -> None:
        if self._refused or self._last:
            return
        self._target += url
        if len(self._target) > self.edge.http.header_bytes:
            self._refuse(414, "uri_too_long", "request target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused or self._last:
            return
        headers = self._headers
        key = _NAMES.get(name) or _header_name(name)
        self._head_bytes += len(name) + len(value)
        value = value.rstrip(b" \t")  # what is before a value the parser has left out
        if self._state == BODY:
            pass  # a trailer: counted, never merged into the headers
        elif key in headers:
            if key in _ONCE:
                self._refuse(*_BAD, f"header {key} given twice")
                return
            again = value.decode("latin-1")
            headers[key] += ", " + again
            self._repeats = (*self._repeats, (len(headers), key, again))
            self._head_bytes += 32  # many short ones are as costly as few long ones
        else:
            headers[key] = value.decode("latin-1")
        if self._head_bytes > self.edge.http.header_bytes or len(headers) > self.edge.http.header_count:
            self._refuse(431, "headers_too_large", "request line and headers too large")

    def on_headers_complete(self) -> None:
        if self._refused or self._last:
            return
        headers, version = self._headers, self._parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._refuse(505, "http_version", "this server speaks HTTP/1.1")
            return
        host = headers.get("host")
        if host is None and version == "1.1":
            self._refuse(*_BAD, "header host missing")
            return
        if host is not None and host not in _HOSTS and not _host_ok(host):
            self._refuse(*_BAD, "header host malformed")
            return
        if b"#" in self._target or (self._target[:1] != b"/" and not self._authority()):
            self._refuse(*_BAD, "request target malformed")
            return
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and (version == "1.0" or coding.lower() != "chunked"):
            # Anything but plain chunked, or chunked from a peer too old to know it, is where two parsers disagree.
            self._refuse(*_BAD, "transfer-encoding not understood")
            return
        if length is not None and int(length) > self.edge.largest_body(self._target):
            self._too_large()
            return
        if self._parser.should_upgrade():
            self._upgrade = True
            if coding or length or self._parser.get_method() == b"CONNECT":
                # llhttp would take the body for the other protocol's bytes. Without one the wish can just be ignored.
                self._refuse(*_BAD, "this server does not change protocols")
                return
        self._head_bytes = self._raw = 0
        if coding is not None or (length is not None and length != "0"):
            self._state = BODY
            if self._active is None and not self._writing:
                self.deadline = self.edge.now() + self.edge.http.body_timeout
            if "expect" in headers and not self._expect(headers["expect"], version):
                return

    def _authority(self) -> bool:
        """Take the host of a target in absolute form for that of the request, as RFC 9112, 3.2.2 has it; False if malformed."""
        if self._target == b"*" or self._parser.get_method() == b"CONNECT":
            return True
        match = _ABSOLUTE.fullmatch(self._target)
        if match is None or not _host_ok(match[1].decode("ascii")):
            return False
        self._headers["host"] = match[1].decode("ascii")
        self._target = (match[2] if match[2][:1] == b"/" else b"/" + match[2]) or b"/"
        return True

    def _expect(self, value: str, version: str) -> bool:
        if value.lower() != "100-continue":
            self._refuse(417, "expectation_failed", "only 100-continue can be expected")
            return False
        if version == "1.1":
            if self._active is None and not self._queue:
                self._transport.write(responses.CONTINUE)
            else:
                self._continue = True  # its turn comes when the replies before it are out
        return True

    def on_body(self, body: bytes) -> None:
        if self._refused or self._last:
            return
        self._continue = False
        self._size += len(body)
        self._held += len(body)
        if self._size > self.edge.largest_body(self._target):
            self._too_large()
        elif not self.edge.hold(len(body)):
            self._held -= len(body)
            self._refuse(503, "overloaded", "too many request bodies held")
        elif not self._body:
            self._body = body  # all of it, most of the time
        else:  # not a list of chunks: a client may make them very many and very small
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._refused or self._last:
            return
        parser, body = self._parser, bytes(self._body)
        keep = parser.should_keep_alive()
        call = Call(self, parser.get_method().decode("ascii"), self._target, self._headers, body, keep)
        if self._repeats:
            call.repeats = self._repeats
        if not keep or self._upgrade:
            self._last = True
            call.keep_alive = False
            call.version = parser.get_http_version()
        elif parser.get_http_version() == "1.0":
            call.headers["connection"] = "keep-alive"
            call.version = "1.0"
        self._begin()
        self._state = IDLE
        if not self._writing:
            self.deadline = NEVER
        self._queue.append(call)
        if self._active is not None:
            if len(self._queue) >= self.edge.http.pipeline:
                self._last = True
            self._pause()
        self._pump()

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return address and port of the client, and those that it has reached."""
        client, server = (self._transport.get_extra_info(name) for name in ("peername", "sockname"))
        if not isinstance(client, tuple):
            return _HERE, _HERE  # a socket in the file system
        return (str(client[0]), int(client[1])), (str(server[0]), int(server[1]))

    def hand_over(self, protocol: WebSocket) -> tuple[asyncio.Transport, bytes]:
        """Give the connection to another protocol; return the transport and what has come for it already."""
        early, self._early, self._active = bytes(self._early or b""), None, None
        self._release()
        self._resume()
        self.edge.replace(self, protocol)
        self._transport.set_protocol(protocol)
        return self._transport, early

    def _keep(self, data: bytes) -> None:
        """Keep what a client sends before its WebSocket is open. An honest one waits, so little room will do."""
        assert self._early is not None
        self._early += data
        if len(self._early) > _EARLY:
            self._pause()

    def _too_large(self) -> None:
        message = f"request body over {self.edge.largest_body(self._target)} bytes"
        self._refuse(413, "body_too_large", message, self.edge.too_large(self._target))
