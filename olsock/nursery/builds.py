"""How the zygote of a node is made: from the nearest ancestor that can, without the modules that cannot be imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from olsock.errors import OlsockError, ZygoteError
from olsock.nursery.slots import Closure, Live, Slot, Store
from olsock.trees.trace import Import
from olsock.zygote import Zygote

MAX_DEPTH = 12
"""Zygotes below each other: the kernel nests 32 user and pid namespaces at most, and we may be in some already."""

SPARE = 2  # room in a node for that many times the nodes that the plan has below it, and for as many more


class NoRoomError(OlsockError):
    """There are as many zygotes as there may be."""


class BadNodeError(OlsockError):
    """A node that will never be any good: nothing of it can be imported."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all zygotes of a tree have in common."""

    python: str | None
    cells: int  # zygotes at one time, the root apart
    memory: int | None  # limit of one zygote
    timeout: float  # for the imports of one
    options: Mapping[str, Any] = field(default_factory=dict)  # of the root


@dataclass(frozen=True, slots=True)
class Job:
    """A node to be built, with what was decided under the tree's lock."""

    slot: Slot
    above: Live | None
    imports: tuple[str, ...]
    cells: int


def job_for(slot: Slot, settings: Settings) -> Job | None:
    """How a node would be built now; None if an ancestor has to be built before. Raises `NoRoomError`."""
    if slot.above is None:
        return Job(slot, None, slot.node.imports, settings.cells)
    imports = list(_sound(slot))
    above: Slot | None = slot.above
    while above is not None:
        if above.usable() and above.live is not None:
            live = above.live
            if live.taken < live.cells and live.depth < MAX_DEPTH:
                wanted = SPARE * (_below(slot) + 1)
                return Job(slot, live, tuple(imports), min(wanted, live.cells - live.taken - 1))
            imports[:0] = _sound(above)  # no room below it: from further up, with what it has
        elif above.state in ("cold", "building"):
            return None
        above = above.above
    raise NoRoomError(f"there are as many zygotes as there may be: {settings.cells}")


def _sound(slot: Slot) -> list[str]:
    return [module for module in slot.node.imports if module not in slot.left_out]


def _below(slot: Slot) -> int:
    """How many nodes the plan has below this one."""
    count, todo = 0, list(slot.node.children)
    while todo:
        count += 1
        todo += todo.pop().children
    return count


def build(job: Job, store: Store, settings: Settings) -> Live:
    """Make the zygote. Raises `BadNodeError` for what there is no use in trying again."""
    slot = job.slot
    closure = store.install(slot.lock) if slot.lock is not None else None
    try:
        zygote = _import(job, closure, settings)
        try:
            depth = job.above.depth + 1 if job.above else 0
            live = Live(zygote, closure, job.above, zygote.spec.descendants, job.cells + 1, depth)
            live.size = zygote.memory().unique
            live.loaded = _loaded(live, closure)
        except BaseException:
            zygote.close()
            raise
        return live
    except BaseException:
        if closure is not None:
            closure.close()
        raise


def _import(job: Job, closure: Closure | None, settings: Settings) -> Zygote:
    """A zygote in which nothing was imported that failed half-way: one with a bad module is made again without it."""
    wanted = list(job.imports)
    for _ in range(2):
        zygote = _make(job, wanted, closure, settings)
        if not zygote.bad:
            return zygote
        try:
            job.slot.left_out.update(zygote.bad)
            wanted = [module for module in wanted if module not in zygote.bad]
        finally:
            zygote.close()
        if not wanted:
            raise BadNodeError("nothing of it can be imported")
    raise ZygoteError("imports fail now and then: " + ", ".join(sorted(job.slot.left_out)))


def _make(job: Job, imports: list[str], closure: Closure | None, settings: Settings) -> Zygote:
    packages = [closure.directory] if closure is not None else []
    common: dict[str, Any] = {
        "packages": packages,
        "memory": settings.memory,
        "timeout": settings.timeout,
        "descendants": job.cells,
        "skip_bad": True,
    }
    if job.above is None:
        return Zygote(imports, python=settings.python, **common, **settings.options)
    common |= {name: value for name, value in settings.options.items() if name in ("env", "spare", "blanks")}
    try:
        return job.above.zygote.child(imports, **common)
    except ZygoteError as error:
        if not job.cells or error.kind != "room":
            raise
    # Room is given in one piece, and the free pieces are too small.
    return job.above.zygote.child(imports, **common | {"descendants": 0})


def _loaded(live: Live, closure: Closure | None) -> dict[str, Import]:
    """What it has imported, as it says itself: for figures, not to be relied on."""
    found = dict(live.above.loaded) if live.above is not None else {}
    if closure is None:
        return found
    owners = closure.owners()
    for row in live.zygote.imported:
        owner = owners.get(row.package)
        if owner is not None:
            found[row.module] = Import(row.self_ms, row.bytes, owner)
    return found
