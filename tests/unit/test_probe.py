"""Kernel features by trying them: the probes agree with the calls they stand for, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from olsock._core._olsock import lib

from olsock._core import probe, seccomp
from olsock._core.check import call
from olsock.errors import KernelError
from support import bpf
from support.eventually import eventually

pytestmark = pytest.mark.unit


def test_every_probe_of_the_core_has_a_description_and_back() -> None:
    source = Path(__file__).parents[2] / "csrc" / "core" / "probe.c"
    table = source.read_text().partition("probes[] = {")[2].partition("};")[0]
    assert set(re.findall(r'\{"(\w+)",', table)) == set(probe._PROBES)


def test_features_that_need_no_privilege_work_where_python_uses_them() -> None:
    found = probe.features()
    assert found["pidfd"].ok == _works(lambda: os.close(os.pidfd_open(os.getpid())))
    assert found["memfd"].ok == _works(lambda: os.close(os.memfd_create("x", os.MFD_ALLOW_SEALING)))
    assert found["clone3"].ok
    assert all(feature.detail and feature.what for feature in found.values())
    assert all(bool(feature.advice) != feature.ok for feature in found.values())


def _works(function: object) -> bool:
    try:
        function()  # type: ignore[operator]
    except OSError:
        return False
    return True


def test_an_unknown_probe_is_an_error() -> None:
    with pytest.raises(KernelError, match="no-such-thing"):
        call(lib.ols_probe, b"no-such-thing")


def test_probing_leaves_nothing_behind() -> None:
    """Fds, mounts, children and the process's own namespaces and flags are as before; a second run too."""

    def state() -> tuple[object, ...]:
        status = Path("/proc/self/status").read_text()
        namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
        # a child that was not reaped would stand here, whatever its exit signal
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        fixed = re.findall(r"^(?:NoNewPrivs|Seccomp|Threads|CapEff):.*$", status, re.MULTILINE)
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text(), children, namespaces, fixed

    probe.features.cache_clear()
    before = state()
    for _ in range(3):
        probe.features()
        probe.features.cache_clear()
    # mounts of other processes on this machine come and go meanwhile; what a probe left would stay
    assert eventually(lambda: state() == before), state()


# Each feature, taken away by a filter, is reported as missing: the probes look, they do not guess.
CALLS = {
    "clone3": "clone3",
    "clone_into_cgroup": "clone3",
    "pidfd": "pidfd_open",
    "openat2": "openat2",
    "fsmount": "fsmount",
    "open_tree": "open_tree",
    "move_mount": "move_mount",
    "mount_setattr": "mount_setattr",
    "overlay": "fsconfig",
    "seccomp": "seccomp",
    "tid_address": "prctl get_robust_list",  # the second is the way round the first
    "close_range": "close_range",
    "memfd": "memfd_create",
    "landlock": "landlock_create_ruleset",
    "userns": "mount",
}

UNDER_FILTER = """
import ctypes, struct, sys
from olsock._core import probe
from olsock._core.check import call
program = sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(program, len(program))
fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, fprog, 0, 0) == 0
feature = probe.features()[sys.argv[1]]
print(feature.ok, feature.detail)
"""


def under(program: bytes, feature: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_FILTER, feature],
        input=program,
        capture_output=True,
        timeout=30,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.decode().strip()


@pytest.mark.parametrize("feature", sorted(CALLS))
def test_a_feature_taken_away_is_missed(feature: str) -> None:
    if not probe.features()[feature].ok:
        pytest.skip(f"this host has no {feature} to take away: {probe.features()[feature].detail}")
    rules = {"otherwise": "allow", "newer": "allow", "foreign": "kill"}
    nothing = seccomp.compile({**rules, "rules": []})
    without = seccomp.compile({**rules, "rules": [{"action": "ENOSYS", "names": CALLS[feature].split()}]})
    assert bpf.run(bpf.instructions(without), _native(), seccomp.number(CALLS[feature].split()[0]) or 0) != bpf.ALLOW
    assert under(nothing, feature).startswith("True")
    assert under(without, feature).startswith("False ENOSYS")


def _native() -> int:
    return bpf.X86_64 if os.uname().machine == "x86_64" else bpf.AARCH64


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a capability to give up")
def test_capabilities_are_the_effective_ones() -> None:
    script = (
        "import ctypes; from olsock._core import probe; libc = ctypes.CDLL(None); libc.setresuid(9, 9, 9);"
        "print(probe.features()['cap_sys_admin'].ok, probe.effective_capabilities())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root, timeout=30
    )
    assert done.stdout.split() == ["False", "0"]
    assert probe.features()["cap_sys_admin"].ok == bool(probe.effective_capabilities() >> 21 & 1)


def test_a_feature_is_a_value() -> None:
    feature = probe.features()["clone3"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        feature.ok = False  # type: ignore[misc]
