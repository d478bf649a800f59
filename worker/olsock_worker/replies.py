"""The answering half of a client connection: requests in their turn, each reply written before the next one begins."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

from olsock_worker import responses
from olsock_worker.calls import Call
from olsock_worker.responses import JSON, Error

if TYPE_CHECKING:
    from olsock_worker.edge import Edge
    from olsock_worker.heads import Head
    from olsock_worker.streams import Source

NEVER = float("inf")
IDLE, HEAD, BODY = range(3)  # what the parser is inside of
_LINGER = 2.0  # seconds to read on after a refusal, lest the client's unread bytes reset the reply away
_RESET = struct.pack("ii", 1, 0)


class Replies(asyncio.Protocol):
    """What has been asked for on one connection, and what becomes of it."""

    __slots__ = (
        "_active", "_continue", "_held", "_last", "_paused", "_pumping", "_queue", "_refused", "_state", "_stream",
        "_transport", "_writing", "deadline", "edge",
    )  # fmt: skip

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._state = IDLE
        self._active: Call | None = None
        self._queue: deque[Call | bytes] = deque()  # complete requests, or the last words of the connection
        self._last = False  # nothing after what is queued will be read
        self._refused = False
        self._pumping = self._paused = self._writing = self._continue = False
        self._held = 0  # body bytes counted against the edge's budget
        self._stream: Source | None = None  # the reply that is being written
        self.deadline = NEVER

    def pause_writing(self) -> None:
        """Note that the client does not read; it has `write_timeout` to do so."""
        self._writing = True
        self.deadline = self.edge.now() + self.edge.http.write_timeout
        if self._stream is not None:
            self._stream.hold()

    def resume_writing(self) -> None:
        """Go on with the reply in the making, or with the next request, if there is one."""
        self._writing = False
        self._await()
        if self._stream is not None:
            self._stream.resume()
        self._pump()

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
            self.edge.handle(item)
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
        self._release()
        last = not call.keep_alive or (self._last and not self._queue) or self.edge.draining
        if last or "connection" in call.headers:
            extra += self._persistence(call, last)
        data = responses.head(status, content_type, call.id, len(body), self.edge.date, extra)
        if call.method != "HEAD" and responses.has_body(status):
            data += body
        self._transport.write(data)
        self._end(last)

    def answer(self, call: Call, head: Head, body: bytes) -> None:
        """Write a reply with headers of the function's own to the call in hand."""
        if call is not self._active:
            return
        self._release()
        last = not call.keep_alive or (self._last and not self._queue) or self.edge.draining
        lines = head.lines + head.framing(call.method, len(body)) + self._persistence(call, last)
        data = responses.passed_on(head.status, call.id, self.edge.date, lines)
        self._transport.write(data if head.bodyless(call.method) else data + body)
        self._end(last)

    def begin(self, call: Call, stream: Source | None, head: Head) -> bool:
        """Write the head of a reply that comes in parts; say whether these are to be chunks. `finish` or `cut` ends it."""
        framing, chunked, last = head.framing(call.method, None), False, not call.keep_alive
        if not (framing or head.bodyless(call.method)):
            if call.version == "1.0":
                last = True  # it ends with the connection
            else:
                framing, chunked = b"transfer-encoding: chunked\r\n", True
        self._release()
        call.keep_alive = not (last or (self._last and not self._queue) or self.edge.draining)
        lines = head.lines + framing + self._persistence(call, not call.keep_alive)
        self._stream = stream
        self._transport.write(responses.passed_on(head.status, call.id, self.edge.date, lines))
        return chunked

    def write(self, data: bytes) -> None:
        """Write a part of the reply that was begun."""
        self._transport.write(data)

    def finish(self, call: Call, data: bytes) -> None:
        """Write the end of the reply that was begun, and go on."""
        self._stream = None
        if data:
            self._transport.write(data)
        self._end(not call.keep_alive)

    def cut(self, visible: bool) -> None:
        """End the connection inside of a reply. Unless the cut is `visible` by what is missing it takes a reset to tell."""
        self._stream = None
        if visible:
            self._end(True)
            return
        # With the time to linger set to none the kernel resets the connection instead of ending it in an orderly way.
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _persistence(self, call: Call, last: bool) -> bytes:
        if last:
            return b"connection: close\r\n"
        if "connection" in call.headers and call.headers["connection"] == "keep-alive":
            return b"connection: keep-alive\r\n"
        return b""

    def _end(self, last: bool) -> None:
        """Go on after a reply has been written, or close."""
        self._active = None
        if last:
            self._queue.clear()
            self._last = True
            self.deadline = min(self.deadline, self.edge.now() + self.edge.http.write_timeout)
            self._transport.close()
            return
        if not self._writing:
            self._await()
        if self._queue or self._paused or self._continue:
            self._pump()

    def _refuse(self, status: int, kind: str, message: str, api: str = "") -> None:
        """Answer in its turn with an error, read no more requests, close. `api`: what AWS calls it, for its clients."""
        if self._refused:
            return
        self._refused = True
        call = Call(self, "", b"", {}, b"", False)
        self.edge.refused(status)
        extra = b"connection: close\r\n" + (b"retry-after: 1\r\n" if status == 503 else b"")
        if api:
            body = responses.api_error_body(message)
            extra += responses.header_lines((("x-amzn-errortype", api), ("x-amzn-requestid", call.id)))
        else:
            body = responses.error_body(Error(kind, message), call.id)
        self._queue.append(responses.head(status, JSON, call.id, len(body), self.edge.date, extra) + body)
        self._pump()

    def _last_words(self, data: bytes) -> None:
        self._release()
        self._transport.write(data)
        self.deadline = self.edge.now() + _LINGER
        self._resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _await(self) -> None:
        """Set the deadline for what the client has to do next."""
        http = self.edge.http
        if self._active is not None or self._queue:
            self.deadline = NEVER
        else:
            self.deadline = self.edge.now() + (http.idle_timeout, http.header_timeout, http.body_timeout)[self._state]

    def _release(self) -> None:
        if self._held:
            self.edge.hold(-self._held)
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
        self.deadline = NEVER
        if self._state != IDLE and not (self._writing or self._refused or self._last) and self._active is None:
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
        return self._active is not None or bool(self._queue) or self._state != IDLE
