"""Too few descriptors and processes for the worker itself (attack 87): 503, no busy loop, and all is well with room again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from worker_process import Reply, WorkerProcess

from olsock import hierarchies
from olsock_worker import broker_protocol, ol_yaml
from olsock_worker.broker_client import BrokerClient
from olsock_worker.broker_protocol import Start, Started, Stop
from olsock_worker.calls import Call
from olsock_worker.fleet import Fleet
from olsock_worker.functions import Function
from olsock_worker.logs import FunctionLog
from olsock_worker.registry import Deployment
from olsock_worker.settings import fitting, load
from support.eventually import eventually
from support.require import require

pytestmark = pytest.mark.fault

FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "slow": ("import time\ndef f(event):\n    time.sleep(event)\n    return event\n", "concurrency: 60\ntimeout: 60\n"),
}
FILES = 256


def make(directory: Path, prefix: list[str]) -> WorkerProcess:
    process = WorkerProcess(directory, "registry_check = 0.2\n")
    process.prefix = prefix
    for name, (code, yaml) in FUNCTIONS.items():
        process.deploy(name, code, yaml)
    process.start()
    return process


@contextlib.contextmanager
def stopped(process: WorkerProcess) -> Iterator[WorkerProcess]:
    try:
        yield process
        assert process.stop() == 0, process.log()
    finally:
        process.kill()


def burst(process: WorkerProcess, seconds: float, calls: int) -> Counter[int]:
    """Call at the same time; return the statuses."""
    found: list[int] = []

    def call() -> None:
        reply = process.call("slow", seconds, timeout=60.0)
        assert reply.status == 200 or reply.error in ("start_failed", "host_full", "overloaded"), reply.body
        assert reply.status != 503 or int(reply.headers["retry-after"]) >= 1
        found.append(reply.status)

    threads = [threading.Thread(target=call) for _ in range(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == calls
    return Counter(found)


def busy(process: WorkerProcess, seconds: float) -> float:
    """Return the share of a processor that front and broker take, over some seconds in which nothing is asked of them."""
    both = [psutil.Process(pid) for pid in (process.pid, process.front)]

    def used() -> float:
        return sum(sum(each.cpu_times()[:2]) for each in both)

    before = used()
    threading.Event().wait(seconds)
    return (used() - before) / seconds


def ask(process: WorkerProcess) -> Reply | None:
    """Call; None if the connection was reset, as those are that come while many are being refused."""
    try:
        return process.request("/run/echo", b"1")
    except ConnectionError:
        return None


def test_more_connections_than_descriptors(tmp_path: Path) -> None:
    with stopped(make(tmp_path, ["prlimit", f"--nofile={FILES}:{FILES}"])) as process:
        assert "few_open_files" in process.log()
        assert process.call("echo", 1).status == 200
        front = psutil.Process(process.front)
        before = front.num_fds()
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                held: list[socket.socket] = []
                for _ in range(2 * FILES):
                    with contextlib.suppress(ConnectionError):
                        held.append(stack.enter_context(process.connect()))
                refused = process.until(lambda: ask(process))
                assert (refused.status, refused.error) == (503, "overloaded")
                assert front.num_fds() <= FILES
                assert busy(process, 1.0) < 0.5
            assert eventually(lambda: front.num_fds() <= before + 2)
            assert process.call("echo", 1).json == 1
        assert process.front == front.pid


def test_more_instances_than_descriptors(tmp_path: Path) -> None:
    with stopped(make(tmp_path, ["prlimit", f"--nofile={FILES}:{FILES}"])) as process:
        front = process.front
        assert burst(process, 0.5, 40)[200] >= 2
        assert psutil.Process(front).num_fds() <= FILES
        assert psutil.Process(process.pid).num_fds() <= FILES
        assert process.call("echo", 1).json == 1 and process.front == front


def test_with_descriptors_enough_neither_is_refused(tmp_path: Path) -> None:
    """The control."""
    with stopped(make(tmp_path, [])) as process, contextlib.ExitStack() as stack:
        assert "few_open_files" not in process.log()
        for _ in range(2 * FILES):
            stack.enter_context(process.connect())
        assert burst(process, 0.1, 20) == {200: 20}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup that counts processes."""
    layout = hierarchies.find()
    found = [each for each in (layout.v2, *layout.v1) if "pids" in each.controllers]
    require(found, "no controller of processes")
    directory = Path(found[0].parent) / f"test-{os.getpid()}"
    directory.mkdir()
    if not (directory / "pids.max").exists():
        directory.rmdir()
        pytest.skip("the controller of processes is not in force below")
    yield directory
    assert eventually(lambda: (directory / "cgroup.procs").read_text() == "")
    for top, _, _ in os.walk(directory, topdown=False):
        os.rmdir(top)


