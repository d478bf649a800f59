"""Messages to a sandbox, in as many frames as they take."""

from __future__ import annotations

from olsock.runtime import wire


def cut(kind: int, number: int, meta: bytes, body: bytes) -> bytes:
    """Return a message as one frame of `kind`, and BODY frames where it is too long for one."""
    first = wire.MAX_PAYLOAD - wire.META.size - len(meta)
    if len(body) <= first:
        return wire.message(kind, number, meta, body)
    parts = [wire.message(kind, number, meta, body[:first], wire.MORE)]
    for start in range(first, len(body), wire.MAX_PAYLOAD):
        end = start + wire.MAX_PAYLOAD
        parts.append(wire.frame(wire.BODY, number, body[start:end], wire.MORE if end < len(body) else 0))
    return b"".join(parts)
