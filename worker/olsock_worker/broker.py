"""The privileged process: carries out a handful of requests of the front with the library.

No network, no HTTP, no byte of a client: what reaches it are messages of fixed types, and every path among them is
resolved beneath the worker's own store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

import olsock
from olsock import bytecode
from olsock_worker import broker_protocol
from olsock_worker.beneath import open_beneath
from olsock_worker.broker_protocol import (
    Compile,
    Compiled,
    Deploy,
    Done,
    Drain,
    Evict,
    Failed,
    Install,
    Installed,
    Learnt,
    Measure,
    Measured,
    OomKills,
    Registry,
    Release,
    Remove,
    Serving,
    Start,
    Started,
    Stop,
    ToFront,
    Unpack,
)
from olsock_worker.installs import Busy, Installation, Installs
from olsock_worker.layering import PLACE
from olsock_worker.logs import WorkerLog
from olsock_worker.made import Made
from olsock_worker.planner import Planner
from olsock_worker.settings import Settings
from olsock_worker.unpacks import Unpacks
from olsock_worker.zygotes import Zygotes

_THREADS = 16
_COMPILERS = 2  # sandboxes that compile at one time; an honest front asks for one
_MEASURED = 2000  # instances at most that one answer tells the memory of
_SLACK = 64  # instances that are being removed while their successors start
_LATE = 5.0  # seconds that a draining front gets beyond its grace
_LONGEST = 16 * 1024  # characters of what a resolver says that are passed on
_FAILURES = (olsock.OlsockError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class _Instance:
    """One sandbox with a function in it, and what it needs for as long as it lives."""

    made: Made
    code: str
    installation: Installation


class Broker:
    """Serves one front until it ends."""

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        front: subprocess.Popen[bytes],
        code_fd: int,
        store_fd: int,
        installs: Installs,
        planner: Planner,
        on_serving: Callable[[], None],
        log: WorkerLog,
    ) -> None:
        self._settings = settings
        self._sock = sock
        self._front = front
        self._code = code_fd
        self._installs = installs
        self._on_serving = on_serving
        self._log = log
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="broker")
        self._numbers = itertools.count(1)
        self._instances: dict[int, _Instance] = {}
        self._pending = self._compiling = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = self._forced = False
        self._front_ended = asyncio.Event()
        self._unpacks = Unpacks(settings, store_fd, self._send, log)
        self._zygotes = Zygotes(settings, installs, planner, (self._open_code, self._open_layers), self._send, log)

    async def run(self) -> int:
        """Serve; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        pidfd = os.pidfd_open(self._front.pid)
        loop.add_reader(pidfd, self._front_ended.set)
        loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            await self._front_ended.wait()
        finally:
            loop.remove_reader(pidfd)
            loop.remove_reader(self._sock.fileno())
            os.close(pidfd)
        status = self._front.wait()
        sound = self._draining and status == 0 and not self._forced
        if not sound:
            self._log("error", "front_ended", status=status, forced=self._forced)
        await self._close()
        return 0 if sound else 1

    def _on_signal(self) -> None:
        loop = asyncio.get_running_loop()
        if self._draining:
            self._kill_front()
            return
        self._draining = True
        self._send(Drain())
        loop.call_later(self._settings.drain + _LATE, self._kill_front)

    def _kill_front(self) -> None:
        self._forced = True
        with contextlib.suppress(ProcessLookupError):
            self._front.kill()

    async def _close(self) -> None:
        """Remove every instance and zygote."""
        for task in list(self._tasks):
            task.cancel()
        loop = asyncio.get_running_loop()
        ends = [
            loop.run_in_executor(self._pool, _close_function, each.made.function) for each in self._instances.values()
        ]
        self._instances.clear()
        if ends:
            await asyncio.wait(ends, timeout=30.0)
        await self._zygotes.close()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            message = broker_protocol.receive_request(self._sock)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = None  # it ended without having read all that it was told
        except (OSError, msgspec.MsgspecError) as error:
            # A front that does not keep to the protocol is broken or not ours any more: there is nothing to save in it.
            self._log("error", "bad_request", error=str(error))
            self._kill_front()
            return
        if message is None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
        elif isinstance(message, Start):
            self._begin(self._start(message, self._installs.hold(message.installation)))
        elif isinstance(message, Stop):
            self._begin(self._stop(message))
        elif isinstance(message, OomKills):
            self._begin(self._oom_kills(message))
        elif isinstance(message, Install):
            self._begin(self._install(message))
        elif isinstance(message, Compile):
            self._begin(self._compile(message, self._installs.hold(message.installation)))
        elif isinstance(message, Unpack):
            self._begin(self._unpacks.unpack(message))
        elif isinstance(message, Measure):
            self._begin(self._measure(message))
        elif isinstance(message, Deploy | Remove | Release | Learnt | Evict):
            self._note(message)
            self._send(Done(message.id))
        elif isinstance(message, Registry):
            self._registry(message)
        elif isinstance(message, Serving):
            self._on_serving()
            self._send(Done(message.id))

    def _note(self, message: Deploy | Remove | Release | Learnt | Evict) -> None:
        """Take notice of what needs no answer."""
        if isinstance(message, Deploy):
            self._zygotes.deploy(message)
        elif isinstance(message, Remove):
            self._zygotes.remove(message.name)
        elif isinstance(message, Release):
            self._installs.retire(message.installation)
        elif isinstance(message, Evict):
            self._zygotes.evict(message.key)
        else:
            instance = self._instances.get(message.instance)
            if instance is not None:
                # One that was not asked to measure has told nothing, whatever it says.
                imports = message.imports if instance.made.function.spec.measure else None
                told = imports, message.used
                self._zygotes.learnt(instance.code, instance.made.key, instance.installation, told)

    def _begin(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, message: ToFront, fds: tuple[int, ...] = ()) -> None:
        try:
            broker_protocol.send(self._sock, message, fds)
        except OSError as error:
            if isinstance(error, BlockingIOError):  # the front has not read for a megabyte
                self._kill_front()

    async def _start(self, message: Start, installation: Installation | None) -> None:
        if installation is None:
            self._send(Failed(message.id, "refused", f"there is no installation {message.installation}"))
            return
        if len(self._instances) + self._pending >= self._settings.instances + _SLACK:
            self._installs.release(installation)
            self._send(Failed(message.id, "busy", "too many instances"))
            return
        self._pending += 1
        try:
            number = await self._add(message, installation)
            try:
                self._hand_over(message.id, number)
            except BaseException:
                await self._end(number)
                raise
        except olsock.SpecError as error:
            self._send(Failed(message.id, "refused", str(error)))
        except Exception as error:  # whatever it was, someone waits for the answer
            self._log("error", "start", code=message.code, error=str(error) or repr(error))
            self._send(Failed(message.id, "kernel", str(error)))
        finally:
            self._pending -= 1

    @contextlib.contextmanager
    def _open_code(self, path: str) -> Iterator[str]:
        """Open code of the front's by a path of our own, which is good until the end of the block."""
        code = open_beneath(self._code, path, os.O_PATH | os.O_DIRECTORY, "code")
        try:
            yield f"/proc/self/fd/{code}"
        finally:
            os.close(code)

    @contextlib.contextmanager
    def _open_layers(self, name: str) -> Iterator[dict[str, str]]:
        """Open a tree of layers of the front's by its name; gives the option that has it at /opt, if there is one."""
        if not name:
            yield {}
            return
        with self._open_code(f"{PLACE}/{name}") as path:
            yield {"opt": path}

    async def _add(self, message: Start, installation: Installation) -> int:
        """Make an instance, which keeps the use of the installation; return its number."""
        try:
            with self._open_code(message.code) as code, self._open_layers(message.layers) as opt:
                made = await self._make(message, code, installation, opt)
        except BaseException:
            self._installs.release(installation)
            raise
        number = next(self._numbers)
        self._instances[number] = _Instance(made, message.code, installation)
        return number

    async def _make(self, message: Start, code: str, installation: Installation, opt: dict[str, str]) -> Made:
        """Fork from a zygote if there is one, or else begin a fresh interpreter."""
        options = {**_asked(message), **_limits(message), **opt}
        made = await self._zygotes.start(message, code, installation, options)
        if made is None:
            work = partial(self._cold, message, code, installation, options)
            function = await asyncio.get_running_loop().run_in_executor(self._pool, work)
            made = Made(function, "", "cold", lambda: None)
        return made

    def _cold(self, message: Start, code: str, installation: Installation, options: dict[str, Any]) -> olsock.Function:
        return olsock.Function(
            code=code,
            handler=message.handler,
            packages=[*installation.packages, *self._settings.packages],
            python=installation.python,
            **options,
        )

    def _hand_over(self, request: int, number: int) -> None:
        """Give the front what it needs to run and to stop the instance, and nothing that could reach beyond it."""
        instance = self._instances[number]
        made = instance.made
        handles = made.function.handles()
        fds = [handles.channel, handles.freeze, handles.kill, handles.log, handles.pidfd]
        optional = handles.memory_events, handles.memory, handles.memory_peak
        fds += [fd for fd in optional if fd is not None]
        try:
            self._send(
                Started(request, number, made.key, made.origin, *(fd is not None for fd in optional)), tuple(fds)
            )
        finally:
            broker_protocol.close_all([*fds, handles.events])

    async def _stop(self, message: Stop) -> None:
        await self._end(message.instance)
        self._send(Done(message.id))

    async def _end(self, number: int) -> None:
        instance = self._instances.pop(number, None)
        if instance is None:
            return
        await asyncio.get_running_loop().run_in_executor(self._pool, _close_function, instance.made.function)
        instance.made.release()
        self._installs.release(instance.installation)

    async def _oom_kills(self, message: OomKills) -> None:
        instance, kills = self._instances.get(message.instance), 0
        if instance is not None:
            with contextlib.suppress(*_FAILURES):
                kills = await asyncio.get_running_loop().run_in_executor(self._pool, instance.made.function.oom_kills)
        self._send(Done(message.id, kills))

    async def _measure(self, message: Measure) -> None:
        def measure() -> tuple[tuple[int, int, int], ...]:
            found = []
            for number, instance in instances:
                with contextlib.suppress(*_FAILURES):
                    memory = instance.made.function.memory()
                    found.append((number, memory.unique, memory.proportional))
            return tuple(found)

        instances = list(self._instances.items())[:_MEASURED]
        self._send(Measured(message.id, await asyncio.get_running_loop().run_in_executor(self._pool, measure)))

    async def _install(self, message: Install) -> None:
        try:
            installation = await self._installs.install(message.path, message.runtime)
        except Busy as error:
            self._send(Failed(message.id, "busy", str(error)))
        except Exception as error:  # whatever it was, someone waits for the answer
            self._log("warning", "not_installed", path=message.path, error=str(error))
            self._send(Failed(message.id, "refused", (str(error) or repr(error))[:_LONGEST]))
        else:
            self._send_file(Installed(message.id, installation.number, installation.names), installation.lock.encode())

    async def _compile(self, message: Compile, installation: Installation | None) -> None:
        if installation is None:
            self._send(Failed(message.id, "refused", f"there is no installation {message.installation}"))
            return
        if self._compiling >= _COMPILERS:
            self._installs.release(installation)
            self._send(Failed(message.id, "busy", "too much is being compiled"))
            return
        self._compiling += 1
        try:
            with self._open_code(message.code) as code:
                work = partial(bytecode.compile_code, code, installation.python)
                answer = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except Exception as error:  # whatever it was, someone waits for the answer
            self._send(Failed(message.id, "refused", (str(error) or repr(error))[:_LONGEST]))
        else:
            self._send_file(Compiled(message.id), answer)
        finally:
            self._compiling -= 1
            self._installs.release(installation)

    def _send_file(self, message: ToFront, content: bytes) -> None:
        fd = os.memfd_create("content", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
            self._send(message, (fd,))
        finally:
            os.close(fd)

    def _registry(self, message: Registry) -> None:
        try:
            fd = os.open(self._settings.registry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._send(Failed(message.id, "refused", f"registry {self._settings.registry}: {error.strerror}"))
            return
        try:
            self._send(Done(message.id), (fd,))
        finally:
            os.close(fd)


def _asked(message: Start) -> dict[str, Any]:
    return {"env": message.env, "contract": message.contract, "root_path": message.root_path}


def _limits(message: Start) -> dict[str, float | int | None]:
    return {"memory": message.memory, "cpus": message.cpus, "pids": message.pids, "tmpfs_size": message.tmpfs_size}


def _close_function(function: olsock.Function) -> None:
    with contextlib.suppress(*_FAILURES):
        function.close()
