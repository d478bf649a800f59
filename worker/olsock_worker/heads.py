"""Heads of replies that a sandbox makes up: checked, and cut down to what a client may be told.

Nothing of it is believed: a status, a name or a value that could split the reply condemns the sandbox.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from olsock.runtime.wire import WireError
from olsock_worker import responses

# Of one connection, not of the reply that is passed on over another one (RFC 9110, 7.6.1), and what is ours to say.
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
_PROXY = "proxy-"
_OURS = frozenset(("date", "x-request-id"))
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
EMPTY = frozenset((204, 205, 304))  # statuses of replies without a body


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of REPLY: of an event handler with `content_type`, of every other contract with `headers`."""

    status: int
    content_type: str | None = None
    headers: list[tuple[str, str]] | None = None
    stream: bool = False


_decode = msgspec.json.Decoder(_Meta).decode


class Head(NamedTuple):
    """What goes out before the body."""

    status: int
    lines: bytes  # whole header lines, none of them about the body's length
    length: int | None = None  # what the function says of its body
    stream: bool = False
    fits: bool = True  # False: it says two things of its length, or what is no length

    def bodyless(self, method: str) -> bool:
        """Say whether a client must get no body, whatever the function sends."""
        return method == "HEAD" or self.status in EMPTY

    def framing(self, method: str, size: int | None) -> bytes:
        """Return the line about the length, for a body of `size` bytes (None: not known yet)."""
        if self.status in (204, 304):
            return b""
        if self.status == 205:
            return b"content-length: 0\r\n"
        length = self.length if self.length is not None else size
        return b"" if length is None else b"content-length: %d\r\n" % length


def read(meta: bytes) -> Head:
    """Read REPLY's metadata; raises `WireError` or a `ValueError` of msgspec for what must not be sent on."""
    given = _decode(meta)
    if not 200 <= given.status <= 599:
        raise WireError(f"a reply with status {given.status}")
    if given.headers is None:
        kind = given.content_type
        if kind is None or given.stream or not responses.content_type_ok(kind):
            raise WireError("a reply with a content type that cannot be sent on")
        lines = b"" if given.status in EMPTY else b"content-type: %b\r\n" % kind.encode("ascii")
        return Head(given.status, lines)
    if given.content_type is not None:
        raise WireError("a reply with headers and a content type beside them")
    kept, lengths = checked(given.headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in kept).encode("latin-1")
    length = int(lengths[0]) if lengths and _LENGTH.fullmatch(lengths[0]) else None
    fits = not lengths or (length is not None and lengths.count(lengths[0]) == len(lengths))
    return Head(given.status, lines, length, given.stream, fits)


def checked(
    headers: list[tuple[str, str]], without: frozenset[str] = frozenset()
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return those that the client gets to see, and the values of content-length; `without` names more to leave out.

    Raises `WireError` if one could split a reply.
    """
    kept: list[tuple[str, str, str]] = []
    lengths: list[str] = []
    dropped = HOP_BY_HOP | _OURS | without
    for name, value in headers:
        if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise WireError("a reply with a header that cannot be sent on")
        key = name.lower()
        if key == "connection":
            dropped |= tokens(value)
        elif key == "content-length":
            lengths.append(value.strip(" \t"))
        elif not key.startswith(_PROXY):
            kept.append((key, name, value.strip(" \t")))
    return [(name, value) for key, name, value in kept if key not in dropped], lengths


def tokens(value: str) -> frozenset[str]:
    """Return the names in a comma-separated list, in lower case."""
    return frozenset(each.strip(" \t").lower() for each in value.split(","))
