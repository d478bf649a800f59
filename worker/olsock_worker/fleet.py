"""All instances of all functions: how many there may be, who is frozen, who has to go, and whose time is up."""

from __future__ import annotations

import asyncio
import select
from collections import Counter, deque
from collections.abc import Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import psutil

from olsock_worker import broker_protocol
from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Done, Learnt, OomKills, Start, Started, Stop
from olsock_worker.concurrency import Concurrency
from olsock_worker.handles import Handles
from olsock_worker.instances import NEVER, Instance, State
from olsock_worker.keeper import Keeper
from olsock_worker.policy.gdsf import Gdsf, Valued, Worth

if TYPE_CHECKING:
    from collections.abc import Callable

    from olsock import Ready
    from olsock_worker.functions import Function
    from olsock_worker.registry import Deployment
    from olsock_worker.settings import Settings

_AFTERGLOW = 0.001  # seconds from a reply to the end of an instance that is not used again
_BEAT = 0.05  # seconds; how late a time-out may be noticed
_MEMORY_AGE = 0.25
_SLACK = 3.0  # seconds that the broker gets beyond the start's own time-out


class Evictable(Valued, Protocol):
    """What gives its memory back when it is asked to: an instance that idles, a node of the zygote tree."""

    @property
    def evictable(self) -> bool:
        """Whether it may go now."""

    def evict(self) -> None:
        """Go. Its memory no longer counts from here on."""


class _Starting:
    """A start that the broker has not answered yet."""

    __slots__ = ("ahead", "asked", "deadline", "deployment", "function")

    def __init__(self, function: Function, deployment: Deployment, timeout: float, ahead: bool) -> None:
        self.ahead = ahead  # of a call
        self.function = function
        self.deployment = deployment
        self.asked = monotonic()
        self.deadline: float = monotonic() + timeout


