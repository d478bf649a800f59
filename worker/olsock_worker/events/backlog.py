"""How much waits, for whom, and whether there is room for more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from olsock_worker.events.lanes import Lane

if TYPE_CHECKING:
    from olsock_worker.events.interface import Waiting
    from olsock_worker.settings import Events


class QueueFull(Exception):
    """There is no room for an event; the message says which bound is reached."""


class Backlog:
    """The lanes that have events. Those that are being written count, so no bound is exceeded by what comes at one time."""

    def __init__(self, settings: Events) -> None:
        self.count = self.size = 0
        self._settings = settings
        self._lanes: dict[str, Lane] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def load(self, waiting: Waiting) -> Lane:
        """Take in what was there when the queue was opened."""
        lane = self._lane(waiting.target)
        lane.more = True
        self._add(lane, waiting.count, waiting.size)
        return lane

    def of(self, name: str) -> list[Lane]:
        """Return the lanes of one function."""
        return [lane for lane in self._lanes.values() if lane.name == name]

    def take(self, target: str, size: int) -> Lane:
        """Count one more event; return its lane. Raises `QueueFull`."""
        settings, lane = self._settings, self._lanes.get(target)
        count, held = (0, 0) if lane is None else (lane.count, lane.size)
        if self.count >= settings.count:
            raise QueueFull(f"{settings.count} events wait already")
        if self.size + size > int(settings.bytes):
            raise QueueFull(f"the events that wait take {self.size} of {settings.bytes} bytes")
        if count >= max(1, int(settings.count * settings.share)):
            raise QueueFull(f"{count} events of this function wait already")
        if held + size > max(size, int(int(settings.bytes) * settings.share)):
            raise QueueFull(f"the events of this function that wait take {held} bytes")
        lane = lane or self._lane(target)
        self._add(lane, 1, size)
        return lane

    def give(self, lane: Lane, size: int) -> None:
        """Count one event less."""
        self._add(lane, -1, -size)
        if not lane.count:
            lane.stop()
            self._lanes.pop(lane.target, None)

    def _lane(self, target: str) -> Lane:
        return self._lanes.setdefault(target, Lane(target))

    def _add(self, lane: Lane, count: int, size: int) -> None:
        lane.count += count
        lane.size += size
        self.count += count
        self.size += size
