"""Zygotes as the policy of evictions sees them: what each is worth, and how to have it ended. They are the broker's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from olsock_worker.broker_protocol import ZygoteState
from olsock_worker.policy.gdsf import Gdsf, Worth

if TYPE_CHECKING:
    from olsock_worker.fleet import Evictable

_BLANK = 2 << 20  # bytes of its own that a handler has which waits, forked, for its function


class Node:
    """One zygote that is there."""

    __slots__ = ("_evict", "going", "state", "worth")

    def __init__(self, state: ZygoteState, worth: Worth, evict: Callable[[str], None]) -> None:
        self.state, self.worth, self._evict = state, worth, evict
        self.going = False

    @property
    def evictable(self) -> bool:
        """Whether nothing else in its tree depends on it."""
        return self.state.leaf and not self.going

    def evict(self) -> None:
        """Have it ended. Instances that were forked from it live on."""
        self.going = True
        self._evict(self.state.key)


class Nodes:
    """Keeps the fleet's set of them as the broker tells."""

    def __init__(self, shown: set[Evictable], values: Gdsf, evict: Callable[[str], None]) -> None:
        """`shown` is the fleet's set; `evict` asks the broker to end one."""
        self._shown, self._values, self._evict = shown, values, evict
        self._known: dict[str, Node] = {}

    def update(self, state: ZygoteState) -> None:
        """Take notice of a zygote that came, went, or was used."""
        node = self._known.get(state.key)
        if node is not None and (state.state != "ready" or state.pid != node.state.pid):
            del self._known[state.key]
            self._shown.discard(node)
            node = None
        if state.state != "ready":
            return
        size, cost = state.memory + state.blanks * _BLANK, state.cost_ms or state.build_ms
        if node is None:
            node = self._known[state.key] = Node(state, self._values.new(cost, size), self._evict)
            self._shown.add(node)
            return
        for _ in range(min(state.hits - node.state.hits, 256)):
            self._values.used(node.worth)
        node.worth.size, node.worth.cost = size, cost
        node.state = state
