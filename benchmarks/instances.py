"""First replies over HTTP of new instances of a numpy+pandas function, from real workers that start them in three ways.

Each worker has a state directory, a registry and a port of its own, and the packages of the benchmarks. `reuse-sandbox:
false` makes every request wait for a new instance.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bursts
import client
import servers
import workload
from measure import Row, Samples, compare, interleave, show
from peers import PeerError
from report import progress
from workload import PANDAS

import olsock
from olsock import trees
from olsock.packages.needs import needs
from olsock.trees.learner import Learner

PATIENCE = 60.0
SETTLE = 0.05  # seconds for the end of the instance before, and for a blank in place of one that was taken
WARM_UP = 5
BLANKS = 4
NAME = "pandas"
REFERENCE = "python -c"
GOALS = {"bare zygote": 1.0, "tree node": 0.02, "blank pool": 0.01}


def title(name: str) -> str:
    """Of the row of one way to start."""
    return f"new instance's first reply over HTTP, from a {name}, vs python -c with the same imports"


@dataclass(slots=True)
class Tier:
    """A worker that starts instances in one way, and a connection to it."""

    server: servers.Server
    node: bool  # whether they come from a node that has the packages
    sock: socket.socket
    calls: int = 0

    def call(self) -> float:
        """Seconds until the first reply of a new instance."""
        self.calls += 1
        return client.one(self.sock, client.request(self.server.port, f"/run/{NAME}"), 1)[0]

    def page(self, path: str) -> Any:
        """What the worker tells of itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def zygote(self) -> dict[str, Any] | None:
        """The zygote that its instances are to come from, once it is ready."""
        for each in self.page("/status")["zygotes"]:
            if each["state"] == "ready" and bool(each.get("packages")) == self.node:
                found: dict[str, Any] = each
                return found
        return None

    def parts(self) -> str:
        """What the worker says of the parts of its calls, those that warmed it up included."""
        stats = self.page("/stats")["functions"][NAME]
        names = {"queue": "to a sandbox", "start": "to its module imported", "total": "to the reply"}
        return "as the worker saw it, " + ", ".join(
            f"{what} {stats[name]['p50_ms']:.2f} ms" for name, what in names.items()
        )

    def hits(self) -> int:
        """How many instances have come from that zygote. The worker looks every second."""
        time.sleep(2.0)
        return int((self.zygote() or {}).get("hits", 0))


def fitted(closure: olsock.Closure, code: str) -> str:
    """The plan file for a function, from what one start with no zygote tells."""
    learner = Learner()
    with olsock.Function(code, packages=[closure.directory]) as made:
        ready = made.ready
    requires = needs(closure.directory, closure.packages)
    learner.observe(NAME, closure.packages, imports=ready.imports, owners=closure.owners(), requires=requires)
    return trees.dump(trees.fit(learner.trace(), 2, 1 << 30))


def worker(folder: Path, closure: olsock.Closure, plan: str, blanks: int) -> servers.Server:
    """A worker with the function deployed, as requirements and code."""
    program = Path(sys.executable).with_name("olsock-worker")
    if not program.exists():
        raise PeerError("olsock-worker is not installed beside this interpreter")
    code = folder / "registry" / NAME
    code.mkdir(parents=True)
    (code / "f.py").write_text(workload.source(PANDAS))
    (code / "ol.yaml").write_text(f"reuse-sandbox: false\nmemory: 256M\nconcurrency: {2 * bursts.CROWD}\n")
    pins = [str(pin) for pin in closure.lock.pins]
    (code / "requirements.txt").write_text("".join(f"{each}\n" for each in pins))
    (folder / "tree.json").write_text(plan)
    settings = {
        "registry": str(folder / "registry"),
        "state": str(folder / "state"),
        "package_store": str(workload.cache() / workload.STORE),
        "tree": str(folder / "tree.json"),
        "registry_check": 0.2,
        "blanks": blanks,
    }
    config = folder / "worker.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    port = servers.free_port()
    argv = [str(program), "up", "--port", str(port), "--config", str(config)]
    return servers.Server(argv, port, f"/run/{NAME}", folder / "worker.log")


