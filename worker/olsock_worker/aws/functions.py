"""Operations on functions: made, changed, shown, listed, deleted."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from olsock_worker import configurations
from olsock_worker.aws import names, parameters, shapes
from olsock_worker.aws.errors import ApiError, invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.parameters import (
    Concurrency,
    CreateFunction,
    Settings,
    TagResource,
    UpdateFunctionCode,
    UpdateFunctionConfiguration,
)
from olsock_worker.aws.shapes import Condition, Shape
from olsock_worker.catalog import key_of
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.store.records import LATEST, Absent, Code, Configuration, Stale, Version
from olsock_worker.store.sqlite import new_revision, now

if TYPE_CHECKING:
    from olsock_worker.aws.layers import Layers, Location
    from olsock_worker.aws.uploading import Uploading
    from olsock_worker.catalog import Catalog
    from olsock_worker.deployer import Deployer
    from olsock_worker.fleet import Fleet
    from olsock_worker.registry import Registry
    from olsock_worker.store.interface import FunctionStore
    from olsock_worker.uploads import Uploads

_ROLE = f"arn:aws:iam::{configurations.ACCOUNT}:role/olsock"
_DEFAULTS = Configuration(timeout=3, memory=128, storage=512)  # AWS's, for code that says nothing itself


class Functions:
    """Carries out operations on the store, and has the catalog follow."""

    def __init__(
        self,
        catalog: Catalog,
        uploads: Uploads,
        uploading: Uploading,
        layers: Layers,
        location: Location,
        fleet: Fleet,
        deployer: Deployer,
        failures: dict[str, str],
        registry: Registry,
    ) -> None:
        self._catalog, self._uploads, self._fleet = catalog, uploads, fleet
        self._uploading, self._layers, self._location = uploading, layers, location
        self._deployer, self._failures, self._registry = deployer, failures, registry

    @property
    def _store(self) -> FunctionStore:
        return self._catalog.store

    # -- made and changed ---------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Answer:
        """CreateFunction."""
        given = parameters.decode(request.call.body, CreateFunction)
        name = names.new(given.function_name)
        parameters.check_package(given)
        archive = parameters.archive(given.code)
        configuration = await self._configured(Configuration(role=_ROLE), given)
        self._check_free(name)
        async with self._uploading.taken(archive, "zip") as code:
            await self._layers.check(code, configuration.layers)
            version = await self._made(name, code, configuration)
            if not code.ol_yaml and None in (version.configuration.handler, version.configuration.runtime):
                raise invalid("Runtime and Handler are mandatory parameters for functions without an ol.yaml")
            async with self._catalog.writing:
                self._check_free(name)
                await self._layers.of(given.layers or [])  # none of them was deleted meanwhile
                new = version, given.tags or {}, bool(given.publish)
                shown = await self._followed(version, await self._catalog.ask(self._store.create, *new))
        return Answer(201, shown)

    async def upload(self, name: str, archive: bytes) -> None:
        """Deploy a tar.gz as OpenLambda does, in place of what there was under the name."""
        async with self._uploading.taken(archive, "tar.gz") as code:
            version = await self._made(name, code, Configuration(role=_ROLE))
            async with self._catalog.writing:
                if name in self._catalog:
                    change = code, version.configuration, version.requirements, None, False
                    version, _ = await self._catalog.ask(self._store.change, name, *change)
                else:
                    self._check_free(name)
                    await self._catalog.ask(self._store.create, version, {}, False)
                await self._catalog.serve(version)
        await self._catalog.collect()

    async def _made(self, name: str, code: Code, configuration: Configuration) -> Version:
        """Return a new LATEST version, once it is known that it can be run."""
        if not code.ol_yaml and configuration.handler is not None:
            blank = {field: value for field, value in msgspec.structs.asdict(_DEFAULTS).items() if value is not None}
            unset = {
                field: blank[field]
                for field in ("timeout", "memory", "storage")
                if getattr(configuration, field) is None
            }
            configuration = msgspec.structs.replace(configuration, **unset)
        requirements = await self._required(code, configuration)
        return Version(name, LATEST, code, configuration, requirements, new_revision(), now())

    async def _configured(self, before: Configuration, given: Settings) -> Configuration:
        """Return a configuration with what is given changed."""
        configuration = parameters.configure(before, given)
        if given.layers is None:
            return configuration
        return msgspec.structs.replace(configuration, layers=await self._layers.of(given.layers))

    async def _required(self, code: Code, configuration: Configuration) -> tuple[str, ...]:
        try:
            config = configurations.merged(configuration, code.ol_yaml, self._fleet.settings.function)
            return await self._uploads.required(code.digest, configurations.handler_file(config))
        except FunctionError as error:
            raise invalid(str(error)) from None

    def _check_free(self, name: str) -> None:
        if name not in self._catalog and name in self._registry.names:
            raise ApiError(
                "ResourceConflictException", f"{name} is a function of the registry directory: deploy it there"
            )

    async def update_code(self, request: Request) -> Answer:
        """UpdateFunctionCode."""
        name = names.plain(request.names[0])
        given = parameters.decode(request.call.body, UpdateFunctionCode)
        parameters.check_package(given)
        archive = parameters.archive(given)
        await self._catalog.ask(self._store.version, name, LATEST)
        async with self._uploading.taken(archive, "zip") as code, self._catalog.writing:
            before = await self._catalog.ask(self._store.version, name, LATEST)
            await self._layers.check(code, before.configuration.layers)
            requirements = await self._required(code, before.configuration)
            if given.dry_run:
                if given.revision_id not in (None, before.revision):
                    raise Stale(f"RevisionId {given.revision_id}: the function has been changed since")
                return Answer(200, self.shape(msgspec.structs.replace(before, code=code)))
            change = code, None, requirements, given.revision_id, bool(given.publish)
            shown = await self._followed(*await self._catalog.ask(self._store.change, name, *change))
        await self._catalog.collect()
        return Answer(200, shown)

    async def update_configuration(self, request: Request) -> Answer:
        """UpdateFunctionConfiguration."""
        name = names.plain(request.names[0])
        given = parameters.decode(request.call.body, UpdateFunctionConfiguration)
        async with self._catalog.writing:
            before = await self._catalog.ask(self._store.version, name, LATEST)
            configuration = await self._configured(before.configuration, given)
            await self._layers.check(before.code, configuration.layers)
            requirements = await self._required(before.code, configuration)
            change = None, configuration, requirements, given.revision_id, False
            shown = await self._followed(*await self._catalog.ask(self._store.change, name, *change))
        return Answer(200, shown)

    async def _followed(self, latest: Version, published: Version | None) -> Shape:
        """Have a change served; return the version that is to be shown for it."""
        await self._catalog.serve(latest)
        if published is not None:
            await self._catalog.published(published)
        return self.shape(published or latest)

    async def delete(self, request: Request) -> Answer:
        """DeleteFunction: all of it, or one published version."""
        name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
        if qualifier is None:
            await self.remove(name)
            return Answer(200, {"StatusCode": 200})
        if not qualifier.isdecimal():
            raise invalid(
                f"Qualifier {qualifier}: the number of a published version, or none, which deletes the function"
            )
        async with self._catalog.writing:
            await self._catalog.ask(self._store.delete_version, name, qualifier)
            await self._catalog.removed(name, qualifier)
        return Answer(200, {"StatusCode": 200})

    async def remove(self, name: str) -> None:
        """Remove a function with all that belongs to it."""
        async with self._catalog.writing:
            await self._catalog.ask(self._store.delete, name)
            await self._catalog.removed(name, None)
        self._registry.again(name)

    # -- shown --------------------------------------------------------------------------------------------------------

    async def get(self, request: Request) -> Answer:
        """GetFunction."""
        name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
        version = await self._named(name, qualifier)
        code = {"RepositoryType": "olsock", "Location": self._location(request.call, version.code)}
        answer: Shape = {"Configuration": self._qualified(version, qualifier), "Code": code}
        tags = await self._catalog.ask(self._store.tags, name)
        reserved = await self._catalog.ask(self._store.reserved, name)
        if tags:
            answer["Tags"] = tags
        if reserved is not None:
            answer["Concurrency"] = {"ReservedConcurrentExecutions": reserved}
        return Answer(200, answer)

    async def get_configuration(self, request: Request) -> Answer:
        """GetFunctionConfiguration."""
        name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
        return Answer(200, await self._shown(name, qualifier))

    async def _shown(self, name: str, qualifier: str | None) -> Shape:
        return self._qualified(await self._named(name, qualifier), qualifier)

    async def _named(self, name: str, qualifier: str | None) -> Version:
        """Return the version that a qualifier names."""
        number = qualifier or LATEST
        if qualifier is not None and qualifier != LATEST and not qualifier.isdecimal():
            number = (await self._catalog.ask(self._store.alias, name, qualifier)).version
        return await self._catalog.ask(self._store.version, name, number)

    def _qualified(self, version: Version, qualifier: str | None) -> Shape:
        """Return a configuration; the ARN tells of an alias or version as it was asked for."""
        name, shape = version.function, self.shape(version)
        if qualifier is not None:
            shape["FunctionArn"] = names.arn(name, qualifier)
        return shape

    def shape(self, version: Version, qualified: bool = False) -> Shape:
        """Return a FunctionConfiguration as it is now."""
        return shapes.configuration(version, self._condition(version), self._fleet.settings.function, qualified)

    def _condition(self, version: Version) -> Condition:
        name = version.function
        if version.number != LATEST:
            return self._condition_of(version)
        function, pending = self._fleet.functions.get(name), name in self._deployer.pending
        if function is None and pending:
            return Condition("Pending", "InProgress", "The function is being created.")
        if function is None:
            return Condition("Failed", "Failed", self._failures.get(name, "it is not served")[:1000])
        if pending:
            return Condition("Active", "InProgress")
        return Condition("Active", "Failed", function.error[:1000]) if function.error else Condition()

    def _condition_of(self, version: Version) -> Condition:
        """Return how a published version is: as LATEST, while it is waited for what both require."""
        key = key_of(version.function, version.number)
        pending = self._deployer.pending
        waits = key not in self._fleet.functions and version.function in pending
        if key in pending or (waits and pending[version.function].startswith(version.code.digest[:20])):
            return Condition("Pending", "InProgress", "The function is being created.")
        if key in self._failures and key not in self._fleet.functions:
            return Condition("Failed", "Failed", self._failures[key][:1000])
        return Condition()

    async def list_all(self, request: Request) -> Answer:
        """ListFunctions."""
        after, most = request.page()
        if request.query("FunctionVersion") not in (None, "ALL"):
            raise invalid("FunctionVersion: expected ALL, or nothing")
        if request.query("FunctionVersion") is None:
            found = await self._catalog.ask(self._store.functions, after, most + 1)
            return page("Functions", found, most, self.shape, lambda each: each.function)
        found = await self._catalog.ask(self._every_version, after, most + 1)
        shape = partial(self.shape, qualified=True)
        return page("Functions", found, most, shape, lambda each: f"{each.function}:{each.number}")

    def _every_version(self, after: str, most: int) -> list[Version]:
        """Return versions of all functions, those of one behind each other, after "name:number"."""
        name, _, number = after.partition(":")
        found: list[Version] = []
        if name:
            with contextlib.suppress(Absent):
                found += self._store.versions(name, number, most)
        while len(found) < most:
            functions = self._store.functions(name, 1)
            if not functions:
                break
            name = functions[0].function
            found += self._store.versions(name, "", most - len(found))
        return found

    # -- what else a function has -------------------------------------------------------------------------------------

    async def put_concurrency(self, request: Request) -> Answer:
        """PutFunctionConcurrency."""
        name = names.plain(request.names[0])
        calls = parameters.decode(request.call.body, Concurrency).reserved_concurrent_executions
        await self._reserve(name, calls)
        return Answer(200, {"ReservedConcurrentExecutions": calls})

    async def delete_concurrency(self, request: Request) -> Answer:
        """DeleteFunctionConcurrency."""
        await self._reserve(names.plain(request.names[0]), None)
        return Answer(204)

    async def _reserve(self, name: str, calls: int | None) -> None:
        async with self._catalog.writing:
            concurrency, provisioned = self._fleet.concurrency, self._catalog.provisioned(name)
            if calls is not None and calls < provisioned:
                raise invalid(
                    f"ReservedConcurrentExecutions {calls}: {provisioned} instances are provisioned for {name}"
                )
            if calls and not concurrency.fits(name, calls):  # 0 takes nothing from the others
                await self._catalog.ask(self._store.reserved, name)  # raises if there is no such function
                raise invalid(
                    "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
                    f"below its minimum value of [{concurrency.least}]."
                )
            await self._catalog.change(name, self._store.reserve, name, calls)

    async def get_concurrency(self, request: Request) -> Answer:
        """GetFunctionConcurrency."""
        calls = await self._catalog.ask(self._store.reserved, names.plain(request.names[0]))
        return Answer(200, {} if calls is None else {"ReservedConcurrentExecutions": calls})

    async def tag(self, request: Request) -> Answer:
        """TagResource."""
        given = parameters.decode(request.call.body, TagResource).tags
        await self._retag(request, given, ())
        return Answer(204)

    async def untag(self, request: Request) -> Answer:
        """UntagResource."""
        await self._retag(request, {}, tuple(request.every("tagKeys")))
        return Answer(204)

    async def _retag(self, request: Request, more: dict[str, str], without: tuple[str, ...]) -> None:
        name = self._tagged(request)
        async with self._catalog.writing:
            tags = await self._catalog.ask(self._store.tags, name) | more
            if len(tags) > parameters.MOST_TAGS:
                raise invalid(f"Tags: more than {parameters.MOST_TAGS}")
            left = {key: value for key, value in tags.items() if key not in without}
            await self._catalog.ask(self._store.set_tags, name, left)

    async def list_tags(self, request: Request) -> Answer:
        """ListTags."""
        return Answer(200, {"Tags": await self._catalog.ask(self._store.tags, self._tagged(request))})

    def _tagged(self, request: Request) -> str:
        if not request.names[0].startswith("arn:"):
            raise invalid(f"Resource {request.names[0][:200]!r}: expected the ARN of a function")
        return names.plain(request.names[0])

    async def account(self, _request: Request) -> Answer:
        """GetAccountSettings."""
        settings, usage = self._fleet.settings, await self._catalog.ask(self._store.usage)
        limit = {
            "TotalCodeSize": settings.store_bytes,
            "CodeSizeUnzipped": settings.code,
            "CodeSizeZipped": int(settings.http.upload) * 3 // 4,  # as base64 in JSON
            "ConcurrentExecutions": settings.concurrent_executions,
            "UnreservedConcurrentExecutions": self._fleet.concurrency.unreserved,
        }
        used = {"TotalCodeSize": usage.bytes, "FunctionCount": usage.functions}
        return Answer(200, {"AccountLimit": limit, "AccountUsage": used})
