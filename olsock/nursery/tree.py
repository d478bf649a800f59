"""ZygoteTree: keeps the zygotes of a plan alive, and starts each function from the best one that is ready.

One lock guards the slots and is held for bookkeeping only, never while something is imported, installed, forked or closed.
A thread of its own, the keeper, learns of deaths by pidfds and of what is due, and has pool threads build and close.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from olsock.errors import KernelError, OlsockError, SpecError, ZygoteError
from olsock.function import Function
from olsock.nursery.builds import BadNodeError, Job, NoRoomError, Settings, build, job_for
from olsock.nursery.choices import ROOT, Bound, Choice, Choices, Facts, is_in
from olsock.nursery.evictions import is_leaf, victims
from olsock.nursery.slots import LONG_LIFE, STRIKES, Closure, Live, NodeStats, Slot, Store, describe
from olsock.owned import Owned
from olsock.spec import MAX_DESCENDANTS, MIB, Size, parse_size
from olsock.trees.plan import MAX_NOTE, Node, Plan
from olsock.trees.trace import Import

MAX_SLOTS = 2048  # built or not; what nobody wants is forgotten first
FULL_WAIT = 30.0  # seconds before a node for which there was no memory is tried again
LOOK = 0.25  # seconds between looks at retired zygotes, whose last handler nobody tells of
TRIES = 3  # zygotes that one start tries

Listener = Callable[[NodeStats], None]


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


class ZygoteTree(Owned):
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
        self._memory = parse_size(memory, "memory", least=16 * MIB, unlimited=False) or 0
        for name, value, most in (("cells", cells, MAX_DESCENDANTS), ("builders", builders, 64)):
            if type(value) is not int or not 1 <= value <= most:
                raise SpecError(name, value, f"an int from 1 to {most}")
        limit = parse_size(zygote_memory, "zygote_memory", least=MIB)
        self._settings = Settings(python, cells, limit, timeout, options)
        self._store, self._ahead, self._listener = store, ahead, listener
        self._choices = Choices(plan or Plan())
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        root = Slot(ROOT, self._choices.plan.root, None, None, wanted=True)
        self._slots: dict[str, Slot] = {ROOT: root}
        self._facts: dict[str, Facts] = {}  # of slots, to find them in another plan
        self._retired: set[Live] = set()
        self._building: dict[str, Future[None]] = {}
        self._closings: set[Future[None]] = set()
        self._clock = 0.0  # of the eviction
        self._cold = 0
        self._tag: str | None = None
        self._ending = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._builders = ThreadPoolExecutor(builders, thread_name_prefix="olsock-nursery")
        self._closers = ThreadPoolExecutor(2, thread_name_prefix="olsock-retired")
        self._keeper = threading.Thread(target=self._keep, name="olsock-keeper", daemon=True)
        self._own()
        self._keeper.start()

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
        `imports` is what the function is known to import, in milliseconds for each module. Options are those of
        `Zygote.fork`. `forked_from` of what is returned is the key of a node, or None for a fresh interpreter.
        """
        made = self.try_fork(code, handler, closure, imports, **options)
        if made is not None:
            return made
        with self._lock:
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
        if self._closed:
            raise ZygoteError("the tree is closed")
        self._check(closure)
        packages = [closure.directory] if closure is not None else []
        ranked, bound = self._choices.ranked(closure, imports)
        for attempt in range(TRIES):
            found = self._pick(ranked, bound, first=not attempt)
            if found is None:
                return None
            slot, live, choice = found
            try:
                made = live.zygote.fork(code, handler, packages=packages, **options)
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

    def _check(self, closure: Closure | None) -> None:
        if closure is None:
            return
        tag = closure.lock.tag
        if self._tag is None:
            self._tag = tag
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

    def _ask(self, slot: Slot) -> None:
        """Have a slot built after all that is above it. Under the lock."""
        if slot.full_until <= time.monotonic() and not all(each.wanted for each in slot.path):
            for each in slot.path:
                each.wanted = each.wanted or each.state == "cold"
            self._nudge()

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

    def _make_room(self) -> None:
        """Forget the slot that matters least, if there are too many. Under the lock."""
        if len(self._slots) < MAX_SLOTS:
            return
        needed = {id(each.above) for each in self._slots.values()}
        idle = [
            each
            for each in self._slots.values()
            if each.state in ("cold", "bad", "given up") and id(each) not in needed
        ]
        least = min((each for each in idle if each.above is not None), key=lambda each: each.priority, default=None)
        if least is not None:
            self._forget(least)

    def _forget(self, slot: Slot) -> None:
        del self._slots[slot.key]
        self._facts.pop(slot.key, None)

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

    def _drop(self) -> None:
        """Retire what the plan has no more, leaves first: what is below something that goes stays as it is. Under the lock."""
        for slot in list(self._slots.values()):
            if slot.planned or slot.above is None:
                continue
            if slot.live is not None:
                self._retire(slot)
                slot.state = "cold"
            if slot.state != "building":
                self._forget(slot)

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

    def _evict(self, slot: Slot) -> None:
        self._clock = max(self._clock, slot.priority)
        slot.frequency *= 0.5
        self._retire(slot)
        slot.state, slot.wanted, slot.reason = "cold", False, "evicted"
        self._tell(slot)

    def _used(self) -> int:
        """Bytes of all zygotes of the tree. Under the lock."""
        return sum(slot.live.size for slot in self._slots.values() if slot.live is not None)

    # -- what goes on in the background -------------------------------------------------------------------------------

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def _keep(self) -> None:
        while True:
            with self._lock:
                if self._ending:
                    return
                watched = {slot.live.zygote.pidfd: slot for slot in self._slots.values() if slot.live is not None}
                due = self._schedule()
                self._sweep()
                if self._retired:
                    due = min(due, LOOK)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for fd in watched:
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, event in poll.poll(None if due == float("inf") else int(due * 1000) + 1)]
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            with self._lock:
                for fd in ready:
                    slot = watched.get(fd)
                    if slot is not None and slot.live is not None and not slot.live.zygote.alive:
                        self._died(slot, "the zygote died")

    def _schedule(self) -> float:
        """Have everything built that is wanted and can be; return the seconds until more may be. Under the lock."""
        due, now = float("inf"), time.monotonic()
        for slot in list(self._slots.values()):
            if not slot.wanted or slot.state != "cold" or slot.key in self._building:
                continue
            if slot.not_before > now:
                due = min(due, slot.not_before - now)
                continue
            if not all(each.planned for each in slot.path):
                slot.wanted = False  # of a plan that is no more; who wants it again says below what
                continue
            try:
                job = job_for(slot, self._settings)
            except NoRoomError as error:
                self._put_off(slot, str(error))
                continue
            if job is None:
                continue  # what it is forked from comes first, and says when it has
            if not self._fits(slot):
                self._put_off(slot, "no memory for it: what is there is worth more")
                continue
            self._begin(job)
        return due

    def _put_off(self, slot: Slot, why: str) -> None:
        slot.reason, slot.full_until, slot.wanted = why, time.monotonic() + FULL_WAIT, False
        self._tell(slot)

    def _fits(self, slot: Slot) -> bool:
        """Whether there is memory for a node, or what is worth less can make room. Under the lock."""
        over = self._used() + slot.size - self._memory
        if over <= 0 or slot.above is None:
            return True
        return bool(victims(self._slots.values(), over, below=slot.priority, spare=slot.path))

    def _begin(self, job: Job) -> None:
        slot = job.slot
        slot.state, slot.reason = "building", ""
        if job.above is not None:
            job.above.users += 1
            job.above.taken += job.cells + 1
        self._tell(slot)
        self._building[slot.key] = self._builders.submit(self._build, job)

    def _build(self, job: Job) -> None:
        slot, live, problem = job.slot, None, None
        began = time.monotonic()
        try:
            live = build(job, self._store, self._settings)
        except Exception as error:  # whatever a package, an index or the kernel comes up with
            problem = error
        with self._lock:
            self._building.pop(slot.key, None)
            if job.above is not None:
                job.above.users -= 1
                if live is None:
                    job.above.taken -= job.cells + 1
                else:
                    job.above.children += 1
            if live is not None:
                slot.build_ms = round((time.monotonic() - began) * 1000, 3)
                self._settle(slot, live)
            else:
                self._unsettle(slot, job, problem or ZygoteError("not built"))
            self._tell(slot)
            self._nudge()

    def _settle(self, slot: Slot, live: Live) -> None:
        """Put a zygote into its slot, and others out that there is no memory for. Under the lock."""
        if self._ending or not slot.planned or self._slots.get(slot.key) is not slot:
            slot.state = "cold"
            self._retire_live(live)
            if not slot.planned:
                self._drop()
            return
        slot.live, slot.state, slot.reason, slot.strikes = live, "ready", "", 0
        slot.measured = live.size
        slot.wanted = True  # to be there again after its death
        over = self._used() - self._memory
        if over > 0:
            for victim in victims(self._slots.values(), over, below=float("inf")):
                self._evict(victim)

    def _unsettle(self, slot: Slot, job: Job, problem: Exception) -> None:
        """Note that a node could not be built. Under the lock."""
        if isinstance(problem, BadNodeError):
            slot.state, slot.wanted, slot.reason = "bad", False, str(problem)
        elif job.above is not None and not job.above.zygote.alive:
            slot.state = "cold"  # not its own fault: what it was forked from has died meanwhile
            slot.not_before = time.monotonic() + 0.01
        else:
            slot.failed(str(problem) or type(problem).__name__, root=slot.above is None)
            if _is_final(problem, slot):
                slot.state, slot.wanted, slot.reason = "bad", False, str(problem)

    def _died(self, slot: Slot, why: str) -> None:
        """Take out a zygote that is dead, or of no use. Under the lock."""
        live = slot.live
        if live is None:
            return
        if time.monotonic() - live.born > LONG_LIFE:
            slot.failures = 0
        self._retire(slot)
        slot.failed(why, root=slot.above is None)
        self._tell(slot)
        self._nudge()

    def _retire(self, slot: Slot) -> None:
        """Take the zygote out of a slot; it goes once nothing needs it. Under the lock."""
        live, slot.live = slot.live, None
        slot.strikes = 0
        if live is not None:
            self._retire_live(live)

    def _retire_live(self, live: Live) -> None:
        self._retired.add(live)
        self._nudge()

    def _sweep(self) -> None:
        """Close retired zygotes that nothing needs any more. Under the lock."""
        for live in [each for each in self._retired if not each.in_use]:
            self._retired.discard(live)
            future = self._closers.submit(self._close_live, live)
            self._closings.add(future)
            future.add_done_callback(self._closings.discard)

    def _close_live(self, live: Live) -> None:
        try:
            with contextlib.suppress(OlsockError, OSError):
                live.zygote.close()
        finally:
            if live.closure is not None:
                live.closure.close()
            with self._lock:
                if live.above is not None:
                    live.above.taken -= live.held
                    live.above.children -= 1
                self._nudge()

    def _tell(self, slot: Slot) -> None:
        """Wake who waits, and call the listener, from a thread that holds no lock."""
        self._changed.notify_all()
        if self._listener is not None and not self._ending:
            self._closers.submit(self._listener, describe(slot, is_leaf(slot)))

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

    def _end(self) -> None:
        with self._lock:
            self._ending = True
            self._nudge()
            self._changed.notify_all()
        self._keeper.join()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._stop_builds()
        self._builders.shutdown(wait=True)
        with self._lock:
            lives = [slot.live for slot in self._slots.values() if slot.live is not None] + list(self._retired)
            for slot in self._slots.values():
                slot.live, slot.state = None, "cold"
            self._retired.clear()
        self._closers.shutdown(wait=True)
        for live in sorted(lives, key=lambda each: -each.depth):
            self._close_live(live)
        os.close(self._wake)

    def _stop_builds(self) -> None:
        """End imports that are going on, by ending everything below the roots that they are forked from."""
        while True:
            with self._lock:
                running = [each for each in self._building.values() if not each.cancelled()]
                lives = [slot.live for slot in self._slots.values() if slot.live is not None] + list(self._retired)
                roots = [live for live in lives if live.above is None]
            if not running or not wait(running, 0.05).not_done:
                return
            for live in roots:
                with contextlib.suppress(OlsockError, OSError):
                    live.zygote._domain.group.kill()


def _is_final(problem: Exception, slot: Slot) -> bool:
    """Whether trying again is of no use: imports that leave threads behind, or did not end well, or at all, twice."""
    text = str(problem)
    if text.startswith("imports left"):
        return True
    crashed = ("during imports" in text and "signal 9" not in text) or text.startswith("imports took longer")
    return isinstance(problem, ZygoteError) and crashed and slot.failures >= 2
