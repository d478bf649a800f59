"""Greedy-dual-size-frequency: who has to go when there is no room.

L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HPL-98-69, 1998; for
functions: A. Fuerst, P. Sharma, "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", ASPLOS 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

# The kernel charges memory to a cgroup in batches of up to 64 pages a processor (MEMCG_CHARGE_BATCH in mm/memcontrol.c),
# so differences below that say nothing.
LEAST_SIZE = 1 << 18
MOST_USES = 256  # counted: what was called a million times and then never again would outlive a million evictions


class Worth:
    """What the policy knows of one thing. It is the thing's own, so that nothing has to be looked up for a use."""

    __slots__ = ("clock", "cost", "size", "uses")

    def __init__(self, cost: float, size: int, clock: float = 0.0) -> None:
        self.cost = cost  # milliseconds that a miss costs
        self.size = size  # bytes that its end gives back
        self.uses = 1
        self.clock = clock  # the policy's, when it was last used

    def value(self) -> float:
        """What a byte of it saves, in milliseconds per MiB, its clock included."""
        return self.clock + min(self.uses, MOST_USES) * self.cost * (1 << 20) / max(self.size, LEAST_SIZE)


class Valued(Protocol):
    """Anything that memory is spent on."""

    @property
    def worth(self) -> Worth: ...


Thing = TypeVar("Thing", bound=Valued)


class Gdsf:
    """The clock of the policy, which makes old what is not used: it rises to the value of what is evicted.

    A thing is worth clock + uses x cost / size, where the clock is that of its last use. No order is kept: a use costs
    two assignments, and an eviction looks at every candidate. Uses are a thousand times as many.
    """

    def __init__(self) -> None:
        self.clock = 0.0

    def new(self, cost: float, size: int) -> Worth:
        """Return what a thing is worth that is used now for the first time."""
        return Worth(cost, size, self.clock)

    def used(self, worth: Worth) -> None:
        """Note a use."""
        worth.uses += 1
        worth.clock = self.clock

    def seen(self, worth: Worth) -> None:
        """Note that it is in use, or was until now; who cannot spare the time for `used` counts its uses itself."""
        worth.clock = self.clock

    def least(self, things: Iterable[Thing]) -> Thing | None:
        """Return the one whose end costs least, the first of equals; None of none."""
        return min(things, key=_value, default=None)

    def evicted(self, worth: Worth) -> None:
        """Note that a thing of this worth has made room for another."""
        self.clock = max(self.clock, worth.value())


def _value(thing: Valued) -> float:
    return thing.worth.value()
