"""Processes by pidfd and the fds that describe them."""

from __future__ import annotations

import os
import select

from olsock._core._olsock import lib
from olsock._core.check import call


def pidfd_open(pid: int) -> int:
    """Return a pidfd for `pid` (pidfd_open(2))."""
    return call(lib.ols_pidfd_open, pid)


def namespace(proc_fd: int, pid: int, kind: str) -> int:
    """Open /proc/<pid>/ns/<kind> below an fd of a real procfs."""
    return call(lib.ols_ns_fd, proc_fd, pid, kind.encode())


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait until `fd` (a pidfd, pipe or socket) is readable or hung up; False at the timeout (seconds)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999))))


def close_all(*fds: int) -> None:
    """Close every fd that is not negative."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)
