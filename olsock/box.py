"""An init in its namespaces: what sandboxes, zygotes and cold handlers have in common. The twin of csrc/spawner/init.c."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from olsock import packets, spawner
from olsock._core import process
from olsock.cgroups import Leaf
from olsock.errors import DeadlineError, KernelError, SandboxDeadError
from olsock.packets import Exited, Mailbox, blob, rlimits, string, strings, u32, u64
from olsock.rootfs import MASKED
from olsock.spawner import IdMap, Spawner
from olsock.spec import Spec

CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_ADMIN, CAP_SYS_ADMIN = (1 << n for n in (5, 6, 7, 8, 12, 21))
INIT_CAPABILITIES = CAP_KILL | CAP_SETGID | CAP_SETUID

NEW_CGROUP, OWN_NETWORK, FILTER_INIT, NEW_TIME = 1, 2, 4, 8  # csrc/spawner/setup.c
_TREE, _TMPFS, _PROC, _MASK = 1, 2, 3, 4  # csrc/spawner/root.c

MEMLOCK = 64 * 1024
SHM_SIZE = 16 * 1024 * 1024
MAX_ORPHANS = 256
TIMEOUT = 30.0  # seconds; set-up takes well below a millisecond unless the host is in trouble


def limits(nofile: int, fsize: int | None) -> list[tuple[int, int]]:
    """Resource limits of every process of a sandbox; no core file is ever written."""
    pairs = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, nofile), (resource.RLIMIT_MEMLOCK, MEMLOCK)]
    return pairs if fsize is None else [*pairs, (resource.RLIMIT_FSIZE, fsize)]


@dataclass(slots=True)
class Mounts:
    """What is mounted over a root, in order, as the packet and the fds that say so."""

    parts: list[bytes] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def tree(self, target: str, fd: int) -> None:
        """Attach a detached tree."""
        self.parts.append(u32(_TREE) + string(target))
        self.fds.append(fd)

    def tmpfs(self, target: str, size: int, inodes: int, mode: int = 0o1777) -> None:
        """Mount a tmpfs that belongs to the sandbox."""
        options = string(str(size)) + string(str(inodes)) + string(f"{mode:o}")
        self.parts.append(u32(_TMPFS) + string(target) + options)

    def proc(self, masks: Sequence[str]) -> None:
        """Mount the sandbox's own /proc and hide these files of it."""
        self.parts.append(u32(_PROC) + string("/proc"))
        self.parts += [u32(_MASK) + string(path) for path in masks]

    def add(self, others: Mounts) -> None:
        """Mount these after what there is."""
        self.parts += others.parts
        self.fds += others.fds

    @classmethod
    def private(cls, spec: Spec) -> Mounts:
        """What every sandbox has of its own: /proc, masked, and the tmpfs /tmp and /dev/shm."""
        over = cls()
        over.proc(MASKED)
        over.tmpfs("/tmp", spec.tmpfs_size, spec.tmpfs_inodes)
        over.tmpfs("/dev/shm", min(SHM_SIZE, spec.tmpfs_size), spec.tmpfs_inodes)
        return over


@dataclass(frozen=True, slots=True)
class Setup:
    """What an init does before its first command."""

    root: str | int  # a base tree's place, or a detached tree
    mounts: Mounts
    hostname: str
    rlimits: list[tuple[int, int]]
    filter: bytes  # compiled; empty: none
    filter_init: bool = True  # loaded by init itself; else by each command
    capabilities: int = INIT_CAPABILITIES
    network: bool = True  # a network namespace of its own
    cgroup: bool = True  # a cgroup namespace of its own
    time: bool = False

    def pack(self) -> tuple[bytes, list[int]]:
        """Return the packet and its fds."""
        flags = (NEW_CGROUP if self.cgroup else 0) | (OWN_NETWORK if self.network else 0)
        flags |= (FILTER_INIT if self.filter_init else 0) | (NEW_TIME if self.time else 0)
        base, fds = (self.root, []) if isinstance(self.root, str) else ("", [self.root])
        parts = [u32(flags), string(self.hostname), u64(self.capabilities), rlimits(self.rlimits), blob(self.filter)]
        parts += [string(base), u32(len(self.mounts.parts)), *self.mounts.parts]
        return b"".join(parts), fds + self.mounts.fds


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run in a box: ids are the sandbox's."""

    argv: Sequence[str | bytes]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    capabilities: int = 0


