"""The runtime of sandboxes in a process of its own, without a sandbox: what a host says to it and hears from it."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from olsock import runtime
from olsock.channel import Channel
from olsock.errors import InvocationError
from olsock.runtime import wire

RUNTIME = Path(runtime.__file__).parent
SOON = 20.0


class Box:
    """The handler program in a process of its own, with this end of its channel and of its log."""

    def __init__(self, code: Path, python: str = sys.executable, nofile: int | None = None) -> None:
        self.sock, theirs = socket.socketpair()
        self.log_fd, log = os.pipe()
        code.mkdir(exist_ok=True)
        self.code = code

        def move() -> None:
            os.dup2(theirs.fileno(), 3)
            os.closerange(4, 1024)
            if nofile is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        self.process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(RUNTIME / "handler.py")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
            preexec_fn=move,  # noqa: PLW1509 - the channel has to be fd 3, as in a sandbox
        )
        theirs.close()
        os.close(log)
        os.set_blocking(self.log_fd, False)
        self.channel = Channel(self.sock)

    def start(self, source: str, handler: str = "f:f", **config: Any) -> Box:
        (self.code / "f.py").write_text(textwrap.dedent(source))
        self.channel.configure({"code": str(self.code), "handler": handler, **config})
        return self

    def invoke(self, event: Any = None, **meta: Any) -> Any:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        reply, answer = self.channel.invoke(body, meta, SOON)
        assert reply == {"status": 200, "content_type": "application/json"}
        return json.loads(answer)

    def fails(self, event: Any = None) -> InvocationError:
        with pytest.raises(InvocationError) as caught:
            self.invoke(event)
        return caught.value

    def log(self) -> str:
        try:
            return os.read(self.log_fd, 1 << 20).decode(errors="surrogateescape")
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.sock.close()
        os.close(self.log_fd)
        self.process.kill()
        self.process.wait()


@dataclass
class Answer:
    """What came back for one request of a web contract."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    stream: bool = False
    error: dict[str, Any] | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def header(self, name: str) -> str | None:
        found = [value for each, value in self.headers if each.lower() == name]
        return ", ".join(found) if found else None


class WebBox(Box):
    """The same, spoken to in frames: requests of HTTP and WebSockets, and generators."""

    def __init__(self, code: Path, python: str = sys.executable, nofile: int | None = None) -> None:
        super().__init__(code, python, nofile)
        self.parser = wire.Parser(wire.FROM_BOX, 1 << 30, streams=True)
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.number = 0

    def begin(self, source: str, handler: str = "f:f", **config: Any) -> str:
        """Start, and return the contract that was found."""
        self.start(source, handler, **config)
        found = self.channel.wait_ready(SOON).contract
        self.sock.settimeout(SOON)
        return found

    def send(self, kind: int, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a message for the request that runs."""
        if meta is None:
            self.sock.sendall(wire.frame(kind, self.number, body))
        else:
            encoded = json.dumps(meta).encode()
            self.sock.sendall(b"".join(wire.split_message(kind, self.number, encoded, body)))

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"", **meta: Any) -> None:
        """Send a request, and wait for nothing."""
        self.number += 1
        headers = meta.pop("headers", [["host", "example.org"]])
        told = {"web": True, "method": method, "path": path, "query": "", "headers": headers, "scheme": "http"}
        told |= {"http_version": "1.1", "server": ["example.org", 80], "client": ["192.0.2.1", 40000], **meta}
        self.send(wire.REQUEST, told, body)

    def frame(self) -> tuple[int, int, bytes]:
        """Return the next frame of the running request: kind, flags and payload."""
        while not self.frames:
            data = self.sock.recv(65536)
            assert data, f"the runtime has ended: {self.log()}"
            self.frames += self.parser.feed(data)
        kind, flags, request, payload = self.frames.pop(0)
        assert request == self.number
        return kind, flags, payload

    def hear(self) -> tuple[int, dict[str, Any], bytes]:
        """Return the next message, whole: kind, metadata and body."""
        kind, flags, payload = self.frame()
        meta, body = wire.split(payload)
        parts = [body]
        while flags:
            _, flags, payload = self.frame()
            parts.append(payload)
        return kind, json.loads(meta), b"".join(parts)

    def answer(self) -> Answer:
        """Take the whole answer to the request that runs."""
        found = Answer()
        kind, flags, payload = self.frame()
        meta, body = wire.split(payload)
        if kind == wire.ERROR:
            found.error = json.loads(meta)
            return found
        assert kind == wire.REPLY
        told = json.loads(meta)
        assert told.keys() == {"status", "headers", "stream"}
        found.status, found.stream = told["status"], told["stream"]
        found.headers = [(name, value) for name, value in told["headers"]]
        found.parts = [body] if body else []
        while flags:
            kind, flags, payload = self.frame()
            if kind == wire.ERROR:
                found.error = json.loads(wire.split(payload)[0])
            elif payload:
                found.parts.append(payload)
        return found

    def request(self, method: str = "GET", path: str = "/", body: bytes = b"", **meta: Any) -> Answer:
        """Send a request and take its answer."""
        self.ask(method, path, body, **meta)
        return self.answer()

    def call(self, event: Any = None) -> Answer:
        """Send an event and take its answer, which is a stream's."""
        self.number += 1
        self.send(wire.REQUEST, {}, json.dumps(event).encode())
        return self.answer()
