"""Where the time of a start goes: each step of a sandbox and of a fork, timed inside the calling process.

    python benchmarks/breakdown.py [--rounds N] [--spare N] [--imports numpy,pandas] [--packages DIR]

Wraps the library's own functions, so a step's time includes what it calls (the rows below it, indented) and the
wrapping itself, about a microsecond a call. What happens in other processes meanwhile (the spawner, an init, a zygote,
a handler) shows as waiting in the step that waits for it.
"""

from __future__ import annotations

import argparse
import functools
import os
import pkgutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import olsock

WARM_UP = 20

# What to call the time of which function. One that a change has taken away is named, and left out.
STEPS = {
    "olsock.spec:SandboxSpec.parse": "parse the options",
    "olsock.spec:FunctionSpec.parse": "parse the options",
    "olsock._core.seccomp:compile": "filter program (kept)",
    "olsock.identity:claim": "claim an id block",
    "olsock.identity:Block.release": "release the id block",
    "olsock.cgroups:_Inner.leaf": "make the cgroup leaf",
    "olsock.cgroups:Group.set": "set limits",
    "olsock.cgroups:Group.attach": "attach to the v1 controllers",
    "olsock.cgroups:Group.attach_all": "attach to the v1 controllers",
    "olsock.cgroups:Group.pids": "read cgroup.procs",
    "olsock.cgroups:Group.oom_kills": "read oom kills",
    "olsock.cgroups:Group.kill": "cgroup.kill",
    "olsock.cgroups:Group.delegate": "delegate the leaf",
    "olsock.cgroups:Group.detached_fd": "detached fd of the leaf",
    "olsock.cgroups:Group.wait_empty": "wait until empty",
    "olsock.cgroups:Group.populated": "populated?",
    "olsock.cgroups:Group.remove": "remove the cgroup",
    "olsock.cgroups:prune": "rmdir",
    "olsock._core.cgroup:write": "write a cgroup file",
    "olsock.bases:Bases.place": "base tree (kept)",
    "olsock.blanks:Blanks.take": "take a blank sandbox",
    "olsock.blanks:Blanks._clone": "make a blank sandbox",
    "olsock.blanks:Blank.remove": "remove the sandbox",
    "olsock.rootfs:build_writable": "build the overlay",
    "olsock.box:Box.__init__": "clone the init",
    "olsock.spawner:Spawner.clone": "ask the spawner, wait for pid",
    "olsock.box:Setup.pack": "pack the set-up",
    "olsock.box:Box.setup": "set up, wait for done",
    "olsock.box:Box.spawn": "spawn the command, wait for pid",
    "olsock.box:Box.wait": "wait for the command's end",
    "olsock.box:Box.close": "hang up, wait for init's end",
    "olsock.box:Box.new_network": "network namespace",
    "olsock.packets:Mailbox.send": "send",
    "olsock.packets:Mailbox.receive": "wait for the answer",
    "olsock._core.mounts:bind": "bind a directory",
    "olsock._core.mounts:tmpfs": "make a tmpfs",
    "olsock._core.process:wait_readable": "wait for a pidfd",
    "olsock._core.process:pidfd_open": "pidfd_open",
    "olsock._core.process:close_all": "close fds",
    "olsock.pipes:Pipes.__init__": "make pipes",
    "olsock.pipes:Pipes.communicate": "read output, wait for the end",
    "olsock.pipes:Pipes.close": "close pipes",
    "olsock.endpoints:Endpoints.__init__": "channel and log",
    "olsock.endpoints:Endpoints.close_theirs": "close the handler's ends",
    "olsock.endpoints:Endpoints.close": "close our ends",
    "olsock.kits:Kits.take": "take a kit",
    "olsock.kits:Kits._make": "make a kit",
    "olsock.kits:Kits._fill": "fill a kit",
    "olsock.kits:Kit.release": "release the kit",
    "olsock.kits:Kit.close_fds": "close the kit's fds",
    "olsock.zygote:bind_code": "bind the code",
    "olsock.zygote:Zygote._pack": "pack the request",
    "olsock.zygote:Zygote._request": "request: zygote forks and answers",
    "olsock.zygote:Zygote._find": "find the child, pidfd",
    "olsock.zygote:Zygote._status": "inner pid from /proc",
    "olsock.function:Function._adopt": "configure",
    "olsock.channel:Channel.configure": "send CONFIG",
    "olsock.channel:Channel.wait_ready": "wait for READY",
}

Place = tuple[str, ...]


