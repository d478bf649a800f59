"""Operations on layers, and what functions have of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from olsock_worker.aws import names, parameters, shapes
from olsock_worker.aws.errors import invalid
from olsock_worker.aws.messages import Answer, Request, page
from olsock_worker.aws.parameters import PublishLayerVersion
from olsock_worker.aws.shapes import Shape
from olsock_worker.store.records import Absent, Code, Layer, LayerVersion
from olsock_worker.store.sqlite import now

if TYPE_CHECKING:
    from olsock_worker.aws.uploading import Uploading
    from olsock_worker.calls import Call
    from olsock_worker.catalog import Catalog
    from olsock_worker.settings import Settings
    from olsock_worker.store.code import CodeStore

_LOOKED_AT = 200  # versions of a list that are read at a time to find those that match


Location = Callable[["Call", Code], str]
"""Gives an address at which a client can fetch code."""


class Layers:
    """Carries out operations on the store."""

    def __init__(
        self, catalog: Catalog, uploading: Uploading, location: Location, code: CodeStore, settings: Settings
    ) -> None:
        self._catalog, self._uploading, self._code, self._settings = catalog, uploading, code, settings
        self._location = location
        self._store = catalog.store.layers

    async def publish(self, request: Request) -> Answer:
        """PublishLayerVersion."""
        name = names.layer(request.names[0])
        given = parameters.decode(request.call.body, PublishLayerVersion)
        archive = parameters.archive(given.content)
        async with self._uploading.taken(archive, "zip") as code:
            wanted = LayerVersion(
                *(name, 0, Code(code.digest, code.sha256, code.size), given.description, given.license_info),
                *(given.compatible_runtimes, given.compatible_architectures, now()),
            )
            made = await self._catalog.ask(self._store.publish, wanted)
        return Answer(201, self._shape(request, made))

    async def get(self, request: Request) -> Answer:
        """GetLayerVersion."""
        found = await self._catalog.ask(self._store.version, names.layer(request.names[0]), _number(request.names[1]))
        return Answer(200, self._shape(request, found))

    async def list_all(self, request: Request) -> Answer:
        """ListLayers, and GetLayerVersionByArn, which differs by its query alone."""
        if request.query("find") == "LayerVersion":
            name, number = names.layer_version(request.query("Arn") or "")
            return Answer(200, self._shape(request, await self._catalog.ask(self._store.version, name, number)))
        after, most = request.page()
        found = await self._catalog.ask(self._newest, after, most + 1, _matching(request))
        return page("Layers", found, most, shapes.layer, lambda each: each.name)

    def _newest(self, after: str, most: int, matches: Callable[[LayerVersion], bool]) -> list[LayerVersion]:
        """Return the newest version that matches of each layer."""
        found: list[LayerVersion] = []
        while len(found) < most and (looked_at := self._store.names(after, _LOOKED_AT)):
            for after in looked_at:
                found += self._matching(after, 0, 1, matches)
                if len(found) == most:
                    break
        return found

    def _matching(
        self, name: str, before: int, most: int, matches: Callable[[LayerVersion], bool]
    ) -> list[LayerVersion]:
        """Return versions that match, the newest first."""
        found: list[LayerVersion] = []
        while len(found) < most and (looked_at := self._store.versions(name, before, _LOOKED_AT)):
            found += [each for each in looked_at if matches(each)]
            before = looked_at[-1].number
        return found[:most]

    async def list_versions(self, request: Request) -> Answer:
        """ListLayerVersions."""
        name = names.layer(request.names[0])
        after, most = request.page()
        before = _number(after) if after else 0
        found = await self._catalog.ask(self._matching, name, before, most + 1, _matching(request))
        return page("LayerVersions", found, most, shapes.layer_version, lambda each: str(each.number))

    async def delete(self, request: Request) -> Answer:
        """DeleteLayerVersion."""
        name, number = names.layer(request.names[0]), _number(request.names[1])
        async with self._catalog.writing:  # no function is being given it meanwhile
            await self._catalog.ask(self._store.delete, name, number)
        await self._catalog.collect()
        return Answer(204)

    def _shape(self, request: Request, found: LayerVersion) -> Shape:
        code = found.code
        return {
            **shapes.layer_version(found),
            "LayerArn": names.layer_arn(found.name),
            "Content": {
                "Location": self._location(request.call, code),
                "CodeSha256": code.sha256,
                "CodeSize": code.size,
            },
        }

    # -- of functions -------------------------------------------------------------------------------------------------

    async def of(self, arns: list[str]) -> tuple[Layer, ...]:
        """Return the layers that a function asks for. Raises `ApiError`."""
        found: list[Layer] = []
        for arn in arns:
            name, number = names.layer_version(arn)
            if any(name == each.name for each in found):
                raise invalid(f"Layers: two versions of the layer {name} are not allowed")
            try:
                version = await self._catalog.ask(self._store.version, name, number)
            except Absent as error:
                raise invalid(f"Layers: {error}") from None
            found.append(Layer(name, number, version.code.digest, version.code.size))
        return tuple(found)

    async def check(self, code: Code, layers: tuple[Layer, ...]) -> None:
        """Refuse code and layers that are together more than one function may have."""
        if layers:
            await asyncio.get_running_loop().run_in_executor(None, self._check, code, layers)

    def _check(self, code: Code, layers: tuple[Layer, ...]) -> None:
        weights = [self._code.weigh(digest) for digest in (code.digest, *(each.digest for each in layers))]
        size, files = (sum(each) for each in zip(*weights, strict=True))
        if size > int(self._settings.code) or files > self._settings.code_files:
            raise invalid(
                f"Function code combined with layers exceeds the maximum allowed size of {self._settings.code} bytes and "
                f"{self._settings.code_files} files: {size} bytes in {files} files"
            )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise invalid(f"{text[:50]!r} is not the number of a version")
    return int(text)


def _matching(request: Request) -> Callable[[LayerVersion], bool]:
    runtime, architecture = request.query("CompatibleRuntime"), request.query("CompatibleArchitecture")

    def matches(version: LayerVersion) -> bool:
        return runtime in (None, *version.runtimes) and architecture in (None, *version.architectures)

    return matches
