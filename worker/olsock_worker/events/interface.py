"""What a queue of events has to offer, so that another than the one of a single host can take its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Protocol

import msgspec

OVERHEAD = 256
"""Bytes that an event takes beside its payload, about."""


class Event(msgspec.Struct):
    """A call that was accepted, and is still to be made."""

    number: int  # its place in the queue; no other ever has it
    target: str  # a function's name, or name:qualifier
    id: str  # of the request
    accepted: float  # time()
    payload: bytes
    told: bytes  # JSON of what the function is told beside it, a `Told`
    attempts: int = 0  # that ended with an error of the function

    @property
    def size(self) -> int:
        """Bytes that count against the bounds of the queue."""
        return len(self.payload) + len(self.told) + OVERHEAD


class Due(msgspec.Struct, frozen=True):
    """What a look for events has found."""

    events: list[Event]
    more: bool  # there may be others that are due
    later: float | None  # when the first that is not due yet will be; time()


class Waiting(msgspec.Struct, frozen=True):
    """How much waits for one target."""

    target: str
    count: int
    size: int


class Loaded(msgspec.Struct, frozen=True):
    """What a queue holds when it is opened."""

    waiting: list[Waiting]
    last: int  # the highest number that was ever given out, as far as it is known
    ends: dict[str, int]  # functions that were deleted: the events up to a number are of those, not of a later one


class Letter(msgspec.Struct, frozen=True):
    """An event that was given up, and why."""

    event: Event
    died: float  # time()
    reason: str  # such as RetriesExhausted
    error_type: str = ""  # of the last attempt
    error_message: str = ""


class Letters(msgspec.Struct):
    """How many dead letters there are."""

    count: int = 0
    size: int = 0
    dropped: int = 0  # those that had to make room for others, or were too old, since the queue was opened


class EventQueue(Protocol):
    """Events in the order in which they are due, and dead letters.

    All methods block, belong to one thread, and raise `StoreError`. Those from `add` on are called inside of `commit`, and what
    they have changed is safe when that returns: all of it, or nothing.
    """

    letters: Letters
    oldest: float | None
    """When the event that has waited longest was accepted, as of the last commit."""

    def load(self) -> Loaded:
        """Return what there is."""

    def commit(self, works: Sequence[Callable[[], object]]) -> list[object]:
        """Do all of `works` in one transaction, and return what each returned once it is safe."""

    def close(self) -> None:
        """Let go of it. What was committed is safe already."""

    def add(self, event: Event) -> None:
        """Put an event in, due at once."""

    def due(self, target: str, now: float, most: int, size: int, held: Set[int]) -> Due:
        """Return events of a target that are due, those of `held` left out: `most`, or at least one and about `size` bytes."""

    def remove(self, number: int) -> None:
        """Take an event out: it was handled."""

    def postpone(self, number: int, due: float, attempts: int) -> None:
        """Have an event wait for its next attempt."""

    def bury(self, letter: Letter) -> None:
        """Make a dead letter of an event."""

    def end(self, name: str, number: int) -> None:
        """Note that a function was deleted, and with it who the events up to `number` are for."""

    def forget(self, name: str) -> None:
        """Remove that note: none of these events is left."""

    def dead(self, name: str, after: int, most: int) -> list[Letter]:
        """Return dead letters of a function, of all if the name is empty, by number."""

    def letter(self, identity: str) -> Letter | None:
        """Return the dead letter of a request."""

    def revive(self, identity: str, number: int, now: float) -> Event | None:
        """Make an event with a new number and no past of a dead letter, due at once."""

    def discard(self, identity: str) -> bool:
        """Remove a dead letter; say whether there was one."""

    def expire(self) -> None:
        """Remove dead letters that are too old or too many."""
