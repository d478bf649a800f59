"""What this machine lets tests do, probed once: each probe returns why not, or an empty string."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

CAP_SYS_ADMIN = 21
CLONE_NEWNS = 0x20000


@functools.cache
def root() -> str:
    """Root of the initial user namespace, allowed to mount."""
    if os.geteuid() != 0:
        return "needs root"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "needs root of the initial user namespace"
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    if not int(status["CapEff"], 16) >> CAP_SYS_ADMIN & 1:
        return "needs CAP_SYS_ADMIN"
    return _unshare_problem()


def _unshare_problem() -> str:
    """Try it, in a child: capabilities say nothing about seccomp filters and security modules around us."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.unshare(CLONE_NEWNS) == 0 else ctypes.get_errno())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"no mount namespace can be made: {os.strerror(code)}" if code else ""


@functools.cache
def cgroups() -> str:
    """Cgroups of our own, with the controllers that limits need, on whichever version."""
    if reason := root():
        return reason
    from olsock.cgroups import Tree
    from olsock.errors import OlsockError

    try:
        with Tree.create(f"{os.getpid()}-probe") as tree:
            missing = {"memory", "pids", "cpu"} - tree.controllers
            return f"no cgroup controller {', '.join(sorted(missing))}" if missing else ""
    except (OlsockError, OSError) as error:
        return f"no cgroups: {error}"


FOR_MARKER = {"system": root, "attack": root, "fault": root, "cgroup": cgroups}
