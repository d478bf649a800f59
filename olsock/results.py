"""What a finished program leaves: its output, status and usage."""

from __future__ import annotations

from dataclasses import dataclass

from olsock.errors import OlsockError


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program used: CPU seconds and peak resident bytes of it and the children it waited for."""

    user_seconds: float
    system_seconds: float
    peak_memory: int
    oom_killed: bool  # something in the sandbox was killed for memory while it ran
    timed_out: bool

    @property
    def cpu_seconds(self) -> float:
        """User and system time together."""
        return self.user_seconds + self.system_seconds


class CommandError(OlsockError):
    """A program run with `check=True` failed; `completed` is its result."""

    def __init__(self, completed: Completed) -> None:
        self.completed = completed
        how = "timed out" if completed.usage.timed_out else f"returned {completed.returncode}"
        last = completed.stderr.decode(errors="replace").strip().splitlines()[-1:]
        super().__init__(f"{completed.args!r} {how}" + (f": {last[0]}" if last else ""))


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished program, as `subprocess.CompletedProcess`: returncode is negative for a signal."""

    args: list[str | bytes]
    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    usage: Usage

    def check_returncode(self) -> None:
        """Raise `CommandError` unless the program exited with status 0."""
        if self.returncode != 0:
            raise CommandError(self)
