"""What web applications answer, from a real worker: whole replies and streams, good ones and hostile ones."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable

import pytest
from double import double, script
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system

FUNCTIONS = {
    "wsgi": (double("wsgi"), "concurrency: 1\ntimeout: 20\n"),
    "asgi": (double("asgi"), "concurrency: 1\ntimeout: 20\n"),
    "stream": (double("stream"), "concurrency: 1\ntimeout: 20\n"),
    "short": (double("wsgi"), "concurrency: 1\ntimeout: 1\n"),
    "echo": ("def f(event):\n    return event\n", ""),
}


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    return 'registry_check = 0.2\n[http]\nreply = "2M"\nstream = "64M"\ndisconnect_grace = 0.5\nwrite_timeout = 3\n'


def run(worker: WorkerProcess, text: str, name: str = "wsgi", method: str = "POST") -> Reply:
    """Have a function run a script."""
    if method == "POST":
        return worker.request(f"/run/{name}", text.encode())
    return worker.request(f"/run/{name}{script(text)}", method=method)


def raw(worker: WorkerProcess, data: bytes, until: bytes = b"", timeout: float = 10.0) -> bytes:
    """Send bytes and read to the end of the connection, or until what came ends as told."""
    got = b""
    with worker.connect(timeout) as sock:
        sock.sendall(data)
        try:
            while not (until and got.endswith(until)) and (more := sock.recv(65536)):
                got += more
        except ConnectionResetError:
            got += b"[reset]"
    return got


def post(text: str, name: str = "wsgi", extra: bytes = b"connection: close\r\n", version: bytes = b"1.1") -> bytes:
    body = text.encode()
    line = b"POST /run/%b HTTP/%b\r\nhost: a.example\r\n" % (name.encode(), version)
    return line + b"content-length: %d\r\n%b\r\n%b" % (len(body), extra, body)


def fine(worker: WorkerProcess, name: str = "wsgi") -> None:
    """The control after each abuse: the next request is served."""
    reply = run(worker, "r.reply(200, [], b'fine')", name)
    assert (reply.status, reply.body) == (200, b"fine")


# What an application is told.


@pytest.mark.parametrize("zygote", ["auto", "wait", "off"])
def test_the_runtime_is_told_contract_and_mount_point(fresh: Callable[..., WorkerProcess], zygote: str) -> None:
    process = fresh({"mounted": (double("wsgi"), f"contract: wsgi\nzygote: {zygote}\n")})
    reply = run(process, "r.reply(200, [], json.dumps([config['contract'], config['root_path']]).encode())", "mounted")
    assert reply.json == ["wsgi", "/run/mounted"]


def test_metadata_of_a_web_request(worker: WorkerProcess) -> None:
    with worker.connect() as sock:
        local = sock.getsockname()
        sock.sendall(
            b"POST /run/wsgi/a%2Fb%20c?x=%31&y HTTP/1.1\r\nHost: me.example:81\r\nX-A: 1\r\nX-B: 2\r\nx-a: 3\r\nCookie: a=b\r\n"
            b"TE: trailers\r\nProxy-Authorization: x\r\nKeep-Alive: 5\r\nConnection: close, X-Gone, Host\r\nX-Gone: 1\r\n"
            b"X-Forwarded-For: 10.0.0.1\r\nX_Forwarded_For: 6.6.6.6\r\nContent-Length: 8\r\n\r\nr.show()"
        )
        got = b""
        while data := sock.recv(65536):
            got += data
    meta, body = json.loads(got.partition(b"\r\n\r\n")[2])
    assert body == "r.show()"
    deadline = meta.pop("deadline_ms")
    assert time.time() < deadline / 1000 < time.time() + 21
    assert meta.pop("id") in got.decode()
    assert meta == {
        "method": "POST",
        "path": "/a%2Fb%20c",
        "query": "x=%31&y",
        "web": True,
        "scheme": "http",
        "http_version": "1.1",
        "server": ["127.0.0.1", worker.port],
        "client": list(local),
        "headers": [
            ["host", "me.example:81"],
            ["x-a", "1"],
            ["x-b", "2"],
            ["x-a", "3"],
            ["cookie", "a=b"],
            ["content-length", "8"],
            ["x-forwarded-for", "10.0.0.1, 127.0.0.1"],
            ["x-forwarded-proto", "http"],
            ["x-forwarded-host", "me.example:81"],
        ],
    }


PROXIED = (
    "import json\n"
    "def f(environ, start_response):\n"
    "    start_response('200 OK', [])\n"
    "    names = ('wsgi.url_scheme', 'HTTP_X_FORWARDED_FOR', 'HTTP_X_FORWARDED_PROTO', 'HTTP_X_FORWARDED_HOST')\n"
    "    return [json.dumps([environ.get(name) for name in names]).encode()]\n"
)
GIVEN = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https", "x-forwarded-host": "a.example", "host": "b"}


@pytest.mark.parametrize(
    ("proxies", "seen"),
    [
        ('["127.0.0.0/8", "2001:db8::/32"]', ["https", "203.0.113.7, 127.0.0.1", "https", "a.example"]),
        ('["198.51.100.0/24"]', ["http", "127.0.0.1", "http", "b"]),
        ("[]", ["http", "127.0.0.1", "http", "b"]),
    ],
)
def test_only_trusted_proxies_are_believed(fresh: Callable[..., WorkerProcess], proxies: str, seen: list[str]) -> None:
    config = f"registry_check = 0.2\n[http]\ntrusted_proxies = {proxies}\n"
    process = fresh({"proxied": (PROXIED, "contract: wsgi\n")}, config)
    assert process.request("/run/proxied", method="GET", headers=GIVEN).json == seen


def test_by_the_local_socket(worker: WorkerProcess) -> None:
    """It has no addresses, and serves web applications all the same."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20.0)
        sock.connect(str(worker.state / "api.sock"))
        sock.sendall(post("r.show()"))
        got = b""
        while data := sock.recv(65536):
            got += data
    assert json.loads(got.partition(b"\r\n\r\n")[2])[0]["client"] == ["127.0.0.1", 0]


