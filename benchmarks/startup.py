"""How fast things start, against what else does the same on this machine, in one interleaved run.

    python benchmarks/startup.py [--json FILE] [--rounds N] [--quick] [--only SECTION]...

Sections: exec (a program in a fresh sandbox), fork (a handler from a zygote, alone and among 500 frozen ones), pause,
http (a warm function behind the worker), cycles (does anything grow). Needs root. README.md says how each is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import linear_regression

import cycles
import echoes
import peers
import sections
import servers
from measure import Row, Samples, absolute, compare, interleave, show, timed
from report import errors, progress

import olsock

PANDAS = ["numpy", "pandas"]
PAUSE_TARGET = 60e-6
MAX_RSS_GROWTH = 64 * 1024  # bytes in the second half of all cycles; in the first, allocators are still filling up


class Options:
    """How much of everything."""

    def __init__(self, rounds: int, quick: bool) -> None:
        self.rounds = rounds
        self.slow = 4  # runc and crun run in each fourth round
        self.crowd = 50 if quick else 500
        self.cycles = 100 if quick else 1000
        self.batches = 3 if quick else 10
        self.requests = 300 if quick else 1000
        self.wrk_seconds = 1 if quick else 3


@contextmanager
def code_directory() -> Iterator[str]:
    """A directory with the smallest handler there is."""
    with tempfile.TemporaryDirectory(prefix="olsock-bench-") as code:
        os.chmod(code, 0o755)
        Path(code, "f.py").write_text(servers.ECHO)
        yield code


# Sandboxes that run a program.


def run_true() -> tuple[float, float]:
    """Seconds from nothing to the end of /bin/true in a default sandbox, and to the end of the sandbox."""
    begun = time.perf_counter()
    box = olsock.Sandbox()
    try:
        if box.run(["/bin/true"]).returncode:
            raise SystemExit("startup: /bin/true failed in a sandbox")
        reaped = time.perf_counter() - begun
    finally:
        box.close()
    return reaped, time.perf_counter() - begun


def measure_exec(options: Options) -> Iterator[Row]:
    closed: list[float] = []

    def ours() -> float:
        reaped, gone = run_true()
        closed.append(gone)
        return reaped

    with tempfile.TemporaryDirectory(prefix="olsock-bench-") as folder:
        os.chmod(folder, 0o755)
        contenders: dict[str, Callable[[], float]] = {"ours": ours}
        absent: dict[str, str] = {}
        found: dict[str, peers.Command] = {}
        makers: dict[str, Callable[[], peers.Command]] = {
            "bubblewrap": peers.bubblewrap,
            "runc": lambda: peers.oci("runc", Path(folder)),
            "crun": lambda: peers.oci("crun", Path(folder)),
        }
        for name, make in makers.items():
            try:
                found[name] = make()
                contenders[name] = timed(found[name].run)
            except peers.PeerError as error:
                absent[name] = str(error)
                errors.print(f"startup: without {name}: {error}", markup=False)
        every = {"runc": options.slow, "crun": options.slow}
        with progress("exec'd /bin/true") as tick:
            samples = interleave(contenders, options.rounds, every=every, tick=tick)
        whole = Samples(closed[-options.rounds :])
        for name, target in (("bubblewrap", 0.3), ("runc", 0.08), ("crun", 0.3)):
            title = f"exec'd /bin/true, created to reaped, vs {name}"
            if name in absent:
                yield Row(title, samples["ours"].median, None, None, target, None, absent[name], f"<= {target:g}x")
                continue
            yield compare(title, samples["ours"], samples[name], target)
            note = "the peer's own clean-up is in both of its figures"
            yield compare(f"the same with close(), vs {name}", whole, samples[name], None, note)
        yield from _back_to_back(options, found.get("bubblewrap"))


def _back_to_back(options: Options, bubblewrap: peers.Command | None) -> Iterator[Row]:
    """One after another with no pause, so that nothing is had for free because it was prepared in a quiet moment."""

    def batch(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        for _ in range(20):
            work()
        return (time.perf_counter() - begun) / 20

    contenders = {"ours": lambda: batch(run_true)}
    if bubblewrap is not None:
        contenders["bubblewrap"] = lambda: batch(bubblewrap.run)
    with progress("back to back") as tick:
        samples = interleave(contenders, max(5, options.rounds // 20), tick=tick)
    note = "each with close(), batches of 20"
    title = "exec'd /bin/true back to back, one cycle"
    if bubblewrap is None:
        yield absolute(title, samples["ours"], None, note)
    else:
        yield compare(f"{title}, vs bubblewrap", samples["ours"], samples["bubblewrap"], None, note)


# Handlers forked from a zygote.


def fork_once(zygote: olsock.Zygote, code: str, *, imported: bool = False) -> float:
    """Seconds from the request to the first byte of the handler's sandbox (STARTED), or until its module is imported."""
    begun = time.perf_counter()
    function = zygote.fork(code, "f:f")
    try:
        if imported:
            function.wait_ready(30)
        else:
            function.wait_started(30)
        return time.perf_counter() - begun
    finally:
        function.close()


