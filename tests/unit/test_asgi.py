"""ASGI applications in the runtime: HTTP, lifespan and WebSockets, and what applications do wrong."""

from __future__ import annotations

import json
import socket
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from olsock.errors import InvocationError
from olsock.runtime import wire
from support.boxes import SOON, WebBox

pytestmark = pytest.mark.unit


# What most applications here are made of: `scope`, `receive` and `send` of a request at hand.
PRELUDE = """
import asyncio, os, sys, threading, time
async def started(send, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
async def said(send, body, more=False):
    await send({"type": "http.response.body", "body": body, "more_body": more})
async def answer(send, body):
    await started(send)
    await said(send, body)
"""


def app(http: str = "await answer(send, b'fine')", websocket: str = "pass", before: str = "") -> str:
    """An application that does `http` for the path /harm, and `websocket` for WebSockets."""

    def indented(text: str, by: int) -> str:
        return "\n".join(" " * by + line for line in text.strip("\n").split("\n"))

    return f"""{PRELUDE}
{before}
async def app(scope, receive, send):
    if scope["type"] == "websocket":
{indented(websocket, 8)}
    elif scope["type"] != "http":
        raise NotImplementedError
    elif scope["path"] == "/harm":
{indented(http, 8)}
    else:
        await answer(send, b"fine")
"""


def test_the_scope(python: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        contract = box.begin(
            """
            async def app(scope, receive, send):
                assert scope["type"] == "http"
                body = (await receive())["body"]
                await send({"type": "http.response.start", "status": 201, "headers": [(b"X-Name", b"\\xe9")]})
                await send({"type": "http.response.body", "body": repr((scope, body)).encode()})
            """,
            root_path="/run/hello",
        )
        assert contract == "asgi"
        headers = [["host", "example.org"], ["x-a", "1"], ["x-a", "é"]]
        answer = box.request("POST", "/caf%C3%A9/a%2Fb", b"body", query="q=%20", headers=headers)
        assert (answer.error, answer.status, answer.stream, answer.header("x-name")) == (None, 201, False, "é")
        scope, body = eval(answer.body)
        assert body == b"body"
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "POST",
            "path": "/run/hello/café/a/b",
            "raw_path": b"/run/hello/caf%C3%A9/a%2Fb",
            "root_path": "/run/hello",
            "query_string": b"q=%20",
            "headers": [(b"host", b"example.org"), (b"x-a", b"1"), (b"x-a", b"\xe9")],
            "server": ("example.org", 80),
            "client": ("192.0.2.1", 40000),
        }
        assert eval(box.request(path="").body)[0]["path"] == "/run/hello/"
        assert box.log() == "", "an application that knows no lifespan says so by raising"
    finally:
        box.close()


ECHO = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})
"""


def test_bodies_both_ways(box: WebBox) -> None:
    box.begin(ECHO)
    for size in (0, 1, wire.MAX_PAYLOAD - 400, wire.MAX_PAYLOAD, 5 * wire.MAX_PAYLOAD + 1):
        sent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        box.ask("POST", "/", b"")
        assert box.answer().body == b""
        box.sock.setblocking(True)
        # More than both sockets hold goes each way: neither end may wait for the other to read first.
        got = box.request("POST", "/", sent) if size < 60_000 else _both_ways(box, sent)
        assert (got.error, got.body) == (None, sent)


def _both_ways(box: WebBox, sent: bytes) -> Any:
    import threading

    thread = threading.Thread(target=box.ask, args=("POST", "/", sent), daemon=True)
    box.number += 1
    number = box.number
    box.number -= 1
    thread.start()
    while box.number != number:
        pass
    found = box.answer()
    thread.join(SOON)
    return found


def test_a_request_is_answered_before_its_body_has_come(box: WebBox) -> None:
    box.begin(ECHO)
    box.number += 1
    meta = json.dumps({"web": True, "method": "POST", "path": "/"}).encode()
    box.sock.sendall(wire.message(wire.REQUEST, 1, meta, b"first", wire.MORE))
    _, flags, payload = box.frame()
    assert (flags, wire.split(payload)[1]) == (wire.MORE, b"first")
    box.sock.sendall(wire.frame(wire.BODY, 1, b"second", wire.MORE))
    assert box.frame() == (wire.BODY, wire.MORE, b"second")
    box.sock.sendall(wire.frame(wire.BODY, 1, b""))
    assert box.frame() == (wire.BODY, 0, b"")


def test_the_rest_of_a_body_that_nobody_wanted_is_dropped(box: WebBox) -> None:
    box.begin(app())
    box.number += 1
    meta = json.dumps({"web": True, "method": "POST", "path": "/"}).encode()
    box.sock.sendall(wire.message(wire.REQUEST, 1, meta, b"first", wire.MORE))
    assert box.answer().body == b"fine"
    box.sock.sendall(wire.frame(wire.BODY, 1, b"x" * wire.MAX_PAYLOAD, wire.MORE) + wire.frame(wire.BODY, 1, b"x"))
    assert box.request().body == b"fine"


def test_parts_are_sent_as_they_are_made(box: WebBox) -> None:
    box.begin(
        app(
            """
