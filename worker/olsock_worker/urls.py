"""Requests at function URLs: which function is meant, who may, and what browsers are told.

A URL is a path, `/url/<id>/...`, or the name of a host that begins with `<id>.lambda-url.`; the rest is the function's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from olsock_worker import cors, responses
from olsock_worker.aws import names
from olsock_worker.aws.errors import ApiError
from olsock_worker.calls import Told
from olsock_worker.catalog import NotReady
from olsock_worker.ol_yaml import METHODS
from olsock_worker.responses import JSON
from olsock_worker.store.records import Absent
from olsock_worker.visits import Visit

if TYPE_CHECKING:
    from olsock_worker.aws.access import Access
    from olsock_worker.calls import Call
    from olsock_worker.catalog import Catalog
    from olsock_worker.fleet import Fleet
    from olsock_worker.logs import WorkerLog
    from olsock_worker.store.records import FunctionUrl

PREFIX = b"/url/"
HOST = ".lambda-url."
_KNOWN = frozenset(METHODS)
_Refuse = Callable[["Call", int, str, str, tuple[tuple[str, str], ...]], None]


class Urls:
    """Sends requests to the functions of their URLs."""

    def __init__(self, catalog: Catalog, fleet: Fleet, access: Access, refuse: _Refuse, log: WorkerLog) -> None:
        """`refuse` answers with an error of the worker's own."""
        self._catalog, self._fleet, self._access, self._refuse, self._log = catalog, fleet, access, refuse, log
        self._tasks: set[asyncio.Task[None]] = set()

    def at_path(self, call: Call, path: bytes, query: bytes) -> None:
        """Take a request whose path begins with `PREFIX`."""
        number, slash, rest = path[len(PREFIX) :].decode("ascii", "replace").partition("/")
        self._handle(call, number, (f"/url/{number}", slash + rest), path, query)

    def at_host(self, call: Call, path: bytes, query: bytes) -> None:
        """Take a request whose host has `HOST` in it."""
        number = call.headers["host"].partition(HOST)[0].lower()
        self._handle(call, number, ("", path.decode("ascii", "replace")), path, query)

    def _handle(self, call: Call, number: str, parts: tuple[str, str], path: bytes, query: bytes) -> None:
        url = self._catalog.url(number)
        if url is None:
            self._refuse(call, 404, "unknown_function", "there is no such function URL", ())
        elif url.cors is not None and cors.is_preflight(call):
            lines = cors.preflight(url.cors, call.headers["origin"])
            call.reply(200, JSON, b"", responses.header_lines(lines))
        else:
            task = asyncio.create_task(self._visit(call, url, parts, path, query))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _visit(self, call: Call, url: FunctionUrl, parts: tuple[str, str], path: bytes, query: bytes) -> None:
        try:
            key = await self._access.signed(call, path, query) if url.signed else None
            if call.connection is None:
                return  # the client has gone meanwhile
            mount, call.path = parts
            call.query = query.decode("ascii", "replace")
            call.visit = Visit(call, url, mount, key, self._fleet.settings.http)
            arn = names.arn(url.function, url.qualifier or None)
            call.told = Told(arn=arn, trace=call.headers.get("x-amzn-trace-id"))
            await self._submit(call, url)
        except ApiError as error:
            self._refuse(call, 403, "forbidden", error.message, ())
        except Exception as error:  # a bug of ours must end one request, not the worker
            self._log("error", "internal", request=call.id, error=repr(error))
            self._refuse(call, 500, "internal", "internal error", ())

    async def _submit(self, call: Call, url: FunctionUrl) -> None:
        try:
            number = self._catalog.resolve(url.function, url.qualifier or None)
            function = await self._catalog.function(url.function, number)
        except Absent:
            self._refuse(call, 404, "unknown_function", "there is no such function", ())
            return
        except NotReady as error:
            self._refuse(call, 503, "deploying", str(error), (responses.RETRY_AFTER,))
            return
        config = function.config
        if call.method not in (config.methods or _KNOWN):
            self._refuse(call, 405, "method_not_allowed", "not a method of this function", (("allow", config.allow()),))
        elif call.connection is not None:
            function.submit(call)
