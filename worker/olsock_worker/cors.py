"""Which web pages a browser may let use a function URL: the headers of Cross-Origin Resource Sharing, as it is configured.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from olsock_worker.store.records import Cors

if TYPE_CHECKING:
    from olsock_worker.calls import Call

Lines = tuple[tuple[str, str], ...]

_PREFIX = b"access-control-"
_ANY = "*"
_METHOD = re.compile(r"\*|GET|PUT|HEAD|POST|PATCH|DELETE|OPTIONS")
_HEADER = re.compile(r"\*|[!#$%&'*+.^_`|~0-9A-Za-z-]{1,1024}")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[!-+\--~]{1,253}", re.IGNORECASE)


def mistake(cors: Cors) -> str:
    """Say what cannot be accepted of a configuration, as it would stand in headers; "" if all of it can."""
    for name, values, pattern, most in (
        ("AllowMethods", cors.allow_methods, _METHOD, 6),
        ("AllowHeaders", cors.allow_headers, _HEADER, 100),
        ("ExposeHeaders", cors.expose_headers, _HEADER, 100),
        ("AllowOrigins", cors.allow_origins, _ORIGIN, 100),
    ):
        if len(values or ()) > most:
            return f"Cors.{name}: at most {most} are accepted"
        for value in values or ():
            if not pattern.fullmatch(value):
                return f"Cors.{name}: {value[:200]!r} is not accepted"
    if cors.max_age is not None and not 0 <= cors.max_age <= 86_400:
        return f"Cors.MaxAge {cors.max_age}: expected 0 to 86400 seconds"
    return ""


def is_preflight(call: Call) -> bool:
    """Say whether a browser only asks what it may do."""
    return call.method == "OPTIONS" and "origin" in call.headers and "access-control-request-method" in call.headers


def preflight(cors: Cors, origin: str) -> Lines:
    """Return the headers that tell what a page of an origin may do: none if it may do nothing."""
    allowed = _allowed(cors, origin)
    if not allowed:
        return ()
    lines = list(allowed)
    if cors.allow_methods:
        lines.append(("access-control-allow-methods", ",".join(cors.allow_methods)))
    if cors.allow_headers:
        lines.append(("access-control-allow-headers", ",".join(cors.allow_headers)))
    if cors.max_age is not None:
        lines.append(("access-control-max-age", str(cors.max_age)))
    return tuple(lines)


def answered(cors: Cors, origin: str) -> Lines:
    """Return the headers that let a page of an origin read an answer."""
    allowed = _allowed(cors, origin)
    if allowed and cors.expose_headers:
        return (*allowed, ("access-control-expose-headers", ",".join(cors.expose_headers)))
    return allowed


def without(lines: bytes) -> bytes:
    """Return header lines without those of a function about the same: what is configured counts."""
    if _PREFIX not in lines.lower():
        return lines
    return b"".join(each for each in lines.splitlines(keepends=True) if not each.lower().startswith(_PREFIX))


def _allowed(cors: Cors, origin: str) -> Lines:
    origins = cors.allow_origins or ()
    if not origin:
        return ()
    if any(origin.lower() == each.lower() for each in origins):
        lines: Lines = (("access-control-allow-origin", origin), ("vary", "Origin"))
    elif _ANY in origins:
        lines = (("access-control-allow-origin", _ANY),)
    else:
        return ()
    return (*lines, ("access-control-allow-credentials", "true")) if cors.allow_credentials else lines
