"""A package that means harm: imported by a zygote, it tries with the zygote's rights what they must not be enough for.

What it found is in RESULTS, which every handler inherits. $HOSTILE says what becomes of forks.
"""

from __future__ import annotations

import os
import signal
import sys

import probes

RESULTS = {}


def umount_each(points):
    return {point: probes.errno.errorcode.get(_umount(point), "ok") for point in points}


def _umount(point):
    return 0 if probes.libc.umount2(point.encode(), 2) == 0 else probes.ctypes.get_errno()  # MNT_DETACH


def cover_each(points):
    """Mount something else over each."""
    return {point: probes.mount("none", point, "tmpfs", 0) for point in points}


def look_around(fds):
    """Where the cgroup's descriptor leads: the same place, or up."""
    cgroup = fds[2]
    found = {"here": os.stat(".", dir_fd=cgroup).st_ino, "up": os.stat("../../../..", dir_fd=cgroup).st_ino}
    for path in ("../zygote/cgroup.procs", "../cgroup.procs", "../../cgroup.procs", "cgroup.freeze", "pids.max"):
        found[path] = probes.outcome(lambda path=path: os.close(os.open(path, os.O_WRONLY, dir_fd=cgroup)))
    return found


def main():
    read_only = [point for point, options, *_ in probes.mounts() if "ro" in options]
    RESULTS["status"] = probes.status()
    RESULTS["pids"] = probes.pids()
    RESULTS["init"] = probes.spy(1)
    RESULTS["remount"] = probes.remount(read_only)
    RESULTS["umount"] = umount_each(read_only)
    if RESULTS["status"]["Seccomp"] == "2" or os.environ.get("HOSTILE") == "cover":  # where it succeeds, no fork will
        RESULTS["cover"] = cover_each(read_only)
    RESULTS["setns"] = probes.setns("/proc/1/ns")
    RESULTS["unshare"] = probes.unshare_each()
    RESULTS["devices"] = probes.mknod("/tmp/node", "c", 1, 1)
    RESULTS["setuid"] = probes.in_child(probes.outcome, os.setresuid, 100000, 100000, 100000)
    RESULTS["children"] = probes.in_child(child_capabilities)
    module = sys.modules.get("_olsock_fork")
    if module is not None:
        real, module.fork = module.fork, lambda request, fds: fork(real, request, fds)


def child_capabilities():
    """What a program that a package starts has."""
    return probes.execute("/bin/grep", "CapEff", "/proc/self/status").split()[1]


def fork(real, request, fds):
    how = os.environ.get("HOSTILE", "")
    RESULTS["cgroup"] = look_around(fds)
    if how == "nobody":
        return 4242
    if how == "exit":
        os._exit(9)
    if how == "hang":
        signal.pause()
    if how == "refuse":
        raise OSError(5, "\udcff" + "x" * 100_000)
    if how == "moves":  # itself into whatever cgroup of the handler's it was given a list of
        RESULTS["moves"] = [probes.outcome(os.write, fd, b"0") for fd in fds[3:]]
    if how == "garbage":
        os.write(3, b"\0\1\2\3\4")
    pid = real(request, fds)
    return 1 if pid and how == "forge" else pid


main()
