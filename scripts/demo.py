"""What scripts/demo does once everything is installed."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "worker" / "examples" / "hello-pandas"
PACKAGES = ["numpy", "pandas"]
EVENT = {"name": "demo"}
WARM_CALLS = 50
PATIENCE = 60.0  # seconds for the worker to be ready, or a zygote to be built

T = TypeVar("T")

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on, or did not see what it should have."""


def step(text: str) -> None:
    console.print(f"[bold cyan]demo[/] {text}")


def packages() -> Path:
    """Install numpy and pandas into a directory of their own, once; whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "olsock"
    target = cache / f"demo-packages-{sys.implementation.cache_tag}"
    if target.is_dir():
        step(f"packages for functions: {target}")
        return target
    step(f"installing {' and '.join(PACKAGES)} for the functions into {target}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        fresh = Path(work) / "packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", str(fresh)]
        if subprocess.run([*pip, *PACKAGES], check=False).returncode:
            raise DemoError("pip could not install them: is a package index reachable?")
        fresh.chmod(0o755)
        fresh.rename(target)
    return target


class Worker:
    """An `olsock-worker up` of our own, with everything it keeps in one temporary directory."""

    def __init__(self, folder: Path, package_folder: Path) -> None:
        self.registry, self.state, self._log = folder / "registry", folder / "state", folder / "log"
        self.registry.mkdir()
        config = folder / "worker.toml"
        config.write_text(f"packages = [{json.dumps(str(package_folder))}]\nregistry_check = 0.2\n")
        command = Path(sys.executable).with_name("olsock-worker")
        options = {"--port": "0", "--registry": self.registry, "--state": self.state, "--config": config}
        arguments = [str(each) for pair in options.items() for each in pair]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([command, "up", *arguments], stderr=log)
        self._connection: http.client.HTTPConnection | None = None

    def ready(self) -> int:
        """Wait until it serves; return its port."""
        from olsock_worker.state import running

        port = self.wait("the worker to serve", lambda: now.port if (now := running(str(self.state))) else 0)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        return port

    def wait(self, what: str, probe: Callable[[], T]) -> T:
        """Return the first true result of `probe`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DemoError(f"the worker ended with status {self.process.returncode}:\n{self.log()}")
            if result := probe():
                return result
            time.sleep(0.02)
        raise DemoError(f"waited {PATIENCE:g} s for {what}:\n{self.log()}")

    def log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any, float]:
        """Return the status, the decoded reply and the milliseconds it took, on one kept connection."""
        assert self._connection is not None
        data = None if body is None else json.dumps(body)
        begun = time.perf_counter()
        self._connection.request(method, path, data)
        response = self._connection.getresponse()
        reply = response.read()
        took = (time.perf_counter() - begun) * 1e3
        return response.status, json.loads(reply), took

    def call(self, name: str) -> tuple[Any, float]:
        status, reply, took = self.request("POST", f"/run/{name}", EVENT)
        if status != 200:
            raise DemoError(f"{name} answered {status}: {json.dumps(reply, indent=2)}\n{self.log()}")
        return reply, took

    def deploy(self, name: str, more: str = "") -> None:
        """Copy the example in under `name`: beside the registry first, so that no half of it is ever seen."""
        fresh = self.registry.parent / f".{name}"
        shutil.copytree(EXAMPLE, fresh, ignore=shutil.ignore_patterns("__pycache__"))
        with (fresh / "ol.yaml").open("a") as file:
            file.write(more)
        fresh.rename(self.registry / name)

    def function(self, name: str) -> dict[str, object] | None:
        """Return what the worker says about a function, once it knows it."""
        _, page, _ = self.request("GET", "/status")
        shown: dict[str, object] | None = page["functions"].get(name)
        if shown and "error" in shown:
            raise DemoError(f"{name}: {shown['error']}")
        if shown and shown["zygote"] == "failed":
            raise DemoError(f"{name}: its zygote could not be built:\n{self.log()}")
        return shown

    def stop(self) -> int:
        if self._connection is not None:
            self._connection.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Make sure that it has ended, however the demo did."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()  # the next `olsock-worker up` clears away what it leaves
                self.process.wait()