await started(send, headers=[(b"content-type", b"text/event-stream")])
await said(send, b"", True)
await receive()
await receive()
await said(send, b"gone", True)
"""
        )
    )
    box.ask(path="/harm")
    _, flags, payload = box.frame()
    assert flags == wire.MORE and wire.split(payload)[1] == b"", "the headers go first"
    box.send(wire.DISCONNECT)
    assert box.frame() == (wire.BODY, wire.MORE, b"gone")
    assert box.frame() == (wire.BODY, 0, b""), "it need not complete what nobody reads"
    assert box.request().body == b"fine"


def test_disconnect_is_told(box: WebBox) -> None:
    box.begin(
        app(
            """
kinds = [(await receive())["type"] for _ in range(3)]
print(*kinds)
await answer(send, b"too late")
"""
        )
    )
    box.ask(path="/harm")
    box.send(wire.DISCONNECT)
    assert box.answer().body == b"too late"
    assert box.log() == "http.request http.disconnect http.disconnect\n"


@pytest.mark.parametrize("length", [True, False])
def test_work_behind_the_response_does_not_hold_it_up(box: WebBox, length: bool, tmp_path: Path) -> None:
    """The client has all of it at once; the host learns that the request is over when the work is done."""
    gate = tmp_path / "gate"
    __import__("os").mkfifo(gate)
    headers = "[(b'content-length', b'4')]" if length else "[]"
    box.begin(
        app(
            f"""
await started(send, headers={headers})
await said(send, b"body")
assert (await receive())["type"] == "http.disconnect"
await asyncio.get_running_loop().run_in_executor(None, lambda: open({str(gate)!r}).read())
print("worked")
"""
        )
    )
    box.ask(path="/harm")
    _, flags, payload = box.frame()
    assert (flags, wire.split(payload)[1]) == (wire.MORE, b"body")
    gate.write_text("open")
    assert box.frame() == (wire.BODY, 0, b"")
    assert box.log() == "worked\n"
    assert box.request().body == b"fine"


def test_failures_behind_the_response_are_logged(box: WebBox) -> None:
    box.begin(app("await answer(send, b'body')\nraise ValueError('behind')"))
    answer = box.request(path="/harm")
    assert (answer.error, answer.body) == (None, b"body")
    assert "ValueError: behind" in box.log()


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
def test_replies_without_a_body(box: WebBox, method: str, status: int) -> None:
    box.begin(
        app(
            f"""
await started(send, {status}, [(b"Content-Length", b"5")])
await said(send, b"he", True)
await said(send, b"llo")
"""
        )
    )
    answer = box.request(method, "/harm")
    assert (answer.error, answer.body, answer.stream) == (None, b"", False)
    assert answer.header("content-length") == "5"


# -- lifespan ---------------------------------------------------------------------------------------------------------

LIFESPAN = """
import sys
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["made"] = ["at startup"]
        print("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        print("stopped")
        await send({"type": "lifespan.shutdown.complete"})
        return
    scope["state"]["own"] = scope["state"].get("own", 0) + 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(scope["state"]).encode()})
