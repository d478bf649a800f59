"""One sandbox as the front sees it: a few descriptors and a state. Everything it sends is taken for hostile."""

from __future__ import annotations

import asyncio
import enum
import os
from time import monotonic, time
from typing import TYPE_CHECKING

import msgspec

from olsock import Ready
from olsock.runtime import wire
from olsock.runtime.wire import WireError
from olsock_worker import responses
from olsock_worker.output import Output
from olsock_worker.responses import JSON

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.functions import Function
    from olsock_worker.registry import Deployment

NEVER = float("inf")
_BEFORE_CALLS = frozenset((wire.STARTED, wire.READY, wire.FAULT))
_FROM_BOX = frozenset((wire.STARTED, wire.READY, wire.REPLY, wire.ERROR, wire.FAULT, wire.BODY))
_READ = 65_536
_LAST_READS = 256
_MEASURE_AGAIN = 1.0  # seconds
_PLAIN = b'{"status":200,"content_type":"application/json"}'
_PLAIN_PREFIX = wire.META.pack(len(_PLAIN)) + _PLAIN
_PLAIN_BODY = wire.HEADER.size + len(_PLAIN_PREFIX)
_WALL_CLOCK = time() - monotonic()  # near enough for the deadline that a handler is told


class State(enum.Enum):
    """Where an instance is in its life. IDLE and FROZEN ones wait for a request."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    FROZEN = "frozen"
    DYING = "dying"


class RequestMeta(msgspec.Struct):
    """Metadata of a REQUEST frame."""

    id: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    deadline_ms: int  # Unix time


class _ToldMeta(RequestMeta):
    """The same with what only calls of the control API have."""

    client_context: dict[str, object] | None
    arn: str | None
    trace: str | None


class _ReplyMeta(msgspec.Struct, forbid_unknown_fields=True):
    status: int
    content_type: str


class HandlerError(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of an ERROR frame: what the runtime says went wrong."""

    kind: str
    name: str = ""
    message: str = ""
    traceback: str = ""


_encode = msgspec.json.Encoder().encode
_decode_ready = msgspec.json.Decoder(Ready).decode
_decode_reply = msgspec.json.Decoder(_ReplyMeta).decode
_decode_error = msgspec.json.Decoder(HandlerError).decode


class Handles(msgspec.Struct, frozen=True):
    """Descriptors of one sandbox, as the broker sends them."""

    channel: int
    freeze: int
    kill: int
    log: int
    pidfd: int
    events: int = -1  # memory.events, where the host has it
    memory: int = -1  # how many bytes are charged to it

    @classmethod
    def of(cls, fds: list[int], events: bool, memory: bool) -> Handles:
        """Name the descriptors of a `Started` message."""
        channel, freeze, kill, log, pidfd, *rest = fds
        return cls(channel, freeze, kill, log, pidfd, rest.pop(0) if events else -1, rest.pop(0) if memory else -1)


