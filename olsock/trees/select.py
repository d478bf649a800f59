"""Which node a function starts from: of those whose packages are all in its closure, the one that saves most time.

The rule is about safety before it is about speed: code that started from a zygote with a package that is not its own
would run with that package's code and state in its memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from olsock.trees.plan import Node, Plan

HALF = 0.5
"""What a submodule counts of which only a package above it is imported: some are loaded with it, which is not known."""


@dataclass(frozen=True, slots=True)
class Match:
    """A node that a function may start from, with its ancestors (root first), and what that is expected to save."""

    path: tuple[Node, ...]
    saved_ms: float

    @property
    def node(self) -> Node:
        """The node itself."""
        return self.path[-1]


def rank(plan: Plan, packages: Collection[str], imports: Mapping[str, float] | None = None) -> list[Match]:
    """Every node that a function with this closure may start from, best first; the root is always among them.

    `imports` is what the function is known to import, and how many milliseconds each module takes by itself. Where that
    is not known, it is taken to import all that a node has. What saves the same is better with less in it.
    """
    closure = frozenset(packages)
    start = _All() if imports is None else _Known.of(imports)
    found: list[tuple[Match, int]] = []
    todo: list[tuple[tuple[Node, ...], _All | _Known]] = [((plan.root,), start.after(plan.root))]
    while todo:
        path, saving = todo.pop()
        found.append((Match(path, saving.ms), saving.modules))
        for child in reversed(path[-1].children):
            if child.packages <= closure:  # else neither may its children: they have all that it has
                todo.append(((*path, child), saving.after(child)))

    def order(each: tuple[Match, int]) -> tuple[float, int, int, int]:
        match, modules = each
        return -match.saved_ms, -modules, len(match.node.packages), len(match.path)

    return [match for match, _ in sorted(found, key=order)]


@dataclass(frozen=True, slots=True)
class _All:
    """What a path saves for a function of which nothing is known. Where no times are, the number of modules has to do."""

    ms: float = 0.0
    modules: int = 0

    def after(self, node: Node) -> _All:
        return _All(self.ms + node.ms, self.modules + len(node.imports))


@dataclass(frozen=True, slots=True)
class _Known:
    """What a path saves for a function of which it is known what it imports."""

    imports: Mapping[str, float]
    below: Mapping[str, Sequence[str]]  # package -> its submodules, at any depth, among the imports
    ms: float = 0.0
    whole: frozenset[str] = frozenset()  # modules that are loaded
    halves: frozenset[str] = frozenset()  # modules of which a package above is
    modules: int = 0  # what is saved is known, so their number says nothing

    @classmethod
    def of(cls, imports: Mapping[str, float]) -> _Known:
        below: dict[str, list[str]] = {}
        for module in imports:
            parts = module.split(".")
            for count in range(1, len(parts)):
                below.setdefault(".".join(parts[:count]), []).append(module)
        return cls(imports, below)

    def after(self, node: Node) -> _Known:
        whole = self.whole.union(module for module in node.imports if module in self.imports)
        halves = self.halves.union(*(self.below[module] for module in node.imports if module in self.below))
        if whole == self.whole and halves == self.halves:
            return self
        # fsum is the same in whatever order a set is walked, which differs from process to process
        ms = fsum(self.imports[module] for module in whole) + HALF * fsum(self.imports[each] for each in halves - whole)
        return _Known(self.imports, self.below, max(ms, self.ms), whole, halves)