"""


def test_lifespan(python: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        box.begin(LIFESPAN)
        assert box.log() == "started\n", "before READY"
        for _ in range(2):  # what a request puts into its state is not there in the next one
            assert eval(box.request().body) == {"made": ["at startup"], "own": 1}
        box.sock.shutdown(socket.SHUT_WR)
        assert box.process.wait(SOON) == 0
        assert box.log() == "stopped\n"
    finally:
        box.close()


@pytest.mark.parametrize(
    ("startup", "name", "message"),
    [
        (
            "await send({'type': 'lifespan.startup.failed', 'message': 'no database'})",
            "StartupFailed",
            "no database",
        ),
        (
            "await send({'type': 'lifespan.startup.failed'}); raise ValueError",
            "StartupFailed",
            "lifespan.startup.failed",
        ),
        ("sys.exit(3)", "SystemExit", "3"),
    ],
)
def test_a_startup_that_fails_is_a_failed_import(box: WebBox, startup: str, name: str, message: str) -> None:
    box.start(f"import sys\nasync def app(scope, receive, send):\n    await receive()\n    {startup}")
    with pytest.raises(InvocationError) as caught:
        box.channel.wait_ready(SOON)
    assert (caught.value.kind, caught.value.name) == ("init", name)
    assert message in str(caught.value)
    assert box.process.wait(SOON) == 1


@pytest.mark.parametrize(
    ("lifespan", "logged"),
    [
        ("raise ValueError('only http')", ""),
        ("return", ""),
        ("await receive(); return", ""),
        ("await receive(); raise KeyError('body')", "KeyError: 'body'"),
        ("await send({'type': 'http.response.start'})", ""),
    ],
)
def test_applications_that_know_no_lifespan(box: WebBox, lifespan: str, logged: str) -> None:
    box.begin(
        f"""{PRELUDE}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        {lifespan}
    assert "state" not in scope
    await answer(send, b"fine")
"""
    )
    assert box.request().body == b"fine"
    log = box.log()
    assert (logged in log) if logged else log == ""


@pytest.mark.parametrize(
    ("shutdown", "logged"),
    [
        ("await send({'type': 'lifespan.shutdown.failed', 'message': 'still busy'})", "still busy"),
        ("raise ValueError('at the end')", "ValueError: at the end"),
        ("await asyncio.sleep(600)", ""),
    ],
)
def test_a_shutdown_that_fails_is_logged(box: WebBox, shutdown: str, logged: str) -> None:
    box.begin(
        f"""{PRELUDE}
async def app(scope, receive, send):
    await receive()
    await send({{"type": "lifespan.startup.complete"}})
    await receive()
    {shutdown}
