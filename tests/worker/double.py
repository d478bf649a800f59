"""A function that takes the channel over while it is imported, and then sends whatever a request tells it to.

So it can break every rule of the protocol, and needs no runtime that knows the contract it claims. A request's body (of a
GET the query) is a script, run with `r`, the request, and the functions below.
"""

from __future__ import annotations

from urllib.parse import quote

# How code in a sandbox finds the channel to the host, which nobody has told it of.
CHANNEL = """
import os

def channel():
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + fd).startswith("socket:"):
                return int(fd)
        except OSError:
            pass
"""
DOUBLE = (
    CHANNEL
    + '''
import json, os, struct, sys, time
from urllib.parse import unquote

HEADER = struct.Struct("<BBHIQ")
REQUEST, BODY, READY, REPLY, ERROR, ACCEPT, MESSAGE, CLOSE, DISCONNECT = 2, 3, 4, 5, 6, 9, 10, 11, 12
MORE = 1


FD = channel()
state = {}  # what one request leaves to the next
config = None
buffer = b""
frame = sys._getframe()
while frame is not None:  # what the runtime has read together with CONFIG
    data = frame.f_locals.get("data")
    if type(data) is bytes and data[:1] == b"\\x01" and len(data) >= 16:
        config = json.loads(data[20:20 + struct.unpack_from("<I", data, 16)[0]])
        buffer = data[16 + HEADER.unpack_from(data)[3]:]
    frame = frame.f_back


def read():
    """Return the next frame; the host's end of file ends the process."""
    global buffer
    while True:
        if len(buffer) >= 16:
            kind, flags, _, length, number = HEADER.unpack_from(buffer)
            if len(buffer) >= 16 + length:
                payload, buffer = buffer[16:16 + length], buffer[16 + length:]
                return kind, flags, number, payload
        data = os.read(FD, 1 << 20)
        if not data:
            os._exit(0)
        buffer += data


def message():
    """Return the next frame with all its BODY frames: kind, metadata, body."""
    kind, flags, number, payload = read()
    parts = [payload]
    while flags:
        _, flags, _, more = read()
        parts.append(more)
    payload = b"".join(parts)
    if kind == DISCONNECT:
        return kind, None, b""
    (size,) = struct.unpack_from("<I", payload)
    return kind, json.loads(payload[4:4 + size]), payload[4 + size:]


def raw(data):
    view = memoryview(data)
    while view:
        view = view[os.write(FD, view):]


class Request:
    def __init__(self, number, meta, body):
        self.number, self.meta, self.body = number, meta, body

    def send(self, kind, payload=b"", flags=0, number=None):
        raw(HEADER.pack(kind, flags, 0, len(payload), self.number if number is None else number) + payload)

    def tell(self, kind, meta, body=b"", flags=0):
        text = meta if type(meta) is bytes else json.dumps(meta).encode()
        first = (1 << 20) - 4 - len(text)
        rest = [body[start:start + (1 << 20)] for start in range(first, len(body), 1 << 20)]
        self.send(kind, struct.pack("<I", len(text)) + text + body[:first], MORE if rest else flags)
        for number, part in enumerate(rest, 1):
            self.send(BODY, part, MORE if number < len(rest) else flags)

    def reply(self, status=200, headers=(), body=b"", stream=False, flags=0):
        self.tell(REPLY, {"status": status, "headers": [list(each) for each in headers], "stream": stream}, body, flags)

    def stream(self, parts, status=200, headers=(), end=True):
        self.reply(status, headers, stream=True, flags=MORE)
        for part in parts:
            self.part(part)
        if end:
            self.send(BODY)

    def part(self, data):
        for start in range(0, len(data), 1 << 20):
            self.send(BODY, data[start:start + (1 << 20)], MORE)

    def show(self):
        self.reply(200, [("content-type", "application/json")], json.dumps([self.meta, self.body.decode("latin-1")]).encode())


def serve(contract):
    text = json.dumps({"init_ms": 1.0, "contract": contract}).encode()
    raw(HEADER.pack(READY, 0, 0, 4 + len(text), 0) + struct.pack("<I", len(text)) + text)
    while True:
        kind, flags, number, payload = read()
        parts = [payload]
        while flags:
            _, flags, _, more = read()
            parts.append(more)
        if kind != REQUEST:
            continue  # of a request that has ended here: the host did not know that yet
        payload = b"".join(parts)
        (size,) = struct.unpack_from("<I", payload)
        r = Request(number, json.loads(payload[4:4 + size]), payload[4 + size:])
        script = r.body.decode() or unquote(r.meta["query"]) or "r.show()"
        exec(script, {**globals(), "r": r})


def f(event):
    return "not taken over"
'''
)


def double(contract: str) -> str:
    """Return the code of a function that claims to speak `contract`."""
    return DOUBLE + f"\n\nserve({contract!r})\n"


def script(text: str) -> str:
    """Return a script as a query."""
    return "?" + quote(text)
