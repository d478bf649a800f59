"""The descriptors of one sandbox: all that the front has of it, and no more than it needs."""

from __future__ import annotations

import os

import msgspec


class Handles(msgspec.Struct, frozen=True):
    """As the broker sends them."""

    channel: int
    freeze: int
    kill: int
    log: int
    pidfd: int
    events: int = -1  # memory.events, where the host has it
    memory: int = -1  # how many bytes are charged to it
    most: int = -1  # how many were at most

    @classmethod
    def of(cls, fds: list[int], *optional: bool) -> Handles:
        """Name the descriptors of a `Started` message: which of `events`, `memory` and `most` are among them."""
        required = len(fds) - sum(optional)
        rest = iter(fds[required:])
        return cls(*fds[:required], *(next(rest) if given else -1 for given in optional))

    def end(self) -> None:
        """Kill every process, frozen or not, by the kernel's own hand."""
        try:
            os.write(self.kill, b"1")
        except OSError:
            pass  # its cgroup is gone, and so is everything in it

    def charged(self) -> int | None:
        """Return how many bytes of memory are charged to it: private copies of pages, and its files in memory."""
        return _number(self.memory)

    def peak(self) -> int:
        """Return how many bytes of memory were charged to it at most; how many are now, where nothing tells of that."""
        return _number(self.most) or _number(self.memory) or 0

    def oom_kills(self) -> int | None:
        """Return how many of its processes the kernel killed for memory; None where only the broker can know."""
        if self.events < 0:
            return None
        try:
            text = os.pread(self.events, 1024, 0)
        except OSError:
            return None
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"oom_kill ")), 0)

    def close(self) -> None:
        """Let go of every one."""
        for fd in (self.channel, self.freeze, self.kill, self.log, self.pidfd, self.events, self.memory, self.most):
            if fd >= 0:
                os.close(fd)


def _number(fd: int) -> int | None:
    if fd < 0:
        return None
    try:
        return int(os.pread(fd, 32, 0))
    except (OSError, ValueError):
        return None  # it is being removed
