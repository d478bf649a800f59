"""Takes events in, has them handed to their functions in their turn, and writes down what became of each.

Lanes take turns. Each may have a number of events under way, so one whose function is slow, broken or throttled waits for itself
only. An event is in the store until its attempt has ended and that is written down: what a crash cuts short is done again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker.events import backoff
from olsock_worker.events.attempts import Attempts
from olsock_worker.events.backlog import Backlog, QueueFull
from olsock_worker.events.figures import Figures
from olsock_worker.events.interface import Event
from olsock_worker.events.turns import Turns
from olsock_worker.events.writer import Writer
from olsock_worker.store.records import StoreError

if TYPE_CHECKING:
    from olsock_worker.events.interface import Due, EventQueue, Letter
    from olsock_worker.events.lanes import Lane
    from olsock_worker.events.targets import Targets
    from olsock_worker.logs import WorkerLog
    from olsock_worker.settings import Settings

_WINDOW = 32  # events of a lane in memory, beside those that run
_READ, _HELD = 1 << 20, 64 << 20  # bytes that one look brings into memory, and all windows together
_AGAIN = 1.0  # seconds until something is written again that could not be
_SWEEP = 600.0  # seconds between looks for dead letters that are too old


class Dispatcher:
    """Runs on one loop. Nothing is begun before `start` or after `stop`; events are accepted all the time."""

    def __init__(self, queue: EventQueue, targets: Targets, settings: Settings, log: WorkerLog) -> None:
        self.backlog = Backlog(settings.events)
        self.figures = Figures(self.backlog, queue, settings.metrics_functions)
        self.writer = Writer(queue)
        self.queue = queue
        self._settings, self._log = settings.events, log
        loaded = queue.load()
        self._ends, self._last = loaded.ends, loaded.last
        for waiting in loaded.waiting:
            self.backlog.load(waiting)
        self._turns = Turns(self._next)
        self._attempts = Attempts(targets, settings.events, self.figures, self._ends, self)
        self._held = 0  # bytes in memory
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Hand events to functions from now on."""
        self._turns.open = True
        for name in [each for each in self._ends if not self.backlog.of(each)]:
            self._forget(name)
        for lane in self.backlog:
            self._turns.wake(lane)
        self._sweep()

    def stop(self) -> None:
        """Begin nothing any more. What has not reached an instance stays for the next start."""
        self._turns.open = False
        self._attempts.stop()

    async def close(self) -> None:
        """Write down what has ended, and let go of the queue."""
        await self.writer.close()

    # -- coming in ----------------------------------------------------------------------------------------------------

    async def add(self, target: str, identity: str, payload: bytes, told: bytes) -> None:
        """Accept an event; it is safe on the disk when this returns. Raises `QueueFull` and `StoreError`."""
        event = Event(0, target, identity, time.time(), payload, told)
        lane = self._take(target, event.size)
        event.number = self._number()
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
        self._turns.wake(lane)
        if not added.done():
            added.set_result(None)

    def _number(self) -> int:
        """Return a number that no event has had."""
        self._last += 1
        return self._last

    async def revive(self, identity: str, target: str, size: int) -> bool:
        """Make an event of a dead letter again; False if that is gone. Raises `QueueFull` and `StoreError`."""
        lane = self._take(target, size)
        try:
            event = await self.writer.ask(partial(self.queue.revive, identity, self._number(), time.time()))
        except StoreError:
            self.backlog.give(lane, size)
            raise
        if event is None:
            self.backlog.give(lane, size)
            return False
        lane.more = True
        self._turns.wake(lane)
        return True

    def end(self, name: str) -> None:
        """Give up the events of a function that was deleted: one that is made under its name later is another."""
        lanes = self.backlog.of(name)
        if lanes:
            self._ends[name] = self._last
            self._note(partial(self.queue.end, name, self._last))
        for lane in lanes:
            lane.paused = 0.0
            self._turns.wake(lane)

    def ready(self, name: str) -> None:
        """Try again at once what waits for a function: it is deployed now."""
        for lane in self.backlog.of(name):
            lane.paused, lane.refusals = 0.0, 0
            self._turns.wake(lane)

    def _forget(self, name: str) -> None:
        self._ends.pop(name, None)
        self._note(partial(self.queue.forget, name))

    # -- in their turn ------------------------------------------------------------------------------------------------

    def _next(self, lane: Lane) -> bool:
        """Begin one event of a lane whose turn it is; say whether it stays in line."""
        if not lane.count or lane.full or lane.running >= self._settings.function_running:
            return False  # nothing is left, or the end of one of its own wakes it
        if lane.paused > monotonic():
            self._turns.later(lane, lane.paused - monotonic())
            return False
        if len(lane.window) <= _WINDOW // 4:
            self._read(lane)
        if not lane.window:
            return False
        if lane.running and self.figures.running >= self._settings.running:
            self._turns.crowd(lane)
            return False
        lane.running += 1
        self.figures.running += 1
        self._attempts.begin(lane, lane.window.popleft())
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
            self._turns.later(lane, _AGAIN)
            return
        for event in result.events:
            self._hold(lane, event)
        lane.more = lane.more or result.more
        if result.later is not None:
            self._turns.later(lane, max(0.0, result.later - time.time()))
        if lane.window or lane.more:
            self._turns.wake(lane)

    def _hold(self, lane: Lane, event: Event) -> None:
        lane.held.add(event.number)
        lane.window.append(event)
        self._held += event.size

    # -- what became of an event --------------------------------------------------------------------------------------

    def put_back(self, lane: Lane, event: Event) -> None:
        """Keep an event that has not reached its function; the lane pauses, unless it has others whose end makes room."""
        lane.window.appendleft(event)
        self._leave(lane)
        lane.full = lane.running > 0
        if not lane.running:
            lane.refusals += 1
            wait = backoff.wait(self._settings.backoff, lane.refusals, self._settings.backoff_most)
            lane.paused = monotonic() + wait
            self._turns.later(lane, wait)

    def taken(self, lane: Lane, event: Event) -> None:
        """Remove an event that its function has handled."""
        self._settle(lane, event, partial(self.queue.remove, event.number))

    def put_off(self, lane: Lane, event: Event, wait: float) -> None:
        """Have an event wait for its next attempt."""
        work = partial(self.queue.postpone, event.number, time.time() + wait, event.attempts)
        self._settle(lane, event, work, wait)

    def given_up(self, lane: Lane, letter: Letter) -> None:
        """Make a dead letter of an event."""
        self._settle(lane, letter.event, partial(self.queue.bury, letter))

    def _settle(self, lane: Lane, event: Event, work: Callable[[], None], wait: float | None = None) -> None:
        """Write down what became of an attempt. Until then it is under way, so that a crash repeats a bounded number."""

        def then(result: StoreError | None) -> None:
            if isinstance(result, StoreError):
                self._log("error", "events", error=str(result))
                self._loop.call_later(_AGAIN, self.writer.submit, work, then)
            else:
                self._settled(lane, event, wait)

        self.writer.submit(work, then)

    def _settled(self, lane: Lane, event: Event, wait: float | None) -> None:
        lane.full = False
        lane.held.discard(event.number)
        self._held -= event.size
        self._leave(lane)
        if wait is not None:
            self._turns.later(lane, wait)
        else:
            self.backlog.give(lane, event.size)
        if lane.count:
            self._turns.wake(lane)
        elif lane.name in self._ends and not self.backlog.of(lane.name):
            self._forget(lane.name)

    def _leave(self, lane: Lane) -> None:
        lane.running -= 1
        self.figures.running -= 1
        self._turns.free(lane)

    def _note(self, work: Callable[[], None]) -> None:
        """Write what does no harm if it is lost."""

        def then(result: StoreError | None) -> None:
            if isinstance(result, StoreError):
                self._log("error", "events", error=str(result))

        self.writer.submit(work, then)

    def _sweep(self) -> None:
        """Remove dead letters that have become too old."""
        if self._turns.open:
            self._note(self.queue.expire)
            self._loop.call_later(_SWEEP, self._sweep)
