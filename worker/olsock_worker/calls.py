"""One request on its way through the front."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from olsock_worker.instances import Instance

# Unique over restarts without costing a system call a request: random once, then counted.
_PREFIX = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


class Replier(Protocol):
    """Who passes on to the client what becomes of a call: its connection, or what has begun to answer on it."""

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Answer, or end what was begun: it has failed."""


class Told(msgspec.Struct, frozen=True):
    """What a function is told of a call beside the request, as AWS Lambda does."""

    client_context: dict[str, object] | None = None
    arn: str | None = None
    trace: str | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why a call has no result, for who tells of it in other words: the type of the error, and what the handler raised."""

    kind: str
    name: str = ""
    message: str = ""
    traceback: str = ""


class Call:
    """A parsed request, and the way back to whoever sent it."""

    __slots__ = (
        "body",
        "connection",
        "failure",
        "headers",
        "id",
        "instance",
        "keep_alive",
        "method",
        "number",
        "on_abandon",
        "path",
        "query",
        "received",
        "sent",
        "started",
        "target",
        "told",
    )

    def __init__(
        self, connection: Replier, method: str, target: bytes, headers: dict[str, str], body: bytes, keep_alive: bool
    ) -> None:
        self.connection: Replier | None = connection  # None: nobody waits for the reply any more
        self.number = next(_NUMBERS)
        self.id = f"{_PREFIX}-{self.number:08x}"
        self.method = method
        self.target = target
        self.path = self.query = ""
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.received = monotonic()
        self.started = 0.0  # when it left the queue
        self.sent = 0.0  # when the sandbox got it
        self.instance: Instance | None = None
        self.told: Told | None = None
        self.failure: Failure | None = None
        self.on_abandon: Callable[[Call], None] | None = None

    def abandon(self) -> None:
        """Note that the client has gone. A queued call is dropped; a running one runs to its end, unheard."""
        self.connection = None
        if self.on_abandon is not None:
            self.on_abandon(self)

    def reply(self, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Send the reply, if there is still someone to send it to."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.reply(self, status, content_type, body, extra)
