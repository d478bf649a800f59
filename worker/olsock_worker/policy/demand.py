"""How many blanks a zygote keeps: children that wait, forked, for a function to start.

As many as were started lately within the time that it takes to make one more, so that a burst like the last one finds
its blanks; fewer after a while in which fewer were needed, and none for who is not used.
"""

from __future__ import annotations

from collections import deque
from math import ceil, exp2, inf, log2

HALF_LIFE = 30.0  # seconds after which a peak counts half
_AFTER = 1e-3  # seconds by which `changes` is late, so that rounding does not make it early
_NONE = 0.5  # a peak that has faded to this is over


class Demand:
    """Starts of one zygote, and what follows for its blanks. Times are seconds of any clock that does not go back."""

    __slots__ = ("_half_life", "_most", "_peak", "_peak_at", "_recent", "refill")

    def __init__(self, most: int, refill: float = 0.05, half_life: float = HALF_LIFE) -> None:
        """`most` bounds the number of blanks; `refill` is the time until one that was taken is replaced."""
        self.refill = refill
        self._most = most
        self._half_life = half_life
        self._recent: deque[float] = deque(maxlen=max(1, most))  # starts of the last refill time; no more ever count
        self._peak = 0
        self._peak_at = 0.0

    def started(self, now: float) -> None:
        """Note that a function was started, from a blank or without one."""
        recent = self._recent
        recent.append(now)
        while recent[0] < now - self.refill:
            recent.popleft()
        if len(recent) >= self._faded(now):
            self._peak, self._peak_at = len(recent), now

    def refilled(self, seconds: float) -> None:
        """Note how long it took to replace a blank. One slow time does not change everything."""
        self.refill += (seconds - self.refill) / 4

    def blanks(self, now: float) -> int:
        """Return how many blanks to keep."""
        faded = self._faded(now)
        return min(ceil(faded), self._most) if faded > _NONE else 0

    def changes(self, now: float) -> float:
        """Return a time at which `blanks` will be lower if nothing is started until then; infinity if never."""
        keep = self.blanks(now)
        if not keep:
            return inf
        below = keep - 1 if keep > 1 else _NONE
        return self._peak_at + self._half_life * log2(self._peak / below) + _AFTER

    def _faded(self, now: float) -> float:
        if not self._peak:
            return 0.0
        return self._peak * exp2(-max(0.0, now - self._peak_at) / self._half_life)
