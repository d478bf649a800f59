"""When a function that could not be made ready is tried again: after pauses that double, until it works."""

from __future__ import annotations

FIRST, LONGEST = 0.25, 60.0  # seconds


class Retries:
    """Of one version of a function. Times are monotonic."""

    __slots__ = ("_until", "failures")

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self._until = 0.0

    def failed(self, now: float) -> float:
        """Note a failure; return for how many seconds nothing is to be tried."""
        pause = min(LONGEST, FIRST * float(1 << min(self.failures, 16)))
        self.failures += 1
        self._until = now + pause
        return pause

    def worked(self) -> None:
        """Note a success."""
        self.failures, self._until = 0, 0.0

    def pause(self, now: float) -> float:
        """Return for how many more seconds nothing is to be tried."""
        return max(0.0, self._until - now) if self.failures else 0.0
