"""Counts and latency histograms of fixed size: recording costs a few hundred nanoseconds and memory never grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from olsock_worker.policy.keepalive import Window

if TYPE_CHECKING:
    from olsock_worker.broker_protocol import ZygoteState

_SUB = 4  # bits: 16 buckets to a power of two, so a quantile is within about 3 % of the truth
_BUCKETS = (40 - _SUB) << _SUB


class Histogram:
    """Log-linear histogram of durations in seconds, kept in whole microseconds."""

    __slots__ = ("_counts", "count", "largest", "total")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, seconds: float) -> None:
        """Record one duration."""
        value = int(seconds * 1e6)
        shift = value.bit_length() - _SUB - 1
        if shift <= 0:
            index = value if value > 0 else 0
        else:
            index = (shift << _SUB) + (value >> shift)
            if index >= _BUCKETS:
                index = _BUCKETS - 1
        self._counts[index] += 1
        self.count += 1
        self.total += seconds
        if seconds > self.largest:
            self.largest = seconds

    def quantile(self, fraction: float) -> float:
        """Return the duration below which `fraction` of the records lie (middle of its bucket), 0.0 without records."""
        rank, seen = max(1, round(fraction * self.count)), 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return min(_middle(index) / 1e6, self.largest)
        return 0.0

    def below(self, limit: int) -> int:
        """Return how many records are shorter than `limit` microseconds, which is a power of two, 16 at least."""
        if limit & (limit - 1) or limit < 1 << _SUB:
            raise ValueError(f"{limit}: not a power of two, or below {1 << _SUB}")
        shift = limit.bit_length() - _SUB - 1
        return sum(self._counts[: min(_BUCKETS, (shift << _SUB) + (1 << _SUB))])

    def join(self, other: Histogram) -> None:
        """Add what another has recorded."""
        self._counts = [own + more for own, more in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        """Seconds; 0.0 without records."""
        return self.total / self.count if self.count else 0.0

    def summary(self) -> dict[str, float | int]:
        """Return what `/stats` shows, in milliseconds."""
        return {
            "count": self.count,
            "mean_ms": round(self.mean * 1e3, 3),
            "p50_ms": round(self.quantile(0.50) * 1e3, 3),
            "p90_ms": round(self.quantile(0.90) * 1e3, 3),
            "p99_ms": round(self.quantile(0.99) * 1e3, 3),
            "max_ms": round(self.largest * 1e3, 3),
        }


def _middle(index: int) -> float:
    """Return the middle of a bucket in microseconds."""
    shift = (index >> _SUB) - 1
    if shift <= 0:
        return float(index)
    low = (index - (shift << _SUB)) << shift
    return low + (1 << shift) / 2


class KeepStats:
    """How a function is kept while it is idle, and what came of it."""

    __slots__ = ("expired", "hits", "misses", "prewarms", "wasted", "window")

    def __init__(self) -> None:
        self.window: Window | None = None  # the last that was applied
        self.prewarms = 0  # instances started ahead of a call
        self.hits = 0  # of these, those that took one
        self.misses = 0  # of these, those that ended without one
        self.expired = 0  # instances that were ended because they had idled for long enough
        self.wasted = 0.0  # seconds that instances idled before they were ended, for whatever reason

    def summary(self) -> dict[str, object]:
        """Return what `/stats` shows."""
        window = self.window
        return {
            "window": None
            if window is None
            else {
                "by": "history" if window.learnt else "fixed",
                "prewarm_s": round(window.prewarm, 3),
                "keep_s": round(window.keep, 3),
            },
            "prewarms": self.prewarms,
            "hits": self.hits,
            "misses": self.misses,
            "expired": self.expired,
            "wasted_s": round(self.wasted, 3),
        }


class FunctionStats:
    """What is counted for one function."""

    __slots__ = ("calls", "cold", "keep", "memory", "queue", "requests", "run", "start", "starts", "statuses", "total")

    def __init__(self) -> None:
        self.requests = 0
        self.cold = 0  # requests that waited for a sandbox made for them
        self.statuses: Counter[int] = Counter()
        self.starts: Counter[str] = Counter()  # new instances by what they began from: an `Origin`
        self.calls: Counter[str] = Counter()  # requests by where their instance came from: an `Origin`, warm or thawed
        self.total = Histogram()  # request complete to reply written
        self.queue = Histogram()  # waiting for an instance, whether one was being made or busy
        self.start = Histogram()  # asking for a sandbox to its handler being imported
        self.run = Histogram()  # request sent to reply received
        self.keep = KeepStats()
        self.memory = 0  # bytes charged to the instance that was measured last

    @classmethod
    def together(cls, others: Iterable[FunctionStats]) -> FunctionStats:
        """Return the sum of what is counted for several functions, but for how they are kept."""
        found = cls()
        for other in others:
            found.requests += other.requests
            found.cold += other.cold
            found.statuses += other.statuses
            found.starts += other.starts
            found.calls += other.calls
            found.memory = max(found.memory, other.memory)
            for name in ("total", "queue", "start", "run"):
                getattr(found, name).join(getattr(other, name))
        return found

    def summary(self) -> dict[str, object]:
        """Return what `/stats` shows."""
        return {
            "requests": self.requests,
            "cold": self.cold,
            "starts": dict(sorted(self.starts.items())),
            "calls": dict(sorted(self.calls.items())),
            "memory_bytes": self.memory,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "total": self.total.summary(),
            "queue": self.queue.summary(),
            "start": self.start.summary(),
            "run": self.run.summary(),
            "keep_alive": self.keep.summary(),
        }


class Gains:
    """What zygotes were good for, by their kind, those that have gone included."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    def note(self, before: ZygoteState | None, now: ZygoteState) -> None:
        """Add what a zygote has been good for since it was told of before."""
        if now.state == "gone":
            return
        hits, misses = (0, 0) if before is None else (before.hits, before.misses)
        self.hits[now.kind] += max(0, now.hits - hits)  # less than before: it was made anew
        self.misses[now.kind] += max(0, now.misses - misses)