def test_no_more_processes(tmp_path: Path, cgroup: Path) -> None:
    prefix = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup / "cgroup.procs")]
    with stopped(make(tmp_path, prefix)) as process:
        assert process.call("echo", 1).status == 200
        front = process.front

        def limit(more: int) -> None:
            (cgroup / "pids.max").write_text(str(int((cgroup / "pids.current").read_text()) + more))

        for more in (30, 0):
            limit(more)
            found = burst(process, 0.5, 40)
            assert found[503] >= 1 and found.keys() <= {200, 503}
            assert process.call("echo", 1).json == 1  # what is there goes on
            assert process.status()["status"] == "ready"
            assert busy(process, 1.0) < 0.8
        (cgroup / "pids.max").write_text("max")
        assert burst(process, 0.1, 20) == {200: 20}
        assert process.front == front


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open none for as long as the block runs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Answer:
    """Takes what becomes of a call."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        self.statuses.append(status)


@pytest.mark.parametrize("room", [False, True])
def test_a_sandbox_whose_descriptors_find_no_room(room: bool) -> None:
    """It is ended, its call is refused, and nothing else comes of it. The control: with room it gets the call."""

    async def main() -> None:
        ours, theirs = broker_protocol.socketpair()
        settings = load(None, {})
        ended: list[str] = []
        with ours, theirs:
            ours.setblocking(False)
            theirs.settimeout(10.0)
            client = BrokerClient(ours, lambda _: None, lambda: None, lambda: ended.append("broker"))
            fleet = Fleet(settings, client)
            deployment = Deployment("f", "1", ol_yaml.parse(b"", settings.function))
            function = Function(deployment, fleet, FunctionLog(-1, "f", 1000, 1), lambda *_, **__: None)  # type: ignore[arg-type]
            answer = Answer()
            function.submit(Call(answer, "POST", b"/", {}, b"1", True))
            start = broker_protocol.receive_request(theirs)
            assert isinstance(start, Start)
            ends = [socket.socketpair() for _ in range(4)]
            pidfd = os.pidfd_open(os.getpid())
            fds = [ends[0][0].fileno(), *(end[0].fileno() for end in ends[1:3]), ends[3][0].fileno(), pidfd]
            broker_protocol.send(
                theirs, Started(id=start.id, instance=7, zygote="", origin="cold", events=False), tuple(fds)
            )
            with contextlib.nullcontext() if room else no_more_files():
                client._on_readable()
            if room:
                assert len(fleet.instances) == 1 and not answer.statuses
                (instance,) = fleet.instances
                assert instance.call is not None
                instance.detach()
                instance.close()
            else:
                assert not fleet.instances and answer.statuses == [503]
                assert broker_protocol.receive_request(theirs) == Stop(id=start.id + 1, instance=7)
            assert not ended
            os.close(pidfd)
            for pair in ends:
                for end in pair:
                    end.close()
            fleet._oom.close()

    asyncio.run(main())


def test_settings_fit_the_descriptors() -> None:
    plenty = load(None, {})
    assert fitting(plenty, 1 << 20) == plenty
    for files in (64, 100, 256, 1024, 2048):
        few = fitting(plenty, files)
        assert few.http.connections >= 1 and few.instances >= 1
        assert files < 100 or few.http.connections * 4 // 3 + few.instances * 9 + 64 <= files
