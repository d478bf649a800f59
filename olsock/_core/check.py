"""The one place where a failure of the C core becomes an exception."""

from __future__ import annotations

import errno
import threading
from typing import Any

from olsock._core._olsock import ffi
from olsock.errors import KernelError

_HINTS = {
    errno.EPERM: "needs root with CAP_SYS_ADMIN in the initial user namespace; see `olsock doctor`",
    errno.ENOSYS: "this kernel lacks the call; see `olsock doctor`",
}


class _Buffer(threading.local):
    """One `struct ols_err` a thread: allocating it for every call would cost more than most of the calls."""

    def __init__(self) -> None:
        self.err = ffi.new("struct ols_err *")


_buffer = _Buffer()


def call(function: Any, *args: Any) -> int:
    """Call a C function whose last argument is `struct ols_err *`; return its result or raise `KernelError`."""
    err = _buffer.err
    result: int = function(*args, err)
    if result < 0:
        raise kernel_error(err)
    return result


def kernel_error(err: Any) -> KernelError:
    """Turn a filled `struct ols_err` into the exception that carries it."""
    step = ffi.string(err.step).decode(errors="replace")
    path = ffi.string(err.path).decode(errors="replace")
    return KernelError(step, path, err.err, _HINTS.get(err.err, ""))