def test_a_body_in_chunks_has_a_length_and_no_trailers(worker: WorkerProcess) -> None:
    got = raw(
        worker,
        b"POST /run/wsgi HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n"
        b"3\r\nr.s\r\n5\r\nhow()\r\n0\r\nX-T: evil\r\n\r\n",
    )
    meta, body = json.loads(got.partition(b"\r\n\r\n")[2])
    names = [name for name, _ in meta["headers"]]
    assert body == "r.show()" and ["content-length", "8"] in meta["headers"]
    assert not {"transfer-encoding", "trailer", "x-t", "connection"} & set(names)


def test_http_1_0_and_a_large_body(worker: WorkerProcess) -> None:
    text = "r.reply(200, [], json.dumps([r.meta['http_version'], len(r.body)]).encode())#" + "x" * (3 << 20)
    got = raw(worker, post(text, version=b"1.0", extra=b""))
    assert got.startswith(b"HTTP/1.1 200 OK") and b"connection: close\r\n" in got
    assert json.loads(got.partition(b"\r\n\r\n")[2]) == ["1.0", len(text)]


def test_expect_is_answered_by_the_front_alone(worker: WorkerProcess) -> None:
    with worker.connect() as sock:
        sock.sendall(
            b"POST /run/wsgi HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 8\r\n\r\n"
        )
        assert sock.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"r.show()")
        got = b""
        while data := sock.recv(65536):
            got += data
    assert got.startswith(b"HTTP/1.1 200") and b"expect" not in got


def test_generators_and_events_are_asked_as_ever(worker: WorkerProcess) -> None:
    meta, _ = run(worker, "r.show()", "stream").json
    assert set(meta) == {"id", "method", "path", "query", "headers", "deadline_ms"}
    assert type(meta["headers"]) is dict
    assert worker.call("echo", {"a": 1}).json == {"a": 1}


# Whole replies.


