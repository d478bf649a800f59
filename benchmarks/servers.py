"""The two HTTP servers that are compared: olsock-worker with an echo function, and uvicorn with one constant reply."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from peers import PeerError

HERE = Path(__file__).resolve().parent
PATIENCE = 60.0
ECHO = "def f(event):\n    return event\n"


class Server:
    """A server process on a loopback port of its own; its output goes to a file, whose end is shown if it fails."""

    def __init__(self, argv: Sequence[str], port: int, path: str, log: Path) -> None:
        self.port, self.path, self._log = port, path, log
        self.started = 0.0  # seconds until it had answered
        begun = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            self._wait()
            self.started = time.monotonic() - begun
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        status: object = "no connection"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise PeerError(f"it ended with status {self._process.returncode}: {self._tail()}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
                connection.request("POST", self.path, b'{"x": 1}', {"Content-Type": "application/json"})
                status = connection.getresponse().status
                connection.close()
                if status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.005)
        raise PeerError(f"no reply 200 in {PATIENCE:g} s (last: {status}): {self._tail()}")

    def _tail(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])[-400:]

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def batch(
        self, connections: int, count: int, warm_up: int, path: str = "", headers: Sequence[str] = ()
    ) -> tuple[list[float], float]:
        """Have the client send `count` requests; return their latencies and the requests per second."""
        argv = [sys.executable, str(HERE / "client.py"), str(self.port), path or self.path]
        argv += [str(connections), str(count), str(warm_up), *headers]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise PeerError(f"{done.stderr.strip()[-300:]} {self._tail()}")
        answer = json.loads(done.stdout)
        return answer["latencies"], count / answer["seconds"]

    def wrk(self, connections: int, seconds: int, folder: Path) -> float | None:
        """Requests per second as wrk sees them; None if it is not installed."""
        program = shutil.which("wrk")
        if program is None:
            return None
        script = folder / "post.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.body = \'{"x": 1}\'\nwrk.headers["Content-Type"] = "application/json"\n'
        )
        argv = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
        url = f"http://127.0.0.1:{self.port}{self.path}"
        done = subprocess.run([*argv, url], capture_output=True, text=True, timeout=seconds + 60, check=False)
        found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
        if found is None or "Non-2xx" in done.stdout:
            raise PeerError(f"wrk: {done.stdout.strip()[-300:]}{done.stderr.strip()[-300:]}")
        return float(found[1])

    def close(self) -> None:
        """End it and wait."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def worker(folder: Path) -> Server:
    """olsock-worker with one function, `echo`, and nothing set that is not its default. A second time on what is there."""
    program = Path(sys.executable).with_name("olsock-worker")
    if not program.exists():
        raise PeerError("olsock-worker is not installed beside this interpreter")
    registry = folder / "registry"
    if not registry.exists():
        (registry / "echo").mkdir(parents=True)
        (registry / "echo" / "f.py").write_text(ECHO)
        folder.chmod(0o755)
    port = free_port()
    options = {"--port": port, "--registry": registry, "--state": folder / "state"}
    argv = [str(each) for pair in options.items() for each in pair]
    return Server([str(program), "up", *argv], port, "/run/echo", folder / "worker.log")


def uvicorn(folder: Path) -> Server:
    """One uvicorn process as fast as it goes: uvloop, httptools, no access log."""
    port = free_port()
    options = f"--app-dir {HERE} --port {port} --loop uvloop --http httptools --no-access-log --log-level warning"
    argv = [sys.executable, "-m", "uvicorn", "hello:app", *options.split(" ")]
    missing = [name for name in ("uvicorn", "uvloop", "httptools") if importlib.util.find_spec(name) is None]
    if missing:
        raise PeerError(f"{', '.join(missing)} not installed (pip install olsock[bench])")
    return Server(argv, port, "/", folder / "uvicorn.log")


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
