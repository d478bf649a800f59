"""WSGI applications (PEP 3333): the request as `environ`, the reply as what they start, write and return.

Their close methods are called whatever happens, and before the reply ends: the request is over when the application is.
"""

from __future__ import annotations

import io
import sys
from urllib.parse import unquote_to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, reply, wire
else:
    import _olsock_handler as handler
    import _olsock_wire as wire

    reply = handler.neighbour("reply")

if TYPE_CHECKING:
    from typing import Any, Iterator

BLOCK = 64 * 1024


def take_over(server: handler.Server) -> None:
    """Have `server` answer with its application."""

    def answer(request: int, payload: bytes) -> None:
        _Call(server, request).answer(payload)

    server.answer = answer  # type: ignore[method-assign]


def environ(config: dict[str, Any], meta: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Return what an application is told of a request. Text is bytes as latin-1, as the PEP has it."""
    host, port = meta.get("server") or ("localhost", 80)
    root = meta.get("root_path", config.get("root_path", ""))
    told: dict[str, Any] = {
        "REQUEST_METHOD": meta.get("method", "GET"),
        "SCRIPT_NAME": decoded(root),
        "PATH_INFO": decoded(meta.get("path", "")),
        "QUERY_STRING": meta.get("query", ""),
        "REQUEST_URI": root + meta.get("path", "") + ("?" if meta.get("query") else ""),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{meta.get('http_version', '1.1')}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": meta.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,  # there may be other instances
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }
    told["REQUEST_URI"] += meta.get("query", "")
    if meta.get("client"):
        told["REMOTE_ADDR"], told["REMOTE_PORT"] = meta["client"][0], str(meta["client"][1])
    for name, value in meta.get("headers") or ():
        # With an underscore, `x_user` would pass for `x-user`; and a `Proxy` header would become HTTP_PROXY.
        if "_" in name or name in ("proxy", "transfer-encoding"):
            continue
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        told[key] = f"{told[key]}{'; ' if name == 'cookie' else ','}{value}" if key in told else value
    if body or "CONTENT_LENGTH" in told:
        told["CONTENT_LENGTH"] = str(len(body))  # it may have come in chunks
    return told


def decoded(path: str) -> str:
    """Return a path without percent-encoding, its bytes as latin-1."""
    return unquote_to_bytes(path).decode("latin-1")


class FileWrapper:
    """Gives a file's contents in blocks."""

    def __init__(self, file: Any, size: int = BLOCK) -> None:
        self._file, self._size = file, size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self._file.read(self._size)
        if not data:
            raise StopIteration
        return data


class _Call:
    """One call of an application."""

    def __init__(self, server: handler.Server, request: int) -> None:
        self._server, self._request = server, request
        self._reply = reply.Reply(server.channel, request)
        self._held: bytes | None = None  # a body that is whole: sent once the application is done

    def answer(self, payload: bytes) -> None:
        server, kind = self._server, "handler"
        try:
            text, body = wire.split(payload)
            meta = handler._scan(text.decode(), 0)[0]
            if not meta.get("web") or meta.get("type") == "websocket":
                kind = "malformed"
                raise ValueError("a WSGI application takes HTTP requests: this one is an event or a WebSocket")
            self._reply = reply.Reply(server.channel, self._request, meta.get("method", "GET"))
            found = server.function(environ(server.config, meta, body), self._start)  # type: ignore[misc]
            try:
                self._send(found)
            finally:
                self._close(found)
            if server.channel.forked:
                server.leave_if_forked(None)
            server.streams.flush()
            if self._held is not None and not self._reply.sent:
                self._reply.whole(self._held)
            else:
                self._reply.end()
        except BaseException as error:
            self._reply.over = True
            server.fail(self._request, error, "serialize" if isinstance(error, reply.BadReply) else kind)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info:
            try:
                if self._reply.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # or the traceback would hold on to this frame
        elif self._reply.headed:
            raise AssertionError("start_response was called twice without exc_info")
        if type(status) is not str or not (status[:3].isascii() and status[:3].isdigit() and status[3:4] in ("", " ")):
            raise reply.BadReply(f"status {status!r}: expected something like '200 OK'")
        if not status.isprintable():
            raise reply.BadReply(f"status {status!r} has a line break in it")
        self._reply.head(int(status[:3]), headers)
        return self._reply.part

    def _send(self, found: Any) -> None:
        """Send what the application returned; what is whole is only held."""
        if isinstance(found, (str, bytes)) or not hasattr(found, "__iter__"):
            raise reply.BadReply(f"the application returned {type(found).__name__}: expected an iterable of bytes")
        if type(found) in (list, tuple):
            for chunk in found:
                self._reply.check(chunk)
            self._held = b"".join(found)
            if self._reply.sent and self._held:  # what was written came first
                self._reply.part(self._held)
            return
        for chunk in found:
            if not chunk and type(chunk) is bytes:
                continue
            self._reply.check(chunk)
            if self._reply.empty:
                return
            if self._held is None and not self._reply.sent and self._reply.left == len(chunk):
                self._held = chunk
                continue
            if self._held is not None:
                raise reply.BadReply("the body is longer than its content-length promises")
            self._reply.part(chunk)
            if reply.is_abandoned(self._server.channel, self._request):
                return

    def _close(self, found: Any) -> None:
        close = getattr(found, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:
            if self._server.channel.forked:
                raise
            self._server.report(error)  # the reply stands
