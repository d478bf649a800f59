"""What goes when memory is short: greedy-dual-size-frequency over the nodes of a tree. Only leaves go, never the root."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from olsock.nursery.slots import Slot


def is_leaf(slot: Slot) -> bool:
    """Whether there is a zygote in it that nothing else in the tree depends on."""
    return slot.above is not None and slot.live is not None and not slot.live.children


def victims(slots: Iterable[Slot], needed: int, *, below: float, spare: Collection[Slot] = ()) -> list[Slot]:
    """The least valuable leaves that free so many bytes, all worth less than `below`; none if they would not do.

    A node may be a leaf only once others are gone, so this takes them one by one.
    """
    chosen: list[Slot] = []
    gone: dict[int, int] = {}  # children that would be gone, by the id of what is above them
    ready = [slot for slot in slots if slot.live is not None and slot.above is not None and slot not in spare]
    while needed > 0:
        leaves = [
            slot
            for slot in ready
            if slot.live is not None and slot.live.children == gone.get(id(slot.live), 0) and not slot.live.users
        ]
        least = min(leaves, key=lambda slot: (slot.priority, slot.key), default=None)
        if least is None or least.priority >= below or least.live is None:
            return []
        ready.remove(least)
        chosen.append(least)
        needed -= least.live.size
        if least.live.above is not None:
            gone[id(least.live.above)] = gone.get(id(least.live.above), 0) + 1
    return chosen
