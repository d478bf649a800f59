"""Raw bytes at a real worker, for event functions and web applications (attacks 52-54, 57): what was smuggled reaches nobody."""

from __future__ import annotations

import io
import json
import socket
import tarfile
import time

import pytest
from edge_server import read_all, read_reply
from test_worker_http import ACCEPTED, REFUSED
from worker_process import WorkerProcess

pytestmark = pytest.mark.attack

WSGI = """
import json
def app(environ, start_response):
    body = environ["wsgi.input"].read().decode("latin-1")
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_HOST", "HTTP_X_FORWARDED_HOST", "RAW_URI")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([{name: environ.get(name) for name in names}, body]).encode()]
"""
FUNCTIONS = {
    "web": (WSGI, "handler: f:app\ncontract: wsgi\n"),
    "event": ("def f(event):\n    return event\n", ""),
    "raises": ("def f(event):\n    raise ValueError(event)\n", ""),
    "only_get": ("def f(event):\n    return 1\n", "triggers: {http: [{method: GET}]}\n"),
}
# As the edge of test_worker_http.py is held to.
CONFIG = """
registry_check = 0.2
[http]
header_bytes = 4096
header_count = 20
body = 1000
header_timeout = 2.0
body_timeout = 2.0
"""


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    return CONFIG


def requests(worker: WorkerProcess, name: str) -> int:
    count = worker.stats()["functions"][name]["requests"]
    assert isinstance(count, int)
    return count


def exchange(worker: WorkerProcess, data: bytes, quiet: float = 1.0) -> bytes:
    with worker.connect() as sock:
        try:
            sock.sendall(data)
        except ConnectionError:
            pass
        return read_all(sock, quiet)


@pytest.mark.parametrize("name", ["web", "event"])
def test_nothing_that_is_malformed_reaches_a_function(worker: WorkerProcess, name: str) -> None:
    smuggled = f"GET /run/{name}/smuggled HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    before = requests(worker, name)
    for case, (data, status) in REFUSED.items():
        sent = data.replace(b" /x ", f" /run/{name}/x ".encode(), 1)
        got = exchange(worker, sent + smuggled)
        if got or len(data) < 1 << 20:  # a refusal of what goes on for megabytes may be reset away
            assert got.startswith(b"HTTP/1.1 %d " % status), (case, got[:100])
            assert got.count(b"HTTP/1.1 ") == 1 and b"connection: close\r\n" in got, case
    assert requests(worker, name) == before
    ours = [case for case in ACCEPTED if b" /x " in ACCEPTED[case][0] and case != "body of just the limit"]
    for case in ours:  # the control, on the same path
        got = exchange(worker, ACCEPTED[case][0].replace(b" /x ", f" /run/{name}/x ".encode(), 1), 0.3)
        assert got.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ")[: 1 + (name == "event")]), (case, got)
    assert requests(worker, name) == before + len(ours) >= 5


@pytest.mark.parametrize(
    ("target", "host", "told"),
    [
        (b"/run/web/a%2Fb%20c/%2e%2e/x?q=%0d%0aX:1", b"me.example", ("/a/b c/../x", "q=%0d%0aX:1", "me.example")),
        (b"/run/web//a", b"me.example:81", ("//a", "", "me.example:81")),
        (b"http://you.example/run/web/a?b", b"me.example", ("/a", "b", "you.example")),
        (b"/run/web/http://you.example/status", b"me.example", ("/http://you.example/status", "", "me.example")),
        (b"/run/web/%e2%82%ac", b"me.example", ("/\u00e2\u0082\u00ac", "", "me.example")),
        (b"/run/web?", b"", ("", "", "")),
    ],
)
def test_targets_and_hosts(worker: WorkerProcess, target: bytes, host: bytes, told: tuple[str, str, str]) -> None:
    """Decoded once and by the application's server alone; what only looks like another path is none."""
    got = exchange(worker, b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (target, host))
    environ, _ = json.loads(got.partition(b"\r\n\r\n")[2])
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["HTTP_HOST"] or "") == told
    assert environ["SCRIPT_NAME"] == "/run/web" and (environ["HTTP_X_FORWARDED_HOST"] or "") == told[2]


def test_the_connection_goes_on_after_errors_that_are_no_fault_of_its_bytes(worker: WorkerProcess) -> None:
    def post(path: bytes, body: bytes) -> bytes:
        return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)

    with worker.connect() as sock:
        for path, body, status in (
            (b"/run/none", b"1", 404),
            (b"/nowhere", b"1", 404),
            (b"/run/only_get", b"1", 405),
            (b"/status", b"1", 405),
            (b"/run/event", b"{", 400),
            (b"/run/raises", b"1", 500),
            (b"/registry/none", b"1", 400),
            (b"/run/event", b"7", 200),
        ):
            sock.sendall(post(path, body))
            got = read_reply(sock)
            assert got.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" not in got
        for _ in range(2):  # also where they come at once
            sock.sendall(post(b"/run/none", b"1") + post(b"/run/event", b"8") + post(b"/run/raises", b"1"))
            statuses = [read_one(sock) for _ in range(3)]
            assert statuses == [404, 200, 500]


def read_one(sock: socket.socket) -> int:
    """Read one reply and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    while length:
        length -= len(sock.recv(length))
    return int(head.split()[1])


def test_memory_is_flat(worker: WorkerProcess) -> None:
    """A head, a body, trailers and extensions that go on for ever: refused early, and kept by nobody."""

    def send(begin: bytes, part: bytes) -> None:
        end = time.monotonic() + 20.0
        with worker.connect() as sock, pytest.raises(ConnectionError):
            sock.sendall(begin)
            while True:
                assert time.monotonic() < end
                sock.sendall(part)

    chunked = b"POST /run/web HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begin, part in (
        (b"GET /", b"x" * 65536),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 65536),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: 1\r\n" * 10_000),
        (chunked, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        (chunked, b"1\r\nx\r\n" * 10_000),
        (chunked + b"3;", b"x" * 65536),
        (chunked + b"0\r\nX: ", b"x" * 65536),
        (chunked + b"0\r\n", b"X: 1\r\n" * 10_000),
        (b"POST /run/web HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 65536),
    ):
        assert worker.growth(lambda begin=begin, part=part: send(begin, part)) < 16 << 20, begin[-30:]
    assert worker.call("event", 1).json == 1


NAMES = ["..", ".", ".hidden", "%2e%2e", "..%2f..%2fx", "%00", "a%00b", "a%2fb", "a b", "a%0d%0ab", "x" * 65, "x" * 300]
NAMES += ["%c3%a9", "e%cc%81", "-", "_x", "a:1", "a%3a1", "%2fetc%2fpasswd", "CON%5c", "$LATEST", "%ff"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(worker: WorkerProcess, name: str) -> None:
    """Nothing is made under them, by any of the ways in."""
    name = name.replace(" ", "%20")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo("f.py")
        tar.addfile(info, io.BytesIO())
    before = sorted(str(path) for path in worker.state.rglob("*") if "__pycache__" not in str(path))
    assert worker.request(f"/run/{name}", b"1").status == 404
    assert worker.request(f"/registry/{name}", data.getvalue()).status in (400, 404)
    assert worker.request(f"/registry/{name}", method="DELETE").status in (400, 404)
    assert worker.request(f"/registry/{name}/config", method="GET").status in (400, 404)
    assert worker.request(f"/2015-03-31/functions/{name}/invocations", b"1").status in (400, 404)
    assert worker.request(f"/status?function={name}", method="GET").status == 404
    after = sorted(str(path) for path in worker.state.rglob("*") if "__pycache__" not in str(path))
    assert after == before
