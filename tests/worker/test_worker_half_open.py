"""Clients that vanish without a word (attack 59): the other end of the cable drops every packet, and no FIN or RST comes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_process import WorkerProcess

from olsock import firewall
from support.eventually import eventually
from support.namespaces import Namespace

pytestmark = pytest.mark.fault

SERVER, LOST, SOUND = "198.51.100.1", "198.51.100.2", "192.0.2.2"
# No deadline of the worker's own is shorter than a test, but for those of TCP.
CONFIG = f"""
registry_check = 0.2
host = "{SERVER}"
[http]
header_timeout = 600.0
body_timeout = 600.0
idle_timeout = 600.0
write_timeout = 4.0
peer_timeout = 4.0
"""
FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "slow": ("import time\ndef f(event):\n    time.sleep(event)\n    return event\n", "concurrency: 1\ntimeout: 60\n"),
    "ticks": (
        "import time\ndef f(event):\n    while True:\n        time.sleep(0.2)\n        yield 'tick'\n",
        "timeout: 600\n",
    ),
}


class Net:
    """A worker in a network of its own, and two clients by a cable each: one that is cut off, and one that is not."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.server, self.lost, self.sound = (stack.enter_context(Namespace()) for _ in range(3))
        self.server.cable("lost0", f"{SERVER}/24", self.lost, "eth0", f"{LOST}/24")
        self.server.cable("sound0", "192.0.2.1/24", self.sound, "eth0", f"{SOUND}/24")
        self.sound.route(f"{SERVER}/32", "192.0.2.1")
        self.worker = WorkerProcess(directory, CONFIG)
        self.worker.prefix = ["nsenter", f"--net=/proc/{self.server.pid}/ns/net"]
        for name, (code, yaml) in FUNCTIONS.items():
            self.worker.deploy(name, code, yaml)
        stack.callback(self.worker.kill)
        self.worker.start()

    def connect(self, client: Namespace) -> socket.socket:
        return client.run(lambda: socket.create_connection((SERVER, self.worker.port), 60.0))

    def stats(self) -> Any:
        """Ask by the sound client."""
        with self.connect(self.sound) as sock:
            sock.sendall(b"GET /stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            got = b""
            while data := sock.recv(65536):
                got += data
        return json.loads(got.partition(b"\r\n\r\n")[2])

    def others(self) -> int:
        """Connections beside the one that asks."""
        return int(self.stats()["connections"]) - 1

    def cut(self) -> None:
        """Drop everything at the lost client, both ways."""

        def drop() -> None:
            batch = firewall._Batch(firewall._IPV4)
            batch.table()
            for name, hook in (("input", 1), ("output", 3)):
                batch.chain(name, "filter", firewall._hook(hook, 0), firewall._DROP)
            batch.send("the test's DROP")

        self.lost.run(drop)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with contextlib.ExitStack() as stack:
        made = Net(tmp_path / "worker", stack)
        yield made
        assert made.worker.stop() == 0, made.worker.log()


def post(name: str, body: bytes) -> bytes:
    return b"POST /run/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (name.encode(), len(body), body)


STAGES = {
    "before a request": b"",
    "inside of a head": b"POST /run/echo HTTP/1.1\r\nHo",
    "inside of a body": post("echo", b"1234567")[:-5],
    "while it runs": post("slow", b"15"),
    "inside of a stream": post("ticks", b""),
}


def test_clients_that_vanish_are_given_up(net: Net) -> None:
    """One at each stage of a request from either client; those of the client whose kernel still answers stay."""
    with contextlib.ExitStack() as stack:
        held: dict[str, dict[str, socket.socket]] = {}
        for name, client in (("lost", net.lost), ("sound", net.sound)):
            held[name] = {}
            for stage, sent in STAGES.items():
                sock = held[name][stage] = stack.enter_context(net.connect(client))
                sock.sendall(sent)
                if stage == "while it runs":  # the sound client's waits for the lost one's, which has begun
                    number = len(held)
                    assert eventually(lambda n=number: net.stats()["functions"]["slow"]["requests"] == n)
        stack.enter_context(net.connect(net.lost)).sendall(post("slow", b"1"))  # and this one behind that
        for each in held.values():
            assert each["inside of a stream"].recv(65536).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: net.others() == 2 * len(STAGES) + 1), net.stats()
        net.cut()
        assert eventually(lambda: net.others() == len(STAGES), 60.0), net.stats()
        # What waited for a client that has gone is never begun; what the other one waits for is.
        assert held["sound"]["while it runs"].recv(65536).startswith(b"HTTP/1.1 200")
        assert net.stats()["functions"]["slow"]["statuses"] == {"200": 2, "499": 1}
        assert held["sound"]["inside of a stream"].recv(65536)
        held["sound"]["before a request"].sendall(post("echo", b"1"))
        assert held["sound"]["before a request"].recv(65536).endswith(b"1")


def test_a_full_window_of_a_client_that_vanished(net: Net) -> None:
    """What it has not acknowledged does not stay with the kernel for the quarter of an hour that TCP would try."""
    with net.connect(net.lost) as sock:
        sock.sendall(post("echo", b'"' + b"x" * (4 << 20) + b'"'))
        sock.recv(1000)
        net.cut()

        def left() -> bool:
            return (
                f":{net.worker.port:04X} "
                in net.server.run(Path("/proc/thread-self/net/tcp").read_text).split("\n", 2)[2]
            )

        assert left()
        assert eventually(lambda: not left(), 60.0)
