"""Frames: what is well formed comes out as it went in, in whatever pieces; all else is refused with WireError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.runtime import wire

pytestmark = pytest.mark.unit

LIMIT = 4096
ids = st.integers(0, 2**64 - 1)
bodies = st.binary(max_size=200)


def parser(limit: int = LIMIT) -> wire.Parser:
    return wire.Parser(wire.FROM_BOX, limit)


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """Frames of one message: a first one, and BODY frames as long as MORE says so."""
    kind, request = draw(st.sampled_from([wire.READY, wire.REPLY, wire.ERROR])), draw(ids)
    parts = [draw(bodies), *draw(st.lists(bodies.filter(bool), max_size=3))]
    if len(parts) > 1 and not parts[0]:
        parts[0] = b"x"
    kinds = [kind] + [wire.BODY] * (len(parts) - 1)
    flags = [wire.MORE] * (len(parts) - 1) + [0]
    return [wire.frame(k, request, part, f) for k, part, f in zip(kinds, parts, flags, strict=True)]


@given(st.lists(messages(), max_size=5), st.lists(st.integers(1, 300), min_size=1))
def test_frames_survive_any_cutting(sent: list[list[bytes]], cuts: list[int]) -> None:
    frames = [frame for message in sent for frame in message]
    stream, p, got, turn = b"".join(frames), parser(), [], 0
    while stream:
        size = cuts[turn % len(cuts)]
        turn += 1
        got += p.feed(stream[:size])
        stream = stream[size:]
    assert [wire.frame(kind, request, payload, flags) for kind, flags, request, payload in got] == frames
    assert p.idle


@given(st.lists(st.binary(max_size=100)))
def test_any_bytes_give_frames_or_wire_error(chunks: list[bytes]) -> None:
    p = parser()
    try:
        for chunk in chunks:
            for kind, flags, _, payload in p.feed(chunk):
                assert kind in wire.FROM_BOX
                assert flags in (0, wire.MORE)
                assert len(payload) <= LIMIT
    except wire.WireError:
        pass


@given(st.binary(min_size=16, max_size=16))
def test_header_agrees_with_the_parser(data: bytes) -> None:
    try:
        kind, flags, length, request = wire.header(data, wire.FROM_BOX)
    except wire.WireError:
        with pytest.raises(wire.WireError):
            parser(wire.MAX_PAYLOAD).feed(data)
    else:
        assert kind in wire.FROM_BOX
        assert length <= wire.MAX_PAYLOAD
        assert wire.HEADER.pack(kind, flags, 0, length, request) == data


@given(st.binary(max_size=64))
def test_split_gives_two_parts_or_wire_error(payload: bytes) -> None:
    try:
        meta, body = wire.split(payload)
    except wire.WireError:
        return
    assert wire.META.pack(len(meta)) + meta + body == payload


def test_message_and_split_are_inverse() -> None:
    frame = wire.message(wire.REPLY, 9, b"{}", b"body")
    assert wire.header(frame[:16], wire.FROM_BOX) == (wire.REPLY, 0, len(frame) - 16, 9)
    assert wire.split(frame[16:]) == (b"{}", b"body")


def header(kind: int = wire.REPLY, flags: int = 0, zero: int = 0, length: int = 0) -> bytes:
    return wire.HEADER.pack(kind, flags, zero, length, 1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(kind=0), id="kind 0"),
        pytest.param(header(kind=255), id="unknown kind"),
        pytest.param(header(kind=wire.REQUEST), id="a kind of the other direction"),
        pytest.param(header(flags=2), id="unknown flag"),
        pytest.param(header(flags=0xFF), id="all flags"),
        pytest.param(header(zero=1), id="zero is not zero"),
        pytest.param(header(length=wire.MAX_PAYLOAD + 1), id="oversize"),
        pytest.param(header(length=2**32 - 1), id="length 2**32-1"),
        pytest.param(header(kind=wire.BODY), id="BODY that nobody announced"),
        pytest.param(header(flags=wire.MORE), id="empty frame with MORE"),
        pytest.param(wire.frame(wire.REPLY, 1, b"x", wire.MORE) * 2, id="REPLY inside a REPLY"),
        pytest.param(
            wire.frame(wire.REPLY, 1, b"x", wire.MORE) + wire.frame(wire.BODY, 2, b"x"), id="BODY of another request"
        ),
        pytest.param(
            wire.frame(wire.REPLY, 1, b"x", wire.MORE) + wire.frame(wire.BODY, 1, b"", wire.MORE),
            id="empty BODY with MORE",
        ),
        pytest.param(wire.frame(wire.REPLY, 1, b"x") + wire.frame(wire.BODY, 1, b"x"), id="BODY after the last frame"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.Parser(wire.FROM_BOX, 2**32).feed(data)
    # The control: the same parser takes the frame that differs from these in nothing but what is wrong with them.
    assert parser().feed(wire.frame(wire.REPLY, 1, b"x")) == [(wire.REPLY, 0, 1, b"x")]


def test_limit_holds_for_a_message_in_one_frame_and_in_many() -> None:
    assert len(parser(100).feed(wire.frame(wire.REPLY, 1, bytes(100)))) == 1
    with pytest.raises(wire.WireError, match="longer than 100"):
        parser(100).feed(header(length=101))  # before the payload has come
    many = wire.frame(wire.REPLY, 1, bytes(60), wire.MORE)
    assert len(parser(100).feed(many + wire.frame(wire.BODY, 1, bytes(40)))) == 2
    with pytest.raises(wire.WireError, match="longer than 100"):
        parser(100).feed(many + wire.frame(wire.BODY, 1, bytes(41)))


def test_limit_is_per_message() -> None:
    p = parser(100)
    message = wire.frame(wire.REPLY, 1, bytes(60), wire.MORE) + wire.frame(wire.BODY, 1, bytes(40))
    for _ in range(10):
        assert len(p.feed(message)) == 2


def test_idle_only_between_messages() -> None:
    p = parser()
    assert p.idle
    p.feed(header(length=3)[:7])
    assert not p.idle
    p.feed(header(length=3)[7:] + b"ab")
    assert not p.idle
    p.feed(b"c")
    assert p.idle
    p.feed(wire.frame(wire.REPLY, 1, b"x", wire.MORE))
    assert not p.idle
    p.feed(wire.frame(wire.BODY, 1))
    assert p.idle


def test_an_error_may_end_a_stream_where_that_is_expected() -> None:
    begun = wire.frame(wire.REPLY, 1, b"x", wire.MORE)
    p = wire.Parser(wire.FROM_BOX, LIMIT, streams=True)
    assert [kind for kind, *_ in p.feed(begun + wire.frame(wire.ERROR, 1, b"y"))] == [wire.REPLY, wire.ERROR]
    assert p.idle
    for wrong in (wire.frame(wire.ERROR, 2, b"y"), wire.frame(wire.ERROR, 1, b"y", wire.MORE)):
        with pytest.raises(wire.WireError, match="instead of BODY"):
            wire.Parser(wire.FROM_BOX, LIMIT, streams=True).feed(begun + wrong)
    with pytest.raises(wire.WireError, match="instead of BODY"):
        parser().feed(begun + wire.frame(wire.ERROR, 1, b"y"))
    message = wire.frame(wire.WS_MESSAGE, 1, b"x", wire.MORE)
    with pytest.raises(wire.WireError, match="instead of BODY"):
        wire.Parser(wire.FROM_BOX, LIMIT, streams=True).feed(message + wire.frame(wire.ERROR, 1, b"y"))
