"""One event and its function: whether it is to be tried, how the attempt has gone, and what follows from that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Protocol

from olsock_worker.catalog import NotReady
from olsock_worker.events import backoff
from olsock_worker.events.delivery import Delivery
from olsock_worker.events.interface import Letter
from olsock_worker.store.records import Absent, StoreError

if TYPE_CHECKING:
    from olsock_worker.calls import Failure
    from olsock_worker.events.figures import Figures
    from olsock_worker.events.interface import Event
    from olsock_worker.events.lanes import Lane
    from olsock_worker.events.targets import Targets
    from olsock_worker.functions import Function
    from olsock_worker.settings import Events

_DOUBT = 0.25  # seconds in which it shows whether a process ended by itself, or because the broker did
_MESSAGE, _TYPE = 4096, 256  # characters of an error in a dead letter
_SYSTEM = frozenset(
    (
        *("throttled", "queue_full", "queue_timeout", "host_full"),
        *("start_failed", "internal", "unknown_function", "overloaded"),
    )
)


class Outcomes(Protocol):
    """Who is told what becomes of each event, once."""

    def taken(self, lane: Lane, event: Event) -> None:
        """Its function has handled it."""

    def put_back(self, lane: Lane, event: Event) -> None:
        """It has not reached its function, which costs it nothing but time."""

    def put_off(self, lane: Lane, event: Event, wait: float) -> None:
        """It is to be tried again after some seconds."""

    def given_up(self, lane: Lane, letter: Letter) -> None:
        """It will not be tried any more."""


class Attempts:
    """Hands events to functions. `ends` has the functions that were deleted, with the numbers up to which events are theirs."""

    def __init__(
        self, targets: Targets, settings: Events, figures: Figures, ends: Mapping[str, int], outcomes: Outcomes
    ) -> None:
        self._targets, self._settings, self._figures = targets, settings, figures
        self._ends, self._outcomes = ends, outcomes
        self._stopped = False
        self._deliveries: set[Delivery] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Begin nothing any more, and take back what no instance has yet: nobody is told of that."""
        self._stopped = True
        for delivery in list(self._deliveries):
            delivery.withdraw()

    def begin(self, lane: Lane, event: Event) -> None:
        """Try one event."""
        reason = self._hopeless(lane, event)
        if reason:
            self._give_up(lane, event, reason)
            return
        try:
            number = self._targets.resolve(lane.name, lane.qualifier)
            if self._targets.throttled(lane.name):
                raise NotReady("as many calls run as are reserved for it")
        except Absent as error:
            self._give_up(lane, event, "ResourceNotFound", "ResourceNotFoundException", str(error))
            return
        except NotReady:
            self._outcomes.put_back(lane, event)
            return
        function = self._targets.served(lane.name, number)
        if function is not None:
            self._deliver(lane, event, function)
            return
        task = self._loop.create_task(self._prepare(lane, event, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hopeless(self, lane: Lane, event: Event) -> str:
        """Say why an event is not to be tried at all."""
        if event.number <= self._ends.get(lane.name, 0):
            return "ResourceNotFound"
        if time.time() > event.accepted + self._age(lane):
            return "EventAgeExceeded"
        return "ZeroReservedConcurrency" if self._targets.off(lane.name) else ""

    def _age(self, lane: Lane) -> float:
        rules = self._targets.rules(lane.name, lane.qualifier)
        return self._settings.age if rules is None or rules.age is None else rules.age

    def _retries(self, lane: Lane) -> int:
        rules = self._targets.rules(lane.name, lane.qualifier)
        return self._settings.retries if rules is None or rules.retries is None else rules.retries

    async def _prepare(self, lane: Lane, event: Event, number: str) -> None:
        """Have a version made ready that nobody has called before, then call it."""
        try:
            function = await self._targets.prepare(lane.name, number)
        except Absent as error:
            self._give_up(lane, event, "ResourceNotFound", "ResourceNotFoundException", str(error))
        except (NotReady, StoreError):
            self._outcomes.put_back(lane, event)
        else:
            self._deliver(lane, event, function)

    def _deliver(self, lane: Lane, event: Event, function: Function) -> None:
        if self._stopped:
            return
        if lane.running > function.config.concurrency:
            self._outcomes.put_back(lane, event)  # or it would stand in the way of those who wait for an answer
            return

        def ended(status: int, failure: Failure | None) -> None:
            self._deliveries.discard(delivery)
            self._ended(lane, event, status, failure)

        delivery = Delivery(event, function, ended)
        self._deliveries.add(delivery)
        self._figures.age.add(max(0.0, time.time() - event.accepted))
        delivery.run()

    def _ended(self, lane: Lane, event: Event, status: int, failure: Failure | None) -> None:
        if failure is None:
            self._figures.attempts["success"] += 1
            lane.refusals = 0
            self._outcomes.taken(lane, event)
        elif status == 503 or failure.kind in _SYSTEM:
            self._figures.attempts["throttled"] += 1
            self._outcomes.put_back(lane, event)
        elif failure.kind == "crash":
            self._loop.call_later(_DOUBT, self._failed, lane, event, failure)
        else:
            self._failed(lane, event, failure)

    def _failed(self, lane: Lane, event: Event, failure: Failure) -> None:
        """Have what ended with an error of the function tried again later, or give it up."""
        self._figures.attempts["error"] += 1
        lane.refusals = 0
        event.attempts += 1
        wait = backoff.wait(self._settings.retry_delay, event.attempts, inf)
        kind = failure.name or failure.kind
        if event.attempts > self._retries(lane):
            self._give_up(lane, event, "RetriesExhausted", kind, failure.message)
        elif time.time() + wait > event.accepted + self._age(lane):
            self._give_up(lane, event, "EventAgeExceeded", kind, failure.message)
        else:
            self._figures.retries += 1
            self._outcomes.put_off(lane, event, wait)

    def _give_up(self, lane: Lane, event: Event, reason: str, kind: str = "", message: str = "") -> None:
        self._figures.buried[reason] += 1
        self._outcomes.given_up(lane, Letter(event, time.time(), reason, kind[:_TYPE], message[:_MESSAGE]))
