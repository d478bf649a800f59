"""Which operation a request of the API is, and what its errors are. OpenLambda's /registry and dead letters are here as well."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote

from olsock_worker.aws.dead_letters import DeadLetters
from olsock_worker.aws.errors import ApiError
from olsock_worker.aws.event_invokes import EventInvokes
from olsock_worker.aws.functions import Functions
from olsock_worker.aws.invocations import Invocations
from olsock_worker.aws.layers import Layers
from olsock_worker.aws.logs import Logs
from olsock_worker.aws.messages import Answer, Request
from olsock_worker.aws.openlambda import OpenLambda
from olsock_worker.aws.provisions import Provisions
from olsock_worker.aws.streaming import StreamedInvocation
from olsock_worker.aws.uploading import Uploading
from olsock_worker.aws.urls import FunctionUrls
from olsock_worker.aws.versions import Versions
from olsock_worker.store.records import Absent, Conflict, Different, Stale, StoreError

if TYPE_CHECKING:
    from olsock_worker.addresses import Addresses
    from olsock_worker.aws.access import Access
    from olsock_worker.calls import Call
    from olsock_worker.catalog import Catalog
    from olsock_worker.deployer import Deployer
    from olsock_worker.downloads import Downloads
    from olsock_worker.events.dispatcher import Dispatcher
    from olsock_worker.fleet import Fleet
    from olsock_worker.logs import WorkerLog
    from olsock_worker.provisioning import Provisioning
    from olsock_worker.registry import Registry
    from olsock_worker.store.code import CodeStore
    from olsock_worker.store.records import Code
    from olsock_worker.uploads import Uploads

_PREFIX = re.compile(rb"/(?:20\d\d-\d\d-\d\d|registry|dead-letters|logs)(?:/|$)")
_FIELDS = 64  # of a query
_STORE = {
    Absent: "ResourceNotFoundException",
    Conflict: "ResourceConflictException",
    Stale: "PreconditionFailedException",
    Different: "InvalidParameterValueException",
}

Operation = Callable[[Request], Awaitable[Answer | None]]


class Control:
    """The table of operations."""

    def __init__(
        self,
        catalog: Catalog,
        uploads: Uploads,
        code: CodeStore,
        fleet: Fleet,
        deployer: Deployer,
        failures: dict[str, str],
        registry: Registry,
        addresses: Addresses,
        downloads: Downloads,
        provisioning: Provisioning,
        log: WorkerLog,
        events: Dispatcher,
        logs_fd: int,
    ) -> None:
        uploading = Uploading(catalog, uploads, fleet.settings)

        def location(call: Call, of: Code) -> str:
            return addresses.own(call, downloads.path(of.digest))

        layers = Layers(catalog, uploading, location, code, fleet.settings)
        functions = Functions(catalog, uploads, uploading, layers, location, fleet, deployer, failures, registry)
        versions, invocations = Versions(catalog, functions), Invocations(catalog, fleet, events)
        event_invokes, dead_letters = EventInvokes(catalog), DeadLetters(events)
        stream = partial(invocations.invoke, way=StreamedInvocation)
        openlambda, urls = OpenLambda(catalog, functions, fleet), FunctionUrls(catalog, addresses)
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        one, v15 = "/([^/]+)", "/2015-03-31/functions"
        concurrency, url = f"functions{one}/concurrency", f"/2021-10-31/functions{one}/url"
        layer, provisioned = f"/2018-10-31/layers{one}", f"/2019-09-30/functions{one}/provisioned-concurrency"
        rules = f"/2019-09-25/functions{one}/event-invoke-config"
        provisions = Provisions(catalog, provisioning, fleet.settings.instances)
        table: list[tuple[str, str, Operation]] = [
            ("POST", f"{v15}/function/invocations", invocations.emulated),
            ("POST", f"{v15}{one}/invocations", invocations.invoke),
            ("POST", f"/2021-11-15/functions{one}/response-streaming-invocations", stream),
            ("POST", f"{v15}/?", functions.create),
            ("GET", f"{v15}/?", functions.list_all),
            ("GET", f"{v15}{one}", functions.get),
            ("DELETE", f"{v15}{one}", functions.delete),
            ("PUT", f"{v15}{one}/code", functions.update_code),
            ("GET", f"{v15}{one}/configuration", functions.get_configuration),
            ("PUT", f"{v15}{one}/configuration", functions.update_configuration),
            ("POST", f"{v15}{one}/versions", versions.publish),
            ("GET", f"{v15}{one}/versions", versions.list),
            ("POST", f"{v15}{one}/aliases", versions.create_alias),
            ("GET", f"{v15}{one}/aliases", versions.list_aliases),
            ("GET", f"{v15}{one}/aliases{one}", versions.get_alias),
            ("PUT", f"{v15}{one}/aliases{one}", versions.update_alias),
            ("DELETE", f"{v15}{one}/aliases{one}", versions.delete_alias),
            ("PUT", f"/2017-10-31/{concurrency}", functions.put_concurrency),
            ("DELETE", f"/2017-10-31/{concurrency}", functions.delete_concurrency),
            ("GET", f"/2019-09-30/{concurrency}", functions.get_concurrency),
            ("PUT", rules, event_invokes.put),
            ("POST", rules, event_invokes.update),
            ("GET", rules, event_invokes.get),
            ("DELETE", rules, event_invokes.delete),
            ("GET", f"{rules}/list", event_invokes.list),
            ("POST", f"/2017-03-31/tags{one}", functions.tag),
            ("DELETE", f"/2017-03-31/tags{one}", functions.untag),
            ("GET", f"/2017-03-31/tags{one}", functions.list_tags),
            ("POST", url, urls.create),
            ("GET", url, urls.get),
            ("PUT", url, urls.update),
            ("DELETE", url, urls.delete),
            ("GET", f"{url}s", urls.list),
            ("PUT", provisioned, provisions.put),
            ("GET", provisioned, provisions.get),
            ("DELETE", provisioned, provisions.delete),
            ("GET", "/2018-10-31/layers/?", layers.list_all),
            ("POST", f"{layer}/versions", layers.publish),
            ("GET", f"{layer}/versions", layers.list_versions),
            ("GET", f"{layer}/versions{one}", layers.get),
            ("DELETE", f"{layer}/versions{one}", layers.delete),
            ("GET", "/2016-08-19/account-settings/?", functions.account),
            ("GET", "/dead-letters/?", dead_letters.list),
            ("GET", f"/dead-letters{one}", dead_letters.show),
            ("DELETE", f"/dead-letters{one}", dead_letters.delete),
            ("POST", f"/dead-letters{one}/retry", dead_letters.retry),
            ("GET", f"/logs{one}", Logs(logs_fd, fleet).read),
            ("GET", "/registry/?", openlambda.list),
            ("POST", f"/registry{one}", openlambda.upload),
            ("DELETE", f"/registry{one}", openlambda.delete),
            ("GET", f"/registry{one}/config", openlambda.config),
        ]
        self._table = [(method, re.compile(pattern), operation) for method, pattern, operation in table]

    def takes(self, path: bytes) -> bool:
        """Say whether a path belongs to the API."""
        return _PREFIX.match(path) is not None

    def handle(self, call: Call, path: bytes, query: bytes, access: Access | None) -> None:
        """Carry a request out, in the background. It is finished even if the client leaves meanwhile.

        Without `access` it came by a socket that only its owner can open.
        """
        task = asyncio.create_task(self._run(call, path, query, access))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call, path: bytes, query: bytes, access: Access | None) -> None:
        request = Request(call, {}, ())
        try:
            if access is not None:
                await access.check(call, path, query)
            operation, found = self._find(call.method, path.decode("ascii", "replace"))
            request = Request(call, _parameters(query), found)
            answer = await operation(request)
            if answer is not None:
                request.answer(answer)
        except ApiError as error:
            request.fail(error)
        except StoreError as error:
            kind = _STORE.get(type(error), "ServiceException")
            if kind == "ServiceException":
                self._log("error", "store", request=call.id, error=str(error))
            request.fail(ApiError(kind, str(error)))
        except Exception as error:  # a bug of ours must end one request, not the worker
            self._log("error", "internal", request=call.id, error=repr(error))
            request.fail(ApiError("ServiceException", "internal error"))

    def _find(self, method: str, path: str) -> tuple[Operation, tuple[str, ...]]:
        for allowed, pattern, operation in self._table:
            match = pattern.fullmatch(path)
            if match is not None and method == allowed:
                return operation, tuple(unquote(each) for each in match.groups())
        raise ApiError("UnknownOperationException", f"there is no operation {method} {path[:200]} here")


def _parameters(query: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError as error:
        raise ApiError("InvalidParameterValueException", f"the query: {error}") from None
