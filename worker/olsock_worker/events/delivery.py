"""One attempt: a call on behalf of an event, whose answer nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from olsock_worker.calls import Call, Failure, Told

if TYPE_CHECKING:
    from olsock_worker.events.interface import Event
    from olsock_worker.functions import Function
    from olsock_worker.heads import Head
    from olsock_worker.streams import Stream

Ended = Callable[[int, Failure | None], None]
_NOWHERE = ("127.0.0.1", 0)


class Delivery:
    """The way back from the call; `ended` is told how it went: a status, and why there is no result."""

    def __init__(self, event: Event, function: Function, ended: Ended) -> None:
        self._function, self._ended = function, ended
        self.call = Call(self, "POST", b"/", {}, event.payload, True)
        self.call.id = event.id  # every attempt is the same request
        self.call.told = msgspec.json.decode(event.told, type=Told)

    def run(self) -> None:
        """Call the function."""
        self._function.submit(self.call)

    def withdraw(self) -> None:
        """Take the call back if no instance has it yet. Then `ended` is not told."""
        if self.call.instance is None and self.call in self._function.queue:
            self.call.abandon()

    def reply(self, call: Call, status: int, _content_type: bytes, _body: bytes, _extra: bytes) -> None:
        """Take how the call has ended."""
        failure = call.failure
        if failure is None and status != 200:
            failure = Failure("bad_reply", "", f"the reply has the status {status}")
        self._ended(status, failure)

    def answer(self, call: Call, _head: Head, _body: bytes) -> None:
        """Take what a web application answers, whatever it is: it has handled the event."""
        self._ended(200, call.failure)

    def begin(self, _call: Call, _stream: Stream, _head: Head) -> bool:
        """Let an answer in parts pass by."""
        return False

    def write(self, data: bytes) -> None:
        """Let a part pass by."""

    def finish(self, call: Call, _data: bytes) -> None:
        """Take the end of the parts."""
        self._ended(200, call.failure)

    def cut(self, _visible: bool) -> None:
        """Take an end inside of the parts."""
        self._ended(502, self.call.failure or Failure("bad_reply", "", "the reply has no end"))

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return addresses for a web application: nobody is connected."""
        return _NOWHERE, _NOWHERE
