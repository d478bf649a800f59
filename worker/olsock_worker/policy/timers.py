"""What is due when: a heap in which an appointment is found again by who has it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Timers(Generic[Holder]):
    """At most one appointment for each holder. Cancelled ones stay in the heap until they come up, or are too many."""

    def __init__(self) -> None:
        self._times: dict[Holder, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Holder]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._times)

    def set(self, holder: Holder, when: float) -> None:
        """Make an appointment, in place of the holder's last one."""
        number = next(self._numbers)
        self._times[holder] = when, number
        heappush(self._heap, (when, number, holder))
        if len(self._heap) > 2 * len(self._times) + 64:
            self._heap = [(when, number, holder) for holder, (when, number) in self._times.items()]
            heapify(self._heap)

    def cancel(self, holder: Holder) -> None:
        """Forget the holder's appointment, if there is one."""
        self._times.pop(holder, None)

    def next(self) -> float:
        """Return when the first appointment is; infinity if there is none."""
        while self._heap:
            when, number, holder = self._heap[0]
            if self._times.get(holder) == (when, number):
                return when
            heappop(self._heap)
        return inf

    def due(self, now: float) -> Iterator[Holder]:
        """Take out what is due, the earliest first. Who is asked for anew meanwhile comes if due again."""
        while self.next() <= now:
            holder = heappop(self._heap)[2]
            del self._times[holder]
            yield holder
