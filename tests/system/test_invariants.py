"""The check after every privileged test sees what it is there to see."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from olsock import rundir
from olsock.cgroups import Tree
from support.children import Child
from support.invariants import Snapshot, assert_restored

pytestmark = [pytest.mark.system, pytest.mark.cgroup]


def leak_fd(tmp_path: Path) -> Callable[[], None]:
    fd = os.open("/dev/null", os.O_RDONLY)
    return lambda: os.close(fd)


def leak_mount(tmp_path: Path) -> Callable[[], None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    return lambda: subprocess.run(["umount", tmp_path], check=True) and None


def leak_process(tmp_path: Path) -> Callable[[], None]:
    child = Child("import signal\nsignal.pause()")
    return lambda: child.__exit__(None, None, None)


def leak_zombie(tmp_path: Path) -> Callable[[], None]:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return lambda: os.waitpid(pid, 0) and None


def leak_cgroup(tmp_path: Path) -> Callable[[], None]:
    return Tree.create(f"{os.getpid()}-leak").close


def leak_network(tmp_path: Path) -> Callable[[], None]:
    process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x")
    process.stdin.flush()
    process.stdout.read(1)  # it is in its namespace now
    return lambda: process.communicate() and None


def leak_entry(tmp_path: Path) -> Callable[[], None]:
    entry = Path(rundir.RUN, f"{os.getpid()}-leak")
    entry.mkdir()
    return entry.rmdir


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        (leak_fd, "fds: new: /dev/null"),
        (leak_mount, "mounts: new"),
        (leak_process, "processes: new"),
        (leak_zombie, "zombie"),
        (leak_cgroup, "cgroups: new"),
        (leak_network, "networks: new: net:"),
        (leak_entry, "run_directory: new"),
    ],
)
def test_a_leak_is_seen(tmp_path: Path, leak: Callable[[Path], Callable[[], None]], words: str) -> None:
    before = Snapshot.take()
    assert_restored(before, timeout=0)
    undo = leak(tmp_path)
    try:
        with pytest.raises(AssertionError) as caught:
            assert_restored(before, timeout=0)
        assert words in str(caught.value)
    finally:
        undo()
    assert_restored(before)
