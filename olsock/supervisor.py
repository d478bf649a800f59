"""Having the cgroup around us give its controllers to our tree, on version 2.

There a cgroup that gives controllers to its children may hold no processes itself, the root excepted. A service that
was started in a cgroup of its own is in exactly that cgroup, so it moves into a leaf beside its tree, as systemd's
documentation on delegation tells such services to. Processes that are not ours are never moved.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from olsock import hierarchies
from olsock.errors import KernelError, UnsupportedError
from olsock.hierarchies import SUPERVISOR, Hierarchy


def enable(v2: Hierarchy) -> tuple[frozenset[str], bool]:
    """Have the parent give its controllers to our tree; return those it keeps, and whether we moved."""
    wanted = sorted(v2.controllers - set(_text(v2.parent, "cgroup.subtree_control").split()))
    if not wanted:
        return frozenset(), False
    # Asked for beforehand, not left to EBUSY: cpu and pids alone would be given in spite of the processes, by making
    # this a threaded domain, which can give no memory any more.
    supervising = not _is_root(v2.parent) and bool(_text(v2.parent, "cgroup.procs").strip())
    if supervising:
        _enter(v2.parent)
    refused = set()
    for controller in wanted:
        try:
            Path(v2.parent, "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            refused.add(controller)
    return frozenset(refused), supervising


def _is_root(directory: str) -> bool:
    """The root of the hierarchy is the one cgroup without a type, and may hold processes whatever it gives."""
    return not Path(directory, "cgroup.type").exists()


def _enter(parent: str) -> None:
    """Move this process out of `parent` into a leaf below it, if it is alone there."""
    pids = [int(pid) for pid in _text(parent, "cgroup.procs").split()]
    if pids != [os.getpid()]:
        raise UnsupportedError(
            f"the cgroup {parent} holds other processes, so it cannot give controllers to sandboxes. Start in "
            "a cgroup of your own: systemd-run --scope -p Delegate=yes COMMAND, or Delegate=yes in the unit; or "
            f"name an empty one (or / for the root) in {hierarchies.ENVIRONMENT}"
        )
    leaf = Path(parent, SUPERVISOR)
    try:
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise KernelError("move this process to", str(leaf), error.errno or errno.EIO) from None


def leave(v2: Hierarchy) -> None:
    """Undo what `enable` did if nobody else depends on it: give nothing any more, and move back."""
    parent = Path(v2.parent)
    if not (parent / SUPERVISOR).is_dir():
        return
    others = [entry.name for entry in os.scandir(parent) if entry.is_dir() and entry.name != SUPERVISOR]
    if others or _text(str(parent / SUPERVISOR), "cgroup.procs").split() != [str(os.getpid())]:
        return
    try:
        for controller in _text(v2.parent, "cgroup.subtree_control").split():
            (parent / "cgroup.subtree_control").write_text(f"-{controller}")
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        (parent / SUPERVISOR).rmdir()
    except OSError:
        pass  # the leaf is harmless, and ends with the cgroup around it


def _text(directory: str, file: str) -> str:
    try:
        return Path(directory, file).read_text()
    except OSError as error:
        raise KernelError("read", f"{directory}/{file}", error.errno or errno.EIO) from None
