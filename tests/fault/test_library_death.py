"""The library's process or its spawner is killed: nothing of it runs on, and the next process removes what is left."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olsock import leftovers
from support.eventually import eventually

pytestmark = pytest.mark.fault

OWNER = """
import json, os, sys
import olsock
from olsock import host
code = sys.argv[1]
box = olsock.Sandbox()
child = box.popen(["sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & sleep 1000"], stdout=olsock.DEVNULL, stderr=olsock.DEVNULL)
zygote = olsock.Zygote(["json"])
forked, cold = zygote.fork(code), olsock.Function(code)
assert forked.invoke(1) == cold.invoke(1) == 1
if "paused" in sys.argv:
    box.pause(), forked.pause(), cold.pause()
mine = host.current()
inside = {pid for path in mine.tree.paths[:1] for at, _, _ in os.walk(path) for pid in open(at + "/cgroup.procs").read().split()}
print(json.dumps({"pids": [int(pid) for pid in inside], "spawner": mine.spawner.pid, "cgroups": list(mine.tree.paths),
                  "directory": mine.instance.directory}), flush=True)
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""


class Owner:
    """A process with a sandbox, a zygote and two functions."""

    def __init__(self, process: subprocess.Popen[str], made: dict[str, Any]) -> None:
        self.process, self.made = process, made
        self.pidfds = [os.pidfd_open(pid) for pid in (*made["pids"], made["spawner"])]

    def evaluate(self, expression: str) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def all_ended(self, timeout: float = 20) -> bool:
        """Whether every process has ended, waited for by their pidfds."""
        return all(select.select([fd], [], [], timeout)[0] for fd in self.pidfds)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text("def f(event): return event")
    return tmp_path / "code"


@contextlib.contextmanager
def owner(code: Path, *how: str) -> Iterator[Owner]:
    argv = [sys.executable, "-c", OWNER, str(code), *how]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        made = Owner(process, json.loads(process.stdout.readline()))
        try:
            yield made
        finally:
            process.kill()
            for fd in made.pidfds:
                os.close(fd)


def test_an_owner_that_exits_leaves_nothing(code):
    with owner(code) as process:
        process.process.communicate("")
        assert process.all_ended()
        assert not any(os.path.exists(path) for path in (*process.made["cgroups"], process.made["directory"]))


def test_everything_ends_with_a_killed_owner_and_is_removed_by_the_next(code):
    with owner(code) as process:
        assert len(process.made["pids"]) >= 8
        process.kill()
        assert process.all_ended()
        assert os.path.exists(process.made["directory"])
        leftovers.clean()
        assert not any(os.path.exists(path) for path in (*process.made["cgroups"], process.made["directory"]))


def test_what_was_frozen_ends_when_it_is_cleaned(code):
    with owner(code, "paused") as process:
        process.kill()
        leftovers.clean()
        assert process.all_ended()
        assert not any(os.path.exists(path) for path in (*process.made["cgroups"], process.made["directory"]))


def test_a_living_owner_is_left_alone(code):
    with owner(code) as process:
        leftovers.clean()
        assert process.evaluate("[forked.invoke(2), cold.invoke(3), box.alive]") == [2, 3, True]
        process.process.communicate("")


def test_what_lives_outlives_the_spawner_and_another_takes_its_place(code):
    with owner(code) as process:
        os.kill(process.made["spawner"], signal.SIGKILL)
        assert eventually(lambda: select.select([process.pidfds[-1]], [], [], 0)[0])
        assert process.evaluate("[forked.invoke(2), cold.invoke(3), box.alive]") == [2, 3, True]
        assert process.evaluate("box.run(['echo', 'here']).stdout.decode()") == "here\n"
        assert process.evaluate("zygote.fork(code).invoke(4)") == 4
        new = "(lambda box: [box.run(['hostname']).stdout.decode(), box.close()])(olsock.Sandbox(hostname='new'))"
        assert process.evaluate(new) == ["new\n", None]
        assert process.evaluate("(lambda zygote: [zygote.fork(code).invoke(5), zygote.close()])(olsock.Zygote())") == [
            5,
            None,
        ]
        assert process.evaluate("[host.current().spawner.pid != mine.spawner.pid or mine.spawner.alive]") == [True]
        assert process.evaluate("[forked.invoke(6), cold.invoke(7), box.alive]") == [6, 7, True]
        process.process.communicate("")
        assert process.all_ended()
        assert not any(os.path.exists(path) for path in (*process.made["cgroups"], process.made["directory"]))


def test_the_spawner_does_not_outlive_its_owner(code):
    with owner(code) as process:
        process.kill()
        assert select.select([process.pidfds[-1]], [], [], 20)[0]
        leftovers.clean()


def test_a_fork_of_the_owner_keeps_nothing_alive(code):
    with owner(code) as process:
        child = process.evaluate("os.fork() or __import__('select').poll().poll()")
        try:
            process.kill()
            assert process.all_ended()
            leftovers.clean()
            assert not os.path.exists(process.made["directory"])
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_owner_that_is_told_to_end_leaves_what_the_next_one_removes(code, number):
    with owner(code) as process:
        process.process.send_signal(number)
        process.process.wait()
        assert process.all_ended()
        leftovers.clean()
        assert not any(os.path.exists(path) for path in (*process.made["cgroups"], process.made["directory"]))
