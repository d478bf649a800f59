"""Operations on provisioned concurrency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from olsock_worker.aws import names, parameters
from olsock_worker.aws.errors import ApiError, invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.parameters import Provisioned
from olsock_worker.aws.shapes import Shape
from olsock_worker.store.records import LATEST, Provision
from olsock_worker.store.sqlite import now

if TYPE_CHECKING:
    from olsock_worker.catalog import Catalog
    from olsock_worker.provisioning import Provisioning


class Provisions:
    """Carries out operations on the store, and has the catalog follow."""

    def __init__(self, catalog: Catalog, provisioning: Provisioning, instances: int) -> None:
        self._catalog, self._provisioning, self._instances = catalog, provisioning, instances
        self._store = catalog.store.provisions

    async def put(self, request: Request) -> Answer:
        """PutProvisionedConcurrencyConfig."""
        name, qualifier = _target(request)
        count = parameters.decode(request.call.body, Provisioned).provisioned_concurrent_executions
        wanted = Provision(name, qualifier, count, now())
        async with self._catalog.writing:
            await self._check(wanted)
            await self._catalog.change(name, self._store.put, wanted)
        return Answer(202, self._shape(wanted))

    async def _check(self, wanted: Provision) -> None:
        """Refuse more than can run, of the function or in all."""
        name, leads_to = wanted.function, self._catalog.leads_to
        number = leads_to(name, wanted.qualifier)
        if number == LATEST:
            raise invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
        for each in self._catalog.provisions(name):
            if each.qualifier != wanted.qualifier and number is not None and leads_to(name, each.qualifier) == number:
                raise ApiError(
                    "ResourceConflictException",
                    f"{name}:{wanted.qualifier}: the version {number} has provisioned concurrency by {each.qualifier}",
                )
        before = sum(each.instances for each in self._catalog.provisions(name) if each.qualifier == wanted.qualifier)
        of_function = self._catalog.provisioned(name) - before + wanted.instances
        in_all = self._catalog.provisioned() - before + wanted.instances
        reserved = await self._catalog.ask(self._catalog.store.reserved, name)
        if reserved is not None and of_function > reserved:
            raise invalid(
                f"ProvisionedConcurrentExecutions: {of_function} in all, and {reserved} calls are reserved for it"
            )
        if in_all > self._instances:
            raise invalid(f"ProvisionedConcurrentExecutions: {in_all} in all, and this worker runs {self._instances}")

    async def get(self, request: Request) -> Answer:
        """GetProvisionedConcurrencyConfig, and ListProvisionedConcurrencyConfigs, which differs by its query alone."""
        if request.query("List") is not None:
            return await self._list(request)
        name, qualifier = _target(request)
        for each in await self._all(name):
            if each.qualifier == qualifier:
                return Answer(200, self._shape(each))
        raise ApiError(
            "ProvisionedConcurrencyConfigNotFoundException",
            f"No Provisioned Concurrency Config found for {name}:{qualifier}",
        )

    async def _all(self, name: str) -> list[Provision]:
        await self._catalog.ask(self._catalog.store.version, name, LATEST)  # or there is no such function
        return await self._catalog.ask(self._store.all, name)

    async def _list(self, request: Request) -> Answer:
        name = names.plain(request.names[0])
        after, most = request.page()
        found = [each for each in await self._all(name) if each.qualifier > after]
        return page("ProvisionedConcurrencyConfigs", found, most, self._listed, lambda each: each.qualifier)

    def _listed(self, provision: Provision) -> Shape:
        return {"FunctionArn": names.arn(provision.function, provision.qualifier), **self._shape(provision)}

    async def delete(self, request: Request) -> Answer:
        """DeleteProvisionedConcurrencyConfig."""
        name, qualifier = _target(request)
        async with self._catalog.writing:
            await self._catalog.ask(self._catalog.store.version, name, LATEST)
            await self._catalog.change(name, self._store.delete, name, qualifier)
        return Answer(204)

    def _shape(self, provision: Provision) -> Shape:
        standing = self._provisioning.standing(provision)
        status = "READY" if standing.allocated == provision.instances else "IN_PROGRESS"
        shape: Shape = {
            "RequestedProvisionedConcurrentExecutions": provision.instances,
            "AllocatedProvisionedConcurrentExecutions": standing.allocated,
            "AvailableProvisionedConcurrentExecutions": standing.available,
            "Status": "FAILED" if standing.failure else status,
            "LastModified": provision.modified,
        }
        if standing.failure:
            shape["StatusReason"] = standing.failure[:1000]
        return shape


def _target(request: Request) -> tuple[str, str]:
    """Return the function, and the version or alias that is meant."""
    name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
    if qualifier in (None, "", LATEST):
        raise invalid(
            "Qualifier: the number of a version or the name of an alias; $LATEST has no provisioned concurrency"
        )
    return name, str(qualifier)