def test_headers_are_passed_on(worker: WorkerProcess) -> None:
    text = (
        "r.reply(302, [('Location', 'http://elsewhere.example/'), ('Set-Cookie', 'a=1'), ('set-cookie', 'b=2'),"
        "('X-Latin', '\\xfc'), ('Connection', 'close, X-Drop'), ('X-Drop', '1'), ('Transfer-Encoding', 'chunked'),"
        "('Keep-Alive', '1'), ('Proxy-Authenticate', 'x'), ('Date', 'never'), ('X-Request-Id', 'mine'), ('Upgrade', 'h2c'),"
        "('Trailer', 'x'), ('TE', 'x'), ('Content-Type', 'text/plain'), ('Content-Length', '5')], b'there')"
    )
    got = raw(worker, post(text))
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 302 Found" and body == b"there"
    assert [line for line in lines[1:] if not line.startswith((b"date: ", b"x-request-id: "))] == [
        b"Location: http://elsewhere.example/",
        b"Set-Cookie: a=1",
        b"set-cookie: b=2",
        b"X-Latin: \xfc",
        b"Content-Type: text/plain",
        b"content-length: 5",
        b"connection: close",
    ]
    assert b"never" not in head and b"mine" not in head


@pytest.mark.parametrize("status", [200, 201, 207, 404, 418, 500, 503, 599])
def test_any_status_keeps_the_connection(worker: WorkerProcess, status: int) -> None:
    with worker.connect() as sock:
        for _ in range(2):
            sock.sendall(post(f"r.reply({status}, [], b'x' * 3)", extra=b""))
            got = b""
            while not got.endswith(b"xxx"):
                got += sock.recv(65536)
            assert got.startswith(b"HTTP/1.1 %d " % status) and b"content-length: 3\r\n" in got


@pytest.mark.parametrize(
    ("script_text", "status", "length"),
    [
        ("r.reply(204, [('content-length', '3')], b'abc')", 204, None),
        ("r.reply(304, [('content-length', '3'), ('etag', 'x')])", 304, None),
        ("r.reply(205, [], b'abc')", 205, b"0"),
        ("r.stream([b'abc'], 204)", 204, None),
        ("r.stream([b'abc'], 304, [('content-length', '9')])", 304, None),
    ],
)
def test_statuses_without_a_body(worker: WorkerProcess, script_text: str, status: int, length: bytes | None) -> None:
    with worker.connect() as sock:  # what would come of a body would be taken for the next reply
        for _ in range(3):
            sock.sendall(post(script_text, extra=b""))
            got = sock.recv(65536)
            assert got.startswith(b"HTTP/1.1 %d " % status) and got.endswith(b"\r\n\r\n")
            assert b"transfer-encoding" not in got
            assert (b"content-length: " in got) == (length is not None)
            assert length is None or b"content-length: %b\r\n" % length in got


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("r.reply(200, [], b'12345')", b"5"),
        ("r.reply(200, [('content-length', '77')])", b"77"),
        ("r.stream([b'12'], 200, [('content-length', '77')])", b"77"),
        ("r.stream([b'12'])", None),
    ],
)
def test_head_has_the_length_and_no_body(worker: WorkerProcess, text: str, length: bytes | None) -> None:
    with worker.connect() as sock:
        for _ in range(3):
            sock.sendall(b"HEAD /run/wsgi%b HTTP/1.1\r\nhost: a\r\n\r\n" % script(text).encode())
            got = sock.recv(65536)
            assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\n") and got.count(b"\r\n\r\n") == 1
            assert (b"content-length: %b\r\n" % length in got) if length else b"content-length" not in got


@pytest.mark.parametrize(
    "headers",
    ["('content-length', '4')", "('content-length', 'x')", "('content-length', '5'), ('content-length', '6')"],
)
def test_502_for_a_length_that_is_wrong(worker: WorkerProcess, headers: str) -> None:
    run(worker, "state['here'] = 1; r.reply(200)")
    reply = run(worker, f"r.reply(200, [{headers}], b'12345')")
    assert (reply.status, reply.error) == (502, "bad_reply")
    assert run(worker, "r.reply(200, [], str(state).encode())").body == b"{'here': 1}"  # a mistake, not an attack


