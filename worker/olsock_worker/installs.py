"""What functions have had installed: resolved, put into the package store, and held for as long as somebody uses it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import olsock
from olsock import Closure, Lock, PackageStore, interpreters
from olsock.interpreters import Runtime
from olsock_worker import locks
from olsock_worker.beneath import open_beneath
from olsock_worker.logs import WorkerLog
from olsock_worker.settings import Settings

_WAITING = 1000  # requests that may wait for their turn
_INSTALLED = 20_000  # installations at one time
_Result = TypeVar("_Result")


class Busy(Exception):
    """Too much waits already."""


class Installation:
    """An interpreter and a directory of packages, under the number that the front knows them by."""

    def __init__(self, number: int, python: str | None, runtime: Runtime | None, closure: Closure | None) -> None:
        self.number = number
        self.python = python  # None: our own interpreter
        self.runtime = runtime  # None: not looked at yet
        self.closure = closure
        self.uses = 1  # the front's own, and one for each instance

    @property
    def packages(self) -> list[str]:
        """Directories for a sandbox."""
        return [str(self.closure.directory)] if self.closure is not None else []

    @property
    def names(self) -> tuple[str, ...]:
        """All that is installed, as "name==version"."""
        return tuple(sorted(self.closure.packages)) if self.closure is not None else ()

    @property
    def lock(self) -> str:
        """The lock's text."""
        return self.closure.lock.text if self.closure is not None else ""


class Installs:
    """Installs a few at a time, in threads of their own: starts never wait behind them. To be used on one loop."""

    def __init__(
        self, settings: Settings, directory: str, environment: Mapping[str, str], locks_fd: int, log: WorkerLog
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._environment = environment
        self._locks = locks_fd
        self._log = log
        self._numbers = itertools.count(1)
        self._installed = {0: Installation(0, settings.python, None, None)}
        self._resolving = asyncio.Semaphore(settings.installs)
        self._installing = asyncio.Semaphore(settings.installs)  # what is locked never waits for an index
        self._waiting = 0
        self._making = threading.Lock()
        self._store: PackageStore | None = None
        self._found: dict[str, Runtime] | None = None

    async def install(self, path: str, runtime: str) -> Installation:
        """Install what the files at `path`, below the locks, ask for; the caller has one use of it."""
        if self._waiting >= _WAITING or len(self._installed) >= _INSTALLED:
            raise Busy("there are too many installations already")
        self._waiting += 1
        try:
            required = self._read(path, locks.REQUIREMENTS).splitlines()
            found = await _in_thread(lambda: self._runtime(runtime))
            closure = await self._close(required, self._read(path, locks.LOCK), found) if required else None
        finally:
            self._waiting -= 1
        number = next(self._numbers)
        python = found.path if runtime else self._settings.python
        made = self._installed[number] = Installation(number, python, found, closure)
        return made

    async def runtime(self, installation: Installation) -> Runtime:
        """Return what interpreter an installation is for."""
        if installation.runtime is None:
            installation.runtime = await _in_thread(lambda: self._runtime(""))
        return installation.runtime

    async def nothing(self, runtime: Runtime) -> tuple[PackageStore, Closure]:
        """Return the store, and an empty closure for an interpreter, which is the caller's to close."""

        def install() -> tuple[PackageStore, Closure]:
            store = self._packages()
            return store, store.install(Lock(runtime.tag, (), ()), runtime.path)

        return await _in_thread(install)

    @property
    def busy(self) -> bool:
        """Whether something is being resolved or installed."""
        return self._waiting > 0

    def hold(self, number: int) -> Installation | None:
        """Use an installation once more; None if there is no such one."""
        found = self._installed.get(number)
        if found is not None:
            found.uses += 1
        return found

    def retire(self, number: int) -> None:
        """Let no new instance use an installation, and end the front's own use of it."""
        if number:
            found = self._installed.pop(number, None)
            if found is not None:
                self.release(found)

    def release(self, installation: Installation) -> None:
        """End one use. After the last one the packages may be evicted."""
        installation.uses -= 1
        if not installation.uses and installation.closure is not None:
            installation.closure.close()

    def _read(self, path: str, suffix: str) -> str:
        try:
            fd = open_beneath(self._locks, path + suffix, os.O_RDONLY | os.O_NONBLOCK, "path")
        except olsock.KernelError as error:
            if error.errno == errno.ENOENT:
                return ""
            raise
        try:
            return locks.read(fd)
        finally:
            os.close(fd)

    def _runtime(self, name: str) -> Runtime:
        if not name:
            return interpreters.get(self._settings.python or sys.executable)
        with self._making:
            if self._found is None:
                self._found = interpreters.find(self._settings.pythons)
        if name not in self._found:
            raise olsock.SpecError("runtime", name, f"one of {', '.join(self._found)}, or one added to `pythons`")
        return self._found[name]

    async def _close(self, required: list[str], text: str, runtime: Runtime) -> Closure:
        """Resolve, unless a lock says to what, and install."""
        lock = await _in_thread(lambda: self._locked(required, text, runtime))
        if lock is None:
            async with self._resolving:
                lock = await _in_thread(lambda: self._packages().resolve(required, runtime.path))
        async with self._installing:
            return await _in_thread(lambda: self._packages().install(lock, runtime.path))

    def _locked(self, required: list[str], text: str, runtime: Runtime) -> Lock | None:
        """Return the lock in `text` if it is one for these requirements and this interpreter."""
        if not text:
            return None
        try:
            lock = Lock.parse(text)
        except olsock.OlsockError as error:
            self._log("warning", "bad_lock", error=str(error))
            return None
        return lock if lock.requirements == tuple(required) and lock.tag == runtime.tag else None

    def _packages(self) -> PackageStore:
        """Return the store, opened when it is needed for the first time."""
        with self._making:
            if self._store is None:
                settings = self._settings
                self._store = PackageStore(
                    self._directory,
                    max_bytes=settings.package_bytes,
                    allow_source=settings.allow_source,
                    network=settings.package_network,
                    environment=self._environment,
                    timeout=settings.install_timeout,
                )
            return self._store


async def _in_thread(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a thread that the end of the process does not wait for: it may be waiting for an index."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="install", daemon=True).start()
    return await future
