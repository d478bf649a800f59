"""Processes are killed while they install, merge and evict: what has its name is whole, and the next one removes the rest."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import glob
from pathlib import Path

import pytest

from olsock import PackageStore, leftovers
from olsock.packages import intake
from olsock.packages.scratch import FLAGS, MUTEX
from support.eventually import eventually
from support.wheels import wheel

pytestmark = pytest.mark.fault

KILLS, AT_ONCE = 100, 4
WORKER = """
import sys
import olsock
from olsock import host
store = olsock.PackageStore(sys.argv[1], network="none", environment={"UV_FIND_LINKS": sys.argv[2]})
locks = [olsock.Lock.parse(open(path).read()) for path in sys.argv[3:]]
host.current()
print("ready", flush=True)
while True:
    for lock in locks:
        store.install(lock).close()
        print("installed", flush=True)
        store.evict(0)
        print("evicted", flush=True)
"""


@contextmanager
def working(tmp_path: Path, *locks: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that installs and evicts over and over, and says so; killed at the end."""
    argv = [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(tmp_path / "wheels"), *map(str, locks)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str], lines: int = 1) -> None:
    """Wait until a process has said that many things."""
    assert process.stdout and process.stderr
    for _ in range(lines):
        assert process.stdout.readline(), process.stderr.read()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        files = {f"{name}/m{number}.py": f"x = {number}\n" * 50 for number in range(8)}
        wheel(tmp_path / "wheels", name, files=files)
    return tmp_path / "wheels"


def open_store(tmp_path: Path) -> PackageStore:
    return PackageStore(tmp_path / "store", network="none", environment={"UV_FIND_LINKS": str(tmp_path / "wheels")})


@pytest.fixture
def cleaned() -> Iterator[None]:
    yield
    leftovers.clean()


def whole(store: Path) -> tuple[int, int]:
    """Assert that every distribution and every closure there is complete; return how many there are of each."""
    packages: dict[str, set[int]] = {}
    closures = 0
    for tag in store.glob("cpython-*"):
        fd = os.open(tag, FLAGS)
        for path in tag.glob("*-1.0-*"):
            # What it contains is in its name.
            assert path.name.endswith(f"-{intake.take(fd, path.name, 1 << 30).digest[:32]}")
            packages[path.name] = {each.stat().st_ino for each in path.rglob("*") if each.is_file()}
        os.close(fd)
        for path in (tag / "closures").iterdir():
            if path.is_dir():
                closures += 1
                inodes = {each.stat().st_ino for each in path.rglob("*") if each.is_file()}
                parts = [name for name, of in packages.items() if of & inodes]
                assert inodes and inodes == set().union(*(packages[name] for name in parts))
                assert (tag / "closures" / f"{path.name}.json").exists()
    return len(packages), closures


def unfinished(store: Path) -> list[str]:
    found = [path.name for path in (store / ".scratch").iterdir() if path.name != ".lock"]
    return found + [path.name for tag in store.glob("cpython-*") for path in (tag / ".locks").iterdir()]


@pytest.mark.timeout(300)
def test_killed_a_hundred_times(tmp_path, wheels, cleaned):
    store = open_store(tmp_path)
    texts = []
    for number, names in enumerate((["a", "b"], ["b", "c"], ["a", "b", "c"])):
        texts.append(tmp_path / f"lock-{number}")
        texts[-1].write_text(store.resolve(names).text)
    store.close()
    chance = random.Random(3)
    seen, left = set(), 0
    for _ in range(KILLS // AT_ONCE):
        with ExitStack() as stack:
            workers = [stack.enter_context(working(tmp_path, *chance.sample(texts, 3))) for _ in range(AT_ONCE)]
            for worker in workers:
                hear(worker)
            # How far they get is told by them; how much further, by chance.
            for worker in workers:
                hear(worker, chance.choice((0, 0, 0, 1, 2)))
                select.poll().poll(chance.uniform(0, 50))
                assert worker.poll() is None, worker.stderr and worker.stderr.read()
                worker.kill()
        left += len(unfinished(tmp_path / "store"))
        seen.add(whole(tmp_path / "store"))
        open_store(tmp_path).close()
        assert unfinished(tmp_path / "store") == []
        assert whole(tmp_path / "store") in seen, "nothing that was whole has been removed"
    assert left and len(seen) > 1, "some were killed in the middle of it"
    store = open_store(tmp_path)
    with store.install(store.resolve(["a", "b", "c"])):
        assert whole(tmp_path / "store")[0] >= 3
    assert store.evict(0) == 0 and whole(tmp_path / "store") == (0, 0)
    store.close()


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Whether every thread of a process that was told to stop has done so."""
    states = [Path(path).read_text().rpartition(")")[2].split()[0] for path in glob(f"/proc/{process.pid}/task/*/stat")]
    return set(states) == {"T"}


def held(process: subprocess.Popen[str], directory: Path) -> set[str]:
    """The files of a directory that a process has locked: those that are only open, or another's, do not count."""
    inodes = {each.stat().st_ino: each.name for each in directory.glob("*")}  # there may be no such directory yet
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    mine = [fields[5] for fields in locks if fields[1] == "FLOCK" and fields[4] == str(process.pid)]
    return {inodes[inode] for inode in (int(each.rpartition(":")[2]) for each in mine) if inode in inodes}


def test_who_waits_for_a_killed_one_goes_on(tmp_path, wheels, cleaned):
    """A process is stopped while it installs, so that another waits for it, and killed then."""
    with open_store(tmp_path) as store:
        lock = store.resolve(["a"])
    path = tmp_path / "lock"
    path.write_text(lock.text)
    locks = tmp_path / "store" / lock.tag / ".locks"
    with working(tmp_path, path) as other:
        hear(other)

        def stopped_with_a_lock() -> bool:
            other.send_signal(signal.SIGSTOP)
            assert eventually(lambda: is_stopped(other))
            busy = held(other, locks.parents[1]) | held(other, locks.parents[1] / ".scratch")
            if MUTEX not in busy and any(not name.startswith("closure") for name in held(other, locks)):
                return True  # with what one waits for, and nothing that keeps others from getting so far
            other.send_signal(signal.SIGCONT)
            return False

        assert eventually(stopped_with_a_lock, 30)
        with working(tmp_path, path) as waiting:
            hear(waiting)
            assert waiting.stdout and not select.select([waiting.stdout], [], [], 0.5)[0], "it waits"
            other.kill()
            hear(waiting, 2)
    open_store(tmp_path).close()
    assert unfinished(tmp_path / "store") == []
    whole(tmp_path / "store")