def test_an_error_of_an_application(worker: WorkerProcess) -> None:
    reply = run(worker, "r.tell(ERROR, {'kind': 'handler', 'name': 'E', 'message': 'm', 'traceback': 'secret'})")
    assert (reply.status, reply.error) == (500, "handler") and b"secret" not in reply.body
    fine(worker)


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "r.reply(200, [('x', 'a\\r\\nx-evil: 1')])",
        "r.reply(200, [('x', 'a\\nb')])",
        "r.reply(200, [('x', 'a\\x00b')])",
        "r.reply(200, [('x', '\\u20ac')])",
        "r.reply(200, [('x\\r\\ny', 'a')])",
        "r.reply(200, [('x y', 'a')])",
        "r.reply(200, [('x:', 'a')])",
        "r.reply(200, [('', 'a')])",
        "r.reply(100)",
        "r.reply(101)",
        "r.reply(199)",
        "r.reply(600)",
        "r.reply(-1)",
        "r.reply('200')",
        "r.reply(200, [('x', 1)])",
        "r.reply(200, [('x',)])",
        "r.tell(REPLY, {'status': 200})",
        "r.tell(REPLY, {'status': 200, 'headers': [], 'content_type': 'text/plain'})",
        "r.tell(REPLY, {'status': 200, 'content_type': 'text/plain', 'stream': True})",
        "r.tell(REPLY, {'status': 200, 'headers': [], 'x': 1})",
        "r.tell(REPLY, b'{')",
        "r.send(REPLY, b'')",
        "r.send(REPLY, struct.pack('<I', 99))",
        "r.send(BODY, b'x')",
        "r.send(ACCEPT, b'')",
        "r.tell(ACCEPT, {'subprotocol': None, 'headers': []})",
        "r.tell(MESSAGE, {'text': True}, b'x')",
        "r.tell(CLOSE, {'code': 1000, 'reason': ''})",
        "r.send(DISCONNECT)",
        "r.tell(READY, {'init_ms': 1.0, 'contract': 'asgi'})",
        "r.reply(200, [], b'a', flags=MORE); r.tell(ERROR, {'kind': 'handler'})",
        "r.reply(200, [], b'a', flags=MORE); r.reply(200, [], b'b')",
        "r.reply(200, [], b'a', flags=MORE); r.send(BODY, b'x', number=r.number + 1)",
        "r.reply(200, [('content-length', '1000000000000')], stream=True, flags=MORE)",
        "r.reply(200, [('content-length', 'x')], stream=True, flags=MORE)",
        "r.reply(200, [('x' , 'y' * 70000)])",
    ],
)
def test_502_for_what_must_not_be_passed_on(worker: WorkerProcess, text: str) -> None:
    got = raw(worker, post(text + "\ntime.sleep(9)"))
    assert got.startswith(b"HTTP/1.1 502 ") and b'"bad_reply"' in got and b"evil" not in got
    assert got.count(b"HTTP/1.1") == 1
    fine(worker)


@pytest.mark.attack
def test_a_reply_over_the_limit_is_called_so(worker: WorkerProcess) -> None:
    text = "r.reply(200, [], b'a', flags=MORE); [r.send(BODY, b'x' * (1 << 20), MORE) for _ in range(4)]"
    reply = run(worker, text)
    assert (reply.status, reply.error) == (502, "reply_too_large")
    fine(worker)


def test_a_contract_that_changes_with_the_instance(worker: WorkerProcess) -> None:
    """Whoever claims another contract than its version has been asked in a language that it does not speak."""
    code = double("wsgi").replace("serve('wsgi')", "serve(('wsgi', 'asgi')[os.urandom(1)[0] & 1])")
    worker.deploy("fickle", code, "reuse-sandbox: false\n")
    worker.until(lambda: "fickle" in worker.status()["functions"])
    seen: set[int] = set()
    for _ in range(60):
        reply = run(worker, "r.reply(200, [], b'fine')", "fickle")
        assert reply.status == 200 or reply.error == "bad_reply"
        seen.add(reply.status)
        if len(seen) == 2:
            break
    assert seen == {200, 502}


# Streams.


def test_a_stream_is_passed_on_as_it_comes(worker: WorkerProcess) -> None:
    worker.deploy("slowly", double("asgi"), "concurrency: 1\n")
    worker.until(lambda: "slowly" in worker.status()["functions"])
    text = "r.stream([b'one'], end=False); time.sleep(0.5); r.part(b'two'); r.send(BODY, b'three')"
    with worker.connect() as sock:
        sock.sendall(post(text, "slowly", extra=b""))
        got = b""
        while b"one" not in got:
            got += sock.recv(65536)
        assert b"two" not in got
        while not got.endswith(b"0\r\n\r\n"):
            got += sock.recv(65536)
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head and b"content-length" not in head
        assert body == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
        sock.sendall(post("r.reply(200, [], b'next')", "slowly"))  # on the same connection
        assert sock.recv(65536).endswith(b"next")


