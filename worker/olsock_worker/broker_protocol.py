"""What front and broker say to each other: one JSON message a SOCK_SEQPACKET packet, file descriptors beside it.

The broker takes nothing on trust: every field is checked against these types, the paths of code and of locks are
resolved beneath its own stores, packages and interpreters are named by the number that the broker gave out when it
installed them, and the registry is its own setting, so the front cannot name a host path.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Annotated, Literal

import msgspec

from olsock import Imported
from olsock_worker.settings import Settings

MAX_MESSAGE = 128 * 1024
MAX_FDS = 8
SHOWN = 50  # modules of a zygote that the front is told
_BUFFER = 1 << 20

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Text = Annotated[str, msgspec.Meta(max_length=255)]
_Path = Annotated[str, msgspec.Meta(max_length=512)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")]
# What a new instance begins from: a fresh interpreter, a node of a tree, a function's own zygote, one of packages that are
# kept by hand, or a child of any zygote that was forked ahead.
Origin = Literal["cold", "tree node", "function zygote", "zygote", "blank"]
_Contract = Literal["auto", "event", "wsgi", "asgi"]
_Imports = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=200)]


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Number


class Start(_Request, frozen=True, tag="start", kw_only=True):
    """Make an instance of the code at `code` (relative to the store)."""

    code: _Path
    handler: _Text
    env: Annotated[dict[_Text, str], msgspec.Meta(max_length=1000)]
    memory: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 50)]
    tmpfs_size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    pids: Annotated[int, msgspec.Meta(ge=1, le=32_768)]
    cpus: Annotated[float, msgspec.Meta(gt=0, le=1024)] | None
    imports: _Imports
    zygote: Literal["auto", "wait", "off"]
    contract: _Contract = "auto"  # how the function is called
    root_path: _Text = ""  # what it is mounted at, for web applications
    installation: Number = 0  # 0: the worker's own interpreter, and nothing installed
    layers: _Digest = ""  # name of the tree that is to appear at /opt


class Stop(_Request, frozen=True, tag="stop", kw_only=True):
    """End an instance and remove what belongs to it."""

    instance: Number


class OomKills(_Request, frozen=True, tag="oom_kills", kw_only=True):
    """Ask how often the kernel killed inside an instance for want of memory (where no fd can tell)."""

    instance: Number


class Deploy(_Request, frozen=True, tag="deploy", kw_only=True):
    """A version of a function is the current one: keep what its instances start from. Nothing earlier of it counts."""

    name: _Text
    code: _Path
    handler: _Text
    env: Annotated[dict[_Text, str], msgspec.Meta(max_length=1000)]
    installation: Number
    layers: _Digest = ""
    imports: _Imports
    zygote: Literal["auto", "wait", "off"]
    contract: _Contract = "auto"
    root_path: _Text = ""
    snapshot: bool  # keep a zygote of just this version, with its module imported
    alone: bool  # every request has an instance of its own


class Remove(_Request, frozen=True, tag="remove", kw_only=True):
    """There is no such function any more."""

    name: _Text


class Learnt(_Request, frozen=True, tag="learnt", kw_only=True):
    """What a new instance said about its imports."""

    instance: Number
    imports: Annotated[tuple[Imported, ...], msgspec.Meta(max_length=500)] = ()
    used: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)] = ()


class Evict(_Request, frozen=True, tag="evict", kw_only=True):
    """End a zygote because its memory is needed; it is made again when a function wants it."""

    key: _Text


class Measure(_Request, frozen=True, tag="measure"):
    """Look at how much memory instances have of their own. Answered by Measured."""


class Install(_Request, frozen=True, tag="install", kw_only=True):
    """Install what the lock at `path` (relative to the locks) names, or what its requirements resolve to."""

    path: _Path
    runtime: _Text  # such as "python3.12"; "": the worker's own interpreter


class Compile(_Request, frozen=True, tag="compile", kw_only=True):
    """Make bytecode of the code at `code` (relative to the store) for the interpreter of an installation."""

    code: _Path
    installation: Number


class Unpack(_Request, frozen=True, tag="unpack", kw_only=True):
    """Unpack the archive at `path` (relative to the function store). Answered by Unpacking."""

    path: _Path
    form: Literal["zip", "tar.gz"]


class Release(_Request, frozen=True, tag="release", kw_only=True):
    """An installation starts no instance any more; its packages go, if they have to, after the last one."""

    installation: Number


class Registry(_Request, frozen=True, tag="registry"):
    """Open the registry directory anew (it may have been replaced)."""


class Serving(_Request, frozen=True, tag="serving"):
    """The front has dropped its privileges and answers requests."""


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """First message to the front. Descriptors: listening socket, local socket, code, logs, locks, function store.

    With `control_listen` there is one more, the listening socket of the control API.
    """

    settings: Settings
    uid: int
    gid: int


class Done(msgspec.Struct, frozen=True, tag="done", forbid_unknown_fields=True):
    """A request was carried out."""

    id: int
    value: int = 0


class Started(msgspec.Struct, frozen=True, tag="started", forbid_unknown_fields=True):
    """An instance is there. Descriptors: channel, freeze, kill, log, pidfd; with `events` also memory.events.

    With `memory` and with `peak` there is one more each, read-only, of the files that say how many bytes are charged to it,
    and how many were at most.
    """

    id: int
    instance: int
    zygote: str  # key of the one that it was forked from; "": a fresh interpreter
    origin: Origin
    events: bool
    memory: bool = False
    peak: bool = False


class Installed(msgspec.Struct, frozen=True, tag="installed", forbid_unknown_fields=True):
    """What a function requires is there. Descriptor: a file with the text of the lock, at most `locks.LARGEST` bytes."""

    id: int
    installation: int
    packages: tuple[str, ...]  # "name==version"


class Compiled(msgspec.Struct, frozen=True, tag="compiled", forbid_unknown_fields=True):
    """Code was compiled. Descriptor: a file with what a sandbox said, which `olsock.bytecode.parse` takes."""

    id: int


class Unpacking(msgspec.Struct, frozen=True, tag="unpacking", forbid_unknown_fields=True):
    """An archive is being unpacked. Descriptor: a pipe with what a sandbox says, which `olsock.archives.read` takes."""

    id: int


class Failed(msgspec.Struct, frozen=True, tag="failed", forbid_unknown_fields=True):
    """A request was not carried out. `busy` means that it may work later."""

    id: int
    kind: Literal["busy", "refused", "kernel"]
    message: str


class Measured(msgspec.Struct, frozen=True, tag="measured", forbid_unknown_fields=True):
    """Memory of the living instances: (number, unique bytes, proportional bytes)."""

    id: int
    instances: tuple[tuple[int, int, int], ...]


class ZygoteState(msgspec.Struct, frozen=True, tag="zygote_state", forbid_unknown_fields=True, kw_only=True):
    """A zygote came up or went down, or its figures have changed."""

    key: str
    kind: Literal["node", "function"]  # of a tree, or of one function
    state: Literal["cold", "building", "ready", "failed", "bad", "given up", "gone"]
    runtime: str = ""
    name: str = ""  # the function's, if it is of one
    imports: tuple[str, ...] = ()  # the first SHOWN of its modules
    modules: int = 0
    packages: tuple[str, ...] = ()
    above: str = ""  # key of the node that it was forked from
    pid: int = 0
    detail: str = ""
    memory: int = 0  # bytes of its own
    handlers: int = 0  # that live and were forked from it
    blanks: int = 0  # that are kept waiting
    hits: int = 0
    misses: int = 0  # starts that would have been better off here
    saved_ms: float = 0.0  # by all hits
    cost_ms: float = 0.0  # that a start without it takes longer
    frequency: float = 0.0  # of starts of late
    build_ms: float = 0.0
    leaf: bool = False  # whether it may be evicted


class Drain(msgspec.Struct, frozen=True, tag="drain", forbid_unknown_fields=True):
    """Stop accepting, finish what runs, exit."""


ToBroker = (
    Start
    | Stop
    | OomKills
    | Deploy
    | Remove
    | Learnt
    | Evict
    | Measure
    | Install
    | Compile
    | Unpack
    | Release
    | Registry
    | Serving
)
ToFront = Hello | Done | Started | Installed | Compiled | Unpacking | Measured | Failed | ZygoteState | Drain

_encode = msgspec.json.Encoder().encode
_decode_to_broker = msgspec.json.Decoder(ToBroker).decode
_decode_to_front = msgspec.json.Decoder(ToFront).decode


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends, with room for a burst of messages."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return ends


def send(sock: socket.socket, message: ToBroker | ToFront, fds: tuple[int, ...] = ()) -> None:
    """Send one message and copies of `fds`. Raises `ValueError` for one that cannot be received."""
    data = _encode(message)
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes: {MAX_MESSAGE} are the most")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    sock.sendmsg([data], ancillary)


def receive_request(sock: socket.socket) -> ToBroker | None:
    """Receive on the broker's side, where no descriptors are accepted; None at the end."""
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(0), socket.MSG_CMSG_CLOEXEC)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or ancillary:
        raise msgspec.ValidationError("message too long, or with descriptors")
    return _decode_to_broker(data) if data else None


def receive_reply(sock: socket.socket) -> tuple[ToFront | None, list[int]]:
    """Receive on the front's side; the descriptors belong to the caller. (None, []) at the end.

    A message whose descriptors this process has no room for comes without any.
    """
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_TRUNC:
        close_all(fds.tolist())
        raise msgspec.ValidationError("message truncated")
    if flags & socket.MSG_CTRUNC:
        close_all(fds.tolist())
        return _decode_to_front(data), []
    return (_decode_to_front(data) if data else None), fds.tolist()


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
