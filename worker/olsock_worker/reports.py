"""What the worker says about each call in its function's log, in the words of AWS Lambda: START, END and REPORT.

Nothing in these lines is the function's own: it can print lines of the same words, but not under the worker's name.
"""

from __future__ import annotations

from math import ceil, inf
from time import monotonic
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
    "no_http_event": "Runtime.UnmarshalError",
    "crash": "Runtime.ExitError",
    "oom": "Runtime.OutOfMemory",
    "bad_reply": "Runtime.InvalidResponse",
    "reply_too_large": "Function.ResponseSizeTooLarge",
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

    def lines(self, before: str, request: str) -> str:
        """Return what is logged of it, each line with `before` before it."""
        return f"{before}START RequestId: {request} Version: {self.version}\n"


class Memory:
    """The most bytes that were ever charged to an instance, read when somebody wants to know.

    To look costs a system call, which all lines that are written together share.
    """

    __slots__ = ("_at", "_handles", "_peak")

    def __init__(self, handles: Handles) -> None:
        self._handles: Handles | None = handles
        self._at, self._peak = 0.0, 0

    def peak(self, when: float) -> int:
        """Return what it is now, or was at some time after `when`, which is monotonic."""
        if self._at <= when and self._handles is not None:
            self._at, self._peak = monotonic(), self._handles.peak()
        return self._peak

    def close(self) -> None:
        """Read it for the last time."""
        self.peak(inf)
        self._handles = None


class Ended(NamedTuple):
    """An instance is done with a call."""

    when: float  # monotonic
    seconds: float
    size: str  # of the memory that it may have, in MB
    memory: Memory
    start: str  # where the instance came from: an `Origin`, warm or thawed
    init: float | None  # seconds that this call waited for the instance to be made
    failure: Failure | None

    def lines(self, before: str, request: str) -> str:
        """Return what is logged of it, each line with `before` before it."""
        ms = self.seconds * 1e3
        init = "" if self.init is None else f"Init Duration: {self.init * 1e3:.2f} ms\t"
        failed, said = ("", "") if self.failure is None else _failed(self.failure, f"{before}Task", self.seconds)
        return (
            f"{said}{before}END RequestId: {request}\n{before}REPORT RequestId: {request}\tDuration: {ms:.2f} ms\t"
            f"Billed Duration: {ceil(ms)} ms\tMemory Size: {self.size} MB\t"
            f"Max Memory Used: {-(-self.memory.peak(self.when) // _MB)} MB\t{init}Start: {self.start}\t{failed}\n"
        )


def _failed(failure: Failure, task: str, seconds: float) -> tuple[str, str]:
    """Return the end of the report of a call that failed, and what comes before all of it."""
    if failure.kind in _TIMED_OUT:
        return "Status: timeout\t", f"{task} timed out after {seconds:.2f} seconds\n"
    kind = _TYPES.get(failure.kind, "Runtime.Unknown")
    if failure.kind == "init":
        kind = _OF_IMPORT.get(failure.name, kind)
    return f"Status: error\tError Type: {kind}\t", ""


class Reports:
    """The calls of one instance, told of in their order among what it prints."""

    __slots__ = ("_began", "_call", "_ended", "_init", "_log", "_number", "_on", "_size", "_start", "memory")

    def __init__(self, number: int, handles: Handles, log: FunctionLog, version: str, config: FunctionConfig) -> None:
        self.memory = Memory(handles)
        self._number, self._log, self._on = number, log, config.invocation_log
        self._began, self._size = Began(version), str(-(-config.memory // _MB))
        self._call: Call | None = None  # that END has not been written of
        self._ended = 0.0  # monotonic() of when it ended
        self._start = ""
        self._init: float | None = None

    def begin(self, call: Call, start: str) -> None:
        """Tell of a call that is about to be sent; all of the one before has been read."""
        if self._call is not None:
            self.settle()
        self._call, self._start, self._ended, self._init = call, start, 0.0, None
        if self._on:
            self._log.tell(call.id, self._began, self._number, call.sent)

    def made(self, seconds: float) -> None:
        """Note that the call in hand waited until the instance could take it."""
        self._init = seconds

    def end(self, now: float) -> None:
        """Note that the call in hand has ended; what it has printed may not all have been read."""
        if not self._ended:
            self._ended = now

    def settle(self) -> None:
        """Tell of the end of the call that has ended, if there is one: nothing that it has printed is to come."""
        call, when = self._call, self._ended
        if call is None or not when:
            return
        self._call = None
        if self._on:
            ended = Ended(when, when - call.sent, self._size, self.memory, self._start, self._init, call.failure)
            self._log.tell(call.id, ended, self._number, when)

    def close(self) -> None:
        """Do so while it can still be known how much memory was used."""
        self.settle()
        self.memory.close()
