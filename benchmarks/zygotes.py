"""Zygote trees, the package cache and the blank pool: how fast new instances start, in one interleaved run.

    python benchmarks/zygotes.py [--quick] [--only SECTION]... [--json FILE] [--plot FILE.png]

Sections: blank (a handler that waits, against a bare fork), burst (50 first calls at once), trace (200 functions over the
60 packages that are used most), http (first replies of new instances of a pandas function). Needs root, and a package index
in the first run. README.md says how each is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import bursts
import charts
import instances
import peers
import replay
import sections
import servers
import workload
from measure import Row, Samples, compare, interleave, show, timed
from report import errors, progress
from startup import code_directory, fork_once
from workload import PANDAS

import olsock

BLANKS = 4


@dataclass(slots=True)
class Options:
    """How much of everything, and what the plot is drawn from."""

    quick: bool
    rounds: int = 200
    bursts: int = 20
    starts: int = 60
    trace: replay.Size = field(default_factory=replay.Size)
    tried: dict[str, replay.Tried] = field(default_factory=dict)
    tiers: dict[str, Samples] = field(default_factory=dict)

    @classmethod
    def of(cls, quick: bool) -> Options:
        """The usual amounts."""
        return cls(True, 30, 5, 10, replay.Size.quick()) if quick else cls(False)


# From the blank pool.


def measure_blank(options: Options) -> Iterator[Row]:
    """A handler that was forked ahead gets its function: request to the first byte of its sandbox."""
    with ExitStack() as stack:
        code = stack.enter_context(code_directory())
        contenders: dict[str, Callable[[], float]] = {}
        short: dict[str, int] = {}

        def add(name: str, zygote: olsock.Zygote, server: peers.ForkServer) -> None:
            short[name] = 0

            def ours() -> float:
                short[name] += not zygote.waiting
                return fork_once(zygote, code)

            contenders[name] = ours
            contenders[f"{name}, reference"] = timed(server.fork)

        zygote = stack.enter_context(olsock.Zygote(blanks=BLANKS))
        add("bare", zygote, stack.enter_context(peers.ForkServer([], None)))
        why_not = ""
        try:
            packages = workload.pandas(stack).directory
            zygote = stack.enter_context(olsock.Zygote(PANDAS, packages=[packages], blanks=BLANKS))
            add("numpy+pandas", zygote, stack.enter_context(peers.ForkServer(PANDAS, Path(packages))))
        except peers.PeerError as error:
            why_not = str(error)
        with progress("blank pool") as tick:
            samples = interleave(contenders, options.rounds, tick=tick)
        for name in ("bare", "numpy+pandas"):
            title = f"blank pool, request to first byte vs a bare fork, {name}"
            if name not in samples:
                yield Row(title, target=1.0, note=why_not, goal="<= 1x")
                continue
            note = f"{BLANKS} blanks, none was waiting {short[name]} times"
            yield compare(title, samples[name], samples[f"{name}, reference"], 1.0, note)


# Many first calls at once.


def measure_burst(options: Options) -> Iterator[Row]:
    """The last of 50 concurrent first calls to one function, against what 50 forks take at the very least."""
    with ExitStack() as stack:
        code = stack.enter_context(code_directory())
        clients = stack.enter_context(ThreadPoolExecutor(bursts.CROWD, "client"))
        zygotes: dict[str, olsock.Zygote] = {"bare": stack.enter_context(olsock.Zygote())}
        why_not = ""
        try:
            packages = [workload.pandas(stack).directory]
            zygotes["numpy+pandas"] = stack.enter_context(olsock.Zygote(PANDAS, packages=packages))
        except peers.PeerError as error:
            why_not = str(error)
        alone: dict[str, list[tuple[float, float]]] = {name: [] for name in zygotes}
        contenders: dict[str, Callable[[], float]] = {}
        for name, zygote in zygotes.items():

            def bound(zygote: olsock.Zygote = zygote, name: str = name) -> float:
                alone[name].append(bursts.one(zygote, code))
                fork, run = alone[name][-1]
                return fork * bursts.CROWD / servers.cores() + run

            contenders[name] = lambda zygote=zygote: bursts.burst(zygote, code, clients)  # type: ignore[misc]
            contenders[f"{name}, bound"] = bound
        with progress(f"bursts of {bursts.CROWD}") as tick:
            samples = interleave(contenders, options.bursts, settle=0.2, tick=tick)
    for name in ("bare", "numpy+pandas"):
        title = f"{bursts.CROWD} first calls at once, last reply vs fork time x {bursts.CROWD} / processors + run time, {name}"
        if name not in samples:
            yield Row(title, target=3.0, note=why_not, goal="<= 3x")
            continue
        fork, run = (Samples(list(each)).median for each in zip(*alone[name], strict=True))
        note = f"alone a fork takes {show(fork)} and a run {show(run)}; {servers.cores()} processors"
        yield compare(title, samples[name], samples[f"{name}, bound"], 3.0, note)


def measure_trace(options: Options) -> Iterator[Row]:
    """See replay.py."""
    try:
        yield from replay.measure(options.trace, options.tried)
    except peers.PeerError as error:
        title = f"trace, requests per second, tree of {replay.MAIN} nodes vs one bare zygote"
        yield Row(title, target=replay.GOAL, note=str(error), goal=f">= {replay.GOAL:g}x", rate=True)


def measure_http(options: Options) -> Iterator[Row]:
    """See instances.py."""
    try:
        yield from instances.measure(options.starts, options.bursts, options.tiers)
    except peers.PeerError as error:
        for name, goal in instances.GOALS.items():
            yield Row(instances.title(name), target=goal, note=str(error), goal=f"<= {goal:g}x")


SECTIONS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "blank": measure_blank,
    "burst": measure_burst,
    "trace": measure_trace,
    "http": measure_http,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = sections.parser(__doc__, SECTIONS)
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw throughput, memory and latencies")
    given = sections.parse(parser, arguments)
    options = Options.of(given.quick)
    host = sections.run(SECTIONS, given, options)
    if given.plot:
        charts.draw(given.plot, options.tried, options.tiers, host)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        errors.print("zygotes: interrupted")
        sys.exit(130)
