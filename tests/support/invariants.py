"""What of the host a test may not change: taken before and after every test that needs root.

Other processes of this library may be at work on the same machine, also ones of another test run: what belongs to a
living process that is neither this one nor below it is left out.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from olsock import hierarchies, rundir
from support.eventually import eventually

PREFIX = "olsock-"
SHARED: set[int] = set()
"""Processes below this one that several tests share, and that go on with work of their own meanwhile."""


@dataclass(frozen=True)
class Snapshot:
    """The state of the host, as far as this process and those below it can have changed it."""

    mounts: Counter[str]
    cgroups: Counter[str]
    processes: Counter[str]
    fds: Counter[str]
    networks: Counter[str]
    run_directory: Counter[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look at everything once. Garbage goes first: fds in reference cycles are for Python to close."""
        gc.collect()
        return cls(
            Counter(_mounts()),
            Counter(_cgroups()),
            Counter(_processes()),
            Counter(_fds()),
            Counter(_networks()),
            Counter(_run_directory()),
        )

    def changes(self, later: Snapshot) -> list[str]:
        """Return what is new and what is gone in `later`, one line each."""
        lines = []
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(later, field.name)
            lines += [f"{field.name}: new: {item}" for item in (new - old).elements()]
            lines += [f"{field.name}: gone: {item}" for item in (old - new).elements()]
        return lines


def assert_restored(before: Snapshot, timeout: float = 10.0) -> None:
    """Fail unless the host is soon as it was. Some of it ends by itself: namespaces, v1 cgroups, reaped children."""
    changes: list[str] = []

    def restored() -> bool:
        changes[:] = before.changes(Snapshot.take())
        return not changes

    if not eventually(restored, timeout):
        raise AssertionError("the test changed the host:\n  " + "\n  ".join(changes))


def _mounts() -> list[str]:
    """Lines of mountinfo without the ids, which are numbers that are given anew."""
    return [" ".join(line.split()[2:]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _cgroups() -> Iterator[str]:
    """Every directory of every tree of ours, by name below its parent."""
    layout = hierarchies.find()
    for hierarchy in (layout.v2, *layout.v1):
        for top in Path(hierarchy.parent).glob(f"{PREFIX}*"):
            if top.is_dir() and not _foreign(top.name.removeprefix(PREFIX)):
                yield str(top)
                yield from (directory for directory, _, _ in os.walk(top) if directory != str(top))


def _run_directory() -> Iterator[str]:
    for entry in Path(rundir.RUN).glob("*"):
        if not _foreign(entry.name):
            yield str(entry)
            if entry.is_dir():
                yield from (str(child) for child in entry.iterdir())


def _foreign(name: str) -> bool:
    """Whether `<pid>-...` belongs to a process that lives and is not below us, or is shared."""
    pid = name.split("-")[0]
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        process = psutil.Process(int(pid))
        return int(pid) in SHARED or psutil.Process() not in process.parents()
    except psutil.NoSuchProcess:
        return False


def _family() -> list[psutil.Process]:
    family = psutil.Process().children(recursive=True)
    for pid in SHARED:
        try:
            shared = psutil.Process(pid)
            family = [each for each in family if each != shared and each not in shared.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return family


def _processes() -> Iterator[str]:
    for process in _family():
        try:
            state = "zombie" if process.status() == psutil.STATUS_ZOMBIE else "alive"
            yield f"{process.pid} {process.name()} {state}"
        except psutil.NoSuchProcess:
            continue


def _fds() -> Iterator[str]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [entry.name for entry in entries]
    for number in numbers:
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one by which we looked
            continue


def _networks() -> Iterator[str]:
    """Network namespaces that we or processes below us are in, and interfaces of ours in the host's."""
    yield from {_namespace(pid) for pid in (os.getpid(), *(process.pid for process in _family()))} - {""}
    yield from (name for name in os.listdir("/sys/class/net") if name.startswith("ols"))


def _namespace(pid: int) -> str:
    """The network namespace of a process; "" if it has ended since it was listed."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
