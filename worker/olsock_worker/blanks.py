"""How many blanks a zygote keeps: follows the demand for it, on the broker's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from olsock_worker.policy.demand import Demand


class Blanks:
    """Of one zygote. `keep` is called with another number whenever there should be more or fewer."""

    def __init__(self, most: int, least: int, keep: Callable[[int], None]) -> None:
        """`most` and `least` bound the number; it begins with the least."""
        self.count = least
        self._most, self._least, self._keep = most, least, keep
        self._demand = Demand(most)
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        """Note a start."""
        if self._most:
            self._demand.started(monotonic())
            self._size()

    def _size(self) -> None:
        """Keep as many as the demand says, and look again when it will have fallen."""
        self.stop()
        now = monotonic()
        wanted = self._demand.blanks(now)
        if wanted:
            delay = max(0.01, self._demand.changes(now) - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self._size)
        count = max(wanted, self._least)
        if count != self.count:
            self.count = count
            self._keep(count)

    def again(self) -> None:
        """Note that there is another zygote, which keeps only the least yet."""
        if self.count != self._least:
            self._keep(self.count)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
