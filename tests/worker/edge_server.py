"""The HTTP edge on a real loopback socket, with a handler of the test's own instead of functions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import uvloop

from olsock_worker.calls import Call
from olsock_worker.edge import Edge
from olsock_worker.responses import JSON
from olsock_worker.settings import Http


class EdgeServer:
    """Runs in a thread of its own; remembers the calls that reached the handler."""

    def __init__(self, http: Http, handler: Callable[[Call], None] | None = None) -> None:
        self.calls: list[Call] = []
        self.refused: list[int] = []
        self.waiting: list[Call] = []  # calls that the handler keeps without an answer
        self._handler = handler
        self._http = http
        self._loop: asyncio.AbstractEventLoop
        self.edge: Edge
        self.port = 0

    def _handle(self, call: Call) -> None:
        self.calls.append(call)
        if self._handler is not None:
            self._handler(call)
        elif call.target.startswith(b"/wait"):
            self.waiting.append(call)
        else:
            call.reply(200, JSON, call.method.encode() + b" " + call.target + b" " + call.body)

    @contextlib.contextmanager
    def running(self) -> Iterator[EdgeServer]:
        ready: Future[None] = Future()
        thread = threading.Thread(target=lambda: uvloop.run(self._serve(ready)))
        thread.start()
        ready.result(10.0)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10.0)

    async def _serve(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.edge = Edge(self._http, self._handle, self.refused.append)
        server = await self._loop.create_server(self.edge.protocol, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set_result(None)
        await self._stop.wait()
        server.close()
        for connection in list(self.edge._connections):
            connection._transport.abort()
        await asyncio.sleep(0)

    def do(self, function: Callable[[], None]) -> None:
        """Run something on the edge's loop."""
        done: Future[None] = Future()

        def run() -> None:
            function()
            done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(10.0)

    def connect(self, timeout: float = 10.0) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def exchange(self, data: bytes) -> bytes:
        """Send bytes, then read until the server closes or has nothing more to say for half a second."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            return read_all(sock)


def read_all(sock: socket.socket, quiet: float = 0.5) -> bytes:
    """Read until the end, or until nothing came for `quiet` seconds."""
    sock.settimeout(quiet)
    got = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while data := sock.recv(65536):
            got += data
    return got


def read_reply(sock: socket.socket) -> bytes:
    """Read one reply with a content length."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = sock.recv(65536)
        if not data:
            return got
        got += data
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    rest = bytearray(body)
    while len(rest) < length and (data := sock.recv(1 << 20)):
        rest += data
    return head + b"\r\n\r\n" + rest
