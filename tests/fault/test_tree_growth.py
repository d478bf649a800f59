"""Processes are killed while their trees of zygotes grow, a hundred times: nothing runs on, and the next one removes the rest."""

from __future__ import annotations

import random
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

import olsock
from olsock import leftovers
from support.eventually import eventually
from support.wheels import wheel

pytestmark = pytest.mark.fault

KILLS, AT_ONCE = 100, 4
GROWER = """
import sys
import olsock
from olsock.trees import Node, Plan
store = olsock.PackageStore(sys.argv[1], network="none", environment={"UV_FIND_LINKS": sys.argv[2]})
closure = store.install(olsock.Lock.parse(open(sys.argv[3]).read()))
known, node = sorted(closure.packages), None
for end in range(len(known), 0, -1):
    names = frozenset(known[:end])
    node = Node(packages=names, imports=(known[end - 1].partition("==")[0],), children=(node,) if node else ())
print("ready", flush=True)
while True:
    with olsock.ZygoteTree(store, plan=Plan(Node(children=(node,)))) as tree:
        tree.wait_ready()
        print("root", flush=True)
        tree.warm(closure)
        for _ in range(4):
            with tree.fork(sys.argv[4], closure=closure) as function:
                function.invoke()
            print("called", flush=True)
        tree.wait_idle()
        print("grown", flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with one closure of three packages installed, its lock, and a function that imports them."""
    for name in ("a", "b", "c"):
        wheel(tmp_path / "wheels", name, files={f"{name}.py": "work = sum(range(100_000))\n"})
    environment = {"UV_FIND_LINKS": str(tmp_path / "wheels")}
    with olsock.PackageStore(tmp_path / "store", network="none", environment=environment) as store:
        lock = store.resolve(["a", "b", "c"])
        store.install(lock).close()
    (tmp_path / "lock").write_text(lock.text)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text("import a, b, c\ndef f(event):\n    return a.work\n")
    return tmp_path


@pytest.fixture
def cleaned() -> Iterator[None]:
    yield
    leftovers.clean()


@contextmanager
def growing(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that grows trees and starts functions from them, and says how far it is; killed at the end."""
    arguments = [str(place / name) for name in ("store", "wheels", "lock", "code")]
    argv = [sys.executable, "-c", GROWER, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str]) -> str:
    """The next thing that it says."""
    assert process.stdout and process.stderr
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(300)
def test_killed_a_hundred_times(place: Path, cleaned: None) -> None:
    chance = random.Random(7)
    heard, left = set(), 0
    for _ in range(KILLS // AT_ONCE):
        family: list[psutil.Process] = []
        with ExitStack() as stack:
            growers = [stack.enter_context(growing(place)) for _ in range(AT_ONCE)]
            for grower in growers:
                heard |= {hear(grower) for _ in range(chance.choice((1, 1, 1, 2, 2, 2, 3, 4, 7)))}
                select.poll().poll(chance.uniform(0, 60))
                family += psutil.Process(grower.pid).children(recursive=True)
                grower.kill()
        assert eventually(lambda each=family: not any(runs(one) for one in each)), "somebody runs on"
        dead = [entry for entry in leftovers.list_instances() if entry.pid in {each.pid for each in growers}]
        left += len(dead)
        leftovers.clean()
        assert not [entry for entry in leftovers.list_instances() if entry.pid in {each.pid for each in growers}]
    assert left and {"ready\n", "root\n", "called\n", "grown\n"} <= heard, "at every stage"
    with growing(place) as grower:
        while hear(grower) != "grown\n":
            pass
