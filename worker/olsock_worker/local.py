"""The control API as the command line uses it: by the socket in a state directory, or over the network with a token."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from olsock_worker.state import SOCKET

_V15 = "/2015-03-31/functions"
_LETTERS = "/dead-letters"


class LocalError(Exception):
    """An operation was refused: its type, its status, and a message for people."""

    def __init__(self, kind: str, status: int, message: str) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


class _Connection(http.client.HTTPConnection):
    """Over the socket of a directory, however long its path is."""

    def __init__(self, state: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._state = state

    def connect(self) -> None:
        directory = os.open(self._state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)


class Local:
    """One worker. Raises `LocalError` for what it refuses, `OSError` where it cannot be reached."""

    def __init__(self, state: str, timeout: float = 960.0) -> None:
        self._state, self._timeout = state, timeout
        self._headers: dict[str, str] = {}

    def _connect(self) -> http.client.HTTPConnection:
        return _Connection(self._state, self._timeout)

    def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Send a request; return what came back."""
        connection = self._connect()
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            data = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the worker answered with no HTTP: {error!r}") from None
        finally:
            connection.close()
        if response.status >= 300:
            raise LocalError(response.headers.get("x-amzn-errortype", ""), response.status, _message(data))
        return response.headers, data

    def ask(self, method: str, name: str = "", part: str = "", body: object = None, **query: str | None) -> Any:
        """Carry out an operation on a function; return its answer."""
        given = {key: value for key, value in query.items() if value}
        path = _V15 + (f"/{quote(name, safe='')}" if name else "") + (f"/{part}" if part else "")
        sent = b"" if body is None else json.dumps(body).encode()
        _, data = self.exchange(method, path + (f"?{urlencode(given)}" if given else ""), sent)
        return json.loads(data) if data else None

    def every(self, field: str, name: str = "", part: str = "") -> Iterator[Any]:
        """Yield all of a list, page by page."""
        marker = None
        while True:
            page = self.ask("GET", name, part, Marker=marker)
            yield from page[field]
            marker = page.get("NextMarker")
            if not marker:
                return

    def invoke(
        self, name: str, event: bytes, qualifier: str | None, tail: bool
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Call a function; return headers and what it answered."""
        path = f"{_V15}/{quote(name, safe='')}/invocations" + (
            f"?{urlencode({'Qualifier': qualifier})}" if qualifier else ""
        )
        return self.exchange("POST", path, event, {"x-amz-log-type": "Tail"} if tail else {})

    def send(self, name: str, event: bytes, qualifier: str | None) -> str:
        """Have a function called later; return the id of the request."""
        path = f"{_V15}/{quote(name, safe='')}/invocations" + (
            f"?{urlencode({'Qualifier': qualifier})}" if qualifier else ""
        )
        headers, _ = self.exchange("POST", path, event, {"x-amz-invocation-type": "Event"})
        return str(headers["x-amzn-requestid"])

    def log(self, name: str, after: str) -> Any:
        """Return lines of a function's log that come after a position: `Lines`, `Next` position, and whether `Missed` some."""
        _, data = self.exchange("GET", f"/logs/{quote(name, safe='')}?{urlencode({'After': after})}")
        return json.loads(data)

    def dead_letters(self, name: str | None) -> Iterator[Any]:
        """Yield dead letters, those of one function or all, page by page."""
        marker = None
        while True:
            given = {key: value for key, value in (("FunctionName", name), ("Marker", marker)) if value}
            _, data = self.exchange("GET", _LETTERS + (f"?{urlencode(given)}" if given else ""))
            page = json.loads(data)
            yield from page["DeadLetters"]
            marker = page.get("NextMarker")
            if not marker:
                return

    def dead_letter(self, method: str, identity: str, part: str = "") -> Any:
        """Carry out an operation on one dead letter; return its answer."""
        _, data = self.exchange(method, f"{_LETTERS}/{quote(identity, safe='')}{part}")
        return json.loads(data) if data else None


class Remote(Local):
    """One that is reached over the network. Redirects are not followed: they would get the token as well."""

    def __init__(self, url: str, token: str, timeout: float = 960.0) -> None:
        """Raises `LocalError` if `url` is none."""
        super().__init__("", timeout)
        found = urlsplit(url)
        try:
            self._host, self._port, scheme = found.hostname or "", found.port, found.scheme
        except ValueError:
            scheme = ""
        if scheme not in ("http", "https") or not self._host or found.path.strip("/") or found.query:
            raise LocalError("", 0, f"{url}: expected an address such as https://host:port")
        self._tls = scheme == "https"
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout)


def _message(data: bytes) -> str:
    try:
        found = json.loads(data)
        if "error" in found:
            return str(found["error"]["message"])
        return str(found.get("message") or found.get("Message"))
    except (ValueError, AttributeError, KeyError, TypeError):
        return data.decode(errors="replace")[:1000]
