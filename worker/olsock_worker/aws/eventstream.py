"""AWS's event streams, as bytes: messages with headers of text and a payload, each with its length and checksums.

https://smithy.io/2.0/aws/amazon-eventstream.html
"""

from __future__ import annotations

import struct
from binascii import crc32

import msgspec

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
_PRELUDE, _CHECK = struct.Struct(">II"), struct.Struct(">I")
_TEXT = 7  # type of a header
_PART = 1 << 20  # bytes of one message's payload: what clients accept is bounded
_CHUNK = ((":message-type", "event"), (":event-type", "PayloadChunk"), (":content-type", "application/octet-stream"))
_COMPLETE = ((":message-type", "event"), (":event-type", "InvokeComplete"), (":content-type", "application/json"))


class Complete(msgspec.Struct, rename="pascal", omit_defaults=True):
    """How a call has ended; without an error code well."""

    error_code: str | None = None
    error_details: str | None = None
    log_result: str | None = None


def chunks(payload: bytes) -> bytes:
    """Return part of a function's reply."""
    parts = (payload[start : start + _PART] for start in range(0, len(payload), _PART))
    return b"".join(_message(_CHUNK, part) for part in parts)


def complete(end: Complete) -> bytes:
    """Return the end of a function's reply."""
    return _message(_COMPLETE, msgspec.json.encode(end))


def _message(headers: tuple[tuple[str, str], ...], payload: bytes) -> bytes:
    lines = b"".join(
        struct.pack(f">B{len(name)}sBH{len(value)}s", len(name), name.encode(), _TEXT, len(value), value.encode())
        for name, value in headers
    )
    prelude = _PRELUDE.pack(_PRELUDE.size + 2 * _CHECK.size + len(lines) + len(payload), len(lines))
    message = prelude + _CHECK.pack(crc32(prelude)) + lines + payload
    return message + _CHECK.pack(crc32(message))
