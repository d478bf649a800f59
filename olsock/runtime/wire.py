"""Frames on the channel between a worker and one sandbox (docs/architecture.md, "Protocol").

A frame is a 16-byte header and a payload::

    kind u8 · flags u8 · zero u16 · length u32 · request id u64        (little endian)

A payload that carries metadata is ``u32 meta length · meta (JSON) · body (raw bytes)``. Everything is
bounded, nothing is unpickled, and file descriptors are never taken from a sandbox. Both ends share this
module, so it imports the standard library only and works on CPython 3.9.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<BBHIQ")
META = struct.Struct("<I")

CONFIG = 1  # to the sandbox, first: what to import (metadata only)
REQUEST = 2  # to the sandbox: one invocation; metadata + the first part of the body
BODY = 3  # either way: more of a body that was announced with MORE
READY = 4  # from the sandbox: the handler was imported (metadata: milliseconds)
REPLY = 5  # from the sandbox: the result; metadata + the first part of the body
ERROR = 6  # from the sandbox: the invocation (request id 0: the import) failed; metadata says how
STARTED = 8  # from the sandbox, first: its runtime runs, isolated; no payload
FAULT = 7  # from the sandbox: its set-up failed; the payload is a struct ols_err
WS_ACCEPT = 9  # from the sandbox: a WebSocket handshake is accepted (metadata only)
WS_MESSAGE = 10  # either way: one message of a WebSocket; metadata + the first part of it
WS_CLOSE = 11  # either way: the end of a WebSocket (metadata only); that of the sandbox ends the request
DISCONNECT = 12  # to the sandbox: the client of the running request has gone; no payload

MORE = 1  # flag: a BODY frame of the same request follows

# Kinds that a sandbox may send, and those that the host may.
FROM_BOX = frozenset((BODY, STARTED, READY, REPLY, ERROR, FAULT, WS_ACCEPT, WS_MESSAGE, WS_CLOSE))
FROM_HOST = frozenset((CONFIG, REQUEST, BODY, WS_MESSAGE, WS_CLOSE, DISCONNECT))

MAX_META = 64 * 1024
MAX_PAYLOAD = 1024 * 1024  # a sender splits longer bodies


class WireError(ValueError):
    """The peer sent something that is not a frame of this protocol."""


def frame(kind: int, request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return one frame as bytes."""
    return HEADER.pack(kind, flags, 0, len(payload), request) + payload


def message(kind: int, request: int, meta: bytes, body: bytes = b"", flags: int = 0) -> bytes:
    """Return one frame that carries metadata (already JSON) and a body."""
    return b"".join(
        (
            HEADER.pack(kind, flags, 0, META.size + len(meta) + len(body), request),
            META.pack(len(meta)),
            meta,
            body,
        )
    )


def split_message(kind: int, request: int, meta: bytes, body: bytes) -> list[bytes]:
    """Return a message as frames that keep to MAX_PAYLOAD: one, and as many BODY frames as its body takes."""
    first = MAX_PAYLOAD - META.size - len(meta)
    if len(body) <= first:
        return [message(kind, request, meta, body)]
    frames = [message(kind, request, meta, body[:first], MORE)]
    for start in range(first, len(body), MAX_PAYLOAD):
        more = MORE if start + MAX_PAYLOAD < len(body) else 0
        frames.append(frame(BODY, request, body[start : start + MAX_PAYLOAD], more))
    return frames


def header(data: bytes, known: frozenset[int]) -> tuple[int, int, int, int]:
    """Parse 16 bytes into (kind, flags, length, request); refuse unknown kinds and oversize payloads."""
    kind, flags, zero, length, request = HEADER.unpack(data)
    if kind not in known or flags & ~MORE or zero or length > MAX_PAYLOAD:
        raise WireError(f"bad frame header: kind {kind}, flags {flags}, length {length}")
    return kind, flags, length, request


def split(payload: bytes) -> tuple[bytes, bytes]:
    """Split a payload into (metadata, body)."""
    if len(payload) < META.size:
        raise WireError("payload too short for its metadata length")
    (size,) = META.unpack_from(payload)
    end = META.size + size
    if size > MAX_META or end > len(payload):
        raise WireError(f"metadata length {size} does not fit")
    return payload[META.size : end], payload[end:]


class Parser:
    """Turn a stream of hostile bytes into frames, without doing any input or output itself.

    Beyond what `header` refuses it holds the peer to the sequence rule: a frame that says MORE is
    followed by a BODY frame of the same request and by nothing else, and no BODY frame comes unannounced.
    `limit` bounds the payloads of one message (a frame and its BODY frames) together; what is kept
    between calls never exceeds one frame and one chunk. With `streams`, an ERROR frame may end a REPLY of
    the same request instead of its last BODY frame, and `extend` lets a message that is passed on as it
    comes be longer. After a WireError the stream has no meaning any more: throw the parser away.
    """

    __slots__ = ("_buffer", "_known", "_left", "_limit", "_need", "_open", "_reply", "_streams")

    def __init__(self, known: frozenset[int], limit: int, streams: bool = False) -> None:
        self._known = known
        self._streams = streams
        self._reply = False  # the open message is a REPLY
        self._limit = limit
        self._left = limit  # payload bytes that the open message may still bring
        self._open: int | None = None  # request id of the message whose BODY must come next
        self._buffer = bytearray()  # the beginning of a frame whose end has not arrived
        self._need = HEADER.size  # nothing can be gained from the buffer while it is shorter

    @property
    def idle(self) -> bool:
        """True between messages: no byte of an unfinished frame or message has been seen."""
        return not self._buffer and self._open is None

    def extend(self, size: int) -> None:
        """Let the open message bring `size` bytes more, as that many have been passed on."""
        self._left = min(self._limit, self._left + size)

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """Return the frames that `data` completes, each as (kind, flags, request, payload)."""
        if self._buffer:
            # A bytearray, joined once when it is long enough: a peer that sends byte by byte costs linear
            # time only.
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames = []
        start, end, size = 0, len(data), HEADER.size
        self._need = size
        while end - start >= size:
            kind, flags, zero, length, request = HEADER.unpack_from(data, start)
            if kind not in self._known or flags & ~MORE or zero or length > MAX_PAYLOAD:
                raise WireError(f"bad frame header: kind {kind}, flags {flags}, length {length}")
            if length > (self._left if kind == BODY else self._limit):
                raise WireError(f"message longer than {self._limit} bytes")
            stop = start + size + length
            if stop > end:
                self._need = size + length
                break
            if flags or kind == BODY or self._open is not None:
                self._sequence(kind, flags, length, request)
            frames.append((kind, flags, request, data[start + size : stop]))
            start = stop
        if start < end:
            self._buffer += data[start:]
        return frames

    def _sequence(self, kind: int, flags: int, length: int, request: int) -> None:
        if kind == ERROR and self._streams and self._reply and request == self._open and not flags:
            self._open = None
            return
        if (kind == BODY) != (self._open is not None):
            raise WireError("unannounced BODY frame" if kind == BODY else f"kind {kind} instead of BODY")
        if kind != BODY:
            self._left = self._limit
            self._reply = kind == REPLY
        elif request != self._open:
            raise WireError(f"BODY of request {request} inside request {self._open}")
        if flags and not length:
            raise WireError("empty frame that announces more")  # such frames could go on for ever
        self._left -= length
        self._open = request if flags else None
