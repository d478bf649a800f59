"""HTTP requests as events and answers as their results, the way of API Gateway and function URLs (payload format 2.0).

https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

import msgspec

from olsock_worker.handshakes import RefusedError
from olsock_worker.ol_yaml import METHODS

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.heads import Head

_TARGET = re.compile(r"/[!-~]*")
_QUERY = re.compile(r"[!-~]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TEXT = ("text/", "application/json", "application/javascript", "application/xml")  # sent as it is, the rest in base64


class _Http(msgspec.Struct):
    method: str


class _Context(msgspec.Struct):
    http: _Http


class _Event(msgspec.Struct, rename="camel"):
    """The part of an event that makes a request."""

    version: str
    raw_path: str
    request_context: _Context
    raw_query_string: str = ""
    cookies: list[str] = []
    headers: dict[str, str] = {}
    body: str = ""
    is_base64_encoded: bool = False


_decode = msgspec.json.Decoder(_Event).decode


def unfold(call: Call) -> None:
    """Make the request of a call that its event tells of, for a web application. Raises `RefusedError`."""
    try:
        event = _decode(call.body)
        body = event.body.encode()
        if event.is_base64_encoded:
            body = base64.b64decode(body, validate=True)
        headers = {name.lower(): value for name, value in event.headers.items()}
        if event.cookies:
            headers["cookie"] = "; ".join(event.cookies)
        good = (
            event.version == "2.0"
            and event.request_context.http.method in METHODS
            and _TARGET.fullmatch(event.raw_path)
            and _QUERY.fullmatch(event.raw_query_string)
            and all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.items())
        )
        if not good:
            raise ValueError("not of version 2.0, or no method, path, query or header that HTTP knows")
    except (ValueError, binascii.Error) as error:
        raise RefusedError(
            400,
            "no_http_event",
            f"the function is a web application, and the event no HTTP request of API Gateway: {error}",
        ) from None
    headers.pop("transfer-encoding", None)
    headers["content-length"] = str(len(body))
    call.method, call.path, call.query = event.request_context.http.method, event.raw_path, event.raw_query_string
    call.headers, call.repeats, call.body, call.version = headers, (), body, "1.1"


def fold(head: Head, body: bytes) -> bytes:
    """Return what a web application has answered as the result of a function."""
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for line in head.lines.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        key = name.lower()
        if key == "set-cookie":
            cookies.append(value)
        else:
            headers[key] = f"{headers[key]},{value}" if key in headers else value
    text = _text(headers, body)
    result: dict[str, object] = {"statusCode": head.status, "headers": headers}
    if cookies:
        result["cookies"] = cookies
    result["body"] = base64.b64encode(body).decode() if text is None else text
    result["isBase64Encoded"] = text is None
    return msgspec.json.encode(result)


def _text(headers: dict[str, str], body: bytes) -> str | None:
    """Return a body as text, if it is some."""
    kind = headers.get("content-type", "").lower()
    if "content-encoding" in headers or (body and not kind.startswith(_TEXT) and "+json" not in kind):
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
