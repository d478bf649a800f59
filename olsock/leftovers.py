"""What a process of the library leaves behind when it is killed, and how the next one finds and removes it.

Each process that makes sandboxes has a directory /run/olsock/<pid>-<random>/ with two files of ours: `lock`,
held by flock(2) as long as the process lives, and `state.json`, which names what was made outside that
directory. The lock is the only sign of life that counts: it cannot outlive the process, and neither pids nor
times need to be believed.

Nothing that lives is touched, and nothing is removed on the word of a file alone: cgroups and directories
must bear a name of ours, be where no symbolic link leads, and cgroups must lie in a cgroup file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import msgspec

from olsock import cgroups, hierarchies, network, rundir
from olsock._core import cgroup, mounts
from olsock.errors import KernelError, OlsockError

Kind = Literal["cgroups", "directories"]

_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{8}")
_DEADLINE = 10.0


class _State(msgspec.Struct):
    """state.json."""

    pid: int = 0
    started: float = 0.0
    argv0: str = ""
    cgroups: list[str] = msgspec.field(default_factory=list)
    directories: list[str] = msgspec.field(default_factory=list)


class Instance:
    """This process's own entry. Closing it removes it; being killed leaves it for `clean`."""

    def __init__(self, name: str, directory: str, lock_fd: int) -> None:
        self.name, self.directory = name, directory
        self._lock_fd, self._owner = lock_fd, os.getpid()
        self._state = _State(self._owner, time.time(), sys.argv[0] if sys.argv else "")
        # A forked child must not keep the lock, or its parent would seem to live as long as it does.
        os.register_at_fork(after_in_child=self._forked)

    @classmethod
    def create(cls, run: str = rundir.RUN) -> Self:
        """Make and lock the entry of this process."""
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        with _run_locked(run) as run_fd:
            os.mkdir(name, 0o700, dir_fd=run_fd)
            fd = os.open(f"{name}/lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=run_fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        instance = cls(name, os.path.join(run, name), fd)
        instance._write()
        return instance

    def record(self, kind: Kind, *values: str) -> None:
        """Note that something outlives this process unless it is removed: call it before that is made."""
        known: list[str] = getattr(self._state, kind)
        known += [value for value in values if value not in known]
        self._write()

    def forget(self, kind: Kind, *values: str) -> None:
        """Note that something was removed."""
        known: list[str] = getattr(self._state, kind)
        known[:] = [value for value in known if value not in values]
        self._write()

    def record_cgroups(self, paths: Iterable[str]) -> None:
        """Note the directories of our cgroup tree, the version 2 one first."""
        self.record("cgroups", *paths)

    def close(self) -> None:
        """Remove the entry. Idempotent; a fork of the owner leaves it alone."""
        if self._lock_fd < 0 or os.getpid() != self._owner:
            return
        with _run_locked(os.path.dirname(self.directory)) as run_fd:
            _remove_tree(run_fd, self.name)
        self._forked()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        path = os.path.join(self.directory, "state.json")
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(self._state))
        os.rename(f"{path}.new", path)

    def _forked(self) -> None:
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Entry:
    """A process of the library, alive or not, as `olsock ps` shows it."""

    name: str
    alive: bool
    pid: int
    started: float  # seconds since the epoch
    argv0: str
    sandboxes: int  # leaves of its cgroup tree with a process in them
    cgroups: tuple[str, ...]
    directories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that `clean` removed, or could not."""

    instance: str
    what: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}" if self.problem else self.what


def list_instances(run: str = rundir.RUN) -> list[Entry]:
    """Return every process of the library on this host, and every one that left something."""
    if not os.path.isdir(run):
        return []
    with _run_locked(run) as run_fd:
        entries = []
        for name in _names(run_fd):
            lock_fd = _lock_if_dead(run_fd, name)
            if lock_fd is not None:
                os.close(lock_fd)
            entries.append(_entry(run_fd, name, alive=lock_fd is None))
    return entries


def clean(run: str = rundir.RUN) -> list[Removal]:
    """Remove what dead processes of the library left: processes, cgroups, directories, network interfaces."""
    removed: list[Removal] = []
    if not os.path.isdir(run):
        return removed
    with _run_locked(run) as run_fd:
        names = _names(run_fd)
    for name in names:
        with _run_locked(run) as run_fd:
            lock_fd = _lock_if_dead(run_fd, name)
            if lock_fd is None:
                continue
            entry = _entry(run_fd, name, alive=False)
        # Holding the dead one's lock keeps other cleaners away, so the host's lock is free while we wait for
        # processes to end.
        try:
            removed += _clean(run, entry)
        finally:
            os.close(lock_fd)
    return removed


def _clean(run: str, entry: Entry) -> list[Removal]:
    removed = []
    todo: list[tuple[str, Callable[[str], bool]]] = [(path, _remove_cgroup) for path in _all_cgroups(entry)]
    todo += [(path, _remove_directory) for path in entry.directories]
    for what, remove in todo:
        try:
            if remove(what):
                removed.append(Removal(entry.name, what))
        except (OSError, OlsockError) as error:
            removed.append(Removal(entry.name, what, str(error)))
    try:
        # The interfaces themselves say whose they are.
        removed += [Removal(entry.name, f"network interface {link}") for link in network.clean({entry.name})]
    except (OSError, OlsockError) as error:
        removed.append(Removal(entry.name, "network interfaces", str(error)))
    # With a problem left it stays, so that the next clean finds the rest.
    if not any(removal.problem for removal in removed):
        with _run_locked(run) as run_fd:
            _remove_tree(run_fd, entry.name)
        removed.append(Removal(entry.name, os.path.join(run, entry.name)))
    return removed


def _all_cgroups(entry: Entry) -> list[str]:
    """Version 2 first. A process that was killed between making its tree and noting it left a tree with its name."""
    paths = list(entry.cgroups)
    if not paths:
        with contextlib.suppress(OlsockError):
            layout = hierarchies.find()
            paths = [
                os.path.join(hierarchy.parent, cgroups.PREFIX + entry.name) for hierarchy in (layout.v2, *layout.v1)
            ]
    return paths


def _remove_cgroup(path: str) -> bool:
    """Kill what is in a cgroup tree and remove it; return whether there was one."""
    found = _open_parent(path)
    if found is None:
        return False
    parent_fd, name = found
    end = time.monotonic() + _DEADLINE
    try:
        version = cgroup.version(parent_fd)
        try:
            os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if version == 2:
            cgroup.write(parent_fd, f"{name}/cgroup.kill", "1")
            events = os.open(f"{name}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent_fd)
            try:
                if not cgroup.wait_empty(events, _DEADLINE):
                    raise KernelError("wait for the end of processes in", path, errno.EBUSY)
            finally:
                os.close(events)
        cgroups.prune(parent_fd, name, path, end)
        return True
    finally:
        os.close(parent_fd)


def _remove_directory(path: str) -> bool:
    found = _open_parent(path)
    if found is None:
        return False
    parent_fd, name = found
    try:
        owner = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_uid
        if owner != os.geteuid():
            raise KernelError("remove", path, errno.EPERM, f"it belongs to uid {owner}")
        _remove_tree(parent_fd, name)
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(parent_fd)


def _open_parent(path: str) -> tuple[int, str] | None:
    """Return (fd of the directory around `path`, last name); None if it is gone. Follows no symbolic link at all."""
    parent, name = os.path.split(path)
    if not os.path.isabs(path) or ".." in path.split("/") or not name.startswith(cgroups.PREFIX):
        raise KernelError("remove", path, errno.EPERM, f"only what is called {cgroups.PREFIX}* is removed")
    try:
        fd = mounts.resolve(mounts.AT_FDCWD, parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, mounts.NO_SYMLINKS)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return fd, name


def _remove_tree(parent_fd: int, name: str) -> None:
    """Remove a directory and all in it by fds, following no links and entering no other file system."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        if os.fstat(fd).st_dev != os.fstat(parent_fd).st_dev:
            raise KernelError("remove", name, errno.EXDEV, "another file system is mounted there")
        with os.scandir(fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in found:
            if is_directory:
                _remove_tree(fd, child)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


@contextlib.contextmanager
def _run_locked(run: str) -> Iterator[int]:
    """Hold the host's lock: an entry appears whole and locked, or not at all, for whoever else holds it."""
    fd = rundir.open_run(run)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _names(run_fd: int) -> list[str]:
    with os.scandir(run_fd) as entries:
        found = [e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    return sorted(found)


def _lock_if_dead(run_fd: int, name: str) -> int | None:
    """Return an fd that holds the lock of a dead process; None if it lives, or is being cleaned up, or is gone."""
    try:
        # Without the file the process died while it made its entry: it held the host's lock then, which we
        # hold now.
        fd = os.open(f"{name}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=run_fd)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _entry(run_fd: int, name: str, *, alive: bool) -> Entry:
    state = _read_state(run_fd, name)
    return Entry(
        name=name,
        alive=alive,
        pid=state.pid or int(name.split("-")[0]),
        started=state.started,
        argv0=state.argv0,
        sandboxes=_busy_leaves(state.cgroups[0]) if state.cgroups else 0,
        cgroups=tuple(state.cgroups),
        directories=tuple(state.directories),
    )


def _read_state(run_fd: int, name: str) -> _State:
    """Read an entry's state; one that was not written whole says nothing."""
    try:
        fd = os.open(f"{name}/state.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=run_fd)
    except FileNotFoundError:
        return _State()
    with open(fd, "rb") as file:
        try:
            return msgspec.json.decode(file.read(), type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _State()


def _busy_leaves(path: str) -> int:
    """Count the leaves of a version 2 cgroup tree that hold processes."""
    count = 0
    for directory, children, _ in os.walk(path):
        if not children and directory != path:
            with contextlib.suppress(OSError):
                with open(f"{directory}/cgroup.events", encoding="ascii") as file:
                    count += "populated 1" in file.read()
    return count