class Instance:
    """Runs one call at a time and tells its function how each ended."""

    __slots__ = (
        "_handles", "_limit", "_loop", "_out", "_parser", "_parts", "_status", "ahead", "asked", "call", "deadline",
        "deployment", "freezing", "function", "id", "idle_since", "measured", "oom", "output", "ready",
        "started", "state", "worth", "zygote",
    )  # fmt: skip

    def __init__(
        self, number: int, handles: Handles, function: Function, deployment: Deployment, zygote: str, asked: float
    ) -> None:
        self.id = number
        self.function = function
        self.deployment = deployment
        self.zygote = zygote  # key of the one that it was forked from; "": a fresh interpreter
        self.asked = asked  # monotonic() of when it was asked for
        self.state = State.STARTING
        self.started = self.ready = False
        self.oom = False
        self.call: Call | None = None
        self.deadline = monotonic() + function.fleet.settings.start_timeout
        self.idle_since = 0.0
        self.freezing = False  # waits for its grace to end
        self.ahead = False  # was started ahead of a call; until it rests after one
        self.measured = 0.0  # when its memory was last looked at
        self.worth = function.fleet.values.new(0.0, function.stats.memory or deployment.config.memory)
        self._handles = handles
        self._limit = int(function.fleet.settings.http.reply) + wire.MAX_META
        self._parser = wire.Parser(_FROM_BOX, self._limit)
        self._parts: list[bytes] = []
        self._status: tuple[int, bytes] | None = None
        self._out = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self.output = Output(handles.log, function.log)
        os.set_blocking(handles.channel, False)
        self._loop.add_reader(handles.channel, self._on_channel)
        self._loop.add_reader(handles.pidfd, self._on_exit)

    # -- work ---------------------------------------------------------------------------------------------------------

    def run(self, call: Call) -> None:
        """Send a call to the handler. While the handler is still being imported the request waits in the channel."""
        if self.state is State.FROZEN:
            os.write(self._handles.freeze, b"0")
        self.call = call
        call.instance = self
        self.worth.uses += 1  # the rest of `Gdsf.used` when there is time: see Fleet._freeze
        self.output.begin(call.id)
        call.sent = monotonic()
        until = call.sent + self.function.deployment.config.timeout
        if self.ready:
            self.state = State.BUSY
            self.deadline = until
        told = int((_WALL_CLOCK + until) * 1000)
        of_call = call.id, call.method, call.path, call.query, call.headers, told
        if call.told is None:
            meta = RequestMeta(*of_call)
        else:
            meta = _ToldMeta(*of_call, call.told.client_context, call.told.arn, call.told.trace)
        self._request(call, _encode(meta))
        self.function.fleet.wake()

    def _request(self, call: Call, meta: bytes) -> None:
        body = call.body
        if len(meta) + len(body) + wire.META.size <= wire.MAX_PAYLOAD:
            self._send(wire.message(wire.REQUEST, call.number, meta, body))
        else:
            self._send(b"".join(_split(call.number, meta, body)))

    def _send(self, data: bytes) -> None:
        try:
            sent = os.write(self._handles.channel, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it is gone: the end of its channel will say so
        if sent < len(data):
            self._out = memoryview(data)[sent:]
            self._loop.add_writer(self._handles.channel, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self._out = self._out[os.write(self._handles.channel, self._out) :]
        except BlockingIOError:
            return
        except OSError:
            self._out = memoryview(b"")
        if not self._out:
            self._loop.remove_writer(self._handles.channel)

    # -- what the sandbox sends ---------------------------------------------------------------------------------------

    def _on_channel(self) -> bool:
        """Take what is there; False if nothing was."""
        try:
            data = os.read(self._handles.channel, _READ)  # read() drops descriptors that may come along
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lost()
            return True
        call = self.call
        if self.ready:
            if call is None:
                self.condemn("sent bytes that nobody had asked for")
                return True
            if self._is_plain(data, call):
                self._free()
                self.function.answered(self, call, 200, JSON, data[_PLAIN_BODY:], True)
                return True
        try:
            frames = self._parser.feed(data)
            for index, (kind, flags, number, payload) in enumerate(frames):
                if self.state is State.DYING:
                    break
                self._on_frame(kind, flags, number, payload, index == len(frames) - 1 and self._parser.idle)
        except (WireError, msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.condemn(f"broke the protocol: {error}")
        return True

    def _is_plain(self, data: bytes, call: Call) -> bool:
        """Say whether this is one whole reply of the commonest kind, which needs none of the parser's care."""
        if data[wire.HEADER.size : _PLAIN_BODY] != _PLAIN_PREFIX or not self._parser.idle:
            return False
        kind, flags, zero, length, number = wire.HEADER.unpack_from(data)
        size = len(data) - wire.HEADER.size
        return bool(
            kind == wire.REPLY and not flags and not zero and length == size <= self._limit and number == call.number
        )

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes, clean: bool) -> None:
        call = self.call
        if not self.ready:
            self._on_first(kind, number, payload)
        elif call is None or number != call.number or kind in _BEFORE_CALLS:
            raise WireError(f"frame of kind {kind} for request {number} out of turn")
        elif kind == wire.ERROR:
            error = _decode_error(wire.split(payload)[0])
            if flags:
                raise WireError("an error of several frames")
            self._free()
            self.function.handler_failed(self, call, error, clean)
        else:
            if kind == wire.REPLY:
                meta, body = wire.split(payload)
                self._status = (200, JSON) if meta == _PLAIN else _checked(_decode_reply(meta))
                if not flags:
                    self._free()
                    self.function.answered(self, call, *self._status, body, clean)
                    return
                self._parts = [body]
            else:
                self._parts.append(payload)
            if not flags and self._status is not None:
                parts, self._parts = self._parts, []
                self._free()
                self.function.answered(self, call, *self._status, b"".join(parts), clean)

    def _on_first(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame that says how the set-up and the import went."""
        if not self.started:
            if kind == wire.FAULT and number == 0:
                self.function.setup_failed(self)
            elif kind == wire.STARTED and number == 0 and not payload:
                self.started = True
            else:
                raise WireError(f"first frame is of kind {kind} for request {number}")
        elif kind == wire.READY and number == 0:
            ready = _decode_ready(wire.split(payload)[0])
            self.ready = True
            self.function.fleet.learnt(self, ready)
            took = monotonic() - self.asked
            self.worth.cost = took * 1e3
            self.function.stats.start.add(took)
            if self.call is None:
                self.state, self.deadline = State.IDLE, NEVER
                self.function.available(self)
            else:
                self.state, self.deadline = State.BUSY, monotonic() + self.function.config.timeout
                self.call.sent = monotonic()
        elif kind == wire.ERROR and number == 0:
            error = _decode_error(wire.split(payload)[0])
            self.function.init_failed(self, error)
        else:
            raise WireError(f"frame of kind {kind} for request {number} before READY")

    def _free(self) -> None:
        """Take the call away: it is about to be answered."""
        self.function.fleet.freed(self)
        self.call = None
        self.deadline = NEVER
        self.state = State.IDLE

    def _on_exit(self) -> None:
        """Its first process has ended: take its last frames, then give it up, whoever else may hold the channel."""
        for _ in range(_LAST_READS):
            if self.state is State.DYING or not self._on_channel():
                break
        if self.state is not State.DYING:
            self._lost()

    def _lost(self) -> None:
        """Its process or its channel has ended."""
        self.output.read()
        self.detach()
        self.function.lost(self)

    def condemn(self, why: str) -> None:
        """Kill it for what it sent."""
        self.output.read()
        self.kill()
        self.detach()
        self.function.condemned(self, why)

    # -- state --------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop its processes. Whether they have stopped need not be known: they are thawed before they are needed."""
        os.write(self._handles.freeze, b"1")
        self.state = State.FROZEN
        self.output.end_line()

    def kill(self) -> None:
        """Kill every process in it, frozen or not, by the kernel's own hand."""
        try:
            os.write(self._handles.kill, b"1")
        except OSError:
            pass  # its cgroup is gone, and so is everything in it

    @property
    def evictable(self) -> bool:
        """Whether it waits for a call."""
        return self.state is State.IDLE or self.state is State.FROZEN

    @property
    def unused(self) -> bool:
        """Whether it was started ahead of a call that has not come yet."""
        return self.ahead and self.worth.uses == 1

    def evict(self) -> None:
        """Give its room to another."""
        self.function.evicted(self)

    def measure(self, now: float) -> None:
        """Look at how much memory is charged to it: private copies of pages, and its files in memory."""
        if self._handles.memory < 0 or now - self.measured < _MEASURE_AGAIN:
            return
        self.measured = now
        try:
            self.worth.size = self.function.stats.memory = int(os.pread(self._handles.memory, 32, 0))
        except (OSError, ValueError):
            pass  # it is being removed

    def oom_kills(self) -> int | None:
        """Return how many of its processes the kernel killed for memory; None where only the broker can know."""
        if self._handles.events < 0:
            return None
        try:
            text = os.pread(self._handles.events, 1024, 0)
        except OSError:
            return None
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"oom_kill ")), 0)

    @property
    def events(self) -> int:
        """Descriptor of memory.events, or -1."""
        return self._handles.events

    def detach(self) -> None:
        """Listen to it no more."""
        if self.state is not State.DYING:
            self.output.close()
            self.state, self.deadline = State.DYING, NEVER
            self._loop.remove_writer(self._handles.channel)
            for fd in (self._handles.channel, self._handles.pidfd):
                self._loop.remove_reader(fd)

    def close(self) -> None:
        """Let go of every descriptor."""
        self.detach()
        handles = self._handles
        for fd in (
            handles.channel,
            handles.freeze,
            handles.kill,
            handles.log,
            handles.pidfd,
            handles.events,
            handles.memory,
        ):
            if fd >= 0:
                os.close(fd)


def _checked(meta: _ReplyMeta) -> tuple[int, bytes]:
    if not 200 <= meta.status <= 599 or not responses.content_type_ok(meta.content_type):
        raise WireError("a reply with a status or content type that cannot be sent on")
    return meta.status, meta.content_type.encode("ascii")


def _split(number: int, meta: bytes, body: bytes) -> list[bytes]:
    """Cut a long request into a REQUEST frame and BODY frames."""
    first = wire.MAX_PAYLOAD - wire.META.size - len(meta)
    frames = [wire.message(wire.REQUEST, number, meta, body[:first], wire.MORE)]
    for start in range(first, len(body), wire.MAX_PAYLOAD):
        end = start + wire.MAX_PAYLOAD
        frames.append(wire.frame(wire.BODY, number, body[start:end], wire.MORE if end < len(body) else 0))
    return frames
