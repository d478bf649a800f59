"""Control groups of ours: a tree for this process, leaves for sandboxes, alike on version 2 and on hybrid
hosts.

Version 2 is the model and always does freezing, killing, waiting and the CPU figures. For a controller that
this host has on version 1 there is a directory of the same name there, and `Leaf.attach` moves a process into
it; on a host with everything on version 2 the process was born in its place (CLONE_INTO_CGROUP) and `attach`
has nothing to do.

    <parent>/olsock-<name>          Tree
        <leaf>                      Leaf: one sandbox
        <domain>                    Domain: what belongs together, as one tenant's zygotes and handlers do
            <leaf>
            <domain>                of a zygote that was forked from one of this domain

Every file is opened by the directory fd of the level above, so that a start resolves no long paths and a leaf
holds no fd until something asks for one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from olsock import hierarchies, supervisor
from olsock._core import cgroup, mounts
from olsock.errors import DeadlineError, KernelError, SpecError, UnsupportedError
from olsock.hierarchies import Layout
from olsock.spec import Limits

PREFIX = "olsock-"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PERIOD = 100_000  # microseconds of one cpu.max period: the kernel's default, so only the quota is ever written
_STRAY = (
    16  # milliseconds of pause after which a process that is still in a group is taken for more than one that is ending
)
_UNLIMITED = Limits(memory=None, swap=None, cpus=None, pids=None, oom_group=False)
_HINTS = {
    errno.EACCES: "needs root, or a cgroup delegated to this user",
    errno.EPERM: "needs root, or a cgroup delegated to this user",
    errno.EROFS: "the cgroup file system is mounted read-only",
    errno.EAGAIN: "cgroup.max.descendants or cgroup.max.depth of a cgroup above is reached",
}
_supervising = threading.RLock()  # whether this process is in a supervisor leaf; taken again when a tree fails half-way


@dataclass(frozen=True, slots=True)
class Stats:
    """What a cgroup has used. None where nothing on this host counts it."""

    cpu_usec: int
    user_usec: int
    system_usec: int
    memory_bytes: int | None
    memory_peak_bytes: int | None
    pids: int | None
    oom_kills: int


@dataclass(frozen=True, slots=True)
class _Host:
    """What all groups of a tree share: where each controller is, and what is missing."""

    mode: str
    index: dict[str, int]  # controller -> number of its hierarchy; 0 is version 2
    swap: bool  # a swap limit can be set
    gaps: tuple[str, ...]
    owner: int  # pid of the process that made the tree: a fork of it must not take the tree down


class _Level:
    """The directory fds of one level, version 2 first, below which groups are made."""

    def __init__(self, paths: list[str], fds: list[int]) -> None:
        self.paths, self._fds = paths, fds
        self.members: set[Group] = set()

    def fd(self, index: int) -> int:
        try:
            return self._fds[index]
        except IndexError:
            raise KernelError("use", self.paths[index], errno.ENOENT, "the cgroup was removed") from None

    def close(self) -> None:
        for group in list(self.members):
            group._abandon()
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


class Group:
    """One directory in every hierarchy that we use. Safe to use from several threads."""

    def __init__(self, host: _Host, above: _Level, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise SpecError("cgroup name", name, "letters, digits and ._- (128 at most), not beginning with . or -")
        self._host, self._above, self.name = host, above, name
        self._lock = threading.RLock()  # life: the directory fd, removal, which limits are set
        self._waiting = threading.Lock()  # who uses the two fds below: see _events
        self._fd = self._freeze_fd = self._events_fd = self._oom_fd = -1
        self._limits = _UNLIMITED
        self._removed = False
        made: list[int] = []
        try:
            for index in range(len(above.paths)):
                os.mkdir(name, 0o755, dir_fd=above.fd(index))
                made.append(index)
        except OSError as error:
            for index in reversed(made):
                with contextlib.suppress(FileNotFoundError):  # the level above is just being removed with all in it
                    os.rmdir(name, dir_fd=above.fd(index))
            raise _failure("mkdir", os.path.join(above.paths[len(made)], name), error) from None
        above.members.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def paths(self) -> tuple[str, ...]:
        """Absolute directories, version 2 first."""
        return tuple(os.path.join(path, self.name) for path in self._above.paths)

    @property
    def fd(self) -> int:
        """An O_PATH fd of the version 2 directory, for CLONE_INTO_CGROUP; owned by the group."""
        with self._lock:
            if self._fd < 0:
                self._fd = self._open("", os.O_PATH | os.O_DIRECTORY)
            return self._fd

    def detached_fd(self) -> int:
        """Return a new fd of the version 2 directory that leads nowhere else, for handing to a zygote.

        From an ordinary directory fd `openat(fd, "../..")` reaches the whole hierarchy; a detached copy of
        the mount, rooted at this directory, has nothing above it. The copy itself stays here: who receives
        only an fd opened beneath it can attach no mount.
        """
        tree = mounts.open_tree(self._above.fd(0), self.name, clone=True)
        try:
            return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        except OSError as error:
            raise _failure("open", self.paths[0], error) from None
        finally:
            os.close(tree)

    def delegate(self, uid: int) -> None:
        """Let `uid` put processes here: needed on a clone's target and the common ancestor."""
        try:
            os.chown(f"{self.name}/cgroup.procs", uid, -1, dir_fd=self._above.fd(0))
        except OSError as error:
            raise _failure("chown", f"{self.paths[0]}/cgroup.procs", error) from None

    def set(self, limits: Limits) -> None:
        """Put limits in force; None is unlimited. Only what differs from the limits set before is written."""
        with self._lock:
            old = self._limits
            self._require(limits)
            if (limits.memory, limits.swap) != (old.memory, old.swap):
                if self._host.index.get("memory"):
                    self._set_memory_v1(limits, fresh=old.memory is None and old.swap is None)
                else:
                    self._set_memory(limits, old)
            if limits.oom_group != old.oom_group:
                self._write("memory", "memory.oom.group", str(int(limits.oom_group)))
            if limits.pids != old.pids:
                self._write("pids", "pids.max", "max" if limits.pids is None else str(limits.pids))
            if limits.cpus != old.cpus:
                self._set_cpus(limits.cpus)
            self._limits = limits

    def weight(self, high: bool) -> None:
        """Give the group the greatest weight among its siblings, or the usual one; no-op without cpu."""
        index = self._host.index.get("cpu")
        if index == 0:
            self._write("cpu", "cpu.weight", "10000" if high else "100")
        elif index is not None:
            self._write("cpu", "cpu.shares", "262144" if high else "1024")

    def open_tasks(self) -> list[int]:
        """Return new fds of the version 1 `tasks` files, for a process to enter them by writing "0"; none on version 2.

        The way to the limits that costs no lock: see csrc/child/privilege.c, join_cgroups.
        """
        opened: list[int] = []
        try:
            for index in range(1, len(self._above.paths)):
                path = f"{self.name}/tasks"
                opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._above.fd(index)))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise _failure("open", f"{self.paths[len(opened) + 1]}/tasks", error) from None
        return opened

    def has(self, pid: int) -> bool:
        """Return whether a process is in every directory of the group, as this process's pid namespace numbers it."""
        return all(str(pid) in self._get(index, "cgroup.procs").split() for index in range(len(self._above.paths)))

    def attach(self, pid: int) -> None:
        """Put a process that was born in the version 2 directory under the controllers on version 1."""
        for index in range(1, len(self._above.paths)):
            self._put(index, "cgroup.procs", str(pid))

    def adopt(self, pid: int) -> None:
        """Move a process here from wherever it is. Slow (a global lock): not for the path of a request."""
        self._put(0, "cgroup.procs", str(pid))
        self.attach(pid)

    def attach_all(self) -> None:
        """`attach` every process of the version 2 directory, those that are forked meanwhile included."""
        if len(self._above.paths) == 1:
            return
        done: set[int] = set()
        # What a process forks after its own move is born in the right place, so each round finds only what
        # was forked before its parent's move, and soon nothing.
        while fresh := set(self.pids()) - done:
            for pid in fresh:
                try:
                    self.attach(pid)
                except KernelError as error:
                    if error.errno != errno.ESRCH:  # it has died
                        raise
            done |= fresh

    def pids(self) -> list[int]:
        """Return the processes in this very directory (not below it), as our pid namespace numbers them."""
        return [pid for pid in map(int, self._get(0, "cgroup.procs").split()) if pid]

    def populated(self) -> bool:
        """Return whether any process is left, here or below."""
        return "populated 1" in self._get(0, "cgroup.events")

    def freeze(self, timeout: float = 5.0) -> None:
        """Stop every process, here and below, confirmed by the kernel; `DeadlineError` leaves them running."""
        self._set_frozen(True, timeout)

    def thaw(self, timeout: float = 5.0) -> None:
        """Let every process run again, confirmed by the kernel."""
        self._set_frozen(False, timeout)

    def kill(self) -> None:
        """Kill every process, here and below, frozen ones and those being forked included. Does not wait."""
        with self._lock:
            if not self._removed:
                try:
                    self._put(0, "cgroup.kill", "1")
                except KernelError as error:
                    # It went with the one above it, so nobody is left in it.
                    if error.errno not in (errno.ENOENT, errno.ENODEV):
                        raise

    def wait_empty(self, deadline: float) -> bool:
        """Wait at most `deadline` seconds until no process is left, here and below; return whether so."""
        with self._events() as fd:
            return cgroup.wait_empty(fd, deadline)

    def oom_kills(self) -> int:
        """Return how many processes the memory limit has killed, here and below. Cheap: one small file."""
        index = self._host.index.get("memory")
        if index is None:
            return 0
        file = "memory.oom_control" if index else "memory.events"
        with self._lock:
            if self._oom_fd < 0:  # kept open: this is read after every program
                self._oom_fd = self._open(file, os.O_RDONLY, index)
            try:
                return _counters(os.pread(self._oom_fd, 4096, 0).decode()).get("oom_kill", 0)
            except OSError as error:
                raise _failure("read", f"{self.paths[index]}/{file}", error) from None

    def stats(self) -> Stats:
        """Return what the group has used so far."""
        cpu = _counters(self._get(0, "cpu.stat"))  # version 2 keeps these with or without the cpu controller
        v1 = bool(self._host.index.get("memory"))
        return Stats(
            cpu_usec=cpu.get("usage_usec", 0),
            user_usec=cpu.get("user_usec", 0),
            system_usec=cpu.get("system_usec", 0),
            memory_bytes=self._number("memory", "memory.usage_in_bytes" if v1 else "memory.current"),
            memory_peak_bytes=self._number("memory", "memory.max_usage_in_bytes" if v1 else "memory.peak"),
            pids=self._number("pids", "pids.current"),
            oom_kills=self.oom_kills(),
        )

    def open_memory(self) -> int | None:
        """Return a new fd of a file with the bytes charged now, read with pread; None where nothing counts them."""
        index = self._host.index.get("memory")
        if index is None:
            return None
        return self._open("memory.usage_in_bytes" if index else "memory.current", os.O_RDONLY, index)

    def open_memory_peak(self) -> int | None:
        """Return a new fd of a file with the most bytes ever charged; None where nothing tells (before Linux 5.19)."""
        index = self._host.index.get("memory")
        if index is None:
            return None
        try:
            return self._open("memory.max_usage_in_bytes" if index else "memory.peak", os.O_RDONLY, index)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def open_freeze(self) -> int:
        """Return a new fd: "1" or "0" written to it freezes or thaws, whoever holds it."""
        return self._open("cgroup.freeze", os.O_WRONLY)

    def open_kill(self) -> int:
        """Return a new fd: "1" written to it kills all, whoever holds it."""
        return self._open("cgroup.kill", os.O_WRONLY)

    def open_events(self) -> int:
        """Return a new fd of cgroup.events: one for each who waits, as it keeps what a poll has seen."""
        return self._open("cgroup.events", os.O_RDONLY)

    def open_memory_events(self) -> int | None:
        """Return a new fd of memory.events; None where memory is on version 1: ask `oom_kills`."""
        return self._open("memory.events", os.O_RDONLY) if self._host.index.get("memory") == 0 else None

    def remove(self, deadline: float = 10.0) -> None:
        """Kill all, wait for the end, remove the directories. Idempotent; after `DeadlineError` try again."""
        if os.getpid() != self._host.owner:
            return
        end = time.monotonic() + deadline
        with self._lock:
            if self._removed:
                return
            try:
                self._end_processes(end)
            except KernelError as error:
                if error.errno not in (
                    errno.ENOENT,
                    errno.ENODEV,
                ):  # the level above was removed with all in it
                    raise
            for fd, path in self._directories():
                prune(fd, self.name, path, end)
            self._abandon()

    def _abandon(self) -> None:
        """The directories are gone, or not ours to care for any more: close what is open of them."""
        with self._lock:
            self._removed = True
            self._above.members.discard(self)
            self._close()

    def _directories(self) -> list[tuple[int, str]]:
        """Return (fd of the directory above, path), or nothing when the level above is gone already."""
        try:
            return [(self._above.fd(index), path) for index, path in enumerate(self.paths)]
        except KernelError:
            return []

    def _end_processes(self, end: float) -> None:
        if not self.populated():
            return
        self.kill()
        # A CPU limit holds for dying too. Only when the end does not come at once is it worth lifting it.
        if self.wait_empty(min(0.02, max(0.0, end - time.monotonic()))):
            return
        if self._limits.cpus is not None:
            self._set_cpus(None)
        if not self.wait_empty(max(0.0, end - time.monotonic())):
            raise DeadlineError(f"{self.paths[0]}: processes {self.pids()} are still there after they were killed")

    def _close(self) -> None:
        with self._waiting:
            fds = (self._fd, self._freeze_fd, self._events_fd, self._oom_fd)
            self._fd = self._freeze_fd = self._events_fd = self._oom_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _require(self, limits: Limits) -> None:
        """Refuse limits that nothing on this host can enforce."""
        asked = {"memory": limits.memory, "pids": limits.pids, "cpu": limits.cpus}
        for controller, value in asked.items():
            if value is not None and controller not in self._host.index:
                raise UnsupportedError(
                    f"no cgroup {controller} controller on this host: start without that limit, or boot with "
                    f"(cgroup_enable={controller}); see `olsock doctor`"
                )
        if limits.oom_group and self._host.index.get("memory") != 0:
            raise UnsupportedError("oom_group needs the memory controller on cgroup version 2, and it is not there")

    def _set_memory(self, limits: Limits, old: Limits) -> None:
        if limits.memory != old.memory:
            self._write("memory", "memory.max", "max" if limits.memory is None else str(limits.memory))
        if limits.swap != old.swap and self._host.swap:
            self._write("memory", "memory.swap.max", "max" if limits.swap is None else str(limits.swap))

    def _set_memory_v1(self, limits: Limits, fresh: bool) -> None:
        """Version 1 limits memory, and memory plus swap; the second may at no moment be the smaller one."""
        memory = "-1" if limits.memory is None else str(limits.memory)
        both = "-1" if limits.memory is None or limits.swap is None else str(limits.memory + limits.swap)
        if self._host.swap:
            if not fresh:
                self._write("memory", "memory.memsw.limit_in_bytes", "-1")
            self._write("memory", "memory.limit_in_bytes", memory)
            if both != "-1":
                self._write("memory", "memory.memsw.limit_in_bytes", both)
            return
        self._write("memory", "memory.limit_in_bytes", memory)
        if limits.swap == 0:
            self._write("memory", "memory.swappiness", "0")

    def _set_cpus(self, cpus: float | None) -> None:
        quota = None if cpus is None else max(1000, round(cpus * _PERIOD))  # the kernel refuses less than a millisecond
        if self._host.index["cpu"]:
            self._write("cpu", "cpu.cfs_quota_us", "-1" if quota is None else str(quota))
        else:
            self._write("cpu", "cpu.max", f"{'max' if quota is None else quota} {_PERIOD}")

    def _set_frozen(self, frozen: bool, timeout: float) -> None:
        with self._events() as events_fd:
            own = events_fd != self._events_fd
            if own or self._freeze_fd < 0:
                fd = self.open_freeze()
                if not own:
                    self._freeze_fd = fd
            else:
                fd = self._freeze_fd
            try:
                cgroup.freeze(fd, events_fd, frozen, timeout)
            finally:
                if own:
                    os.close(fd)

    @contextlib.contextmanager
    def _events(self) -> Iterator[int]:
        """Lend the kept fd of cgroup.events, or open another while somebody else waits on it.

        Two waiters on one open file would take each other's changes (wait_event in csrc/core/cgroup.c).
        """
        if self._waiting.acquire(blocking=False):
            try:
                if self._events_fd < 0:
                    self._events_fd = self.open_events()
                yield self._events_fd
            finally:
                self._waiting.release()
            return
        fd = self.open_events()
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, file: str, flags: int, index: int = 0) -> int:
        path = f"{self.name}/{file}" if file else self.name
        try:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._above.fd(index))
        except KernelError:
            raise
        except OSError as error:
            raise _failure("open", os.path.join(self._above.paths[index], path), error) from None

    def _write(self, controller: str, file: str, text: str) -> None:
        self._put(self._host.index[controller], file, text)

    def _put(self, index: int, file: str, text: str) -> None:
        try:
            cgroup.write(self._above.fd(index), f"{self.name}/{file}", text)
        except KernelError as error:
            raise _failure(error.step, f"{self.paths[index]}/{file}", error, f"writing {text!r}") from None

    def _get(self, index: int, file: str) -> str:
        try:
            return cgroup.read(self._above.fd(index), f"{self.name}/{file}")
        except KernelError as error:
            raise _failure(error.step, f"{self.paths[index]}/{file}", error) from None

    def _number(self, controller: str, file: str) -> int | None:
        index = self._host.index.get(controller)
        if index is None:
            return None
        try:
            return int(self._get(index, file))
        except KernelError as error:
            if error.errno == errno.ENOENT and not file.endswith("current"):  # memory.peak came with Linux 5.19
                return None
            raise