"""
    )
    box.sock.shutdown(socket.SHUT_WR)
    assert box.process.wait(SOON) == 0
    assert logged in box.log()


# -- what applications do wrong ---------------------------------------------------------------------------------------

WRONG = {
    "raises": ("raise ValueError('no')", "handler", "ValueError"),
    "exits": ("sys.exit(3)", "handler", "SystemExit"),
    "is interrupted": ("raise KeyboardInterrupt", "handler", "KeyboardInterrupt"),
    "is cancelled": ("asyncio.current_task().cancel()\nawait asyncio.sleep(1)", "handler", "CancelledError"),
    "raises in the midst": (
        "await started(send)\nawait said(send, b'x', True)\nraise ValueError('no')",
        "handler",
        "ValueError",
    ),
    "exits in the midst": ("await started(send)\nawait said(send, b'x', True)\nsys.exit(3)", "handler", "SystemExit"),
    "says nothing": ("pass", "serialize", "BadReply"),
    "starts only": ("await started(send)", "serialize", "BadReply"),
    "does not end": ("await started(send)\nawait said(send, b'x', True)", "serialize", "BadReply"),
    "a body first": ("await said(send, b'x')", "serialize", "BadReply"),
    "starts twice": ("await started(send)\nawait started(send)", "handler", "RuntimeError"),
    "an unknown message": ("await send({'type': 'http.response.push'})", "handler", "RuntimeError"),
    "a message of a WebSocket": ("await send({'type': 'websocket.accept'})", "handler", "RuntimeError"),
    "no type": ("await send({})", "handler", "KeyError"),
    "no message": ("await send(None)", "handler", "TypeError"),
    "text for a body": ("await started(send)\nawait said(send, 'text')", "serialize", "BadReply"),
    "text for a header": ("await started(send, 200, [('a', 'b')])", "serialize", "BadReply"),
    "text for a status": ("await started(send, '200')", "serialize", "BadReply"),
    "no status": ("await send({'type': 'http.response.start'})", "handler", "KeyError"),
    "an interim status": ("await started(send, 101)", "serialize", "BadReply"),
    "a header that splits": ("await started(send, 200, [(b'a', b'b\\r\\nc: d')])", "serialize", "BadReply"),
    "a name that splits": ("await started(send, 200, [(b'a\\r\\nb', b'c')])", "serialize", "BadReply"),
    "headers without end": (
        "await started(send, 200, [(b'a', b'b' * 999)] * 99)\nawait said(send, b'x')",
        "serialize",
        "BadReply",
    ),
    "a body too short": (
        "await started(send, 200, [(b'content-length', b'9')])\nawait said(send, b'x')",
        "serialize",
        "BadReply",
    ),
    "a body too long": (
        "await started(send, 200, [(b'content-length', b'1')])\nawait said(send, b'xyz')",
        "serialize",
        "BadReply",
    ),
    "a stream too short": (
        "await started(send, 200, [(b'content-length', b'9')])\nawait said(send, b'x', True)\nawait said(send, b'y')",
        "serialize",
        "BadReply",
    ),
    "a stream too long, and not minded": (
        """
await started(send, 200, [(b'content-length', b'2')])
await said(send, b'x', True)
try:
    await said(send, b'yz')
except Exception:
    await said(send, b'y')
""",
        "serialize",
        "BadReply",
    ),
}


@pytest.mark.parametrize(("http", "kind", "name"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_does_not_reach_the_next_request(box: WebBox, http: str, kind: str, name: str) -> None:
    box.begin(app(http))
    failed = box.request(path="/harm")
    assert failed.error is not None
    assert (failed.error["kind"], failed.error["name"]) == (kind, name)
    for _ in range(2):
        assert box.request().body == b"fine"
    assert box.process.poll() is None


@pytest.mark.parametrize(
    "harm",
    [
        "asyncio.get_running_loop().stop()",
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
        "asyncio.ensure_future(leave())",
        "asyncio.ensure_future(forever())",
        "asyncio.ensure_future(late(send))",
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "asyncio.get_running_loop().call_soon(sys.exit)",
        "old.append(send)",
        "scope.clear()",
        "asyncio.set_event_loop(None)",
        "asyncio.get_running_loop().set_exception_handler(lambda *_: sys.exit())\n    asyncio.ensure_future(leave())",
    ],
)
def test_harm_does_not_reach_the_next_request(box: WebBox, harm: str) -> None:
    before = """
old = []
async def leave(): sys.exit(4)
async def forever():
    while True: await asyncio.sleep(0)
async def late(send):
    while True:
        await asyncio.sleep(0)
        try:
            await said(send, b"late")
        except RuntimeError:
            print("refused")
            return
"""
    box.begin(app(f"for _ in range(1):\n    {harm}\nawait answer(send, b'done')", before=before))
    assert box.request(path="/harm").body == b"done"
    for _ in range(3):
        assert box.request().body == b"fine"
    assert ("refused" in box.log()) == ("late(send)" in harm)


@pytest.mark.parametrize("called", ["raise ValueError('no')", "return None"])
def test_what_is_no_coroutine_does_not_reach_the_next_request(box: WebBox, called: str) -> None:
    box.begin(
        app()
        + f"""
