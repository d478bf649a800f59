"""How the front gives up root, once and for ever."""

from __future__ import annotations

import os
import pwd
import resource
from pathlib import Path

import prctl

from olsock_worker.settings import FRONT_USER, SettingsError

# Block 0 of the ids that olsock uses (olsock.identity) is never given to a sandbox.
FALLBACK_ID = 0x7000_0000


def account(user: str) -> tuple[int, int]:
    """Return (uid, gid) for the front: of `user`, or else of `olsock`, or else an id that nobody else has."""
    if user.isascii() and user.isdigit():
        uid = gid = int(user)
    else:
        try:
            entry = pwd.getpwnam(user or FRONT_USER)
            uid, gid = entry.pw_uid, entry.pw_gid
        except KeyError:
            if user:
                raise SettingsError(f"user={user!r}: no such user on this host") from None
            uid = gid = FALLBACK_ID
    if uid == 0 or gid == 0:
        raise SettingsError(f"user={user!r}: the front must not run as root")
    return uid, gid


def raise_open_files() -> int:
    """Allow as many open files as the hard limit does, and return how many: an instance is seven of them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def drop(uid: int, gid: int) -> None:
    """Become (uid, gid) without any capability, and without a way to get one back."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The bounding set needs CAP_SETPCAP, so it goes first; the ids next; the rest needs nothing.
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for capability in range(last + 1):
        prctl.capbset_drop(capability)
    locked = prctl.SECBIT_NOROOT_LOCKED | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED | prctl.SECBIT_KEEP_CAPS_LOCKED
    prctl.set_securebits(prctl.SECBIT_NOROOT | locked)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit()
    prctl.cap_permitted.limit()
    if prctl.cap_permitted.setuid or os.getresuid() != (
        uid,
        uid,
        uid,
    ):
        raise RuntimeError("privileges were not dropped")
    os.umask(0o022)
