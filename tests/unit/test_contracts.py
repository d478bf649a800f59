"""How functions are to be called: found out by the runtime, in every interpreter; events, coroutines and generators."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from olsock.errors import InvocationError
from olsock.runtime import wire
from support.boxes import SOON, WebBox

pytestmark = pytest.mark.unit


# -- detection --------------------------------------------------------------------------------------------------------

WRAPPED = """
import functools
def plain(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs): return function(*args, **kwargs)
    return wrapper
"""
CONTRACTS = [
    ("def f(event): pass", "event"),
    ("def f(event, context): pass", "event"),
    ("def f(*args): pass", "event"),
    ("def f(event, context, more=None): pass", "event"),
    ("async def f(event): pass", "event"),
    ("async def f(event, context): pass", "event"),
    ("class C:\n  def __call__(self, event): pass\nf = C()", "event"),
    ("class C:\n  def __init__(self, event): pass\nf = C", "event"),
    ("def app(event, context): pass\nf = app", "event"),
    ("f = len", "event"),
    ("def f(event): yield 1", "stream"),
    ("def f(event, context): yield 1", "stream"),
    ("async def f(event): yield 1", "stream"),
    ("class C:\n  def __call__(self, event): yield 1\nf = C()", "stream"),
    ("class C:\n  def m(self, event): yield 1\nf = C().m", "stream"),
    (WRAPPED + "@plain\ndef f(event): yield 1", "stream"),
    ("def f(environ, start_response): pass", "wsgi"),
    ("def f(environ, sr): pass", "wsgi"),
    ("def f(env, start_resp): yield b''", "wsgi"),
    ("class C:\n  def __call__(self, environ, start_response): pass\nf = C()", "wsgi"),
    ("class C:\n  def __init__(self, environ, start_response): pass\nf = C", "wsgi"),
    ("import functools\ndef g(x, environ, start_response): pass\nf = functools.partial(g, 1)", "wsgi"),
    (WRAPPED + "@plain\ndef f(environ, start_response): pass", "wsgi"),
    ("from wsgiref.simple_server import demo_app as f", "wsgi"),
    (
        "from wsgiref.validate import validator\nfrom wsgiref.simple_server import demo_app\napp = validator(demo_app)",
        "wsgi",
    ),
    ("async def f(scope, receive, send): pass", "asgi"),
    ("async def f(s, r, w): pass", "asgi"),
    ("def f(scope, receive, send): return g(scope, receive, send)", "asgi"),
    ("class C:\n  async def __call__(self, scope, receive, send): pass\nf = C()", "asgi"),
    ("class C:\n  async def m(self, scope, receive, send): pass\nf = C().m", "asgi"),
    ("class C:\n  def __init__(self, scope, receive, send): pass\n  def __await__(self): yield\nf = C", "asgi"),
    (WRAPPED + "@plain\nasync def f(scope, receive, send): pass", "asgi"),
    # Without the default attribute, what frameworks' documentation calls theirs will do.
    ("def app(environ, start_response): pass", "wsgi"),
    ("async def application(scope, receive, send): pass", "asgi"),
    ("def app(*args): pass", "wsgi"),
    ("async def app(*args): pass", "asgi"),
    ("def app(event): pass", "event"),
    ("def f(event): pass\nasync def app(scope, receive, send): pass", "event"),
]


@pytest.mark.parametrize(("source", "contract"), CONTRACTS)
def test_what_is_found(source: str, contract: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from olsock.runtime import handler

    (tmp_path / "found_out.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "found_out", raising=False)
    found, how = handler.load({"handler": "found_out:f", "code": str(tmp_path)})
    assert how == contract
    assert callable(found)


def test_every_interpreter_tells(python: str, tmp_path: Path) -> None:
    for number, (source, contract) in enumerate(
        [
            ("def f(event): return 1", "event"),
            ("def f(event): yield 1", "stream"),
            ("def f(environ, start_response): pass", "wsgi"),
            ("async def f(scope, receive, send): raise RuntimeError", "asgi"),
        ]
    ):
        made = WebBox(tmp_path / str(number), python)
        try:
            assert made.begin(source) == contract
        finally:
            made.close()


@pytest.mark.parametrize("contract", ["event", "wsgi", "asgi"])
def test_a_contract_that_is_named_wins(box: WebBox, contract: str) -> None:
    assert box.begin("async def f(scope, receive, send): raise RuntimeError", contract=contract) == contract


@pytest.mark.parametrize(
    ("env", "handler", "contract"),
    [
        ({"OL_ENTRY_FILE": "web.py"}, "f:f", "wsgi"),
        ({"OL_ENTRY_FILE": "web.py", "OL_WSGI_ENTRY": "other"}, "f:f", "wsgi"),
        ({"OL_ENTRY_FILE": "sub/deep.py", "OL_ASGI_ENTRY": "hidden"}, "f:f", "asgi"),
        ({"OL_ASGI_ENTRY": "hidden"}, "sub.deep:f", "asgi"),
    ],
)
def test_openlambdas_variables(box: WebBox, env: dict[str, str], handler: str, contract: str) -> None:
    (box.code / "sub").mkdir(parents=True)
    (box.code / "web.py").write_text("def app(environ, start_response): pass\nother = app")
    (box.code / "sub" / "deep.py").write_text("def hidden(*args): pass")
    assert box.begin("", handler, env=env) == contract


@pytest.mark.parametrize(
    "spec", ["folder/inner/module.handler", "folder.inner.module:handler", "my-app/in-dex.handler"]
)
def test_handlers_in_folders(box: WebBox, spec: str) -> None:
    folder = box.code / spec.rpartition(".")[0].replace(".", "/").partition(":")[0]
    if ":" in spec:
        folder = box.code / "folder" / "inner" / "module"
    folder.parent.mkdir(parents=True)
    folder.with_name(folder.name + ".py").write_text("def handler(event, context): return 'found'")
    box.start("", spec)
    assert box.invoke() == "found"


@pytest.mark.parametrize(
    ("source", "config", "name"),
    [
        ("", {}, "AttributeError"),
        ("app = 1", {}, "TypeError"),
        ("def f(event): pass", {"contract": "http"}, "ValueError"),
        ("def f(event): pass", {"env": {"OL_ENTRY_FILE": "../f.py"}}, "ValueError"),
        ("def f(event): pass", {"env": {"OL_ENTRY_FILE": "f.bin"}}, "ValueError"),
        ("def f(event): pass", {"env": {"OL_WSGI_ENTRY": "nosuch"}}, "AttributeError"),
        ("f = 3", {"contract": "asgi"}, "TypeError"),
    ],
)
def test_what_cannot_be_called(box: WebBox, source: str, config: dict[str, Any], name: str) -> None:
    box.start(source, **config)
    with pytest.raises(InvocationError) as caught:
        box.channel.wait_ready(SOON)
    assert (caught.value.kind, caught.value.name) == ("init", name)


def test_users_modules_may_be_called_like_ours(box: WebBox) -> None:
    """Flask and Django projects have a wsgi.py more often than not."""
    names = ("wsgi", "asgi", "reply", "contracts", "stream", "loop", "context", "lifespan", "websocket")
    for name in names:
        (box.code / f"{name}.py").write_text("mine = True")
    assert (
        box.begin(
            f"""
            {"; ".join(f"import {name}" for name in names)}
            def f(environ, start_response):
                start_response("200 OK", [])
                return [str(all(m.mine for m in [{", ".join(names)}])).encode()]
            """
        )
        == "wsgi"
    )
    assert box.request().body == b"True"


@pytest.mark.parametrize(
    ("source", "absent"),
    [
        ("def f(event): pass", {"_olsock_contracts", "_olsock_context", "_olsock_loop", "_olsock_reply", "asyncio"}),
        ("def f(event, context): pass", {"_olsock_contracts", "_olsock_loop", "_olsock_reply", "asyncio"}),
        ("async def f(event): pass", {"_olsock_contracts", "_olsock_reply"}),
        ("def f(event): yield 1", {"_olsock_wsgi", "_olsock_loop", "asyncio", "socket"}),
    ],
)
def test_what_only_others_need_is_not_loaded(box: WebBox, source: str, absent: set[str]) -> None:
    reveal = "\n    import sys; print(*sys.modules)\n    "
    box.begin(source.replace(": ", ":" + reveal, 1))
    box.number += 1
    box.send(wire.REQUEST, {}, b"1")
    box.frame()
    loaded = set(box.log().split())
    assert "sys" in loaded
    assert not loaded & absent


# -- the context ------------------------------------------------------------------------------------------------------


def test_the_context_is_awss(python: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        box.start(
            """
            import os
            def f(event, context):
                context.log("logged")
                client = context.client_context
                return [context.function_name, context.function_version, context.invoked_function_arn,
                        context.memory_limit_in_mb, context.aws_request_id, context.log_group_name,
                        context.log_stream_name, context.identity.cognito_identity_id,
                        client and [client.custom, client.env, client.client.installation_id, client.client.app_title],
                        context.get_remaining_time_in_millis(), os.environ.get("_X_AMZN_TRACE_ID"), context.tenant_id]
            """,
            env={
                "AWS_LAMBDA_FUNCTION_NAME": "hello",
                "AWS_LAMBDA_FUNCTION_VERSION": "7",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
                "AWS_LAMBDA_LOG_STREAM_NAME": "stream-1",
            },
        )
        sent = {"client": {"installation_id": "i", "other": 1}, "custom": {"a": 1}, "env": {"b": "2"}}
        meta = {"id": "r-1", "arn": "arn:aws:lambda:x:1:function:hello:7", "client_context": sent, "trace": "Root=1"}
        told = box.invoke({}, deadline_ms=int(time.time() * 1000) + 60_000, **meta)
        assert told[:9] == [
            *("hello", "7", "arn:aws:lambda:x:1:function:hello:7", "128", "r-1", "/aws/lambda/hello", "stream-1", None),
            [{"a": 1}, {"b": "2"}, "i", None],
        ]
        assert 0 < told[9] <= 60_000 and told[10:] == ["Root=1", None]
        assert box.invoke({})[8] is None
        assert box.invoke({}, **{**meta, "trace": None})[10] is None, "the trace of the call before is not this one's"
        assert box.log() == "logged" * 3
    finally:
        box.close()


# -- coroutines -------------------------------------------------------------------------------------------------------


def test_one_loop_serves_all_requests(python: str, tmp_path: Path) -> None:
    """What a function keeps between requests and belongs to a loop goes on working, and so do tasks."""
    box = WebBox(tmp_path / "code", python)
    try:
        box.start(
            """
            import asyncio
            lock = task = None
            async def tick():
                for n in range(3):
                    await asyncio.sleep(0)
                return "done"
            async def f(event):
                global lock, task
                if lock is None:
                    lock, task = asyncio.Lock(), asyncio.ensure_future(tick())
                    return "begun"
                async with lock:
                    return await task
            """
        )
        assert box.invoke() == "begun"
        assert box.invoke() == "done"
        assert box.invoke() == "done"
    finally:
        box.close()


def test_a_loop_that_the_module_made_is_used(box: WebBox) -> None:
    box.start(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        async def f(event): return asyncio.get_running_loop() is loop
        """
    )
    assert box.invoke() is True
    assert box.invoke() is True