def reference(closure: olsock.Closure) -> Callable[[], float]:
    """A fresh interpreter that imports the same files, as anybody would start it."""
    argv = [sys.executable, "-c", "import numpy, pandas"]
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": closure.directory}

    def run() -> float:
        begun = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, environment)
        if status := os.waitpid(pid, 0)[1]:
            raise PeerError(f"python -c ended with wait status {status}")
        return time.perf_counter() - begun

    return run


def start(folder: Path, closure: olsock.Closure, plan: str, blanks: int, node: bool, stack: ExitStack) -> Tier:
    """Start a worker, and wait until its instances come from where they should."""
    folder.mkdir(mode=0o755)
    server = stack.enter_context(worker(folder, closure, plan, blanks))
    sock = stack.enter_context(client.connect(server.port))
    tier = Tier(server, node, sock)
    end = time.monotonic() + PATIENCE
    while tier.zygote() is None:
        if time.monotonic() > end:
            raise PeerError(f"the worker's zygote was not ready in {PATIENCE:g} s: {tier.page('/status')['zygotes']}")
        time.sleep(0.1)
    for _ in range(WARM_UP):
        tier.call()
        time.sleep(SETTLE)
    return tier


def measure(rounds: int, burst_rounds: int, found: dict[str, Samples]) -> Iterator[Row]:
    """The section. `found` gets the samples, for the plot."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-bench-")))
        folder.chmod(0o755)
        closure = workload.pandas(stack)
        code = folder / "code"
        code.mkdir(mode=0o755)
        (code / "f.py").write_text(workload.source(PANDAS))
        plan, bare = fitted(closure, str(code)), trees.dump([trees.Plan()])
        tiers: dict[str, Tier] = {}
        with progress("workers") as tick:
            for name, how in {
                "bare zygote": (bare, 0, False),
                "tree node": (plan, 0, True),
                "blank pool": (plan, BLANKS, True),
            }.items():
                tick(len(tiers), len(GOALS))
                tiers[name] = start(folder / name.split()[0], closure, *how, stack)
        before = {name: (tier.hits(), tier.calls) for name, tier in tiers.items()}
        contenders = {REFERENCE: reference(closure), **{name: tier.call for name, tier in tiers.items()}}
        with progress("first replies") as tick:
            samples = interleave(contenders, rounds, settle=SETTLE, tick=tick)
        found.update(samples)
        for name, goal in GOALS.items():
            hits, calls = (
                now - then for now, then in zip((tiers[name].hits(), tiers[name].calls), before[name], strict=True)
            )
            note = f"{hits} of {calls} instances came from that zygote; {tiers[name].parts()}"
            row = compare(title(name), samples[name], samples[REFERENCE], goal, note)
            yield row if hits == calls else Row(row.name, goal=row.goal, target=goal, note=f"not measured: {note}")
        yield _burst(burst_rounds, tiers["blank pool"], closure, str(code), stack)


def _burst(rounds: int, tier: Tier, closure: olsock.Closure, code: str, stack: ExitStack) -> Row:
    """The same burst as the library's, through the worker, against the same bound."""
    zygote = stack.enter_context(olsock.Zygote(PANDAS, packages=[closure.directory]))
    alone: list[tuple[float, float]] = []

    def bound() -> float:
        alone.append(bursts.one(zygote, code))
        fork, run = alone[-1]
        return fork * bursts.CROWD / servers.cores() + run

    def ours() -> float:
        return max(tier.server.batch(bursts.CROWD, bursts.CROWD, 0)[0])

    with progress(f"bursts of {bursts.CROWD} over HTTP") as tick:
        samples = interleave({"ours": ours, "bound": bound}, rounds, settle=0.5, tick=tick)
    fork, run = (Samples(list(each)).median for each in zip(*alone, strict=True))
    note = f"alone a fork takes {show(fork)} and a run {show(run)}; server, functions and client share the processors"
    what = f"{bursts.CROWD} first calls at once over HTTP, last reply vs fork time x {bursts.CROWD} / processors + run time"
    return compare(what, samples["ours"], samples["bound"], 3.0, note)