class Box:
    """A running init. Closing it ends every process of its pid namespace."""

    def __init__(
        self, cloner: Spawner, maps: Sequence[IdMap], leaf: Leaf, *, network: bool, inside: Sequence[int] = ()
    ) -> None:
        """Clone the init, born in `leaf`; it waits for `setup`. `inside`: see `Spawner.clone`."""
        flags = spawner.ISOLATED | (spawner.NEWNET if network else 0)
        ours, theirs = spawner.channel()
        self._exits: dict[int, Exited] = {}
        self._watchers: dict[int, int] = {}  # token -> eventfd
        self._watching = threading.Lock()
        self.orphans: OrderedDict[int, int] = OrderedDict()  # pid as init sees it -> wait status
        self._mailbox = Mailbox(ours, "the sandbox's init", self._left)
        with theirs:
            tasks: list[int] = []
            try:
                tasks = leaf.open_tasks()
                self.pid, self.pidfd = cloner.clone(flags, maps, theirs.fileno(), leaf.fd, tasks, inside)
            except BaseException:
                self._mailbox.close()
                raise
            finally:
                process.close_all(*tasks)

    def _left(self, exited: Exited) -> None:
        if exited.token != packets.NO_TOKEN:
            with self._watching:
                self._exits[exited.token] = exited
                if (watcher := self._watchers.get(exited.token)) is not None:
                    os.eventfd_write(watcher, 1)
            return
        self.orphans[exited.pid] = exited.status
        if len(self.orphans) > MAX_ORPHANS:
            self.orphans.popitem(last=False)

    def setup(self, setup: Setup) -> None:
        """Make the sandbox; raises what failed."""
        payload, fds = setup.pack()
        self._mailbox.call(packets.SETUP, payload, fds, TIMEOUT)

    def spawn(self, command: Command, fds: Sequence[int]) -> tuple[int, int]:
        """Run a command with fds 0, 1, 2 (and perhaps 3); return (token, pid in the sandbox)."""
        payload = u32(command.uid, command.gid) + u64(command.capabilities) + string(command.cwd)
        payload += strings(command.argv) + strings([f"{key}={value}" for key, value in command.env.items()])
        token = self._mailbox.send(packets.SPAWN, payload, fds)
        return token, self._mailbox.receive(token, TIMEOUT)[0]

    def wait(self, token: int, timeout: float | None = None) -> Exited:
        """Wait until the command of `token` has left."""
        self._mailbox.wait(lambda: token in self._exits, timeout)
        return self._exits[token]

    def watch(self, token: int) -> int:
        """Return an fd that is readable once the command of `token` has left; `unwatch` closes it.

        `fileno` alone is not enough for who polls: another thread, waiting for another command, may read the news first.
        """
        with self._watching:
            watcher = self._watchers[token] = os.eventfd(token in self._exits, os.EFD_CLOEXEC)
        return watcher

    def unwatch(self, token: int) -> None:
        """End a watch."""
        with self._watching:
            os.close(self._watchers.pop(token))

    def forget(self, token: int) -> None:
        """Drop the exit of a command that nobody will ask for again."""
        self._exits.pop(token, None)

    def wait_orphan(self, pid: int, timeout: float) -> int | None:
        """The wait status of a process that init inherited, by its pid there; None if it was not told in time."""
        try:
            self._mailbox.wait(lambda: pid in self.orphans, timeout)
        except (DeadlineError, SandboxDeadError):
            return None
        return self.orphans.pop(pid, None)

    def signal(self, token: int, number: int) -> None:
        """Signal a command's process group; nothing happens if it has left."""
        try:
            self._mailbox.call(packets.SIGNAL, u32(token, number), (), TIMEOUT)
        except KernelError as e:
            if e.errno != errno.ESRCH:
                raise

    def new_network(self) -> int:
        """Return a network namespace by fd that processes of this sandbox's user namespace may enter."""
        return self._mailbox.call(packets.NETNS, b"", (), TIMEOUT)[1]

    def fileno(self) -> int:
        """Readable when init has something to tell."""
        return self._mailbox.fileno()

    @property
    def alive(self) -> bool:
        """Whether init lives."""
        return self.pidfd >= 0 and not process.wait_readable(self.pidfd, 0)

    def close(self) -> None:
        """Hang up, and wait until init is gone. Idempotent."""
        self._mailbox.close()
        if self.pidfd >= 0:
            process.wait_readable(self.pidfd, TIMEOUT)
            os.close(self.pidfd)
            self.pidfd = -1
