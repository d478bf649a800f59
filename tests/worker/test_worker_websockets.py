"""WebSockets of ASGI applications, from a real worker: by a real client, by raw sockets, and by hostile sandboxes."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
from double import double, script
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

ECHO = """
def answer(r):
    r.tell(ACCEPT, {"subprotocol": None, "headers": []})
    while True:
        kind, meta, body = message()
        if kind == MESSAGE:
            r.tell(MESSAGE, meta, body)
        elif kind == CLOSE:
            state["closed"] = [meta["code"], meta["reason"]]
            r.tell(CLOSE, meta)
            return
"""
PRELUDE = "accept = lambda **more: r.tell(ACCEPT, {'subprotocol': None, 'headers': [], **more})\n"
FUNCTIONS = {
    "asgi": (double("asgi").replace("\n\nserve(", ECHO + "\n\nserve("), "concurrency: 1\ntimeout: 20\n"),
    "wsgi": (double("wsgi"), "concurrency: 1\n"),
    "brief": (double("asgi"), "concurrency: 1\ntimeout: 20\nwebsocket-timeout: 1\n"),
    "echo": ("def f(event):\n    return event\n", ""),
}
KEY = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    limits = "websocket_idle = 2\ndisconnect_grace = 0.5\nwrite_timeout = 3\nconnections = 8\n"
    return f'registry_check = 0.2\n[http]\nwebsocket_message = "2M"\n{limits}'


def address(worker: WorkerProcess, text: str, name: str = "asgi", prelude: str = PRELUDE) -> str:
    return f"ws://127.0.0.1:{worker.port}/run/{name}{script(prelude + text)}"


@contextmanager
def opened(
    worker: WorkerProcess, text: str = "answer(r)", name: str = "asgi", **more: object
) -> Iterator[ClientConnection]:
    options = {"max_size": None, "proxy": None, **more}
    with connect(address(worker, text, name), **options) as client:  # type: ignore[arg-type]
        yield client


def state(worker: WorkerProcess, name: str = "asgi") -> bytes:
    """What a function remembers. The request waits until the instance is free, so it is that of an ended conversation."""
    reply = worker.request(f"/run/{name}", b"r.reply(200, [], repr(state).encode()); state.clear()")
    assert reply.status == 200
    return reply.body


def handshake(
    worker: WorkerProcess, headers: bytes, text: str = "answer(r)", name: str = "asgi", path: str = ""
) -> bytes:
    """Send a handshake by hand; return what comes until the server has nothing more to say."""
    with worker.connect(5.0) as sock:
        sock.sendall(
            f"GET /run/{name}{path}{script(PRELUDE + text)} HTTP/1.1\r\nhost: a\r\n".encode() + headers + b"\r\n"
        )
        return heads(sock)


def heads(sock: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        data = sock.recv(65536)
        if not data:
            break
        got += data
    return got


def masked(opcode: int, payload: bytes, final: bool = True, length: bytes | None = None) -> bytes:
    """A frame as a client has to send it."""
    size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xff" + struct.pack(">Q", len(payload))
    return bytes((opcode | (0x80 if final else 0),)) + (length or size) + bytes(4) + payload


# Handshakes.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"connection: upgrade\r\nupgrade: websocket\r\n" + KEY, 400),
        (b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 12\r\n" + KEY, 426),
        (b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13, 8\r\n" + KEY, 426),
        (UPGRADE, 400),
        (UPGRADE + b"sec-websocket-key: short\r\n", 400),
        (UPGRADE + b"sec-websocket-key: !!!!\r\n", 400),
        (UPGRADE + KEY + KEY, 400),
        (UPGRADE + KEY + b"sec-websocket-protocol: \xff\r\n", 400),
        (UPGRADE + b"sec-websocket-key: \xff\r\n", 400),
        (UPGRADE.replace(b"upgrade\r", b"upgrade, \xff\r") + KEY, 400),
        (UPGRADE.replace(b"upgrade: websocket", b"upgrade: websocket, h2c") + KEY, 400),
    ],
)
def test_malformed_handshakes_are_refused(worker: WorkerProcess, headers: bytes, status: int) -> None:
    got = handshake(worker, headers)
    assert got.startswith(b"HTTP/1.1 %d " % status) and b'"bad_handshake"' in got and b"connection: close" in got
    assert (b"sec-websocket-version: 13\r\n" in got) == (status == 426)
    assert handshake(worker, UPGRADE + KEY).startswith(b"HTTP/1.1 101 ")  # the control
    state(worker)


def test_many_refused_handshakes_in_the_queue(worker: WorkerProcess) -> None:
    """None of them takes an instance, however many wait for one."""
    with opened(worker):
        socks = [worker.connect() for _ in range(6)]
        for sock in socks:
            sock.sendall(b"GET /run/asgi HTTP/1.1\r\nhost: a\r\n" + UPGRADE + b"\r\n")
    for sock in socks:
        assert heads(sock).startswith(b"HTTP/1.1 400 ")
        sock.close()
    assert state(worker)


def test_the_reply_to_a_handshake(worker: WorkerProcess) -> None:
    text = (
        "state['meta'] = r.meta\naccept(subprotocol='b', headers=[['X-A', '1'], ['set-cookie', 'a'], ['Set-Cookie', 'b'],"
        "['Connection', 'close, X-Drop'], ['X-Drop', '1'], ['Sec-WebSocket-Extensions', 'x'], ['Content-Length', '3'],"
        "['Sec-WebSocket-Accept', 'x'], ['Date', 'x'], ['Transfer-Encoding', 'chunked']])\n"
        "r.tell(CLOSE, {'code': 1000, 'reason': ''})"
    )
    got = handshake(
        worker,
        UPGRADE + KEY + b"sec-websocket-protocol: a, b\r\nsec-websocket-extensions: permessage-deflate\r\n",
        text,
        path="/x%20y",
    )
    lines = got.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 101 ")
    shown = sorted(line for line in lines[1:] if not line.startswith((b"date: ", b"x-request-id: ")))
    assert shown == sorted(
        [
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            b"Sec-WebSocket-Protocol: b",
            b"X-A: 1",
            b"set-cookie: a",
            b"Set-Cookie: b",
        ]
    )
    told = state(worker)
    assert b"'type': 'websocket'" in told and b"'subprotocols': ['a', 'b']" in told and b"'/x%20y'" in told


def test_others_answer_as_they_do(worker: WorkerProcess) -> None:
    """Who speaks no WebSocket serves the request as if it had not asked."""
    assert handshake(worker, UPGRADE + KEY, "", "echo").startswith(b"HTTP/1.1 200 ")
    got = handshake(worker, UPGRADE + KEY, "r.reply(200, [], str(r.meta.get('type')).encode())", "wsgi")
    assert got.startswith(b"HTTP/1.1 200 ")
    got = handshake(worker, KEY + b"upgrade: websocket\r\nconnection: close\r\n", "r.reply(200, [], b'plain')")
    assert got.startswith(b"HTTP/1.1 200 ")  # it says what it could, and does not ask for it


def test_an_application_refuses(worker: WorkerProcess) -> None:
    with pytest.raises(InvalidStatus) as caught:
        with opened(worker, "r.reply(403, [('x-why', 'not you')], b'no')"):
            pass
    response = caught.value.response
    assert (response.status_code, response.headers["x-why"], response.body) == (403, "not you", b"no")
    with pytest.raises(InvalidStatus) as caught:
        with opened(worker, "r.stream([b'n', b'o'], 401)"):
            pass
    assert caught.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as caught:
        with opened(worker, "r.tell(ERROR, {'kind': 'handler', 'name': 'E'})"):
            pass
    assert caught.value.response.status_code == 500
    state(worker)


# Messages.


def test_messages_both_ways(worker: WorkerProcess) -> None:
    with opened(worker) as client:
        for sent in (
            "hello",
            b"\x00\xff",
            "",
            b"",
            "ü€𝄞" * 1000,
            os.urandom(70_000),
            "x" * (2 << 20),
            b"y" * (2 << 20),
        ):
            client.send(sent)
            assert client.recv(10.0) == sent
        client.send(["one ", "message ", "in ", "fragments"])
        assert client.recv(10.0) == "one message in fragments"
        for number in range(200):
            client.send(str(number))
        assert [client.recv(10.0) for _ in range(200)] == [str(number) for number in range(200)]
    assert state(worker) == b"{'closed': [1000, '']}"
    statuses = worker.stats()["functions"]["asgi"]["statuses"]
    assert statuses["101"] >= 1


def test_a_message_can_come_with_the_handshake(worker: WorkerProcess) -> None:
    """Before the reply to it, which no good client does."""
    with worker.connect() as sock:
        start = b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode()
        sock.sendall(start + UPGRADE + KEY + b"\r\n" + masked(1, b"early") + masked(1, b"bird"))
        got = heads(sock)
        while not got.endswith(b"bird"):
            got += sock.recv(1024)
        assert got.endswith(b"\x81\x05early\x81\x04bird")
    state(worker)


def test_pings_are_answered_by_the_front(worker: WorkerProcess) -> None:
    with opened(worker, "accept()\ntime.sleep(1)\nr.tell(CLOSE, {'code': 1000, 'reason': ''})") as client:
        began = time.monotonic()
        assert client.ping().wait(5.0) and time.monotonic() - began < 0.9


@pytest.mark.parametrize(
    ("code", "reason", "seen"),
    [
        (1000, "", 1000),
        (3999, "my ümlaut", 3999),
        (1001, "", 1001),
        (1005, "", 1011),
        (1006, "", 1011),
        (2999, "", 1011),
    ],
)
def test_close_by_the_application(worker: WorkerProcess, code: int, reason: str, seen: int) -> None:
    with opened(worker, f"accept()\nr.tell(CLOSE, {{'code': {code}, 'reason': {reason!r}}})") as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10.0)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (seen, reason)
    state(worker)


def test_close_by_the_client(worker: WorkerProcess) -> None:
    with opened(worker) as client:
        client.close(3001, "enough")
    assert state(worker) == b"{'closed': [3001, 'enough']}"
    with worker.connect() as sock:  # without a code
        sock.sendall(
            b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode() + UPGRADE + KEY + b"\r\n"
        )
        heads(sock)
        sock.sendall(masked(8, b""))
        assert sock.recv(1024) == b"\x88\x00" and sock.recv(1024) == b""
    assert state(worker) == b"{'closed': [1005, '']}"


def test_a_client_that_vanishes(worker: WorkerProcess) -> None:
    with worker.connect() as sock:
        sock.sendall(
            b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode() + UPGRADE + KEY + b"\r\n"
        )
        heads(sock)
    assert state(worker) == b"{'closed': [1006, '']}"


def test_a_client_that_leaves_before_it_is_accepted(worker: WorkerProcess) -> None:
    text = "while message()[0] != DISCONNECT: pass\nstate['heard'] = 1\nr.reply(403)"
    with worker.connect() as sock:
        sock.sendall(b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script(text).encode() + UPGRADE + KEY + b"\r\n")
        time.sleep(0.3)
    assert state(worker) == b"{'heard': 1}"
    with worker.connect() as sock:  # and is accepted all the same
        text = "message()\n" + "answer(r)"
        sock.sendall(b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script(text).encode() + UPGRADE + KEY + b"\r\n")
        time.sleep(0.3)
    assert state(worker) == b"{'closed': [1006, '']}"


# Clients that break rules.


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01x", 1002),  # not masked
        (masked(1, b"\xff\xfe"), 1007),
        (masked(3, b"x"), 1002),  # no such opcode
        (masked(0, b"x"), 1002),  # more of no message
        (bytes((0xF1, 0x80)) + bytes(4), 1002),  # reserved bits
        (masked(9, b"x" * 10, final=False), 1002),
        (b"\x89\xfe\x00\x7e" + bytes(4) + b"x" * 126, 1002),  # a long ping
        (masked(8, b"\x03"), 1002),
        (masked(8, struct.pack(">H", 1005)), 1002),
        (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1002),
        (masked(2, b"x" * ((2 << 20) + 1)), 1009),
        (masked(2, b"x" * (1 << 20), False) + masked(0, b"x" * (1 << 20), False) + masked(0, b"x"), 1009),
    ],
)
def test_what_a_client_must_not_send(worker: WorkerProcess, data: bytes, code: int) -> None:
    with worker.connect() as sock:
        sock.sendall(
            b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode() + UPGRADE + KEY + b"\r\n"
        )
        heads(sock)
        sock.sendall(data)
        got = b""
        while len(got) < 4 and (more := sock.recv(1024)):
            got += more
        assert got[:1] == b"\x88" and struct.unpack(">H", got[2:4])[0] == code
    assert b"'closed': [" in state(worker)


@pytest.mark.attack
def test_a_long_message_takes_no_more_memory_than_its_bound(worker: WorkerProcess) -> None:
    front = psutil.Process(worker.front)
    before = front.memory_info().rss
    with worker.connect() as sock:
        sock.sendall(
            b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode() + UPGRADE + KEY + b"\r\n"
        )
        heads(sock)
        sock.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 40) + bytes(4))
        try:
            for _ in range(512):
                sock.sendall(bytes(1 << 16))
        except ConnectionError:
            pass
    assert front.memory_info().rss - before < 16 << 20
    assert b"'closed': [1009" in state(worker)


def test_silent_clients_are_pinged_and_dropped(worker: WorkerProcess) -> None:
    with opened(worker) as client:  # a real one answers pings by itself
        time.sleep(3.0)
        client.send("still here")
        assert client.recv(5.0) == "still here"
    with worker.connect() as sock:
        sock.sendall(
            b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode() + UPGRADE + KEY + b"\r\n"
        )
        heads(sock)
        began = time.monotonic()
        assert sock.recv(1024) == b"\x89\x00"  # a ping
        assert sock.recv(1024) == b"" and 1.0 < time.monotonic() - began + 1.0 < 6.0
    assert b"'closed': [1006, '']" in state(worker)


def test_connections_are_counted(worker: WorkerProcess) -> None:
    with opened(worker):
        held = [worker.connect() for _ in range(7)]
        for sock in held:
            sock.sendall(b"GET /run/echo HTTP/1.1\r\nhost: a\r\n\r\n")
            assert heads(sock).startswith(b"HTTP/1.1 200 ")
        with worker.connect() as sock:
            assert heads(sock).startswith(b"HTTP/1.1 503 ")
        for sock in held:
            sock.close()
    worker.until(lambda: worker.stats()["connections"] == 1)


# Sandboxes that break rules.


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "accept(subprotocol='mine')",
        "accept(headers=[['x', 'a\\r\\nx-evil: 1']])",
        "accept(headers=[['x\\r\\n', 'a']])",
        "accept(status=200)",
        "r.tell(ACCEPT, {'subprotocol': None, 'headers': []}, b'body')",
        "r.tell(ACCEPT, {'subprotocol': None, 'headers': []}, b'', MORE)",
        "r.tell(MESSAGE, {'text': True}, b'x')",
        "r.tell(CLOSE, {'code': 1000, 'reason': ''})",
    ],
)
def test_a_handshake_that_must_not_go_out(worker: WorkerProcess, text: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        with opened(worker, text + "\ntime.sleep(9)"):
            pass
    assert caught.value.response.status_code == 502 and b"bad_reply" in (caught.value.response.body or b"")
    assert "x-evil" not in caught.value.response.headers
    state(worker)


@pytest.mark.attack
@pytest.mark.parametrize(
    "text",
    [
        "r.tell(MESSAGE, {'text': True}, b'\\xff')",
        "r.tell(MESSAGE, {'text': 1}, b'x')",
        "r.tell(MESSAGE, {}, b'x')",
        "r.tell(MESSAGE, {'text': True, 'x': 1}, b'x')",
        "r.send(MESSAGE, b'')",
        "r.tell(MESSAGE, {'text': False}, b'x', MORE); [r.send(BODY, b'x' * (1 << 20), MORE) for _ in range(3)]",
        "r.tell(MESSAGE, {'text': False}, b'x', MORE); r.tell(MESSAGE, {'text': False}, b'x')",
        "r.tell(MESSAGE, {'text': False}, b'x', MORE); time.sleep(0.1); r.tell(ERROR, {'kind': 'handler'})",
        "r.send(BODY, b'x')",
        "r.reply(200)",
        "accept()",
        "r.tell(CLOSE, {'code': 999, 'reason': ''})",
        "r.tell(CLOSE, {'code': 5000, 'reason': ''})",
        "r.tell(CLOSE, {'code': 1000, 'reason': 'x' * 5000})",
        "r.tell(CLOSE, {'code': 1000, 'reason': ''}, b'x')",
        "r.tell(CLOSE, {'code': '1000', 'reason': ''})",
        "r.send(MESSAGE, b'x', number=1)",
        "r.send(DISCONNECT)",
        "raw(b'\\xff' * 40)",
        "os._exit(0)",
    ],
)
def test_a_conversation_that_breaks_the_rules(worker: WorkerProcess, text: str) -> None:
    with opened(worker, "accept(); time.sleep(0.1)\n" + text + "\ntime.sleep(9)") as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10.0)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1011
    state(worker)


def test_an_application_that_fails(worker: WorkerProcess) -> None:
    text = "accept()\nr.tell(ERROR, {'kind': 'handler', 'name': 'E', 'message': 'm', 'traceback': 'T'})"
    with opened(worker, "state['same'] = 1\n" + text) as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10.0)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1011
    assert state(worker) == b"{'same': 1}"


def test_one_that_does_not_end_what_the_client_has_ended(worker: WorkerProcess) -> None:
    with opened(
        worker, "state['old'] = 1\naccept()\nwhile True: r.tell(MESSAGE, {'text': False}, b'x'); time.sleep(0.01)"
    ):
        pass
    assert state(worker) == b"{}"  # it was ended after the grace, and this is another


def test_websocket_timeout(worker: WorkerProcess) -> None:
    with opened(worker, "accept()\ntime.sleep(30)", "brief") as client:
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10.0)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1011
    assert 0.5 < time.monotonic() - began < 6.0
    reply = worker.request("/run/brief", b"time.sleep(1.5); r.reply(200, [], b'late')", timeout=30.0)
    assert reply.body == b"late"  # other requests have the function's own timeout


# Pressure.


def test_a_client_that_does_not_read_holds_the_application_back(worker: WorkerProcess) -> None:
    text = "accept()\nfor _ in range(100): r.tell(MESSAGE, {'text': False}, b'x' * 500000)\n"
    text += "r.tell(CLOSE, {'code': 1000, 'reason': ''})"

    def read_late() -> None:
        with worker.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            start = b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script(PRELUDE + text).encode()
            sock.sendall(start + UPGRADE + KEY + b"\r\n")
            heads(sock)
            time.sleep(1.0)
            size = 0
            while data := sock.recv(1 << 20):
                size += len(data)
                if data.endswith(b"\x88\x02\x03\xe8"):
                    break
            assert size > 100 * 490_000

    assert worker.growth(read_late) < 12 << 20


def test_an_application_that_does_not_read_holds_the_client_back(worker: WorkerProcess) -> None:
    text = "accept()\ntime.sleep(1)\nsize = 0\nwhile size < 50 << 20: size += len(message()[2])\n"
    text += "r.tell(CLOSE, {'code': 1000, 'reason': ''})"

    def write() -> None:
        with opened(worker, text) as client:
            for _ in range(50):
                client.send(bytes(1 << 20))
            with pytest.raises(ConnectionClosed):
                client.recv(20.0)

    assert worker.growth(write) < 12 << 20


@pytest.mark.attack
def test_many_small_messages_to_an_application_that_does_not_read(worker: WorkerProcess) -> None:
    """They take the front neither time nor memory: others are served meanwhile."""
    text = "accept()\ntime.sleep(2)\nn = 0\nwhile message()[0] == MESSAGE: n += 1\nstate['n'] = n\n"
    text += "r.tell(CLOSE, {'code': 1000, 'reason': ''})"

    def write() -> None:
        with worker.connect() as sock:
            start = b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script(PRELUDE + text).encode()
            sock.sendall(start + UPGRADE + KEY + b"\r\n")
            heads(sock)
            sock.sendall(masked(2, b"") * 60_000)
            began = time.monotonic()
            assert worker.call("echo", 1).json == 1
            assert time.monotonic() - began < 1.0
            sock.sendall(b"".join(masked(0 if n else 2, b"x", n == 99_999) for n in range(100_000)))
            sock.sendall(masked(8, b""))
            while sock.recv(1024):
                pass

    assert worker.growth(write) < 20 << 20
    assert state(worker) == b"{'n': 60001}"


def test_an_application_may_be_slower_than_the_idle_time(worker: WorkerProcess) -> None:
    text = "accept()\ntime.sleep(4)\nfor _ in range(20): message()\nr.tell(CLOSE, {'code': 1000, 'reason': ''})"
    with opened(worker, text) as client:
        for _ in range(20):
            client.send(bytes(1 << 20))
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(20.0)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1000


@pytest.mark.attack
def test_pings_without_reading_the_pongs(worker: WorkerProcess) -> None:
    def ping() -> None:
        with worker.connect(1.0) as sock:
            start = b"GET /run/asgi%b HTTP/1.1\r\nhost: a\r\n" % script("answer(r)").encode()
            sock.sendall(start + UPGRADE + KEY + b"\r\n")
            heads(sock)
            try:
                for _ in range(3000):
                    sock.sendall(masked(9, b"x" * 100) * 100)
            except OSError:
                pass  # held back, or cut off

    assert worker.growth(ping) < 12 << 20
    state(worker)


# The end.


def test_1001_when_the_worker_stops(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({"asgi": FUNCTIONS["asgi"]})
    with opened(process) as client:
        client.send("x")
        client.recv(5.0)
        assert process.process is not None
        process.process.terminate()
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10.0)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001
    assert process.process.wait(20.0) == 0