@pytest.mark.parametrize(
    ("harm", "answer"),
    [
        ("asyncio.ensure_future(leave())", "harmed"),
        ("asyncio.ensure_future(fail())", "harmed"),
        ("asyncio.ensure_future(forever())", "harmed"),
        ("asyncio.get_running_loop().stop()", "harmed"),
        ("await asyncio.sleep(0); asyncio.get_running_loop().stop(); await asyncio.sleep(0.01)", "harmed"),
        ("os.closerange(3, 50)", "harmed"),
        ("asyncio.get_running_loop().call_soon(sys.exit)", "harmed"),
        ("asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)", "harmed"),
        ("asyncio.set_event_loop(None)", "harmed"),
        ("asyncio.get_running_loop()._ready.clear()", "harmed"),
        ("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", "harmed"),
        ("sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("asyncio.current_task().cancel(); await asyncio.sleep(1)", "CancelledError"),
        ("[each.cancel() for each in asyncio.all_tasks()]; await asyncio.sleep(1)", "CancelledError"),
    ],
)
def test_harm_in_coroutines_does_not_reach_the_next_request(box: WebBox, harm: str, answer: str) -> None:
    box.start(
        f"""
        import asyncio, os, sys, threading, time
        async def leave(): sys.exit(4)
        async def fail(): raise ValueError("left behind")
        async def forever():
            while True: await asyncio.sleep(0)
        async def f(event):
            if event == "harm":
                {harm}
                return "harmed"
            await asyncio.sleep(0.001)
            return event
        """
    )
    if answer == "harmed":
        assert box.invoke("harm") == "harmed"
    else:
        assert box.fails("harm").name == answer
    for number in range(3):
        assert box.invoke(number) == number


# -- generators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_generators_are_streamed(python: str, kind: str, tmp_path: Path) -> None:
    box = WebBox(tmp_path / "code", python)
    try:
        contract = box.begin(
            f"""
            {kind} f(event, context):
                for item in event:
                    yield bytes.fromhex(item[4:]) if isinstance(item, str) and item.startswith("hex:") else item
            """
        )
        assert contract == "stream"
        lines = box.call([{"a": 1}, None, [2]])
        assert (lines.status, lines.stream, lines.header("content-type")) == (200, True, "application/x-ndjson")
        assert lines.parts == [b'{"a": 1}\n', b"null\n", b"[2]\n"]
        text = box.call(["é", "", "b"])
        assert (text.header("content-type"), text.body) == ("text/plain; charset=utf-8", "éb".encode())
        octets = box.call(["hex:ff00", "hex:", "text"])
        assert (octets.header("content-type"), octets.body) == ("application/octet-stream", b"\xff\x00text")
        assert box.call([]).body == b""
        large = box.call(["x" * (2 * wire.MAX_PAYLOAD + 5)])
        assert large.body == b"x" * (2 * wire.MAX_PAYLOAD + 5)
    finally:
        box.close()


def test_items_are_sent_as_they_are_made(box: WebBox, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    __import__("os").mkfifo(gate)
    box.begin(
        f"""
        def f(event):
            yield "first"
            open({str(gate)!r}).read()
            yield "second"
        """
    )
    box.number += 1
    box.send(wire.REQUEST, {}, b"1")
    _, flags, payload = box.frame()
    assert flags == wire.MORE and wire.split(payload)[1] == b"first"
    gate.write_text("open")
    assert box.frame() == (wire.BODY, wire.MORE, b"second")
    assert box.frame() == (wire.BODY, 0, b"")


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "name", "how"),
    [
        ("raise ValueError('early'); yield 1", "ValueError", "handler"),
        ("yield 1; raise ValueError('late')", "ValueError", "handler"),
        ("yield 1; sys.exit(3)", "SystemExit", "handler"),
        ("yield {1}", "TypeError", "serialize"),
        ("yield 1; yield {1}", "TypeError", "serialize"),
        ("yield '\\ud800'", "UnicodeEncodeError", "serialize"),
        ("yield float('nan')", "ValueError", "serialize"),
    ],
)
def test_generators_that_fail(box: WebBox, kind: str, body: str, name: str, how: str) -> None:
    box.begin(
        f"""
        import sys
        {kind} f(event):
            if event == "harm":
                {body}
            yield event
        """
    )
    failed = box.call("harm")
    assert failed.error is not None
    assert (failed.error["kind"], failed.error["name"]) == (how, name)
    assert (failed.status == 200) == body.startswith("yield 1;")
    assert box.call("fine").body == b"fine"


