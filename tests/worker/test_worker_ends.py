"""The worker's own end: drained, forced, killed; and what the next one finds."""

from __future__ import annotations

import http.client
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from worker_process import Reply, WorkerProcess, ended, kill

pytestmark = pytest.mark.fault

Make = Callable[..., WorkerProcess]


def test_a_drain_loses_no_accepted_request(fresh: Make) -> None:
    """Clients that keep their connections and clients that do not, under way when SIGTERM comes."""
    worker = fresh()
    worker.call("slow", {"s": 0})
    answered: list[int] = []
    lost: list[str] = []
    stop = threading.Event()

    def keep() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=20.0)
        closing = False
        while not closing:
            try:
                connection.request("POST", "/run/slow", b'{"s": 0.05}')
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
                return
            answered.append(response.status)
            closing = response.getheader("connection") == "close"  # we were told: no request follows on this one

    def once() -> None:
        while not stop.is_set():
            try:
                connection = worker.connect()
            except OSError:
                return  # refused: never accepted
            with connection:
                try:
                    connection.sendall(b'POST /run/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n{"s": 0.05}')
                    reply = connection.recv(4096)
                except ConnectionResetError:
                    reply = b""
                if not reply:
                    refused.append(time.monotonic())
                else:
                    answered.append(int(reply.split()[1]))

    refused: list[float] = []
    long: list[Reply] = []
    threads = [threading.Thread(target=keep) for _ in range(4)] + [threading.Thread(target=once) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: long.append(worker.call("slow", {"s": 1.5}))))
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(20.0) == 0, worker.log()
    stop.set()
    for thread in threads:
        thread.join()
    assert lost == []
    assert set(answered) <= {200, 503} and answered.count(200) > 10
    assert [reply.status for reply in long] == [200]
    # A connection that the kernel had made but nobody had accepted when the listener closed is reset: a few at most.
    assert len(refused) <= 4


def test_readiness_goes_before_the_listener(fresh: Make) -> None:
    worker = fresh()
    worker.call("slow", {"s": 0})
    running = threading.Thread(target=lambda: worker.call("slow", {"s": 1.0}))
    running.start()
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10.0)
    connection.request("GET", "/status")
    assert connection.getresponse().read()
    assert worker.process is not None
    worker.until(lambda: worker.stats()["instances"]["busy"])
    worker.process.terminate()
    time.sleep(0.2)
    connection.request("GET", "/status")
    response = connection.getresponse()
    assert response.status == 503 and b'"draining"' in response.read()
    running.join()
    assert worker.process.wait(20.0) == 0


def test_a_second_sigterm_forces(fresh: Make) -> None:
    worker = fresh()
    worker.call("slow", {"s": 0})
    cut: list[str] = []

    def call() -> None:
        try:
            worker.call("slow", {"s": 9})
        except (OSError, http.client.HTTPException) as error:
            cut.append(repr(error))

    running = threading.Thread(target=call)
    running.start()
    worker.until(lambda: worker.stats()["instances"]["busy"])
    assert worker.process is not None
    worker.process.terminate()
    time.sleep(0.3)
    assert worker.process.poll() is None
    began = time.monotonic()
    worker.process.terminate()
    assert worker.process.wait(20.0) == 1
    assert time.monotonic() - began < 6.0
    running.join()
    assert cut


def test_the_broker_ends_with_its_front(fresh: Make) -> None:
    worker = fresh()
    worker.call("echo", 1)
    kill(worker.front)
    assert worker.process is not None
    assert worker.process.wait(20.0) == 1
    assert "front_ended" in worker.log()


def test_the_front_ends_with_its_broker(fresh: Make) -> None:
    worker = fresh()
    worker.call("echo", 1)
    front = worker.front
    worker.kill()
    assert ended(front, 5.0)
    worker.start()  # and removes what the killed one left
    assert worker.call("echo", 2).json == 2


def test_fifty_kills(fresh: Make) -> None:
    """SIGKILL of broker or front at a random moment: each time the next start serves, and nothing piles up."""
    chance = random.Random(75)
    worker = fresh()
    slowest = 0.0
    for cycle in range(50):
        victim = worker.pid if cycle % 2 == 0 else worker.front
        stop = threading.Event()
        asking = threading.Thread(target=_ask, args=(worker, stop))
        asking.start()
        time.sleep(chance.random() * 0.15)
        kill(victim)
        assert worker.process is not None
        worker.process.wait(20.0)
        stop.set()
        asking.join()
        began = time.monotonic()
        worker.start()
        slowest = max(slowest, time.monotonic() - began)
    assert worker.call("echo", "alive").json == "alive"
    assert slowest < 5.0
    left = [path for pid in worker.pids[:-1] for path in Path("/run/olsock").glob(f"{pid}-*")]
    assert left == []


def _ask(worker: WorkerProcess, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            worker.call("echo", 1, timeout=5.0)
        except (OSError, http.client.HTTPException):
            return


def test_one_worker_a_state_directory(fresh: Make) -> None:
    worker = fresh()
    second = subprocess.run(worker.command(), capture_output=True, text=True, timeout=30.0, check=False)
    assert second.returncode == 1
    assert f"pid {worker.pid}" in second.stderr
    assert worker.call("echo", 1).json == 1


def test_status_and_down(fresh: Make) -> None:
    worker = fresh()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-m", "olsock_worker", *arguments, "--state", str(worker.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)

    status = run("status")
    assert status.returncode == 0 and '"ready"' in status.stdout
    assert run("down").returncode == 0
    assert worker.process is not None and worker.process.wait(1.0) == 0
    assert run("status").returncode == 3
    assert run("down").returncode == 3


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("prot = 5000\n", "prot"),
        ("[http]\nbodyy = 5\n", "bodyy"),
        ('packages = ["relative"]\n', "packages"),
        ('user = "root"\n', "user"),
        ('user = "there-is-no-such-user"\n', "user"),
        ('host = "203.0.113.7"\n', "host"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path: Path, config: str, named: str) -> None:
    worker = WorkerProcess(tmp_path, config)
    done = subprocess.run(worker.command(), capture_output=True, text=True, timeout=30.0, check=False)
    assert done.returncode == 1 and named in done.stderr and "Traceback" not in done.stderr