def measure_fork(options: Options) -> Iterator[Row]:
    with ExitStack() as stack:
        code = stack.enter_context(code_directory())
        contenders: dict[str, Callable[[], float]] = {}
        bare = stack.enter_context(olsock.Zygote())
        server = stack.enter_context(peers.ForkServer([], None))
        contenders["ours"] = lambda: fork_once(bare, code)
        contenders["imported"] = lambda: fork_once(bare, code, imported=True)
        contenders["reference"] = timed(server.fork)
        why_not = ""
        try:
            packages = peers.packages()
            laden = stack.enter_context(olsock.Zygote(PANDAS, packages=[str(packages)]))
            laden_server = stack.enter_context(peers.ForkServer(PANDAS, packages))
            contenders["ours, pandas"] = lambda: fork_once(laden, code)
            contenders["reference, pandas"] = timed(laden_server.fork)
        except peers.PeerError as error:
            why_not = str(error)
            errors.print(f"startup: without numpy and pandas: {error}", markup=False)
        with progress("zygote fork") as tick:
            samples = interleave(contenders, options.rounds, tick=tick)
        title = "zygote fork, request to first byte"
        yield compare(f"{title}, bare", samples["ours"], samples["reference"], 2.2)
        title_imported = "zygote fork, request to the handler imported, bare"
        note = "the reference imports no handler"
        yield compare(title_imported, samples["imported"], samples["reference"], None, note)
        if why_not:
            yield Row(f"{title}, numpy+pandas", target=1.5, note=why_not, goal="<= 1.5x")
        else:
            pair = samples["ours, pandas"], samples["reference, pandas"]
            yield compare(f"{title}, numpy+pandas", *pair, 1.5)
        yield _crowd(options, bare, code, samples["ours"])
        yield _forks_back_to_back(options, bare, code, samples["ours"])


def _crowd(options: Options, zygote: olsock.Zygote, code: str, alone: Samples) -> Row:
    """The same fork with many frozen sandboxes beside it."""
    with ExitStack() as stack:
        with progress(f"making {options.crowd} frozen sandboxes") as tick:
            for number in range(options.crowd):
                function = stack.enter_context(zygote.fork(code, "f:f"))
                function.wait_ready(30)
                function.pause()
                tick(number + 1, options.crowd)
        with progress(f"zygote fork among {options.crowd}") as tick:
            among = interleave({"ours": lambda: fork_once(zygote, code)}, options.rounds, tick=tick)["ours"]
    with progress("zygote fork once they are gone") as tick:
        after = interleave({"ours": lambda: fork_once(zygote, code)}, options.rounds, tick=tick)["ours"]
    title = f"zygote fork with {options.crowd} frozen sandboxes alive, vs itself alone"
    return compare(title, among, alone, 1.3, f"once they were gone: {show(after.median)}")


