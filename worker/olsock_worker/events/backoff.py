"""How long to wait before something is tried again."""

from __future__ import annotations

import random

_SPREAD = 0.25  # of a wait, either way: what failed together is not to come back together


def wait(first: float, times: int, most: float) -> float:
    """Return seconds: `first` after one failure, twice that for each further one, `most` in the end, with some jitter."""
    doubled = min(most, first * 2.0 ** min(times - 1, 64))
    return min(most, doubled * random.uniform(1 - _SPREAD, 1 + _SPREAD))