def f(scope, receive, send):
    if scope["path"] == "/harm":
        {called}
    return app(scope, receive, send)
"""
    )
    failed = box.request(path="/harm").error or {}
    assert (failed["kind"], failed["name"]) == ("handler", "ValueError" if "raise" in called else "TypeError")
    assert box.request().body == b"fine"


def test_a_loop_of_the_users_choice(box: WebBox) -> None:
    """uvloop, which this project needs itself, set up as its documentation has it."""
    box.begin(
        "import uvloop\nuvloop.install()\n"
        + app(
            """
message = await receive()
await answer(send, type(asyncio.get_running_loop()).__module__.encode() + message["body"])
""",
            websocket=TALK,
        ),
        path=[sysconfig.get_path("platlib")],
    )
    assert box.request("POST", "/harm", b"!").body == b"uvloop!"
    open_socket(box)
    box.send(wire.WS_MESSAGE, {"text": False}, b"x" * 3_000_000)
    assert box.hear() == (wire.WS_MESSAGE, {"text": False}, b"x" * 3_000_000)
    box.send(wire.WS_CLOSE, {"code": 1000, "reason": ""})
    assert box.hear()[0] == wire.WS_CLOSE
    box.sock.shutdown(socket.SHUT_WR)
    assert box.process.wait(SOON) == 0


def test_answering_twice(box: WebBox) -> None:
    box.begin(app("await answer(send, b'first')\nawait answer(send, b'second')"))
    answer = box.request(path="/harm")
    assert (answer.error, answer.body) == (None, b"first")
    assert "the response is complete" in box.log()
    assert box.request().body == b"fine"


def test_closing_what_the_loop_lives_on_ends_the_instance(box: WebBox) -> None:
    """It cannot go on, and says so; the host starts another."""
    box.begin(app("os.closerange(3, 50)\nawait answer(send, b'done')"))
    box.ask(path="/harm")
    assert box.process.wait(SOON) == 1
    assert "runtime failed" in box.log()


def test_events_are_not_for_it(box: WebBox) -> None:
    box.begin(app())
    assert (box.call({}).error or {})["kind"] == "malformed"
    assert box.request().body == b"fine"


def test_a_broken_host_ends_it_with_a_word(box: WebBox) -> None:
    box.begin(app())
    box.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert box.process.wait(SOON) == 1
    assert "WireError" in box.log()


def test_the_host_may_go_while_it_works(box: WebBox) -> None:
    box.begin(app("await asyncio.sleep(600)"))
    box.ask(path="/harm")
    box.sock.close()
    assert box.process.wait(SOON) == 0


def test_a_request_may_come_before_ready(box: WebBox) -> None:
    box.code.mkdir(exist_ok=True)
    (box.code / "f.py").write_text(ECHO)
    config = json.dumps({"code": str(box.code), "handler": "f:f"}).encode()
    request = wire.message(wire.REQUEST, 1, b'{"web":true,"method":"POST","path":"/"}', b"early")
    box.sock.sendall(wire.message(wire.CONFIG, 0, config) + request)
    box.channel.wait_ready(SOON)
    box.sock.settimeout(SOON)
    box.number = 1
    # The library's channel may have read the answer together with READY.
    box.frames += box.channel._frames
    assert box.answer().body == b"early"


def test_a_child_that_comes_back_is_no_second_server(box: WebBox) -> None:
    box.begin(
        app(
            """
