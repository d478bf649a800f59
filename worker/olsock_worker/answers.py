"""What a sandbox answers to one call beside a plain result: a whole reply with headers, a stream, or a WebSocket.

One object an answer, which is given its frames as they come and raises `WireError` (or an error of msgspec) for what
condemns the sandbox. The parser has seen to it that BODY frames follow only what announced them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from olsock.runtime import wire
from olsock.runtime.wire import WireError
from olsock_worker import heads
from olsock_worker.conversations import Conversation
from olsock_worker.streams import Stream

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.heads import Head
    from olsock_worker.instances import Instance
    from olsock_worker.settings import Http


class TooLargeError(WireError):
    """A whole reply is longer than any may be: a mistake, as a rule, and no attack."""


class Limits(NamedTuple):
    """Most bytes of one answer, or of one message of a WebSocket."""

    reply: int
    stream: int
    websocket_message: int

    @classmethod
    def of(cls, http: Http) -> Limits:
        """Take those of the settings."""
        return cls(int(http.reply), int(http.stream), int(http.websocket_message))


class Answer(Protocol):
    """An answer in the making."""

    def frame(self, kind: int, flags: int, payload: bytes, clean: bool) -> None:
        """Take the next frame; `clean` if no byte has come after it."""

    def failed(self) -> None:
        """The function says that it has failed; raises `WireError` where that cannot be."""

    def abandoned(self) -> None:
        """The client has gone."""

    def drained(self) -> None:
        """The sandbox has taken all that was sent to it."""


def begin(instance: Instance, call: Call, kind: int, flags: int, payload: bytes, clean: bool) -> None:
    """Take the first frame of an answer; `instance.answer` takes the others, if there are to be any."""
    if kind == wire.WS_ACCEPT and call.handshake is not None:
        instance.answer = Conversation(instance, call, payload, flags)
        return
    if kind != wire.REPLY:
        raise WireError(f"frame of kind {kind} out of turn")
    meta, body = wire.split(payload)
    head = heads.read(meta)
    if head.stream and not head.fits:
        raise WireError("a stream with a content-length that is none")
    answer: Answer = _Streamed(instance, call, head) if head.stream else _Whole(instance, call, head)
    instance.answer = answer
    answer.frame(wire.BODY, flags, body, clean)


class _Whole:
    """A reply that goes out once all of it has come."""

    __slots__ = ("_body", "_call", "_head", "_instance")

    def __init__(self, instance: Instance, call: Call, head: Head) -> None:
        self._instance, self._call, self._head = instance, call, head
        self._body: bytes | bytearray = b""

    def frame(self, _kind: int, flags: int, payload: bytes, clean: bool) -> None:
        if not self._body:
            self._body = payload
        else:  # not a list of parts: they may be very many and very small
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += payload
        if len(self._body) > self._instance.limits.reply:
            raise TooLargeError(f"a reply longer than {self._instance.limits.reply} bytes")
        if not flags:
            body, head, call = bytes(self._body), self._head, self._call
            self._instance.end_answer()
            fits = head.fits and (head.length in (None, len(body)) or head.bodyless(call.method))
            send = partial(call.answer, head, body) if fits else None
            self._instance.function.passed_on(self._instance, call, head.status, send, clean)

    def failed(self) -> None:
        raise WireError("an error inside of a reply")

    def abandoned(self) -> None:
        pass  # it has been made already

    def drained(self) -> None:
        pass


class _Streamed:
    """A reply that goes out as it comes."""

    __slots__ = ("_call", "_instance", "_stream")

    def __init__(self, instance: Instance, call: Call, head: Head) -> None:
        self._instance, self._call = instance, call
        self._stream = Stream(instance, call, head, instance.limits.stream)
        call.on_abandon = instance.abandoned
        if call.connection is None:
            self.abandoned()

    def frame(self, _kind: int, flags: int, payload: bytes, clean: bool) -> None:
        self._stream.write(payload)
        if not flags:
            self._stream.check()
            self._stream.release()
            self._instance.end_answer()
            stream = self._stream
            self._instance.function.passed_on(self._instance, self._call, stream.status, stream.finish, clean)

    def failed(self) -> None:
        self._stream.release()

    def abandoned(self) -> None:
        self._instance.push(wire.DISCONNECT)
        self._stream.release()
        self._instance.hurry()

    def drained(self) -> None:
        pass
