"""Operations on function URLs."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from olsock_worker import cors
from olsock_worker.aws import names, parameters
from olsock_worker.aws.errors import invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.parameters import CreateUrl, UpdateUrl
from olsock_worker.aws.shapes import Shape
from olsock_worker.store.records import Cors, FunctionUrl
from olsock_worker.store.sqlite import now

if TYPE_CHECKING:
    from olsock_worker.addresses import Addresses
    from olsock_worker.catalog import Catalog

_ID = 16  # bytes: nobody guesses one


class FunctionUrls:
    """Carries out operations on the store, and has the catalog follow."""

    def __init__(self, catalog: Catalog, addresses: Addresses) -> None:
        self._catalog, self._addresses = catalog, addresses
        self._store = catalog.store.urls

    async def create(self, request: Request) -> Answer:
        """CreateFunctionUrlConfig."""
        name, qualifier = _target(request)
        given = parameters.decode(request.call.body, CreateUrl)
        if given.auth_type is None:
            raise invalid("AuthType is missing: NONE or AWS_IAM")
        moment = now()
        made = FunctionUrl(
            *(secrets.token_hex(_ID), name, qualifier, _signed(given.auth_type), _streams(given.invoke_mode)),
            *(_checked(given.cors), moment, moment),
        )
        async with self._catalog.writing:
            await self._catalog.change(name, self._store.create, made)
        shape = self._shape(request, made)
        del shape["LastModifiedTime"]
        return Answer(201, shape)

    async def update(self, request: Request) -> Answer:
        """UpdateFunctionUrlConfig."""
        name, qualifier = _target(request)
        given = parameters.decode(request.call.body, UpdateUrl)
        async with self._catalog.writing:
            before = await self._catalog.ask(self._store.get, name, qualifier)
            after = msgspec.structs.replace(
                before,
                signed=before.signed if given.auth_type is None else _signed(given.auth_type),
                stream=before.stream if given.invoke_mode is None else _streams(given.invoke_mode),
                cors=before.cors if given.cors is None else _checked(given.cors),
                modified=now(),
            )
            await self._catalog.change(name, self._store.change, after)
        return Answer(200, self._shape(request, after))

    async def delete(self, request: Request) -> Answer:
        """DeleteFunctionUrlConfig."""
        name, qualifier = _target(request)
        async with self._catalog.writing:
            await self._catalog.change(name, self._store.delete, name, qualifier)
        return Answer(204)

    async def get(self, request: Request) -> Answer:
        """GetFunctionUrlConfig."""
        return Answer(200, self._shape(request, await self._catalog.ask(self._store.get, *_target(request))))

    async def list(self, request: Request) -> Answer:
        """ListFunctionUrlConfigs."""
        name, _ = names.parse(request.names[0])
        after, most = request.page()
        found = [each for each in await self._catalog.ask(self._store.all, name) if _key(each) > after]
        return page("FunctionUrlConfigs", found, most, partial(self._shape, request), _key)

    def _shape(self, request: Request, url: FunctionUrl) -> Shape:
        shape: Shape = {
            "FunctionUrl": self._addresses.function_url(request.call, url.id),
            "FunctionArn": names.arn(url.function, url.qualifier or None),
            "AuthType": "AWS_IAM" if url.signed else "NONE",
            "InvokeMode": "RESPONSE_STREAM" if url.stream else "BUFFERED",
            "CreationTime": url.created,
            "LastModifiedTime": url.modified,
        }
        if url.cors is not None:
            shape["Cors"] = url.cors
        return shape


def _target(request: Request) -> tuple[str, str]:
    """Return the function and the alias that are meant, "" if none is."""
    name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
    return name, names.alias(qualifier) if qualifier else ""


def _key(url: FunctionUrl) -> str:
    """Return what a list goes on after; that of the function itself comes first."""
    return f":{url.qualifier}"


def _signed(kind: str) -> bool:
    if kind not in ("NONE", "AWS_IAM"):
        raise invalid(f"AuthType {kind[:50]!r}: expected NONE or AWS_IAM")
    return kind == "AWS_IAM"


def _streams(mode: str | None) -> bool:
    if mode not in (None, "BUFFERED", "RESPONSE_STREAM"):
        raise invalid(f"InvokeMode {mode[:50]!r}: expected BUFFERED or RESPONSE_STREAM")
    return mode == "RESPONSE_STREAM"


def _checked(given: Cors | None) -> Cors | None:
    """Return what is to be kept; nothing of it means that the function answers for all of it itself."""
    if given is None or given == Cors():
        return None
    why = cors.mistake(given)
    if why:
        raise invalid(why)
    return given
