"""A real `olsock-worker up` in a subprocess, with a port, a registry and a state directory of its own."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

READY_WITHIN = 30.0


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The type of an error reply."""
        kind = self.json["error"]["type"]
        assert isinstance(kind, str)
        assert self.json["request_id"] == self.headers["x-request-id"]
        return kind


class WorkerProcess:
    """Started by `start`, stopped by `stop`; may be started again on the same directories after it was killed."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.registry = directory / "registry"
        self.state = directory / "state"
        self.registry.mkdir(parents=True)
        self._config = directory / "worker.toml"
        self._config.write_text(config)
        self._stderr = directory / "stderr"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []  # of all that were started
        self.environment: dict[str, str] = {}  # beside our own
        self.prefix: list[str] = []  # of the command: a program that sets something up and becomes the worker

    # -- life ---------------------------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-I", "-m", "olsock_worker", "up", "--config", str(self._config), "--port", "0"),
            *("--registry", str(self.registry), "--state", str(self.state)),
        ]

    def start(self) -> None:
        """Start, and wait until it is ready."""
        with open(self._stderr, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        self.pids.append(self.process.pid)
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.log()}")
            running = self._running()
            if running.get("pid") == self.process.pid and running.get("port"):
                self.port = running["port"]
                return
            time.sleep(0.01)
        raise AssertionError(f"the worker was not ready in time:\n{self.log()}")

    def _running(self) -> dict[str, Any]:
        try:
            loaded = json.loads((self.state / "worker.json").read_bytes() or b"{}")
        except (FileNotFoundError, ValueError):
            return {}
        assert isinstance(loaded, dict)
        return loaded

    def stop(self, timeout: float = 30.0) -> int:
        """Drain, and return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30.0)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def front(self) -> int:
        """Pid of the unprivileged process."""
        return next(pid for pid in children(self.pid) if Path(f"/proc/{pid}/comm").read_text() == "olsock-front\n")

    def log(self) -> str:
        return self._stderr.read_text(errors="replace")

    def function_log(self, name: str) -> str:
        path = self.state / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def function_log_files(self, name: str) -> str:
        """The whole log, with what was rotated away."""
        found = (self.state / "logs").glob(f"{name}.log*")
        return "".join(
            path.read_text() for path in sorted(found, key=lambda path: -int(path.suffix[1:].replace("log", "0")))
        )

    # -- functions ----------------------------------------------------------------------------------------------------

    def deploy(self, name: str, code: str, yaml: str = "", **files: str) -> None:
        """Put a function into the registry, at once as far as anyone who looks can tell."""
        scratch = self.registry / f".{name}"
        scratch.mkdir()
        (scratch / "f.py").write_text(textwrap.dedent(code))
        if yaml:
            (scratch / "ol.yaml").write_text(textwrap.dedent(yaml))
        for file, text in files.items():
            (scratch / f"{file}.txt").write_text(textwrap.dedent(text))
        old = self.registry / f".{name}.old"
        if (self.registry / name).exists():
            (self.registry / name).rename(old)
        scratch.rename(self.registry / name)
        if old.exists():
            for path in old.iterdir():
                path.unlink()
            old.rmdir()

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self,
        path: str,
        body: bytes | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def call(self, name: str, event: Any = None, timeout: float = 30.0) -> Reply:
        """Invoke a function."""
        return self.request(f"/run/{name}", b"" if event is None else json.dumps(event).encode(), timeout=timeout)

    def status(self) -> Any:
        return self.request("/status", method="GET").json

    def stats(self) -> Any:
        return self.request("/stats", method="GET").json

    def connect(self, timeout: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def growth(self, work: Callable[[], object]) -> int:
        """Return by how many bytes the front grew at most while `work` was done."""
        front, done = psutil.Process(self.front), threading.Event()
        before = largest = front.memory_info().rss

        def watch() -> None:
            nonlocal largest
            while not done.wait(0.02):
                largest = max(largest, front.memory_info().rss)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            work()
        finally:
            done.set()
            thread.join()
        return largest - before

    def until(self, condition: Any, timeout: float = 20.0) -> Any:
        """Ask again until something true comes back."""
        end = time.monotonic() + timeout
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < end, f"{condition} not met in {timeout} s\n{self.log()}"
            time.sleep(0.02)

    def zygotes_ready(self) -> list[Any]:
        """Wait until every zygote is ready."""

        def ready() -> list[Any]:
            zygotes = self.status()["zygotes"]
            return zygotes if zygotes and all(each["state"] == "ready" for each in zygotes) else []

        found = self.until(ready)
        assert isinstance(found, list)
        return found


def children(pid: int) -> list[int]:
    """Pids of the direct children, of whichever thread."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += [int(each) for each in (task / "children").read_text().split()]
    return found


def ended(pid: int, timeout: float) -> bool:
    """Wait until a process that need not be our child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
