"""The library's end of a handler's channel: one request at a time, and no trust in what comes back.

Frames are described in olsock/runtime/wire.py. A sandbox may send exactly STARTED (or FAULT), READY (or ERROR) once, and
exactly one answer per request; anything else condemns it. Plain recv(2) has no room for ancillary data, so the kernel
closes descriptors that a sandbox tries to pass.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, Literal, NoReturn

import msgspec

from olsock import packets, readiness, web
from olsock.deadline import Deadline
from olsock.errors import DeadlineError, InvocationError, OlsockError, ProtocolError, SandboxDeadError
from olsock.readiness import Ready
from olsock.runtime import wire

MAX_REPLY = 16 * 1024 * 1024
FAULT_SIZE = 256  # sizeof(struct ols_err)
CHUNK = 64 * 1024
PATIENCE = 1.0  # seconds for a stream to end that nobody reads any more


class ReplyMeta(msgspec.Struct):
    """Metadata of REPLY."""

    status: int
    content_type: str


class ErrorMeta(msgspec.Struct):
    """Metadata of ERROR."""

    kind: Literal["handler", "malformed", "init", "serialize"]
    name: str
    message: str
    traceback: str = ""


_reply = msgspec.json.Decoder(ReplyMeta).decode
_error = msgspec.json.Decoder(ErrorMeta).decode


class Channel:
    """Speaks to one handler over `sock`, which stays the caller's to close.

    `aux` are descriptors to keep empty while waiting (a handler that prints more than its pipe holds would wait for
    us while we wait for it), each with what empties it; that returns False once there is nothing more to come.

    After any error but an `InvocationError` about one invocation the channel is condemned: its sandbox can only be
    destroyed. Safe to share between threads, which take turns.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_reply: int = MAX_REPLY,
        aux: Mapping[int, Callable[[], bool]] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_reply = max_reply
        self._parser = wire.Parser(wire.FROM_BOX, max_reply + wire.MAX_META + wire.META.size, streams=True)
        self._frames: deque[tuple[int, int, int, bytes]] = deque()
        self._started = False
        self._ready: Ready | None = None
        self._condemned = ""  # why
        self._open = False  # a reply has begun whose end has not come
        self._aux = dict(aux or {})
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        for fd in self._aux:
            self._poll.register(fd, select.POLLIN)
        self._turn = threading.Lock()

    def configure(self, config: Mapping[str, Any], timeout: float | None = 10.0) -> None:
        """Send CONFIG, the first frame. Does not wait for the import it causes: see `wait_ready`."""
        frame = wire.message(wire.CONFIG, 0, json.dumps(config).encode())
        with _Turn(self, timeout) as deadline:
            self._send([frame], deadline)

    def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the runtime runs inside the finished sandbox, which is before the handler's import.

        Raises `KernelError` if the set-up failed.
        """
        with _Turn(self, timeout) as deadline:
            self._await_started(deadline)

    def wait_ready(self, timeout: float | None = None) -> Ready:
        """Wait until the handler is imported; return READY's metadata. Later calls return it again.

        Raises `InvocationError` of kind init if the import failed, and `KernelError` if the sandbox's set-up did.
        """
        with _Turn(self, timeout) as deadline:
            return self._await_ready(deadline)

    def invoke(
        self, event: bytes, meta: Mapping[str, Any], timeout: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Send one request whose body is `event` (JSON text, or nothing) and return the reply's (metadata, body).

        Raises `InvocationError` if the handler could not answer. A channel whose handler is still being imported is
        waited for; that counts against `timeout`, in seconds. Of a function that generates, the whole stream is returned.
        """
        request, frames = _request(meta, event)
        with _Turn(self, timeout) as deadline:
            if self._ready is not None:
                self._refuse_unasked()
            self._send(frames, deadline)
            if self._await_ready(deadline).contract == "event":
                reply, body = self._await_reply(request, deadline)
            else:
                head, *parts = self._answer(request, "", deadline, self._max_reply)
                kinds = [value for name, value in head.headers if name == "content-type"]
                reply = {"status": head.status, "content_type": kinds[0] if kinds else "", "stream": True}
                body = b"".join(parts)
            self._check_idle()
            return reply, body

    def exchange(
        self,
        body: bytes,
        meta: Mapping[str, Any],
        timeout: float | None = None,
        *,
        contracts: Collection[str],
        limit: int | None = None,
    ) -> Generator[Any, None, None]:
        """Send one request, and yield the head of the reply (`web.Head`) first, then the parts of its body as they come.

        `contracts` are those of functions that this request is for, `limit` bounds the body in bytes. The channel is taken
        until the end; closing the generator before that tells the sandbox that nobody reads, and waits a moment for its end.
        """
        request, frames = _request(meta, body)
        with _Turn(self, timeout) as deadline:
            contract = self._await_ready(deadline).contract
            if contract not in contracts:
                raise InvocationError("malformed", f"a function of contract {contract!r} is not called like this")
            self._refuse_unasked()
            self._send(frames, deadline)
            answer = self._answer(request, str(meta.get("method", "")), deadline, limit)
            head = next(answer)
            try:
                yield head
                yield from answer
            except GeneratorExit:
                answer.close()
                left = deadline.seconds()
                self._hang_up(request, Deadline(PATIENCE if left is None else min(PATIENCE, left)))
                return
            self._check_idle()

    # -- frames -------------------------------------------------------------------------------------------------------

    def _await_ready(self, deadline: Deadline) -> Ready:
        if self._ready is not None:
            return self._ready
        self._await_started(deadline)
        kind, flags, request, payload = self._next(deadline)
        if flags or request:
            self._refuse(f"frame of request {request}, flags {flags} before READY")
        if kind == wire.ERROR:
            self._raise_error(payload, init=True)
        if kind != wire.READY:
            self._refuse(f"frame of kind {kind} before READY")
        ready: Ready = self._metadata(payload, readiness.decode, empty=True)[0]
        self._ready = ready
        return ready

    def _await_started(self, deadline: Deadline) -> None:
        if self._started:
            return
        kind, flags, request, payload = self._next(deadline)
        if flags or request:
            self._refuse(f"first frame is of request {request}, flags {flags}")
        if kind == wire.FAULT and len(payload) == FAULT_SIZE:
            raise packets.error(payload)
        if kind != wire.STARTED or payload:
            self._refuse(f"first frame is of kind {kind}")
        self._started = True

    def _await_reply(self, request: int, deadline: Deadline) -> tuple[dict[str, Any], bytes]:
        kind, flags, answered, payload = self._next(deadline)
        if answered != request or kind not in (wire.REPLY, wire.ERROR):
            self._refuse(f"frame of kind {kind} for request {answered}, out of turn")
        if kind == wire.ERROR:
            self._end_with_error(flags, payload)
        meta, body = self._metadata(payload, _reply)
        if not 100 <= meta.status <= 599 or not meta.content_type.isascii() or not meta.content_type.isprintable():
            self._refuse("reply with an impossible status or content type")
        parts, size = [body], len(body)
        while flags:
            kind, flags, _, payload = self._next(deadline)
            if kind != wire.BODY:
                self._refuse("a reply to an event that breaks off")
            parts.append(payload)
            size += len(payload)
        if size > self._max_reply:
            self._refuse(f"reply longer than {self._max_reply} bytes")
        return {"status": meta.status, "content_type": meta.content_type}, b"".join(parts)

    def _answer(self, request: int, method: str, deadline: Deadline, limit: int | None) -> Generator[Any, None, None]:
        """Yield the head of a reply with headers, then the parts of its body."""
        kind, flags, answered, payload = self._next(deadline)
        if answered != request or kind not in (wire.REPLY, wire.ERROR):
            self._refuse(f"frame of kind {kind} for request {answered}, out of turn")
        if kind == wire.ERROR:
            self._end_with_error(flags, payload)
        (head, promised), part = self._metadata(payload, web.decode)
        if method == "HEAD" or head.status in web.BODYLESS:
            promised = 0
        if not head.stream:
            limit = self._max_reply
        self._open = bool(flags)
        yield head
        size = 0
        while True:
            size += len(part)
            if (promised is not None and size > promised) or (limit is not None and size > limit):
                self._refuse("a body longer than its content-length, or than can be taken")
            if part:
                self._parser.extend(len(part))
                yield part
            if not flags:
                break
            kind, flags, _, part = self._next(deadline)  # the parser lets nothing else of another request follow
            self._open = bool(flags)
            if kind == wire.ERROR:
                self._end_with_error(flags, part)
        if promised is not None and size != promised:
            self._refuse(f"a body of {size} bytes with a content-length of {promised}")

    def _end_with_error(self, flags: int, payload: bytes) -> NoReturn:
        self._open = False
        if flags or self._frames or not self._parser.idle:
            self._refuse("an error is one frame, and the last one")
        self._raise_error(payload, init=False)

    def _hang_up(self, request: int, deadline: Deadline) -> None:
        """Have a reply that has begun end, and take what is left of it."""
        if self._open:
            self._send([wire.frame(wire.DISCONNECT, request)], deadline)
        while self._open:
            kind, flags, _, payload = self._next(deadline)
            self._open = bool(flags)
            self._parser.extend(len(payload))
            if kind == wire.ERROR:
                break
        self._check_idle()

    def _check_idle(self) -> None:
        if self._frames or not self._parser.idle:
            self._refuse("bytes after a reply")

    def _metadata(self, payload: bytes, decode: Callable[[bytes], Any], empty: bool = False) -> tuple[Any, bytes]:
        try:
            meta, body = wire.split(payload)
            if empty and body:
                raise wire.WireError("a body where none belongs")
            return decode(meta), body
        except (ValueError, RecursionError) as e:  # msgspec's errors are ValueErrors, as is WireError
            self._refuse(str(e))

    def _raise_error(self, payload: bytes, *, init: bool) -> NoReturn:
        meta, _ = self._metadata(payload, _error, empty=True)
        if (meta.kind == "init") != init:
            self._refuse(f"error of kind {meta.kind} out of turn")
        if init:
            self._condemned = "its handler could not be imported"
        raise InvocationError(meta.kind, meta.message, name=meta.name, traceback=meta.traceback)

    def _refuse(self, why: str) -> NoReturn:
        raise ProtocolError(f"the sandbox broke the protocol: {why}")

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _next(self, deadline: Deadline) -> tuple[int, int, int, bytes]:
        while not self._frames:
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except OSError:  # reset, or closed by another thread of ours
                data = b""
            self._feed(data)
            if not self._frames and deadline.passed:  # a sandbox that trickles bytes for ever
                raise DeadlineError("no answer in time")
        return self._frames.popleft()

    def _feed(self, data: bytes) -> None:
        if not data:
            raise SandboxDeadError("the sandbox closed its channel")
        try:
            self._frames.extend(self._parser.feed(data))
        except wire.WireError as e:
            self._refuse(str(e))

    def _refuse_unasked(self) -> None:
        """Between two requests nothing may have come."""
        try:
            data = self._sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._refuse("bytes that nobody had asked for")
        raise SandboxDeadError("the sandbox closed its channel")

    def _send(self, parts: list[bytes], deadline: Deadline) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                try:
                    view = view[self._sock.send(view, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._wait(select.POLLOUT, deadline)
                except OSError:
                    # It may have said why before it went: FAULT, or ERROR of kind init.
                    if self._ready is None:
                        self._await_ready(deadline)
                    raise SandboxDeadError("the sandbox closed its channel") from None

    def _wait(self, event: int, deadline: Deadline) -> None:
        fd = self._sock.fileno()
        if fd < 0:
            raise SandboxDeadError("the channel is closed")
        self._poll.modify(fd, event)
        while True:
            ready = self._poll.poll(deadline.milliseconds())
            if not ready:
                raise DeadlineError("no answer in time")
            found = False
            for which, _ in ready:
                if which == fd:
                    found = True
                elif not self._drained(self._aux[which]):
                    self._poll.unregister(which)
                    del self._aux[which]
            if found:
                return
            if deadline.passed:  # one that prints for ever
                raise DeadlineError("no answer in time")

    @staticmethod
    def _drained(drain: Callable[[], bool]) -> bool:
        try:
            return drain()
        except OSError:  # closed by another thread of ours
            return False


class _Turn:
    """The right to use a channel: refused once it is condemned, and what condemns it if an error ends the turn."""

    def __init__(self, channel: Channel, timeout: float | None) -> None:
        self._channel = channel
        self._deadline = Deadline(timeout)

    def __enter__(self) -> Deadline:
        left = self._deadline.seconds()
        if not self._channel._turn.acquire(timeout=-1 if left is None else left):
            raise DeadlineError("another invocation took all the time")
        if self._channel._condemned:
            self._channel._turn.release()
            raise SandboxDeadError(f"the sandbox is condemned: {self._channel._condemned}")
        return self._deadline

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, InvocationError):
            # Whatever it was (KeyboardInterrupt too), the next frame may belong to the request that was given up.
            known = isinstance(error, OlsockError)
            self._channel._condemned = str(error) if known else "an invocation was interrupted"
        self._channel._turn.release()


def _request(meta: Mapping[str, Any], body: bytes) -> tuple[int, list[bytes]]:
    """Return the number of a new request, and its frames."""
    encoded = json.dumps(meta).encode()
    if len(encoded) > wire.MAX_META:
        raise ValueError(f"{len(encoded)} bytes of metadata, at most {wire.MAX_META} are possible")
    # Drawn, not counted: what a sandbox sends before it has seen a request cannot be the answer to it.
    request = int.from_bytes(os.urandom(8), "little") | 1
    return request, wire.split_message(wire.REQUEST, request, encoded, body)
