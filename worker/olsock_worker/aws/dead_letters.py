"""Operations on dead letters: events that were given up. They are olsock's own; AWS has none of this."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from olsock_worker.aws import names
from olsock_worker.aws.errors import ApiError, absent, invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.shapes import Shape
from olsock_worker.events.backlog import QueueFull
from olsock_worker.store.sqlite import moment

if TYPE_CHECKING:
    from olsock_worker.events.dispatcher import Dispatcher
    from olsock_worker.events.interface import Letter


class DeadLetters:
    """Shows dead letters, and makes events of them again, or nothing."""

    def __init__(self, events: Dispatcher) -> None:
        self._events = events

    async def list(self, request: Request) -> Answer:
        """Show dead letters, of one function with `FunctionName`, without their payloads."""
        given, (after, most) = request.query("FunctionName"), request.page()
        name = names.plain(given) if given else ""
        if not (after.isascii() and after.isdecimal() and len(after) < 19) and after:
            raise invalid(f"Marker {after[:50]!r}: expected the NextMarker of an earlier answer")
        found = await self._events.writer.ask(partial(self._events.queue.dead, name, int(after or 0), most + 1))
        return page("DeadLetters", found, most, _shape, lambda each: str(each.event.number))

    async def show(self, request: Request) -> Answer:
        """Show one dead letter, with its payload."""
        letter = await self._letter(request)
        told = msgspec.json.decode(letter.event.told)
        more: Shape = {"Payload": msgspec.Raw(letter.event.payload)}
        if told.get("client_context") is not None:
            more["ClientContext"] = told["client_context"]
        return Answer(200, _shape(letter) | more)

    async def retry(self, request: Request) -> Answer:
        """Make an event of a dead letter again, as if it had come now."""
        event = (await self._letter(request)).event
        try:
            done = await self._events.revive(event.id, event.target, event.size)
        except QueueFull as error:
            raise ApiError("TooManyRequestsException", str(error)) from None
        if not done:
            raise _absent(event.id)
        return Answer(202)

    async def delete(self, request: Request) -> Answer:
        """Remove a dead letter."""
        identity = request.names[0]
        if not await self._events.writer.ask(partial(self._events.queue.discard, identity)):
            raise _absent(identity)
        return Answer(204)

    async def _letter(self, request: Request) -> Letter:
        letter = await self._events.writer.ask(partial(self._events.queue.letter, request.names[0]))
        if letter is None:
            raise _absent(request.names[0])
        return letter


def _absent(identity: str) -> ApiError:
    return absent(f"Dead letter not found: {identity[:100]}")


def _shape(letter: Letter) -> Shape:
    event = letter.event
    name, _, qualifier = event.target.partition(":")
    shape: Shape = {
        "RequestId": event.id,
        "FunctionName": name,
        "Qualifier": qualifier or None,
        "Reason": letter.reason,
        "Attempts": event.attempts,
        "ErrorType": letter.error_type,
        "ErrorMessage": letter.error_message,
        "Accepted": moment(event.accepted),
        "Died": moment(letter.died),
        "PayloadSize": len(event.payload),
    }
    return {name: value for name, value in shape.items() if value not in (None, "")}
