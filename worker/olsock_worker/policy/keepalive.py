"""How long an idle function stays, and when it is started ahead of its next call.

The hybrid histogram policy of M. Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless
Workload at a Large Cloud Provider", USENIX ATC 2020, section 4. Where they forecast a time series, because most idle
times are longer than the histogram, this falls back to the fixed window.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

BINS = 240  # of one minute in the paper: four hours
LEAST_HISTORY = 10  # idle times; the paper gives no number
LEAST_VARIATION = 2.0  # coefficient of variation of the bins' counts: below, idle times are all over the histogram
HEAD, TAIL = 0.05, 0.99
MARGIN = 0.10
_FULL = 1000  # idle times after which all counts are halved: what was long ago fades


@dataclass(frozen=True, slots=True)
class Window:
    """What to do with an idle function, in seconds since its last call ended."""

    prewarm: float  # end it at once and start it again then; 0: keep it from the beginning
    keep: float  # end it, or what was started ahead, then
    learnt: bool = False  # from its own history


class History:
    """Histogram of the idle times of one function, in bins of `width` seconds. Its size is fixed."""

    __slots__ = ("_counts", "_outside", "_squares", "_total", "_width", "_window", "width")

    def __init__(self, width: float) -> None:
        self.width = width
        self._counts = [0] * BINS
        self._total = 0  # in the bins
        self._squares = 0  # sum of the squares of the counts
        self._outside = 0  # longer than all bins
        self._window: Window | None = None

    def __len__(self) -> int:
        return self._total + self._outside

    def add(self, idle: float) -> None:
        """Record how long the function had been idle when a call came."""
        index = int(idle / self.width)
        if index >= BINS:
            self._outside += 1
        else:
            count = self._counts[index]
            self._counts[index] = count + 1
            self._squares += 2 * count + 1
            self._total += 1
        self._window = None
        if self._total + self._outside >= _FULL:
            self._halve()

    def _halve(self) -> None:
        self._counts = [count // 2 for count in self._counts]
        self._outside //= 2
        self._total = sum(self._counts)
        self._squares = sum(count * count for count in self._counts)

    @property
    def variation(self) -> float:
        """Coefficient of variation of the bins' counts: 0 if all are equal, sqrt(BINS - 1) if one has everything."""
        if not self._total:
            return 0.0
        mean = self._total / BINS
        return sqrt(max(0.0, self._squares / BINS - mean * mean)) / mean

    @property
    def representative(self) -> bool:
        """Whether the past tells enough of the next idle time."""
        return len(self) >= LEAST_HISTORY and 2 * self._outside <= len(self) and self.variation >= LEAST_VARIATION

    def window(self) -> Window | None:
        """Return what the history says, None if it does not say enough."""
        if self._window is None and self.representative:
            # The head is rounded down to the beginning of its bin, the tail up to the end of its own.
            head = self._bin(HEAD) * self.width * (1 - MARGIN)
            tail = (self._bin(TAIL) + 1) * self.width * (1 + MARGIN)
            self._window = Window(head, tail, True)
        return self._window

    def _bin(self, fraction: float) -> int:
        """Index of the bin below whose end `fraction` of what is in the bins lies."""
        rank, seen = max(1.0, fraction * self._total), 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return index
        return BINS - 1


class KeepAlive:
    """The policy in force: what to do with an idle function, given its history."""

    def __init__(self, mode: str | float, fixed: float, width: float) -> None:
        """`mode` is "hybrid", "fixed" or the seconds of a fixed window; `fixed` the window without enough history."""
        self.hybrid = mode == "hybrid"
        self._fixed = Window(0.0, fixed if isinstance(mode, str) else float(mode))
        self._width = width

    def history(self) -> History:
        """Begin the history of a function."""
        return History(self._width)

    def window(self, history: History) -> Window:
        """Say how long a function with this history stays, and when it is due."""
        return (history.window() if self.hybrid else None) or self._fixed
