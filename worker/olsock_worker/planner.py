"""What the zygote trees are to be: as a file says, or fitted to what functions were seen to import, and with what they
name themselves.

The history is kept as a trace in the state directory, and fitted by `olsock tree fit` in a process of its own: it takes
seconds, and starts are served meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import olsock
from olsock import trees
from olsock.trees import Import, Node, Plan, Usage
from olsock.trees.learner import Learner
from olsock.trees.trace import to_line
from olsock_worker.logs import WorkerLog
from olsock_worker.settings import Settings

TRACE, TREE = "trace.jsonl", "tree.json"
_HALF_LIFE = 3600.0  # seconds after which a start counts half
_FORGOTTEN = 0.05  # starts
_MAX_HINTS = 200
_ENOUGH = 8  # measured starts of a version, after which only one in _SAMPLE is
_SAMPLE = 16
_FIT_TIMEOUT = 120.0
_FIT = "from olsock.cli import main; main()"


class Facts(Protocol):
    """What is known of a closure (olsock.nursery)."""

    @property
    def requires(self) -> Mapping[str, frozenset[str]]: ...
    @property
    def owners(self) -> Mapping[str, str]: ...


class Planner:
    """Learns on the broker's loop, and says what the plan for an interpreter is."""

    def __init__(self, settings: Settings, state: Path, log: WorkerLog) -> None:
        self._settings = settings
        self._trace, self._tree = state / TRACE, state / TREE
        self._log = log
        self._learner = Learner()
        self._known: dict[str, dict[str, float] | None] = {}
        self._measured: Counter[str] = Counter()  # starts of the current version that told what they import
        self._hints: dict[str, dict[str, Node]] = {}  # interpreter -> function -> node
        self._earlier: dict[str, Usage] = {}  # of functions that have not started since we have
        self._plans: dict[str | None, Plan] = {}
        self._load()

    def _load(self) -> None:
        """Read the operator's tree, or else what an earlier worker has learnt."""
        if self._settings.tree:
            self._plans = {plan.python: plan for plan in trees.load(self._settings.tree)}
            return
        if not self._settings.tree_learn:
            return
        try:
            self._plans = {plan.python: plan for plan in trees.load(self._tree)}
            with open(self._trace, "rb") as file:
                self._earlier = {usage.function: usage for usage in trees.read_trace(file, str(self._trace))}
        except FileNotFoundError:
            pass  # it is the first
        except (OSError, olsock.OlsockError) as error:
            self._log("warning", "history_lost", error=str(error))

    # -- what functions say -------------------------------------------------------------------------------------------

    def hint(self, runtime: str, function: str, imports: Sequence[str], owners: Mapping[str, str]) -> None:
        """Note what a function asks to have imported; modules without an owner are the interpreter's own."""
        packages = frozenset(owners[top] for top in (name.partition(".")[0] for name in imports) if top in owners)
        hints = self._hints.setdefault(runtime, {})
        hints.pop(function, None)
        if imports:
            hints[function] = Node(packages=packages, imports=tuple(imports))

    def renew(self, function: str) -> None:
        """Measure anew: there is another version, which may import other things."""
        del self._measured[function]

    def forget(self, function: str) -> None:
        """Drop a function that was removed."""
        for hints in self._hints.values():
            hints.pop(function, None)
        self._learner.forget(function)
        self._known.pop(function, None)
        del self._measured[function]
        self._earlier.pop(function, None)

    # -- what they were seen to do ------------------------------------------------------------------------------------

    def observe(
        self,
        function: str,
        runtime: str,
        packages: frozenset[str],
        facts: Facts,
        told: tuple[Sequence[olsock.Imported] | None, Sequence[str]],
        loaded: Mapping[str, Import],
    ) -> None:
        """Note a start: what the instance has imported and used (None: it was not measured), beside what its zygote had."""
        imports, used = told
        if imports is not None:
            self._measured[function] += 1
        self._earlier.pop(function, None)
        self._learner.observe(
            function,
            packages,
            runtime,
            imports=imports,
            used=used,
            owners=facts.owners,
            loaded=loaded,
            requires=facts.requires,
        )
        if imports or function not in self._known:
            self._known.pop(function, None)

    def measures(self, function: str) -> bool:
        """Whether a new start has to tell what it imports: the first ones of a function, and then one now and then."""
        return self._measured[function] < _ENOUGH or not random.randrange(_SAMPLE)

    def imports(self, function: str) -> Mapping[str, float] | None:
        """What a function is known to import, in milliseconds for each module; None if nothing is known."""
        if function not in self._known:
            self._known[function] = self._learner.known(function)
        return self._known[function]

    # -- plans --------------------------------------------------------------------------------------------------------

    def plan(self, runtime: str) -> Plan:
        """Return what the tree of an interpreter is to be now."""
        base = self._plans.get(runtime) or self._plans.get(None) or Plan()
        known = {(node.packages, node.imports) for node in base.root.children}
        hints = [node for node in self._hints.get(runtime, {}).values() if (node.packages, node.imports) not in known]
        unique = sorted({(tuple(sorted(node.packages)), node.imports): node for node in hints}.items())
        children = (*base.root.children, *(node for _, node in unique[:_MAX_HINTS]))
        try:
            return Plan(replace(base.root, children=children), runtime)
        except olsock.OlsockError as error:  # more nodes than a plan may have
            self._log("warning", "hints_left_out", runtime=runtime, error=str(error))
            return replace(base, python=runtime)

    async def replan(self) -> bool:
        """Fit the trees to what was learnt; return whether there is anything new."""
        settings = self._settings
        if settings.tree or not settings.tree_learn or not self._learner.observations:
            return False
        fade = 0.5 ** (settings.tree_interval / _HALF_LIFE)
        usages = [*self._learner.trace(fade), *self._earlier.values()]
        self._earlier = {
            name: replace(usage, count=usage.count * fade)
            for name, usage in self._earlier.items()
            if usage.count * fade >= _FORGOTTEN
        }
        self._known.clear()
        lines = b"".join(to_line(usage) + b"\n" for usage in usages)
        await asyncio.to_thread(_replace, self._trace, lines)
        if not await self._fit():
            return False
        self._plans = {plan.python: plan for plan in await asyncio.to_thread(trees.load, self._tree)}
        return True

    async def _fit(self) -> bool:
        settings = self._settings
        arguments = ["--nodes", str(settings.tree_nodes), "--memory", str(settings.tree_memory), "-o", str(self._tree)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _FIT, "tree", "fit", "--json", *arguments, str(self._trace)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        try:
            _, said = await asyncio.wait_for(process.communicate(), _FIT_TIMEOUT)
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode:
            self._log("warning", "not_fitted", error=said.decode(errors="replace")[-1000:])
        return not process.returncode


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that there is all of it, or what was there before."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)
