"""HTTP requests as events and answers as their results, the way of API Gateway and function URLs (payload format 2.0).

https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, UnsetType

from olsock.runtime.wire import WireError
from olsock_worker import heads
from olsock_worker.configurations import ACCOUNT
from olsock_worker.handshakes import RefusedError
from olsock_worker.heads import Head
from olsock_worker.ol_yaml import METHODS

if TYPE_CHECKING:
    from olsock_worker.calls import Call

_TARGET = re.compile(r"/[!-~]*")
_QUERY = re.compile(r"[!-~]*")
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


class _Status(msgspec.Struct, rename="camel"):
    """The member by which a result is known to be an answer."""

    status_code: int | UnsetType = UNSET


class _Result(_Status, kw_only=True):
    """What a function may say of its answer."""

    headers: dict[str, str | int | float | bool] | None = None
    cookies: list[str] | None = None
    body: str | None = None
    is_base64_encoded: bool = False


_decode = msgspec.json.Decoder(_Event).decode
_decode_status = msgspec.json.Decoder(_Status).decode
_decode_result = msgspec.json.Decoder(_Result).decode
_PAIRS = 1000  # of a query that are told one by one


class ResultError(ValueError):
    """What a function returned is no answer that HTTP has; the message says why."""


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
            and all(heads.TOKEN.fullmatch(name) and heads.VALUE.fullmatch(value) for name, value in headers.items())
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
    headers, cookies = _split(head)
    text = _text(headers, body)
    result: dict[str, object] = {"statusCode": head.status, "headers": headers}
    if cookies:
        result["cookies"] = cookies
    result["body"] = base64.b64encode(body).decode() if text is None else text
    result["isBase64Encoded"] = text is None
    return msgspec.json.encode(result)


def prelude(head: Head) -> bytes:
    """Return what goes before the body of an answer in parts, as AWS's runtimes send it."""
    headers, cookies = _split(head)
    return msgspec.json.encode({"statusCode": head.status, "headers": headers, "cookies": cookies}) + b"\0" * 8


def _split(head: Head) -> tuple[dict[str, str], list[str]]:
    """Return the headers, those of one name joined, and the cookies."""
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for line in head.lines.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        key = name.lower()
        if key == "set-cookie":
            cookies.append(value)
        else:
            headers[key] = f"{headers[key]},{value}" if key in headers else value
    return headers, cookies


def _text(headers: dict[str, str], body: bytes) -> str | None:
    """Return a body as text, if it is some."""
    kind = headers.get("content-type", "").lower()
    if "content-encoding" in headers or (body and not kind.startswith(_TEXT) and "+json" not in kind):
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def event(call: Call, fields: list[tuple[str, str]], url_id: str, client: str, key: str | None) -> bytes:
    """Return the event for a request at a function URL, with headers as they are to be told.

    `client` is an address, `key` that of whoever has signed the request, None if nobody had to.
    """
    headers: dict[str, str] = {}
    for name, value in fields:
        separator = "; " if name == "cookie" else ","
        headers[name] = f"{headers[name]}{separator}{value.strip()}" if name in headers else value.strip()
    cookies = headers.pop("cookie", "")
    path = call.path or "/"
    host = headers.get("host", "")
    now = time()
    context: dict[str, object] = {
        "accountId": "anonymous" if key is None else ACCOUNT,
        "apiId": url_id,
        "domainName": host.rpartition("@")[2].partition(":")[0] or url_id,
        "domainPrefix": url_id,
        "http": {
            "method": call.method,
            "path": path,
            "protocol": f"HTTP/{call.version}",
            "sourceIp": client,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": call.id,
        "routeKey": "$default",
        "stage": "$default",
        "time": datetime.fromtimestamp(now, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now * 1000),
    }
    if key is not None:
        context["authorizer"] = {"iam": {"accessKey": key, "accountId": ACCOUNT, "callerId": key, "userId": key}}
    made: dict[str, object] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": call.query,
        "headers": headers,
        "requestContext": context,
        "isBase64Encoded": False,
    }
    if cookies:
        made["cookies"] = [each.strip() for each in cookies.split(";") if each.strip()]
    pairs = _pairs(call.query)
    if pairs:
        made["queryStringParameters"] = pairs
    if call.body:
        text = _text(headers, call.body)
        made["body"] = base64.b64encode(call.body).decode() if text is None else text
        made["isBase64Encoded"] = text is None
    return msgspec.json.encode(made)


def _pairs(query: str) -> dict[str, str]:
    """Return the parameters of a query, those that come more than once joined by commas; none if there are too many."""
    pairs: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=_PAIRS):
            pairs.setdefault(name, []).append(value)
    except ValueError:
        return {}
    return {name: ",".join(values) for name, values in pairs.items()}


def interpret(result: bytes) -> tuple[Head, bytes]:
    """Return the answer that a function's result stands for. Raises `ResultError`.

    An object with `statusCode` says all of it; anything else is the body of a 200.
    """
    try:
        status = _decode_status(result).status_code if result.lstrip()[:1] == b"{" else UNSET
        if status is UNSET:
            return Head(200, b"content-type: application/json\r\n"), result
        found = _decode_result(result)
        body = (found.body or "").encode()
        if found.is_base64_encoded:
            body = base64.b64decode(body, validate=True)
        if not 200 <= status <= 599:
            raise ResultError(f"statusCode {status}: expected 200 to 599")
        given = [(name, _written(value)) for name, value in (found.headers or {}).items()]
        given += [("set-cookie", each) for each in found.cookies or ()]
        kept, _ = heads.checked(given)
    except WireError:
        raise ResultError("a header that HTTP does not have") from None
    except (msgspec.MsgspecError, binascii.Error, UnicodeError) as error:
        raise ResultError(str(error)) from None
    if status not in heads.EMPTY and all(name.lower() != "content-type" for name, _ in kept):
        kept.append(("content-type", "application/json"))
    return Head(status, "".join(f"{name}: {value}\r\n" for name, value in kept).encode("latin-1")), body


def _written(value: str | float | bool) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
