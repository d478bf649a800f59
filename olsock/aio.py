"""asyncio versions of everything that waits: `async with olsock.aio.Sandbox() as box: await box.run([...])`.

Each waits in a thread of a pool of its own, since what it waits for (clones, mounts, removals) are system calls that know
no readiness. Cancelling ends what was waited for: a cancelled `run` leaves no program behind, a cancelled `invoke` no
handler, a cancelled start no sandbox. What does not wait is on the object behind: `box.sync.pid`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Generic, ParamSpec, Protocol, Self, TypeVar

from olsock import function, packages, python_pool, sandbox, streams, web, zygote
from olsock.cgroups import Stats
from olsock.errors import OlsockError
from olsock.function import Handles
from olsock.memory import Memory
from olsock.packages import Closure, Lock
from olsock.packages.eviction import Contents
from olsock.pipes import DEVNULL, PIPE
from olsock.results import Completed
from olsock.sandbox import OUTPUT_LIMIT
from olsock.snippets import ExecResult
from olsock.spec import Size

THREADS = 128  # waits at once; more wait for their turn
END_THREADS = 8  # of their own, or what ends a wait could wait for its turn behind it


class _Closable(Protocol):
    def close(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=_Closable)
T = TypeVar("T", bound=_Closable)

_pool: ThreadPoolExecutor | None = None
_end_pool: ThreadPoolExecutor | None = None
_ends: set[asyncio.Future[None]] = set()  # what goes on after a cancellation; the loop itself keeps no reference


async def _wait(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `call` in a thread. When cancelled, it runs on unheard."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="olsock-aio")
    return await asyncio.get_running_loop().run_in_executor(_pool, lambda: call(*args, **kwargs))


async def _end(call: Callable[[], object]) -> None:
    """Run what ends something in a thread."""
    global _end_pool
    if _end_pool is None:
        _end_pool = ThreadPoolExecutor(END_THREADS, thread_name_prefix="olsock-aio-end")
    await asyncio.get_running_loop().run_in_executor(_end_pool, call)


async def _wait_or_end(end: Callable[[], Any], call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """As `_wait`; when cancelled, `end` what `call` waits for, and see it through."""
    waiting = asyncio.ensure_future(_wait(call, *args, **kwargs))
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:

        async def ended() -> None:
            try:
                await _end(end)
            except OlsockError:
                pass  # it ended by itself meanwhile
            await asyncio.gather(waiting, return_exceptions=True)

        await _surely(ended())
        raise


async def _wait_or_drop(make: Callable[P, C], /, *args: P.args, **kwargs: P.kwargs) -> C:
    """As `_wait` for something that has to be closed; when cancelled, close it as soon as it is made."""
    making = asyncio.ensure_future(_wait(make, *args, **kwargs))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:

        async def dropped() -> None:
            (made,) = await asyncio.gather(making, return_exceptions=True)
            if not isinstance(made, BaseException):
                await _end(made.close)

        await _surely(dropped())
        raise


async def _surely(work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work`, which goes on if its waiter is cancelled once more."""
    task = asyncio.ensure_future(work)
    _ends.add(task)
    task.add_done_callback(_ends.discard)
    await asyncio.shield(task)


