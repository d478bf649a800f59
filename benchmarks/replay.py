"""The trace: calls replayed against trees of several sizes, each call a new instance, and what its parts take.

Functions are measured once, started with no zygote; trees are fitted to those imports and to a history of calls, and what
is replayed afterwards are other calls of the same functions.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import servers
import workload
from measure import SETTLE, Row, Samples, compare, show
from report import Tick, console, progress
from rich.table import Table
from workload import Function

import olsock
from olsock import memory
from olsock.packages.needs import needs
from olsock.trees import Plan, fit
from olsock.trees.learner import Learner

PATIENCE = 120.0
LIMIT = 1 << 30  # bytes of the zygotes of one tree
MIB = 1 << 20
GOAL = 4.0
HIT_TARGET = 1e-3
COLD = "none"
MAIN = 40  # nodes of the tree that has targets


@dataclass(frozen=True, slots=True)
class Size:
    """How much is replayed."""

    functions: int = 200
    nodes: tuple[int, ...] = (1, 20, 40, 80)
    history: int = 5000  # calls that a tree is fitted to
    trials: int = 3  # orders of popularity
    rounds: int = 3  # of each trial
    calls: int = 100  # of each round
    cold_calls: int = 40  # of these, with no zygote
    alone: int = 100  # of each trial, by one client

    @classmethod
    def quick(cls) -> Size:
        """Enough to see that it runs."""
        return cls(functions=40, nodes=(1, 40), trials=1, rounds=2, calls=60, cold_calls=10, alone=50)


@dataclass(frozen=True, slots=True)
class Call:
    """The parts of one call, in seconds, one after another."""

    create: float  # request to the first byte of the sandbox
    imports: float  # until the handler's module is imported
    run: float
    close: float
    inside: float  # the import as the sandbox measures it
    hit: bool  # nothing of packages was left to be imported

    @property
    def total(self) -> float:
        """Request to reply."""
        return self.create + self.imports + self.run


@dataclass(slots=True)
class Tried:
    """What was seen of one kind of tree."""

    calls: list[Call] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # requests per second, of each batch
    sizes: list[int] = field(default_factory=list)  # bytes of its zygotes, proportional
    own: list[int] = field(default_factory=list)  # bytes of nobody else
    nodes: list[int] = field(default_factory=list)  # that were ready
    alone: list[Call] = field(default_factory=list)  # calls by one client, with a pause before each

    def part(self, name: str) -> Samples:
        """One part of all calls."""
        return Samples([getattr(call, name) for call in self.calls])


Known = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Way:
    """How instances are started."""

    start: Callable[[Function], olsock.Function]
    is_hit: Callable[[Function, str | None], bool]  # whether the node, by its key, has all that a function imports


def call(way: Way, function: Function) -> Call:
    """Start an instance, call it, and end it."""
    begun = time.perf_counter()
    made = way.start(function)
    try:
        made.wait_started(PATIENCE)
        started = time.perf_counter()
        inside = made.wait_ready(PATIENCE) / 1e3
        ready = time.perf_counter()
        made.invoke({"x": 1})
        done = time.perf_counter()
    finally:
        made.close()
    closed = time.perf_counter()
    hit = way.is_hit(function, made.forked_from)
    return Call(started - begun, ready - started, done - ready, closed - done, inside, hit)


def batch(way: Way, calls: Sequence[Function], clients: ThreadPoolExecutor) -> tuple[list[Call], float]:
    """Make calls, each client one after another; return them and the seconds that all took."""
    begun = time.perf_counter()
    done = list(clients.map(lambda function: call(way, function), calls))
    return done, time.perf_counter() - begun


def cold(function: Function) -> olsock.Function:
    """A new instance with no zygote: a fresh interpreter in a fresh sandbox."""
    return olsock.Function(function.code, packages=[function.closure.directory])


class Replay:
    """The functions, and what is known of their imports."""

    def __init__(self, size: Size, store: olsock.PackageStore, folder: Path, stack: ExitStack) -> None:
        self.size, self.store = size, store
        self.clients = stack.enter_context(ThreadPoolExecutor(servers.cores(), "client"))
        self.load = workload.functions(store, folder, size.functions, seed=1)
        for function in self.load:
            stack.callback(function.closure.close)
        self.learner = Learner()
        self.tried: dict[str, Tried] = {COLD: Tried()}
        self.tried.update({str(nodes): Tried() for nodes in size.nodes})

    def learn(self) -> None:
        """Start every function once to see what it imports: what a worker learns as it goes."""
        with progress("what functions import") as tick:
            results = self.clients.map(self._look, self.load)
            for number, (function, ready) in enumerate(results):
                self.learner.observe(
                    function.name,
                    function.closure.packages,
                    imports=ready.imports,
                    used=ready.used,
                    owners=function.closure.owners(),
                    requires=needs(function.closure.directory, function.closure.packages),
                )
                tick(number + 1, len(self.load))
        self.known: Known = {each.name: self.learner.known(each.name) or {} for each in self.load}
        self.usages = self.learner.trace()

    @staticmethod
    def _look(function: Function) -> tuple[Function, olsock.Ready]:
        with cold(function) as made:
            return function, made.ready

    def plan(self, nodes: int, popular: Sequence[int], seed: int) -> Plan:
        """A tree fitted to a history of calls."""
        history = workload.counts(workload.invocations(self.load, popular, self.size.history, seed))
        usages = [replace(each, count=history[each.function]) for each in self.usages if history[each.function]]
        (plan,) = fit(usages, nodes, LIMIT)
        return plan

    def run(self) -> None:
        """All trials."""
        for trial in range(self.size.trials):
            popular = workload.ranking(len(self.load), seed=100 + trial)
            with ExitStack() as stack:
                trees = self._trees(popular, trial, stack)
                ways = {str(nodes): self._from(tree) for nodes, tree in trees.items()}
                with progress(f"trial {trial + 1} of {self.size.trials}") as tick:
                    self._rounds(trial, popular, {COLD: Way(cold, lambda *_: False), **ways}, tick)
                calls = workload.invocations(self.load, popular, self.size.alone, seed=2000 + trial)
                self.tried[str(MAIN)].alone += [self._alone(ways[str(MAIN)], each) for each in calls]
                for nodes, tree in trees.items():
                    self._weigh(self.tried[str(nodes)], tree)

    def _trees(self, popular: Sequence[int], trial: int, stack: ExitStack) -> dict[int, olsock.ZygoteTree]:
        trees: dict[int, olsock.ZygoteTree] = {}
        with progress("growing trees") as tick:
            for nodes in self.size.nodes:
                tick(len(trees), len(self.size.nodes))
                plan = self.plan(nodes, popular, seed=200 + trial)
                tree = olsock.ZygoteTree(self.store, plan=plan, memory=LIMIT, builders=servers.cores())
                trees[nodes] = stack.enter_context(tree)
                tree.wait_ready(timeout=PATIENCE)
                for function in self.load:
                    tree.warm(function.closure, self.known[function.name])
                if not tree.wait_idle(PATIENCE):
                    raise SystemExit(f"zygotes: a tree of {nodes} nodes was not built in {PATIENCE:g} s")
        return trees

    def _from(self, tree: olsock.ZygoteTree) -> Way:
        def start(function: Function) -> olsock.Function:
            return tree.fork(function.code, "f:f", function.closure, self.known[function.name], measure=False)

        def is_hit(function: Function, key: str | None) -> bool:
            return self.known[function.name].keys() <= tree.loaded(key).keys()

        return Way(start, is_hit)

    def _rounds(self, trial: int, popular: Sequence[int], ways: Mapping[str, Way], tick: Tick) -> None:
        draw = random.Random(trial)
        names = list(ways)
        total = self.size.rounds * len(names)
        done = itertools.count(1)
        for number in range(self.size.rounds):
            seed = 1000 + 100 * trial + number
            calls = workload.invocations(self.load, popular, self.size.calls, seed)
            draw.shuffle(names)
            for name in names:
                own = calls[: self.size.cold_calls] if name == COLD else calls
                made, seconds = batch(ways[name], own, self.clients)
                self.tried[name].calls += made
                self.tried[name].rates.append(len(own) / seconds)
                tick(next(done), total)

    @staticmethod
    def _alone(way: Way, function: Function) -> Call:
        time.sleep(SETTLE)
        return call(way, function)

    def _weigh(self, tried: Tried, tree: olsock.ZygoteTree) -> None:
        pids = [node.pid for node in tree.stats().nodes if node.pid]
        weight = memory.measure(pids)
        tried.sizes.append(weight.proportional)
        tried.own.append(weight.unique)
        tried.nodes.append(len(pids))

    def rows(self) -> Iterator[Row]:
        """The targets."""
        clients = f"{servers.cores()} clients"
        bare, fitted = self.tried["1"], self.tried[str(MAIN)]
        paired = [ours / theirs for ours, theirs in zip(fitted.rates, bare.rates, strict=True)]
        note = (
            f"{clients}, {self.size.functions} functions, {self.size.trials} orders of popularity; "
            f"of batches of the same {self.size.calls} calls, {min(paired):.1f}x .. {max(paired):.1f}x"
        )
        title = f"trace, requests per second, tree of {MAIN} nodes vs one bare zygote"
        yield compare(title, Samples(fitted.rates), Samples(bare.rates), GOAL, note, rate=True)
        title = f"trace, requests per second, tree of {MAIN} nodes vs no zygote"
        yield compare(title, Samples(fitted.rates), Samples(self.tried[COLD].rates), None, rate=True)
        most = max(fitted.sizes)
        note = f"{most / MIB:.0f} MiB proportional, {max(fitted.own) / MIB:.0f} MiB unique, {max(fitted.nodes)} zygotes"
        yield Row(f"trace, memory of the {MAIN} nodes", holds=most <= LIMIT, note=note, goal="<= 1 GiB")
        yield self._hit_row(fitted)

    def _hit_row(self, fitted: Tried) -> Row:
        title = "trace, import part of a call whose packages are all there"
        alone = [each for each in fitted.alone if each.hit]
        if not alone:
            return Row(title, target=HIT_TARGET, note="no call had them all", goal=f"<= {show(HIT_TARGET)}")
        # The sandbox's own figure: what the client sees has the waking up of both sides in it.
        hits, seen = Samples([each.inside for each in alone]), Samples([each.imports for each in alone])
        busy = Samples([each.inside for each in fitted.calls if each.hit])
        note = (
            f"one client; p10 .. p90 {hits.spread()}, p99 {show(hits.quantile(0.99))}; as the client sees it "
            f"{show(seen.median)}; with {servers.cores()} clients {show(busy.median)}; "
            f"{len(alone) / len(fitted.alone):.0%} of {len(fitted.alone)} calls"
        )
        holds = hits.median <= HIT_TARGET
        return Row(title, hits.median, None, None, HIT_TARGET, holds, note, f"<= {show(HIT_TARGET)}")

    def show(self) -> None:
        """Print the parts of a call by the size of the tree, as Forklift's table has them."""
        console.print(breakdown(self.tried))
        console.print(
            "Each call is a new sandbox: user, pid, mount, network, ipc, uts and cgroup namespaces, limits, a filter "
            "of system calls, no capabilities.",
            markup=False,
        )


def breakdown(tried: Mapping[str, Tried]) -> Table:
    """Median and p99 of every part."""
    shown = Table(title="trace: milliseconds of the parts of a call, median / p99, by the zygotes there are")
    for name in ("zygotes", "create", "import", "run", "to reply", "close", "hits", "req/s", "memory"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, each in tried.items():
        if not each.calls:
            continue
        parts = [each.part(part) for part in ("create", "imports", "run", "total", "close")]
        cells = [f"{1e3 * part.median:.2f} / {1e3 * part.quantile(0.99):.1f}" for part in parts]
        hits = sum(call.hit for call in each.calls) / len(each.calls)
        size = f"{max(each.sizes) / MIB:.0f} MiB" if each.sizes else ""
        shown.add_row(name, *cells, f"{hits:.0%}", f"{Samples(each.rates).median:.1f}", size)
    return shown


def measure(size: Size, found: dict[str, Tried]) -> Iterator[Row]:
    """The section. `found` gets what was seen, for the plot."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-bench-")))
        folder.chmod(0o755)
        store = stack.enter_context(workload.store())
        replay = Replay(size, store, folder, stack)
        replay.learn()
        replay.run()
        replay.show()
        found.update(replay.tried)
        yield from replay.rows()