def _forks_back_to_back(options: Options, zygote: olsock.Zygote, code: str, rested: Samples) -> Row:
    with progress("zygote forks back to back") as tick:
        samples = interleave({"ours": lambda: fork_once(zygote, code)}, options.rounds, settle=0.0, tick=tick)["ours"]
    return compare("zygote fork back to back, vs itself with pauses", samples, rested, None, "bare")


# Pausing.


def measure_pause(options: Options) -> Iterator[Row]:
    with ExitStack() as stack:
        code = stack.enter_context(code_directory())
        function = stack.enter_context(olsock.Function(code, "f:f"))
        function.wait_ready(30)
        box = stack.enter_context(olsock.Sandbox())
        stack.enter_context(box.popen(["/bin/sleep", "1000"]))

        def both(paused: olsock.Function | olsock.Sandbox) -> Callable[[], float]:
            def work() -> None:
                paused.pause()
                paused.resume()

            return timed(work)

        contenders = {"function": both(function), "sandbox": both(box)}
        with progress("pause and resume") as tick:
            samples = interleave(contenders, 5 * options.rounds, settle=0.001, tick=tick)
    yield absolute("pause + resume, confirmed, of a warm handler", samples["function"], PAUSE_TARGET)
    yield absolute("pause + resume, confirmed, of a sandbox with a program", samples["sandbox"], PAUSE_TARGET)


# The worker.


def measure_http(options: Options) -> Iterator[Row]:
    """See echoes.py."""
    yield from echoes.measure(echoes.Sizes(options.batches, options.requests, options.wrk_seconds), 2.2, 0.55)


# Growth.


def measure_cycles(options: Options) -> Iterator[Row]:
    for kind, what in (("exec", "exec'd"), ("fork", "zygote-forked")):
        title = f"{options.cycles} create+destroy cycles, {what}: nothing grows"
        argv = [sys.executable, cycles.__file__, kind, str(options.cycles)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout and child.stderr
        said: list[str] = []
        with progress(f"cycles, {what}") as tick:
            for line in child.stderr:
                done, _, total = line.strip().partition("/")
                if done.isdigit() and total.isdigit():
                    tick(int(done), int(total))
                else:
                    said.append(line)
        output = child.stdout.read()
        if child.wait():
            yield Row(title, holds=False, note="".join(said)[-300:], goal="no growth")
            continue
        yield _growth(title, json.loads(output))


def _growth(title: str, samples: list[dict[str, float]]) -> Row:
    """Counts must be at the end what they were at the beginning; memory may not go on rising."""
    first, last = samples[0], samples[-1]
    bad: list[str] = []
    notes: list[str] = []
    for name in [name for name in first if name != "cycles"]:
        if not name.startswith("rss"):
            notes.append(f"{name} {first[name]:.0f} -> {last[name]:.0f}")
            if last[name] > first[name]:
                bad.append(name)
            continue
        half = samples[len(samples) // 2 :]
        slope = linear_regression([s["cycles"] for s in half], [s[name] for s in half]).slope
        ends = f"{first[name] / 1024:.0f} -> {half[0][name] / 1024:.0f} -> {last[name] / 1024:.0f} KiB"
        notes.append(f"{name} {ends}, in the second half {slope:+.1f} bytes a cycle")
        if slope * (last["cycles"] - half[0]["cycles"]) > MAX_RSS_GROWTH:
            bad.append(name)
    note = ", ".join(notes) if not bad else f"GROWS: {', '.join(bad)}; {', '.join(notes)}"
    return Row(title, holds=not bad, note=note, goal="no growth")


SECTIONS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "exec": measure_exec,
    "fork": measure_fork,
    "pause": measure_pause,
    "http": measure_http,
    "cycles": measure_cycles,
}


def main() -> int:
    parser = sections.parser(__doc__, SECTIONS)
    parser.add_argument("--rounds", type=int, default=0, help="measurements of each kind (200; 30 with --quick)")
    given = sections.parse(parser)
    sections.run(SECTIONS, given, Options(given.rounds or (30 if given.quick else 200), given.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
