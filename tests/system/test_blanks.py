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
from olsock.blanks import Blank, Blanks

cloned, taken = [], []
clone = Blanks.clone
def remembering(*args, **kwargs):
    blank = clone(*args, **kwargs)
    cloned.append(blank.box.pid)
    return blank
Blanks.clone = remembering

def settle():
    for stock in host.current().blanks._stocks.values():
        stock._pool.submit(int).result()

same = {"memory": "64M", "pids": 7}
for options in ({}, {}, {}, same, same, {"rootfs": sys.argv[1]}, {"network": "host"}):
    with olsock.Sandbox(**options) as box:
        taken.append(box.pid)
        assert box.stats().pids == 1
        if "rootfs" not in options:
            done = box.run(["cat", "/proc/self/limits"])
            assert done.returncode == 0, done
        if options == same:
            assert box.run(["sh", "-c", "for i in 1 2 3 4 5 6 7; do sleep 1 & done"]).returncode != 0
        settle()
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
    assert len(set(result["taken"])) == 7
    assert set(result["taken"]) <= set(result["cloned"])
    assert result["taken"] != result["cloned"]  # handed out from a stock, and some were left over
    assert len(result["cloned"]) > 7
    assert not [pid for pid in result["cloned"] if os.path.exists(f"/proc/{pid}/ns")]


def test_without_a_stock_each_sandbox_is_made_to_order(root: str) -> None:
    result = run(0, root)
    assert result["taken"] == result["cloned"]
