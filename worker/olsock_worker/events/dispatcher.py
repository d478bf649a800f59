"""Decides which event is handed to its function next, and what becomes of it after.

Lanes take turns. Each may have a number of events under way, so one whose function is slow, broken or throttled waits for itself
only. An event is in the store until its attempt has ended and that is written down: what a crash cuts short is done again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker.catalog import NotReady
from olsock_worker.events import backoff
from olsock_worker.events.backlog import Backlog, QueueFull
from olsock_worker.events.delivery import Delivery
from olsock_worker.events.figures import Figures
from olsock_worker.events.interface import Event, Letter
from olsock_worker.events.writer import Writer
from olsock_worker.store.records import Absent, StoreError

if TYPE_CHECKING:
    from olsock_worker.calls import Failure
    from olsock_worker.events.interface import Due, EventQueue
    from olsock_worker.events.lanes import Lane
    from olsock_worker.events.targets import Targets
    from olsock_worker.functions import Function
    from olsock_worker.logs import WorkerLog
    from olsock_worker.settings import Settings

_WINDOW = 32  # events of a lane in memory, beside those that run
_READ, _HELD = 1 << 20, 64 << 20  # bytes that one look brings into memory, and all windows together
_DOUBT = 0.25  # seconds in which it shows whether a process ended by itself, or because the broker did
_AGAIN = 1.0  # seconds until something is written again that could not be
_SWEEP = 600.0  # seconds between looks for dead letters that are too old
_MESSAGE, _TYPE = 4096, 256  # characters of an error in a dead letter
_SYSTEM = frozenset(
    (
        *("throttled", "queue_full", "queue_timeout", "host_full"),
        *("start_failed", "internal", "unknown_function", "overloaded"),
    )
)


class Dispatcher:
    """Runs on one loop. Nothing is begun before `start` or after `stop`; events are accepted all the time."""

    def __init__(self, queue: EventQueue, targets: Targets, settings: Settings, log: WorkerLog) -> None:
        self.backlog = Backlog(settings.events)
        self.figures = Figures(self.backlog, queue, settings.metrics_functions)
        self.writer = Writer(queue)
        self.queue = queue
        self._targets, self._settings, self._log = targets, settings.events, log
        loaded = queue.load()
        self._ends, self._last = loaded.ends, loaded.last
        for waiting in loaded.waiting:
            self.backlog.load(waiting)
        self._line: deque[Lane] = deque()
        self._crowded: deque[Lane] = deque()  # those that wait for another's event to end
        self._deliveries: set[Delivery] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0  # bytes in memory
        self._begun = self._pumping = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Hand events to functions from now on."""
        self._begun = True
        for name in [each for each in self._ends if not self.backlog.of(each)]:
            self._forget(name)
        for lane in self.backlog:
            self._wake(lane)
        self._sweep()

    def stop(self) -> None:
        """Begin nothing any more. What has not reached an instance stays for the next start."""
        self._begun = False
        for delivery in list(self._deliveries):
            delivery.withdraw()

    async def close(self) -> None:
        """Write down what has ended, and let go of the queue."""
        await self.writer.close()

    # -- coming in ----------------------------------------------------------------------------------------------------

    async def add(self, target: str, identity: str, payload: bytes, told: bytes) -> None:
        """Accept an event; it is safe on the disk when this returns. Raises `QueueFull` and `StoreError`."""
        event = Event(0, target, identity, time.time(), payload, told)
        lane = self._take(event.target, event.size)
        event.number = self.number()
        added: asyncio.Future[None] = self._loop.create_future()
        self.writer.submit(partial(self.queue.add, event), partial(self._added, lane, event, added))
        await added

    def _take(self, target: str, size: int) -> Lane:
        try:
            return self.backlog.take(target, size)
        except QueueFull:
            self.figures.refused += 1
            raise

    def _added(self, lane: Lane, event: Event, added: asyncio.Future[None], result: StoreError | None) -> None:
        if isinstance(result, StoreError):
            self.backlog.give(lane, event.size)
            if not added.done():
                added.set_exception(result)
            return
        self.figures.accepted += 1
        if lane.more or lane.reading or len(lane.window) >= _WINDOW or self._held >= _HELD:
            lane.more = True
        else:
            self._hold(lane, event)  # nobody is before it, and there is room: it need not be read back
        self._wake(lane)
        if not added.done():
            added.set_result(None)

    def number(self) -> int:
        """Return a number that no event has had."""
        self._last += 1
        return self._last

    async def revive(self, identity: str, target: str, size: int) -> bool:
        """Make an event of a dead letter again; False if that is gone. Raises `QueueFull` and `StoreError`."""
        lane = self._take(target, size)
        try:
            event = await self.writer.ask(partial(self.queue.revive, identity, self.number(), time.time()))
        except StoreError:
            self.backlog.give(lane, size)
            raise
        if event is None:
            self.backlog.give(lane, size)
            return False
        lane.more = True
        self._wake(lane)
        return True

    def end(self, name: str) -> None:
        """Give up the events of a function that was deleted: one that is made under its name later is another."""
        lanes = self.backlog.of(name)
        if lanes:
            self._ends[name] = self._last
            self._write(partial(self.queue.end, name, self._last))
        for lane in lanes:
            lane.paused = 0.0
            self._wake(lane)

    def _forget(self, name: str) -> None:
        self._ends.pop(name, None)
        self._write(partial(self.queue.forget, name))

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    def _wake(self, lane: Lane) -> None:
        """Have a lane stand in line."""
        if self._begun and not lane.queued:
            lane.queued = True
            self._line.append(lane)
            if not self._pumping:
                self._pumping = True
                self._loop.call_soon(self._pump)

    def _later(self, lane: Lane, wait: float) -> None:
        """Have a lane look again after some seconds, if nothing else makes it look before."""
        at = self._loop.time() + wait
        if at < lane.wakes:
            lane.stop()
            lane.wakes = at
            lane.timer = self._loop.call_at(at, self._due, lane)

    def _due(self, lane: Lane) -> None:
        lane.timer, lane.wakes, lane.more = None, float("inf"), True
        self._wake(lane)

    def _pump(self) -> None:
        """Let each lane begin one event in its turn, as long as any can."""
        self._pumping = False
        while self._line and self._begun:
            lane = self._line.popleft()
            if self._next(lane):
                self._line.append(lane)

    def _next(self, lane: Lane) -> bool:
        """Begin one event; say whether the lane stays in line."""
        lane.queued = False
        if not lane.count or lane.full or lane.running >= self._settings.function_running:
            return False  # nothing is left, or the end of one of its own wakes it
        if lane.paused > monotonic():
            self._later(lane, lane.paused - monotonic())
            return False
        if len(lane.window) <= _WINDOW // 4:
            self._read(lane)
        if not lane.window:
            return False
        lane.queued = True
        if lane.running and self.figures.running >= self._settings.running:
            self._crowded.append(lane)
            return False
        self._attempt(lane, lane.window.popleft())
        return True

    def _read(self, lane: Lane) -> None:
        """Have more events of a lane brought into memory."""
        if lane.reading or not lane.more:
            return
        lane.reading, lane.more = True, False
        size = _READ if self._held < _HELD else 1
        work = partial(self.queue.due, lane.target, time.time(), _WINDOW, size, frozenset(lane.held))
        self.writer.submit(work, partial(self._was_read, lane))

    def _was_read(self, lane: Lane, result: Due | StoreError) -> None:
        lane.reading = False
        if not lane.count:
            return  # it is over, and another lane has what may have come since
        if isinstance(result, StoreError):
            self._log("error", "events", error=str(result))
            self._later(lane, _AGAIN)
            return
        for event in result.events:
            self._hold(lane, event)
        lane.more = lane.more or result.more
        if result.later is not None:
            self._later(lane, max(0.0, result.later - time.time()))
        if lane.window or lane.more:
            self._wake(lane)

    def _hold(self, lane: Lane, event: Event) -> None:
        lane.held.add(event.number)
        lane.window.append(event)
        self._held += event.size

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _attempt(self, lane: Lane, event: Event) -> None:
        lane.running += 1
        self.figures.running += 1
        reason = self._hopeless(lane, event)
        if reason:
            self._bury(lane, event, reason)
            return
        try:
            number = self._targets.resolve(lane.name, lane.qualifier)
            if self._targets.throttled(lane.name):
                raise NotReady("as many calls run as are reserved for it")
        except Absent as error:
            self._bury(lane, event, "ResourceNotFound", "ResourceNotFoundException", str(error))
            return
        except NotReady:
            self._refused(lane, event)
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
            self._bury(lane, event, "ResourceNotFound", "ResourceNotFoundException", str(error))
        except (NotReady, StoreError):
            self._refused(lane, event)
        else:
            self._deliver(lane, event, function)

    def _deliver(self, lane: Lane, event: Event, function: Function) -> None:
        if not self._begun:
            return
        if lane.running > function.config.concurrency:
            self._refused(lane, event)  # or it would stand in the way of those who wait for an answer
            return
        delivery = Delivery(
            event, function, lambda status, failure: self._ended(lane, event, delivery, status, failure)
        )
        self._deliveries.add(delivery)
        self.figures.age.add(max(0.0, time.time() - event.accepted))
        delivery.run()

    def _ended(self, lane: Lane, event: Event, delivery: Delivery, status: int, failure: Failure | None) -> None:
        self._deliveries.discard(delivery)
        if failure is None:
            self.figures.attempts["success"] += 1
            lane.refusals = 0
            self._settle(lane, event, partial(self.queue.remove, event.number), gone=True)
        elif status == 503 or failure.kind in _SYSTEM:
            self.figures.attempts["throttled"] += 1
            self._refused(lane, event)
        elif failure.kind == "crash":
            self._loop.call_later(_DOUBT, self._failed, lane, event, failure)
        else:
            self._failed(lane, event, failure)

    def _failed(self, lane: Lane, event: Event, failure: Failure) -> None:
        """Try again later what has ended with an error of the function, or give it up."""
        self.figures.attempts["error"] += 1
        lane.refusals = 0
        event.attempts += 1
        wait = backoff.wait(self._settings.retry_delay, event.attempts, self._settings.age)
        kind = failure.name or failure.kind
        if event.attempts > self._retries(lane):
            self._bury(lane, event, "RetriesExhausted", kind, failure.message)
        elif time.time() + wait > event.accepted + self._age(lane):
            self._bury(lane, event, "EventAgeExceeded", kind, failure.message)
        else:
            self.figures.retries += 1
            work = partial(self.queue.postpone, event.number, time.time() + wait, event.attempts)
            self._settle(lane, event, work, gone=False, wait=wait)

    def _refused(self, lane: Lane, event: Event) -> None:
        """Put an event back that has not reached its function; it costs nothing but time."""
        lane.running -= 1
        lane.window.appendleft(event)
        self._free(lane)
        lane.full = lane.running > 0
        if not lane.running:
            lane.refusals += 1
            wait = backoff.wait(self._settings.backoff, lane.refusals, self._settings.backoff_most)
            lane.paused = monotonic() + wait
            self._later(lane, wait)

    def _bury(self, lane: Lane, event: Event, reason: str, kind: str = "", message: str = "") -> None:
        letter = Letter(event, time.time(), reason, kind[:_TYPE], message[:_MESSAGE])
        self.figures.buried[reason] += 1
        self._settle(lane, event, partial(self.queue.bury, letter), gone=True)

    # -- written down -------------------------------------------------------------------------------------------------

    def _settle(
        self, lane: Lane, event: Event, work: Callable[[], None], gone: bool, wait: float | None = None
    ) -> None:
        """Write down what became of an attempt. Until then it is under way, so that a crash repeats a bounded number."""

        def then(result: StoreError | None) -> None:
            if isinstance(result, StoreError):
                self._log("error", "events", error=str(result))
                self._loop.call_later(_AGAIN, self.writer.submit, work, then)
            else:
                self._settled(lane, event, gone, wait)

        self.writer.submit(work, then)

    def _settled(self, lane: Lane, event: Event, gone: bool, wait: float | None) -> None:
        lane.running -= 1
        lane.full = False
        lane.held.discard(event.number)
        self._held -= event.size
        self._free(lane)
        if wait is not None:
            self._later(lane, wait)
        if gone:
            self.backlog.give(lane, event.size)
        if lane.count:
            self._wake(lane)
        elif lane.name in self._ends and not self.backlog.of(lane.name):
            self._forget(lane.name)

    def _free(self, lane: Lane) -> None:
        """Let one of those in that wait for room: the lane itself if it has nothing else under way, as that is its due."""
        self.figures.running -= 1
        if not lane.running and lane in self._crowded:
            self._crowded.remove(lane)
        elif self._crowded:
            lane = self._crowded.popleft()
        else:
            return
        lane.queued = False
        self._wake(lane)

    def _write(self, work: Callable[[], None]) -> None:
        """Write a note that does no harm if it is lost."""

        def then(result: StoreError | None) -> None:
            if isinstance(result, StoreError):
                self._log("error", "events", error=str(result))

        self.writer.submit(work, then)

    def _sweep(self) -> None:
        """Remove dead letters that have become too old."""
        if self._begun:
            self._write(self.queue.expire)
            self._loop.call_later(_SWEEP, self._sweep)
