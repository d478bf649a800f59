"""The stock of half-made sandboxes: used, refilled, never used twice, and gone in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from olsock import leftovers

pytestmark = [pytest.mark.system, pytest.mark.cgroup]

SCRIPT = """
import json, os, sys
import olsock
from olsock import host
from olsock.blanks import Blank

cloned, taken = [], []
remember = Blank.__init__
def __init__(self, *args):
    remember(self, *args)
    cloned.append(self.box.pid)
Blank.__init__ = __init__

for limits in ({}, {}, {"memory": "64M", "pids": 7}, {"rootfs": sys.argv[1]}, {"network": "host"}):
    with olsock.Sandbox(**limits) as box:
        taken.append(box.pid)
        assert box.stats().pids == 1
        if "rootfs" not in limits:
            done = box.run(["sh", "-c", "cat /proc/self/limits; id -u"])
            assert done.returncode == 0, done
        host.current().blanks._stock._pool and host.current().blanks._stock._pool.submit(int).result()
host.close()
print(json.dumps({"cloned": cloned, "taken": taken, "pid": os.getpid()}))
"""


def run(stock: int, root: str) -> dict[str, list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, root],
        env={**os.environ, "OLSOCK_BLANKS": str(stock)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[int]] = json.loads(done.stdout)
    assert not [entry for entry in leftovers.list_instances() if entry.pid == result["pid"]]
    return result


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "root").mkdir()
    tmp_path.chmod(0o755)
    return str(tmp_path / "root")


def test_blanks_are_made_ahead_used_once_and_removed(root: str) -> None:
    result = run(2, root)
    assert len(set(result["taken"])) == 5
    assert set(result["taken"]) <= set(result["cloned"])
    assert len(result["cloned"]) > 5  # some were left over
    assert not [pid for pid in result["cloned"] if os.path.exists(f"/proc/{pid}/ns")]


def test_without_a_stock_each_sandbox_is_made_to_order(root: str) -> None:
    result = run(0, root)
    assert result["taken"] == result["cloned"]
