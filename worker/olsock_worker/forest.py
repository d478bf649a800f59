"""One live zygote tree of the broker, on its loop: forks in threads, blanks by demand, and figures for the front."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import olsock
from olsock.interpreters import Runtime
from olsock.nursery import NodeStats, ZygoteTree, offshoots
from olsock.trees import Import, Plan
from olsock_worker.blanks import Blanks
from olsock_worker.broker_protocol import SHOWN, ZygoteState
from olsock_worker.settings import Settings

_FORKERS = 8  # threads; what hangs here is a zygote of packages, for ten seconds at most
_OVER = ("ready", "bad", "given up")
_PACKAGES = 200  # of a node that the front is told
_REASON = 2000  # characters of why a node is as it is


class Forest:
    """The tree of one interpreter."""

    def __init__(
        self,
        label: str,
        runtime: Runtime,
        python: str | None,
        store: olsock.PackageStore,
        empty: olsock.Closure,
        plan: Plan,
        settings: Settings,
        tell: Callable[[ZygoteState], None],
    ) -> None:
        """`empty` is the closure of functions that require nothing. To be made on the loop."""
        self.label, self.runtime, self.empty = label, runtime, empty
        self._loop = asyncio.get_running_loop()
        self._tell, self._most = tell, settings.blanks
        self._states: dict[str, ZygoteState] = {}
        self._blanks: dict[str, Blanks] = {}
        self._changed = asyncio.Event()
        self._looking = False
        self._turn = asyncio.Lock()  # of changes to the plan
        self.executor = ThreadPoolExecutor(_FORKERS, thread_name_prefix="tree")
        self.tree = ZygoteTree(
            store,
            python,
            plan,
            settings.tree_memory,
            zygote_memory=settings.zygote_memory,
            timeout=settings.install_timeout,
            ahead=True,
            listener=lambda _node: self._from_thread(),
        )

    # -- starts -------------------------------------------------------------------------------------------------------

    async def fork(
        self, code: str, handler: str, closure: olsock.Closure, imports: Mapping[str, float] | None, **options: Any
    ) -> olsock.Function | None:
        """Fork from the best node that is ready; None if none is."""
        # What takes a few hundred microseconds is done at once: to hand it to a thread and back takes as long again.
        made = self.tree.attach(code, handler, closure, imports, **options)
        if made is None:
            work = partial(self.tree.try_fork, code, handler, closure, imports, **options)
            made = await self._loop.run_in_executor(self.executor, work)
        if made is not None and made.forked_from is not None:
            self._started(made.forked_from)
        return made

    async def wait(self, closure: olsock.Closure, imports: Mapping[str, float] | None) -> None:
        """Wait until the node that is best for a function is ready, or will not be soon. Cancelled by who waits."""
        await self._loop.run_in_executor(self.executor, self.tree.warm, closure, imports)
        key = await self._loop.run_in_executor(self.executor, offshoots.best, self.tree, closure, imports)
        while True:
            self._changed.clear()
            self.refresh()
            state = self._states.get(key)
            if state is None or state.state in _OVER or (state.state == "cold" and state.detail):
                return
            await self._changed.wait()

    def loaded(self, key: str) -> Mapping[str, Import]:
        """What the zygote of a node has imported."""
        return self.tree.loaded(key)

    # -- blanks -------------------------------------------------------------------------------------------------------

    def _started(self, key: str) -> None:
        blanks = self._blanks.get(key)
        if blanks is None:
            blanks = self._blanks[key] = Blanks(self._most, 0, partial(self._keep_blanks, key))
        blanks.started()

    def _keep_blanks(self, key: str, count: int) -> None:
        with contextlib.suppress(RuntimeError):  # it is being closed
            self.executor.submit(offshoots.keep_blanks, self.tree, key, count)

    # -- plans --------------------------------------------------------------------------------------------------------

    async def follow(self, plan: Plan) -> None:
        """Go over to another plan."""
        async with self._turn:
            if plan != self.tree.plan:
                await asyncio.to_thread(self.tree.replace, plan)

    def evict(self, key: str) -> None:
        """Take a node out, if that can be."""
        with contextlib.suppress(olsock.SpecError):
            self.tree.evict(key)

    # -- what is told -------------------------------------------------------------------------------------------------

    def _from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._changed.set()
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self.refresh)

    def refresh(self) -> None:
        """Tell the front what has changed."""
        self._looking = False
        stats = self.tree.stats()
        seen = set()
        for node in stats.nodes:
            state = self._state(node)
            seen.add(node.key)
            if self._states.get(node.key) != state:
                known = self._states.get(node.key)
                if node.key in self._blanks and node.pid and (known is None or known.pid != node.pid):
                    self._blanks[node.key].again()
                self._states[node.key] = state
                self._tell(state)
        for key in set(self._states) - seen:
            state = self._states.pop(key)
            if key in self._blanks:
                self._blanks.pop(key).stop()
            self._tell(ZygoteState(key=state.key, kind="node", state="gone", runtime=self.label))

    def _state(self, node: NodeStats) -> ZygoteState:
        failed = node.state == "cold" and node.reason not in ("", "evicted")
        return ZygoteState(
            key=self.key(node.key),
            kind="node",
            state="failed" if failed else node.state,
            runtime=self.label,
            imports=node.imports[:SHOWN],
            modules=len(node.imports),
            packages=node.packages[:_PACKAGES],
            above=self.key(node.above) if node.above else "",
            pid=node.pid or 0,
            detail=node.reason[:_REASON],
            memory=node.memory,
            handlers=node.handlers,
            blanks=self._blanks[node.key].count if node.pid and node.key in self._blanks else 0,
            hits=node.hits,
            misses=node.misses,
            saved_ms=node.saved_ms,
            cost_ms=round(node.cost_ms, 3),
            frequency=round(node.frequency, 3),
            build_ms=node.build_ms,
            leaf=node.leaf,
        )

    def key(self, node: str) -> str:
        """The name of a node in the whole worker."""
        return f"{self.label}:{node}"

    async def close(self) -> None:
        """End it, with all that was forked from it."""
        for blanks in self._blanks.values():
            blanks.stop()
        await asyncio.to_thread(self.tree.close)
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.empty.close()
