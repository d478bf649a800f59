"""One request on its way through the front."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

if TYPE_CHECKING:
    from olsock_worker.handshakes import Handshake
    from olsock_worker.heads import Head
    from olsock_worker.instances import Instance
    from olsock_worker.streams import Source
    from olsock_worker.visits import Visit

# Unique over restarts without costing a system call a request: random once, then counted.
_PREFIX = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


class Replier(Protocol):
    """Who passes on to the client what becomes of a call: its connection, or what has begun to answer on it."""

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Answer, or end what was begun: it has failed."""


class Client(Replier, Protocol):
    """Who takes every kind of answer: a connection, or who has made a call out of what came on one."""

    def answer(self, call: Call, head: Head, body: bytes) -> None:
        """Answer with headers of the function's own."""

    def begin(self, call: Call, stream: Source | None, head: Head) -> bool:
        """Take the head of an answer that comes in parts; say whether these are to be chunks."""

    def write(self, data: bytes) -> None:
        """Take a part."""

    def finish(self, call: Call, data: bytes) -> None:
        """Take the end, with last bytes."""

    def cut(self, visible: bool) -> None:
        """End inside of the parts; `visible` if what is missing tells of it."""

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return address and port of the client, and those that it has reached."""


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


def over(room: int | str) -> Failure:
    """Return the failure of a result, or what was collected of one, that is longer than `room` bytes: in AWS's words."""
    return Failure(
        "reply_too_large", "", f"Response payload size exceeded maximum allowed payload size ({room} bytes)."
    )


class Call:
    """A parsed request, and the way back to whoever sent it."""

    __slots__ = (
        "body",
        "connection",
        "failure",
        "handshake",
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
        "repeats",
        "sent",
        "started",
        "target",
        "told",
        "version",
        "visit",
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
        self.repeats: Sequence[tuple[int, str, str]] = ()  # headers that came again: after how many others, name, value
        self.version = "1.1"
        self.handshake: Handshake | None = None  # of a WebSocket that may come of it
        self.body = body
        self.keep_alive = keep_alive
        self.received = monotonic()
        self.started = 0.0  # when it left the queue
        self.sent = 0.0  # when the sandbox got it
        self.instance: Instance | None = None
        self.told: Told | None = None
        self.visit: Visit | None = None  # of a function URL: the request is the client's own
        self.failure: Failure | None = None
        self.on_abandon: Callable[[Call], None] | None = None

    def fields(self) -> Iterator[tuple[str, str]]:
        """Return the headers as they came: in their order, and one that came twice twice."""
        repeats = list(self.repeats)
        more: dict[str, int] = {}  # how much of a value is of repetitions
        for _, name, value in repeats:
            more[name] = more.get(name, 0) + len(value) + len(", ")
        for seen, (name, value) in enumerate(self.headers.items()):
            while repeats and repeats[0][0] == seen:
                yield repeats.pop(0)[1:]
            yield name, value[: len(value) - more.get(name, 0)]
        yield from (each[1:] for each in repeats)

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

    def answer(self, head: Head, body: bytes) -> None:
        """Send a reply with headers of the function's own, if there is still someone to send it to."""
        connection, self.connection = self.connection, None
        if connection is not None:
            cast("Client", connection).answer(self, head, body)
