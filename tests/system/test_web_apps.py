"""Flask, Django, Starlette and FastAPI applications, unchanged, in sandboxes; and streams, through the library."""

from __future__ import annotations

import asyncio
import json
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent

import pytest

import olsock
from olsock import aio
from olsock.errors import InvocationError, SpecError
from support.eventually import eventually
from support.web_apps import DJANGO, FASTAPI, FLASK

pytestmark = pytest.mark.system

PACKAGES = [sysconfig.get_path("purelib")]
Start = Callable[..., olsock.Function]


@pytest.fixture(params=["cold", "forked"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Return what starts a function from its source: in a fresh interpreter, or forked from one that has the framework."""
    with ExitStack() as stack:

        def begin(source: str, framework: str = "json", handler: str = "f:f", **options: object) -> olsock.Function:
            directory = tmp_path / "code"
            directory.mkdir(exist_ok=True)
            (directory / "f.py").write_text(dedent(source))
            if request.param == "cold":
                return stack.enter_context(olsock.Function(directory, handler, packages=PACKAGES, **options))
            zygote = stack.enter_context(olsock.Zygote([framework], packages=PACKAGES, spare=0))
            return stack.enter_context(zygote.fork(directory, handler, **options))

        yield begin


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A directory that sandboxes may read."""
    found = tmp_path / "code"
    found.mkdir()
    return found


def test_flask(start: Start) -> None:
    fn = start(FLASK, "flask", root_path="/run/shop")
    assert fn.ready.contract == "wsgi"
    answer = fn.request("GET", "/items/caf%C3%A9?q=1 2", headers={"Host": "shop.example"})
    assert answer.status == 200 and answer.header("content-type") == "application/json"
    told = json.loads(answer.body)
    assert (told["name"], told["q"], told["host"]) == ("café", "1 2", "shop.example")
    assert told["url"] == "http://shop.example/run/shop/items/café"
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert json.loads(fn.request("POST", "/items/x", headers=form, body=b"a=1&b=2").body)["form"] == {
        "a": "1",
        "b": "2",
    }
    first = fn.request()
    assert first.body == b"seen 1"
    cookie = (first.header("set-cookie") or "").partition(";")[0]
    assert fn.request(headers={"cookie": cookie}).body == b"seen 2"
    moved = fn.request("GET", "/go")
    assert (moved.status, moved.header("location")) == (302, "/run/shop/items/there")
    upload = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        + bytes(2_000_000)
        + b"\r\n--x--\r\n"
    )
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    assert json.loads(fn.request("POST", "/upload", headers=multipart, body=upload).body)["size"] == 2_000_000
    assert fn.request("POST", "/json", headers={"content-type": "application/json"}, body=b"{").status == 400
    assert fn.request("GET", "/stream").body == b"0\n1\n2\n"
    assert fn.request("GET", "/file").body == b"contents"
    head = fn.request("HEAD", "/file")
    assert (head.status, head.body, head.header("content-length")) == (200, b"", "8")
    assert [fn.request("GET", path).status for path in ("/broken", "/teapot", "/nosuch")] == [500, 418, 404]
    assert fn.request("DELETE", "/").status == 405
    assert "ValueError: in the view" in fn.output
    with pytest.raises(InvocationError) as caught:
        fn.request("GET", "/late")
    assert (caught.value.kind, str(caught.value)) == ("handler", "in the stream")
    assert fn.request("GET", "/file").body == b"contents"


@pytest.mark.parametrize("contract", ["wsgi", "asgi"])
def test_django(start: Start, contract: str) -> None:
    source = DJANGO + f"from django.core.{contract} import get_{contract}_application as get\napplication = get()\n"
    fn = start(source, "django", root_path="/run/shop")
    assert fn.ready.contract == contract
    host = {"host": "shop.example"}
    told = json.loads(fn.request("GET", "/items/caf%C3%A9?q=1%202", headers=host).body)
    assert told == {"name": "café", "q": "1 2", "path": "/run/shop/items/café", "body": ""}
    assert fn.request("GET", "/later", headers=host).body == b"later"
    assert fn.request("GET", "/stream", headers=host).body == b"0,1,2,"
    moved = fn.request("GET", "/go", headers=host)
    assert (moved.status, moved.header("location")) == (302, "/run/shop/items/there")
    assert [fn.request("GET", path, headers=host).status for path in ("/broken", "/nosuch", "/")] == [500, 404, 200]
    assert fn.request("GET", "/later").status == 400, "a host that is not allowed"
    assert fn.request("POST", "/items/x", headers=host, body=b"a=1").status == 403, "no CSRF token"


def test_fastapi(start: Start) -> None:
    fn = start(FASTAPI, "fastapi", root_path="/run/shop")
    assert fn.ready.contract == "asgi"
    assert "started up" in fn.output
    body = {"name": "é", "price": 1.5}
    made = fn.request(
        "POST", "/items/7?q=x", body=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert (made.status, json.loads(made.body)) == (201, {"number": 7, "item": body, "q": "x"})
    refused = fn.request("POST", "/items/seven", body=b"{}", headers={"content-type": "application/json"})
    assert refused.status == 422
    told = json.loads(fn.request("GET", "/sync", headers={"host": "shop.example"}).body)
    assert told == {"state": "at startup", "url": "http://shop.example/run/shop/sync", "root": "/run/shop"}
    assert fn.request("GET", "/").body == b'"index"'
    assert fn.request("GET", "/stream").body == b"0,1,2,"
    assert fn.request("GET", "/go", headers={"host": "shop.example"}).header("location") == told["url"]
    assert [fn.request("GET", path).status for path in ("/gone", "/nosuch", "/docs", "/openapi.json")] == [
        410,
        404,
        200,
        200,
    ]
    failed = fn.request("GET", "/broken")
    assert (failed.status, failed.body) == (500, b"Internal Server Error")
    assert "ValueError: in the endpoint" in fn.output
    with fn.request_stream("GET", "/later") as answer:
        assert next(answer) == b'"at once"'
    assert json.loads(fn.request("GET", "/worked").body) == ["in the background"]
    with fn.request_stream("GET", "/endless") as endless:
        assert len(next(endless)) >= 1000
    assert json.loads(fn.request("GET", "/worked").body)[-1] == "closed"


def test_a_fastapi_application_whose_startup_fails(start: Start) -> None:
    source = FASTAPI.replace('print("started up")', 'raise RuntimeError("no database")')
    fn = start(source, "fastapi")
    with pytest.raises(InvocationError, match="no database") as caught:
        fn.wait_ready()
    assert caught.value.kind == "init"


def test_a_snapshot_of_an_application(code: Path) -> None:
    """Its module is imported once; the loop and the lifespan are each fork's own."""
    (code / "f.py").write_text(FASTAPI)
    with olsock.Zygote(packages=PACKAGES, code=code, handler="f:f", spare=0) as zygote:
        with zygote.fork() as one, zygote.fork() as two:
            for fn in (one, two):
                assert fn.ready.contract == "asgi"
                assert json.loads(fn.request("GET", "/sync").body)["state"] == "at startup"
                assert fn.ready.init_ms < 500


# -- streams ----------------------------------------------------------------------------------------------------------

GENERATORS = """
import time
closed = 0
def f(event):
    global closed
    if event == "count":
        yield closed
    elif event == "raise":
        yield "first"
        raise ValueError("late")
    elif event == "stubborn":
        while True:
            try:
                while True: yield "x"
            except GeneratorExit:
                pass
    elif event == "endless":
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed += 1
    else:
        yield from event
"""


def test_streams(start: Start) -> None:
    fn = start(GENERATORS)
    with fn.stream([1, {"a": None}]) as stream:
        assert (stream.status, stream.headers) == (200, (("content-type", "application/x-ndjson"),))
        assert list(stream) == [b"1\n", b'{"a": null}\n']
    assert fn.invoke([1, 2]) == [1, 2]
    assert fn.invoke(["a", "ü"]) == "aü"
    assert fn.invoke([]) == b""
    stream = fn.stream("raise")
    assert next(stream) == b"first"
    with pytest.raises(InvocationError, match="late"):
        next(stream)
    with fn.stream("endless") as stream:
        for _ in range(300):  # more than a reply may have, and than is kept anywhere
            assert set(next(stream)) == {ord("x")}
    assert fn.invoke("count") == [1]
    assert fn.alive


def test_a_stream_that_would_not_end_ends_the_function(start: Start) -> None:
    fn = start(GENERATORS)
    with fn.stream("stubborn") as stream:
        next(stream)
    assert not fn.alive or fn.invoke("count") == [0]


def test_a_stream_is_under_its_deadline(start: Start) -> None:
    fn = start(GENERATORS)
    began = time.monotonic()
    with pytest.raises(InvocationError) as caught:
        for _ in fn.stream("endless", timeout=0.5):
            pass
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 20
    assert not fn.alive


def test_a_stream_that_nobody_keeps_is_closed(start: Start) -> None:
    fn = start(GENERATORS)
    next(fn.stream("endless"))
    assert eventually(lambda: fn.invoke("count") == [1])


def test_each_contract_has_its_own_call(start: Start) -> None:
    fn = start("def f(event): return event")
    for call in (fn.request, fn.request_stream, fn.stream):
        with pytest.raises(InvocationError, match="contract 'event'") as caught:
            call()
        assert caught.value.kind == "malformed"
    assert fn.invoke(1) == 1
    with pytest.raises(SpecError, match="path"):
        fn.request("GET", "no path")


def test_applications_take_no_events(start: Start) -> None:
    fn = start("def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'fine']")
    with pytest.raises(InvocationError) as caught:
        fn.invoke({})
    assert caught.value.kind == "malformed"
    assert fn.request().body == b"fine"


def test_what_is_said_wins(start: Start) -> None:
    fn = start("def f(*args):\n    args[1]('200 OK', [])\n    return [b'fine']", contract="wsgi")
    assert fn.request().body == b"fine"


def test_openlambdas_variables(start: Start) -> None:
    env = {"OL_WSGI_ENTRY": "hidden"}
    fn = start("def hidden(*args):\n    args[1]('200 OK', [])\n    return [b'fine']", env=env)
    assert fn.request().body == b"fine"


def test_with_asyncio(code: Path) -> None:
    (code / "f.py").write_text(GENERATORS)
    source = "def app(environ, sr):\n    sr('200 OK', [('X-A', 'b')])\n    yield b'one'\n    yield b'two'"
    (code / "web.py").write_text(source)

    async def main() -> None:
        async with aio.Function(code) as fn, await fn.stream([1, 2]) as stream:
            assert [part async for part in stream] == [b"1\n", b"2\n"]
            async with await fn.stream("endless") as endless:
                assert await anext(endless)
            assert await fn.invoke("count") == [1]
        async with aio.Function(code, "web:app") as web:
            answer = await web.request("GET", "/")
            assert (answer.status, answer.header("x-a"), answer.body) == (200, "b", b"onetwo")
            async with await web.request_stream("GET", "/") as stream:
                assert (stream.status, stream.headers) == (200, (("x-a", "b"),))
                assert b"".join([part async for part in stream]) == b"onetwo"

    asyncio.run(main())
