"""One request at a function URL, and the way back. What kind of function answers shows when its instance is ready.

A web application gets the request as it is, and answers for itself. Any other function gets an event of API Gateway's form,
and what it returns is made an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from olsock_worker import cors, forwarding, gateway, responses
from olsock_worker.calls import Failure
from olsock_worker.gateway import ResultError
from olsock_worker.heads import Head
from olsock_worker.responses import JSON, Error

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Client
    from olsock_worker.settings import Http
    from olsock_worker.store.records import FunctionUrl
    from olsock_worker.streams import Source

_PLAIN = b"content-type: application/json\r\n"
_FAILED = 502  # a function's failure is that of a gateway's backend, as AWS has it


class Visit:
    """Stands between the call and its connection."""

    def __init__(self, call: Call, url: FunctionUrl, mount: str, key: str | None, http: Http) -> None:
        """`mount` is what the path begins with, `key` whose signature there is."""
        self.mount = mount
        self._client = cast("Client", call.connection)
        self._url, self._key, self._http, self._room = url, key, http, int(http.reply)
        self._is_event = False
        self._lines = b""
        if url.cors is not None:
            self._lines = responses.header_lines(cors.answered(url.cors, call.headers.get("origin", "")))
        self._call = call
        self._collected: tuple[Head, bytearray] | None = None
        call.connection = self

    # -- on the way to the function -----------------------------------------------------------------------------------

    def as_event(self, call: Call) -> None:
        """Make an event of the request: it is no web application that will get it."""
        self._is_event = True
        address, fields = forwarding.told(call, self._client.addresses()[0][0], self._http.trusted_proxies)
        call.body = gateway.event(call, fields, self._url.id, address, self._key)

    def step_aside(self, call: Call) -> None:
        """Leave the connection to a WebSocket, which has no headers to add."""
        call.connection = self._client

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return address and port of the client, and those that it has reached."""
        return self._client.addresses()

    # -- on the way back ----------------------------------------------------------------------------------------------

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Take a plain result, or an error of the worker's."""
        if not self._is_event or call.failure is not None or status != 200:
            failed = self._is_event and status == 500 and call.failure is not None
            self._client.reply(call, _FAILED if failed else status, content_type, body, extra + self._lines)
            return
        try:
            head, body = gateway.interpret(body)
        except ResultError as error:
            self._fail(call, "bad_result", f"the function has returned what is no answer: {error}")
        else:
            self._client.answer(call, self._with_lines(head), body)

    def answer(self, call: Call, head: Head, body: bytes) -> None:
        """Take what a web application answers, or a function of which a decorator has collected what it generates."""
        if self._is_event and head.status == 200 and head.lines.lower() == _PLAIN:
            self.reply(call, 200, JSON, body, b"")
            return
        self._client.answer(call, self._with_lines(head), body)

    def begin(self, call: Call, stream: Source | None, head: Head) -> bool:
        """Let parts through, or collect them."""
        if self._is_event and not self._url.stream:
            self._collected = head, bytearray()
            return False
        return self._client.begin(call, stream, self._with_lines(head))

    def write(self, data: bytes) -> None:
        """Take a part."""
        if self._collected is None:
            self._client.write(data)
        elif len(self._collected[1]) + len(data) > self._room:
            self._call.failure = Failure("reply_too_large", "", f"the reply is longer than {self._room} bytes")
        else:
            self._collected[1].extend(data)

    def finish(self, call: Call, data: bytes) -> None:
        """Take the end."""
        if self._collected is None:
            self._client.finish(call, data)
        elif call.failure is not None:
            self._fail(call, "reply_too_large", call.failure.message)
        else:
            head, body = self._collected
            self._client.answer(call, self._with_lines(head), bytes(body))

    def cut(self, visible: bool) -> None:
        """End inside of the parts; what was collected of them is given up."""
        if self._collected is None:
            self._client.cut(visible)
        else:
            self._fail(self._call, "handler", "the function failed inside of its reply")

    def _with_lines(self, head: Head) -> Head:
        if self._url.cors is None:
            return head
        return head._replace(lines=cors.without(head.lines) + self._lines)

    def _fail(self, call: Call, kind: str, message: str) -> None:
        body = responses.error_body(Error(kind, message), call.id)
        self._client.reply(call, _FAILED, JSON, body, self._lines)
