"""What the worker says about each call in its function's log, in the words of AWS Lambda: START, END and REPORT.

Nothing in these lines is the function's own: it can print lines of the same words, but not under the worker's name.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Failure
    from olsock_worker.handles import Handles
    from olsock_worker.logs import FunctionLog
    from olsock_worker.ol_yaml import FunctionConfig

LATEST = "$LATEST"
_MB = 1 << 20
_TIMED_OUT = ("timeout", "start_timeout")
_TYPES = {
    "handler": "Unhandled",
    "serialize": "Runtime.MarshalError",
    "malformed": "Runtime.UnmarshalError",
    "crash": "Runtime.ExitError",
    "oom": "Runtime.OutOfMemory",
    "bad_reply": "Runtime.InvalidResponse",
    "too_large": "Function.ResponseSizeTooLarge",
    "start_failed": "Sandbox.Failure",
}
_OF_IMPORT = {
    "ImportError": "Runtime.ImportModuleError",
    "ModuleNotFoundError": "Runtime.ImportModuleError",
    "SyntaxError": "Runtime.UserCodeSyntaxError",
}


def version_of(key: str) -> str:
    """Return the version that is served under a key."""
    return key.partition(":")[2] or LATEST


class Began(NamedTuple):
    """A call is sent to an instance."""

    version: str

    def lines(self, request: str) -> tuple[str, ...]:
        """Return what is logged of it."""
        return (f"START RequestId: {request} Version: {self.version}",)


class Ended(NamedTuple):
    """An instance is done with a call."""

    seconds: float
    memory: int  # bytes that it may have
    peak: int  # most bytes that were charged to the instance up to now
    start: str  # where the instance came from: an `Origin`, warm or thawed
    init: float | None  # seconds that this call waited for the instance to be made
    failure: Failure | None

    def lines(self, request: str) -> tuple[str, ...]:
        """Return what is logged of it."""
        ms = self.seconds * 1e3
        init = "" if self.init is None else f"Init Duration: {self.init * 1e3:.2f} ms\t"
        report = (
            f"REPORT RequestId: {request}\tDuration: {ms:.2f} ms\tBilled Duration: {ceil(ms)} ms\t"
            f"Memory Size: {-(-self.memory // _MB)} MB\tMax Memory Used: {-(-self.peak // _MB)} MB\t{init}Start: {self.start}\t"
        )
        end = f"END RequestId: {request}"
        if self.failure is None:
            return end, report
        if self.failure.kind in _TIMED_OUT:
            return f"Task timed out after {self.seconds:.2f} seconds", end, f"{report}Status: timeout\t"
        return end, f"{report}Status: error\tError Type: {_type(self.failure)}\t"


def _type(failure: Failure) -> str:
    if failure.kind == "init":
        return _OF_IMPORT.get(failure.name, "Runtime.Unknown")
    return _TYPES.get(failure.kind, "Runtime.Unknown")


class Reports:
    """The calls of one instance, told of in their order among what it prints."""

    __slots__ = ("_call", "_ended", "_handles", "_init", "_log", "_memory", "_number", "_on", "_start", "_version")

    def __init__(self, number: int, handles: Handles, log: FunctionLog, version: str, config: FunctionConfig) -> None:
        self._number, self._handles, self._log = number, handles, log
        self._version, self._memory, self._on = Began(version), config.memory, config.invocation_log
        self._call: Call | None = None  # that END has not been written of
        self._ended = 0.0  # monotonic() of when it ended
        self._start = ""
        self._init: float | None = None

    def begin(self, call: Call, start: str) -> None:
        """Tell of a call that is about to be sent; all of the one before has been read."""
        self._call, self._start, self._ended, self._init = call, start, 0.0, None
        if self._on:
            self._log.tell(call.id, self._version, self._number, call.sent)

    def made(self, seconds: float) -> None:
        """Note that the call in hand waited until the instance could take it."""
        self._init = seconds

    def end(self, now: float) -> None:
        """Note that the call in hand has ended; what it has printed may not all have been read."""
        if not self._ended:
            self._ended = now

    def settle(self) -> None:
        """Tell of the end of the call that has ended, if there is one: nothing that it has printed is to come."""
        call = self._call
        if call is None or not self._ended:
            return
        self._call = None
        if not self._on:
            return
        # The most there ever was in this instance, as AWS has it: read for each call, or it would be that of a later one.
        seconds, peak = self._ended - call.sent, self._handles.peak()
        ended = Ended(max(0.0, seconds), self._memory, peak, self._start, self._init, call.failure)
        self._log.tell(call.id, ended, self._number, self._ended)
