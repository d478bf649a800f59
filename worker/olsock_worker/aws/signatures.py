"""AWS's signature, version 4, verified: that a request was made by who has a key, lately, and was not changed on its way."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from olsock_worker.aws.errors import ApiError

if TYPE_CHECKING:
    from olsock_worker.calls import Call

SCHEME = "AWS4-HMAC-SHA256"
_SERVICE = "lambda"
_AGE = 300.0  # seconds that a clock may be off
_HEADER = re.compile(
    rf"{SCHEME} Credential=([\w/+=.@-]{{1,128}})/(\d{{8}})/([a-z0-9-]{{1,32}})/([a-z0-9-]{{1,32}})/aws4_request,\s*"
    r"SignedHeaders=([a-z0-9;_-]{1,2000}),\s*Signature=([0-9a-f]{64})",
    re.ASCII,
)
_NOBODY = "\0"  # the secret of a key that there is not: no text of a configuration


def verify(call: Call, path: bytes, query: bytes, keys: Mapping[str, str], now: float) -> str:
    """Return which of `keys` (secrets by their id) a request is signed with. Hashes the whole body. Raises `ApiError`."""
    headers = call.headers
    found = _HEADER.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise ApiError("IncompleteSignatureException", "Authorization header is not a version 4 signature")
    key, day, region, service, signed, signature = found.groups()
    names = signed.split(";")
    date = headers.get("x-amz-date", "")
    if service != _SERVICE or not date.startswith(day + "T"):
        raise ApiError(
            "IncompleteSignatureException", f"Credential should be scoped to {_SERVICE} and to the day of X-Amz-Date"
        )
    if abs(_moment(date) - now) > _AGE:
        raise ApiError("InvalidSignatureException", f"Signature expired, or not yet current: {date}")
    must = {"host", *(name for name in headers if name.startswith("x-amz-"))}
    if not must <= set(names) <= headers.keys():
        raise ApiError(
            "IncompleteSignatureException", "Host and all X-Amz headers have to be signed, and what is signed sent"
        )
    body = hashlib.sha256(call.body).hexdigest()
    scope = f"{day}/{region}/{service}/aws4_request"
    canonical = _canonical(call.method, path, query, [(name, headers[name]) for name in names], signed, body)
    text = f"{SCHEME}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    expected = _sign(keys.get(key, _NOBODY), (day, region, service, "aws4_request"), text)
    sound = hmac.compare_digest(expected, signature)
    if key not in keys:
        raise ApiError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if not sound or not hmac.compare_digest(headers.get("x-amz-content-sha256", body), body):
        raise ApiError(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check the secret access key.",
        )
    return key


def _moment(date: str) -> float:
    try:
        return datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ApiError("IncompleteSignatureException", "X-Amz-Date: expected a date such as 20150830T123600Z") from None


def _canonical(method: str, path: bytes, query: bytes, headers: list[tuple[str, str]], signed: str, body: str) -> str:
    """Return what is signed. Path and query are as they were sent; the path is encoded once more, as services but S3 have it."""
    pairs = sorted(tuple(each.partition("=")[::2]) for each in query.decode("latin-1").split("&") if each)
    lines = [
        method,
        quote(path, safe="/~"),
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{' '.join(value.split())}" for name, value in headers),
        "",
        signed,
        body,
    ]
    return "\n".join(lines)


def _sign(secret: str, scope: tuple[str, ...], text: str) -> str:
    key = ("AWS4" + secret).encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, text.encode(), "sha256").hexdigest()
