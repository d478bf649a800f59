"""OpenLambda's /registry: a tar.gz under a name, listed, shown and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from olsock_worker.aws.errors import absent, invalid
from olsock_worker.aws.functions import Functions
from olsock_worker.aws.messages import Answer, Request
from olsock_worker.registry import NAME

if TYPE_CHECKING:
    from olsock_worker.catalog import Catalog
    from olsock_worker.fleet import Fleet


class OpenLambda:
    """The four operations."""

    def __init__(self, catalog: Catalog, functions: Functions, fleet: Fleet) -> None:
        self._catalog, self._functions, self._fleet = catalog, functions, fleet

    async def list(self, _request: Request) -> Answer:
        """Return the names of all functions, those of the registry directory included."""
        return Answer(200, sorted({*(each for each in self._fleet.functions if ":" not in each), *self._catalog.names}))

    async def upload(self, request: Request) -> Answer:
        """Deploy a tar.gz."""
        name = _name(request)
        await self._functions.upload(name, request.call.body)
        return Answer(201, f"Lambda {name} uploaded successfully")

    async def delete(self, request: Request) -> Answer:
        """Delete a function that was uploaded."""
        name = _name(request)
        await self._functions.remove(name)
        return Answer(200, f"Lambda {name} deleted successfully")

    async def config(self, request: Request) -> Answer:
        """Show what the ol.yaml of a function says."""
        name = _name(request)
        function = self._fleet.functions.get(name)
        if function is None:
            raise absent(f"Function not found: {name}")
        config = function.config
        http = [{"Method": method} for method in sorted(config.methods)] or [{"Method": "*"}]
        return Answer(
            200,
            {
                "Triggers": {"HTTP": http, "Cron": None, "Kafka": None},
                "Environment": config.environment,
                "ReuseSandbox": config.reuse_sandbox,
            },
        )


def _name(request: Request) -> str:
    name = request.names[0]
    if not NAME.fullmatch(name):
        raise invalid(f"name {name[:200]!r}: expected up to 64 letters, digits and ._-, the first a letter or a digit")
    return name
