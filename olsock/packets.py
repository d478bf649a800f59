"""Packets to the spawner and to inits: the twin of csrc/child/message.h, which describes them."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from olsock.errors import DeadlineError, KernelError, SandboxDeadError

ATTACH, DETACH, OVERLAY, CLONE = 1, 2, 3, 4
SETUP, SPAWN, SIGNAL, NETNS = 10, 11, 12, 13
DONE, FAILED, EXITED = 100, 101, 102
NO_TOKEN = 0xFFFFFFFF
MAX_PACKET = 128 * 1024

_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<II")
_DONE = struct.Struct("<i")
_ERR = struct.Struct("<i32s220s")
_EXITED = struct.Struct("<IiQQQ")


def u32(*values: int) -> bytes:
    """Pack numbers of 32 bits."""
    return b"".join(_U32.pack(value) for value in values)


def u64(value: int) -> bytes:
    """Pack a number of 64 bits."""
    return struct.pack("<Q", value)


def blob(data: bytes) -> bytes:
    """Pack bytes with their length."""
    return _U32.pack(len(data)) + data


def string(text: str | bytes) -> bytes:
    """Pack a string as C wants it: length, bytes, NUL."""
    return blob(os.fsencode(text) + b"\0")


def strings(items: Sequence[str | bytes]) -> bytes:
    """Pack a list of strings."""
    return u32(len(items)) + b"".join(map(string, items))


def rlimits(limits: Iterable[tuple[int, int]]) -> bytes:
    """Pack (resource, limit) pairs."""
    pairs = list(limits)
    return u32(len(pairs)) + b"".join(u32(resource) + u64(limit) for resource, limit in pairs)


def error(payload: bytes) -> KernelError:
    """Turn a `struct ols_err` into the exception it stands for."""
    number, step, path = _ERR.unpack_from(payload)
    return KernelError(_text(step), _text(path), number)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Exited:
    """How a command left: a wait(2) status and what it used."""

    token: int
    pid: int
    status: int
    user_usec: int
    system_usec: int
    peak_kib: int


class _Answer:
    __slots__ = ("error", "fd", "value")

    def __init__(self) -> None:
        self.value: int | None = None
        self.fd = -1
        self.error: KernelError | None = None


_open: weakref.WeakSet[Mailbox] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close a fork's copies: a sandbox must end with its owner, and not with the last of the owner's children."""
    for mailbox in list(_open):
        mailbox.abandon()


os.register_at_fork(after_in_child=_leave_to_parent)


class Mailbox:
    """One end of a packet socket, shared by threads: whoever waits reads for all.

    There is no reader thread: one would cost every request two switches, and a library should start none unasked.
    """

    def __init__(self, sock: socket.socket, peer: str, on_exit: Callable[[Exited], None] | None = None) -> None:
        sock.setblocking(True)
        self._socket, self._peer, self._on_exit = sock, peer, on_exit
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._reading = False
        self._dead = False
        self._next_token = 1
        self._answers: dict[int, _Answer] = {}
        _open.add(self)

    def fileno(self) -> int:
        """The socket's fd, readable when somebody left or answered."""
        fd = self._socket.fileno()
        if fd < 0:  # closed by another thread
            raise SandboxDeadError(f"{self._peer} is gone")
        return fd

    def send(self, kind: int, payload: bytes, fds: Sequence[int] = ()) -> int:
        """Send a request; return its token, to be given to `receive`."""
        with self._lock:
            token = self._next_token
            self._next_token = token % (NO_TOKEN - 1) + 1
            self._answers[token] = _Answer()
        packet = _HEAD.pack(kind, token) + payload
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], control, socket.MSG_NOSIGNAL)
        except OSError as e:
            self._answers.pop(token, None)
            raise SandboxDeadError(f"{self._peer} is gone ({e.strerror})") from e
        return token

    def expect(self, token: int) -> int:
        """Announce an answer that comes without a request (a spawner reports token 0 once it is ready)."""
        with self._lock:
            self._answers[token] = _Answer()
        return token

    def receive(self, token: int, timeout: float | None = None) -> tuple[int, int]:
        """Wait for the answer to `token`: (value, fd or -1). Raises what the other side reported."""
        answer = self._answers[token]
        try:
            self.wait(lambda: answer.value is not None or answer.error is not None, timeout)
        finally:
            with self._lock:
                self._answers.pop(token, None)
        if answer.error:
            raise answer.error
        assert answer.value is not None
        return answer.value, answer.fd

    def call(self, kind: int, payload: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> tuple[int, int]:
        """Send a request and wait for its answer."""
        return self.receive(self.send(kind, payload, fds), timeout)

    def wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Read until `done()`; `DeadlineError` after `timeout` seconds, `SandboxDeadError` when the peer is gone."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._turn:
                while not done():
                    if self._dead:
                        raise SandboxDeadError(f"{self._peer} is gone")
                    if not self._reading:
                        break
                    if not self._turn.wait(_remaining(deadline)) and not done():
                        raise DeadlineError(f"{self._peer} did not answer in {timeout} s")
                else:
                    return
                self._reading = True
            packet: tuple[bytes, list[int]] | None = None
            try:
                packet = self._read(_remaining(deadline))
            finally:
                with self._turn:
                    self._reading = False
                    if packet is not None:
                        self._dispatch(*packet)
                    self._turn.notify_all()
            if packet is None and not done():
                raise DeadlineError(f"{self._peer} did not answer in {timeout} s")

    def close(self) -> None:
        """Hang up: an init leaves and takes its sandbox with it."""
        with self._turn:
            self._dead = True
            self._turn.notify_all()
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's copy. Takes no lock: in a fork, a thread that is not there any more may hold it."""
        self._dead = True
        self._socket.close()

    def _read(self, timeout: float | None) -> tuple[bytes, list[int]] | None:
        """One packet and its fds; None at the timeout; an empty packet at the end."""
        try:
            self._socket.settimeout(timeout)
            data, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            return None
        except OSError:  # also: closed by another thread
            return b"", []
        fds = array.array("i")
        for level, kind, raw in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        return data, list(fds)

    def _dispatch(self, data: bytes, fds: list[int]) -> None:
        if len(data) < _HEAD.size:
            self._dead = True
            return
        kind, token = _HEAD.unpack_from(data)
        payload = data[_HEAD.size :]
        if kind == EXITED:
            if self._on_exit:
                self._on_exit(Exited(token, *_EXITED.unpack_from(payload)))
            return
        answer = self._answers.get(token)
        if answer is None:
            if token == 0 and kind == FAILED:  # an init that could not even begin
                for waiting in self._answers.values():
                    waiting.error = error(payload)
            for fd in fds:  # nobody waits any more
                os.close(fd)
        elif kind == FAILED:
            answer.error = error(payload)
        else:
            answer.fd = fds[0] if fds else -1
            (answer.value,) = _DONE.unpack_from(payload)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.000001, deadline - time.monotonic())
