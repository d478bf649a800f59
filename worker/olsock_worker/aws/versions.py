"""Operations on published versions, and on the aliases that name them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from olsock_worker.aws import names, parameters, shapes
from olsock_worker.aws.errors import invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.parameters import PublishVersion, Routing
from olsock_worker.store.records import LATEST, Alias
from olsock_worker.store.sqlite import new_revision

if TYPE_CHECKING:
    from olsock_worker.aws.functions import Functions
    from olsock_worker.catalog import Catalog


class Versions:
    """Carries out operations on the store, and has the catalog follow."""

    def __init__(self, catalog: Catalog, functions: Functions) -> None:
        self._catalog, self._functions = catalog, functions
        self._store = catalog.store

    async def publish(self, request: Request) -> Answer:
        """PublishVersion."""
        name = names.plain(request.names[0])
        given = parameters.decode(request.call.body, PublishVersion)
        if given.publish_to:
            raise invalid("PublishTo is not supported")
        async with self._catalog.writing:
            wanted = given.description or None, given.code_sha256, given.revision_id
            version = await self._catalog.ask(self._store.publish, name, *wanted)
            await self._catalog.published(version)
        return Answer(201, self._functions.shape(version))

    async def list(self, request: Request) -> Answer:
        """ListVersionsByFunction."""
        name, _ = names.parse(request.names[0])
        after, most = request.page()
        found = await self._catalog.ask(self._store.versions, name, after, most + 1)
        shape = partial(self._functions.shape, qualified=True)
        return page("Versions", found, most, shape, lambda each: each.number)

    async def create_alias(self, request: Request) -> Answer:
        """CreateAlias."""
        name = names.plain(request.names[0])
        given = parameters.decode(request.call.body, parameters.Alias)
        if given.name is None or given.function_version is None:
            raise invalid("an alias has to have a Name and a FunctionVersion")
        weights = _weights(given.routing_config) or {}
        alias = Alias(
            *(name, names.alias(given.name), given.function_version),
            *(weights, given.description or "", new_revision()),
        )
        _check(alias)
        async with self._catalog.writing:
            await self._catalog.change(name, self._store.create_alias, alias)
        return Answer(201, shapes.alias(alias))

    async def update_alias(self, request: Request) -> Answer:
        """UpdateAlias."""
        name, alias = names.plain(request.names[0]), names.alias(request.names[1])
        given = parameters.decode(request.call.body, parameters.Alias)
        weights = _weights(given.routing_config)
        async with self._catalog.writing:
            before = await self._catalog.ask(self._store.alias, name, alias)
            version = given.function_version or before.version
            _check(Alias(name, alias, version, before.weights if weights is None else weights, "", ""))
            change = given.function_version, weights, given.description, given.revision_id
            changed = await self._catalog.change(name, self._store.change_alias, name, alias, *change)
        return Answer(200, shapes.alias(changed))

    async def delete_alias(self, request: Request) -> Answer:
        """DeleteAlias."""
        name = names.plain(request.names[0])
        async with self._catalog.writing:
            await self._catalog.change(name, self._store.delete_alias, name, request.names[1])
        return Answer(204)

    async def get_alias(self, request: Request) -> Answer:
        """GetAlias."""
        name = names.plain(request.names[0])
        return Answer(200, shapes.alias(await self._catalog.ask(self._store.alias, name, request.names[1])))

    async def list_aliases(self, request: Request) -> Answer:
        """ListAliases."""
        name = names.plain(request.names[0])
        after, most = request.page()
        version = request.query("FunctionVersion")
        found = await self._catalog.ask(self._store.aliases, name, version, after, most + 1)
        return page("Aliases", found, most, shapes.alias, lambda each: each.name)


def _weights(routing: Routing | None) -> dict[str, float] | None:
    """Return the weights that are given; None if they are to stay as they are."""
    return None if routing is None else dict(routing.additional_version_weights or {})


def _check(alias: Alias) -> None:
    """Refuse what cannot be routed."""
    if not alias.version.isdecimal() and alias.version != LATEST:
        raise invalid(f"FunctionVersion {alias.version!r}: expected the number of a version, or {LATEST}")
    if len(alias.weights) > 1:
        raise invalid("RoutingConfig: one additional version is accepted")
    for number in alias.weights:
        if alias.version == LATEST or not number.isdecimal():
            raise invalid(f"RoutingConfig: {LATEST} cannot share an alias")
        if number == alias.version:
            raise invalid(f"RoutingConfig: {number} is the alias's version already")
