"""What OpenLambda's Python server gets wrong, as cases that have to go right here: each was a failure of a web app there."""

from __future__ import annotations

import pytest

from support.boxes import SOON, WebBox

pytestmark = pytest.mark.unit


def test_a_reply_without_content_length_ends(box: WebBox) -> None:
    """Not only when the next request comes."""
    box.begin("def app(environ, start_response):\n    start_response('200 OK', [])\n    yield b'body'")
    assert box.request().body == b"body"


@pytest.mark.parametrize(
    ("source", "path", "headers"),
    [
        ("def app(environ, start_response): raise ValueError", "/", None),
        ("import sys\ndef app(environ, start_response): sys.exit()", "/", None),
        ("def app(environ, start_response): start_response('200 OK', [])(b'written'); return []", "/", None),
        ("def app(environ, start_response): start_response('200 OK', []); return []", "/", []),
        ("def app(environ, start_response): start_response('200 OK', []); return []", "//login", None),
        ("def app(environ, start_response): start_response('200 OK', []); return []", "*", None),
        ("def app(environ, start_response): start_response('200 OK', []); return []", "/%zz%", None),
        ("async def app(scope, receive, send): raise ValueError", "/%zz%", []),
    ],
)
def test_nothing_of_a_request_ends_the_process(
    box: WebBox, source: str, path: str, headers: list[list[str]] | None
) -> None:
    box.begin(source)
    for _ in range(2):
        answer = box.request(path=path, **({} if headers is None else {"headers": headers}))
        assert (answer.error is None) == ("raise" not in source and "exit" not in source)
    assert box.process.poll() is None


def test_sys_exit_in_f_does_not_end_the_process(box: WebBox) -> None:
    box.start("import sys\ndef f(event): sys.exit() if event else None")
    assert box.fails(1).name == "SystemExit"
    assert box.invoke(0) is None


def test_functions_that_are_asgi_applications_are_taken_for_such(box: WebBox) -> None:
    source = """
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"asgi"})
    """
    assert box.begin(source) == "asgi"
    assert box.request().body == b"asgi"


def test_f_may_be_a_coroutine(box: WebBox) -> None:
    box.start("async def f(event): return event")
    assert box.invoke([1]) == [1]


def test_paths_are_decoded_and_input_has_lines(box: WebBox) -> None:
    box.begin(
        """
        def app(environ, start_response):
            start_response("200 OK", [])
            stream = environ["wsgi.input"]
            return [environ["PATH_INFO"].encode("latin-1"), b"|", stream.readline(), b"|", b"".join(stream)]
        """
    )
    headers = [["transfer-encoding", "chunked"]]  # of which the host made a body
    assert box.request("POST", "/a%20%C3%A9", b"one\ntwo", headers=headers).body == "/a é|one\n|two".encode()


def test_malformed_events_are_the_callers_fault(box: WebBox) -> None:
    box.start("def f(event): return event")
    assert box.fails(b"{").kind == "malformed"


def test_one_loop_and_a_lifespan_for_all_requests(box: WebBox) -> None:
    box.begin(
        """
        import asyncio
        loops = set()
        async def app(scope, receive, send):
            loops.add(id(asyncio.get_running_loop()))
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": str(len(loops)).encode()})
        """
    )
    for _ in range(2):
        answer = box.request()
        assert (answer.status, answer.body) == (404, b"1")


def test_redirects_are_passed_on(box: WebBox) -> None:
    box.begin(
        """
        def app(environ, start_response):
            start_response("302 Found", [("Location", "/login"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
            return [environ["HTTP_HOST"].encode()]
        """
    )
    answer = box.request()
    assert (answer.status, answer.header("location"), answer.body) == (302, "/login", b"example.org")
    assert [value for name, value in answer.headers if name == "Set-Cookie"] == ["a=1", "b=2"]


def test_f_is_told_of_its_request(box: WebBox) -> None:
    box.start("def f(event, context): return [context.method, context.path, context.query, context.headers]")
    meta = {"method": "PUT", "path": "/a", "query": "b=1", "headers": {"x": "y"}}
    assert box.invoke({}, **meta) == ["PUT", "/a", "b=1", {"x": "y"}]


def test_environment_variables_are_what_they_are(box: WebBox) -> None:
    value = "${HOME} \"quoted\" 'too' \\n $X #no comment\nsecond line"
    box.start("import os\ndef f(event): return os.environ['A']", env={"A": value})
    assert box.invoke() == value


def test_broken_imports_are_told(box: WebBox) -> None:
    from olsock.errors import InvocationError

    box.start("import nosuch")
    with pytest.raises(InvocationError, match="nosuch") as caught:
        box.channel.wait_ready(SOON)
    assert "import nosuch" in caught.value.traceback