def test_a_malformed_event_of_a_generator(box: WebBox) -> None:
    box.begin("def f(event): yield event")
    box.number += 1
    box.send(wire.REQUEST, {}, b"{")
    failed = box.answer()
    assert failed.error is not None and failed.error["kind"] == "malformed"
    assert box.call("fine").body == b"fine"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_generator_ends_when_nobody_reads(box: WebBox, kind: str) -> None:
    box.begin(
        f"""
        closed = 0
        {kind} f(event):
            global closed
            if event == "count":
                yield closed
                return
            try:
                while True:
                    yield "x"
            finally:
                closed += 1
        """
    )
    box.number += 1
    box.send(wire.REQUEST, {}, b"1")
    box.frame()
    box.send(wire.DISCONNECT)
    while box.frame()[1]:
        pass
    assert box.call("count").body == b"1\n"
    box.send(wire.DISCONNECT)  # too late: it means nothing
    assert box.call("count").body == b"1\n"


def test_a_decorator_may_collect_what_is_generated(box: WebBox) -> None:
    contract = box.begin(
        """
        import functools
        def collected(function):
            @functools.wraps(function)
            def wrapper(*args): return list(function(*args))
            return wrapper
        @collected
        def f(event):
            yield 1
            yield 2
        """
    )
    assert contract == "stream"
    whole = box.call()
    assert (whole.stream, json.loads(whole.body), whole.header("content-type")) == (False, [1, 2], "application/json")


def test_messages_for_requests_that_have_ended_are_dropped(box: WebBox) -> None:
    box.start("def f(event): return event")
    assert box.invoke(1) == 1
    box.number = 7
    box.send(wire.WS_MESSAGE, {"text": True}, b"x" * 10)
    box.send(wire.WS_CLOSE, {"code": 1000, "reason": ""})
    box.send(wire.DISCONNECT)
    frames = wire.split_message(wire.WS_MESSAGE, 7, b"{}", b"x" * (wire.MAX_PAYLOAD + 10))
    box.sock.setblocking(True)
    box.sock.sendall(b"".join(frames))
    box.sock.setblocking(False)
    assert box.invoke(2) == 2


def test_a_child_of_a_generator_is_no_second_handler(box: WebBox) -> None:
    box.begin(
        textwrap.dedent(
            """
            import os
            def f(event):
                pid = os.fork()
                if pid == 0:
                    yield "child"
                yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            """
        )
    )
    assert box.call().body == b"1\n"
    assert "only the process that was called may answer" in box.log()
