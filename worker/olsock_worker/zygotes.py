"""What the broker starts instances from: a zygote tree for each interpreter, and function zygotes.

Zygotes are made in the background, and nobody waits for one who has not asked for that (`zygote: wait`): a start takes
the best that is ready, or tells that there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import olsock
from olsock.interpreters import Runtime
from olsock.nursery import offshoots
from olsock.nursery.offshoots import Offshoot
from olsock_worker.broker_protocol import Deploy, Start, ZygoteState
from olsock_worker.closings import Closings
from olsock_worker.forest import Forest
from olsock_worker.handmade import Handmade
from olsock_worker.installs import Installation, Installs
from olsock_worker.logs import WorkerLog
from olsock_worker.made import Made
from olsock_worker.planner import Facts, Planner
from olsock_worker.settings import Settings
from olsock_worker.snapshots import Snapshot

_FUNCTIONS = 10_000  # of which current versions are known
_SOON = 0.05  # seconds in which functions that are deployed together become one change of the plan
_FIGURES = 1.0  # seconds between looks at what zygotes have been good for
_NODE_WAIT = 10.0  # seconds that a function zygote waits for the node that it would best be forked from


@dataclass(slots=True)
class _Current:
    """The current version of a function."""

    deploy: Deploy
    installation: Installation  # held
    ready: asyncio.Event  # the plan has what it asks for
    facts: Facts | None = None
    snapshot: Snapshot | None = None


class Zygotes:
    """All zygotes of a worker. All methods are called on the broker's loop."""

    def __init__(
        self,
        settings: Settings,
        installs: Installs,
        planner: Planner,
        openers: tuple[Callable[[str], Any], Callable[[str], Any]],
        tell: Callable[[ZygoteState], None],
        log: WorkerLog,
    ) -> None:
        """`openers` open code, and layers, that the front knows by a path or a name: context managers around ours."""
        self._settings, self._installs, self._planner = settings, installs, planner
        self._open_code, self._open_layers = openers
        self._tell, self._log = tell, log
        self._functions: dict[str, _Current] = {}
        self._forests: dict[str, asyncio.Task[Forest]] = {}
        self._closings = Closings()
        self._handmade = Handmade(settings, self._closings, tell, log)
        self._dirty: set[str] = set()  # functions whose wishes are not in a plan yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._soon: asyncio.TimerHandle | None = None
        self._begin(self._tick())
        if settings.tree_learn and not settings.tree:
            self._begin(self._learn())

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log("error", "zygotes", error=repr(task.exception()))

    # -- what is deployed ---------------------------------------------------------------------------------------------

    def deploy(self, message: Deploy) -> None:
        """Keep what is good for the new version of a function."""
        installation = self._installs.hold(message.installation)
        before = self._functions.pop(message.name, None)
        self._planner.renew(message.name)
        if before is not None:
            self._end(before)
        if installation is None:
            return
        if len(self._functions) >= _FUNCTIONS:  # its instances start without what would be kept for it
            self._installs.release(installation)
            return
        current = self._functions[message.name] = _Current(message, installation, asyncio.Event())
        if message.zygote == "off":
            current.ready.set()
        elif self._by_hand(installation):
            self._want_handmade()
            current.ready.set()
        elif self._settings.packages:  # of both kinds: see `start`
            current.ready.set()
        else:
            self._dirty.add(message.name)
            if self._soon is None:
                self._soon = asyncio.get_running_loop().call_later(_SOON, self._settle_soon)

    def remove(self, name: str) -> None:
        """Forget a function."""
        before = self._functions.pop(name, None)
        if before is not None:
            self._end(before)
            self._planner.forget(name)
            self._want_handmade()

    def _end(self, current: _Current) -> None:
        if current.snapshot is not None:
            current.snapshot.close()
        current.ready.set()
        self._installs.release(current.installation)

    def _by_hand(self, installation: Installation) -> bool:
        """Whether a function's packages are directories that the operator keeps, the same for all."""
        return bool(self._settings.packages) and not installation.number

    def _want_handmade(self) -> None:
        wanted = {
            each.deploy.imports
            for each in self._functions.values()
            if each.deploy.zygote != "off" and self._by_hand(each.installation)
        }
        self._handmade.want(tuple(sorted(wanted)))

    def _settle_soon(self) -> None:
        self._soon = None
        dirty, self._dirty = self._dirty, set()
        self._begin(self._settle([self._functions[name] for name in dirty if name in self._functions]))

    async def _settle(self, changed: Sequence[_Current]) -> None:
        """Put what functions ask for into the plans, and begin to make it."""
        forests = set()
        try:
            for current in changed:
                forest = await self._forest(current.installation)
                closure = current.installation.closure or forest.empty
                current.facts = await asyncio.to_thread(forest.tree.facts, closure)
                deploy = current.deploy
                self._planner.hint(forest.runtime.name, deploy.name, deploy.imports, current.facts.owners)
                forests.add(forest)
            for forest in forests:
                await forest.follow(self._planner.plan(forest.runtime.name))
            for current in changed:
                forest = await self._forest(current.installation)
                closure = current.installation.closure or forest.empty
                await asyncio.to_thread(forest.tree.warm, closure, self._imports(current.deploy, current.installation))
                if current.deploy.snapshot and self._functions.get(current.deploy.name) is current:
                    current.snapshot = self._snapshot(current, forest)
        finally:
            for current in changed:
                current.ready.set()

    def _imports(self, of: Deploy | Start, installation: Installation) -> Mapping[str, float] | None:
        """What a function imports, as far as anybody knows; None: all that there is for its packages, perhaps."""
        known = self._planner.imports(of.code.partition("/")[0])
        if of.imports:
            return {**dict.fromkeys(of.imports, 1.0), **(known or {})}
        return {} if known is None and installation.closure is None else known

    async def _forest(self, installation: Installation) -> Forest:
        """Return the tree of an interpreter, made when it is asked for first."""
        runtime = await self._installs.runtime(installation)
        task = self._forests.get(runtime.path)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._forests[runtime.path] = asyncio.create_task(self._plant(installation, runtime))
        return await asyncio.shield(task)

    async def _plant(self, installation: Installation, runtime: Runtime) -> Forest:
        store, empty = await self._installs.nothing(runtime)
        taken = {task.result().label for task in self._forests.values() if task.done() and task.exception() is None}
        label = runtime.name if runtime.name not in taken else f"{runtime.name} at {runtime.path}"
        plan = self._planner.plan(runtime.name)
        return Forest(label, runtime, installation.python, store, empty, plan, self._settings, self._tell)

    def _ready_forest(self, installation: Installation) -> Forest | None:
        runtime = installation.runtime
        task = self._forests.get(runtime.path) if runtime is not None else None
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    # -- starts -------------------------------------------------------------------------------------------------------

    async def start(
        self, message: Start, code: str, installation: Installation, options: dict[str, Any]
    ) -> Made | None:
        """Fork an instance from the best zygote that is ready; None if there is none."""
        if message.zygote == "off":
            return None
        if self._by_hand(installation):
            return await self._handmade.start(message, code, options)
        if self._settings.packages:
            return None  # directories kept by hand beside packages of its own: zygotes see only one of the two
        name = message.code.partition("/")[0]
        current = self._functions.get(name)
        if current is not None and current.deploy.code != message.code:
            current = None
        if message.zygote == "wait":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wait(message, current, installation), self._settings.start_timeout)
        made = None
        if current is not None and current.snapshot is not None:
            made = await self._from_snapshot(current.snapshot, message, code, options)
        return made or await self._from_tree(message, code, installation, options)

    async def _wait(self, message: Start, current: _Current | None, installation: Installation) -> None:
        if current is not None:
            await current.ready.wait()
            if current.snapshot is not None:
                await current.snapshot.settled.wait()
                return
        forest = await self._forest(installation)
        await forest.wait(installation.closure or forest.empty, self._imports(message, installation))

    async def _from_snapshot(
        self, snapshot: Snapshot, message: Start, code: str, options: dict[str, Any]
    ) -> Made | None:
        live = snapshot.hold()
        if live is None:
            return None
        zygote = live.offshoot.zygote
        try:
            # Its zygote has imported all there is to tell of.
            work = partial(zygote.fork, code, message.handler, measure=False, **options)
            function = zygote.attach(code, message.handler, measure=False, **options)  # at once: see Forest.fork
            if function is None:
                function = await asyncio.get_running_loop().run_in_executor(snapshot.executor, work)
        except olsock.SpecError:
            snapshot.release(live)
            raise
        except Exception as error:  # also RuntimeError: its executor was shut down meanwhile
            snapshot.failed(live, error)
            snapshot.release(live)
            return None
        snapshot.forked()
        return Made(function, snapshot.key, "function zygote", lambda: snapshot.release(live))

    async def _from_tree(
        self, message: Start, code: str, installation: Installation, options: dict[str, Any]
    ) -> Made | None:
        forest = self._ready_forest(installation)
        if forest is None:
            return None
        closure = installation.closure or forest.empty
        try:
            function = await forest.fork(
                code,
                message.handler,
                closure,
                self._imports(message, installation),
                measure=self._planner.measures(message.code.partition("/")[0]),
                **options,
            )
        except olsock.SpecError:
            raise
        except Exception as error:  # the tree replaces what does not work
            self._log("warning", "fork_failed", code=message.code, error=str(error))
            return None
        if function is None:
            return None
        return Made(function, forest.key(function.forked_from or ""), "tree node", lambda: None)

    # -- function zygotes ---------------------------------------------------------------------------------------------

    def _snapshot(self, current: _Current, forest: Forest) -> Snapshot:
        deploy, closure = current.deploy, current.installation.closure or forest.empty
        imports = self._imports(deploy, current.installation)

        def grow(blanks: int) -> Offshoot:
            with contextlib.suppress(olsock.OlsockError):
                forest.tree.wait_ready(offshoots.best(forest.tree, closure, imports), _NODE_WAIT)
            with self._open_code(deploy.code) as path, self._open_layers(deploy.layers) as opt:
                made = offshoots.grow(
                    forest.tree,
                    path,
                    deploy.handler,
                    closure,
                    imports,
                    env=deploy.env,
                    memory=self._settings.zygote_memory,
                    timeout=self._settings.start_timeout,
                    blanks=blanks,
                    **opt,
                )
            made.above = forest.key(made.above)
            return made

        return Snapshot(deploy, grow, self._settings.blanks, self._closings, self._tell, self._log)

    # -- history ------------------------------------------------------------------------------------------------------

    def learnt(
        self,
        code: str,
        key: str,
        installation: Installation,
        told: tuple[Sequence[olsock.Imported] | None, Sequence[str]],
    ) -> None:
        """Note a new instance of a function, and what it has imported if it was asked."""
        name = code.partition("/")[0]
        current, forest = self._functions.get(name), self._ready_forest(installation)
        closure = installation.closure
        if current is None or current.facts is None or forest is None or closure is None or current.deploy.code != code:
            return
        if key.startswith("function:"):
            return  # it has imported nothing: its zygote had
        node = key.removeprefix(forest.key(""))
        loaded = forest.loaded(node) if key else {}
        self._planner.observe(name, forest.runtime.name, closure.packages, current.facts, told, loaded)

    async def _learn(self) -> None:
        while True:
            await asyncio.sleep(self._settings.tree_interval)
            try:
                if await self._planner.replan():
                    for forest in self._live_forests():
                        await forest.follow(self._planner.plan(forest.runtime.name))
            except Exception as error:  # the trees stay as they are
                self._log("warning", "not_replanned", error=str(error) or repr(error))

    def _live_forests(self) -> list[Forest]:
        done = [task for task in self._forests.values() if task.done() and not task.cancelled()]
        return [task.result() for task in done if task.exception() is None]

    # -- what is told, and the end ------------------------------------------------------------------------------------

    def evict(self, key: str) -> None:
        """End a zygote because its memory is needed."""
        for current in self._functions.values():
            if current.snapshot is not None and current.snapshot.key == key:
                current.snapshot.evict()
                return
        for forest in self._live_forests():
            if key.startswith(forest.key("")):
                forest.evict(key.removeprefix(forest.key("")))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_FIGURES)
            for forest in self._live_forests():
                forest.refresh()
            for current in self._functions.values():
                if current.snapshot is not None:
                    current.snapshot.show()

    async def close(self) -> None:
        """End all of them, with what was forked from them."""
        for task in list(self._tasks):
            task.cancel()
        for name in list(self._functions):
            self._end(self._functions.pop(name))
        await self._handmade.close()
        await self._closings.wait(10.0)
        for planting in self._forests.values():
            planting.cancel()
        await asyncio.gather(*(forest.close() for forest in self._live_forests()))
