"""What a snippet of Python leaves, and the reading of what its sandbox says it left.

The twin of the handler `run` in olsock/runtime/exec/snippet.py. Nothing in an answer is believed beyond its form: a snippet
that forges one deceives its own caller about itself. So it is bounded in bytes before it is parsed, and typed after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from olsock.errors import OlsockError, ProtocolError

MAX_ANSWER = 2 * 1024 * 1024
"""Bytes of an answer. Of JSON a parser makes objects of up to 30 times its size, so this bounds memory and time of ours."""


@dataclass(frozen=True, slots=True)
class ExecUsage:
    """What a snippet used, everything that it started included."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory: int | None  # bytes; None where the host does not count them
    oom_killed: bool  # something in the sandbox was killed for memory
    timed_out: bool


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ended a snippet."""

    type: str
    message: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class ExecError(OlsockError):
    """A snippet run with `check=True` failed; `result` is what it left."""

    def __init__(self, result: ExecResult) -> None:
        self.result = result
        super().__init__(f"the snippet failed: {result.ended or result.exception}")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """A finished snippet, in the habit of `subprocess.CompletedProcess`.

    `value` is that of the last expression if JSON can hold it, else None; `repr` is its text, None if there was no value
    (or it was None). `exception` is what the snippet raised. `ended` says how its sandbox ended if that came first: a crash,
    an exit, memory or time that ran out; there is no value then. `truncated` says that `stdout`, `stderr` or `repr` was
    longer; where, is marked in the text.
    """

    stdout: str
    stderr: str
    value: Any
    repr: str | None
    exception: Raised | None
    ended: str | None
    truncated: bool
    usage: ExecUsage

    @property
    def ok(self) -> bool:
        """Whether the snippet came to its end."""
        return self.exception is None and self.ended is None

    def check(self) -> None:
        """Raise `ExecError` unless the snippet came to its end."""
        if not self.ok:
            raise ExecError(self)


class _Error(msgspec.Struct):
    type: str
    message: str
    traceback: str


class _Answer(msgspec.Struct):
    value: msgspec.Raw = msgspec.Raw(b"null")
    repr: str | None = None
    truncated: bool = False
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sandbox says that its snippet came to."""

    value: Any
    repr: str | None
    truncated: bool
    exception: Raised | None


def read_answer(data: bytes) -> Answer:
    """Check and read what a sandbox has answered; `ProtocolError` if it is no answer."""
    if len(data) > MAX_ANSWER:
        raise ProtocolError(f"an answer of {len(data)} bytes; at most {MAX_ANSWER} are taken")
    try:
        answer = _answer(data)
        value = msgspec.json.decode(answer.value)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise ProtocolError(f"the answer is not one: {error}") from None
    found = answer.error
    raised = None if found is None else Raised(found.type, found.message, found.traceback)
    return Answer(value, answer.repr, answer.truncated, raised)
