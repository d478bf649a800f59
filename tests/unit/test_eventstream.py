"""AWS's event streams: what we write, its own client reads."""

from __future__ import annotations

import json
from binascii import crc32
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from olsock_worker.aws import eventstream
from olsock_worker.aws.eventstream import Complete

pytestmark = pytest.mark.unit


def read(data: bytes) -> list[Any]:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(event.headers, event.payload) for event in buffer]


@given(st.binary(max_size=5000))
def test_a_part_is_read_as_it_was_written(payload: bytes) -> None:
    found = read(eventstream.chunks(payload))
    assert b"".join(part for _, part in found) == payload
    assert all(headers[":event-type"] == "PayloadChunk" and headers[":message-type"] == "event" for headers, _ in found)


def test_long_parts_are_several_messages() -> None:
    found = read(eventstream.chunks(b"x" * (3 << 20)))
    assert [len(part) for _, part in found] == [1 << 20] * 3 and eventstream.chunks(b"") == b""


def test_the_end() -> None:
    ((headers, payload),) = read(eventstream.complete(Complete("Unhandled", "{}", "bG9n")))
    assert (headers[":event-type"], headers[":content-type"]) == ("InvokeComplete", "application/json")
    assert json.loads(payload) == {"ErrorCode": "Unhandled", "ErrorDetails": "{}", "LogResult": "bG9n"}
    assert read(eventstream.complete(Complete()))[0][1] == b"{}"


def test_checksums_are_those_of_the_bytes_before() -> None:
    data = eventstream.chunks(b"abc")
    assert int.from_bytes(data[:4]) == len(data)
    assert int.from_bytes(data[8:12]) == crc32(data[:8]) and int.from_bytes(data[-4:]) == crc32(data[:-4])
