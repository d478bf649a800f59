"""Whose turn it is: lanes stand in line, wait for a time, or wait until another's event has ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.events.lanes import Lane


class Turns:
    """Calls `step` for one lane after the other, on one loop; it begins one event and says whether the lane stays in line."""

    def __init__(self, step: Callable[[Lane], bool]) -> None:
        self.open = False  # before, and after, nobody has a turn
        self._step = step
        self._line: deque[Lane] = deque()
        self._crowded: deque[Lane] = deque()
        self._pumping = False
        self._loop = asyncio.get_running_loop()

    def wake(self, lane: Lane) -> None:
        """Have a lane stand in line."""
        if self.open and not lane.queued:
            lane.queued = True
            self._line.append(lane)
            if not self._pumping:
                self._pumping = True
                self._loop.call_soon(self._pump)

    def later(self, lane: Lane, wait: float) -> None:
        """Have a lane look again after some seconds, if nothing else makes it look before."""
        at = self._loop.time() + wait
        if at < lane.wakes:
            lane.stop()
            lane.wakes = at
            lane.timer = self._loop.call_at(at, self._due, lane)

    def _due(self, lane: Lane) -> None:
        lane.timer, lane.wakes, lane.more = None, inf, True
        self.wake(lane)

    def _pump(self) -> None:
        """Let each lane begin one event in its turn, as long as any can."""
        self._pumping = False
        while self._line and self.open:
            lane = self._line.popleft()
            lane.queued = False
            if self._step(lane) and not lane.queued:
                lane.queued = True
                self._line.append(lane)

    def crowd(self, lane: Lane) -> None:
        """Have a lane wait until an event has ended: as many run as may."""
        lane.queued = True
        self._crowded.append(lane)

    def free(self, lane: Lane) -> None:
        """Let one of those in that wait for that: the lane whose event it was, if it has no other, as that is its due."""
        if not lane.running and lane in self._crowded:
            self._crowded.remove(lane)
        elif self._crowded:
            lane = self._crowded.popleft()
        else:
            return
        lane.queued = False
        self.wake(lane)