class Leaf(Group):
    """The cgroup of one sandbox."""


class _Inner(Group):
    """A cgroup whose processes are all in groups below it."""

    def __init__(self, host: _Host, above: _Level, name: str) -> None:
        super().__init__(host, above, name)
        self._level = _Level([], [])
        try:
            self._level = open_level(list(self.paths))
            for controller in sorted(c for c, index in host.index.items() if index == 0):
                cgroup.write(self._level.fd(0), "cgroup.subtree_control", f"+{controller}")
        except BaseException:
            self.remove()
            raise

    def leaf(self, name: str) -> Leaf:
        """Make the cgroup of one sandbox."""
        return Leaf(self._host, self._level, name)

    def domain(self, name: str) -> Domain:
        """Make an inner cgroup."""
        return Domain(self._host, self._level, name)

    def _close(self) -> None:
        self._level.close()
        super()._close()


class Domain(_Inner):
    """Leaves that belong together: the common ancestor within which a zygote may clone."""


class Tree(_Inner):
    """All cgroups of one process of the library."""

    def __init__(self, host: _Host, layout: Layout, name: str, supervising: bool) -> None:
        self._parents = open_level([layout.v2.parent, *(h.parent for h in layout.v1)])
        self._layout, self._supervising = layout, supervising
        try:
            super().__init__(host, self._parents, PREFIX + name)
        except BaseException:
            self._parents.close()
            raise

    @classmethod
    def create(cls, name: str, parent: str | None = None) -> Self:
        """Make `<parent>/olsock-<name>` in every hierarchy; see `hierarchies.find` for `parent`."""
        layout = hierarchies.find(parent)
        with _supervising:
            missing, supervising = supervisor.enable(layout.v2)
            try:
                return cls(_survey(layout, missing), layout, name, supervising)
            except BaseException:
                if supervising:
                    supervisor.leave(layout.v2)
                raise

    @property
    def mode(self) -> str:
        """ "unified": all on version 2. "hybrid": controllers on version 1, the rest on version 2."""
        return self._host.mode

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers in force, of memory, pids, cpu and io."""
        return frozenset(self._host.index)

    @property
    def gaps(self) -> tuple[str, ...]:
        """What this host's cgroups cannot do, as sentences."""
        return self._host.gaps

    def close(self, deadline: float = 10.0) -> None:
        """Kill and remove everything below and the tree itself. Idempotent; a fork of the owner only forgets it."""
        self.remove(deadline)

    def remove(self, deadline: float = 10.0) -> None:
        with self._lock:
            if self._removed:
                return
            if os.getpid() != self._host.owner:
                self._abandon()
                return
            super().remove(deadline)
            if self._supervising:
                with _supervising:
                    supervisor.leave(self._layout.v2)

    def _close(self) -> None:
        super()._close()
        self._parents.close()


