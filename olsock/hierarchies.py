"""Where control groups are mounted on this host, and in which directories this process may make its own.

A *hierarchy* is one mounted tree of cgroups. A pure cgroup v2 host has one. A hybrid host has one of version
2, often without controllers, and several of version 1 that hold the controllers. Which is which is read from
/proc/self/mountinfo and /proc/self/cgroup; no path is assumed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from olsock.errors import UnsupportedError

# What limits of ours need. io has no limit yet but is accounted where version 2 offers it.
WANTED = frozenset({"memory", "pids", "cpu", "io"})
SUPERVISOR = "olsock-supervisor"
ENVIRONMENT = "OLSOCK_CGROUP"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup tree: its version, where it is mounted, and the directory that our own go into."""

    version: int
    mount_point: str
    controllers: frozenset[str]  # those of WANTED that are in force here
    parent: str  # absolute path


@dataclass(frozen=True, slots=True)
class Layout:
    """The hierarchies that matter: the version 2 one, and the version 1 ones with wanted controllers."""

    v2: Hierarchy
    v1: tuple[Hierarchy, ...]

    @property
    def mode(self) -> str:
        return "hybrid" if self.v1 else "unified"

    @property
    def controllers(self) -> frozenset[str]:
        return self.v2.controllers.union(*(hierarchy.controllers for hierarchy in self.v1))


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    point: str
    version: int
    options: frozenset[str]


def find(parent: str | None = None) -> Layout:
    """Find the hierarchies; `parent` is a path in each of them, else $OLSOCK_CGROUP, else where we are."""
    if parent is None:
        parent = os.environ.get(ENVIRONMENT) or None
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    own = parse_membership(Path("/proc/self/cgroup").read_text())
    return arrange(mounts, own, parent)


def parse_mounts(mountinfo: str) -> list[_Mount]:
    """Return the cgroup mounts of a mountinfo file. One mounted over another at the same point hides it."""
    found: dict[str, _Mount] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 1:
            continue
        point = _unescape(fields[4])
        found.pop(point, None)
        if tail[0] in ("cgroup", "cgroup2"):
            options = frozenset(tail[-1].split(","))
            found[point] = _Mount(_unescape(fields[3]), point, 2 if tail[0] == "cgroup2" else 1, options)
    return list(found.values())


def parse_membership(text: str) -> dict[str, str]:
    """Return, from /proc/PID/cgroup, the path for each version 1 controller; version 2 has the name ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    return paths


def arrange(mounts: Iterable[_Mount], own: Mapping[str, str], parent: str | None) -> Layout:
    """Choose the hierarchies and, in each, the directory below which ours will be made."""
    mounts = list(mounts)
    v1: list[Hierarchy] = []
    taken: set[str] = set()
    for mount in mounts:
        controllers = (mount.options & WANTED) - {"io"} - taken if mount.version == 1 else frozenset[str]()
        if controllers:
            path = parent if parent is not None else own.get(min(controllers), "/")
            directory = _directory(mount, path, parent)
            if directory is None:
                continue
            v1.append(Hierarchy(1, mount.point, controllers, directory))
            taken |= controllers

    for mount in mounts:
        if mount.version != 2:
            continue
        path = parent if parent is not None else own.get("", "/")
        directory = _directory(mount, path, parent)
        if directory is None:
            continue
        # A process that was started in a supervisor leaf (by the one that made it) belongs beside that leaf.
        if parent is None and Path(directory).name == SUPERVISOR:
            directory = str(Path(directory).parent)
        available = frozenset((Path(directory) / "cgroup.controllers").read_text().split())
        return Layout(Hierarchy(2, mount.point, available & WANTED, directory), tuple(v1))
    raise UnsupportedError(
        "no cgroup v2 file system is mounted that shows this process's own cgroup: mount one "
        "(mount -t cgroup2 none /sys/fs/cgroup/unified), or boot with systemd.unified_cgroup_hierarchy=1"
    )


def _directory(mount: _Mount, path: str, asked: str | None) -> str | None:
    """Return the directory that shows cgroup `path` in `mount`; None when this mount does not reach it."""
    if asked is None:
        # A mount may show a part of the hierarchy (containers); a path above our namespace begins with /..
        root = mount.root.rstrip("/")
        if path != root and not path.startswith(root + "/"):
            return None
        path = path[len(root) :]
    if ".." in path.split("/"):
        if asked is None:
            return None
        raise UnsupportedError(f"{ENVIRONMENT}={asked!r}: '..' is not followed")
    directory = os.path.join(mount.point, path.strip("/")) if path.strip("/") else mount.point
    if not Path(directory).is_dir():
        if asked is None:
            return None
        raise UnsupportedError(f"the cgroup {directory} does not exist: make it, or choose another by {ENVIRONMENT}")
    return directory


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes (blank, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
