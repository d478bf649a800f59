"""Frames that a handler makes up: nothing but the answer to the request that was asked is taken (attack 92)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import olsock
from olsock.errors import InvocationError
from olsock.runtime import wire
from support.places import Place, open_place

pytestmark = pytest.mark.attack

REPLY = json.dumps({"status": 200, "content_type": "application/json"}).encode()
ERROR = json.dumps({"kind": "handler", "name": "x", "message": "x", "traceback": ""}).encode()

FORGED = {
    "an answer to nobody": wire.message(wire.REPLY, 0, REPLY, b'"forged"'),
    "an answer to another request": wire.message(wire.REPLY, 12345, REPLY, b'"forged"'),
    "an error of another request": wire.message(wire.ERROR, 12345, ERROR),
    "an error of the import": wire.message(wire.ERROR, 0, ERROR),
    "ready again": wire.message(wire.READY, 0, b'{"init_ms": 0.0}'),
    "a fault": wire.frame(wire.FAULT, 0, bytes(256)),
    "a body that nobody announced": wire.frame(wire.BODY, 0, b"x"),
    "a request": wire.message(wire.REQUEST, 1, b"{}"),
    "a configuration": wire.message(wire.CONFIG, 0, b"{}"),
    "a kind that there is not": wire.HEADER.pack(99, 0, 0, 0, 0),
    "flags that there are not": wire.HEADER.pack(wire.REPLY, 0x80, 0, 0, 0),
    "more than a frame may hold": wire.HEADER.pack(wire.REPLY, 0, 0, wire.MAX_PAYLOAD + 1, 0),
    "half a header": wire.HEADER.pack(wire.REPLY, 0, 0, 0, 0)[:7],
    "metadata longer than the frame": wire.HEADER.pack(wire.REPLY, 0, 0, 4, 0) + b"\xff\xff\xff\xff",
    "metadata that are not JSON": wire.message(wire.REPLY, 0, b"not json"),
    "text": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": bytes(1000),
}


@pytest.fixture(params=["function", "zygote"])
def handler(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        assert place("cwd") == "/var/task"
        yield place


def test_a_handler_that_forges_nothing_is_believed(handler):
    assert handler("forge", "") == "answered"
    assert handler.inside.alive


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_frame_condemns(handler, what):
    with pytest.raises(InvocationError) as caught:
        handler("forge", FORGED[what].hex())
    assert caught.value.kind == "crash"
    assert not handler.inside.alive


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_frame_after_the_answer_condemns(handler, what):
    handler("forge_later", FORGED[what].hex())
    with pytest.raises(InvocationError):
        for _ in range(1000):
            handler("cwd")


def test_a_reply_that_is_too_long_condemns(handler):
    with pytest.raises(InvocationError, match="longer") as caught:
        handler("long_reply", 17 << 20)
    assert caught.value.kind == "crash"


def test_a_reply_that_is_nearly_too_long_is_taken(handler):
    assert len(handler("long_reply", 15 << 20)) == 15 << 20


def test_a_reply_that_is_not_json_condemns(handler):
    with pytest.raises(InvocationError, match="not JSON"):
        handler("answer_raw", "not json")
    assert not handler.inside.alive


def test_a_handler_that_closes_its_channel_is_gone(handler):
    with pytest.raises(InvocationError) as caught:
        handler("close_channel")
    assert caught.value.kind == "crash"


def test_one_that_sends_byte_by_byte_for_ever_is_ended(handler):
    with pytest.raises(InvocationError) as caught:
        handler.inside.invoke({"probe": "trickle"}, timeout=0.3)
    assert caught.value.kind == "timeout"


@pytest.mark.parametrize("kind", ["function", "zygote"])
def test_an_answer_before_the_question_condemns(kind, code):
    (code / "early.py").write_text(
        "import os, probes\n"
        f"probes.forge({wire.message(wire.REPLY, 1, REPLY, b'1').hex()!r})\n"
        "def f(event): return 'answered'"
    )
    with pytest.raises(olsock.OlsockError):
        if kind == "function":
            with olsock.Function(code, "early:f") as fn:
                fn.invoke()
        else:
            with olsock.Zygote(spare=0) as zygote, zygote.fork(code, "early:f") as fn:
                fn.invoke()
