"""The HTTP/1 edge: one asyncio protocol over httptools, strict and bounded.

llhttp, run without any of its lenient flags, refuses what request smuggling is made of (both lengths, two lengths,
folded headers, bare line feeds, bad chunks); the rest of RFC 9112's rules are checked here. Requests of one connection
are answered one after the other. End of file from the client counts as its going away, as it does for nginx.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from olsock_worker import responses
from olsock_worker.calls import Call
from olsock_worker.responses import JSON, Error

if TYPE_CHECKING:
    from olsock_worker.edge import Edge

_NEVER = float("inf")
_LINGER = 2.0  # seconds to read on after a refusal, lest the client's unread bytes reset the reply away
_IDLE, _HEAD, _BODY = range(3)  # what the parser is inside of
_ONCE = frozenset(("host", "content-length", "transfer-encoding", "content-type", "expect", "authorization"))
_BAD = (400, "bad_request")


_NAMES: dict[bytes, str] = {}


def _header_name(name: bytes) -> str:
    """Return a header's name as text in lower case, remembered while there is room."""
    key = name.decode("latin-1").lower()
    if len(_NAMES) < 256 and len(name) < 64:
        _NAMES[name] = key
    return key


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_active", "_chunks", "_continue", "_edge", "_head_bytes", "_headers", "_held", "_last", "_parser", "_paused",
        "_pumping", "_queue", "_raw", "_refused", "_size", "_state", "_target", "_transport", "_writing", "deadline",
    )  # fmt: skip

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._state = _IDLE
        self._active: Call | None = None
        self._queue: deque[Call | bytes] = deque()  # complete requests, or the last words of the connection
        self._last = False  # nothing after what is queued will be read
        self._refused = False
        self._pumping = self._paused = self._writing = self._continue = False
        self._held = 0  # body bytes counted against the edge's budget
        self._begin()
        self.deadline = _NEVER

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = self._raw = self._size = 0
        self._chunks: list[bytes] = []

    # -- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, unless there are too many already."""
        self._transport = cast(asyncio.Transport, transport)
        self.deadline = self._edge.now() + self._edge.http.header_timeout
        if not self._edge.add(self):
            self._refuse(503, "overloaded", "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what waits for this client."""
        self._edge.remove(self)
        self._release()
        active, self._active = self._active, None
        self._queue.clear()
        if active is not None:
            active.abandon()

    def eof_received(self) -> bool:
        """Take the end of the client's bytes for its going away."""
        return False

    def pause_writing(self) -> None:
        """Note that the client does not read; it has `write_timeout` to do so."""
        self._writing = True
        self.deadline = self._edge.now() + self._edge.http.write_timeout

    def resume_writing(self) -> None:
        """Go on with the next request, if there is one."""
        self._writing = False
        self._await()
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refused or self._last:
            return
        before = self._state
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._last = True  # the request itself is served as if it had not asked; what follows is not HTTP
        except httptools.HttpParserError as error:
            self._refuse(*_BAD, f"malformed HTTP: {error}")
            return
        if before == _HEAD and self._state == _HEAD:  # a header without end never reaches on_header
            self._raw += len(data)
            if self._raw > self._edge.http.header_bytes:
                self._refuse(431, "headers_too_large", "request line and headers too large")

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._refused or self._last:
            return
        self._state = _HEAD
        if self._active is None and not self._writing:
            self.deadline = self._edge.now() + self._edge.http.header_timeout

    def on_url(self, url: bytes) -> None:
        if self._refused or self._last:
            return
        self._target += url
        if len(self._target) > self._edge.http.header_bytes:
            self._refuse(414, "uri_too_long", "request target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused or self._last:
            return
        headers = self._headers
        key = _NAMES.get(name) or _header_name(name)
        self._head_bytes += len(name) + len(value)
        if self._state == _BODY:
            pass  # a trailer: counted, never merged into the headers
        elif key in headers:
            if key in _ONCE:
                self._refuse(*_BAD, f"header {key} given twice")
                return
            headers[key] += ", " + value.decode("latin-1")
            self._head_bytes += 32  # many short ones are as costly as few long ones
        else:
            headers[key] = value.decode("latin-1")
        if self._head_bytes > self._edge.http.header_bytes or len(headers) > self._edge.http.header_count:
            self._refuse(431, "headers_too_large", "request line and headers too large")

    def on_headers_complete(self) -> None:
        if self._refused or self._last:
            return
        headers, version = self._headers, self._parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._refuse(505, "http_version", "this server speaks HTTP/1.1")
            return
        if version == "1.1" and "host" not in headers:
            self._refuse(*_BAD, "header host missing")
            return
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and (version == "1.0" or coding.strip(" \t").lower() != "chunked"):
            # Anything but plain chunked, or chunked from a peer too old to know it, is where two parsers disagree.
            self._refuse(*_BAD, "transfer-encoding not understood")
            return
        if length is not None and int(length) > self._edge.largest_body(self._target):
            self._too_large()
            return
        if self._parser.should_upgrade() and (coding or length or self._parser.get_method() == b"CONNECT"):
            # llhttp would take the body for the other protocol's bytes. Without one the wish can just be ignored.
            self._refuse(*_BAD, "this server does not change protocols")
            return
        self._head_bytes = 0
        if coding is not None or (length is not None and length != "0"):
            self._state = _BODY
            if self._active is None and not self._writing:
                self.deadline = self._edge.now() + self._edge.http.body_timeout
            if "expect" in headers and not self._expect(headers["expect"], version):
                return

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
        if self._size > self._edge.largest_body(self._target):
            self._too_large()
        elif not self._edge.hold(len(body)):
            self._held -= len(body)
            self._refuse(503, "overloaded", "too many request bodies held")
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._refused or self._last:
            return
        chunks, parser = self._chunks, self._parser
        body = b"" if not chunks else chunks[0] if len(chunks) == 1 else b"".join(chunks)
        keep = parser.should_keep_alive()
        call = Call(self, parser.get_method().decode("ascii"), self._target, self._headers, body, keep)
        if not keep:
            self._last = True
        elif parser.get_http_version() == "1.0":
            call.headers["connection"] = "keep-alive"
        self._begin()
        self._state = _IDLE
        if not self._writing:
            self.deadline = _NEVER
        self._queue.append(call)
        if self._active is not None:
            if len(self._queue) >= self._edge.http.pipeline:
                self._last = True
            self._pause()
        self._pump()

    # -- replies ------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand the next request over once the one before it is answered and its reply is on its way."""
        if self._pumping:
            return
        self._pumping = True
        while self._active is None and self._queue and not self._writing:
            item = self._queue.popleft()
            if isinstance(item, bytes):
                self._last_words(item)
                break
            self._active = item
            self._edge.handle(item)
        self._pumping = False
        if self._active is None and not self._queue and not self._refused:
            if self._continue:
                self._continue = False
                self._transport.write(responses.CONTINUE)
            self._resume()

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Write the reply to the call in hand."""
        if call is not self._active:
            return
        self._active = None
        edge = self._edge
        self._release()
        last = not call.keep_alive or (self._last and not self._queue) or edge.draining
        if last:
            extra += b"connection: close\r\n"
        elif "connection" in call.headers and call.headers["connection"] == "keep-alive":
            extra += b"connection: keep-alive\r\n"
        data = responses.head(status, content_type, call.id, len(body), edge.date, extra)
        if call.method != "HEAD" and responses.has_body(status):
            data += body
        transport = self._transport
        transport.write(data)
        if last:
            self._queue.clear()
            self._last = True
            self.deadline = min(self.deadline, edge.now() + edge.http.write_timeout)
            transport.close()
            return
        if not self._writing:
            self._await()
        if self._queue or self._paused or self._continue:
            self._pump()

    def _too_large(self) -> None:
        self._refuse(413, "body_too_large", f"request body over {self._edge.largest_body(self._target)} bytes")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer in its turn with an error, read no more requests, close."""
        if self._refused:
            return
        self._refused = True
        call = Call(self, "", b"", {}, b"", False)
        body = responses.error_body(Error(kind, message), call.id)
        self._edge.refused(status)
        extra = b"connection: close\r\n" + (b"retry-after: 1\r\n" if status == 503 else b"")
        self._queue.append(responses.head(status, JSON, call.id, len(body), self._edge.date, extra) + body)
        self._pump()

    def _last_words(self, data: bytes) -> None:
        self._release()
        self._transport.write(data)
        self.deadline = self._edge.now() + _LINGER
        self._resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _await(self) -> None:
        """Set the deadline for what the client has to do next."""
        http = self._edge.http
        if self._active is not None or self._queue:
            self.deadline = _NEVER
        else:
            self.deadline = self._edge.now() + (http.idle_timeout, http.header_timeout, http.body_timeout)[self._state]

    def _release(self) -> None:
        if self._held:
            self._edge.hold(-self._held)
            self._held = 0

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # -- deadlines, looked at by the edge's heartbeat -----------------------------------------------------------------

    def expire(self) -> None:
        """Act on a deadline that has passed."""
        self.deadline = _NEVER
        if self._state != _IDLE and not (self._writing or self._refused or self._last) and self._active is None:
            self._refuse(408, "request_timeout", "the request did not arrive in time")
        else:
            self._transport.abort()

    def drain(self) -> None:
        """Close if nothing of a request has come; else the reply in the making will be the last."""
        if not self.busy:
            self._transport.close()

    @property
    def busy(self) -> bool:
        """Say whether a request is being received or answered."""
        return self._active is not None or bool(self._queue) or self._state != _IDLE
