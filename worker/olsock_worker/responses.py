"""Replies as bytes: status lines made once, and error bodies of one shape.

No byte of a header comes from a sandbox unless `content_type_ok` has seen it, so a reply cannot be split.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import msgspec

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in HTTPStatus
    if status.value >= 200
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"application/json"
RETRY_AFTER = ("retry-after", "1")

_BODYLESS = frozenset((204, 304))
_CONTENT_TYPE = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}/[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}(?:[ \t]*;[\t\x20-\x7e]{0,128})?"
)


class Error(msgspec.Struct, omit_defaults=True):
    """What went wrong. `type` is for programs, `message` for people."""

    type: str
    message: str
    id: str = ""
    traceback: str = ""


class ErrorBody(msgspec.Struct):
    """The body of every reply that is not the function's own."""

    error: Error
    request_id: str


def error_body(error: Error, request_id: str) -> bytes:
    """Return the JSON of one error."""
    return msgspec.json.encode(ErrorBody(error, request_id)) + b"\n"


def api_error_body(message: str) -> bytes:
    """Return the JSON of a client's error, for clients of AWS's API."""
    return msgspec.json.encode({"Type": "User", "message": message})


def content_type_ok(value: str) -> bool:
    """Say whether a content type that a sandbox gave may be written into a header."""
    return _CONTENT_TYPE.fullmatch(value) is not None


def status_line(status: int) -> bytes:
    """Return the status line, also for numbers that have no name."""
    return STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


def head(status: int, content_type: bytes, request_id: str, length: int, date: bytes, extra: bytes = b"") -> bytes:
    """Return everything before the body. `extra` is whole header lines."""
    if status in _BODYLESS:
        return b"%b%bx-request-id: %b\r\n%b\r\n" % (status_line(status), date, request_id.encode(), extra)
    return b"%b%bcontent-type: %b\r\nx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        status_line(status),
        date,
        content_type,
        request_id.encode(),
        length,
        extra,
    )


def passed_on(status: int, request_id: str, date: bytes, lines: bytes) -> bytes:
    """Return everything before the body of a reply whose header lines have been made."""
    return b"%b%bx-request-id: %b\r\n%b\r\n" % (status_line(status), date, request_id.encode(), lines)


def header_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Return header lines of our own making."""
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)


def has_body(status: int) -> bool:
    """Say whether a reply of this status carries a body at all."""
    return status not in _BODYLESS