class _Owned(Generic[T]):
    """What `async with` and `close` have in common. The thing itself is `sync`."""

    sync: T

    async def close(self) -> None:
        """End it and remove every trace. Idempotent."""
        await _surely(_end(self.sync.close))

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Made(_Owned[T]):
    """Made on entering the context, or by awaiting it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    async def start(self) -> Self:
        """Make it."""
        self.sync = await _wait_or_drop(self._make)
        return self

    def __await__(self) -> Any:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        return await self.start()


class Process(_Owned[sandbox.Process]):
    """A running program; see `olsock.Process`."""

    def __init__(self, sync: sandbox.Process) -> None:
        self.sync = sync

    @property
    def pid(self) -> int:
        """Its pid inside the sandbox."""
        return self.sync.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None until it was waited for."""
        return self.sync.returncode

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to its stdin, if one was asked for."""
        return self.sync.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe from its stdout, if one was asked for."""
        return self.sync.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """The pipe from its stderr, if one was asked for."""
        return self.sync.stderr

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; cancelling kills it."""
        return await _wait_or_end(self.sync.kill, self.sync.wait, timeout)

    async def complete(
        self, input: bytes = b"", timeout: float | None = None, output_limit: int = OUTPUT_LIMIT
    ) -> Completed:
        """Feed `input`, read all output, wait; cancelling kills it."""
        return await _wait_or_end(self.sync.kill, self.sync.complete, input, timeout, output_limit)

    def send_signal(self, number: int) -> None:
        """Signal the program and what it started in its process group."""
        self.sync.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.sync.kill()

    async def __aenter__(self) -> Self:
        return self


class Sandbox(_Made[sandbox.Sandbox]):
    """See `olsock.Sandbox`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda: sandbox.Sandbox(**options))

    async def run(
        self,
        argv: Sequence[str | bytes],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
        output_limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """Run a program to its end; cancelling kills it."""
        child = await self.popen(argv, stdin=DEVNULL if input is None else PIPE, env=env, cwd=cwd)
        async with child:
            done = await child.complete(input or b"", timeout, output_limit)
        if check:
            done.check_returncode()
        return done

    async def popen(self, argv: Sequence[str | bytes], **options: Any) -> Process:
        """Start a program and return it running."""
        return Process(await _wait_or_drop(self.sync.popen, argv, **options))

    async def pause(self) -> None:
        """Freeze every process of the sandbox."""
        await _wait(self.sync.pause)

    async def resume(self) -> None:
        """Let a paused sandbox go on."""
        await _wait(self.sync.resume)

    async def stats(self) -> Stats:
        """What the sandbox uses and has used."""
        return await _wait(self.sync.stats)


class Stream(_Owned[streams.Stream]):
    """See `olsock.Stream`: to be iterated over with `async for`. Cancelling that ends the function."""

    def __init__(self, owner: function.Function, sync: streams.Stream) -> None:
        self._owner, self.sync = owner, sync

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.sync.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Its headers."""
        return self.sync.headers

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        part = await _wait_or_end(self._owner.close, next, self.sync, None)
        if part is None:
            raise StopAsyncIteration
        return part

    async def __aenter__(self) -> Self:
        return self


class Function(_Made[function.Function]):
    """See `olsock.Function`."""

    def __init__(self, code: str | os.PathLike[str], handler: str = "f:f", **options: Any) -> None:
        super().__init__(lambda: function.Function(code, handler, **options))

    async def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the handler's sandbox is complete and its interpreter runs."""
        return await _wait_or_end(self.sync.close, self.sync.wait_started, timeout)

    async def wait_ready(self, timeout: float | None = None) -> float:
        """Wait until the handler's module is imported."""
        return await _wait_or_end(self.sync.close, self.sync.wait_ready, timeout)

    async def invoke(self, event: Any = None, timeout: float | None = None) -> Any:
        """Call the handler; cancelling ends it, as nobody would read its answer."""
        return await _wait_or_end(self.sync.close, self.sync.invoke, event, timeout)

    async def stream(self, event: Any = None, timeout: float | None = None) -> Stream:
        """Call a function that generates; cancelling ends it."""
        return Stream(self.sync, await _wait_or_end(self.sync.close, self.sync.stream, event, timeout))

    async def request(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: web.Headers = (),
        body: bytes = b"",
        timeout: float | None = None,
    ) -> web.Response:
        """Ask a WSGI or ASGI application; cancelling ends it."""
        return await _wait_or_end(
            self.sync.close, self.sync.request, method, path, headers=headers, body=body, timeout=timeout
        )

    async def request_stream(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: web.Headers = (),
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Stream:
        """Ask a WSGI or ASGI application, and read its answer as it comes; cancelling ends it."""
        opened = await _wait_or_end(
            self.sync.close, self.sync.request_stream, method, path, headers=headers, body=body, timeout=timeout
        )
        return Stream(self.sync, opened)

    async def exchange(self, body: bytes, timeout: float | None) -> bytes:
        """Call the handler with JSON as it is sent; cancelling ends it."""
        return await _wait_or_end(self.sync.close, self.sync.exchange, body, timeout)

    async def pause(self) -> None:
        """Freeze the handler."""
        await _wait(self.sync.pause)

    async def resume(self) -> None:
        """Let a paused handler go on."""
        await _wait(self.sync.resume)

    async def stats(self) -> Stats:
        """What the sandbox uses and has used."""
        return await _wait(self.sync.stats)

    async def memory(self) -> Memory:
        """What of the memory of its processes is its own, and what it shares."""
        return await _wait(self.sync.memory)

    def handles(self) -> Handles:
        """Fresh descriptors for handing the function to another process."""
        return self.sync.handles()


class Zygote(_Made[zygote.Zygote]):
    """See `olsock.Zygote`."""

    def __init__(self, imports: Sequence[str] = (), **options: Any) -> None:
        super().__init__(lambda: zygote.Zygote(imports, **options))

    def fork(self, code: str | os.PathLike[str] | None = None, handler: str | None = None, **options: Any) -> _Forked:
        """Fork a handler: to be awaited, or entered with `async with`."""
        return _Forked(lambda: self.sync.fork(code, handler, **options))

    def child(self, imports: Sequence[str] = (), **options: Any) -> _Child:
        """Fork a zygote: to be awaited, or entered with `async with`."""
        return _Child(lambda: self.sync.child(imports, **options))

    async def stats(self) -> Stats:
        """What the zygote itself uses."""
        return await _wait(self.sync.stats)

    async def memory(self) -> Memory:
        """What of the memory of the zygote itself is its own, and what it shares."""
        return await _wait(self.sync.memory)


class _Forked(Function):
    """A function that a zygote makes."""

    def __init__(self, make: Callable[[], function.Function]) -> None:
        _Made.__init__(self, make)


class _Child(Zygote):
    """A zygote that a zygote makes."""

    def __init__(self, make: Callable[[], zygote.Zygote]) -> None:
        _Made.__init__(self, make)


class PackageStore(_Made[packages.PackageStore]):
    """See `olsock.PackageStore`. Cancelling waits for nothing: what goes on in a sandbox ends by itself, and is kept."""

    def __init__(self, directory: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(lambda: packages.PackageStore(directory, **options))

    async def resolve(self, requirements: Sequence[str], python: str | os.PathLike[str] | None = None) -> Lock:
        """Return the exact distributions that requirements mean for an interpreter."""
        return await _wait(self.sync.resolve, requirements, python)

    async def install(self, lock: Lock, python: str | os.PathLike[str] | None = None) -> Closure:
        """Install what is missing of a lock and return its closure, which is the caller's to close."""
        return await _wait_or_drop(self.sync.install, lock, python)

    async def contents(self) -> Contents:
        """Count the packages, the closures and the bytes of the store."""
        return await _wait(self.sync.contents)

    async def evict(self, max_bytes: Size) -> int:
        """Remove the least valuable until `max_bytes` are left."""
        return await _wait(self.sync.evict, max_bytes)


class PythonPool(_Made[python_pool.PythonPool]):
    """See `olsock.PythonPool`. Calls that wait for their turn cost no thread."""

    def __init__(self, imports: Sequence[str] = (), **options: Any) -> None:
        super().__init__(lambda: python_pool.PythonPool(imports, **options))

    async def exec(
        self,
        source: str,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = 2.0,
        *,
        wait: float | None = None,
        filename: str = "<snippet>",
        check: bool = False,
    ) -> ExecResult:
        """Run `source` in a fresh sandbox; cancelling ends it."""
        call = self.sync.call(source, inputs, timeout, filename=filename, wait=wait)
        turn = call.ask()
        try:
            await asyncio.wait_for(asyncio.wrap_future(turn), call.deadline.seconds())
        except BaseException as error:
            call.give_up(turn)
            if isinstance(error, TimeoutError):
                raise call.late() from None
            raise
        result = await _wait_or_end(call.cancel, call.run)
        if check:
            result.check()
        return result
