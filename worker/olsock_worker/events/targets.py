"""Which function an event is for, at the moment of an attempt."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from olsock_worker.catalog import NotReady, key_of
from olsock_worker.store.records import LATEST, Absent

if TYPE_CHECKING:
    from olsock_worker.catalog import Catalog
    from olsock_worker.deployer import Deployer
    from olsock_worker.fleet import Fleet
    from olsock_worker.functions import Function
    from olsock_worker.store.records import EventInvoke


class Targets:
    """Functions of the store and of the registry directory, by name and qualifier."""

    def __init__(self, catalog: Catalog, fleet: Fleet, deployer: Deployer, failures: Collection[str]) -> None:
        self.known = False  # whether the registry has been read: what is not there then does not exist
        self._catalog, self._fleet = catalog, fleet
        self._deployer, self._failures = deployer, failures

    def resolve(self, name: str, qualifier: str) -> str:
        """Return the number of the version to call. Raises `Absent`, and `NotReady` for what may be there later."""
        if name in self._catalog:
            return self._catalog.resolve(name, qualifier or None)
        if qualifier in ("", LATEST):
            if name in self._fleet.functions:
                return LATEST
            if not self.known or name in self._deployer.pending or name in self._failures:
                raise NotReady("the function is not deployed")
        raise Absent(f"Function not found: {name}")

    def served(self, name: str, number: str) -> Function | None:
        """Return a version that can be called at once."""
        return self._fleet.functions.get(key_of(name, number))

    async def prepare(self, name: str, number: str) -> Function:
        """Return a version, made ready. Raises `Absent` and `NotReady`."""
        return await self._catalog.function(name, number)

    def off(self, name: str) -> bool:
        """Say whether no call of a function is allowed."""
        return self._fleet.concurrency.off(name)

    def throttled(self, name: str) -> bool:
        """Say whether as many calls run or wait as a function may have."""
        return bool(self._fleet.concurrency.over(name))

    def rules(self, name: str, qualifier: str) -> EventInvoke | None:
        """Return how often and for how long events are to be tried, if that is set for their function."""
        return self._catalog.event_invoke(name, qualifier or LATEST)
