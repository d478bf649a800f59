"""Operations on how often and for how long events are tried, for a function, a version or an alias."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, UnsetType

from olsock_worker.aws import names, parameters
from olsock_worker.aws.errors import invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.shapes import Shape
from olsock_worker.store.records import LATEST, EventInvoke

if TYPE_CHECKING:
    from olsock_worker.catalog import Catalog


class _Destination(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    destination: str | None = None


class _Destinations(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    on_success: _Destination | None = None
    on_failure: _Destination | None = None


class Rules(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """What is to be set."""

    maximum_retry_attempts: Annotated[int, msgspec.Meta(ge=0, le=2)] | UnsetType | None = UNSET
    maximum_event_age_in_seconds: Annotated[int, msgspec.Meta(ge=60, le=21_600)] | UnsetType | None = UNSET
    destination_config: _Destinations | UnsetType | None = UNSET


class EventInvokes:
    """Carries out operations on the store, and has the catalog follow."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._store = catalog, catalog.store.event_invokes

    async def put(self, request: Request) -> Answer:
        """PutFunctionEventInvokeConfig: what is not given is as the worker's settings have it."""
        name, qualifier = _named(request)
        given = _given(request)
        retries, age = given.maximum_retry_attempts, given.maximum_event_age_in_seconds
        rules = EventInvoke(
            *(name, qualifier, None if retries is UNSET else retries, None if age is UNSET else age, time.time())
        )
        async with self._catalog.writing:
            await self._set(rules)
        return Answer(200, _shape(rules))

    async def update(self, request: Request) -> Answer:
        """UpdateFunctionEventInvokeConfig: what is not given stays."""
        name, qualifier = _named(request)
        given = _given(request)
        retries, age = given.maximum_retry_attempts, given.maximum_event_age_in_seconds
        async with self._catalog.writing:
            before = await self._catalog.ask(self._store.get, name, qualifier)
            rules = msgspec.structs.replace(
                before,
                retries=before.retries if retries is UNSET else retries,
                age=before.age if age is UNSET else age,
                modified=time.time(),
            )
            await self._set(rules)
        return Answer(200, _shape(rules))

    async def _set(self, rules: EventInvoke) -> None:
        await self._catalog.change(rules.function, self._store.put, rules)

    async def get(self, request: Request) -> Answer:
        """GetFunctionEventInvokeConfig."""
        return Answer(200, _shape(await self._catalog.ask(self._store.get, *_named(request))))

    async def delete(self, request: Request) -> Answer:
        """DeleteFunctionEventInvokeConfig."""
        name, qualifier = _named(request)
        async with self._catalog.writing:
            await self._catalog.change(name, self._store.delete, name, qualifier)
        return Answer(204)

    async def list(self, request: Request) -> Answer:
        """ListFunctionEventInvokeConfigs."""
        name = names.plain(request.names[0])
        after, most = request.page()
        found = await self._catalog.ask(self._store.list, name, after, most + 1)
        return page("FunctionEventInvokeConfigs", found, most, _shape, lambda each: each.qualifier)


def _named(request: Request) -> tuple[str, str]:
    name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
    return name, qualifier or LATEST


def _given(request: Request) -> Rules:
    """Return the body of a request. Raises `ApiError` for destinations, of which there are none."""
    given = parameters.decode(request.call.body, Rules)
    if given.destination_config:
        for side in ("on_success", "on_failure"):
            found: _Destination | None = getattr(given.destination_config, side)
            if found is not None and found.destination:
                word = "OnSuccess" if side == "on_success" else "OnFailure"
                raise invalid(
                    f"DestinationConfig.{word} is not supported: events that fail are kept as dead letters on this worker"
                )
    if all(value is UNSET for value in msgspec.structs.astuple(given)):
        raise invalid("You must specify at least one of error handling or destination setting.")
    return given


def _shape(rules: EventInvoke) -> Shape:
    shape: Shape = {
        "LastModified": round(rules.modified, 3),
        "FunctionArn": names.arn(rules.function, rules.qualifier),
        "DestinationConfig": {"OnSuccess": {}, "OnFailure": {}},
    }
    if rules.retries is not None:
        shape["MaximumRetryAttempts"] = rules.retries
    if rules.age is not None:
        shape["MaximumEventAgeInSeconds"] = rules.age
    return shape
