"""What this kernel offers, each feature found by using it once (csrc/core/probe.c), never by its version."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from olsock._core._olsock import lib
from olsock._core.check import call
from olsock.errors import KernelError


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a sandbox may need of its host: whether it works, how that was seen, and what to do if not."""

    name: str
    ok: bool
    detail: str
    what: str
    advice: str = ""
    required: bool = True  # without it there are no sandboxes, or only weaker ones


# name -> (what it is for, what to do where it is missing, required)
_PROBES: dict[str, tuple[str, str, bool]] = {
    "clone3": ("making processes", "kernel 5.3, and no filter that refuses clone3", True),
    "clone_into_cgroup": ("processes born in their cgroup", "kernel 5.7", True),
    "namespaces": (
        "mount, pid, ipc, uts and cgroup namespaces",
        "run as root with CAP_SYS_ADMIN, with CONFIG_*_NS in the kernel",
        True,
    ),
    "userns": (
        "user namespaces",
        "raise user.max_user_namespaces; where AppArmor restricts them, kernel.apparmor_restrict_unprivileged_userns=0 "
        "or a profile with `userns,`; where Debian does, kernel.unprivileged_userns_clone=1",
        True,
    ),
    "netns": ("network namespaces", "raise user.max_net_namespaces; CONFIG_NET_NS", True),
    "timens": ("time namespaces", "kernel 5.6 with CONFIG_TIME_NS; sandboxes do without", False),
    "proc": (
        "a /proc of a sandbox's own",
        "run where nothing is mounted over parts of /proc: in a container that means systempaths=unconfined, or "
        "outside of it",
        True,
    ),
    "fsmount": ("file systems made without a path", "kernel 5.2 and CAP_SYS_ADMIN", True),
    "open_tree": ("mounts copied by fd", "kernel 5.2 and CAP_SYS_ADMIN", True),
    "move_mount": ("mounts attached by fd", "kernel 5.2 and CAP_SYS_ADMIN", True),
    "mount_setattr": ("read-only mounts, recursively", "kernel 5.12", True),
    "attach_detached": (
        "trees put together before they are attached",
        "kernel 6.15; below it they are put together in a mount namespace of olsock's own, to the same effect",
        False,
    ),
    "idmap": (
        "writable roots whose files belong to the sandbox",
        "kernel 5.12 and a file system below /usr that can be id-mapped; without it writable=True can write only where "
        "anybody may",
        False,
    ),
    "overlay": ("rootfs=DIR and writable=True", "modprobe overlay; /usr must not itself lie two overlays deep", False),
    "seccomp": ("system call filters", "CONFIG_SECCOMP_FILTER", True),
    "tid_address": (
        "forking zygotes with a right thread id",
        "CONFIG_CHECKPOINT_RESTORE (PR_GET_TID_ADDRESS) or glibc; without both there are no zygotes, functions start cold",
        False,
    ),
    "pidfd": ("waiting for and signalling processes", "kernel 5.3", True),
    "openat2": ("paths resolved below a root", "kernel 5.6", True),
    "close_range": ("no inherited files", "kernel 5.9", True),
    "memfd": ("sealed memory files", "CONFIG_MEMFD_CREATE", True),
    "landlock": ("Landlock, which code in a sandbox may use on itself", "CONFIG_SECURITY_LANDLOCK", False),
}

_CAPABILITIES = {"SYS_ADMIN": (21, True), "SYS_RESOURCE": (24, False)}
_CAPABILITY_USES = {
    "SYS_ADMIN": ("namespaces, mounts, id maps", "run as root in the initial user namespace"),
    "SYS_RESOURCE": (
        "limits above this process's own hard ones",
        "start with the highest hard limits (ulimit -H) that a sandbox is to have; oom_score_adj is not lowered again",
    ),
}


@functools.cache
def features() -> dict[str, Feature]:
    """Probe everything; once a process."""
    found = {name: _probe(name) for name in _PROBES}
    found.update({f"cap_{name.lower()}": _capability(name) for name in _CAPABILITIES})
    return found


def _probe(name: str) -> Feature:
    what, advice, required = _PROBES[name]
    try:
        result = call(lib.ols_probe, name.encode())
    except KernelError as failure:
        code = failure.errno or 0
        detail = f"{errno.errorcode.get(code, code)}: {os.strerror(code)}{_more(name)}"
        return Feature(name, False, detail, what, advice, required)
    detail = f"interface version {result}" if name == "landlock" else f"works{_more(name)}"
    return Feature(name, True, detail, what, "", required)


_SETTINGS = {
    "userns": (
        "user/max_user_namespaces",
        "kernel/apparmor_restrict_unprivileged_userns",
        "kernel/unprivileged_userns_clone",
    ),
    "netns": ("user/max_net_namespaces",),
}


def _more(name: str) -> str:
    """Settings that decide about the feature, as far as this kernel has them."""
    values = []
    for setting in _SETTINGS.get(name, ()):
        try:
            value = Path("/proc/sys", setting).read_text().strip()
        except OSError:
            continue  # not in this kernel, or not this distribution's
        values.append(f"{setting.replace('/', '.')}={value}")
    return f" ({', '.join(values)})" if values else ""


def _capability(name: str) -> Feature:
    bit, required = _CAPABILITIES[name]
    what, advice = _CAPABILITY_USES[name]
    held = bool(effective_capabilities() >> bit & 1)
    return Feature(
        f"cap_{name.lower()}", held, "effective" if held else "not effective", what, "" if held else advice, required
    )


def effective_capabilities() -> int:
    """Return this thread's effective capabilities as a bit mask."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
