"""Instances of one version that are kept initialised: started before anybody calls, replaced when they end.

One that cannot be had is tried again with growing waits; so is one that ends before it has taken a call, lest a function that
dies of itself is started without end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.functions import Function
    from olsock_worker.instances import Instance

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between attempts
_FULL = "this host has no room for more now"


class Provision:
    """What one function is to have."""

    def __init__(self, function: Function) -> None:
        self.wanted = 0
        self.failure = ""  # why there are not as many as wanted
        self._function = function
        self._wait = _FIRST_WAIT
        self._timer: asyncio.TimerHandle | None = None

    def want(self, count: int) -> None:
        """Keep so many from now on."""
        fewer, self.wanted = count < self.wanted, count
        if fewer:
            self._function.release_idle()
        if not count:
            self._settle()
        self.fill()

    def fill(self) -> None:
        """Start what is missing, unless it is to be waited for that."""
        function = self._function
        while self._timer is None and function.present < self.wanted:
            if not function.start_ahead():
                self.failed(_FULL)

    def failed(self, why: str) -> None:
        """Note that one could not be had, and try again after a while."""
        if self.wanted:
            self.failure = why
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._wait, self._again)
                self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def ended(self, instance: Instance, why: str) -> None:
        """Note that an instance has ended by itself."""
        if instance.worth.uses == 1:  # nobody has called it
            self.failed(why)

    def ready(self, instance: Instance) -> None:
        """Note that an instance is free: if it has served it is sound, and it may be that none is missing now."""
        if instance.worth.uses > 1:
            self._wait = _FIRST_WAIT
        if self.failure and self._function.initialised >= self.wanted:
            self.failure = ""

    def holds(self, instance: Instance) -> bool:
        """Say whether an instance has to stay."""
        function = self._function
        return bool(self.wanted) and instance.deployment is function.deployment and function.present <= self.wanted

    def _again(self) -> None:
        self._timer = None
        self.fill()

    def _settle(self) -> None:
        self.failure, self._wait = "", _FIRST_WAIT
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
