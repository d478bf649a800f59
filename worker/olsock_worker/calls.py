"""One request on its way through the front."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.http import Connection
    from olsock_worker.instances import Instance

# Unique over restarts without costing a system call a request: random once, then counted.
_PREFIX = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


class Call:
    """A parsed request, and the way back to whoever sent it."""

    __slots__ = (
        "body",
        "connection",
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
    )

    def __init__(
        self, connection: Connection, method: str, target: bytes, headers: dict[str, str], body: bytes, keep_alive: bool
    ) -> None:
        self.connection: Connection | None = connection  # None: nobody waits for the reply any more
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
