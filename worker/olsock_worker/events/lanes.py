"""What waits for one target: a function, or one of its versions or aliases. In memory is no more than a window of it."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from olsock_worker.events.interface import Event


class Lane:
    """The events of one target, and how it goes with them."""

    __slots__ = (
        "count", "full", "held", "more", "name", "paused", "qualifier", "queued", "reading", "refusals", "running", "size",
        "target", "timer", "wakes", "window",
    )  # fmt: skip

    def __init__(self, target: str) -> None:
        self.target = target
        self.name, _, self.qualifier = target.partition(":")
        self.count = self.size = 0  # of all, those that run or are being written included
        self.window: deque[Event] = deque()  # the next ones
        self.held: set[int] = set()  # numbers of those in the window, and of those that run
        self.running = 0
        self.more = False  # there may be others that are due
        self.reading = False
        self.queued = False  # stands in line
        self.full = False  # cannot take more, until one of those that run has ended
        self.refusals = 0  # in a row
        self.paused = 0.0  # until when; monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.wakes = inf  # when the timer will have run out, in the time of the loop

    def stop(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
