"""A function: its current version, its queue, and its instances."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from olsock.runtime import wire
from olsock_worker.concurrency import OVER_RESERVED
from olsock_worker.instances import Instance, State
from olsock_worker.logs import FunctionLog, WorkerLog
from olsock_worker.outcomes import RETRY, Outcomes
from olsock_worker.policy.retries import Retries
from olsock_worker.provision import Provision

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.fleet import Fleet
    from olsock_worker.policy.keepalive import Window
    from olsock_worker.registry import Deployment

_HEADERS_LIMIT = wire.MAX_META // 2  # characters; each may become two bytes of JSON


class Function(Outcomes):
    """Sends calls to instances, and makes as many instances as there are calls waiting, at once."""

    def __init__(self, deployment: Deployment, fleet: Fleet, log: FunctionLog, worker_log: WorkerLog) -> None:
        super().__init__(deployment, fleet, log, worker_log)
        self.queue: deque[Call] = deque()
        self.contract = ""  # how instances of this version want to be asked; "": none has said so yet
        self.error = ""  # why the newest version in the registry is not the one that runs
        self.rested = 0.0  # since when nobody has called it, if for longer than its grace; or else 0.0
        self.history = fleet.keeper.policy.history()
        self.live: dict[str, int] = {}  # version -> instances, starting ones included
        self.provision = Provision(self)
        self._idle: list[Instance] = []  # the latest used last: it is the likeliest to be warm
        self._starting = 0
        self._unready = 0  # instances that are being made, or import their module

    @property
    def count(self) -> int:
        """How many instances there are, starting ones included."""
        return sum(self.live.values())

    @property
    def present(self) -> int:
        """How many instances of the current version there are, starting ones included."""
        return self.live.get(self.deployment.version, 0)

    @property
    def initialised(self) -> int:
        """How many instances of the current version have imported their handler."""
        return len(self._initialised())

    @property
    def unoccupied(self) -> int:
        """How many of these have no call."""
        return sum(each.call is None for each in self._initialised())

    def _initialised(self) -> list[Instance]:
        return [each for each in self.fleet.instances if each.deployment is self.deployment and each.ready]

    @property
    def _most(self) -> int:
        """How many instances there may be."""
        return max(self.config.concurrency, self.provision.wanted)

    # -- calls coming in ----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Run a call now, or queue it, or refuse it."""
        self.stats.requests += 1
        over = self.fleet.concurrency.begin(self._group)
        if over:
            self._throttle(call, over)
            return
        if self.rested:
            self.history.add(call.received - self.rested)
            self.rested = 0.0
        if len(call.target) + sum(map(len, call.headers.values())) > _HEADERS_LIMIT:
            self.fail(call, 431, "headers_too_large", "request line and headers too large for a function")
            return
        if self._idle:
            call.started = call.received
            self._idle.pop().run(call)
            return
        if self.count >= self._most and len(self.queue) - self._starting >= self.config.queue:
            self.fail(call, 429, "queue_full", f"{self.config.queue} requests wait already", extra=RETRY)
            return
        self.queue.append(call)
        call.on_abandon = self._dropped
        self.fleet.wake()
        self._scale()

    def _throttle(self, call: Call, over: str) -> None:
        whose = "are reserved for it" if over == OVER_RESERVED else "this worker takes"
        message = f"as many calls run or wait as {whose}"
        self.fail(call, 429, "throttled", message, extra=RETRY, name=over)

    def _dropped(self, call: Call) -> None:
        if call.instance is None and call in self.queue:
            self.queue.remove(call)
            self.left()

    def _scale(self) -> None:
        """Start an instance for every waiting call, as far as the caps go; after a failure one alone, and not at once."""
        if self.queue and self.retries.pause(monotonic()):
            self._excuse_all()
            return
        while self._starting < len(self.queue) and self.count < self._most:
            if (self.retries.failures and self._unready) or not self.fleet.start(self):
                break
            self._begun()
        if self.queue and not self.count:
            while self.queue:
                self.fail(self.queue.popleft(), 503, "host_full", "this host has no room for it now", extra=RETRY)
        if self.provision.wanted:
            self.provision.fill()

    def start_ahead(self) -> bool:
        """Start one more instance, for whoever calls; False if there is no room."""
        if not self.fleet.start(self):
            return False
        self._begun()
        return True

    def _begun(self) -> None:
        self._starting += 1
        self._unready += 1
        self._count(self.deployment.version, 1)

    def _excuse_all(self) -> None:
        """Answer what would wait for an instance that is not to be made yet, unless there are others that may serve it."""
        excuse = self._excuse
        while excuse is not None and len(self.queue) > self._starting and self.count == self._unready:
            excuse(self.queue.pop())

    def next_call(self) -> Call | None:
        """Take the call that has waited longest."""
        if not self.queue:
            return None
        call = self.queue.popleft()
        call.started = monotonic()
        self.stats.queue.add(call.started - call.received)
        return call

    # -- instances coming and going -----------------------------------------------------------------------------------

    def arrived(self, instance: Instance) -> None:
        """Take a new instance; it may already work while its handler is being imported."""
        self._starting -= 1
        if instance.deployment is not self.deployment:
            self.retire(instance)
            return
        call = self.next_call()
        if call is not None:
            self.stats.cold += 1
            instance.run(call)

    def start_failed(self, deployment: Deployment, kind: str, message: str) -> None:
        """Answer the first in the queue: each failed start fails one call, so none waits for ever."""
        self._starting -= 1
        self._unready -= 1
        self._count(deployment.version, -1)
        self._worker_log("error", "start_failed", function=self.name, kind=kind, message=message)
        call = self.next_call()
        if call is not None:
            self.fail(call, 503, kind, "a sandbox could not be made", extra=RETRY)
        self.provision.failed(message or kind)
        self._scale()

    def made(self, instance: Instance) -> None:
        """Note that an instance has imported its module."""
        self._unready -= 1
        if self.retries.failures and instance.deployment is self.deployment:
            self.retries.worked()
            asyncio.get_running_loop().call_soon(self._scale)  # once this one has taken a call

    def available(self, instance: Instance) -> None:
        """Give a free instance its next call, or let it idle."""
        if instance.deployment is not self.deployment or instance.oom:
            self.retire(instance)
            return
        if self.provision.wanted:
            self.provision.ready(instance)
        call = self.next_call()
        if call is not None:
            instance.run(call)
        else:
            self._idle.append(instance)
            self.fleet.idle(instance)

    def retire(self, instance: Instance) -> None:
        """End an instance, and replace it if there is work."""
        if instance in self._idle:
            self._idle.remove(instance)
            self.stats.keep.wasted += monotonic() - instance.idle_since
        if instance in self.fleet.instances:
            self._settle(instance)
            self.fleet.end(instance)
            self._unready -= not instance.ready
            self._count(instance.deployment.version, -1)
        self._scale()
        if not self.count and self.fleet.functions.get(self.name) is not self:
            self.log.close()  # it was removed, and this was the last

    def evicted(self, instance: Instance) -> None:
        """End an idle instance because its room is needed, or because it is no longer sound."""
        self.retire(instance)

    def expired(self, instance: Instance) -> None:
        """End an instance that has idled for as long as it is kept."""
        self.stats.keep.expired += 1
        self.retire(instance)

    def rests(self, instance: Instance, now: float) -> None:
        """Note that an instance has idled for its grace; perhaps the function has."""
        self._settle(instance)
        if self.queue or self._starting or len(self._idle) != self.count:
            return
        last = max((each.idle_since for each in self._idle if not each.unused), default=0.0)
        if last and last + self.fleet.settings.grace <= now:
            self.rested = last

    def unload(self) -> None:
        """End all that idles, until it is due again."""
        for instance in list(self._idle):
            if instance.evictable:
                self.expired(instance)

    def release_idle(self) -> None:
        """Have those that idle, and need not stay any more, kept for as long as others are."""
        now = monotonic()
        for instance in list(self._idle):
            if instance in self._idle and instance.state is State.FROZEN:
                self.fleet.keeper.rest(instance, now)

    def _settle(self, instance: Instance) -> None:
        """Count whether an instance that was started ahead was of use, once that is known: when it rests or ends."""
        if instance.ahead and not instance.unused:
            instance.ahead = False
            self.stats.keep.hits += 1
        elif instance.ahead and instance not in self._idle:
            instance.ahead = False
            self.stats.keep.misses += 1

    def window(self) -> Window:
        """Return how long its idle instances stay, and when it is due."""
        self.stats.keep.window = window = self.fleet.keeper.policy.window(self.history)
        return window

    def prewarm(self) -> None:
        """Start an instance ahead of the next call, if that costs nobody who is worth more."""
        if self.count or not self.rested or self.fleet.functions.get(self.name) is not self:
            return  # called, or removed, since
        if self.retries.pause(monotonic()):
            return
        worth = self.fleet.values.new(self.stats.start.mean * 1e3, self.stats.memory or self.config.memory)
        if self.fleet.start(self, worth):
            self.stats.keep.prewarms += 1
            self._begun()

    def update(self, deployment: Deployment) -> None:
        """Go over to another version: calls in hand finish on the old one."""
        self.deployment = deployment
        self.contract = self.error = ""
        self.retries, self._excuse = Retries(), None
        for instance in list(self._idle):
            self.retire(instance)

    def close(self) -> None:
        """Refuse what waits, end what idles; what runs finishes."""
        self.provision.want(0)
        self.fleet.keeper.forget(self)
        while self.queue:
            self.fail(self.queue.popleft(), 404, "unknown_function", "the function was removed")
        for instance in list(self._idle):
            self.retire(instance)
        self.log.close()

    def _count(self, version: str, change: int) -> None:
        count = self.live.get(version, 0) + change
        if count:
            self.live[version] = count
        else:
            self.live.pop(version, None)

    def speaks(self, instance: Instance, contract: str) -> None:
        """Note how instances of this version want to be asked; if they do not agree, each has to say."""
        if instance.deployment is self.deployment:
            self.contract = contract if self.contract in ("", contract) else ""

    def spare(self, instance: Instance) -> None:
        """Take back an instance that was not given its call. In another turn: a queue of such calls may be long."""

        def take() -> None:
            if instance.state is State.IDLE and instance in self.fleet.instances:
                self.available(instance)

        asyncio.get_running_loop().call_soon(take)

    def expire(self, now: float) -> None:
        """Refuse what has waited longer than it could have run."""
        while self.queue and now - self.queue[0].received > self.config.timeout + self.fleet.settings.start_timeout:
            call = self.queue.popleft()
            self.fail(call, 503, "queue_timeout", "no instance became free in time", extra=RETRY)

    @property
    def waiting(self) -> bool:
        """Whether calls wait for an instance."""
        return bool(self.queue)

    def unprovided(self, instance: Instance | None, why: str) -> None:
        """Note that one of the instances that are to be provisioned is not there."""
        if instance is None:
            self.provision.failed(why)
        else:
            self.provision.ended(instance, why)