def test_a_stream_to_http_1_0_ends_with_the_connection(worker: WorkerProcess) -> None:
    got = raw(worker, post("r.stream([b'one', b'two'])", version=b"1.0", extra=b"connection: keep-alive\r\n"))
    head, _, body = got.partition(b"\r\n\r\n")
    assert body == b"onetwo" and b"connection: close" in head and b"transfer-encoding" not in head
    with worker.connect() as sock:  # with a length it can go on
        for _ in range(2):
            text = "r.stream([b'one', b'two'], headers=[('content-length', '6')])"
            sock.sendall(post(text, version=b"1.0", extra=b"connection: keep-alive\r\n"))
            got = b""
            while not got.endswith(b"onetwo"):
                got += sock.recv(65536)
            assert b"content-length: 6\r\n" in got and b"connection: keep-alive\r\n" in got


def test_streams_of_generators(worker: WorkerProcess) -> None:
    reply = run(worker, "r.stream([b'a' * 70000, b'b'])", "stream")
    assert reply.body == b"a" * 70000 + b"b" and "content-length" not in reply.headers


@pytest.mark.attack
def test_a_reply_in_very_small_parts_takes_no_more_memory_than_it_is_long(worker: WorkerProcess) -> None:
    text = "r.reply(200, [], b'', flags=MORE)\nhead = HEADER.pack(BODY, MORE, 0, 2, r.number)\n"
    text += "for _ in range(100): raw((head + b'xx') * 10000)\nr.send(BODY, b'')"

    def ask() -> None:
        reply = run(worker, text)
        assert reply.status == 200 and len(reply.body) == 2_000_000

    assert worker.growth(ask) < 16 << 20


def test_an_empty_stream_and_one_in_a_single_frame(worker: WorkerProcess) -> None:
    assert run(worker, "r.stream([])").body == b""
    assert run(worker, "r.reply(200, [], b'all', stream=True)").body == b"all"


def test_pipelined_requests_wait_for_a_stream(worker: WorkerProcess) -> None:
    data = post("r.stream([b'one'], end=False); time.sleep(0.3); r.send(BODY)", extra=b"")
    got = raw(worker, data + post("r.reply(200, [], b'second')"))
    assert got.index(b"0\r\n\r\n") < got.index(b"second")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_stream_that_fails_is_cut_off(worker: WorkerProcess, version: bytes) -> None:
    text = "r.stream([b'one'], end=False); time.sleep(0.2); "
    got = raw(worker, post(text + "r.tell(ERROR, {'kind': 'handler', 'name': 'E'})", version=version))
    assert b"one" in got and not got.endswith(b"0\r\n\r\n")
    assert got.endswith(b"[reset]") == (version == b"1.0")  # there a plain end would look like the end of the reply
    fine(worker)
    assert run(worker, "r.reply(200, [], str(len(state)).encode())").status == 200
    assert worker.stats()["functions"]["wsgi"]["statuses"]["500"] >= 1


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "r.stream([b'12345'], headers=[('content-length', '4')])",
        "r.stream([b'123'], headers=[('content-length', '4')])",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.reply(200)",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.send(BODY, b'', MORE)",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.send(BODY, b'x', number=1)",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.send(READY)",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.tell(ERROR, {'kind': 'handler'}, flags=MORE)",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.tell(ERROR, b'nonsense')",
        "r.stream([b'123'], end=False); time.sleep(0.2); r.tell(MESSAGE, {'text': True})",
        "r.stream([b'123'], end=False); time.sleep(0.2); raw(b'\\xff' * 64)",
        "r.stream([b'123'], end=False); time.sleep(0.2); os._exit(0)",
        "r.stream([b'x' * (1 << 20)] * 80)",
    ],
)
def test_a_stream_that_breaks_the_rules_is_cut_off(worker: WorkerProcess, text: str) -> None:
    got = raw(worker, post(text + "\ntime.sleep(9)", extra=b""))
    assert got.startswith(b"HTTP/1.1 200 ") and got.count(b"HTTP/1.1") == 1
    assert not got.endswith(b"0\r\n\r\n")
    fine(worker)


