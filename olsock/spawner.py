"""The spawner, seen from the library: a small root process that clones sandboxes (csrc/spawner/main.c says why)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from olsock._core import process
from olsock.packets import ATTACH, CLONE, DETACH, OVERLAY, Mailbox, string, u32, u64

PROGRAM = Path(__file__).parent / "_core" / "olsock-spawner"

# linux/sched.h; the os module has them only from Python 3.12 on
NEWUSER, NEWNS, NEWPID = 0x10000000, 0x00020000, 0x20000000
NEWIPC, NEWUTS, NEWNET = 0x08000000, 0x04000000, 0x40000000
ISOLATED = NEWUSER | NEWNS | NEWPID | NEWIPC | NEWUTS

TIMEOUT = 30.0  # seconds; every answer takes less than a millisecond unless the host is in trouble

IdMap = tuple[int, int, int]  # inside, host, count


def channel() -> tuple[socket.socket, socket.socket]:
    """A pair of packet sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


class Spawner:
    """A running spawner. Its mounts are its own: they are gone when it is."""

    def __init__(self, directory: str) -> None:
        """Start one; `directory` is an empty directory over which it mounts its private root."""
        ours, theirs = channel()
        with theirs:
            self._process = subprocess.Popen(
                [os.fspath(PROGRAM), directory],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
        self.pid = self._process.pid
        self._mailbox = Mailbox(ours, "the spawner")
        try:
            self._mailbox.receive(self._mailbox.expect(0), TIMEOUT)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can still make sandboxes."""
        return self._process.poll() is None

    def clone(
        self,
        flags: int,
        maps: Sequence[IdMap],
        channel_fd: int,
        cgroup_fd: int = -1,
        tasks: Sequence[int] = (),
        inside: Sequence[int] = (),
    ) -> tuple[int, int]:
        """Clone an init that listens on `channel_fd`, born in `cgroup_fd`; return its (pid, pidfd).

        `tasks` are the files of that name of the cgroups of version 1 that it enters; `inside` the user, pid and mount
        namespace of another init, for one that is nested in that.
        """
        into = cgroup_fd >= 0
        payload = u64(flags) + u32(into, bool(inside), len(maps)) + b"".join(u32(*entry) for entry in maps)
        fds = [channel_fd, *([cgroup_fd] if into else []), *inside, *tasks]
        return self._mailbox.call(CLONE, payload, fds, TIMEOUT)

    def attach(self, tree_fd: int, path: str) -> None:
        """Mount a detached tree in the spawner's namespace; its directory is made if it lies directly in /b."""
        self._mailbox.call(ATTACH, string(path), [tree_fd], TIMEOUT)

    def detach(self, path: str) -> None:
        """Unmount a tree again; sandboxes keep their copies."""
        self._mailbox.call(DETACH, string(path), (), TIMEOUT)

    def overlay(self, lowers: Sequence[int], upper: int = -1) -> int:
        """Return a detached overlay of detached trees, the topmost first; `upper` holds the directories upper and work."""
        fds = [*lowers, upper] if upper >= 0 else list(lowers)
        return self._mailbox.call(OVERLAY, u32(len(lowers), upper >= 0), fds, TIMEOUT)[1]

    def user_namespace(self, maps: Sequence[IdMap]) -> int:
        """Return a user namespace by fd that nobody lives in, for idmapped mounts."""
        ours, theirs = channel()
        with ours, theirs:
            pid, pidfd = self.clone(ISOLATED, maps, theirs.fileno())
            try:
                proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
                try:
                    return process.namespace(proc, pid, "user")
                finally:
                    os.close(proc)
            finally:
                os.close(pidfd)

    def close(self) -> None:
        """End it; sandboxes that it made live on."""
        self._mailbox.close()
        self._process.wait()
