"""WSGI applications in the runtime: PEP 3333 as its own validator checks it, and what applications do wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from olsock.runtime import wire
from support.boxes import WebBox

pytestmark = pytest.mark.unit


ENVIRON = """
import json
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    told = {name: value for name, value in environ.items() if isinstance(value, (str, int, bool))}
    data = json.dumps([told, body.decode()]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
    return [data]
"""


def test_the_validator_is_content(python: str, tmp_path: Path) -> None:
    """wsgiref's validator as a middleware asserts on both sides of it."""
    box = WebBox(tmp_path / "code", python)
    try:
        contract = box.begin(
            """
            from wsgiref.validate import validator
            def inner(environ, start_response):
                body = environ["wsgi.input"].read(3) + environ["wsgi.input"].readline()
                lines = environ["wsgi.input"].readlines(5) + [line for line in environ["wsgi.input"]]
                environ["wsgi.errors"].write("logged\\n")
                environ["wsgi.errors"].flush()
                start_response("200 OK", [("Content-Type", "text/plain")])
                return iter([body, b"", *lines])
            app = validator(inner)
            """,
            root_path="/run/hello",
        )
        assert contract == "wsgi"
        answer = box.request("POST", "/a/b", b"abcdef\nsecond\nthird\n", query="q=1")
        assert answer.error is None
        assert (answer.status, answer.stream, answer.body) == (200, True, b"abcdef\nsecond\nthird\n")
        assert box.request("GET", "").body == b""
        assert box.log() == "logged\n" * 2
    finally:
        box.close()


def test_the_environment(python: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        box.begin(ENVIRON, root_path="/run/hello")
        headers = [
            *(["host", "example.org:8080"], ["x-a", "1"], ["x-a", "2"], ["cookie", "a=1"], ["cookie", "b=2"]),
            *(["content-type", "text/plain"], ["transfer-encoding", "chunked"], ["x_a", "forged"], ["proxy", "evil"]),
        ]
        told, body = json.loads(
            box.request("PUT", "/caf%C3%A9/a%2Fb%20c", b"body", query="q=%20&r", headers=headers, scheme="https").body
        )
        assert body == "body"
        assert told == {
            "REQUEST_METHOD": "PUT",
            "SCRIPT_NAME": "/run/hello",
            "PATH_INFO": "/café/a/b c".encode().decode("latin-1"),
            "QUERY_STRING": "q=%20&r",
            "REQUEST_URI": "/run/hello/caf%C3%A9/a%2Fb%20c?q=%20&r",
            "SERVER_NAME": "example.org",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.1",
            "REMOTE_PORT": "40000",
            "CONTENT_TYPE": "text/plain",
            "CONTENT_LENGTH": "4",
            "HTTP_HOST": "example.org:8080",
            "HTTP_X_A": "1,2",
            "HTTP_COOKIE": "a=1; b=2",
            "wsgi.url_scheme": "https",
            "wsgi.input_terminated": True,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        assert "CONTENT_LENGTH" not in json.loads(box.request(path="").body)[0]
    finally:
        box.close()


def test_bodies_both_ways(box: WebBox) -> None:
    box.begin(
        """
        def app(environ, start_response):
            start_response("201 Made", [("X-Name", "\\xe9 value ")])
            return [environ["wsgi.input"].read()]
        """
    )
    for size in (0, 1, wire.MAX_PAYLOAD - 400, wire.MAX_PAYLOAD, 3 * wire.MAX_PAYLOAD + 1):
        answer = box.request("POST", "/", b"x" * size)
        assert (answer.status, answer.stream, answer.body) == (201, False, b"x" * size)
        assert answer.header("x-name") == "é value"


REPLIES = {
    "a list": ("return [b'one', b'', b'two']", False),
    "a tuple": ("return (b'one', b'two')", False),
    "a generator": ("return iter([b'', b'one', b'two'])", True),
    "one part that is all of it": (
        "start_response('200 OK', [('Content-Length', '6')]); return iter([b'onetwo'])",
        False,
    ),
    "written": ("write(b'one'); write(b'two'); return []", True),
    "written before": ("write(b'one'); return [b'two']", True),
    "a file": ("return environ['wsgi.file_wrapper'](io.BytesIO(b'onetwo'), 4)", True),
    "one that is closed": ("return Closing([b'one', b'two'])", True),
    "started late": ("return late(environ, start_response)", True),
}


@pytest.mark.parametrize(("body", "stream"), REPLIES.values(), ids=REPLIES)
def test_replies(box: WebBox, body: str, stream: bool) -> None:
    started = "" if "start_response" in body else "write = start_response('200 OK', [])"
    box.begin(
        f"""
        import io
        closed = 0
        class Closing:
            def __init__(self, parts): self.parts = iter(parts)
            def __iter__(self): return self.parts
            def close(self):
                global closed
                closed += 1
        def late(environ, start_response):
            start_response('200 OK', [])
            yield b'one'
            yield b'two'
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/closed":
                start_response('200 OK', [])
                return [str(closed).encode()]
            {started}
            {body}
        """
    )
    answer = box.request()
    assert answer.error is None
    assert (answer.status, answer.body, answer.stream) == (200, b"onetwo", stream)
    assert box.request(path="/closed").body == (b"1" if "Closing(" in body else b"0")


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified"), ("GET", "204 No Content")]
)
def test_replies_without_a_body(box: WebBox, method: str, status: str) -> None:
    box.begin(
        f"""
        def app(environ, start_response):
            start_response({status!r}, [("Content-Length", "5")])
            if environ["PATH_INFO"] == "/list": return [b"hello"]
            if environ["PATH_INFO"] == "/none": return []
            return forever()
        def forever():
            while True: yield b"x"
        """
    )
    for path in ("/list", "/none", "/generator"):
        answer = box.request(method, path)
        assert (answer.error, answer.body, answer.stream) == (None, b"", False)
        assert answer.header("content-length") == "5"


def test_parts_are_sent_as_they_are_made(box: WebBox, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    __import__("os").mkfifo(gate)
    box.begin(
        f"""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            yield b"first"
            open({str(gate)!r}).read()
            yield b"second"
        """
    )
    box.ask()
    _, flags, payload = box.frame()
    assert flags == wire.MORE and wire.split(payload)[1] == b"first"
    gate.write_text("open")
    assert box.frame() == (wire.BODY, wire.MORE, b"second")
    assert box.frame() == (wire.BODY, 0, b"")


def test_an_endless_body_ends_when_nobody_reads(box: WebBox) -> None:
    box.begin(
        """
        closed = 0
        def app(environ, start_response):
            global closed
            start_response("200 OK", [])
            if environ["PATH_INFO"] == "/closed":
                yield str(closed).encode()
                return
            try:
                while True: yield b"x"
            finally:
                closed += 1
        """
    )
    box.ask()
    box.frame()
    box.send(wire.DISCONNECT)
    while box.frame()[1]:
        pass
    assert box.request(path="/closed").body == b"1"


def test_exc_info(box: WebBox) -> None:
    box.begin(
        """
        import sys
        def app(environ, start_response):
            write = start_response("200 OK", [("X-First", "1")])
            if environ["PATH_INFO"] == "/sent": write(b"sent")
            try:
                raise KeyError("inside")
            except KeyError:
                start_response("500 Sorry", [], sys.exc_info())
            return [b"sorry"]
        """
    )
    replaced = box.request(path="/")
    assert (replaced.status, replaced.body, replaced.headers) == (500, b"sorry", [])
    late = box.request(path="/sent")
    assert (late.status, late.body) == (200, b"sent")
    assert late.error is not None and late.error["name"] == "KeyError"


# kind of the error, its name, and whether something was sent before.
WRONG = {
    "raises": ("raise ValueError('no')", "handler", "ValueError"),
    "exits": ("sys.exit(3)", "handler", "SystemExit"),
    "is interrupted": ("raise KeyboardInterrupt", "handler", "KeyboardInterrupt"),
    "raises as it is iterated": ("return broken(start_response)", "handler", "ValueError"),
    "raises in the midst": ("start_response('200 OK', []); return broken_late()", "handler", "ValueError"),
    "exits in the midst": ("start_response('200 OK', []); return exits_late()", "handler", "SystemExit"),
    "raises after write": ("start_response('200 OK', [])(b'x'); raise ValueError('no')", "handler", "ValueError"),
    "never starts": ("return [b'x']", "serialize", "BadReply"),
    "never starts a stream": ("return iter([b'x'])", "serialize", "BadReply"),
    "never starts and says nothing": ("return []", "serialize", "BadReply"),
    "starts twice": ("start_response('200 OK', []); start_response('200 OK', [])", "handler", "AssertionError"),
    "returns nothing": ("start_response('200 OK', [])", "serialize", "BadReply"),
    "returns text": ("start_response('200 OK', []); return 'text'", "serialize", "BadReply"),
    "returns bytes": ("start_response('200 OK', []); return b'bytes'", "serialize", "BadReply"),
    "returns a list of text": ("start_response('200 OK', []); return ['text']", "serialize", "BadReply"),
    "yields text": ("start_response('200 OK', []); return iter([b'x', 'text'])", "serialize", "BadReply"),
    "writes text": ("start_response('200 OK', [])('text')", "serialize", "BadReply"),
    "a number for a status": ("start_response(200, [])", "serialize", "BadReply"),
    "a status of letters": ("start_response('OK', [])", "serialize", "BadReply"),
    "a status that is none": ("start_response('999 Odd', [])", "serialize", "BadReply"),
    "an interim status": ("start_response('100 Continue', [])", "serialize", "BadReply"),
    "a status that splits": ("start_response('200 OK\\r\\nX: y', [])", "serialize", "BadReply"),
    "a header that splits": ("start_response('200 OK', [('X', 'a\\r\\nSet-Cookie: b')])", "serialize", "BadReply"),
    "a header with a line feed": ("start_response('200 OK', [('X', 'a\\nb')])", "serialize", "BadReply"),
    "a header with NUL": ("start_response('200 OK', [('X', 'a\\0b')])", "serialize", "BadReply"),
    "a header with a bell": ("start_response('200 OK', [('X', 'a\\7b')])", "serialize", "BadReply"),
    "a header with DEL": ("start_response('200 OK', [('X', 'a\\x7fb')])", "serialize", "BadReply"),
    "a header with a long name": ("start_response('200 OK', [('X' * 257, 'a')])", "serialize", "BadReply"),
    "a name with a colon": ("start_response('200 OK', [('X:', 'a')])", "serialize", "BadReply"),
    "a name with a blank": ("start_response('200 OK', [('X Y', 'a')])", "serialize", "BadReply"),
    "no name": ("start_response('200 OK', [('', 'a')])", "serialize", "BadReply"),
    "a name of bytes": ("start_response('200 OK', [(b'X', 'a')])", "serialize", "BadReply"),
    "a value of bytes": ("start_response('200 OK', [('X', b'a')])", "serialize", "BadReply"),
    "a value beyond latin-1": ("start_response('200 OK', [('X', '\\u20ac')])", "serialize", "BadReply"),
    "headers that are none": ("start_response('200 OK', 'text')", "handler", "ValueError"),
    "headers without end": ("start_response('200 OK', [('X', 'a' * 999)] * 99); return []", "serialize", "BadReply"),
    "a length of letters": ("start_response('200 OK', [('Content-Length', 'x')])", "serialize", "BadReply"),
    "two lengths": (
        "start_response('200 OK', [('Content-Length', '1'), ('content-length', '2')])",
        "serialize",
        "BadReply",
    ),
    "a body too short": (
        "start_response('200 OK', [('Content-Length', '9')]); return [b'short']",
        "serialize",
        "BadReply",
    ),
    "a body too long": (
        "start_response('200 OK', [('Content-Length', '1')]); return [b'long']",
        "serialize",
        "BadReply",
    ),
    "a stream too short": (
        "start_response('200 OK', [('Content-Length', '9')]); return iter([b'a', b'b'])",
        "serialize",
        "BadReply",
    ),
    "a stream too long": (
        "start_response('200 OK', [('Content-Length', '2')]); return iter([b'a', b'bc'])",
        "serialize",
        "BadReply",
    ),
    "more than all": (
        "start_response('200 OK', [('Content-Length', '1')]); return iter([b'a', b'b'])",
        "serialize",
        "BadReply",
    ),
}


@pytest.mark.parametrize(("body", "kind", "name"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_does_not_reach_the_next_request(box: WebBox, body: str, kind: str, name: str) -> None:
    box.begin(
        f"""
        import sys
        def broken(start_response):
            raise ValueError("no")
            yield
        def broken_late():
            yield b"x"
            raise ValueError("no")
        def exits_late():
            yield b"x"
            sys.exit(3)
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/harm":
                {body}
            else:
                start_response("200 OK", [])
                return [b"fine"]
        """
    )
    failed = box.request(path="/harm")
    assert failed.error is not None
    assert (failed.error["kind"], failed.error["name"]) == (kind, name)
    assert "olsock/runtime" not in failed.error["traceback"].partition("File")[2].partition("\n")[0]
    assert box.request().body == b"fine"
    assert box.process.poll() is None


@pytest.mark.parametrize(
    "harm",
    [
        "environ['wsgi.errors'].close()",
        "environ['wsgi.input'].close()",
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
        "os.closerange(3, 50)",
        "environ.clear()",
        "sys.modules.pop('_olsock_reply'); sys.path.clear()",
        "threading.Thread(target=start_response, args=('500 Late', []), daemon=True).start()",
    ],
)
def test_harm_does_not_reach_the_next_request(box: WebBox, harm: str) -> None:
    box.begin(
        f"""
        import os, sys, threading
        def app(environ, start_response):
            harmful = environ["PATH_INFO"] == "/harm"
            start_response("200 OK", [])
            if harmful:
                {harm}
                return [b"done"]
            print("printed", file=environ["wsgi.errors"])
            return [environ["wsgi.input"].read() or b"fine"]
        """
    )
    assert box.request(path="/harm").body == b"done"
    box.log()
    assert box.request().body == b"fine"
    assert box.request("POST", "/", b"said").body == b"said"
    assert box.log().count("printed") == 2


def test_an_old_start_response_speaks_for_no_later_request(box: WebBox) -> None:
    """Nor does an old write: what it says belongs to a request that has ended, and the host would condemn it."""
    box.begin(
        """
        old = []
        def app(environ, start_response):
            for write in old:
                try:
                    write(b"again")
                except Exception as error:
                    start_response("200 OK", [])
                    return [type(error).__name__.encode()]
            old.append(start_response("200 OK", []))
            return [b"first"]
        """
    )
    assert box.request().body == b"first"
    assert box.request().body == b"BadReply"


def test_close_is_called_and_what_it_raises_is_logged(box: WebBox) -> None:
    box.begin(
        """
        class Parts:
            def __init__(self, path): self.path = path
            def __iter__(self):
                yield b"one"
                if self.path == "/raise": raise ValueError("in the midst")
            def close(self):
                print("closed", self.path)
                if self.path == "/close": raise KeyError("as it was closed")
        def app(environ, start_response):
            start_response("200 OK", [])
            return Parts(environ["PATH_INFO"])
        """
    )
    assert box.request(path="/").body == b"one"
    assert box.request(path="/close").body == b"one"
    failed = box.request(path="/raise")
    assert failed.error is not None and failed.error["name"] == "ValueError"
    log = box.log()
    assert [line for line in log.splitlines() if line.startswith("closed")] == [
        "closed /",
        "closed /close",
        "closed /raise",
    ]
    assert "KeyError: 'as it was closed'" in log


def test_events_and_websockets_are_not_for_it(box: WebBox) -> None:
    box.begin("def app(environ, start_response): raise AssertionError")
    assert (box.call({}).error or {})["kind"] == "malformed"
    assert (box.request(type="websocket", subprotocols=[]).error or {})["kind"] == "malformed"


def test_a_child_that_comes_back_is_no_second_server(box: WebBox) -> None:
    box.begin(
        """
        import os
        def app(environ, start_response):
            write = start_response("200 OK", [])
            pid = os.fork()
            if pid == 0:
                if environ["PATH_INFO"] == "/write": write(b"from the child")
                return [b"child"]
            return [str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()]
        """
    )
    assert box.request().body == b"0"
    assert box.request(path="/write").body == b"1"
    assert box.request().body == b"0"
