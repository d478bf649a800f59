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
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import msgspec

from olsock import packets, readiness
from olsock.deadline import Deadline
from olsock.errors import DeadlineError, InvocationError, OlsockError, ProtocolError, SandboxDeadError
from olsock.readiness import Ready
from olsock.runtime import wire

MAX_REPLY = 16 * 1024 * 1024
FAULT_SIZE = 256  # sizeof(struct ols_err)
CHUNK = 64 * 1024


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
        self._parser = wire.Parser(wire.FROM_BOX, max_reply + wire.MAX_META + wire.META.size)
        self._frames: deque[tuple[int, int, int, bytes]] = deque()
        self._started = False
        self._ready: Ready | None = None
        self._condemned = ""  # why
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
        waited for; that counts against `timeout`, in seconds.
        """
        # Drawn, not counted: what a sandbox sends before it has seen a request cannot be the answer to it.
        request = int.from_bytes(os.urandom(8), "little") | 1
        frames = _split(request, json.dumps(meta).encode(), event)
        with _Turn(self, timeout) as deadline:
            if self._ready is not None:
                self._refuse_unasked()
            self._send(frames, deadline)
            self._await_ready(deadline)
            reply, body = self._await_reply(request, deadline)
            if self._frames or not self._parser.idle:
                self._refuse("bytes after a reply")
            return reply, body

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
            if flags or self._frames or not self._parser.idle:
                self._refuse("an error is one frame, and the last one")
            self._raise_error(payload, init=False)
        meta, body = self._metadata(payload, _reply)
        if not 100 <= meta.status <= 599 or not meta.content_type.isascii() or not meta.content_type.isprintable():
            self._refuse("reply with an impossible status or content type")
        parts, size = [body], len(body)
        while flags:
            _, flags, _, payload = self._next(deadline)  # the parser lets nothing but its BODY frames follow
            parts.append(payload)
            size += len(payload)
        if size > self._max_reply:
            self._refuse(f"reply longer than {self._max_reply} bytes")
        return {"status": meta.status, "content_type": meta.content_type}, b"".join(parts)

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


def _split(request: int, meta: bytes, body: bytes) -> list[bytes]:
    """Return a request as frames that keep to MAX_PAYLOAD."""
    if len(meta) > wire.MAX_META:
        raise ValueError(f"{len(meta)} bytes of metadata, at most {wire.MAX_META} are possible")
    first = wire.MAX_PAYLOAD - wire.META.size - len(meta)
    if len(body) <= first:
        return [wire.message(wire.REQUEST, request, meta, body)]
    frames = [wire.message(wire.REQUEST, request, meta, body[:first], wire.MORE)]
    for start in range(first, len(body), wire.MAX_PAYLOAD):
        more = wire.MORE if start + wire.MAX_PAYLOAD < len(body) else 0
        frames.append(wire.frame(wire.BODY, request, body[start : start + wire.MAX_PAYLOAD], more))
    return frames
