"""Imports a user's function and answers requests for it, one at a time. Runs inside a sandbox as pid 1.

Entered in two ways: `serve(fd)` by a child that a zygote forked, and `main()` by a fresh interpreter that
was exec'd as ``python -I -S -B /var/runtime/handler.py`` with the channel on fd 3. It shares the
interpreter with the user's code: what it imports is kept small, and nothing that the code does by
accident (closing files, leaving children or patched modules behind, forking and returning twice) may
reach the protocol. What the code does on purpose is stopped by the host, which believes nothing that
comes out of a sandbox.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
HERE = os.path.dirname(os.path.abspath(__file__))
if TYPE_CHECKING or __package__:
    from olsock.runtime import measure, shortcut, wire
else:
    # In a sandbox this file stands alone. Its neighbours are loaded by path and renamed, so that a user's
    # own module called `wire` is found where the user put it.
    sys.path.insert(0, HERE)
    try:
        import measure
        import shortcut
        import wire
    finally:
        del sys.path[0]
    for _name in ("measure", "shortcut", "wire"):
        sys.modules[f"_olsock_{_name}"] = sys.modules.pop(_name)

if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

LIBRARY = os.path.join(HERE, "lib")  # what functions may import of ours, unless they bring their own
CHUNK = 64 * 1024
MAX_MESSAGE = 4 * 1024
STARTED = wire.frame(wire.STARTED, 0)
# The channel moves away from 3, where careless code closes it, to the last descriptor that fits the table
# a process is born with: higher ones make every fork of the handler copy a larger table. The fallbacks
# are for a small nofile.
CHANNEL_FDS = (63, 31, 15)
LOG_FDS = (62, 30, 14)

CO_VARARGS = 0x04
CO_GENERATORS = 0x20 | 0x200  # of either kind
REPLY_META = b'{"status":200,"content_type":"application/json"}'
REPLY_PREFIX = wire.META.pack(len(REPLY_META)) + REPLY_META
FIRST_PART = wire.MAX_PAYLOAD - len(REPLY_PREFIX)
Function = type(lambda: None)
ENTRIES = ("OL_ENTRY_FILE", "OL_WSGI_ENTRY", "OL_ASGI_ENTRY")  # OpenLambda's variables


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Bound once: code that patches `os` or `json` (gevent does) changes its own calls only.
_read, _write, _waitid = os.read, os.write, os.waitid
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_encode = json.JSONEncoder(allow_nan=False).encode
# No look for blanks, which takes the regular expressions' part of the interpreter.
_scan: Callable[[str, int], Any] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def neighbour(name: str) -> Any:
    """Return a module of ours that only some functions need, loaded by path under a name that no user's module has."""
    if __package__:
        return __import__(f"olsock.runtime.{name}").runtime.__dict__[name]
    known = f"_olsock_{name}"
    found = sys.modules.get(known)
    if found is None:
        main = sys.modules.get("_olsock_main") or sys.modules["__main__"]
        sys.modules.setdefault("_olsock_handler", main)  # they import this one; in a zygote it has that name already
        path = os.path.join(HERE, f"{name}.py")
        found = type(sys)(known)
        found.__file__ = path
        code = shortcut.compiled(known, path)
        sys.modules[known] = found
        exec(code, found.__dict__)
    return found


async def _nothing() -> None:
    """Exist for its type only."""


_unstarted = _nothing()
_Coroutine = type(_unstarted)
_unstarted.close()
del _unstarted


def code_of(function: Any) -> tuple[Any, Any, bool]:
    """Return the code object of what is called (None if it is built in C), its function, and whether it is bound."""
    for _ in range(32):  # decorators that pass *args say nothing themselves, what they wrap does
        code = getattr(function, "__code__", None)
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None or not (code is None or code.co_flags & CO_VARARGS):
            break
        function = wrapped
    if code is not None:
        return code, function, hasattr(function, "__self__")
    function = getattr(type(function), "__call__", None)  # noqa: B004 - the method is wanted
    return getattr(function, "__code__", None), function, True


