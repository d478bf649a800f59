"""A function: its current version, its queue, its instances, and what each end of a call means to the client."""

from __future__ import annotations

import asyncio
from collections import deque
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING

from olsock.runtime import wire
from olsock_worker import responses
from olsock_worker.calls import Failure
from olsock_worker.concurrency import OVER_RESERVED
from olsock_worker.instances import Instance, State
from olsock_worker.logs import FunctionLog, WorkerLog
from olsock_worker.policy.retries import Retries
from olsock_worker.provision import Provision
from olsock_worker.responses import JSON, Error
from olsock_worker.stats import FunctionStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from olsock_worker.calls import Call
    from olsock_worker.fleet import Fleet
    from olsock_worker.instances import HandlerError
    from olsock_worker.ol_yaml import FunctionConfig
    from olsock_worker.policy.keepalive import Window
    from olsock_worker.registry import Deployment

_RETRY = responses.header_lines((responses.RETRY_AFTER,))
_FAULTS = {"init": "could not be imported", "serialize": "returned what is not JSON"}
_WHY = 1000  # characters of why an instance could not be made that are logged
_HEADERS_LIMIT = wire.MAX_META // 2  # characters; each may become two bytes of JSON


class Function:
    """Sends calls to instances, and makes as many instances as there are calls waiting, at once."""

    def __init__(self, deployment: Deployment, fleet: Fleet, log: FunctionLog, worker_log: WorkerLog) -> None:
        self.name = deployment.name
        self.deployment = deployment
        self.fleet = fleet
        self.log = log
        self.stats = FunctionStats()
        self.queue: deque[Call] = deque()
        self.contract = ""  # how instances of this version want to be asked; "": none has said so yet
        self.error = ""  # why the newest version in the registry is not the one that runs
        self.rested = 0.0  # since when nobody has called it, if for longer than its grace; or else 0.0
        self.history = fleet.keeper.policy.history()
        self.live: dict[str, int] = {}  # version -> instances, starting ones included
        self._worker_log = worker_log
        self._idle: list[Instance] = []  # the latest used last: it is the likeliest to be warm
        self._starting = 0
        self.provision = Provision(self)
        self.retries = Retries()
        self._unready = 0  # instances that are being made, or import their module
        self._excuse: Callable[[Call], None] | None = None  # answers as the latest failure to make one was answered
        self._group = self.name.partition(":")[0]  # whose reservation its calls count for

    @property
    def config(self) -> FunctionConfig:
        """The configuration of the current version."""
        return self.deployment.config

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
            self.fail(call, 429, "queue_full", f"{self.config.queue} requests wait already", extra=_RETRY)
            return
        self.queue.append(call)
        call.on_abandon = self._dropped
        self.fleet.wake()
        self._scale()

    def _throttle(self, call: Call, over: str) -> None:
        whose = "are reserved for it" if over == OVER_RESERVED else "this worker takes"
        message = f"as many calls run or wait as {whose}"
        self.fail(call, 429, "throttled", message, extra=_RETRY, name=over)

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
                self.fail(self.queue.popleft(), 503, "host_full", "this host has no room for it now", extra=_RETRY)
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

    def _next(self) -> Call | None:
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
            self._retire(instance)
            return
        call = self._next()
        if call is not None:
            self.stats.cold += 1
            instance.run(call)

    def start_failed(self, deployment: Deployment, kind: str, message: str) -> None:
        """Answer the first in the queue: each failed start fails one call, so none waits for ever."""
        self._starting -= 1
        self._unready -= 1
        self._count(deployment.version, -1)
        self._worker_log("error", "start_failed", function=self.name, kind=kind, message=message)
        call = self._next()
        if call is not None:
            self.fail(call, 503, kind, "a sandbox could not be made", extra=_RETRY)
        self.provision.failed(message or kind)
        self._scale()

    def made(self, instance: Instance) -> None:
        """Note that an instance has imported its module."""
        self._unready -= 1
        if self.retries.failures and instance.deployment is self.deployment:
            self.retries.worked()
            asyncio.get_running_loop().call_soon(self._scale)  # once this one has taken a call

    def _unmade(self, instance: Instance, why: str, excuse: Callable[[Call], None]) -> None:
        """Note that an instance could not be made ready, and what is to be said of that until it is tried again."""
        if instance.deployment is self.deployment:
            pause, self._excuse = self.retries.failed(monotonic()), excuse
            failures = self.retries.failures
            self._worker_log(
                "warning", "init_failed", function=self.name, why=why[:_WHY], failures=failures, retry_s=pause
            )

    def available(self, instance: Instance) -> None:
        """Give a free instance its next call, or let it idle."""
        if instance.deployment is not self.deployment or instance.oom:
            self._retire(instance)
            return
        if self.provision.wanted:
            self.provision.ready(instance)
        call = self._next()
        if call is not None:
            instance.run(call)
        else:
            self._idle.append(instance)
            self.fleet.idle(instance)

    def _retire(self, instance: Instance) -> None:
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
        self._retire(instance)

    def expired(self, instance: Instance) -> None:
        """End an instance that has idled for as long as it is kept."""
        self.stats.keep.expired += 1
        self._retire(instance)

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
            self._retire(instance)

    def close(self) -> None:
        """Refuse what waits, end what idles; what runs finishes."""
        self.provision.want(0)
        self.fleet.keeper.forget(self)
        while self.queue:
            self.fail(self.queue.popleft(), 404, "unknown_function", "the function was removed")
        for instance in list(self._idle):
            self._retire(instance)
        self.log.close()

    def _count(self, version: str, change: int) -> None:
        count = self.live.get(version, 0) + change
        if count:
            self.live[version] = count
        else:
            self.live.pop(version, None)

    # -- how calls end ------------------------------------------------------------------------------------------------

    def answered(
        self, instance: Instance, call: Call, status: int, content_type: bytes, body: bytes, clean: bool
    ) -> None:
        """Pass a reply on; the instance first, so that it works again while the reply is written, if it is to work again."""
        if clean and not self.config.reuse_sandbox and not self.queue:
            self.finish(call, status, content_type, body)
            self.fleet.retire_soon(instance)
            return
        self._after(instance, clean)
        self.finish(call, status, content_type, body)

    def passed_on(
        self, instance: Instance, call: Call, status: int, send: Callable[[], None] | None, clean: bool
    ) -> None:
        """Let the end of a web application's answer go out, as `answered` does; `send` is None if it cannot."""
        if send is None:
            bad = "the function's content-length is not the length of its reply"
            call.failure = Failure("bad_reply", "", bad)  # before the instance works again: see Reports
        soon = clean and not self.config.reuse_sandbox and not self.queue
        if soon:
            self.fleet.retire_soon(instance)
        else:
            self._after(instance, clean)
        if send is None:
            self.fail(call, 502, "bad_reply", bad)
        else:
            self._record(call, status)
            send()

    def speaks(self, instance: Instance, contract: str) -> None:
        """Note how instances of this version want to be asked; if they do not agree, each has to say."""
        if instance.deployment is self.deployment:
            self.contract = contract if self.contract in ("", contract) else ""

    def left(self) -> None:
        """Count a call whose client left before any instance got it."""
        self.stats.statuses[499] += 1
        self.fleet.concurrency.end(self._group)

    def spare(self, instance: Instance) -> None:
        """Take back an instance that was not given its call. In another turn: a queue of such calls may be long."""

        def take() -> None:
            if instance.state is State.IDLE and instance in self.fleet.instances:
                self.available(instance)

        asyncio.get_running_loop().call_soon(take)

    def handler_failed(self, instance: Instance, call: Call, error: HandlerError, clean: bool) -> None:
        """Answer for a handler that raised, or could not be given its event, or returned what is not JSON."""
        if error.kind == "malformed":
            self.fail(call, 400, "malformed", "the request body is not JSON")
            self._after(instance, clean)
            return
        self._raised(call, error)
        if instance.events >= 0:
            self._after(instance, clean)
            return

        # No descriptor tells of memory kills here, and a child killed for memory is a likely cause of an exception.
        def then(kills: int) -> None:
            instance.oom = instance.oom or kills > 0
            if instance.state is State.IDLE:
                self._after(instance, clean)

        self.fleet.oom_kills(instance, then)

    def _raised(self, call: Call, error: HandlerError) -> None:
        error_id = f"err-{call.id}"
        instance = call.instance
        if instance is not None and instance.state is not State.DYING:
            instance.output.read()  # it comes before what the function was ended by
            instance.output.end_line()
        told = f"[{error_id}] {error.traceback or error.name + ': ' + error.message}"
        self.log.write(call.id, told.encode(), 0 if instance is None else instance.id)
        self._tell(call, error, error_id)

    def _tell(self, call: Call, error: HandlerError, error_id: str, extra: bytes = b"") -> None:
        """Answer with what a handler raised, which is in the log under `error_id`."""
        kind = error.kind if error.kind in ("init", "serialize") else "handler"
        call.failure = Failure(kind, error.name, error.message, error.traceback)
        what = _FAULTS.get(kind, "raised an exception")
        if self.config.debug:
            shown = Error(kind, f"{error.name}: {error.message}", error_id, error.traceback)
        else:
            shown = Error(kind, f"the handler {what}; its log has the traceback under this id", error_id)
        self.finish(call, 500, JSON, responses.error_body(shown, call.id), extra)

    def _after(self, instance: Instance, clean: bool) -> None:
        if not clean:
            instance.condemn("sent more than its reply")
        elif not self.config.reuse_sandbox:
            self._retire(instance)
        elif instance.state is State.IDLE:
            self.available(instance)

    def init_failed(self, instance: Instance, error: HandlerError) -> None:
        """Answer for a handler that could not be imported. The instance is of no use."""
        call, instance.call = instance.call, None
        instance.output.read()
        instance.detach()
        if call is None:
            call = self._next()  # it was started for someone, and every start would end like this
        if call is not None:
            self._raised(call, error)
        self.provision.failed(f"the function could not be imported: {error.name}: {error.message}")
        error_id = f"err-{call.id}" if call is not None else ""

        def excuse(call: Call) -> None:
            self._tell(call, error, error_id, self._retry_after())

        self._unmade(instance, f"{error.name}: {error.message}", excuse)
        self._retire(instance)

    def _retry_after(self) -> bytes:
        seconds = ceil(self.retries.pause(monotonic()))
        return responses.header_lines((("retry-after", str(max(1, seconds))),))

    def setup_failed(self, instance: Instance) -> None:
        """Answer for a sandbox that could not set itself up."""
        self._worker_log("error", "setup_failed", function=self.name, instance=instance.id)
        self._gone(instance, 503, "start_failed", "a sandbox could not be made")

    def lost(self, instance: Instance) -> None:
        """Answer for a sandbox that has died."""

        def then(kills: int) -> None:
            if kills or instance.oom:
                self._gone(instance, 502, "oom", f"the function needed more memory than its {self.config.memory} bytes")
            else:
                self._gone(instance, 502, "crash", "the function's process ended without a reply")

        if instance.call is None:
            self._gone(instance, 502, "crash", "the function's process ended without a reply")
        else:
            self.fleet.oom_kills(instance, then)

    def condemned(self, instance: Instance, why: str) -> None:
        """Answer for a sandbox that was killed for what it sent."""
        self._worker_log("warning", "condemned", function=self.name, instance=instance.id, why=why)
        self._gone(instance, 502, "bad_reply", "the function's sandbox sent what is not a reply")

    def timed_out(self, instance: Instance) -> None:
        """Kill what has used up its time."""
        instance.output.read()
        instance.kill()
        if instance.ready:
            self._gone(instance, 504, "timeout", f"the function did not answer within {self.config.timeout:g} s")
        else:
            self._gone(instance, 504, "start_timeout", "the function was not imported in time")

    def _gone(self, instance: Instance, status: int, kind: str, message: str) -> None:
        call, instance.call = instance.call, None
        instance.detach()
        if call is None and not instance.ready:
            call = self._next()
        if call is not None:
            self.fail(call, status, kind, message, extra=_RETRY if status == 503 else b"")
        self.provision.ended(instance, message)
        if not instance.ready and status != 503:  # which is the host's fault, and not the function's

            def excuse(call: Call) -> None:
                self.fail(call, status, kind, message, self._retry_after())

            self._unmade(instance, message, excuse)
        self._retire(instance)

    def expire(self, now: float) -> None:
        """Refuse what has waited longer than it could have run."""
        while self.queue and now - self.queue[0].received > self.config.timeout + self.fleet.settings.start_timeout:
            call = self.queue.popleft()
            self.fail(call, 503, "queue_timeout", "no instance became free in time", extra=_RETRY)

    def fail(self, call: Call, status: int, kind: str, message: str, extra: bytes = b"", name: str = "") -> None:
        """Answer with an error of ours; `name` says more of it to who asks for the failure."""
        call.failure = Failure(kind, name, message)
        self.finish(call, status, JSON, responses.error_body(Error(kind, message), call.id), extra)

    def finish(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Answer, and record."""
        self._record(call, status)
        call.reply(status, content_type, body, extra)

    def _record(self, call: Call, status: int) -> None:
        stats, now = self.stats, monotonic()
        self.fleet.concurrency.end(self._group)
        if call.instance is not None and call.instance.state is State.DYING:
            call.instance.reports.end(now)
            call.instance.reports.settle()
        stats.statuses[status] += 1
        stats.total.add(now - call.received)
        if call.sent:
            stats.run.add(now - call.sent)
        if self.fleet.settings.access_log or status >= 502:
            self._worker_log(
                "info" if status < 500 else "warning",
                "request",
                function=self.name,
                request=call.id,
                method=call.method,
                status=status,
                ms=round((now - call.received) * 1e3, 3),
            )
        call.instance = None
