"""ZygoteTree: keeps the zygotes of a plan alive, and starts each function from the best one that is ready."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from olsock.errors import KernelError, SpecError, ZygoteError
from olsock.function import Function
from olsock.nursery.builds import Settings
from olsock.nursery.choices import ROOT, Bound, Choice, Choices, Facts, is_in
from olsock.nursery.evictions import is_leaf
from olsock.nursery.growth import Growth, Listener
from olsock.nursery.slots import STRIKES, Closure, Live, NodeStats, Slot, Store, describe
from olsock.spec import MAX_DESCENDANTS, MIB, Size, ZygoteSpec, parse_size
from olsock.trees.plan import MAX_NOTE, Node, Plan
from olsock.trees.trace import Import

TRIES = 3  # zygotes that one start tries


@dataclass(frozen=True, slots=True)
class TreeStats:
    """What a tree has done, and what it takes: bytes of zygotes that are in the tree, and of those that only wait for their
    last handler to end."""

    nodes: tuple[NodeStats, ...]
    memory: int
    retired: int
    retired_memory: int
    cold_starts: int
    skipped: Mapping[str, Mapping[str, str]]  # closure -> node -> why it is of no use to it


class ZygoteTree(Growth):
    """The zygotes of a `Plan` for one interpreter. All methods may be called by any thread.

    `store` installs packages; `memory` bounds what the zygotes take together, beyond which the least valuable leaf goes.
    The root is built at once, other nodes when a function would be better off with them (with `ahead`, also as soon as a
    new plan is known, for the closures seen last). `builders` are built at one time, `cells` is how many nodes there may be;
    `zygote_memory` limits each, `timeout` (seconds) its imports. `network`, `env`, `spare` and `blanks` are those of
    `Zygote`. `listener` is called, from threads of the tree, after a node has changed its state.
    """

    def __init__(
        self,
        store: Store,
        python: str | None = None,
        plan: Plan | None = None,
        memory: Size = "1G",
        *,
        zygote_memory: Size | None = "1G",
        cells: int = 1023,
        builders: int = 2,
        timeout: float = 120.0,
        ahead: bool = False,
        listener: Listener | None = None,
        **options: Any,
    ) -> None:
        """Begin to build the root; does not wait for it."""
        for name in options:
            if name not in ("network", "env", "spare", "blanks", "separate_stderr"):
                raise SpecError(name, options[name], "network, env, spare, blanks or separate_stderr")
        for name, value, most in (("cells", cells, MAX_DESCENDANTS), ("builders", builders, 64)):
            if type(value) is not int or not 1 <= value <= most:
                raise SpecError(name, value, f"an int from 1 to {most}")
        most_memory = parse_size(memory, "memory", least=16 * MIB, unlimited=False) or 0
        limit = parse_size(zygote_memory, "zygote_memory", least=MIB)
        ZygoteSpec.parse(python=python, memory=limit, timeout=timeout, **options)  # now, not when the root is built
        self._ahead, self._cold, self._tag = ahead, 0, ""
        self._choices = Choices(plan or Plan())
        settings = Settings(python, cells, limit, timeout, options)
        super().__init__(store, settings, self._choices.plan.root, most_memory, builders, listener)

    # -- starts -------------------------------------------------------------------------------------------------------

    def fork(
        self,
        code: str | os.PathLike[str],
        handler: str = "f:f",
        closure: Closure | None = None,
        imports: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Function:
        """Start a function from the best zygote that is ready, or in a fresh interpreter if none is.

        It sees the packages of `closure` and no others; the caller keeps that open for as long as the function lives.
        `imports` is what the function is known to import, in milliseconds for each module: a mapping that is not changed
        afterwards, and the same one each time where that can be. Options are those of
        `Zygote.fork`. `forked_from` of what is returned is the key of a node, or None for a fresh interpreter.
        """
        made = self.try_fork(code, handler, closure, imports, **options)
        if made is not None:
            return made
        with self._lock:
            if self._closed:
                raise ZygoteError("the tree is closed")
            self._cold += 1
        settings = self._settings
        packages = [closure.directory] if closure is not None else []
        settled = {name: each for name, each in settings.options.items() if name in ("network", "separate_stderr")}
        return Function(code, handler, packages=packages, python=settings.python, **settled, **options)

    def try_fork(
        self,
        code: str | os.PathLike[str],
        handler: str = "f:f",
        closure: Closure | None = None,
        imports: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Function | None:
        """As `fork`, but None where no zygote is ready or none can fork. Raises what is wrong with the request itself."""
        ranked, bound, options = self._ranked(closure, imports, options)
        for attempt in range(TRIES):
            found = self._pick(ranked, bound, first=not attempt)
            if found is None:
                return None
            slot, live, choice = found
            try:
                made = live.zygote.fork(code, handler, **options)
            except (ZygoteError, KernelError) as error:
                if isinstance(error, KernelError) and live.zygote.alive:
                    self._done(slot, live, None)
                    raise
                self._done(slot, live, str(error))
                continue
            except BaseException:
                self._done(slot, live, None)
                raise
            made.forked_from = slot.key
            self._hit(slot, live, choice, imports)
            return made
        return None

    def attach(
        self,
        code: str | os.PathLike[str],
        handler: str = "f:f",
        closure: Closure | None = None,
        imports: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Function | None:
        """Start a function from a handler that waits at the best zygote that is ready, in a few hundred microseconds.

        Never waits itself, not for a disk either: None where no handler waits, or the closure was not seen before.
        """
        if not self._choices.knows(closure):
            return None
        ranked, bound, options = self._ranked(closure, imports, options)
        found = self._pick(ranked, bound, first=True)
        if found is None:
            return None
        slot, live, choice = found
        try:
            made = live.zygote.attach(code, handler, **options) if live.zygote.waiting else None
        except ZygoteError:  # it is being closed
            made = None
        except BaseException:
            self._done(slot, live, None)
            raise
        if made is None:
            self._done(slot, live, None)
            return None
        made.forked_from = slot.key
        self._hit(slot, live, choice, imports)
        return made

    def _ranked(
        self, closure: Closure | None, imports: Mapping[str, float] | None, options: dict[str, Any]
    ) -> tuple[list[Choice], Bound | None, dict[str, Any]]:
        if self._closed:
            raise ZygoteError("the tree is closed")
        self._check(closure)
        packages = [closure.directory] if closure is not None else []
        return *self._choices.ranked(closure, imports), {**options, "packages": packages}

    def _check(self, closure: Closure | None) -> None:
        if closure is None:
            return
        tag = closure.lock.tag
        self._tag = self._tag or tag
        if tag != self._tag:
            raise SpecError("closure", tag, f"a closure for {self._tag}: a tree is for one interpreter")

    def _pick(self, ranked: list[Choice], bound: Bound | None, *, first: bool) -> tuple[Slot, Live, Choice] | None:
        """The best slot that is ready, held; what would be better is wanted from now on."""
        packages = bound.lock.packages if bound is not None else frozenset[str]()
        with self._lock:
            wanting = first
            for choice in ranked:
                slot = self._slots.get(choice.key)
                if slot is not None and slot.usable() and slot.live is not None:
                    # The rule that safety hangs on, looked at once more, wherever the choice came from.
                    if not slot.node.packages <= packages:
                        continue
                    slot.live.users += 1
                    return slot, slot.live, choice
                if wanting and (slot is None or slot.state in ("cold", "building")):
                    self._want(choice, bound)
                    wanting = False
            return None

    def _want(self, choice: Choice, bound: Bound | None) -> None:
        """Have a node built, and what it is forked from. Under the lock."""
        slot = self._place(choice, bound)
        slot.misses += 1
        slot.touch(self._clock, choice.saved_ms)
        self._ask(slot)

    def _place(self, choice: Choice, bound: Bound | None) -> Slot:
        """The slot for a node, with slots for all that is above it. Under the lock."""
        above: Slot | None = None
        for key, node in zip(choice.path, choice.nodes, strict=True):
            slot = self._slots.get(key)
            if slot is None:
                assert bound is not None  # only the root is for no closure, and always there
                self._make_room()
                slot = self._slots[key] = Slot(key, node, bound.lock.restrict(node.packages), above)
                self._facts[key] = bound.facts
            elif above is not None:
                slot.above, slot.node = above, node
            slot.planned = True
            above = slot
        assert above is not None
        return above

    def _hit(self, slot: Slot, live: Live, choice: Choice, imports: Mapping[str, float] | None) -> None:
        saved = choice.saved_ms
        if imports is None and not saved:  # a plan without figures: what its zygote told
            saved = sum(each.ms for each in live.loaded.values())
        with self._lock:
            live.users -= 1
            slot.strikes = 0
            slot.hits += 1
            slot.saved_ms += saved
            slot.touch(self._clock, saved)

    def _done(self, slot: Slot, live: Live, problem: str | None) -> None:
        """Let go of a zygote after a fork that failed; replace it if it is gone, or never does."""
        with self._lock:
            live.users -= 1
            if problem is None or slot.live is not live:
                return
            slot.strikes += 1
            if not live.zygote.alive:
                self._died(slot, problem)
            elif slot.strikes >= STRIKES:
                self._died(slot, f"{STRIKES} forks failed in a row: {problem}")

    # -- plans --------------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What the tree is meant to be."""
        return self._choices.plan

    def replace(self, plan: Plan) -> None:
        """Follow another plan. Nodes that are in both stay; others are retired, once their last handler has ended.

        What only the root imports is settled with the tree; a plan with another root's imports takes a new tree.
        """
        if plan.root.imports != self._choices.plan.root.imports:
            raise SpecError("plan", plan.root.imports, f"a root that imports {self._choices.plan.root.imports}")
        self._choices.replace(plan)
        with self._lock:
            known = [(slot, self._facts[slot.key]) for slot in self._slots.values() if slot.lock is not None]
        staying = {slot.key for slot, facts in known if slot.lock and is_in(plan, slot.key, slot.lock, facts)}
        with self._lock:
            for slot, _ in known:
                slot.planned = slot.key in staying
                if not slot.planned:
                    slot.wanted = False
            self._drop()
            self._nudge()
        for ranked, bound in self._choices.recent() if self._ahead else ():
            self._begin_best(ranked, bound)

    def warm(self, closure: Closure, imports: Mapping[str, float] | None = None) -> None:
        """Begin to build the node that is best for a function, before it is started. Does not wait."""
        self._check(closure)
        ranked, bound = self._choices.ranked(closure, imports)
        self._begin_best(ranked, bound)

    def _begin_best(self, ranked: list[Choice], bound: Bound | None) -> None:
        with self._lock:
            for choice in ranked:
                slot = self._slots.get(choice.key)
                if slot is None or slot.state in ("cold", "building"):
                    self._ask(self._place(choice, bound))
                    return
                if slot.state == "ready":
                    return

    # -- evictions ----------------------------------------------------------------------------------------------------

    def evict(self, key: str) -> int:
        """Take a leaf out of the tree; return the bytes that its end frees (its last handler may have to end first).

        It is built again when a function wants it. `SpecError` for what is no leaf: the root, a node with others below it,
        or one that is not ready.
        """
        with self._lock:
            slot = self._slots.get(key)
            if slot is None or not is_leaf(slot) or slot.live is None:
                raise SpecError("key", key, "the key of a leaf that is ready")
            size = slot.live.size
            self._evict(slot)
            return size

    # -- what it is ---------------------------------------------------------------------------------------------------

    def wait_ready(self, key: str = ROOT, timeout: float | None = None) -> bool:
        """Wait until a node is ready, bad or given up; return whether it is ready. For a node that is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._state(key) in ("ready", "bad", "given up"), timeout)
            return self._state(key) == "ready"

    def _state(self, key: str) -> str:
        slot = self._slots.get(key)
        return slot.state if slot is not None else "cold"

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being built that can be; for tests and measurements."""

        def idle() -> bool:
            return self._closed or not any(
                slot.state == "building" or (slot.wanted and slot.state == "cold") for slot in self._slots.values()
            )

        with self._changed:
            return self._changed.wait_for(idle, timeout)

    def loaded(self, key: str | None) -> Mapping[str, Import]:
        """What the zygote of a node has imported of packages, as it told; for `Learner.observe`."""
        with self._lock:
            slot = self._slots.get(key or "")
            return slot.live.loaded if slot is not None and slot.live is not None else {}

    def facts(self, closure: Closure) -> Facts:
        """What packages of a closure need of each other, and whose its modules are; for `Learner.observe`."""
        return self._choices.facts(closure)

    def stats(self) -> TreeStats:
        """Figures of every node and of the tree."""
        skipped = self._choices.skipped()
        with self._lock:
            nodes = tuple(describe(slot, is_leaf(slot)) for slot in self._slots.values())
            retired = sum(live.size for live in self._retired)
            return TreeStats(nodes, self._used(), len(self._retired), retired, self._cold, skipped)

    def snapshot(self) -> Plan:
        """The tree as it is, with its figures, as a plan: for `olsock tree show`."""
        with self._lock:
            below: dict[int, list[Slot]] = {}
            for slot in self._slots.values():
                if slot.above is not None:
                    below.setdefault(id(slot.above), []).append(slot)

            def node(slot: Slot, above: Node | None) -> Node:
                described = describe(slot, leaf=False)
                state = "" if slot.state == "ready" else slot.state
                own = replace(
                    slot.node,
                    size=slot.live.size if slot.live is not None else 0,
                    hits=float(slot.hits),
                    saved_ms=slot.saved_ms,
                    note=": ".join(filter(None, (state, described.reason)))[:MAX_NOTE],
                    children=(),
                )
                fitting = [each for each in below.get(id(slot), ()) if own.packages <= each.node.packages]
                return replace(own, children=tuple(node(each, own) for each in fitting))

            return Plan(node(self._slots[ROOT], None), self.plan.python)
