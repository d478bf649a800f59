"""Functions: one handler in one sandbox, forked from a zygote or started in a fresh interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from olsock import host as hosts
from olsock import memory, web
from olsock._core import mounts, process, seccomp
from olsock.box import Command, Mounts, Setup, limits
from olsock.cgroups import Leaf, Stats
from olsock.channel import MAX_REPLY, Channel
from olsock.endpoints import Endpoints, Tail
from olsock.errors import DeadlineError, InvocationError, OlsockError, ProtocolError, SandboxDeadError, SpecError
from olsock.interpreter import ENVIRONMENT, Interpreter
from olsock.memory import Memory
from olsock.owned import Owned
from olsock.readiness import Ready
from olsock.rootfs import OPT, TASK
from olsock.runtime import wire
from olsock.spec import USER, FunctionSpec, ZygoteSpec
from olsock.streams import Stream

LOG_LIMIT = 64 * 1024
INIT_TIMEOUT = 30.0
LAST_BREATH = 0.1  # seconds between the end of a channel and that of its process
TIMEOUT = 30.0
EVENT = {"method": "POST", "path": "/"}  # what a function is told of a call that is no HTTP request


@dataclass(frozen=True, slots=True)
class Handles:
    """A function's file descriptors, for a process that serves it without privilege. They are the receiver's to close."""

    channel: int
    freeze: int  # cgroup.freeze: "1" and "0"
    kill: int  # cgroup.kill: "1"
    events: int  # cgroup.events, opened for this receiver: the poll state belongs to the open file
    memory_events: int | None  # None where memory is limited by cgroup v1, which has no such file
    memory: int | None  # bytes charged now, as text; None without a memory controller
    memory_peak: int | None  # most bytes ever charged, as text; None where the kernel does not tell
    log: int  # read end of stdout and stderr
    pidfd: int  # readable when the handler has ended


@dataclass(slots=True)
class Parts:
    """What a function is made of, however it was started."""

    spec: FunctionSpec
    ends: Endpoints
    leaf: Leaf
    pid: int  # the host's
    pidfd: int
    status: Callable[[], int | None]  # the handler's wait status, once it has ended
    release: Callable[[], None]  # end it and remove what it had


class Function(Owned):
    """A handler in a sandbox of its own. One invocation at a time.

    `code` is a directory, mounted read-only at /var/task; `handler` names the function ("module:function") in it;
    `packages` are directories of installed packages. Options and defaults are those of `FunctionSpec`. This constructor
    starts a fresh interpreter, with an address layout and hash seed of its own; `Zygote.fork` is the fast way.
    """

    def __init__(self, code: str | os.PathLike[str], handler: str = "f:f", **options: Any) -> None:
        spec = FunctionSpec.parse(code=code, handler=handler, **options)
        self._adopt(_start_cold(hosts.current(), spec, Interpreter(spec.python, spec.packages)))

    forked_from: str | None = None
    """The key of the node of an `olsock.ZygoteTree` that it was forked from."""

    was_blank: bool = False
    """Whether it was forked ahead and waited for its function."""

    @classmethod
    def forked(cls, parts: Parts) -> Self:
        """Take over a handler that a zygote has forked."""
        self = cls.__new__(cls)
        self._adopt(parts)
        return self

    def _adopt(self, parts: Parts) -> None:
        self._parts = parts
        self._own()
        self._ready: Ready | None = None
        self.spec = parts.spec
        self._final: Stats | None = None  # of one that has failed
        ends = parts.ends
        self._output = Tail(ends.log, LOG_LIMIT)
        self._errors = Tail(ends.errors, LOG_LIMIT) if ends.errors >= 0 else None
        tails = [self._output] if self._errors is None else [self._output, self._errors]
        self._channel = Channel(ends.channel, aux={tail.fd: tail.read for tail in tails})

    def _read(self, tail: Tail) -> str:
        if not self._closed:
            tail.read()
        return str(tail)

    def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the sandbox is finished and its runtime runs; the handler's module is imported after that."""
        try:
            self._channel.wait_started(timeout or self.spec.timeout or INIT_TIMEOUT)
        except (SandboxDeadError, DeadlineError, ProtocolError) as e:
            raise self._failure(e) from None

    def wait_ready(self, timeout: float | None = None) -> float:
        """Wait until the handler's module is imported; return how many milliseconds that took inside."""
        return self._wait_ready(timeout).init_ms

    @property
    def ready(self) -> Ready:
        """What the runtime told of the import: its time, what it imported from packages, what it used of the zygote's.

        Waits for it as `wait_ready` does. The sandbox says this, and may lie.
        """
        return self._ready or self._wait_ready(None)

    def _wait_ready(self, timeout: float | None) -> Ready:
        try:
            self._ready = self._channel.wait_ready(timeout or self.spec.timeout or INIT_TIMEOUT)
        except (SandboxDeadError, DeadlineError, ProtocolError) as e:
            raise self._failure(e) from None
        return self._ready

    def invoke(self, event: Any = None, timeout: float | None = None) -> Any:
        """Call the handler with `event` (anything JSON can hold) and return its result.

        `timeout` is in seconds. Raises `InvocationError`; its `kind` tells whether the handler raised, its module could
        not be imported, it crashed, ran out of memory or of time. After the last three the function is closed.

        Of a function that generates, all items are returned: joined if they are bytes or text, else as a list.
        """
        meta, answer = self._call(b"" if event is None else json.dumps(event).encode(), timeout or TIMEOUT)
        content_type = meta["content_type"] if meta.get("stream") else ""
        try:
            return _decoded(content_type, answer)
        except (ValueError, RecursionError):
            raise self._failure(ProtocolError(f"the reply is not {content_type or 'JSON'}")) from None

    def exchange(self, body: bytes, timeout: float | None) -> bytes:
        """Do what `invoke` does with JSON as it is sent, and is sent back by a sandbox that need not be believed.

        `timeout` in seconds, None for none. For who parses answers with bounds of its own.
        """
        return self._call(body, timeout)[1]

    def _call(self, body: bytes, timeout: float | None) -> tuple[dict[str, Any], bytes]:
        try:
            return self._channel.invoke(body, EVENT, timeout)
        except (SandboxDeadError, DeadlineError, ProtocolError) as e:
            raise self._failure(e) from None

    def stream(self, event: Any = None, timeout: float | None = None) -> Stream:
        """Call a function that generates; return its items as they are made, as bytes.

        `timeout` in seconds is for all of them. Raises as `invoke` does, until the first item is there.
        """
        body = b"" if event is None else json.dumps(event).encode()
        return Stream(self._channel.exchange(body, EVENT, timeout or TIMEOUT, contracts=("stream",)), self._failure)

    def request(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: web.Headers = (),
        body: bytes = b"",
        timeout: float | None = None,
    ) -> web.Response:
        """Ask a WSGI or ASGI application; `path` may have a query. Raises as `invoke` does.

        What the application answers is a `Response`, whatever its status; 16 MiB at most.
        """
        with self._open(method, path, headers, body, timeout, MAX_REPLY) as stream:
            return web.Response(stream.status, stream.headers, stream.read())

    def request_stream(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: web.Headers = (),
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Stream:
        """Do what `request` does, and return the answer's body as it comes, of whatever length.

        Raises until the application has answered with status and headers.
        """
        return self._open(method, path, headers, body, timeout, None)

    def _open(
        self, method: str, path: str, headers: web.Headers, body: bytes, timeout: float | None, limit: int | None
    ) -> Stream:
        meta = web.request(method, path, headers, body)
        parts = self._channel.exchange(body, meta, timeout or TIMEOUT, contracts=("wsgi", "asgi"), limit=limit)
        return Stream(parts, self._failure)

    def _failure(self, error: Exception) -> InvocationError:
        """Find out why there was no answer, and end what is left."""
        if self._closed:
            return InvocationError("crash", "the function is closed")
        if isinstance(error, DeadlineError):
            found = InvocationError("timeout", str(error))
        elif self._parts.leaf.oom_kills():
            found = InvocationError("oom", f"out of memory (limit {self.spec.memory} bytes)")
        elif isinstance(error, ProtocolError):
            found = InvocationError("crash", f"condemned: {error}")
        elif not process.wait_readable(self._parts.pidfd, LAST_BREATH):
            found = InvocationError("crash", "the handler closed its channel")
        else:
            status = self._parts.status()
            how = "it is gone" if status is None else describe_status(status)
            found = InvocationError("crash", f"the handler's process ended: {how}")
        with contextlib.suppress(OlsockError, OSError):
            self._parts.leaf.kill()  # or what it has left behind could print as fast as it is read
            self._final = self._parts.leaf.stats()
        self._read(self._output)
        if self._errors is not None:
            self._read(self._errors)
        self.close()
        return found

    @property
    def output(self) -> str:
        """The end of what the handler has printed so far (64 KiB at most); without stderr if that is separate."""
        return self._read(self._output)

    @property
    def errors(self) -> str:
        """The end of what it has printed on stderr, if its zygote keeps that separate; else empty."""
        return "" if self._errors is None else self._read(self._errors)

    @property
    def cut(self) -> tuple[bool, bool]:
        """Whether `output` and `errors` are only the end of what was printed."""
        return self._output.cut, self._errors is not None and self._errors.cut

    @property
    def pid(self) -> int:
        """The host's pid of the handler."""
        return self._parts.pid

    @property
    def alive(self) -> bool:
        """Whether the handler can still be invoked."""
        return not self._closed and not process.wait_readable(self._parts.pidfd, 0)

    def pause(self) -> None:
        """Freeze the handler; returns once the kernel has confirmed it."""
        self._parts.leaf.freeze()

    def resume(self) -> None:
        """Let a paused handler go on."""
        self._parts.leaf.thaw()

    def kill(self) -> None:
        """Kill every process in it, at once; what is left is removed by `close`."""
        if not self._closed:
            self._parts.leaf.kill()

    def stats(self) -> Stats:
        """What the sandbox uses and has used; after a failed invocation, what it had used."""
        return self._final or self._parts.leaf.stats()

    def memory(self) -> Memory:
        """What of the memory of its processes is its own, and what it shares (with its zygote, for the most part)."""
        return memory.measure(self._parts.leaf.pids())

    def oom_kills(self) -> int:
        """How many of the sandbox's processes were killed for memory."""
        return self._parts.leaf.oom_kills()

    def handles(self) -> Handles:
        """Return fresh descriptors for handing the function to another process."""
        leaf = self._parts.leaf
        opened: list[int] = []
        optional: list[int | None] = []
        try:
            for fd in (self._parts.ends.channel.fileno(), self._parts.ends.log, self._parts.pidfd):
                opened.append(os.dup(fd))
            opened += [leaf.open_freeze(), leaf.open_kill(), leaf.open_events()]
            for opening in (leaf.open_memory_events, leaf.open_memory, leaf.open_memory_peak):
                optional.append(opening())
        except BaseException:
            process.close_all(*opened, *(fd for fd in optional if fd is not None))
            raise
        channel, log, pidfd, freeze, kill, events = opened
        memory_events, memory, memory_peak = optional
        return Handles(channel, freeze, kill, events, memory_events, memory, memory_peak, log, pidfd)

    def _end(self) -> None:
        try:
            self._parts.release()
        finally:
            self._parts.ends.close()
            process.close_all(self._parts.pidfd)


def config(spec: FunctionSpec, interpreter: Interpreter) -> bytes:
    """The first frame to a handler's runtime: what to import. It waits in the channel until there is a runtime."""
    told = config_of(str(spec.handler), spec.env, interpreter, spec.opt)
    if not spec.measure:
        told["measure"] = False
    if spec.contract != "auto":
        told["contract"] = spec.contract
    if spec.root_path:
        told["root_path"] = spec.root_path
    meta = json.dumps(told).encode()
    if len(meta) > wire.MAX_META:
        raise SpecError("env", f"{len(spec.env)} variables", f"all of them within {wire.MAX_META} bytes")
    return wire.message(wire.CONFIG, 0, meta)


def config_of(handler: str, env: Mapping[str, str], interpreter: Interpreter, opt: str | None) -> dict[str, Any]:
    """What a runtime is told about its function."""
    return {
        **({} if opt is None else {"opt": OPT}),
        "code": TASK,
        "handler": handler,
        "env": {**ENVIRONMENT, **env},
        "path": interpreter.path,
        "cwd": TASK,
    }


def _decoded(kind: str, answer: bytes) -> Any:
    """Return an answer as what its content type says it is."""
    if kind == "application/octet-stream":
        return answer
    if kind.startswith("text/plain"):
        return answer.decode()
    if kind == "application/x-ndjson":
        return [json.loads(line) for line in answer.splitlines()]
    return json.loads(answer) if answer else None


def describe_status(status: int) -> str:
    """Say how a process ended. Pid 1 of a namespace cannot be aborted: abort(3) shows as signal 11 there."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def bind_directory(directory: str, field: str) -> int:
    """A detached, read-only tree of a function's code or packages."""
    tree = mounts.bind(directory, mounts.RDONLY | mounts.NOSUID | mounts.NODEV, recursive=False)
    others = stat.S_IROTH | stat.S_IXOTH
    if os.fstat(tree).st_mode & others != others:
        os.close(tree)
        raise SpecError(field, directory, "a directory that other users may read and enter (chmod o+rx)")
    return tree


def own_trees(spec: FunctionSpec | ZygoteSpec) -> list[tuple[str, int]]:
    """What is a function's own among the mounts: where to, and detached trees, which are the caller's to close."""
    trees: list[tuple[str, int]] = []
    try:
        for target, source, name in ((TASK, spec.code, "code"), (OPT, spec.opt, "opt")):
            if source is not None:
                trees.append((target, bind_directory(source, name)))
    except BaseException:
        process.close_all(*(tree for _, tree in trees))
        raise
    return trees


def _start_cold(host: hosts.Host, spec: FunctionSpec, interpreter: Interpreter) -> Parts:
    """A fresh interpreter in a sandbox: an init with one command, the runtime's handler loop."""
    program = b"" if spec.seccomp == "off" else seccomp.compile(spec.seccomp)
    base = host.bases.place(interpreter.recipe(spec.network != "none"))
    over = Mounts.private(spec)
    trees = own_trees(spec)
    try:
        for target, tree in trees:
            over.tree(target, tree)
        setup = Setup(
            root=base,
            mounts=over,
            hostname=spec.hostname,
            rlimits=limits(spec.nofile, spec.fsize),
            filter=program,
            network=spec.network != "host",
        )
        blank = host.blanks.make(spec.limits, setup)
    finally:
        process.close_all(*(tree for _, tree in trees))
    leaf, box = blank.leaf, blank.box
    pidfd = -1
    ends = Endpoints()
    try:
        ends.send(config(spec, interpreter))
        channel, log = ends.theirs
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            command = Command(interpreter.command("handler.py"), ENVIRONMENT, "/tmp", USER, USER)
            token, _ = box.spawn(command, [null, log, log, channel])
        finally:
            os.close(null)
        ends.close_theirs()
        (pid,) = [pid for pid in leaf.pids() if pid != box.pid][:1] or [0]
        if not pid:
            raise SandboxDeadError("the handler's interpreter ended at once")
        pidfd = process.pidfd_open(pid)

        def status() -> int | None:
            try:
                return box.wait(token, 1.0).status
            except (DeadlineError, SandboxDeadError):
                return None

        return Parts(spec, ends, leaf, pid, pidfd, status, blank.remove)
    except BaseException:
        process.close_all(pidfd)
        ends.close()
        blank.remove()
        raise