class Fleet:
    """Makes, freezes, times, evicts and counts instances."""

    def __init__(self, settings: Settings, broker: BrokerClient) -> None:
        total = psutil.virtual_memory().total
        self.settings = settings
        self.functions: dict[str, Function] = {}
        self.instances: set[Instance] = set()
        self.nodes: set[Evictable] = set()  # of the zygote tree: the size of each counts in the memory budget
        self.values = Gdsf()
        self.concurrency = Concurrency(settings.concurrent_executions)
        self.evicted = Counter({"instances": 0, "nodes": 0})
        self.keeper = Keeper(settings)
        self._broker = broker
        self._starting: set[_Starting] = set()
        self._reserved = 0  # sum of the memory limits of all instances, starting ones included
        self._budget = int(settings.memory_budget) or 2 * total
        self._floor = int(settings.memory_floor) or total // 16
        self._available = (0.0, 0)
        self._grace: deque[Instance] = deque()  # idle ones in the order in which they became idle
        self._freed: list[Instance] = []
        self._grace_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._oom = select.epoll()
        self._loop.add_reader(self._oom.fileno(), self._on_oom)

    # -- starting -----------------------------------------------------------------------------------------------------

    def start(self, function: Function, ahead: Worth | None = None) -> bool:
        """Ask for one more instance of `function`; False if the host is full even after what can be evicted.

        One that is started `ahead` of a call makes nobody go who is worth as much as it will be.
        """
        deployment = function.deployment
        config = deployment.config
        if not self._room(config.memory, ahead):
            return False
        starting = _Starting(function, deployment, self.settings.start_timeout + _SLACK, ahead is not None)
        message = Start(
            id=self._broker.number(),
            code=deployment.path,
            handler=config.handler,
            env=config.environment,
            memory=config.memory,
            tmpfs_size=config.tmpfs_size,
            pids=config.pids,
            cpus=config.ceiling,
            imports=config.imports,
            zygote=config.zygote,
            contract=config.contract,
            root_path=deployment.root_path,
            installation=deployment.installation,
            layers=deployment.layers,
        )
        if not self._broker.request(message, lambda reply, fds: self._started(starting, reply, fds)):
            return False
        self._starting.add(starting)
        self._reserved += config.memory
        self.wake()
        return True

    def _started(self, starting: _Starting, reply: Reply, fds: list[int]) -> None:
        late = starting not in self._starting
        if isinstance(reply, Started) and not late and fds:
            self._starting.discard(starting)
            instance = Instance(
                reply.instance,
                Handles.of(fds, reply.events, reply.memory, reply.peak),
                starting.function,
                starting.deployment,
                reply.origin,
                starting.asked,
            )
            self.instances.add(instance)
            starting.function.stats.starts[reply.origin] += 1
            instance.ahead = starting.ahead
            if instance.events >= 0:
                self._oom.register(instance.events, select.EPOLLPRI)
            starting.function.arrived(instance)
            return
        broker_protocol.close_all(fds)
        if isinstance(reply, Started):
            self._stop(reply.instance)
        if not late:
            self._give_up(starting, "start_failed", getattr(reply, "message", "too many open files"))

    def _give_up(self, starting: _Starting, kind: str, message: str) -> None:
        self._starting.discard(starting)
        self._reserved -= starting.deployment.config.memory
        starting.function.stats.keep.misses += starting.ahead
        starting.function.start_failed(starting.deployment, kind, message)

    def _room(self, memory: int, ahead: Worth | None) -> bool:
        """Make room for one more instance, at the cost of those whose loss costs least."""
        limit = inf if ahead is None else ahead.value()
        while len(self.instances) + len(self._starting) >= self.settings.instances:
            if not self._evict(self.instances, limit):
                return False
        if not self.admit(memory, limit):
            return False
        # Memory comes back only some time after an eviction, so one start costs one eviction at most.
        return not self._short() or self._evict((*self.instances, *self.nodes), limit)

    def admit(self, memory: int, limit: float = inf) -> bool:
        """Evict until the budget has `memory` bytes left, but nothing that is worth `limit` or more; False if it has not."""
        if memory > self._budget:
            return False  # whoever had to go
        while self._reserved + sum(node.worth.size for node in self.nodes) + memory > self._budget:
            if not self._evict((*self.instances, *self.nodes), limit):
                return False
        return True

    def _short(self) -> bool:
        now = monotonic()
        if now - self._available[0] > _MEMORY_AGE:
            self._available = (now, psutil.virtual_memory().available)
        return self._available[1] < self._floor

    def _evict(self, things: Iterable[Evictable], limit: float = inf) -> bool:
        """End the one of `things` that is worth least, if that is less than `limit`."""
        waiting = [each for each in things if each.evictable]
        now = monotonic()
        for each in waiting:
            if isinstance(each, Instance) and each.state is State.IDLE:  # it worked a moment ago
                self.values.seen(each.worth)
                each.measure(now)
        victim = self.values.least(waiting)
        if victim is None or victim.worth.value() >= limit:
            return False
        self.values.evicted(victim.worth)
        self.evicted["instances" if isinstance(victim, Instance) else "nodes"] += 1
        self.nodes.discard(victim)
        victim.evict()
        return True

    def learnt(self, instance: Instance, ready: Ready) -> None:
        """Tell the broker what an instance has imported of packages, for the trees."""
        deployment = instance.deployment
        if deployment.packages and deployment.config.zygote != "off":
            message = Learnt(id=self._broker.number(), instance=instance.id, imports=ready.imports, used=ready.used)
            self._broker.request(message, lambda _reply, _fds: None)  # one that gets lost is no loss

    # -- ending -------------------------------------------------------------------------------------------------------

    def end(self, instance: Instance) -> None:
        """Kill an instance, and have the broker remove what is left of it."""
        if instance in self.instances:
            self.instances.discard(instance)
            self.keeper.forget(instance)
            self._reserved -= instance.deployment.config.memory
            if instance.events >= 0:
                self._oom.unregister(instance.events)
            instance.kill()
            instance.close()
            self._stop(instance.id)

    def _stop(self, number: int) -> None:
        message = Stop(id=self._broker.number(), instance=number)
        if not self._broker.request(message, lambda _reply, _fds: None):
            self._loop.call_later(_BEAT, self._stop, number)

    # -- memory -------------------------------------------------------------------------------------------------------

    def oom_kills(self, instance: Instance, then: Callable[[int], None]) -> None:
        """Find out how many processes of an instance were killed for memory, and call `then` with the number."""
        kills = instance.oom_kills()
        if kills is not None:
            then(kills)
            return
        message = OomKills(id=self._broker.number(), instance=instance.id)
        if not self._broker.request(message, lambda reply, _fds: then(reply.value if isinstance(reply, Done) else 0)):
            then(0)

    def _on_oom(self) -> None:
        ready = {fd for fd, _ in self._oom.poll(0)}
        for instance in [each for each in self.instances if each.events in ready]:
            if instance.oom_kills():
                instance.oom = True  # retired after the call in hand, if it lives that long
            if instance.oom and instance.state in (State.IDLE, State.FROZEN):
                instance.function.evicted(instance)

    # -- time ---------------------------------------------------------------------------------------------------------

    def retire_soon(self, instance: Instance) -> None:
        """End an instance that has served its one call, once the client has its reply: a process that ends keeps a
        processor busy, on which the client may be waiting."""
        self._loop.call_later(_AFTERGLOW, instance.function.evicted, instance)

    def freed(self, instance: Instance) -> None:
        """Note that an instance has sent its reply, but that its output may not have been read.

        What it printed before the reply is ready to be read in the same round of the event loop, which reads it under
        the right request without our asking. Only an instance that works again within the round has to be asked.
        """
        instance.output.fresh = True
        if not self._freed:
            self._loop.call_soon(self._settle)
        self._freed.append(instance)

    def _settle(self) -> None:
        for instance in self._freed:
            instance.settle()
        self._freed.clear()

    def idle(self, instance: Instance) -> None:
        """Note that an instance has nothing to do; after its grace it is frozen."""
        instance.idle_since = monotonic()
        if not instance.freezing:
            instance.freezing = True
            self._grace.append(instance)
            if self._grace_timer is None:
                self._grace_timer = self._loop.call_later(self.settings.grace, self._freeze)

    def _freeze(self) -> None:
        """Freeze those whose grace has ended. One timer serves them all, and none runs when nobody waits."""
        now, grace = monotonic(), self.settings.grace
        for _ in range(len(self._grace)):
            instance = self._grace.popleft()
            if instance.state is not State.IDLE:
                instance.freezing = False
            elif instance.idle_since + grace <= now:
                instance.freezing = False
                self.values.seen(instance.worth)
                if self.keeper.rest(instance, now):
                    instance.measure(now)
                    instance.freeze()
            else:
                self._grace.append(instance)
        self._grace_timer = self._loop.call_later(max(grace, 0.005), self._freeze) if self._grace else None

    def wake(self) -> None:
        """See to it that deadlines are looked at."""
        if self._beat_timer is None:
            self._beat_timer = self._loop.call_later(_BEAT, self._beat)

    def _beat(self) -> None:
        now = monotonic()
        waiting = bool(self._starting)
        for starting in [each for each in self._starting if each.deadline < now]:
            self._give_up(starting, "start_timeout", "the sandbox was not made in time")
        for instance in list(self.instances):
            instance.output.beat()
            if instance.deadline < now:
                instance.function.timed_out(instance)
            elif instance.deadline != NEVER or instance.output.muted:
                waiting = True
        for function in list(self.functions.values()):
            if function.queue:
                function.expire(monotonic())
                waiting = True
        if self.instances and self._short():
            waiting = self._evict((*self.instances, *self.nodes)) or waiting
        self._beat_timer = self._loop.call_later(_BEAT, self._beat) if waiting else None

    # -- what is shown ------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, int]:
        """Count instances by state."""
        counts = Counter(instance.state.value for instance in self.instances)
        counts[State.STARTING.value] += len(self._starting)
        return {state.value: counts[state.value] for state in State if state is not State.DYING}

    @property
    def running(self) -> int:
        """How many calls are in hand or queued."""
        return sum(each.call is not None for each in self.instances) + sum(
            len(function.queue) for function in self.functions.values()
        )
