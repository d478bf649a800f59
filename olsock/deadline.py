"""Deadlines on the monotonic clock: a step of the wall clock expires nothing."""

from __future__ import annotations

import time


class Deadline:
    """A moment `seconds` from now; None is never."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def seconds(self) -> float | None:
        """What is left, not below zero; None for ever."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def milliseconds(self) -> int | None:
        """What is left, rounded up, as poll(2) takes it."""
        left = self.seconds()
        return None if left is None else int(left * 1000 + 0.999)

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self._at is not None and time.monotonic() >= self._at