def test_a_stream_has_the_functions_timeout(worker: WorkerProcess) -> None:
    began = time.monotonic()
    got = raw(worker, post("r.stream([b'one'], end=False); time.sleep(30)", "short"))
    assert b"one" in got and not got.endswith(b"0\r\n\r\n") and time.monotonic() - began < 8
    fine(worker, "short")


def test_a_slow_reader_holds_the_sandbox_back(worker: WorkerProcess) -> None:
    """Nothing piles up in the front: the sandbox waits, and goes on when the client does."""
    raw(worker, post("r.stream([b'x' * (1 << 20)] * 40)"))
    text = "started = time.monotonic()\nr.stream([b'x' * (1 << 20)] * 60)\nstate['took'] = time.monotonic() - started"

    def read_slowly() -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.connect(("127.0.0.1", worker.port))
            sock.sendall(post(text))
            got, end = bytearray(), time.monotonic() + 1.5
            while data := sock.recv(4096 if time.monotonic() < end else 1 << 20):
                got += data
                if time.monotonic() < end:
                    time.sleep(0.02)
        assert len(got) - got.index(b"\r\n\r\n") > 60 << 20 and got.endswith(b"0\r\n\r\n")

    assert worker.growth(read_slowly) < 12 << 20
    assert float(run(worker, "r.reply(200, [], str(state['took']).encode())").body) > 1.0


def test_a_client_that_does_not_read_a_stream_is_cut_off(worker: WorkerProcess) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", worker.port))
        sock.sendall(post("r.stream([b'x' * (1 << 20)] * 60)"))
        fine(worker)  # after write_timeout, which is less than the function's own
        got = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(1 << 20):
                got += data
        assert len(got) < 60 << 20 and not got.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("name", ["wsgi", "asgi", "stream"])
def test_the_sandbox_hears_of_a_client_that_leaves(worker: WorkerProcess, name: str) -> None:
    text = "r.stream([b'one'], end=False)\nstate.clear()\nstate['heard'] = message()[0]\n"
    text += "r.part(b'x' * 100); r.send(BODY)"
    with worker.connect() as sock:
        sock.sendall(post(text, name))
        got = b""
        while b"one" not in got:
            got += sock.recv(65536)
    assert run(worker, "r.reply(200, [], str(state).encode())", name).body.count(b"'heard': 12") == 1


@pytest.mark.parametrize("name", ["wsgi", "asgi"])
def test_before_the_reply_too(worker: WorkerProcess, name: str) -> None:
    text = "state.clear()\nstate['heard'] = message()[0]\nr.reply(200, [], b'nobody')"
    with worker.connect() as sock:
        sock.sendall(post(text, name))
        time.sleep(0.3)
    assert run(worker, "r.reply(200, [], str(state).encode())", name).body == b"{'heard': 12}"


def test_a_stream_for_nobody_is_ended_after_the_grace(worker: WorkerProcess) -> None:
    with worker.connect() as sock:
        sock.sendall(
            post("state['old'] = 1\nr.stream([b'one'], end=False)\nwhile True: r.part(b'x'); time.sleep(0.01)")
        )
        got = b""
        while b"one" not in got:
            got += sock.recv(65536)
    began = time.monotonic()
    assert run(worker, "r.reply(200, [], str(state).encode())").body == b"{}"  # another sandbox
    assert time.monotonic() - began < 8.0


def test_a_drain_lets_a_stream_end(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({"wsgi": FUNCTIONS["wsgi"]})
    with process.connect() as sock:
        sock.sendall(post("r.stream([b'one'], end=False); time.sleep(1.5); r.part(b'two'); r.send(BODY)", extra=b""))
        got = b""
        while b"one" not in got:
            got += sock.recv(65536)
        os.kill(process.pid, 15)
        while data := sock.recv(65536):
            got += data
    assert got.endswith(b"3\r\ntwo\r\n0\r\n\r\n")
    assert process.process.wait(30.0) == 0
