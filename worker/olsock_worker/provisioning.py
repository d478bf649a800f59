"""Which versions have instances that are kept initialised, as the store has it: versions themselves, and those of aliases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from olsock_worker.catalog import NotReady, key_of
from olsock_worker.store.records import Absent

if TYPE_CHECKING:
    from olsock_worker.catalog import Catalog
    from olsock_worker.fleet import Fleet
    from olsock_worker.store.records import Provision


class Standing(NamedTuple):
    """How far one provision has come."""

    allocated: int  # instances that are initialised
    available: int  # of these, without a call
    failure: str


class Provisioning:
    """Has what is provisioned served, and tells each function how many instances to keep."""

    def __init__(self, catalog: Catalog, fleet: Fleet) -> None:
        self._catalog, self._fleet = catalog, fleet
        self._failures: dict[str, str] = {}  # why a version is not served, by its key
        self._tasks: dict[str, asyncio.Task[None]] = {}
        catalog.on_change = self.follow

    def follow(self, name: str) -> None:
        """Take over what has changed of a function."""
        wanted = self._wanted(name)
        for number in self._catalog.numbers(name):
            key = key_of(name, number)
            function = self._fleet.functions.get(key)
            if function is not None:
                function.provision.want(wanted.get(key, 0))
            elif wanted.get(key) and key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._serve(name, number))

    def served(self, key: str) -> None:
        """Tell a version that is served from now on how many instances it has to keep."""
        self._failures.pop(key, None)
        self._fleet.functions[key].provision.want(self._wanted(key.partition(":")[0]).get(key, 0))

    async def _serve(self, name: str, number: str) -> None:
        """Have a version served; `served` is called when it is."""
        key = key_of(name, number)
        try:
            await self._catalog.function(name, number)
        except (NotReady, Absent) as error:
            self._failures[key] = str(error)
        finally:
            del self._tasks[key]

    def _wanted(self, name: str) -> dict[str, int]:
        """Return how many instances the versions of a function have to keep, by their keys."""
        wanted: dict[str, int] = {}
        for each in self._catalog.provisions(name):
            number = self._catalog.leads_to(name, each.qualifier)
            if number is not None:
                key = key_of(name, number)
                wanted[key] = wanted.get(key, 0) + each.instances
        return wanted

    def standing(self, provision: Provision) -> Standing:
        """Return how far a provision has come; of several that lead to one version the first has what there is."""
        name = provision.function
        number = self._catalog.leads_to(name, provision.qualifier)
        if number is None:
            return Standing(0, 0, "it leads to no version")
        function = self._fleet.functions.get(key_of(name, number))
        if function is None:
            return Standing(0, 0, self._failures.get(key_of(name, number), ""))
        before = sum(
            each.instances
            for each in self._catalog.provisions(name)
            if each.qualifier < provision.qualifier and self._catalog.leads_to(name, each.qualifier) == number
        )
        allocated, available = (
            max(0, min(provision.instances, count - before)) for count in (function.initialised, function.unoccupied)
        )
        return Standing(allocated, available, "" if allocated == provision.instances else function.provision.failure)
