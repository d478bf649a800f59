"""The place of one node of a live tree, whether there is a zygote in it or not, and zygotes with what depends on them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from olsock.packages.lock import Lock
from olsock.trees.plan import Node
from olsock.trees.trace import Import
from olsock.zygote import Zygote

State = Literal["cold", "building", "ready", "bad", "given up"]

FIRST_WAIT, LONGEST_WAIT = 0.25, 60.0  # seconds before a zygote is built again; doubled after each failure
LONG_LIFE = 30.0  # seconds after which a zygote was not built wrong
MAX_FAILURES = 6  # in a row, after which a node is given up
STRIKES = 3  # failed forks in a row after which a zygote that still lives is replaced


class Closure(Protocol):
    """What is needed of `olsock.packages.Closure`: installed packages, held until `close`."""

    @property
    def directory(self) -> str: ...
    @property
    def lock(self) -> Lock: ...
    @property
    def packages(self) -> frozenset[str]: ...
    @property
    def key(self) -> str: ...
    def owners(self) -> Mapping[str, str]: ...
    def close(self) -> None: ...


class Store(Protocol):
    """What is needed of `olsock.packages.PackageStore`."""

    def install(self, lock: Lock, /) -> Closure: ...


@dataclass(slots=True, eq=False)
class Live:
    """A zygote, and all that keeps it from being closed."""

    zygote: Zygote
    closure: Closure | None  # holds its packages
    above: Live | None
    cells: int  # zygotes that may be forked below it
    held: int  # cells of what it was forked from, for itself and those
    depth: int
    taken: int = 0  # of those cells
    children: int = 0  # zygotes below it that are not closed
    users: int = 0  # forks that go on
    size: int = 0  # bytes of its own, when it was ready
    loaded: Mapping[str, Import] = field(default_factory=dict)  # modules of packages, its ancestors' too
    born: float = field(default_factory=time.monotonic)

    @property
    def in_use(self) -> bool:
        """Whether closing it would end something."""
        # The zygote's own counts leave out what nobody refers to any more: that has ended by itself.
        return bool(self.users or self.children or self.zygote.handlers or self.zygote.children)


@dataclass(slots=True, eq=False)
class Slot:
    """A node of the tree. Changed under the tree's lock only."""

    key: str
    node: Node
    lock: Lock | None  # the pins of its packages; None: it has none
    above: Slot | None
    state: State = "cold"
    reason: str = ""
    live: Live | None = None
    wanted: bool = False  # built as soon as that can be
    planned: bool = True  # whether the plan still has it
    failures: int = 0
    not_before: float = 0.0
    full_until: float = 0.0  # there was no memory for it: it is not asked for before that
    strikes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)  # modules that cannot be imported, and why
    build_ms: float = 0.0
    measured: int = 0  # bytes that its zygote had of its own, when there was one
    hits: int = 0
    misses: int = 0  # starts that would have been better off here
    saved_ms: float = 0.0  # by all hits
    frequency: float = 0.0  # hits and misses of late
    cost_ms: float = 0.0  # that a start without it takes longer: the mean of what was saved, or expected to be
    clock: float = 0.0  # of the eviction, when it was used last

    @property
    def path(self) -> list[Slot]:
        """Its ancestors, root first, and itself."""
        found, at = [self], self.above
        while at is not None:
            found.append(at)
            at = at.above
        return found[::-1]

    @property
    def size(self) -> int:
        """Bytes: measured, or what the plan expects."""
        return self.measured or max(1, self.node.size)

    @property
    def priority(self) -> float:
        """Its worth by greedy-dual-size-frequency: what is lowest is evicted first."""
        return self.clock + self.frequency * max(self.cost_ms, 0.01) / (self.size / (1 << 20))

    def usable(self) -> bool:
        """Whether it can be forked from."""
        return self.state == "ready" and self.live is not None and self.live.zygote.alive

    def touch(self, clock: float, saved_ms: float) -> None:
        """Count a start that went well from here, or would have."""
        self.clock = clock
        self.frequency += 1
        self.cost_ms += (saved_ms - self.cost_ms) / min(self.hits + self.misses, 50)

    def failed(self, why: str, *, root: bool) -> None:
        """Note that it could not be built, or did not last; the root is never given up, as nothing is left without it."""
        self.failures += 1
        self.reason = why
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(self.failures - 1, 16))
        self.not_before = time.monotonic() + wait
        if self.failures >= MAX_FAILURES and not root:
            self.state, self.wanted = "given up", False
            self.reason = f"given up after {self.failures} failures in a row; the last: {why}"
        else:
            self.state = "cold"


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A node as `ZygoteTree.stats` tells it. Memory in bytes."""

    key: str
    above: str | None
    packages: tuple[str, ...]
    imports: tuple[str, ...]
    state: State
    reason: str
    planned: bool
    pid: int | None
    handlers: int
    hits: int
    misses: int
    saved_ms: float
    memory: int
    build_ms: float
    leaf: bool
    cost_ms: float  # what a start without it takes longer
    frequency: float  # of late
    priority: float  # by greedy-dual-size-frequency


def describe(slot: Slot, leaf: bool) -> NodeStats:
    """What is to be known of a slot."""
    live = slot.live
    left_out = "; ".join(f"{name} left out: {why}" for name, why in sorted(slot.left_out.items()))
    return NodeStats(
        slot.key,
        slot.above.key if slot.above else None,
        tuple(sorted(slot.node.packages)),
        slot.node.imports,
        slot.state,
        "; ".join(filter(None, (slot.reason, left_out))),
        slot.planned,
        live.zygote.pid if live else None,
        live.zygote.handlers if live else 0,
        slot.hits,
        slot.misses,
        round(slot.saved_ms, 3),
        live.size if live else 0,
        slot.build_ms,
        leaf,
        slot.cost_ms,
        slot.frequency,
        slot.priority,
    )
