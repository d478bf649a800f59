"""Control group files by directory fd, and the two waits on `cgroup.events`."""

from __future__ import annotations

import errno
import threading
import time

from olsock._core._olsock import ffi, lib
from olsock._core.check import call
from olsock.errors import DeadlineError, KernelError

_SMALL, _LARGEST = 4096, 16 << 20  # nearly every file fits the first; cgroup.procs can be long


class _Text(threading.local):
    def __init__(self) -> None:
        self.size = _SMALL
        self.buffer = ffi.new("char[]", self.size)


_text = _Text()


def write(dirfd: int, path: str, text: str) -> None:
    """Write one control file."""
    call(lib.ols_cgroup_write, dirfd, path.encode(), text.encode())


def read(dirfd: int, path: str) -> str:
    """Read one control file."""
    while True:
        try:
            length = call(lib.ols_cgroup_read, dirfd, path.encode(), _text.buffer, _text.size)
        except KernelError as error:
            if error.errno != errno.EMSGSIZE or _text.size >= _LARGEST:
                raise
            _text.size *= 8
            _text.buffer = ffi.new("char[]", _text.size)
        else:
            return bytes(ffi.buffer(_text.buffer, length)).decode("ascii", "replace")


def version(dirfd: int) -> int:
    """Return 1 or 2, the cgroup file system that a directory lies in; `KernelError` (EXDEV) for any other."""
    return call(lib.ols_cgroup_version, dirfd)


def freeze(freeze_fd: int, events_fd: int, frozen: bool, timeout: float) -> None:
    """Freeze or thaw and wait for the kernel's word; `DeadlineError` when it does not come: all runs on."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            call(lib.ols_cgroup_freeze, freeze_fd, events_fd, int(frozen), _milliseconds(deadline))
            return
        except KernelError as error:
            if error.errno == errno.ETIMEDOUT:
                state = "frozen" if frozen else "thawed"
                raise DeadlineError(f"the cgroup was not {state} within {timeout} s") from None
            if error.errno != errno.EINTR:
                raise


def wait_empty(events_fd: int, timeout: float) -> bool:
    """Wait until no process is left in the cgroup and below it; False when the time is over first."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            call(lib.ols_cgroup_wait_empty, events_fd, _milliseconds(deadline))
            return True
        except KernelError as error:
            if error.errno == errno.ETIMEDOUT:
                return False
            if error.errno == errno.ENODEV:  # removed meanwhile: only an empty one can be
                return True
            if error.errno != errno.EINTR:
                raise


def _milliseconds(deadline: float) -> int:
    """Return what is left until `deadline`, rounded up so that a wait never ends before its time."""
    left = deadline - time.monotonic()
    return min(int(left * 1000) + 1, 2**31 - 1) if left > 0 else 0
