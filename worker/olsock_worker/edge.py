"""What all connections share: limits, budgets, the date, and one heartbeat instead of a timer a request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker.calls import Call
from olsock_worker.http import Connection
from olsock_worker.settings import Http

if TYPE_CHECKING:
    from olsock_worker.websocket import WebSocket

_CONTROL = (b"/2015-03-31/functions", b"/registry/", b"/2018-10-31/layers/")
_UPLOAD = re.compile(rb"/2015-03-31/functions(/|/[^/?]+/code)?|/registry/[^/?]+|/2018-10-31/layers/[^/?]+/versions")
_API = re.compile(rb"/20\d\d-\d\d-\d\d/")  # how paths of AWS's begin
_BEAT = 0.25  # seconds; the deadlines of connections are whole seconds


class Edge:
    """The set of open connections and what they are held to."""

    def __init__(self, http: Http, handle: Callable[[Call], None], refused: Callable[[int], None]) -> None:
        self.http = http
        self.handle = handle
        self.refused = refused
        self.draining = False
        self.date = b""
        self.now = monotonic
        self._connections: set[Connection | WebSocket] = set()
        self._held = 0
        self._budget = int(http.bodies)
        self._largest = int(http.body), max(int(http.body), int(http.upload))
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._connections)

    def protocol(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def add(self, connection: Connection) -> bool:
        """Count a connection in; False if there are too many, and then it has to go."""
        self._connections.add(connection)
        if self._timer is None:
            self._beat()
        return len(self._connections) <= self.http.connections

    @property
    def flooded(self) -> bool:
        """Say whether so many are being told to go that one more had better not be told."""
        return len(self._connections) > self.http.connections * 4 // 3

    def replace(self, connection: Connection, by: WebSocket) -> None:
        """Count a connection as the WebSocket that it has become."""
        self._connections.discard(connection)
        self._connections.add(by)

    def remove(self, connection: Connection | WebSocket) -> None:
        """Count a connection out."""
        self._connections.discard(connection)

    def largest_body(self, target: bytes) -> int:
        """Return how many bytes of a body a request may have: one that brings code more than others."""
        return self._largest[target.startswith(_CONTROL) and _UPLOAD.fullmatch(target) is not None]

    def too_large(self, target: bytes) -> str:
        """Return what AWS calls a body over that: it has a word for calls, and one for all else; "" for paths of ours."""
        if not _API.match(target):
            return ""
        return "RequestTooLargeException" if b"/invocations" in target else "RequestEntityTooLargeException"

    def hold(self, size: int) -> bool:
        """Take (or, negative, give back) bytes of the budget for request bodies."""
        if self._held + size > self._budget:
            return False
        self._held += size
        return True

    def _beat(self) -> None:
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        now = monotonic()
        for connection in [each for each in self._connections if each.deadline < now]:
            connection.expire()
        # An idle worker has no connections and so does not wake up at all.
        self._timer = asyncio.get_running_loop().call_later(_BEAT, self._beat) if self._connections else None

    def drain(self) -> None:
        """From now on every reply is the last of its connection."""
        self.draining = True

    def close_idle(self) -> None:
        """Close the connections in which no request is under way."""
        for connection in list(self._connections):
            connection.drain()

    @property
    def busy(self) -> int:
        """The number of connections with a request under way."""
        return sum(connection.busy for connection in self._connections)
