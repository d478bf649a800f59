"""Twenty thousand events from several connections, while the worker is killed at random moments: none is lost.

An event has run when its number came through a named pipe, which lies in the directory of packages that functions see: no
process of the worker has a hand in that, so none that is killed can make it look as if more, or less, had run.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from worker_process import WorkerProcess, ended, kill

pytestmark = pytest.mark.fault

EVENTS, KILLS, CLIENTS, RUNNING = 20_000, 12, 8, 32
NAMES = ("a", "b", "c", "d")
SOURCE = """
import os, sys
pipe = os.open(next(path for path in (f"{each}/ran" for each in sys.path) if os.path.exists(path)), os.O_WRONLY)
def f(event):
    os.write(pipe, b"%d\\n" % event["n"])
"""
CONFIG = f"""
registry_check = 0.2
packages = ["{{packages}}"]
[events]
running = {RUNNING}
retry_delay = 1.0
"""


class Clients:
    """Send each number until it is accepted, whatever happens to the worker meanwhile."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.accepted: set[int] = set()
        self.again = 0  # requests whose reply did not come: they may have been accepted or not
        self.refused: list[str] = []
        self.up = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def start(self) -> None:
        self.up.set()
        for thread in self._threads:
            thread.start()

    @property
    def working(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120.0)
        assert not self.working

    def _run(self) -> None:
        number = next(self._numbers)
        while number < EVENTS and not self.refused:
            self.up.wait(60.0)
            with suppress(OSError, http.client.HTTPException):
                with closing(http.client.HTTPConnection("127.0.0.1", self.worker.port, timeout=20.0)) as connection:
                    while number < EVENTS and not self.refused:
                        self._send(connection, number)
                        number = next(self._numbers)
                    return
            self.again += 1
            time.sleep(0.01)

    def _send(self, connection: http.client.HTTPConnection, number: int) -> None:
        path = f"/2015-03-31/functions/{NAMES[number % len(NAMES)]}/invocations"
        connection.request("POST", path, json.dumps({"n": number}), {"X-Amz-Invocation-Type": "Event"})
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != 202:
            self.refused.append(f"{reply.status} {data!r}")
        with self._lock:
            self.accepted.add(number)


class Runs(threading.Thread):
    """Counts how often each number has run."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        directory.mkdir()
        directory.chmod(0o755)
        os.mkfifo(directory / "ran")
        (directory / "ran").chmod(0o666)
        self._fd = os.open(
            directory / "ran", os.O_RDWR
        )  # for writing, too: so it has no end while nobody else has it open
        self.counts = Counter[int]()

    def run(self) -> None:
        rest = b""
        while not rest.endswith(b"end"):
            *lines, rest = (rest + os.read(self._fd, 65536)).split(b"\n")
            self.counts.update(map(int, lines))

    def stop(self) -> None:
        """Take in all that was written before."""
        if self.is_alive():
            os.write(self._fd, b"end")
            self.join()
            os.close(self._fd)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path / "packages")
    made.start()
    yield made
    made.stop()


@pytest.mark.timeout(400)
def test_no_event_is_lost(
    tmp_path: Path,
    runs: Runs,
    fresh: Callable[..., WorkerProcess],
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[..., None],
) -> None:
    config = CONFIG.format(packages=tmp_path / "packages")
    worker, chance = fresh(dict.fromkeys(NAMES, (SOURCE, "")), config), random.Random(6)
    clients = Clients(worker)
    begun = time.monotonic()
    clients.start()
    for number in range(KILLS):
        time.sleep(chance.uniform(0.1, 1.6))  # no moment is better than another
        clients.up.clear()
        assert worker.process is not None
        kill(worker.pid if number % 2 else worker.front)
        assert ended(worker.pid, 30.0)
        worker.process.wait()
        worker.start()
        clients.up.set()
    clients.join()
    assert not clients.refused and clients.accepted == set(range(EVENTS))
    worker.until(lambda: worker.stats()["events"]["waiting"] == 0, timeout=120.0)
    runs.stop()
    ran = runs.counts
    lost = clients.accepted - ran.keys()
    twice = sum(ran.values()) - len(ran)
    record_property("duplicates", twice)
    with capsys.disabled():
        took = time.monotonic() - begun
        print(f"\n{EVENTS} events, {KILLS} kills, {took:.0f} s: {len(lost)} lost, {twice} ran again,", end=" ")
        print(f"{clients.again} sent again ", end="")
    assert not lost, f"accepted and never run: {sorted(lost)[:20]}"
    assert worker.stats()["events"]["dead_letters"]["kept"] == 0
    most = KILLS * (RUNNING + len(NAMES)) + clients.again
    assert twice <= most, "more than what was under way when the worker was killed has run again"