def open_level(paths: list[str]) -> _Level:
    """Open directories of one level, each checked to be in a cgroup file system."""
    fds: list[int] = []
    level = _Level(paths, fds)
    try:
        for path in paths:
            fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            cgroup.version(fds[-1])
    except OSError as error:
        path = paths[min(len(fds), len(paths)) - 1] if isinstance(error, KernelError) else paths[len(fds)]
        level.close()
        raise _failure(error.step if isinstance(error, KernelError) else "open", path, error) from None
    return level


def prune(parent_fd: int, name: str, path: str, end: float) -> None:
    """Remove an empty cgroup and all below it, by fd, following no links; `end` is a monotonic time."""
    pause = 0
    while True:
        try:
            os.rmdir(name, dir_fd=parent_fd)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise _failure("rmdir", path, error) from None
            if _prune_children(parent_fd, name, path, end):
                continue
            if time.monotonic() >= end:
                raise _failure("rmdir", path, error, "a process of it is still ending") from None
        # The last process has left version 2 but may be on its way out of version 1, which tells nobody when:
        # there is nothing to wait on, so look again, after a moment that grows.
        select.poll().poll(pause)
        pause = min(50, pause * 2 or 1)
        if pause >= _STRAY:
            _end_strays(parent_fd, name)


def _end_strays(parent_fd: int, name: str) -> None:
    """Kill who is in a group that has to go: on version 1 a zygote can enter its handlers', and would keep them."""

    def members() -> list[int]:
        try:
            fd = os.open(f"{name}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=parent_fd)
        except OSError:
            return []
        with open(fd, encoding="ascii") as file:
            return [pid for pid in map(int, file.read().split()) if pid not in (0, os.getpid())]

    for pid in members():
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in members():  # still there: the pidfd is that process and no later one
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def _prune_children(parent_fd: int, name: str, path: str, end: float) -> bool:
    """Remove the groups below `name`; return whether there were any."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _failure("open", path, error) from None
    try:
        with os.scandir(fd) as entries:
            children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for child in children:
            prune(fd, child, f"{path}/{child}", end)
    finally:
        os.close(fd)
    return bool(children)


def _survey(layout: Layout, missing: frozenset[str]) -> _Host:
    """Note where each controller is and what this host cannot do."""
    index = dict.fromkeys(sorted(layout.v2.controllers - missing), 0)
    for number, hierarchy in enumerate(layout.v1, 1):
        index.update(dict.fromkeys(sorted(hierarchy.controllers), number))
    gaps = [f"no {name} controller: its limit is refused" for name in ("memory", "pids", "cpu") if name not in index]
    swap = True
    if "memory" in index:
        where = layout.v1[index["memory"] - 1].parent if index["memory"] else None
        if where is not None:
            swap = Path(where, "memory.memsw.limit_in_bytes").exists()
            if not swap:
                gaps.append("no swap accounting (swapaccount=1): swap is avoided by swappiness 0, not limited")
            gaps.append("memory is on cgroup version 1: no oom_group, no memory.events, no pressure figures")
        elif not Path("/proc/swaps").exists():
            swap = False
            gaps.append("the kernel has no swap: swap limits have no meaning")
    if layout.v1:
        gaps.append("controllers on cgroup version 1: a process is moved into its limits once made (0.1-10 ms)")
    return _Host(layout.mode, index, swap, tuple(gaps), os.getpid())


def _counters(text: str) -> dict[str, int]:
    """Parse "name number" lines."""
    return {
        name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines()) if value.isdigit()
    }


def _failure(step: str, path: str, error: OSError, what: str = "") -> KernelError:
    number = error.errno or errno.EIO
    return KernelError(step, path, number, "; ".join(filter(None, (what, _HINTS.get(number, "")))))
