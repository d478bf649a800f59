"""The front's end of the socket to the broker: requests go out, replies come back by number."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec

from olsock_worker import broker_protocol
from olsock_worker.broker_protocol import (
    Compiled,
    Done,
    Drain,
    Failed,
    Hello,
    Installed,
    Measured,
    Started,
    ToBroker,
    Unpacking,
    ZygoteState,
)

Reply = Done | Started | Installed | Compiled | Unpacking | Measured | Failed
OnReply = Callable[[Reply, list[int]], None]


class BrokerClient:
    """Sends without waiting; calls back once for every request."""

    def __init__(
        self,
        sock: socket.socket,
        on_zygote: Callable[[ZygoteState], None],
        on_drain: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._waiting: dict[int, OnReply] = {}
        self._numbers = 0
        self._on_zygote, self._on_drain, self._on_end = on_zygote, on_drain, on_end

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive."""
        self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._on_readable)

    def number(self) -> int:
        """Return the number of the next request."""
        self._numbers += 1
        return self._numbers

    def request(self, message: ToBroker, on_reply: OnReply) -> bool:
        """Send; False if the broker does not keep up, and then nothing was sent."""
        try:
            broker_protocol.send(self._sock, message)
        except BlockingIOError:
            return False
        except ValueError as error:  # it cannot be said; the broker would take a front that says it for broken
            failed = broker_protocol.Failed(message.id, "refused", str(error))
            asyncio.get_running_loop().call_soon(on_reply, failed, [])
            return True
        except OSError as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                self._on_end()
            return False
        self._waiting[message.id] = on_reply
        return True

    def _on_readable(self) -> None:
        for _ in range(64):
            try:
                message, fds = broker_protocol.receive_reply(self._sock)
            except BlockingIOError:
                return
            except (OSError, msgspec.MsgspecError):
                self._on_end()
                return
            if message is None:
                self._on_end()
                return
            self._take(message, fds)

    def _take(self, message: broker_protocol.ToFront, fds: list[int]) -> None:
        if isinstance(message, ZygoteState):
            self._on_zygote(message)
        elif isinstance(message, Drain):
            self._on_drain()
        elif not isinstance(message, Hello):
            on_reply = self._waiting.pop(message.id, None)
            if on_reply is not None:
                on_reply(message, fds)
                return
        broker_protocol.close_all(fds)