pid = os.fork()
if pid == 0:
    return
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
await answer(send, str(status).encode())
"""
        )
    )
    assert box.request(path="/harm").body == b"0"
    assert box.request().body == b"fine"


# -- WebSockets -------------------------------------------------------------------------------------------------------

TALK = """
assert scope["scheme"] == "ws" and scope["subprotocols"] == ["chat", "other"]
assert (await receive())["type"] == "websocket.connect"
await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"X-A", b"b")]})
while True:
    message = await receive()
    if message["type"] == "websocket.disconnect":
        print(message["code"], message["reason"])
        return
    elif message.get("text") == "close":
        await send({"type": "websocket.close", "code": 4000, "reason": "as asked"})
        return
    elif message.get("text") == "raise":
        raise ValueError("no")
    elif message.get("text") == "return":
        return
    elif message.get("text") is not None:
        await send({"type": "websocket.send", "text": message["text"] + "!"})
    else:
        await send({"type": "websocket.send", "bytes": message["bytes"]})
"""
HANDSHAKE = {"type": "websocket", "subprotocols": ["chat", "other"]}


def open_socket(box: WebBox) -> None:
    box.ask(**HANDSHAKE)
    assert box.hear() == (wire.WS_ACCEPT, {"subprotocol": "chat", "headers": [["x-a", "b"]]}, b"")


def test_websockets(python: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        box.begin(app(websocket=TALK))
        open_socket(box)
        box.send(wire.WS_MESSAGE, {"text": True}, "é".encode())
        assert box.hear() == (wire.WS_MESSAGE, {"text": True}, "é!".encode())
        for size in (0, 1, 3 * wire.MAX_PAYLOAD + 1):
            box.send(wire.WS_MESSAGE, {"text": False}, b"\xff" * size)
            assert box.hear() == (wire.WS_MESSAGE, {"text": False}, b"\xff" * size)
        box.send(wire.WS_CLOSE, {"code": 1001, "reason": "going"})
        assert box.hear() == (wire.WS_CLOSE, {"code": 1001, "reason": "going"}, b"")
        assert box.log() == "1001 going\n"
        assert box.request().body == b"fine"
    finally:
        box.close()


@pytest.mark.parametrize(
    ("said", "code", "reason"), [("close", 4000, "as asked"), ("return", 1000, "")], ids=["close", "return"]
)
def test_the_application_closes(box: WebBox, said: str, code: int, reason: str) -> None:
    box.begin(app(websocket=TALK))
    open_socket(box)
    box.send(wire.WS_MESSAGE, {"text": True}, said.encode())
    assert box.hear() == (wire.WS_CLOSE, {"code": code, "reason": reason}, b"")
    box.send(wire.WS_CLOSE, {"code": code, "reason": reason})  # the client's answer: the request has ended
    assert box.request().body == b"fine"


def test_an_application_that_raises_in_a_websocket(box: WebBox) -> None:
    box.begin(app(websocket=TALK))
    open_socket(box)
    box.send(wire.WS_MESSAGE, {"text": True}, b"raise")
    kind, meta, _ = box.hear()
    assert (kind, meta["kind"], meta["name"]) == (wire.ERROR, "handler", "ValueError")
    assert box.request().body == b"fine"


def test_a_client_that_has_gone(box: WebBox) -> None:
    box.begin(app(websocket=TALK))
    open_socket(box)
    box.send(wire.DISCONNECT)
    assert box.hear()[0] == wire.WS_CLOSE
    assert box.log() == "1006 \n"


@pytest.mark.parametrize("name", ["WebSocketDisconnect", "ValueError"])
def test_raising_because_the_client_has_gone_is_no_failure(box: WebBox, name: str) -> None:
    box.begin(
        app(
            websocket=f"""
class WebSocketDisconnect(Exception): pass
await send({{"type": "websocket.accept"}})
while (await receive())["type"] != "websocket.disconnect": pass
await send({{"type": "websocket.send", "text": "nobody hears it"}})
raise {name}("left")
"""
        )
    )
    box.ask(**HANDSHAKE)
    assert box.hear()[0] == wire.WS_ACCEPT
    box.send(wire.WS_CLOSE, {"code": 1000, "reason": ""})
    assert box.hear() == (wire.WS_CLOSE, {"code": 1000, "reason": ""}, b"")
    assert ("ValueError: left" in box.log()) == (name == "ValueError")


@pytest.mark.parametrize(
    ("websocket", "status", "body"),
    [
        ("await send({'type': 'websocket.close'})", 403, b""),
        ("await send({'type': 'websocket.close', 'code': 4001, 'reason': 'no'})\nraise ValueError", 403, b""),
        (
            """
