"""InvokeWithResponseStream: what a function makes is passed on part by part, and no faster than the client takes it."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, cast

from olsock_worker import gateway, responses
from olsock_worker.aws import eventstream
from olsock_worker.aws.eventstream import Complete
from olsock_worker.aws.invocations import Invocation
from olsock_worker.heads import Head
from olsock_worker.instances import ASGI, WSGI

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Client
    from olsock_worker.streams import Source


class StreamedInvocation(Invocation):
    """The way back from one call. Once its first part has gone out, whatever ends it early is told in the last message."""

    _begun = _chunked = False

    def answer(self, call: Call, head: Head, body: bytes) -> None:
        """Take an answer that is whole."""
        self._take(call, self._first(head) + body)

    def begin(self, call: Call, stream: Source | None, head: Head) -> bool:
        """Take the head of an answer in parts. The connection then tells the stream when its client does not read."""
        self._inner = call
        self._open(stream)
        self._write(self._first(head))
        return False

    def write(self, data: bytes) -> None:
        """Pass a part on."""
        self._write(data)

    def finish(self, call: Call, _data: bytes) -> None:
        """Take the end."""
        self._after_output(call, 200)

    def cut(self, _visible: bool) -> None:
        """Tell that the function failed inside of its answer."""
        self._after_output(self._inner, 500)

    def _reply(self, call: Call, status: int, body: bytes) -> None:
        """Take what became of a call that has not begun to answer."""
        refused = self._refused(call, status)
        if refused is not None:
            self._function.log.tails.pop(call.id, None)
            self._request.fail(refused)
        elif call.failure is None and status == 200:
            self._take(call, body)
        else:
            self._end(call, status)

    def _take(self, call: Call, payload: bytes) -> None:
        self._open(None)
        self._write(payload)
        self._after_output(call, 200)

    def _after_output(self, call: Call, status: int) -> None:
        """End, once what was printed has been read if it is wanted."""
        if self._tail is None:
            self._end(call, status)
        else:
            asyncio.get_running_loop().call_soon(self._end, call, status)

    def _first(self, head: Head) -> bytes:
        """Return what goes before a body: of a web application status and headers, as AWS's runtimes have it."""
        return gateway.prelude(head) if self._function.contract in (WSGI, ASGI) else b""

    # -- the connection -----------------------------------------------------------------------------------------------

    def _open(self, stream: Source | None) -> None:
        """Send the head, if that was not done. Without a stream there is nobody to tell that the client does not read."""
        outer = self._request.call
        if self._begun or outer.connection is None:
            return
        self._begun = True
        lines = responses.header_lines(
            (
                ("content-type", eventstream.CONTENT_TYPE.decode()),
                ("x-amzn-requestid", outer.id),
                ("x-amz-executed-version", self._number),
            )
        )
        self._chunked = cast("Client", outer.connection).begin(outer, stream, Head(200, lines))

    def _write(self, payload: bytes) -> None:
        self._send(eventstream.chunks(payload))

    def _send(self, data: bytes) -> None:
        connection = self._request.call.connection
        if data and connection is not None:
            cast("Client", connection).write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _end(self, call: Call, status: int) -> None:
        self._open(None)
        end = Complete()
        if self._tail is not None:
            self._function.log.tails.pop(call.id, None)
            end.log_result = base64.b64encode(self._tail.data).decode()
        if call.failure is not None or status != 200:
            end.error_code, end.error_details = "Unhandled", self._failed(call, status).decode()
        self._send(eventstream.complete(end))
        outer = self._request.call
        connection, outer.connection = outer.connection, None
        if connection is not None:
            cast("Client", connection).finish(outer, b"0\r\n\r\n" if self._chunked else b"")
