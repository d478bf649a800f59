"""The library's end of a channel, against a peer that is played here and plays foul."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from olsock import web
from olsock.channel import MAX_REPLY, Channel
from olsock.errors import (
    DeadlineError,
    InvocationError,
    KernelError,
    OlsockError,
    ProtocolError,
    SandboxDeadError,
    SpecError,
)
from olsock.readiness import Ready
from olsock.runtime import wire

pytestmark = pytest.mark.unit

STARTED = wire.frame(wire.STARTED, 0)
READY_ALONE = wire.message(wire.READY, 0, b'{"init_ms": 1.5}')
READY = STARTED + READY_ALONE
META = b'{"status":200,"content_type":"application/json"}'
REQUEST = 0x0123456789ABCDEF
SOON = 5.0  # a bound for what should come at once


@pytest.fixture(autouse=True)
def known_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the draw out of request ids, so that answers can be written before they are asked for."""
    drawn = REQUEST.to_bytes(8, "little")
    monkeypatch.setattr("olsock.channel.os.urandom", lambda size: drawn[:size])


class Pair:
    def __init__(self, **options: int) -> None:
        ours, self.peer = socket.socketpair()
        self.sock = ours
        self.channel = Channel(ours, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def reply(body: bytes = b"1", request: int = REQUEST, meta: bytes = META, flags: int = 0) -> bytes:
    return wire.message(wire.REPLY, request, meta, body, flags)


def error(kind: str, request: int, **fields: object) -> bytes:
    meta = {"kind": kind, "name": "ValueError", "message": "no", "traceback": "Traceback", **fields}
    return wire.message(wire.ERROR, request, json.dumps(meta).encode())


def test_ready_then_replies(pair: Pair) -> None:
    pair.peer.sendall(READY)
    assert pair.channel.wait_ready(SOON) == Ready(1.5)
    assert pair.channel.wait_ready(0) == Ready(1.5)
    for body in (b"1", b"", b'"two"'):
        answers = threading.Thread(
            daemon=True, target=lambda body=body: pair.peer.recv(65536) and pair.peer.sendall(reply(body))
        )
        answers.start()
        meta, got = pair.channel.invoke(b"{}", {}, SOON)
        answers.join()
        assert (meta, got) == ({"status": 200, "content_type": "application/json"}, body)


def test_request_may_be_sent_before_ready(pair: Pair) -> None:
    pair.channel.configure({"code": "/var/task"})
    pair.peer.sendall(READY + reply())
    assert pair.channel.invoke(b"[1]", {"method": "GET"}, SOON)[1] == b"1"
    frames = wire.Parser(wire.FROM_HOST, 1 << 20).feed(pair.peer.recv(65536))
    assert [(kind, flags, request) for kind, flags, request, _ in frames] == [
        (wire.CONFIG, 0, 0),
        (wire.REQUEST, 0, REQUEST),
    ]
    assert wire.split(frames[1][3]) == (b'{"method": "GET"}', b"[1]")


def test_long_bodies_are_split_and_joined(pair: Pair) -> None:
    body = os.urandom(1024) * (3 * 1024 + 1)

    def echo() -> None:
        parser, parts = wire.Parser(wire.FROM_HOST, 1 << 30), []
        while not parts or parts[-1][1]:
            parts += parser.feed(pair.peer.recv(1 << 20))
        got = b"".join(part[3] for part in parts)
        _, text = wire.split(got)
        first, rest = text[:1000], text[1000:]
        pair.peer.sendall(READY + reply(first, flags=wire.MORE))
        view = [rest[i : i + wire.MAX_PAYLOAD] for i in range(0, len(rest), wire.MAX_PAYLOAD)]
        for i, part in enumerate(view):
            pair.peer.sendall(wire.frame(wire.BODY, REQUEST, part, wire.MORE if i + 1 < len(view) else 0))

    peer = threading.Thread(daemon=True, target=echo)
    peer.start()
    assert pair.channel.invoke(body, {}, 30.0)[1] == body
    peer.join()


@pytest.mark.parametrize("kind", ["handler", "malformed", "serialize"])
def test_errors_of_one_invocation_leave_the_channel_usable(pair: Pair, kind: str) -> None:
    pair.peer.sendall(READY + error(kind, REQUEST))
    with pytest.raises(InvocationError, match="no") as caught:
        pair.channel.invoke(b"", {}, SOON)
    assert (caught.value.kind, caught.value.name, caught.value.traceback) == (kind, "ValueError", "Traceback")
    answers = threading.Thread(daemon=True, target=lambda: pair.peer.recv(65536) and pair.peer.sendall(reply()))
    pair.peer.recv(65536)
    answers.start()
    assert pair.channel.invoke(b"", {}, SOON)[1] == b"1"
    answers.join()


def test_failed_import_condemns(pair: Pair) -> None:
    pair.peer.sendall(STARTED + error("init", 0))
    with pytest.raises(InvocationError) as caught:
        pair.channel.wait_ready(SOON)
    assert caught.value.kind == "init"
    with pytest.raises(SandboxDeadError, match="imported"):
        pair.channel.invoke(b"", {}, SOON)


def test_failed_import_is_told_to_who_sends_to_the_dead(pair: Pair) -> None:
    pair.peer.sendall(STARTED + error("init", 0))
    pair.peer.close()
    with pytest.raises(InvocationError):
        pair.channel.invoke(b"", {}, SOON)


def test_started_before_the_import_ends(pair: Pair) -> None:
    pair.peer.sendall(STARTED)
    pair.channel.wait_started(SOON)
    pair.channel.wait_started(0)
    with pytest.raises(DeadlineError):
        pair.channel.wait_ready(0.01)


def test_fault_is_a_kernel_error(pair: Pair) -> None:
    pair.peer.sendall(wire.frame(wire.FAULT, 0, struct.pack("<i32s220s", errno.EPERM, b"pivot_root", b"/mnt")))
    with pytest.raises(KernelError) as caught:
        pair.channel.wait_ready(SOON)
    assert (caught.value.errno, caught.value.step, caught.value.path) == (errno.EPERM, "pivot_root", "/mnt")


FOUL_FIRST = {
    "reply before ready": reply(),
    "error of a handler": error("handler", 0),
    "init error with an id": error("init", 1),
    "ready with an id": wire.message(wire.READY, 1, b'{"init_ms":1}'),
    "ready with a body": wire.message(wire.READY, 0, b'{"init_ms":1}', b"x"),
    "ready that has more": wire.message(wire.READY, 0, b'{"init_ms":1}', b"x", wire.MORE),
    "ready without metadata": wire.frame(wire.READY, 0),
    "metadata that lies about its length": wire.frame(wire.READY, 0, wire.META.pack(2**32 - 1) + b"{}"),
    "metadata is no object": wire.message(wire.READY, 0, b"[]"),
    "metadata is no JSON": wire.message(wire.READY, 0, b"{"),
    "ready with an unknown field": wire.message(wire.READY, 0, b'{"init_ms":1,"x":2}'),
    "time below nothing": wire.message(wire.READY, 0, b'{"init_ms":-1}'),
    "import of three": wire.message(wire.READY, 0, b'{"init_ms":1,"imports":[["a","a",1]]}'),
    "import of six": wire.message(wire.READY, 0, b'{"init_ms":1,"imports":[["a","a",1,1,1,1]]}'),
    "import with a break": wire.message(wire.READY, 0, b'{"init_ms":1,"imports":[["a\\nb","a",1,1,1]]}'),
    "imports without end": wire.message(
        wire.READY, 0, b'{"init_ms":1,"imports":[%s["a","a",1,1,1]]}' % (b'["a","a",1,1,1],' * 500)
    ),
    "use of a number": wire.message(wire.READY, 0, b'{"init_ms":1,"used":[1]}'),
    "use of a submodule": wire.message(wire.READY, 0, b'{"init_ms":1,"used":["a.b"]}'),
    "number is a string": wire.message(wire.READY, 0, b'{"init_ms":"1"}'),
    "NaN": wire.message(wire.READY, 0, b'{"init_ms":NaN}'),
    "short fault": wire.frame(wire.FAULT, 0, bytes(255)),
    "long fault": wire.frame(wire.FAULT, 0, bytes(257)),
    "fault with an id": wire.frame(wire.FAULT, 1, bytes(256)),
    "started with a payload": wire.frame(wire.STARTED, 0, b"x"),
    "started with an id": wire.frame(wire.STARTED, 1),
    "unknown kind": wire.HEADER.pack(99, 0, 0, 0, 0),
    "a kind of ours": wire.message(wire.REQUEST, 0, b"{}"),
    "oversize": wire.HEADER.pack(wire.READY, 0, 0, wire.MAX_PAYLOAD + 1, 0),
    "text": b"HTTP/1.1 200 OK\r\n\r\n",
}
FOUL_ANSWER = {
    "ready again": READY_ALONE,
    "started again": STARTED,
    "another id": reply(request=REQUEST ^ 1),
    "id 0": reply(request=0),
    "error for another id": error("handler", REQUEST ^ 1),
    "init error late": error("init", REQUEST),
    "unknown error kind": error("oom", REQUEST),
    "error with a body": wire.message(wire.ERROR, REQUEST, b'{"kind":"handler","name":"","message":""}', b"x"),
    "error in parts": error("handler", REQUEST)[:1] + b"\1" + error("handler", REQUEST)[2:],
    "error without a name": wire.message(wire.ERROR, REQUEST, b'{"kind":"handler"}'),
    "fault late": wire.frame(wire.FAULT, REQUEST, bytes(256)),
    "bytes after the reply": reply() + b"\5",
    "two replies": reply() * 2,
    "bytes after an error": error("handler", REQUEST) + b"\5",
    "unannounced body": wire.frame(wire.BODY, REQUEST, b"x"),
    "status is text": reply(meta=b'{"status":"200","content_type":""}'),
    "status 99": reply(meta=b'{"status":99,"content_type":""}'),
    "status 600": reply(meta=b'{"status":600,"content_type":""}'),
    "header injection": reply(meta=b'{"status":200,"content_type":"a\\r\\nSet-Cookie: b"}'),
    "content type is no UTF-8": reply(meta=b'{"status":200,"content_type":"\xff"}'),
    "no status": reply(meta=b'{"content_type":""}'),
    "nested metadata": reply(meta=b'{"status":200,"content_type":"","x":' + b"[" * 60_000),
    "body of another request": reply(flags=wire.MORE) + wire.frame(wire.BODY, 1, b"x"),
}


@pytest.mark.parametrize("before", [b"", STARTED], ids=["first", "after STARTED"])
@pytest.mark.parametrize("foul", FOUL_FIRST.values(), ids=FOUL_FIRST)
def test_foul_first_frames(pair: Pair, foul: bytes, before: bytes) -> None:
    pair.peer.sendall(before + foul)
    with pytest.raises(ProtocolError):
        pair.channel.wait_ready(SOON)
    with pytest.raises(SandboxDeadError, match="condemned"):
        pair.channel.wait_ready(SOON)


@pytest.mark.parametrize(
    "foul",
    [READY_ALONE, error("init", 0), STARTED * 2, STARTED + wire.frame(wire.FAULT, 0, bytes(256))],
    ids=["ready without started", "init error without started", "started twice", "fault after started"],
)
def test_first_frames_out_of_order(pair: Pair, foul: bytes) -> None:
    pair.peer.sendall(foul)
    with pytest.raises(ProtocolError):
        pair.channel.wait_ready(SOON)


@pytest.mark.parametrize("foul", FOUL_ANSWER.values(), ids=FOUL_ANSWER)
def test_foul_answer(pair: Pair, foul: bytes) -> None:
    pair.peer.sendall(READY + foul)
    with pytest.raises(ProtocolError):
        pair.channel.invoke(b"", {}, SOON)
    with pytest.raises(SandboxDeadError, match="condemned"):
        pair.channel.invoke(b"", {}, SOON)


def test_unasked_bytes_between_requests(pair: Pair) -> None:
    pair.peer.sendall(READY)
    pair.channel.wait_ready(SOON)
    pair.peer.sendall(reply())
    with pytest.raises(ProtocolError, match="asked"):
        pair.channel.invoke(b"", {}, SOON)


def test_request_ids_are_drawn(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    seen = set()
    pair.peer.sendall(READY)
    pair.channel.wait_ready(SOON)
    for _ in range(20):

        def answer() -> None:
            [(_, _, request, _)] = wire.Parser(wire.FROM_HOST, 1 << 20).feed(pair.peer.recv(65536))
            seen.add(request)
            pair.peer.sendall(reply(request=request))

        peer = threading.Thread(daemon=True, target=answer)
        peer.start()
        pair.channel.invoke(b"", {}, SOON)
        peer.join()
    assert len(seen) == 20
    assert 0 not in seen


def test_reply_size_is_bounded() -> None:
    for size, fits in ((1000, True), (1001, False)):
        made = Pair(max_reply=1000)
        made.peer.sendall(
            READY + reply(bytes(500), flags=wire.MORE) + wire.frame(wire.BODY, REQUEST, bytes(size - 500))
        )
        if fits:
            assert made.channel.invoke(b"", {}, SOON)[1] == bytes(1000)
        else:
            with pytest.raises(ProtocolError, match="longer than 1000"):
                made.channel.invoke(b"", {}, SOON)
        made.close()


def test_endless_reply_ends_at_the_bound(pair: Pair) -> None:
    sent = 0

    def flood() -> None:
        nonlocal sent
        try:
            pair.peer.sendall(READY + reply(flags=wire.MORE))
            part = wire.frame(wire.BODY, REQUEST, bytes(wire.MAX_PAYLOAD), wire.MORE)
            while True:
                pair.peer.sendall(part)
                sent += 1
        except OSError:
            pass

    peer = threading.Thread(daemon=True, target=flood)
    peer.start()
    with pytest.raises(ProtocolError, match="longer than"):
        pair.channel.invoke(b"", {}, 60.0)
    pair.sock.close()
    peer.join()
    assert sent <= MAX_REPLY // wire.MAX_PAYLOAD + 2


def test_end_of_the_peer(pair: Pair) -> None:
    pair.peer.sendall(READY + reply()[:10])
    pair.channel.wait_ready(SOON)
    pair.peer.close()
    with pytest.raises(OlsockError):  # ten bytes that nobody asked for, or the end: both condemn
        pair.channel.invoke(b"", {}, SOON)


def test_end_in_the_middle_of_a_reply(pair: Pair) -> None:
    pair.peer.sendall(READY + reply(bytes(100))[:50])
    pair.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(SandboxDeadError, match="closed"):
        pair.channel.invoke(b"", {}, SOON)


def test_deadline_while_waiting(pair: Pair) -> None:
    pair.peer.sendall(READY)
    pair.channel.wait_ready(SOON)
    with pytest.raises(DeadlineError):
        pair.channel.invoke(b"", {}, 0.05)
    pair.peer.sendall(reply())  # late: it must not become the answer to the next request
    with pytest.raises(SandboxDeadError, match="condemned"):
        pair.channel.invoke(b"", {}, SOON)


def test_deadline_while_sending(pair: Pair) -> None:
    with pytest.raises(DeadlineError):
        pair.channel.invoke(bytes(16 << 20), {}, 0.05)


def test_deadline_holds_while_bytes_keep_coming(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olsock.channel.CHUNK", 1)
    size = 150_000  # more than can be taken byte by byte before the deadline, less than a socket holds
    pair.peer.sendall(READY + wire.HEADER.pack(wire.REPLY, 0, 0, wire.MAX_PAYLOAD, REQUEST) + bytes(size))
    with pytest.raises(DeadlineError):
        pair.channel.invoke(b"", {}, 0.01)
    assert pair.sock.recv(1) == b"\0"  # it did not go on until nothing was left


def test_aux_is_emptied_while_waiting(pair: Pair) -> None:
    """A handler that prints more than a pipe holds, before it answers."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    printed = bytearray()

    def drain() -> bool:
        try:
            data = os.read(read, 65536)
        except BlockingIOError:
            return True
        printed.extend(data)
        return bool(data)

    channel = Channel(pair.sock, aux={read: drain})

    def talk() -> None:
        left = memoryview(bytes(1 << 20))
        while left:
            left = left[os.write(write, left) :]
        os.close(write)
        pair.peer.sendall(READY + reply())

    peer = threading.Thread(daemon=True, target=talk)
    peer.start()
    assert channel.invoke(b"", {}, 30.0)[1] == b"1"
    peer.join()
    assert len(printed) == 1 << 20
    os.close(read)


def test_turns_between_threads(pair: Pair) -> None:
    pair.peer.sendall(READY)
    pair.channel.wait_ready(SOON)
    bodies: list[bytes] = []
    callers = [
        threading.Thread(daemon=True, target=lambda: bodies.append(pair.channel.invoke(b"", {}, SOON)[1]))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for number in range(4):
        assert pair.peer.recv(65536)
        pair.peer.sendall(reply(b"%d" % number))
    for caller in callers:
        caller.join()
    assert sorted(bodies) == [b"0", b"1", b"2", b"3"]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_never_taken(pair: Pair) -> None:
    passed = array.array("i", [0] * 16)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
    pair.peer.sendmsg([READY], rights)
    pair.peer.sendmsg([reply()], rights)
    before = open_fds()
    assert pair.channel.invoke(b"", {}, SOON)[1] == b"1"
    assert open_fds() == before
    # The control: they were really on their way, a receiver with room for them gets them.
    pair.peer.sendmsg([b"x"], rights)
    _, fds, _, _ = socket.recv_fds(pair.sock, 1, 16)
    assert open_fds() == before + 16
    for fd in fds:
        os.close(fd)


frames = st.builds(
    wire.frame,
    st.sampled_from(sorted(wire.FROM_BOX)),
    st.sampled_from([0, 1, REQUEST]),
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=8).map(lambda body: wire.META.pack(len(META)) + META + body),
        st.sampled_from([b"", READY_ALONE[16:], error("handler", 0)[16:], error("init", 0)[16:], bytes(256)]),
    ),
    st.sampled_from([0, 0, 0, wire.MORE]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.booleans(), st.lists(st.one_of(frames, st.binary(max_size=40)), max_size=5))
def test_any_bytes_give_a_reply_or_an_error_of_ours(ready: bool, sent: list[bytes]) -> None:
    made = Pair()
    before = open_fds()
    try:
        made.peer.sendall((READY if ready else b"") + b"".join(sent))
        made.peer.shutdown(socket.SHUT_WR)
        try:
            meta, body = made.channel.invoke(b"", {}, SOON)
        except OlsockError as e:
            assert not isinstance(e, DeadlineError)  # no state of its parser waits for what cannot come
        else:
            assert meta["status"] == 200
            assert isinstance(body, bytes)
        assert open_fds() == before
    finally:
        made.close()


# -- streams and web applications -------------------------------------------------------------------------------------

WEB_READY = STARTED + wire.message(wire.READY, 0, b'{"init_ms": 1.5, "contract": "wsgi"}')
HEAD = {"status": 200, "headers": [["Content-Type", "text/plain"]], "stream": True}
WEB = ("wsgi", "asgi")


def head(body: bytes = b"", flags: int = wire.MORE, **fields: object) -> bytes:
    return wire.message(wire.REPLY, REQUEST, json.dumps({**HEAD, **fields}).encode(), body, flags)


def whole(body: bytes = b"x", **fields: object) -> bytes:
    return head(body, 0, **{"stream": False, **fields})


def part(body: bytes = b"", flags: int = wire.MORE) -> bytes:
    return wire.frame(wire.BODY, REQUEST, body, flags)


END = part(flags=0)


def say(pair: Pair, *frames: bytes) -> threading.Thread:
    """Answer the next request with `frames`."""

    def answer() -> None:
        pair.peer.recv(65536)
        pair.peer.sendall(b"".join(frames))

    thread = threading.Thread(daemon=True, target=answer)
    thread.start()
    return thread


def answered(pair: Pair, *frames: bytes, method: str = "GET", limit: int | None = None) -> tuple[web.Head, list[bytes]]:
    """Exchange one request, which is answered with `frames` once it has come."""
    pair.peer.sendall(WEB_READY)
    pair.channel.wait_ready(SOON)
    thread = say(pair, *frames)
    try:
        got, *parts = pair.channel.exchange(b"", {"method": method}, SOON, contracts=WEB, limit=limit)
    finally:
        thread.join()
    return got, parts


def begun(pair: Pair, *frames: bytes) -> Generator[Any, None, None]:
    """Begin an exchange whose answer begins with `frames`."""
    pair.peer.sendall(WEB_READY)
    pair.channel.wait_ready(SOON)
    thread = say(pair, *frames)
    exchange = pair.channel.exchange(b"", {"web": True}, SOON, contracts=WEB)
    assert next(exchange) == web.Head(200, (("content-type", "text/plain"),), True)
    thread.join()
    return exchange


def test_parts_come_one_by_one(pair: Pair) -> None:
    exchange = begun(pair, head())
    for body in (b"one", b"two"):
        pair.peer.sendall(part(body))
        assert next(exchange) == body
    pair.peer.sendall(END)
    assert list(exchange) == []
    assert not pair.channel._condemned


def test_streams_may_be_longer_than_a_reply() -> None:
    made = Pair(max_reply=100_000)
    try:
        got, parts = answered(made, head(b"first"), *[part(bytes(50_000))] * 20, END)
        assert got.stream and sum(map(len, parts)) == 1_000_005
    finally:
        made.close()


@pytest.mark.parametrize(
    ("frames", "limit"),
    [
        ((whole(bytes(70_001)),), None),
        ((head(bytes(60_000), stream=False), part(bytes(10_001), 0)), None),
        ((head(bytes(100)), part(bytes(100)), END), 150),
        ((head(bytes(1), 0),), 0),
    ],
)
def test_bodies_that_are_too_long_condemn(frames: tuple[bytes, ...], limit: int | None) -> None:
    made = Pair(max_reply=70_000)
    try:
        with pytest.raises(ProtocolError):
            answered(made, *frames, limit=limit)
        assert made.channel._condemned
    finally:
        made.close()


def test_hop_by_hop_headers_are_dropped(pair: Pair) -> None:
    names = ["Connection", "keep-alive", "Proxy-Authenticate", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "X-A"]
    got, _ = answered(pair, whole(headers=[[name, "v"] for name in names]))
    assert got.headers == (("x-a", "v"),)


FIVE = [["content-length", "5"]]


@pytest.mark.parametrize(
    ("method", "frames"),
    [
        ("HEAD", [whole(b"", headers=FIVE)]),
        ("GET", [whole(b"", headers=FIVE, status=304)]),
        ("GET", [whole(b"12345", headers=FIVE)]),
        ("GET", [head(b"123", headers=[*FIVE, ["Content-Length", "5"]]), part(b"45"), END]),
    ],
)
def test_lengths_that_are_kept(pair: Pair, method: str, frames: list[bytes]) -> None:
    got, parts = answered(pair, *frames, method=method)
    assert b"".join(parts) in (b"", b"12345")
    assert ("content-length", "5") in got.headers


def test_a_stream_that_breaks_off_leaves_the_channel_usable(pair: Pair) -> None:
    with pytest.raises(InvocationError, match="no") as caught:
        answered(pair, head(b"begun"), error("handler", REQUEST))
    assert caught.value.name == "ValueError"
    thread = say(pair, whole(b"fine"))
    assert list(pair.channel.exchange(b"", {}, SOON, contracts=WEB))[1:] == [b"fine"]
    thread.join()


def test_who_stops_reading_says_so(pair: Pair) -> None:
    exchange = begun(pair, head(b"one"))
    heard: list[tuple[int, int, int, bytes]] = []

    def end() -> None:
        heard.extend(wire.Parser(wire.FROM_HOST, 1 << 20).feed(pair.peer.recv(65536)))
        pair.peer.sendall(part(b"two") + END)

    thread = threading.Thread(daemon=True, target=end)
    thread.start()
    exchange.close()
    thread.join()
    assert heard == [(wire.DISCONNECT, 0, REQUEST, b"")]
    assert not pair.channel._condemned


def test_a_stream_that_does_not_end_when_nobody_reads_condemns(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olsock.channel.PATIENCE", 0.05)
    exchange = begun(pair, head(b"one"))
    with pytest.raises(DeadlineError):
        exchange.close()
    with pytest.raises(SandboxDeadError, match="condemned"):
        pair.channel.invoke(b"", {}, SOON)


def test_nobody_else_has_a_turn_while_a_stream_is_read(pair: Pair) -> None:
    exchange = begun(pair, head(b"one"))
    with pytest.raises(DeadlineError, match="another"):
        pair.channel.invoke(b"", {}, 0.05)
    pair.peer.sendall(END)
    exchange.close()


def test_requests_are_not_for_functions_of_events(pair: Pair) -> None:
    pair.peer.sendall(READY)
    with pytest.raises(InvocationError, match="contract 'event'"):
        next(pair.channel.exchange(b"", {}, SOON, contracts=WEB))
    assert not pair.channel._condemned


def test_a_reply_to_an_event_does_not_break_off(pair: Pair) -> None:
    pair.peer.sendall(READY + reply(flags=wire.MORE) + error("handler", REQUEST))
    with pytest.raises(ProtocolError):
        pair.channel.invoke(b"", {}, SOON)


FOUL_WEB: dict[str, list[bytes]] = {
    "a reply to an event": [reply()],
    "status is text": [whole(status="200")],
    "interim status": [whole(status=101)],
    "status 600": [whole(status=600)],
    "no headers": [wire.message(wire.REPLY, REQUEST, b'{"status":200,"stream":false}')],
    "no stream": [wire.message(wire.REPLY, REQUEST, b'{"status":200,"headers":[]}')],
    "an unknown field": [whole(more=1)],
    "stream is a number": [whole(stream=1)],
    "headers are an object": [whole(headers={"a": "b"})],
    "a header of one": [whole(headers=[["a"]])],
    "a header of three": [whole(headers=[["a", "b", "c"]])],
    "a name that splits": [whole(headers=[["a\r\nb", "c"]])],
    "a name with a colon": [whole(headers=[["a:", "c"]])],
    "a name with a blank": [whole(headers=[["a ", "c"]])],
    "an empty name": [whole(headers=[["", "c"]])],
    "a name that ends its line": [whole(headers=[["a\n", "c"]])],
    "a value that splits": [whole(headers=[["a", "b\r\nSet-Cookie: c"]])],
    "a value with a line feed": [whole(headers=[["a", "b\nc"]])],
    "a value that ends its line": [whole(headers=[["a", "b\n"]])],
    "a value with NUL": [whole(headers=[["a", "b\0c"]])],
    "a value beyond latin-1": [whole(headers=[["a", "\u20ac"]])],
    "a value that is a number": [whole(headers=[["a", 1]])],
    "two lengths": [whole(headers=[["content-length", "1"], ["Content-Length", "2"]])],
    "a length of words": [whole(headers=[["content-length", "one"]])],
    "a length of other digits": [whole(headers=[["content-length", "\u00b2"]])],
    "a length below nothing": [whole(headers=[["content-length", "-1"]])],
    "a length with a sign": [whole(headers=[["content-length", "+1"]])],
    "a list of lengths": [whole(headers=[["content-length", "1, 1"]])],
    "a length beyond all": [whole(headers=[["content-length", "9" * 16]])],
    "a body too short": [whole(headers=[["content-length", "2"]])],
    "a body too long": [whole(headers=[["content-length", "0"]])],
    "a stream too short": [head(b"x", headers=[["content-length", "3"]]), part(b"y"), END],
    "a stream too long": [head(b"x", headers=[["content-length", "1"]]), part(b"y"), END],
    "a body where none belongs": [whole(status=204)],
    "bytes after the reply": [head(b"x", 0), b"\5"],
    "two replies": [whole()] * 2,
    "ready again": [READY_ALONE],
    "a body of another request": [head(b"x"), wire.frame(wire.BODY, 1, b"y")],
    "an error of another request": [head(b"x"), error("handler", 1)],
    "an init error": [head(b"x"), error("init", REQUEST)],
    "an error in parts": [head(b"x"), wire.message(wire.ERROR, REQUEST, b"{}", b"", wire.MORE)],
    "bytes after an error": [head(b"x"), error("handler", REQUEST), b"\5"],
    "a reply within a reply": [head(b"x"), head(b"y")],
    "an empty part that is not the last": [head(b"x"), part(b"")],
    "a WebSocket": [wire.message(wire.WS_ACCEPT, REQUEST, b"{}")],
    "a message of a WebSocket": [wire.message(wire.WS_MESSAGE, REQUEST, b'{"text":true}')],
    "the end of a WebSocket": [wire.message(wire.WS_CLOSE, REQUEST, b"{}")],
    "a word for us only": [wire.frame(wire.DISCONNECT, REQUEST)],
}


@pytest.mark.parametrize("frames", FOUL_WEB.values(), ids=FOUL_WEB)
def test_foul_web_answers(pair: Pair, frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        answered(pair, *frames)
    with pytest.raises(SandboxDeadError, match="condemned"):
        pair.channel.invoke(b"", {}, SOON)


def test_an_unknown_contract(pair: Pair) -> None:
    pair.peer.sendall(STARTED + wire.message(wire.READY, 0, b'{"init_ms":1,"contract":"auto"}'))
    with pytest.raises(ProtocolError):
        pair.channel.wait_ready(SOON)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_in_a_stream_end_or_condemn(sent: bytes) -> None:
    made = Pair()
    try:
        exchange = begun(made, head(b"x"))
        made.peer.sendall(sent)
        made.peer.close()
        with pytest.raises((ProtocolError, SandboxDeadError)):
            list(exchange)
    finally:
        made.close()


@pytest.mark.parametrize(
    ("nonsense", "field"),
    [
        ({"method": "GET\r\n"}, "method"),
        ({"method": ""}, "method"),
        ({"method": 1}, "method"),
        ({"path": "a"}, "path"),
        ({"path": None}, "path"),
        ({"body": "text"}, "body"),
        ({"headers": {"a\n": "b"}}, "headers"),
        ({"headers": {"a": "b\r\nc: d"}}, "headers"),
        ({"headers": [("a", "b", "c")]}, "headers"),
        ({"headers": ["ab"]}, "headers"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a": "\u20ac"}}, "headers"),
    ],
)
def test_requests_that_make_no_sense(nonsense: dict[str, object], field: str) -> None:
    asked: dict[str, Any] = {"method": "GET", "path": "/", "headers": (), "body": b"", **nonsense}
    with pytest.raises(SpecError, match=field):
        web.request(**asked)


def test_requests_are_made_of_what_people_write() -> None:
    made = web.request("POST", "/a b/%2F/é?q=1&r=ü x", {"X-A": "b"}, b"body")
    assert (made["path"], made["query"]) == ("/a%20b/%2F/%C3%A9", "q=1&r=%C3%BC%20x")
    assert made["headers"] == [["host", "localhost"], ["x-a", "b"], ["content-length", "4"]]
