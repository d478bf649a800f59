"""HTTP with functions that are web applications: a request as they are told of it, and the head of their reply.

The head comes out of a sandbox, so nothing of it is believed: names are names, values end no line, a length is one
number, and what is between two ends of a connection alone is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta

from olsock.errors import SpecError

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

HOP_BY_HOP = frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
BODYLESS = (204, 304)  # statuses whose reply has no body, whatever its headers say
MAX_LENGTH = 1 << 53  # that a content-length may promise

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}"
_VALUE = r"[\t\x20-\x7e\x80-\xff]*"  # latin-1, without control characters
_Name = Annotated[str, Meta(pattern=f"^{_TOKEN}\\Z")]
_Value = Annotated[str, Meta(pattern=f"^{_VALUE}\\Z")]


@dataclass(frozen=True, slots=True)
class Response:
    """What a web application has answered. Header names are lower-case; a name may come more than once."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, several joined by commas; None if there is none."""
        found = [value for each, value in self.headers if each == name.lower()]
        return ", ".join(found) if found else None


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Metadata of the REPLY of a stream or a web application."""

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: tuple[tuple[_Name, _Value], ...]
    stream: bool


_decode: Callable[[bytes], Head] = msgspec.json.Decoder(Head).decode


def decode(data: bytes) -> tuple[Head, int | None]:
    """Read metadata of REPLY: what is passed on of it, and the length it promises. Raises `ValueError`."""
    head = _decode(data)
    headers = tuple((name.lower(), value) for name, value in head.headers)
    kept = tuple(each for each in headers if each[0] not in HOP_BY_HOP and not each[0].startswith("proxy-"))
    lengths = {value for name, value in headers if name == "content-length"}
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,16}", value) for value in lengths):
        raise ValueError(f"content-length {sorted(lengths)}")
    promised = int(lengths.pop()) if lengths else None
    if promised is not None and promised > MAX_LENGTH:
        raise ValueError(f"content-length {promised}")
    return Head(head.status, kept, head.stream), promised


def request(method: str, path: str, headers: Headers, body: bytes) -> dict[str, Any]:
    """Return the metadata of a request, from what people write; `path` may have a query. Raises `SpecError`."""
    if not isinstance(method, str) or not re.fullmatch(_TOKEN, method):
        raise SpecError("method", method, 'a method of HTTP, like "GET"')
    if not isinstance(path, str) or not path.startswith("/"):
        raise SpecError("path", path, 'a path like "/items?page=2"')
    if not isinstance(body, bytes):
        raise SpecError("body", type(body), "bytes")
    sent = _headers(headers)
    names = {name for name, _ in sent}
    if "host" not in names:
        sent.insert(0, ["host", "localhost"])
    if body and "content-length" not in names:
        sent.append(["content-length", str(len(body))])
    path, _, query = path.partition("?")
    return {
        "web": True,
        "method": method,
        "path": quote(path, "/%:@!$&'()*+,;=~"),
        "query": quote(query, "/%:@!$&'()*+,;=~?"),
        "headers": sent,
        "scheme": "http",
        "http_version": "1.1",
        "server": ["localhost", 80],
        "client": ["127.0.0.1", 0],
    }


def _headers(headers: Headers) -> list[list[str]]:
    found = []
    for pair in headers.items() if isinstance(headers, Mapping) else headers:
        accepted = "names of HTTP with latin-1 text that has no line break in it"
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise SpecError("headers", pair, accepted)
        name, value = pair
        if not re.fullmatch(_TOKEN, name) or not re.fullmatch(_VALUE, value):
            raise SpecError("headers", pair, accepted)
        found.append([name.lower(), value])
    return found