class Traces:
    """What a worker has made on this host, taken while it lives, to be looked for once it has ended."""

    def __init__(self, worker: Worker) -> None:
        broker = psutil.Process(worker.process.pid)
        self.processes = [broker, *broker.children(recursive=True)]
        cgroups = "".join(Path(f"/proc/{each.pid}/cgroup").read_text() for each in self.processes)
        # The library names its cgroups and its run directory alike, one name for each process that uses it.
        self.names = sorted(set(re.findall(r"/(olsock-[^/\s]+)", cgroups)))
        if not self.names or len(self.left()) < len(self.processes):
            raise DemoError("the running worker is not seen in processes and cgroups, so its end could not be either")

    def left(self) -> list[str]:
        """Name every process, cgroup, mount and run directory of the worker that is still there."""
        found = [f"process {each.pid}" for each in self.processes if each.is_running() and each.status() != "zombie"]
        for name in self.names:
            found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/{name}")]
            found += [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
            found += [f"directory {path}" for path in Path("/run/olsock").glob(f"*{name.removeprefix('olsock-')}*")]
        return found


def demonstrate(worker: Worker) -> tuple[list[tuple[str, float]], Traces]:
    """Deploy and call; return what each kind of start took, and what is to be gone afterwards."""
    step(f"worker on 127.0.0.1:{worker.ready()}, its registry empty: {os.listdir(worker.registry)}")

    step("deploying hello-pandas without a zygote, and with one that has numpy and pandas imported")
    worker.deploy("hello-pandas-alone", "zygote: false\n")
    worker.deploy("hello-pandas")
    worker.wait("the function to be found", lambda: worker.function("hello-pandas-alone"))
    worker.wait("the zygote", lambda: (worker.function("hello-pandas") or {}).get("zygote") == "ready")

    reply, alone = worker.call("hello-pandas-alone")
    console.print_json(data=reply, indent=None)
    reply, forked = worker.call("hello-pandas")
    console.print_json(data=reply, indent=None)
    warm = median(worker.call("hello-pandas")[1] for _ in range(WARM_CALLS))

    _, page, _ = worker.request("GET", "/stats")
    for name in ("hello-pandas-alone", "hello-pandas"):
        cold = page["functions"][name]["cold"]
        if cold != 1:
            raise DemoError(f"{name} was to start one sandbox cold, and started {cold}")
    rows = [("cold, no zygote", alone), ("cold, from a zygote", forked), (f"warm, median of {WARM_CALLS}", warm)]
    return rows, Traces(worker)


def show(rows: list[tuple[str, float]]) -> None:
    table = Table("call", "latency", "times the warm one", title="hello-pandas: POST to reply")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, milliseconds in rows:
        table.add_row(name, f"{milliseconds:,.2f} ms", f"{milliseconds / rows[-1][1]:,.1f}")
    console.print(table)


def main() -> int:
    if os.geteuid() != 0:
        raise DemoError("root is needed: sandboxes are namespaces with ranges of user ids, mounts and cgroups")
    begun = time.monotonic()
    package_folder = packages()
    with tempfile.TemporaryDirectory(prefix="olsock-demo-") as folder:
        worker = Worker(Path(folder), package_folder)
        try:
            rows, traces = demonstrate(worker)
            step("stopping the worker with SIGTERM")
            if status := worker.stop():
                raise DemoError(f"the worker ended with status {status}:\n{worker.log()}")
        finally:
            worker.end()
        if left := traces.left():
            raise DemoError("left behind: " + "; ".join(left))
        step("nothing is left of it: no process, no cgroup, no mount, no directory")
    show(rows)
    step(f"done in {time.monotonic() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoError as error:
        console.print(f"[bold red]demo failed[/] {error}", markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
