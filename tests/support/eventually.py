"""Waiting for what nothing tells: what the kernel or another process does in its own time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], timeout: float = 10.0) -> T:
    """Call `probe` until its result is true or the time is over, and return the last result: assert on that."""
    end = time.monotonic() + timeout
    pause = 1
    while not (result := probe()) and time.monotonic() < end:
        select.poll().poll(pause)
        pause = min(100, pause * 2)
    return result


def passes(seconds: float) -> None:
    """Let time pass, for tests of what must *not* happen meanwhile. Nothing may depend on how much."""
    select.poll().poll(int(seconds * 1000))