await send({'type': 'websocket.http.response.start', 'status': 401, 'headers': [(b'x-a', b'b')]})
await send({'type': 'websocket.http.response.body', 'body': b'who are you', 'more_body': True})
await send({'type': 'websocket.http.response.body', 'body': b'?'})
""",
            401,
            b"who are you?",
        ),
    ],
)
def test_refusals(box: WebBox, websocket: str, status: int, body: bytes) -> None:
    box.begin(app(websocket=websocket))
    answer = box.request(**HANDSHAKE)
    assert (answer.error, answer.status, answer.body) == (None, status, body)
    assert box.request().body == b"fine"


ACCEPT = "await send({'type': 'websocket.accept'})\n"


@pytest.mark.parametrize(
    ("websocket", "accepted", "kind", "name"),
    [
        ("return", False, "serialize", "BadReply"),
        ("raise ValueError", False, "handler", "ValueError"),
        ("sys.exit(1)", False, "handler", "SystemExit"),
        ("await send({'type': 'websocket.send', 'text': 'x'})", False, "handler", "RuntimeError"),
        ("await send({'type': 'http.response.start'})", False, "handler", "RuntimeError"),
        ("await send({'type': 'websocket.accept', 'subprotocol': 'a b'})", False, "serialize", "BadReply"),
        ("await send({'type': 'websocket.accept', 'subprotocol': 7})", False, "serialize", "BadReply"),
        ("await send({'type': 'websocket.accept', 'subprotocol': 'third'})", False, "serialize", "BadReply"),
        ("await send({'type': 'websocket.accept', 'headers': [(b'a', b'b\\r\\nc')]})", False, "serialize", "BadReply"),
        (ACCEPT + ACCEPT, True, "handler", "RuntimeError"),
        (ACCEPT + "await send({'type': 'websocket.send'})", True, "handler", "TypeError"),
        (ACCEPT + "await send({'type': 'websocket.send', 'text': b'x'})", True, "handler", "TypeError"),
        (ACCEPT + "await send({'type': 'websocket.close', 'code': 1005})", True, "handler", "ValueError"),
        (ACCEPT + "await send({'type': 'websocket.close', 'code': 99})", True, "handler", "ValueError"),
        (ACCEPT + "await send({'type': 'websocket.close', 'code': '1000'})", True, "handler", "ValueError"),
        (ACCEPT + "sys.exit(1)", True, "handler", "SystemExit"),
    ],
)
def test_wrong_websockets_do_not_reach_the_next_request(
    box: WebBox, websocket: str, accepted: bool, kind: str, name: str
) -> None:
    box.begin(app(websocket=websocket))
    box.ask(**HANDSHAKE)
    if accepted:
        assert box.hear()[0] == wire.WS_ACCEPT
    got, meta, _ = box.hear()
    assert (got, meta["kind"], meta["name"]) == (wire.ERROR, kind, name)
    assert box.request().body == b"fine"


def test_speaking_after_the_end_is_refused(box: WebBox) -> None:
    box.begin(
        app(
            websocket=ACCEPT
            + """
await send({"type": "websocket.close", "reason": "é" * 100})
assert (await receive()) == {"type": "websocket.disconnect", "code": 1000, "reason": "é" * 61}
await send({"type": "websocket.send", "text": "more"})
"""
        )
    )
    box.ask(**HANDSHAKE)
    assert box.hear()[0] == wire.WS_ACCEPT
    assert box.hear() == (wire.WS_CLOSE, {"code": 1000, "reason": "é" * 61}, b"")
    assert "the WebSocket is closed" in box.log()
