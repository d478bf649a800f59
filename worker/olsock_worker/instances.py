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
from olsock_worker import answers, forwarding
from olsock_worker.answers import Limits, TooLargeError
from olsock_worker.handshakes import RefusedError
from olsock_worker.outbox import Outbox
from olsock_worker.output import Output
from olsock_worker.reports import Reports, version_of
from olsock_worker.responses import JSON

if TYPE_CHECKING:
    from olsock_worker.answers import Answer
    from olsock_worker.broker_protocol import Origin
    from olsock_worker.calls import Call
    from olsock_worker.functions import Function
    from olsock_worker.handles import Handles
    from olsock_worker.registry import Deployment

NEVER = float("inf")
_BEFORE_CALLS = frozenset((wire.STARTED, wire.READY, wire.FAULT))
_READ = 65_536
_LAST_READS = 256
_MEASURE_AGAIN = 1.0  # seconds
EVENT, STREAM, WSGI, ASGI = "event", "stream", "wsgi", "asgi"  # of the contracts that READY names
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


class HandlerError(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of an ERROR frame: what the runtime says went wrong."""

    kind: str
    name: str = ""
    message: str = ""
    traceback: str = ""


_encode = msgspec.json.Encoder().encode
_decode_ready = msgspec.json.Decoder(Ready).decode
_decode_error = msgspec.json.Decoder(HandlerError).decode


class Instance:
    """Runs one call at a time and tells its function how each ended."""

    __slots__ = (
        "_handles", "_held", "_limit", "_loop", "_outbox", "_parser", "ahead", "answer", "asked", "call", "contract",
        "deadline", "deployment", "freezing", "function", "id", "idle_since", "limits", "measured", "oom", "origin", "output",
        "ready", "reports", "started", "state", "worth",
    )  # fmt: skip

    def __init__(
        self, number: int, handles: Handles, function: Function, deployment: Deployment, origin: Origin, asked: float
    ) -> None:
        self.id = number
        self.function = function
        self.deployment = deployment
        self.origin = origin  # what it began from
        self.asked = asked  # monotonic() of when it was asked for
        self.state = State.STARTING
        self.started = self.ready = False
        self.oom = False
        self.call: Call | None = None
        self.deadline = monotonic() + deployment.config.init_timeout
        self.idle_since = 0.0
        self.freezing = False  # waits for its grace to end
        self.ahead = False  # was started ahead of a call; until it rests after one
        self.measured = 0.0  # when its memory was last looked at
        self.worth = function.fleet.values.new(0.0, function.stats.memory or deployment.config.memory)
        self._handles = handles
        self.limits = Limits.of(function.fleet.settings.http)
        self._limit = self.limits.reply + wire.MAX_META  # of a plain reply, metadata and all
        self._parser = wire.Parser(wire.FROM_BOX, max(self.limits) + wire.MAX_META, streams=True)
        self.contract = function.contract  # what its version is known to speak; "": nothing is known yet
        self.answer: Answer | None = None  # what is coming in, where it takes more than one look
        self._held = False  # its channel is not read: a client does not keep up
        self._outbox = Outbox(handles.channel, self._drained)
        self._loop = asyncio.get_running_loop()
        self.output = Output(handles.log, function.log, number)
        self.reports = Reports(number, handles, function.log, version_of(function.name), deployment.config)
        os.set_blocking(handles.channel, False)
        self._loop.add_reader(handles.channel, self._on_channel)
        self._loop.add_reader(handles.pidfd, self._on_exit)

    # -- work ---------------------------------------------------------------------------------------------------------

    def run(self, call: Call) -> None:
        """Send a call to the handler. While the handler is still being imported the request waits in the channel."""
        start: str = self.origin
        if self.state is State.FROZEN:
            os.write(self._handles.freeze, b"0")
            start = "thawed"
        elif self.ready:
            start = "warm"
        self.function.stats.calls[start] += 1
        self.call = call
        call.instance = self
        self.worth.uses += 1  # the rest of `Gdsf.used` when there is time: see Fleet._freeze
        self.output.begin(call.id)
        call.sent = monotonic()
        self.reports.begin(call, start)
        until = call.sent + self.function.deployment.config.timeout
        if self.ready:
            self.state = State.BUSY
            self.deadline = until
        if self.contract != EVENT and not self._asks_plainly(call):
            return
        self._tell(call, until)
        self.function.fleet.wake()

    def _tell(self, call: Call, until: float) -> None:
        """Send a call to a function that takes events."""
        meta = _encode(forwarding.event(call, int((_WALL_CLOCK + until) * 1000)))
        self._outbox.send(*wire.split_message(wire.REQUEST, call.number, meta, call.body))

    def _asks_plainly(self, call: Call) -> bool:
        """Say whether a call is to be sent as to an event handler; if not, do what is to be done instead."""
        call.on_abandon = self.abandoned
        if self.contract == STREAM:
            return True
        if self.contract:
            self._ask(call)
        self.function.fleet.wake()  # without a contract it waits for READY, which tells how to ask
        return False

    def _ask(self, call: Call) -> None:
        """Send a call to a web application, or refuse it."""
        if call.connection is None:
            self._decline()
            self.function.left()
            return
        try:
            proxies = self.function.fleet.settings.http.trusted_proxies
            frames = forwarding.request(call, self.contract == ASGI, self.deployment.config, proxies)
        except RefusedError as error:
            self._decline()
            self.function.fail(call, error.status, error.kind, str(error), extra=error.extra)
            return
        if self.ready:
            self.deadline = monotonic() + self._timeout(call)
        self._outbox.send(*frames)

    def _ask_late(self, call: Call) -> None:
        """Send the call that waited until it was known how to."""
        if self.contract != EVENT and self.contract != STREAM:
            self._ask(call)
            return
        self._tell(call, self.deadline)

    def _decline(self) -> None:
        """Be free of a call that was not sent."""
        self.function.fleet.freed(self)
        self.reports.end(monotonic())
        self.call = None
        if self.ready:
            self.state, self.deadline = State.IDLE, NEVER
            self.function.spare(self)

    def _timeout(self, call: Call) -> float:
        config = self.deployment.config
        return config.timeout if call.handshake is None else config.websocket_timeout

    def abandoned(self, call: Call) -> None:
        """Tell the sandbox that nobody waits for its answer any more."""
        if self.call is not call or self.state is State.DYING:
            return
        if self.answer is not None:
            self.answer.abandoned()
        elif self.contract and self.contract != EVENT:
            self.push(wire.DISCONNECT)

    def push(self, kind: int, meta: bytes = b"", body: bytes = b"") -> None:
        """Send more about the call in hand."""
        if self.call is not None:
            number = self.call.number
            frames = wire.split_message(kind, number, meta, body) if meta else [wire.frame(kind, number)]
            self._outbox.send(*frames)

    def settle(self) -> None:
        """Tell of the end of a call, now that all it printed has been read."""
        if self.call is None:
            self.output.settle()
        else:
            self.output.fresh = False  # it has been read, or it would not be at work again
        self.reports.settle()

    def hurry(self) -> None:
        """Give it only the grace to end what it does for a client that has gone."""
        self.deadline = min(self.deadline, monotonic() + self.function.fleet.settings.http.disconnect_grace)

    def _drained(self) -> None:
        if self.answer is not None:
            self.answer.drained()

    @property
    def behind(self) -> bool:
        """Whether it has not taken all that was sent to it."""
        return self._outbox.behind

    def hold(self) -> None:
        """Read no more of its channel: whoever is to have what it sends does not keep up."""
        if not self._held and self.state is not State.DYING:
            self._held = True
            self._loop.remove_reader(self._handles.channel)

    def resume(self) -> None:
        """Read its channel again."""
        if self._held and self.state is not State.DYING:
            self._held = False
            self._loop.add_reader(self._handles.channel, self._on_channel)

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
        except TooLargeError as error:
            self.condemn(str(error), "reply_too_large")
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
            if self.answer is not None:
                self.answer.failed()
            self.end_answer()
            self.function.handler_failed(self, call, error, clean)
        elif kind == wire.REPLY and not flags and payload.startswith(_PLAIN_PREFIX) and len(payload) <= self._limit:
            self.end_answer()
            self.function.answered(self, call, 200, JSON, payload[len(_PLAIN_PREFIX) :], clean)
        elif self.answer is not None:
            self.answer.frame(kind, flags, payload, clean)
        else:
            answers.begin(self, call, kind, flags, payload, clean)

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
            asked = self._speaks(ready.contract)
            self.ready = True
            self.function.fleet.learnt(self, ready)
            took = monotonic() - self.asked
            self.worth.cost = took * 1e3
            self.function.stats.start.add(took)
            self.function.made(self)
            if self.call is None:
                self.state, self.deadline = State.IDLE, NEVER
                self.function.available(self)
            else:
                self.state, self.deadline = State.BUSY, monotonic() + self._timeout(self.call)
                self.call.sent = monotonic()
                self.reports.made(took)
                if not asked:
                    self._ask_late(self.call)
        elif kind == wire.ERROR and number == 0:
            error = _decode_error(wire.split(payload)[0])
            self.function.init_failed(self, error)
        else:
            raise WireError(f"frame of kind {kind} for request {number} before READY")

    def _speaks(self, contract: str) -> bool:
        """Take its word for how it is to be asked; False if that was not known until now."""
        known, self.contract = self.contract, contract
        self.function.speaks(self, contract)
        if known and known != contract and self.call is not None:
            raise WireError(f"its contract is {contract}, and {known} was that of its version")
        return bool(known)

    def end_answer(self) -> None:
        """Take the call away once nothing more is to come of its answer.

        What it printed is read here, unlike in `Fleet.freed`: the end may have come while what was before it in the channel
        (READY, or a part) was waiting to be read, and what was printed in between is for another round of the event loop.
        """
        self.output.read()
        self.answer = None
        self._free()

    def _free(self) -> None:
        """Take the call away: it is about to be answered."""
        self.function.fleet.freed(self)
        self.reports.end(monotonic())
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

    def condemn(self, why: str, kind: str = "bad_reply") -> None:
        """Kill it for what it sent; `kind` is that of the error."""
        self.output.read()
        self.kill()
        self.detach()
        self.function.condemned(self, why, kind)

    # -- state --------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop its processes. Whether they have stopped need not be known: they are thawed before they are needed."""
        os.write(self._handles.freeze, b"1")
        self.state = State.FROZEN
        self.output.end_line()

    def kill(self) -> None:
        """End every process in it."""
        self._handles.end()

    @property
    def evictable(self) -> bool:
        """Whether it waits for a call, and need not be kept."""
        waits = self.state is State.IDLE or self.state is State.FROZEN
        return waits and not self.function.provision.holds(self)

    @property
    def unused(self) -> bool:
        """Whether it was started ahead of a call that has not come yet."""
        return self.ahead and self.worth.uses == 1

    def evict(self) -> None:
        """Give its room to another."""
        self.function.evicted(self)

    def measure(self, now: float) -> None:
        """Look at how much memory is charged to it, unless that was done a moment ago."""
        if now - self.measured >= _MEASURE_AGAIN:
            self.measured = now
            charged = self._handles.charged()
            if charged is not None:
                self.worth.size = self.function.stats.memory = charged

    def oom_kills(self) -> int | None:
        """Return how many of its processes the kernel killed for memory; None where only the broker can know."""
        return self._handles.oom_kills()

    @property
    def events(self) -> int:
        """Descriptor of memory.events, or -1."""
        return self._handles.events

    def detach(self) -> None:
        """Listen to it no more."""
        if self.state is not State.DYING:
            self.output.close()
            self.state, self.deadline = State.DYING, NEVER
            self._outbox.close()
            for fd in (self._handles.channel, self._handles.pidfd):
                self._loop.remove_reader(fd)

    def close(self) -> None:
        """Let go of every descriptor."""
        self.detach()
        self.reports.close()
        self.answer = None  # they know each other
        self._handles.close()
