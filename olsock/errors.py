"""What can go wrong, as exceptions. Imports nothing of olsock, so that every layer may raise these."""

from __future__ import annotations

import os
from typing import Literal


class OlsockError(Exception):
    """Base of every error that olsock raises on purpose."""


class SpecError(OlsockError, ValueError):
    """A setting that cannot be accepted: names the field, the value, and what is accepted."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.field, self.value, self.accepted = field, value, accepted
        super().__init__(f"{field}={value!r}: expected {accepted}")


class KernelError(OlsockError, OSError):
    """A system call failed while a sandbox was made or used: `step`, `path`, `errno`, and a hint where there is one."""

    def __init__(self, step: str, path: str, errno: int, hint: str = "") -> None:
        self.step, self.path, self.hint = step, path, hint
        OSError.__init__(self, errno, os.strerror(errno))

    def __str__(self) -> str:
        where = f" {self.path}" if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.step}{where}: {self.strerror}{hint}"


class UnsupportedError(OlsockError):
    """This host lacks a layer that the sandbox was asked to have; names the layer and what to do."""


class SandboxDeadError(OlsockError):
    """The sandbox, its init or its handler is gone."""


class ZygoteError(OlsockError):
    """A zygote could not be made, or cannot fork: says why, and `kind` of which kind that is.

    imports: modules could not be imported; unforkable: they were, and left threads or shared memory behind; crash, killed and
    slow: the interpreter ended by itself, was killed, or did not come to an end meanwhile; room: as many zygotes as were
    planned for are there; gone: it cannot fork any more, or did not.
    """

    Kind = Literal["imports", "unforkable", "crash", "killed", "slow", "room", "gone"]

    def __init__(self, message: str, kind: Kind = "gone") -> None:
        self.kind = kind
        super().__init__(message)


class PlanError(OlsockError, ValueError):
    """A trace or a plan of a zygote tree makes no sense: says where in it, what was found, and what is accepted."""


class ProtocolError(OlsockError):
    """A sandbox sent bytes that the protocol does not allow; the sandbox is condemned."""


class DeadlineError(OlsockError, TimeoutError):
    """A wait ended at its deadline."""


class InvocationError(OlsockError):
    """A handler did not answer with a result. `kind` is one of handler, malformed, init, serialize, crash, oom, timeout."""

    def __init__(self, kind: str, message: str, *, name: str = "", traceback: str = "") -> None:
        self.kind, self.name, self.traceback = kind, name, traceback
        super().__init__(message)
