"""How long idle instances are kept, and which functions get one ahead of their next call."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker.instances import Instance
from olsock_worker.policy.keepalive import KeepAlive
from olsock_worker.policy.timers import Timers

if TYPE_CHECKING:
    from olsock_worker.functions import Function
    from olsock_worker.settings import Settings


class Keeper:
    """Ends what has idled for long enough, and starts what is due. Its one timer runs only if something will be due.

    Nothing of it is on the way of a call: instances come here when their grace is over, and what a call has changed
    meanwhile is found when their time comes.
    """

    def __init__(self, settings: Settings) -> None:
        self.policy = KeepAlive(settings.keep_alive, settings.keep_alive_window, settings.keep_alive_bin)
        self._timers: Timers[Instance | Function] = Timers()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._loop = asyncio.get_running_loop()

    def rest(self, instance: Instance, now: float) -> bool:
        """Decide on an instance that has idled for its grace: it stays for a while, or False, it is ended here."""
        function = instance.function
        function.rests(instance, now)
        window = function.window()
        due = function.rested + window.prewarm
        if window.prewarm and function.rested and due > now and not instance.unused and instance.evictable:
            self._set(function, due)
            function.unload()
            return False
        self._set(instance, self._end(instance))
        return True

    def forget(self, holder: Instance | Function) -> None:
        """Drop what was planned for one that has gone."""
        self._timers.cancel(holder)

    def _end(self, instance: Instance) -> float:
        """When an idle instance will have been kept long enough."""
        function = instance.function
        since = function.rested if function.rested and instance.unused else instance.idle_since
        return since + function.window().keep

    def _set(self, holder: Instance | Function, when: float) -> None:
        self._timers.set(holder, when)
        self._arm()

    def _arm(self) -> None:
        when = self._timers.next()
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._loop.call_later(max(0.0, when - monotonic()), self._on_time)

    def _on_time(self) -> None:
        self._timer, self._timer_at = None, inf
        now = monotonic()
        for holder in list(self._timers.due(now)):
            if not isinstance(holder, Instance):
                holder.prewarm()
            elif holder.evictable:  # or else it works, and comes back when it has idled again
                end = self._end(holder)
                if end > now:
                    self._timers.set(holder, end)
                else:
                    holder.function.expired(holder)
        self._arm()
