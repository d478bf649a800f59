"""Fitting trees to a trace, as Forklift does (Yang et al., WoSC'24), with versions kept exact and memory held.

All functions begin at the root. A split moves those that would gain from one package to a new child, which imports it
with all that it needs; what is gained is calls x milliseconds, where a call is a start. The best split of all nodes is
made again and again, until nodes, memory or gains are used up. Functions of a node have all its packages in their
closures, so two versions of a package never meet on one path. What a function still has to import below a node is what
the next splits are about, be it more packages or more modules of the same.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from olsock.errors import PlanError
from olsock.trees.plan import MAX_DEPTH, MAX_NODES, Node, Plan
from olsock.trees.select import rank
from olsock.trees.trace import Import, Usage

ROOT_SIZE = 10 << 20  # bytes of an interpreter that has imported nothing
NODE_SIZE = 3 << 20  # bytes of any further process: page tables, and pages that are written to after the fork
LEAST_GAIN = 1.0  # ms for each start, below which a function is not worth moving: forks differ by as much
SHARE = 1 / 3  # of the calls that import a package: a module that fewer import is left out of a node
COVERED = 0.999  # of what is to be imported: modules beyond take next to nothing, and mostly come along
MAX_LISTED = 800  # modules that one node imports: a zygote is told in one packet of 64 KiB


def fit(usages: Sequence[Usage], nodes: int, memory: int) -> tuple[Plan, ...]:
    """Return a tree for each interpreter in the trace, with at most `nodes` nodes and `memory` bytes all together.

    The same trace gives the same trees. Interpreters that there is no room for, least called first, get none; `PlanError`
    if there is room for no root at all.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise PlanError(f"nodes={nodes}: expected 1 to {MAX_NODES}")
    if memory < ROOT_SIZE:
        raise PlanError(f"memory={memory}: expected at least {ROOT_SIZE} bytes, which a root takes")
    ordered = sorted(usages, key=lambda each: (each.python or "", each.function, sorted(each.packages)))
    groups = [(python or None, list(group)) for python, group in groupby(ordered, key=lambda each: each.python or "")]
    groups.sort(key=lambda group: (-sum(each.count for each in group[1]), group[0] or ""))
    groups = groups[: min(nodes, memory // ROOT_SIZE)] or [(None, [])]
    fitting = _Fitting(nodes, memory)
    tables = [_Table(group) for _, group in groups]
    roots = [fitting.plant(table) for table in tables]
    fitting.grow()
    plans = (_plan(table, root, python) for (python, _), table, root in zip(groups, tables, roots, strict=True))
    return tuple(sorted(plans, key=lambda plan: plan.python or ""))


@dataclass(slots=True, eq=False)
class _Row:
    """A function: its closure as a bit mask, and what it imports of each package."""

    packages: frozenset[str]
    mask: int
    calls: float
    imports: dict[int, dict[str, float]]  # package -> module -> ms


class _Table:
    """The functions of one interpreter: a matrix of calls and packages."""

    def __init__(self, usages: Sequence[Usage]) -> None:
        self.packages = sorted({package for usage in usages for package in usage.packages})
        self.number = {package: number for number, package in enumerate(self.packages)}
        self.modules = self._modules(usages)
        masks = [self._mask(usage.packages) for usage in usages]
        self.needs = self._needs(usages, masks)
        popular = self._popular(usages, masks)
        self.rows = [self._row(usage, mask, popular) for usage, mask in zip(usages, masks, strict=True)]
        self.sizes = [
            sum(self.modules[package][name].size for name in popular.get(package, ()))
            for package in range(len(self.packages))
        ]

    def _mask(self, packages: frozenset[str]) -> int:
        mask = 0
        for package in packages:
            mask |= 1 << self.number[package]
        return mask

    def names(self, mask: int) -> frozenset[str]:
        """The packages of a mask."""
        return frozenset(self.packages[number] for number in _bits(mask))

    def _modules(self, usages: Sequence[Usage]) -> dict[int, dict[str, Import]]:
        """Each module of each package: the mean of its time, the largest of its sizes."""
        sums: dict[int, dict[str, tuple[float, int, int]]] = {}
        for usage in usages:
            for name, each in (usage.imports or {}).items():
                if each.package is not None:
                    known = sums.setdefault(self.number[each.package], {})
                    ms, count, size = known.get(name, (0.0, 0, 0))
                    known[name] = ms + each.ms, count + 1, max(size, each.size)
        return {
            package: {name: Import(ms / count, size) for name, (ms, count, size) in sorted(known.items())}
            for package, known in sums.items()
        }

    def _needs(self, usages: Sequence[Usage], masks: Sequence[int]) -> list[int]:
        """What each package needs, itself included: as the trace says, else what all closures with it have."""
        always = [-1] * len(self.packages)
        stated: dict[int, int] = {}
        for usage, mask in zip(usages, masks, strict=True):
            for package in _bits(mask):
                always[package] &= mask
            for name, needed in usage.requires.items():
                if name in usage.packages and needed <= usage.packages:
                    package = self.number[name]
                    stated[package] = stated.get(package, -1) & self._mask(needed)
        direct = [stated.get(package, each) | 1 << package for package, each in enumerate(always)]
        return [_reachable(direct, package) & each for package, each in enumerate(always)]

    def _popular(self, usages: Sequence[Usage], masks: Sequence[int]) -> dict[int, dict[str, float]]:
        """What functions with a package import of it, if enough of their calls do: taken for those that say nothing."""
        calls: defaultdict[tuple[int, str], float] = defaultdict(float)
        having = [0.0] * len(self.packages)
        for usage, mask in zip(usages, masks, strict=True):
            if usage.imports is not None:
                for package in _bits(mask):
                    having[package] += usage.count
                for name, each in usage.imports.items():
                    if each.package is not None:
                        calls[self.number[each.package], name] += usage.count
        found: dict[int, dict[str, float]] = {}
        for package, modules in self.modules.items():
            for name, each in modules.items():
                if calls[package, name] > 0 and calls[package, name] >= SHARE * having[package]:
                    found.setdefault(package, {})[name] = each.ms
        return found

    def _row(self, usage: Usage, mask: int, popular: dict[int, dict[str, float]]) -> _Row:
        imports: dict[int, dict[str, float]] = {}
        if usage.imports is None:
            imports = {package: popular[package] for package in _bits(mask) if package in popular}
        else:
            for name, each in sorted(usage.imports.items()):
                if each.package is not None and each.ms > 0:
                    imports.setdefault(self.number[each.package], {})[name] = each.ms
        return _Row(usage.packages, mask, usage.count, imports)


@dataclass(slots=True, eq=False)
class _Branch:
    """A node that grows, and the functions that are there so far, with what each still has to import."""

    table: _Table
    mask: int = 0
    loaded: frozenset[str] = frozenset()  # modules, the ancestors' too
    depth: int = 1
    imports: tuple[str, ...] = ()
    ms: float = 0.0
    size: int = ROOT_SIZE
    rows: dict[_Row, dict[int, float]] = field(default_factory=dict)  # package -> ms
    gains: dict[int, float] = field(default_factory=dict)  # package -> calls x ms that a split by it would gain
    children: list[_Branch] = field(default_factory=list)

    def add(self, row: _Row) -> None:
        left = {}
        for package, modules in row.imports.items():
            ms = sum(ms for module, ms in modules.items() if module not in self.loaded)
            if ms > 0:
                left[package] = ms
        self.rows[row] = left
        for package in left:
            self._count(package, self.gain(row, package))

    def remove(self, row: _Row) -> None:
        for package in self.rows[row]:
            self._count(package, -self.gain(row, package))
        del self.rows[row]

    def _count(self, package: int, gain: float) -> None:
        if gain:
            self.gains[package] = self.gains.get(package, 0.0) + gain

    def gain(self, row: _Row, package: int) -> float:
        """Calls x ms that this function would gain from a child with the package and what that needs."""
        needs, left = self.table.needs[package], self.rows[row]
        if package not in left or row.calls <= 0:
            return 0.0
        ms = sum(each for other, each in left.items() if needs >> other & 1)
        return ms * row.calls if ms >= LEAST_GAIN else 0.0

    def cost(self, package: int) -> int:
        """The bytes that a child with that package is likely to take."""
        new = self.table.needs[package] & ~self.mask
        return NODE_SIZE + sum(self.table.sizes[other] for other in _bits(new))

    def sprout(self, package: int) -> tuple[_Branch, list[_Row]] | None:
        """The child that a split by this package makes, and the functions that would move to it."""
        rows = [row for row in self.rows if self.gain(row, package) > 0]
        chosen = self._choose(rows, package)
        if not chosen and rows:
            # They have no module in common: those that share the most valuable one make a node.
            worth: defaultdict[str, float] = defaultdict(float)
            for row in rows:
                for module, ms in row.imports[package].items():
                    if module not in self.loaded:
                        worth[module] += ms * row.calls
            best = max(sorted(worth), key=worth.__getitem__)
            rows = [row for row in rows if best in row.imports[package]]
            chosen = self._choose(rows, package)
        if not chosen:
            return None
        table, mask = self.table, self.mask
        for each in {package, *(each for each, _ in chosen)}:
            mask |= table.needs[each]
        modules = [name for _, name in chosen]
        known = [table.modules[each][name] for each, name in chosen]
        child = _Branch(
            table,
            mask,
            self.loaded | set(modules),
            self.depth + 1,
            tuple(sorted(modules, key=lambda name: (name.count("."), name))),
            sum(each.ms for each in known),
            NODE_SIZE + sum(each.size for each in known),
        )
        return child, rows

    def _choose(self, rows: list[_Row], package: int) -> list[tuple[int, str]]:
        """The modules that enough of these functions still have to import, of the package and of all that they share."""
        common, total = -1, 0.0
        calls: defaultdict[tuple[int, str], float] = defaultdict(float)
        worth: defaultdict[tuple[int, str], float] = defaultdict(float)
        for row in rows:
            common &= row.mask
            total += row.calls
            for other, modules in row.imports.items():
                for name, ms in modules.items():
                    if name not in self.loaded:
                        calls[other, name] += row.calls
                        worth[other, name] += row.calls * ms
        needs = self.table.needs
        wanted = [
            key
            for key, count in calls.items()
            # What the package needs is there anyway; more than that has to be worth it to most.
            if count >= (SHARE if needs[package] >> key[0] & 1 else 0.5) * total and not needs[key[0]] & ~common
        ]
        wanted.sort(key=lambda key: (-worth[key], key))
        enough = COVERED * sum(worth[key] for key in wanted)
        chosen: list[tuple[int, str]] = []
        for key in wanted[:MAX_LISTED]:
            if enough <= 0:
                break
            chosen.append(key)
            enough -= worth[key]
        return chosen


class _Fitting:
    """All trees that share one budget."""

    def __init__(self, nodes: int, memory: int) -> None:
        self.nodes, self.memory = nodes, memory
        self.left, self.free = nodes, memory
        self.branches: list[_Branch] = []
        self.heap: list[tuple[float, int, int]] = []  # -score, branch, package

    def plant(self, table: _Table) -> _Branch:
        """A root, with all functions of its interpreter."""
        root = _Branch(table)
        for row in table.rows:
            root.add(row)
        self._enter(root)
        return root

    def grow(self) -> None:
        """Split until nothing is left to split with, or for."""
        while self.heap and self.left > 0:
            score, number, package = heapq.heappop(self.heap)
            branch = self.branches[number]
            now = self._score(branch, package)
            if now < -score * (1 - 1e-9):  # functions have left since it was entered
                if now > 0:
                    heapq.heappush(self.heap, (-now, number, package))
            elif branch.depth < MAX_DEPTH:
                self._split(branch, package, number)

    def _split(self, branch: _Branch, package: int, number: int) -> None:
        made = branch.sprout(package)
        if made is None or made[0].size > self.free:
            return
        child, rows = made
        for row in rows:
            branch.remove(row)
            child.add(row)
        branch.children.append(child)
        self._enter(child)
        if self._score(branch, package) > 0:  # functions that shared no module with those
            heapq.heappush(self.heap, (-self._score(branch, package), number, package))

    def _enter(self, branch: _Branch) -> None:
        self.left -= 1
        self.free -= branch.size
        self.branches.append(branch)
        for package in branch.gains:
            score = self._score(branch, package)
            if score > 0:
                heapq.heappush(self.heap, (-score, len(self.branches) - 1, package))

    def _score(self, branch: _Branch, package: int) -> float:
        """What is gained, for the share of nodes and of memory that it takes."""
        gain = branch.gains.get(package, 0.0)
        if gain < LEAST_GAIN / 1000:  # what is left of sums and differences
            return 0.0
        return gain / (1 / self.nodes + branch.cost(package) / self.memory)


def _plan(table: _Table, root: _Branch, python: str | None) -> Plan:
    """The plan that a tree makes, with what it would have done for the functions of the trace."""
    plan = Plan(_node(root), python)
    hits: defaultdict[int, float] = defaultdict(float)
    gains: defaultdict[int, float] = defaultdict(float)
    for row in table.rows:
        imports = {name: ms for modules in row.imports.values() for name, ms in modules.items()}
        match = rank(plan, row.packages, imports)[0]
        hits[id(match.node)] += row.calls
        gains[id(match.node)] += row.calls * match.saved_ms

    def counted(node: Node) -> Node:
        children = tuple(counted(child) for child in node.children)
        return replace(node, children=children, hits=round(hits[id(node)], 6), saved_ms=round(gains[id(node)], 3))

    return Plan(counted(plan.root), python)


def _node(branch: _Branch) -> Node:
    children = tuple(_node(child) for child in branch.children)
    return Node(branch.table.names(branch.mask), branch.imports, children, round(branch.ms, 3), branch.size)


def _reachable(direct: Sequence[int], package: int) -> int:
    """All that a package needs, directly or not, as a mask."""
    found, todo = 0, direct[package]
    while todo:
        number = (todo & -todo).bit_length() - 1
        found |= 1 << number
        todo = (todo | direct[number]) & ~found
    return found


def _bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