class Steps:
    """Time and calls by path of names, one dictionary a cycle. Only the main thread's calls are seen."""

    def __init__(self) -> None:
        self.cycles: list[dict[Place, list[float]]] = []
        self._path: Place = ()
        self._now: dict[Place, list[float]] | None = None

    def patch(self) -> None:
        """Wrap every function of STEPS, and its copies that a module of the library has imported by name."""
        for where, label in STEPS.items():
            module, _, name = where.partition(":")
            owner_name, _, attribute = name.rpartition(".")
            try:
                owner = pkgutil.resolve_name(f"{module}:{owner_name}" if owner_name else module)
                raw = vars(owner)[attribute]
            except (ImportError, AttributeError, KeyError):
                print(f"breakdown: {where} is no longer there", file=sys.stderr)
                continue
            bound = isinstance(raw, classmethod)
            wrapped: Any = self._wrap(raw.__func__ if bound else raw, label)
            setattr(owner, attribute, classmethod(wrapped) if bound else wrapped)
            if not owner_name:
                for other in [m for n, m in sys.modules.items() if n.startswith("olsock")]:
                    if vars(other).get(attribute) is raw:
                        setattr(other, attribute, wrapped)

    def _wrap(self, target: Callable[..., Any], label: str) -> Callable[..., Any]:
        main = threading.get_ident()

        @functools.wraps(target)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._now is None or threading.get_ident() != main:
                return target(*args, **kwargs)
            with self.step(label):
                return target(*args, **kwargs)

        return wrapped

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Time a block as a step of the one around it."""
        assert self._now is not None
        before = self._path
        self._path = path = (*before, label)
        entry = self._now.setdefault(path, [0.0, 0])
        begun = time.perf_counter()
        try:
            yield
        finally:
            entry[0] += time.perf_counter() - begun
            entry[1] += 1
            self._path = before

    @contextmanager
    def cycle(self) -> Iterator[None]:
        """Collect one cycle."""
        self._now = {}
        try:
            yield
        finally:
            self.cycles.append(self._now)
            self._now = None

    def table(self, title: str) -> Table:
        """Medians over all cycles, without the steps that most of them did not take."""
        table = Table(title=title)
        table.add_column("step")
        for name in ("calls", "median us", "p10", "p90", "own us"):
            table.add_column(name, justify="right")
        paths: dict[Place, None] = {}
        for cycle in self.cycles:
            paths.update(dict.fromkeys(cycle))

        def column(path: Place, which: int) -> list[float]:
            return [cycle.get(path, [0.0, 0])[which] for cycle in self.cycles]

        def add(path: Place) -> None:
            children = [p for p in paths if p[:-1] == path]
            if path:
                calls = statistics.median(column(path, 1))
                if not calls:  # taken in a few cycles only
                    return
                times = sorted(t * 1e6 for t in column(path, 0))
                cut = statistics.quantiles(times, n=10) if len(times) > 1 else [times[0]] * 9
                inner = [sum(ts) * 1e6 for ts in zip(*(column(p, 0) for p in children), strict=True)]
                own = statistics.median(times) - (statistics.median(inner) if inner else 0.0)
                table.add_row(
                    "  " * (len(path) - 1) + path[-1],
                    f"{calls:g}",
                    f"{statistics.median(times):.0f}",
                    f"{cut[0]:.0f}",
                    f"{cut[8]:.0f}",
                    f"{own:.0f}" if children else "",
                    style="bold" if len(path) == 1 else None,
                )
            for child in children:
                add(child)

        add(())
        return table


def sandbox_cycle(steps: Steps, settle: float) -> None:
    with steps.cycle():
        with steps.step("create"):
            made = olsock.Sandbox()
        with steps.step("run /bin/true"):
            made.run(["/bin/true"])
        with steps.step("close"):
            made.close()
    time.sleep(settle)  # what is kept ready is made anew meanwhile, as it is between two requests


def fork_cycle(steps: Steps, parent: olsock.Zygote, code: str, settle: float) -> None:
    with steps.cycle():
        with steps.step("fork"):
            made = parent.fork(code, "f:f")
        with steps.step("ready"):
            made.wait_ready(10)
        with steps.step("close"):
            made.close()
    time.sleep(settle)


def measure(steps: Steps, rounds: int, cycle: Callable[[], None]) -> None:
    for _ in range(WARM_UP):
        cycle()
    steps.cycles.clear()
    for _ in range(rounds):
        cycle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--spare", type=int, default=None, help="kits that a zygote keeps ready")
    parser.add_argument("--imports", default="", help="what the zygote imports, comma-separated")
    parser.add_argument("--packages", default=None, help="directory with installed packages")
    parser.add_argument("--settle", type=float, default=0.01, help="seconds between two cycles")
    given = parser.parse_args()
    console = Console(width=110 if not sys.stdout.isatty() else None)
    steps = Steps()
    steps.patch()

    measure(steps, given.rounds, lambda: sandbox_cycle(steps, given.settle))
    console.print(steps.table(f"exec'd sandbox, {given.rounds} cycles"))

    imports = [name for name in given.imports.split(",") if name]
    more: dict[str, Any] = {} if given.spare is None else {"spare": given.spare}
    if given.packages:
        more["packages"] = [given.packages]
    with tempfile.TemporaryDirectory(prefix="olsock-breakdown-") as code:
        os.chmod(code, 0o755)
        Path(code, "f.py").write_text("def f(event):\n    return event\n")
        with olsock.Zygote(imports, **more) as parent:
            measure(steps, given.rounds, lambda: fork_cycle(steps, parent, code, given.settle))
    title = f"zygote fork ({given.imports or 'bare'}), {given.rounds} cycles"
    console.print(steps.table(title))


if __name__ == "__main__":
    main()
