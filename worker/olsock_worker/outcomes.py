"""What each end of a call means: to its client, to the instance that had it, and to the figures of its function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker import responses
from olsock_worker.calls import Failure, over
from olsock_worker.instances import State
from olsock_worker.policy.retries import Retries
from olsock_worker.responses import JSON, Error
from olsock_worker.stats import FunctionStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from olsock_worker.calls import Call
    from olsock_worker.fleet import Fleet
    from olsock_worker.instances import HandlerError, Instance
    from olsock_worker.logs import FunctionLog, WorkerLog
    from olsock_worker.ol_yaml import FunctionConfig
    from olsock_worker.registry import Deployment

RETRY = responses.header_lines((responses.RETRY_AFTER,))
_FAULTS = {"init": "could not be imported", "serialize": "returned what is not JSON"}
_WHY = 1000  # characters of why an instance could not be made that are logged


class Outcomes(ABC):
    """The answering half of a function. The other half, `Function`, has the queue and the instances."""

    def __init__(self, deployment: Deployment, fleet: Fleet, log: FunctionLog, worker_log: WorkerLog) -> None:
        self.name = deployment.name
        self.deployment = deployment
        self.fleet = fleet
        self.log = log
        self.stats = FunctionStats()
        self.retries = Retries()
        self._worker_log = worker_log
        self._excuse: Callable[[Call], None] | None = None  # answers as the latest failure to make one was answered
        self._group = self.name.partition(":")[0]  # whose reservation its calls count for

    @property
    def config(self) -> FunctionConfig:
        """The configuration of the current version."""
        return self.deployment.config

    @property
    @abstractmethod
    def waiting(self) -> bool:
        """Whether calls wait for an instance."""

    @abstractmethod
    def available(self, instance: Instance) -> None:
        """Take back an instance that has answered."""

    @abstractmethod
    def retire(self, instance: Instance) -> None:
        """End an instance, and replace it if there is work."""

    @abstractmethod
    def next_call(self) -> Call | None:
        """Take the call that has waited longest."""

    @abstractmethod
    def unprovided(self, instance: Instance | None, why: str) -> None:
        """Note that one of the instances that were to be kept is not there."""

    def _unmade(self, instance: Instance, why: str, excuse: Callable[[Call], None]) -> None:
        """Note that an instance could not be made ready, and what is to be said of that until it is tried again."""
        if instance.deployment is self.deployment:
            pause, self._excuse = self.retries.failed(monotonic()), excuse
            failures = self.retries.failures
            self._worker_log(
                "warning", "init_failed", function=self.name, why=why[:_WHY], failures=failures, retry_s=pause
            )

    def answered(
        self, instance: Instance, call: Call, status: int, content_type: bytes, body: bytes, clean: bool
    ) -> None:
        """Pass a reply on; the instance first, so that it works again while the reply is written, if it is to work again."""
        if clean and not self.config.reuse_sandbox and not self.waiting:
            self.finish(call, status, content_type, body)
            self.fleet.retire_soon(instance)
            return
        try:
            self._after(instance, clean)
        finally:  # whatever becomes of the next call, this one has its answer
            self.finish(call, status, content_type, body)

    def passed_on(
        self, instance: Instance, call: Call, status: int, send: Callable[[], None] | None, clean: bool
    ) -> None:
        """Let the end of a web application's answer go out, as `answered` does; `send` is None if it cannot."""
        if send is None:
            bad = "the function's content-length is not the length of its reply"
            call.failure = Failure("bad_reply", "", bad)  # before the instance works again: see Reports
        soon = clean and not self.config.reuse_sandbox and not self.waiting
        try:
            if soon:
                self.fleet.retire_soon(instance)
            else:
                self._after(instance, clean)
        finally:
            if send is None:
                self.fail(call, 502, "bad_reply", bad)
            else:
                self._record(call, status)
                send()

    def left(self) -> None:
        """Count a call whose client left before any instance got it."""
        self.stats.statuses[499] += 1
        self.fleet.concurrency.end(self._group)

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
            self.retire(instance)
        elif instance.state is State.IDLE:
            self.available(instance)

    def init_failed(self, instance: Instance, error: HandlerError) -> None:
        """Answer for a handler that could not be imported. The instance is of no use."""
        call, instance.call = instance.call, None
        instance.output.read()
        instance.detach()
        if call is None:
            call = self.next_call()  # it was started for someone, and every start would end like this
        if call is not None:
            self._raised(call, error)
        self.unprovided(None, f"the function could not be imported: {error.name}: {error.message}")
        error_id = f"err-{call.id}" if call is not None else ""

        def excuse(call: Call) -> None:
            self._tell(call, error, error_id, self._retry_after())

        self._unmade(instance, f"{error.name}: {error.message}", excuse)
        self.retire(instance)

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

    def condemned(self, instance: Instance, why: str, kind: str) -> None:
        """Answer for a sandbox that was killed for what it sent."""
        self._worker_log("warning", "condemned", function=self.name, instance=instance.id, why=why)
        if kind == "reply_too_large":
            self._gone(instance, 502, "reply_too_large", over(self.fleet.settings.http.reply).message)
        else:
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
            call = self.next_call()
        if call is not None:
            self.fail(call, status, kind, message, extra=RETRY if status == 503 else b"")
        self.unprovided(instance, message)
        if not instance.ready and status != 503:  # which is the host's fault, and not the function's

            def excuse(call: Call) -> None:
                self.fail(call, status, kind, message, self._retry_after())

            self._unmade(instance, message, excuse)
        self.retire(instance)

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
