"""Replies that are written while they are made: each part as it comes, and none faster than the client reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from olsock.runtime.wire import WireError

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Client
    from olsock_worker.heads import Head
    from olsock_worker.instances import Instance


class Source(Protocol):
    """Who makes a reply that is written in parts, and waits while its client does not read."""

    def hold(self) -> None:
        """The client does not read."""

    def resume(self) -> None:
        """The client reads again."""


class Stream:
    """The body of one reply, between the sandbox that makes it and the connection that it goes to.

    It takes the connection's place in its call, so whatever ends the call before the body is whole cuts the connection.
    """

    __slots__ = ("_call", "_chunked", "_connection", "_instance", "_left", "_mute", "_open_end", "_short", "status")

    def __init__(self, instance: Instance, call: Call, head: Head, limit: int) -> None:
        self.status = head.status
        self._instance: Instance | None = instance  # None: it may be at work for somebody else
        self._call = call
        self._left = limit  # bytes that may still come
        self._mute = head.bodyless(call.method)
        self._short = 0 if self._mute or head.length is None else head.length  # bytes that are missing
        if not self._mute and head.length is not None:
            if head.length > limit:
                raise WireError(f"a stream longer than {limit} bytes")
            self._left = head.length
        # Without a length and without chunks the end of the connection is the end of the body.
        self._open_end = not self._mute and head.length is None and call.version == "1.0"
        self._connection = cast("Client | None", call.connection)
        self._chunked = False
        if self._connection is not None:
            call.connection = self
            self._chunked = self._connection.begin(call, self, head)

    def write(self, data: bytes) -> None:
        """Pass a part on; raises `WireError` if there is too much."""
        self._left -= len(data)
        if self._left < 0:
            raise WireError("a stream longer than it may be, or than its content-length says")
        self._short = max(0, self._short - len(data))
        if not data or self._mute or self._call.connection is None or self._connection is None:
            return
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def check(self) -> None:
        """Raise `WireError` if the body has ended before its length."""
        if self._short:
            raise WireError("a stream shorter than its content-length says")

    def finish(self) -> None:
        """End it as the function did."""
        self._instance = None
        if self._call.connection is not None and self._connection is not None:
            self._call.connection = None
            self._connection.finish(self._call, b"0\r\n\r\n" if self._chunked and not self._mute else b"")

    def reply(self, _call: Call, _status: int, _content_type: bytes, _body: bytes, _extra: bytes) -> None:
        """Cut the connection: something went wrong, and it is too late to say what."""
        self._instance = None
        if self._connection is not None:
            self._connection.cut(not self._open_end)

    # -- pressure -----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """The client does not read: take no more from the sandbox, which then waits as well."""
        if self._instance is not None:
            self._instance.hold()

    def resume(self) -> None:
        """The client reads again."""
        if self._instance is not None:
            self._instance.resume()

    def release(self) -> None:
        """The sandbox has sent all: it shall not wait for this client any longer."""
        if self._instance is not None:
            self._instance.resume()
            self._instance = None
