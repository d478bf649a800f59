"""Which nodes of a plan a closure may use, best first: worked out once for a closure, remembered for its later starts."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from olsock.nursery.slots import Closure
from olsock.packages.lock import Lock
from olsock.packages.needs import needs
from olsock.trees.bind import bind
from olsock.trees.plan import Node, Plan
from olsock.trees.select import rank

MAX_CLOSURES = 1024
MAX_RECENT = 64  # closures for which nodes of a new plan are built ahead
MAX_RANKINGS = 16  # of one closure, for functions that import different things

ROOT = "root"


@dataclass(frozen=True, slots=True)
class Choice:
    """A node that a function may start from: the keys of its path (root first), and what it is expected to save."""

    path: tuple[str, ...]
    nodes: tuple[Node, ...]
    saved_ms: float

    @property
    def key(self) -> str:
        """That of the node itself."""
        return self.path[-1]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is read of a closure once."""

    requires: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tops: Mapping[str, list[str]] = field(default_factory=dict)  # package -> its top-level modules
    owners: Mapping[str, str] = field(default_factory=dict)  # top-level module -> its package

    @classmethod
    def read(cls, closure: Closure) -> Facts:
        """Look through its directory."""
        tops: dict[str, list[str]] = {}
        owners = dict(closure.owners())
        for module, package in owners.items():
            if "." not in module and not module.startswith("_"):  # nobody imports what is private to a package
                tops.setdefault(package, []).append(module)
        return cls(needs(closure.directory, closure.packages), tops, owners)


class Bound:
    """The part of a plan that is for one closure."""

    def __init__(self, plan: Plan, lock: Lock, facts: Facts) -> None:
        self.lock, self.facts = lock, facts
        self.plan, self.skipped = bind(plan, lock.packages, facts.requires, facts.tops)
        self.keys: dict[tuple[int, ...], tuple[str, ...]] = {}
        for path in self.plan.paths():
            ids = tuple(map(id, path))
            self.keys[ids] = (*self.keys.get(ids[:-1], ()), _key(path, lock))
        self._rankings: OrderedDict[frozenset[tuple[str, float]] | None, list[Choice]] = OrderedDict()
        self._same: OrderedDict[int, tuple[Mapping[str, float] | None, list[Choice]]] = OrderedDict()

    def ranked(self, imports: Mapping[str, float] | None) -> list[Choice]:
        """The choices for a function that imports these; to be called under a lock."""
        same = self._same.get(id(imports))  # to compare hundreds of modules takes as long as all else that is done here
        if same is not None and same[0] is imports:
            return same[1]
        found = self._compared(imports)
        self._same[id(imports)] = imports, found  # kept, so that no other has its id
        while len(self._same) > MAX_RANKINGS:
            self._same.popitem(last=False)
        return found

    def _compared(self, imports: Mapping[str, float] | None) -> list[Choice]:
        by = None if imports is None else frozenset(imports.items())
        found = self._rankings.get(by)
        if found is None:
            found = self._rankings[by] = [
                Choice(self.keys[tuple(map(id, match.path))], match.path, match.saved_ms)
                for match in rank(self.plan, self.lock.packages, imports)
            ]
            while len(self._rankings) > MAX_RANKINGS:
                self._rankings.popitem(last=False)
        return found


def _key(path: tuple[Node, ...], lock: Lock) -> str:
    """What tells a zygote from others: the distributions that it sees, by their hashes, and all that it has imported."""
    if len(path) == 1:
        return ROOT
    pins = lock.restrict(path[-1].packages)
    modules = sorted({module for node in path for module in node.imports})
    return hashlib.sha256("\n".join([pins.key, *modules]).encode()).hexdigest()[:16]


class Choices:
    """All closures that were seen of late. Safe to use from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._bound: OrderedDict[str, Bound] = OrderedDict()
        self._facts: OrderedDict[str, Facts] = OrderedDict()
        self._recent: OrderedDict[str, tuple[Lock, Mapping[str, float] | None]] = OrderedDict()
        self._bare = [Choice((ROOT,), (plan.root,), 0.0)]

    @property
    def plan(self) -> Plan:
        """The plan that choices are made from."""
        return self._plan

    def replace(self, plan: Plan) -> None:
        """Choose from another plan from now on."""
        with self._lock:
            self._plan = plan
            self._bound.clear()
            self._bare = [Choice((ROOT,), (plan.root,), 0.0)]

    def knows(self, closure: Closure | None) -> bool:
        """Whether choosing for this closure takes no look at the disk."""
        with self._lock:
            return closure is None or closure.key in self._bound

    def ranked(self, closure: Closure | None, imports: Mapping[str, float] | None) -> tuple[list[Choice], Bound | None]:
        """The choices for a function, best first, and what they are bound to."""
        if closure is None:
            return self._bare, None
        key = closure.key
        with self._lock:
            bound, facts, plan = self._bound.get(key), self._facts.get(key), self._plan
            self._recent[key] = closure.lock, imports
            self._recent.move_to_end(key)
            if len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)
            if bound is not None:
                self._bound.move_to_end(key)
                return bound.ranked(imports), bound
        if facts is None:
            facts = Facts.read(closure)  # reads files: not under the lock
        return self._bind(plan, key, closure.lock, facts, imports)

    def _bind(
        self, plan: Plan, key: str, lock: Lock, facts: Facts, imports: Mapping[str, float] | None
    ) -> tuple[list[Choice], Bound]:
        bound = Bound(plan, lock, facts)
        with self._lock:
            self._facts[key] = facts
            while len(self._facts) > MAX_CLOSURES:
                self._facts.popitem(last=False)
            if plan is self._plan:
                self._bound[key] = bound
                while len(self._bound) > MAX_CLOSURES:
                    self._bound.popitem(last=False)
            return bound.ranked(imports), bound

    def recent(self) -> list[tuple[list[Choice], Bound]]:
        """The choices for the closures that were seen last, each for the function that had it last."""
        with self._lock:
            plan = self._plan
            known = [(key, *each, self._facts[key]) for key, each in self._recent.items() if key in self._facts]
        return [self._bind(plan, key, lock, facts, imports) for key, lock, imports, facts in known]

    def facts(self, closure: Closure) -> Facts:
        """What is known of a closure."""
        return self.ranked(closure, None)[1].facts  # type: ignore[union-attr]  # it is bound

    def skipped(self) -> dict[str, dict[str, str]]:
        """Why nodes of the plan are of no use to closures, by the closure's key."""
        with self._lock:
            return {key: dict(bound.skipped) for key, bound in self._bound.items() if bound.skipped}


def is_in(plan: Plan, key: str, lock: Lock, facts: Facts) -> bool:
    """Whether a plan has the node with this key, whose packages are those of `lock`."""
    return any(keys[-1] == key for keys in Bound(plan, lock, facts).keys.values())
