"""Lean sandboxes for Python functions: isolated by default, forked from warm interpreters in about a millisecond.

Names are re-exported here; they live in olsock.sandbox, olsock.zygote, olsock.function, olsock.packages,
olsock.python_pool and olsock.errors.
"""

from olsock.errors import (
    DeadlineError,
    InvocationError,
    KernelError,
    OlsockError,
    PlanError,
    ProtocolError,
    SandboxDeadError,
    SpecError,
    UnsupportedError,
    ZygoteError,
)
from olsock.function import Function
from olsock.nursery import ZygoteTree
from olsock.packages import Closure, Lock, PackageError, PackageStore
from olsock.pipes import DEVNULL, PIPE, STDOUT
from olsock.python_pool import PythonPool
from olsock.readiness import Imported, Ready
from olsock.results import CommandError, Completed, Usage
from olsock.sandbox import Process, Sandbox
from olsock.snippets import ExecError, ExecResult
from olsock.spec import Bind
from olsock.streams import Stream
from olsock.web import Response
from olsock.zygote import Zygote

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Bind",
    "Closure",
    "CommandError",
    "Completed",
    "DeadlineError",
    "ExecError",
    "ExecResult",
    "Function",
    "Imported",
    "InvocationError",
    "KernelError",
    "Lock",
    "OlsockError",
    "PackageError",
    "PackageStore",
    "PlanError",
    "Process",
    "ProtocolError",
    "PythonPool",
    "Ready",
    "Response",
    "Sandbox",
    "SandboxDeadError",
    "SpecError",
    "Stream",
    "UnsupportedError",
    "Usage",
    "Zygote",
    "ZygoteError",
    "ZygoteTree",
]
