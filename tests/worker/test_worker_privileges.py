"""Two processes, one privilege: who may do what, and what each holds open."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from worker_process import WorkerProcess

pytestmark = [pytest.mark.system, pytest.mark.attack]

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def open_files(pid: int) -> list[str]:
    """What a process has open; it may close something while we look."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def internet_sockets(pid: int) -> list[str]:
    """Lines of the tables of internet sockets whose inode the process holds."""
    held = {link[8:-1] for link in open_files(pid) if link.startswith("socket:[")}
    lines = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
        path = Path(f"/proc/net/{table}")
        if path.exists():
            lines += [line for line in path.read_text().splitlines()[1:] if line.split()[9] in held]
    return lines


def test_the_front_has_no_privilege(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    front = status(worker.front)
    assert "0" not in front["Uid"].split() and "0" not in front["Gid"].split()
    assert len(set(front["Uid"].split())) == 1 and front["Groups"] == ""
    assert {name: int(front[name], 16) for name in SETS} == dict.fromkeys(SETS, 0)
    assert front["NoNewPrivs"] == "1"
    broker = status(worker.pid)  # the control: the same file shows that the broker has what the front gave up
    assert broker["Uid"].split() == ["0"] * 4 and int(broker["CapEff"], 16) != 0


def test_the_broker_holds_no_internet_socket(worker: WorkerProcess) -> None:
    with worker.connect():
        worker.call("echo", 1)
        assert internet_sockets(worker.pid) == []
        assert len(internet_sockets(worker.front)) >= 2  # the control: the listener and this connection


def test_the_front_holds_nothing_of_roots(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    uid = int(status(worker.front)["Uid"].split()[0])
    allowed = (
        "/state/code",
        "/state/logs",
        "/state/locks",
        "/state/store",
        "/cgroup.freeze",
        "/cgroup.kill",
        "/memory.events",
    )
    allowed += ("/memory.current", "/memory.usage_in_bytes", "/dev/null", "/stderr")
    allowed += ("/memory.peak", "/memory.max_usage_in_bytes")
    allowed += ("/memfd:content",)  # what the broker was asked for: a lock, bytecode
    for link in open_files(worker.front):
        if link.startswith("/"):
            assert any(part in link for part in allowed), link
        else:
            assert link.split(":")[0] in ("socket", "pipe", "anon_inode"), link
    for name in ("code", "logs", "locks", "store"):
        assert (worker.state / name).stat().st_uid == uid
    mode = worker.state.stat()
    assert (mode.st_uid, mode.st_mode & 0o777) == (0, 0o700)


def test_the_front_cannot_be_looked_into(worker: WorkerProcess) -> None:
    """Not dumpable: its /proc entries belong to root, so that another process of the same user cannot trace it."""
    assert Path(f"/proc/{worker.front}/environ").stat().st_uid == 0


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    probe = """
    import json, os, socket
    def f(event):
        found = {"uid": os.getuid(), "fds": len(os.listdir("/proc/self/fd"))}
        for path in event["paths"]:
            try:
                os.stat(path); found[path] = True
            except OSError:
                found[path] = False
        try:
            socket.create_connection(("127.0.0.1", event["port"]), 1.0).close(); found["connect"] = True
        except OSError:
            found["connect"] = False
        return found
    """
    return {"echo": ("def f(event):\n    return event\n", ""), "probe": (probe, "")}


def test_a_function_reaches_neither_worker_nor_registry(worker: WorkerProcess) -> None:
    paths = [str(worker.state), str(worker.registry), "/var/task/f.py"]
    found = worker.call("probe", {"paths": paths, "port": worker.port}).json
    assert found["/var/task/f.py"] is True  # the control: the probe can see a file
    assert found[paths[0]] is False and found[paths[1]] is False
    socket.create_connection(("127.0.0.1", worker.port)).close()  # the control: from here it can be reached
    assert found["connect"] is False
    assert found["uid"] != 0
    assert json.loads(json.dumps(found))["fds"] <= 8