def wants_context(function: Any, always: bool = False) -> bool:
    """Tell whether `function` takes a second argument: a required one, or an optional one called context.

    `always`: whatever may take two gets two, as on AWS: `*args`, any second parameter, and what cannot be asked.
    """
    code, function, bound = code_of(function)
    if code is None:
        return always
    if always:
        return code.co_argcount - bound >= 2 or bool(code.co_flags & 0x04)  # inspect.CO_VARARGS
    names = code.co_varnames[int(bound) : code.co_argcount]
    required = len(names) - len(function.__defaults__ or ())
    return required >= 2 or (len(names) >= 2 and names[1] == "context")


def load(config: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """Import what `config` names; return it, and its contract: event, stream, wsgi or asgi.

    A handler is `package.module:attribute`, `package.module.attribute` or, as on AWS, `folder/module.attribute`.
    """
    spec: str = config["handler"]
    module, colon, attribute = spec.partition(":")
    if not colon:
        module, _, attribute = spec.rpartition(".")
    if not module or not attribute:
        raise ValueError(f"handler {spec!r}: expected module:function")
    module, contract, env = module.replace("/", "."), config.get("contract", "auto"), config.get("env") or {}
    if ENTRIES[0] in env or ENTRIES[1] in env or ENTRIES[2] in env:
        module, attribute, contract = neighbour("contracts").override(env, module, attribute, contract)
    shortcut.import_module(module, config["code"], measure.note)
    found: Any = getattr(sys.modules[module], attribute, None)
    if contract == "auto" and type(found) is Function and _takes_events(found):
        return found, "event"
    return neighbour("contracts").find(module, attribute, contract)  # type: ignore[no-any-return]


def _takes_events(function: Any) -> bool:
    """Tell whether this is beyond doubt the commonest kind of function, for which nothing else need be loaded."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return not (
        len(names) > 2
        or (len(names) == 2 and (names[1].startswith("start") or names[0] == "environ"))
        or code.co_flags & (CO_VARARGS | CO_GENERATORS)
        or getattr(function, "__wrapped__", None) is not None
    )


def configure(config: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """Make the process what `config` says (environment, module path, directory); return the handler and its contract."""
    env = config.get("env") or {}
    for name, value in env.items():
        if os.environ.get(name) != value:  # to set one costs a fork ten pages, and most are as they were in the zygote
            os.environ[name] = value
    if "TZ" in env:
        time.tzset()
    code = config["code"]
    sys.path[:] = [code] + [entry for entry in sys.path if entry not in (code, LIBRARY)]
    sys.path += [entry for entry in config.get("path") or () if entry not in sys.path]
    if "opt" in config:
        below = f"{config['opt']}/python"
        packages = f"{below}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        sys.path += [entry for entry in (packages, below) if entry not in sys.path]
    sys.path.append(LIBRARY)
    os.chdir(config.get("cwd") or code)
    return load(config)


def initialise(config: dict[str, Any]) -> tuple[Callable[..., Any], str, dict[str, Any]]:
    """Do what `configure` does; return the handler, its contract, and what READY tells about the import but its time."""
    told: dict[str, Any] = {}
    if config.get("measure") is False:  # all is known of it, and to look takes a fork dozens of pages
        function, contract = configure(config)
    else:
        measure.start(config.get("path") or (), config["code"])
        try:
            function, contract = configure(config)
        finally:
            imports, used = measure.stop(), measure.used()
        if imports:
            told["imports"] = imports
        if used:
            told["used"] = used
    if contract != "event":
        neighbour(contract)
        told["contract"] = contract
    return function, contract, told


def describe(error: BaseException, kind: str) -> bytes:
    """Return the metadata of an ERROR frame. Never raises, whatever the exception's own methods do."""
    try:
        name = plain(type(error).__name__[:256])
    except BaseException:
        name = "Exception"
    try:
        message = plain(str(error)[:MAX_MESSAGE])
    except BaseException:
        message = "<its text cannot be had>"
    try:
        # The other kinds end in code that is not the user's.
        trace = neighbour("traces").text(error) if kind in ("handler", "init") else ""
    except BaseException:  # out of memory or of stack: the name is worth having without the trace
        trace = ""
    try:
        fields = {"kind": kind, "name": name, "message": message, "traceback": trace}
        while True:
            meta = _encode(fields).encode()
            if len(meta) <= wire.MAX_META:
                return meta
            fields["traceback"] = trace = trace[-(len(trace) // 2) :]  # escapes made it longer
            fields["message"] = fields["message"][:1024]
    except BaseException:
        return b'{"kind":"%s","name":"MemoryError","message":"","traceback":""}' % kind.encode()


def plain(text: str) -> str:
    """Escape halves of surrogate pairs: strict parsers take no such text, and the host has one."""
    return text.encode("utf-8", "backslashreplace").decode()


def move_away(fd: int, numbers: tuple[int, ...]) -> int:
    """Return a duplicate of `fd` at the first of `numbers` that the limit on open files allows."""
    for number in numbers:
        try:
            return os.dup2(fd, number, inheritable=False)
        except OSError:
            continue
    return os.dup(fd)


class Channel:
    """This end of the channel: whole frames out, chunks in; a host that is gone ends the process."""

    def __init__(self) -> None:
        self.fd = -1
        self.forked = False
        os.register_at_fork(after_in_child=self._leave)

    def open(self, fd: int) -> None:
        os.set_blocking(fd, True)
        self.fd = move_away(fd, CHANNEL_FDS)
        os.close(fd)

    def _leave(self) -> None:
        """Runs in a child that the handler forked: only the handler itself may speak on the channel."""
        if self.fd >= 0 and not self.forked:
            self.forked = True
            os.close(self.fd)

    def send(self, data: bytes | memoryview) -> None:
        try:
            sent = _write(self.fd, data)
            while sent < len(data):
                data = memoryview(data)[sent:]
                sent = _write(self.fd, data)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)

    def reply(self, request: int, body: bytes) -> None:
        if len(body) <= FIRST_PART:
            length = len(REPLY_PREFIX) + len(body)
            self.send(wire.HEADER.pack(wire.REPLY, 0, 0, length, request) + REPLY_PREFIX + body)
            return
        view = memoryview(body)
        self.send(wire.HEADER.pack(wire.REPLY, wire.MORE, 0, wire.MAX_PAYLOAD, request) + REPLY_PREFIX)
        self.send(view[:FIRST_PART])
        start = FIRST_PART
        while start < len(body):
            part = view[start : start + wire.MAX_PAYLOAD]
            start += len(part)
            more = wire.MORE if start < len(body) else 0
            self.send(wire.HEADER.pack(wire.BODY, more, 0, len(part), request))
            self.send(part)


class Streams:
    """Keeps fds 1 and 2 on the log pipe, and sys.stdout and sys.stderr open."""

    def __init__(self) -> None:
        self.log = -1
        self.mend()
        for stream in (sys.stdout, sys.stderr):
            try:
                # By the line, as a handler that is killed at its deadline loses what is still in a buffer.
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            except (AttributeError, ValueError, OSError):
                pass

    def keep(self) -> None:
        """Have the log pipe once more, only to give 1 and 2 back after a handler closed them."""
        try:
            self.log = move_away(2, LOG_FDS)
        except OSError:
            self.log = -1

    def flush(self) -> None:
        """Push out unfinished lines, so that what an invocation printed is in the log before its reply."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # SystemExit too, if it is somebody's own object
            self.mend()

    def mend(self) -> None:
        """Give back what a handler closed."""
        for fd in (1, 2):
            try:
                os.get_inheritable(fd)  # the cheapest question that a closed descriptor does not answer
            except OSError:
                try:
                    os.dup2(self.log, fd)
                except OSError:
                    pass
        for name, fd in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name, None)
            try:
                broken = stream is None or stream.closed
            except BaseException:
                broken = False  # somebody's own object without that attribute
            if broken:
                errors = "backslashreplace" if fd == 2 else "surrogateescape"
                fresh = os.fdopen(fd, "w", 1, encoding="utf-8", errors=errors, closefd=False)
                setattr(sys, name, fresh)
                setattr(sys, f"__{name}__", fresh)


class Orphans:
    """Reaps children that nobody waits for: to pid 1 comes every orphan of the sandbox.

    A zombie may also be a child that the handler means to wait for in its next invocation, so one is
    taken only when it was there after the invocation before as well.
    """

    PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def reap(self) -> None:
        try:
            if _waitid(os.P_ALL, 0, self.PEEK) is None:
                return
        except ChildProcessError:
            return
        except OSError:
            return
        zombies = set()
        for pid in self._children():
            try:
                if _waitid(os.P_PID, pid, self.PEEK) is not None:
                    zombies.add(pid)
            except OSError:
                continue
        for pid in zombies & self._seen:
            try:
                _waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except OSError:
                pass
        self._seen = zombies - self._seen

    @staticmethod
    def _children() -> list[int]:
        """Pids of our children; where /proc cannot say, every zombie is reaped here instead."""
        try:
            with open("/proc/thread-self/children", "rb") as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except OSError:
            pass
        return []


class Server:
    """One function, one channel, one request at a time."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.streams = Streams()
        self.orphans = Orphans()
        # No bound of its own: the host bounds what it sends, and the sandbox's memory is limited.
        self.parser = wire.Parser(wire.FROM_HOST, sys.maxsize)
        self.config: dict[str, Any] = {}
        self.function: Callable[..., Any] | None = None
        self.context: Any = None  # the class, for a function that takes one
        self.restored: Callable[[], None] | None = None  # what a function forked after its import has to do
        self.successor: Callable[[Any], NoReturn] | None = None  # what answers instead, given the frames that are left
        self._loop: Any = None
        self._begun: list[tuple[int, bytes]] = []  # of a message whose BODY frames are still to come: kinds, payloads

    def open(self, fd: int) -> None:
        """Take the descriptors that are this process's own; all else may have been made before it was forked."""
        self.channel.open(fd)
        self.streams.keep()

    def run(self) -> NoReturn:
        read, fd, feed, whole = _read, self.channel.fd, self.parser.feed, wire.REQUEST
        payload: bytes | None
        while True:
            try:
                data = read(fd, CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                os._exit(0)
            frames = iter(feed(data))
            for kind, flags, request, payload in frames:
                if flags or kind != whole:
                    payload = self.gather(kind, flags, payload, frames)
                    if payload is None:
                        continue
                self.answer(request, payload)
                del payload
                self.mend()

    def gather(self, kind: int, flags: int, payload: bytes, frames: Any) -> bytes | None:
        """Take a frame that is no whole request; return the payload of the request that it completes, if it does.

        What is left for a request that has ended, such as the word that its client has gone, means nothing any more.
        """
        if kind == wire.CONFIG:
            self.start(payload)
            if self.successor is not None:
                self.successor(frames)
            return None
        self._begun.append((kind, payload))
        if flags:
            return None
        begun, self._begun = self._begun, []
        return b"".join([part for _, part in begun]) if begun[0][0] == wire.REQUEST else None

    def mend(self) -> None:
        """Put right what a request may have left behind."""
        self.streams.mend()
        self.orphans.reap()

    def start(self, payload: bytes) -> None:
        """Import the handler and say READY, or say why not and end."""
        began = time.perf_counter()
        try:
            meta, _ = wire.split(payload)
            self.config, _ = _scan(meta.decode(), 0)  # the host's own words, without a blank around them
            self.function, contract, told = initialise(self.config)
            if contract in ("event", "stream") and wants_context(self.function, "LAMBDA_TASK_ROOT" in os.environ):
                self.context = neighbour("context").Context
            if self.restored is not None:
                self.restored()
            if contract != "event":
                neighbour(contract).take_over(self)
        except BaseException as error:
            self.leave_if_forked(error)
            self.streams.flush()
            self.channel.send(wire.message(wire.ERROR, 0, describe(error, "init")))
            os._exit(1)
        self.leave_if_forked(None)
        self.streams.flush()
        took = f'"init_ms":{(time.perf_counter() - began) * 1000:.3f}'
        ready = f"{_encode(told)[:-1]},{took}}}" if told else f"{{{took}}}"
        self.channel.send(wire.message(wire.READY, 0, ready.encode()))

    def answer(self, request: int, payload: bytes) -> None:
        """Call a function with its event. Other contracts put an `answer` of theirs in this one's place."""
        kind = "malformed"
        try:
            # The metadata costs a parse that only a context is worth.
            start = wire.META.size + wire.META.unpack_from(payload)[0]
            event = _decode(payload[start:].decode()) if len(payload) > start else {}
            kind = "handler"
            if self.context:
                context = self.context(request, json.loads(payload[wire.META.size : start]))
                result = self.function(event, context)  # type: ignore[misc]
            else:
                result = self.function(event)  # type: ignore[misc]
            if type(result) is _Coroutine:
                result = self.complete(result)
            if self.channel.forked:
                self.leave_if_forked(None)
            kind = "serialize"
            body = _encode(result).encode()
        except BaseException as error:
            self.fail(request, error, kind)
            return
        self.streams.flush()
        self.channel.reply(request, body)

    def complete(self, coroutine: Any) -> Any:
        """Run a coroutine to its end, on the one event loop that all requests of this process have."""
        if self._loop is None:
            self._loop = neighbour("loop").Loop()  # asyncio takes longer to import than everything else here
        return self._loop.complete(coroutine)

    def fail(self, request: int, error: BaseException, kind: str) -> None:
        """Answer with an error."""
        if self.channel.forked:
            self.leave_if_forked(error)
        if isinstance(error, MemoryError):
            kind = "handler"  # the sandbox is too small, the event and the result are not wrong
        self.streams.flush()
        self.channel.send(wire.message(wire.ERROR, request, describe(error, kind)))

    def report(self, error: BaseException) -> None:
        """Print what failed where no answer can tell of it any more."""
        try:
            sys.stderr.write(neighbour("traces").text(error))
        except BaseException:
            self.streams.mend()

    def leave_if_forked(self, error: BaseException | None) -> None:
        """End a child that the handler forked and that came back out of it, as the interpreter would."""
        if not self.channel.forked:
            return
        status = 0
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        self.streams.flush()
        os._exit(status & 0xFF)


def announce(fd: int) -> None:
    """Say that the sandbox is finished and runs: the first thing to do in it."""
    try:
        os.write(fd, STARTED)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the host is gone already
    # Who waits for this may have been put on our processor's queue, where it would stay for the whole of our time slice
    # while we import: 1 to 2 ms on a machine whose processors share no cache, in every second start.
    os.sched_yield()


def settle() -> Server:
    """Do all that needs neither a function nor a channel; return what will answer. Once is enough for all forks."""
    import _signal  # type: ignore[import-not-found]  # not `signal`: that builds its enums first

    # Python's own handler would raise KeyboardInterrupt at any moment, between two requests too. By
    # default the kernel gives pid 1 neither SIGINT nor SIGTERM from inside its namespace.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    # Code is not to find this program where a script's own module is looked for.
    sys.modules.setdefault("_olsock_main", sys.modules["__main__"])
    sys.modules["__main__"] = type(sys)("__main__")
    return Server()


def serve(fd: int, server: Server | None = None) -> NoReturn:
    """Answer on `fd` until the host closes its end, then end the process; never returns, whatever happens.

    A `server` that is given has been opened already.
    """
    try:
        if server is None:
            server = settle()
            server.open(fd)
        server.run()
    except BaseException as error:
        # The channel means nothing any more: end, the host sees the end of file.
        try:
            os.write(2, f"olsock: runtime failed: {type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(1)
    raise AssertionError("unreachable")


def main() -> NoReturn:
    """Entry of a fresh interpreter: the channel is fd 3."""
    announce(3)
    serve(3)


if __name__ == "__main__":
    main()
