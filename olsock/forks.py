"""Forks of one zygote: what is sent to it for a handler or for another zygote, and how the child is found.

The twin of csrc/fork/isolate.c and nest.c, and of the loop of olsock/runtime/zygote.py. Nothing that a zygote answers is
believed: its child is found through the cgroup that it had to be born in.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from olsock import rootfs
from olsock._core import process
from olsock.cgroups import Leaf
from olsock.channel import Channel
from olsock.errors import KernelError, SandboxDeadError, ZygoteError
from olsock.kits import Kit
from olsock.packets import strings, u32, u64

NETWORK_GIVEN, NETWORK_SHARED, SEPARATE_ERRORS, WAITING, NEST = 1, 2, 4, 8, 16  # csrc/fork/isolate.h
OWN_TREES = ("/tmp", "/dev/shm")
TIMEOUT = 10.0  # seconds for one fork
HELLO = b"\0"  # olsock/runtime/zygote.py: of a child that waits

Trees = Sequence[tuple[str, int]]  # where a detached tree goes, and its fd


@dataclass(frozen=True, slots=True)
class Child:
    """A process that a zygote forked."""

    pid: int  # the host's
    pidfd: int
    inner: int  # as the outermost init of its domain sees it


class Forks:
    """The control socket of one zygote. Forks of one process are serial in the kernel, so they take turns here."""

    def __init__(self, control: socket.socket, leaf: Leaf, *, nested: bool, shared_network: bool) -> None:
        self.control = control
        self._leaf, self._nested = leaf, nested
        self._flags = NETWORK_SHARED if shared_network else 0
        self._turn = threading.Lock()

    def handler(self, kit: Kit, function: bytes | None, trees: Trees = ()) -> Child:
        """Fork a handler into what the kit has. Without its `function` part it waits for that: see `finish`."""
        assert kit.ends is not None
        theirs = kit.ends.theirs
        flags = self._flags | (SEPARATE_ERRORS if len(theirs) > 2 else 0) | (WAITING if function is None else 0)
        fds = [*theirs, kit.cgroup]
        if kit.netns >= 0:
            flags |= NETWORK_GIVEN
            fds.append(kit.netns)
        fds += [*kit.tasks, kit.tmp, kit.shm]
        parts = [u32(flags, len(kit.tasks)), strings(OWN_TREES), strings(rootfs.MASKED)]
        if function is not None:
            parts.append(function)
            fds += [fd for _, fd in trees]
        inner = self._exchange(b"".join(parts), fds)
        kit.ends.close_theirs()
        return self._find(kit, inner)

    def zygote(self, streams: Sequence[int], leaf: Leaf, namespaces: Sequence[tuple[int, int]], keep: int) -> None:
        """Fork a zygote into `leaf` and into namespaces (type, fd); `streams` are its control socket and its log."""
        tasks = leaf.open_tasks()
        cgroup = leaf.detached_fd()
        try:
            types = [kind for kind, _ in namespaces]
            payload = u32(NEST, len(tasks)) + u32(len(types), *types) + u64(keep)
            self._exchange(payload, [*streams, cgroup, *tasks, *(fd for _, fd in namespaces)])
        finally:
            process.close_all(cgroup, *tasks)

    def _exchange(self, payload: bytes, fds: Sequence[int]) -> int:
        """One request, under a deadline; return the child's pid as the zygote names it.

        That is believed for nothing but words: it picks the exit status that a crash is described with.
        """
        with self._turn:
            try:
                self.control.settimeout(TIMEOUT)
                socket.send_fds(self.control, [payload], fds)
                answer = self.control.recv(4096)
            except TimeoutError:
                self._leaf.kill()
                raise ZygoteError(f"the zygote did not fork in {TIMEOUT} s and was killed") from None
            except OSError as e:
                raise ZygoteError(f"the zygote is gone ({e.strerror})") from e
        if not answer:
            raise ZygoteError("the zygote is gone")
        if answer[0] != 0:
            raise ZygoteError(f"the zygote could not fork: {answer[5:1024].decode(errors='replace')}")
        return int.from_bytes(answer[1:5], "little")

    def _find(self, kit: Kit, inner: int) -> Child:
        """The child, from the fresh cgroup that it was born in."""
        found = find(kit.leaf)
        if found is None:
            assert kit.ends is not None
            with contextlib.suppress(SandboxDeadError):
                Channel(kit.ends.channel).wait_started(1.0)  # raises what the child reported before it ended
            raise ZygoteError("the zygote forked nobody into the sandbox's cgroup")
        pid, pidfd = found
        return Child(pid, pidfd, outermost(pid) if self._nested else inner)


def find(leaf: Leaf) -> tuple[int, int] | None:
    """The pid and pidfd of a process that is in `leaf`."""
    for pid in leaf.pids():
        try:
            pidfd = process.pidfd_open(pid)
        except KernelError:
            continue
        if pid in leaf.pids():  # still there: the pidfd is that process and no later one
            return pid, pidfd
        process.close_all(pidfd)
    return None


def function_part(targets: Sequence[str], uid: int, rest: bytes) -> bytes:
    """What is a function's own: where its trees go, its id, and `rest` (limits and the filter)."""
    return strings(targets) + u32(uid, uid) + rest


def wait(kit: Kit, *, patient: bool) -> bool:
    """Wait until a handler that was forked ahead says that it waits; False if it does not yet, and `patient` is not.

    One that says anything else, or has gone, is told by `finish`.
    """
    assert kit.ends is not None
    channel = kit.ends.channel
    channel.settimeout(TIMEOUT if patient else 0.0)
    try:
        channel.recv(1, socket.MSG_PEEK)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def finish(kit: Kit, function: bytes, trees: Trees, config: bytes) -> None:
    """Give a handler that waits its function, and the first frame with it: both fit into its socket.

    Raises `ConnectionError` if it has gone, or says something else than that it waits.
    """
    assert kit.ends is not None
    channel = kit.ends.channel
    channel.setblocking(False)
    try:
        if channel.recv(1) != HELLO:
            raise ConnectionAbortedError("it does not wait for a function")
        message = u32(len(function)) + function + config
        sent = socket.send_fds(channel, [message], [fd for _, fd in trees], socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise ConnectionAbortedError("it takes nothing") from None
    if sent < len(message):
        raise ConnectionAbortedError("it takes less than its socket holds")


def outermost(pid: int) -> int:
    """The pid in the namespace just below the host's: the outermost init's; 0, which is nobody's, if it has gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[2])
    return 0
