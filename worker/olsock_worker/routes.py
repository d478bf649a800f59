"""Which request goes where: `/run/<name>` to a function, `/status`, `/stats` and `/metrics` answered here."""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec
import psutil

from olsock_worker import downloads, responses
from olsock_worker.broker_protocol import SHOWN
from olsock_worker.doors import RUN
from olsock_worker.functions import Function
from olsock_worker.metrics import CONTENT_TYPE, Metrics
from olsock_worker.ol_yaml import METHODS
from olsock_worker.responses import JSON, Error
from olsock_worker.stats import Gains
from olsock_worker.urls import HOST, PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from olsock_worker.aws.control import Control
    from olsock_worker.broker_protocol import ZygoteState
    from olsock_worker.calls import Call
    from olsock_worker.deployer import Deployer
    from olsock_worker.doors import Door
    from olsock_worker.downloads import Downloads
    from olsock_worker.edge import Edge
    from olsock_worker.events.figures import Figures
    from olsock_worker.fleet import Fleet
    from olsock_worker.locks import Locks
    from olsock_worker.logs import WorkerLog
    from olsock_worker.measures import Measures
    from olsock_worker.urls import Urls

_ALWAYS = (
    "imports",
    "state",
    "pid",
    "detail",
    "memory",
    "hits",
    "saved_ms",
)  # of a zygote, also if there is nothing to tell
_READ = ("GET", "HEAD")
_FIELDS = 4  # of a query
_KNOWN = frozenset(METHODS)


class Routes:
    """The path table, and what the pages of its own show."""

    def __init__(self, fleet: Fleet, deployer: Deployer, locks: Locks, measures: Measures, log: WorkerLog) -> None:
        self.edge: Edge
        self.zygotes: dict[str, ZygoteState] = {}
        self.gains = Gains()
        self.failures: dict[str, str] = {}  # function that never ran -> why it could not be deployed
        self.control: Control  # of the API
        self.urls: Urls
        self.downloads: Downloads
        self.events: Figures  # of asynchronous invocations
        self._fleet = fleet
        self._deployer = deployer
        self._locks = locks
        self._measures = measures
        self._log = log
        self._begun = monotonic()
        self._refused: dict[str, int] = {}
        self._metrics = Metrics(fleet, fleet.settings.metrics_functions)

    def handle(self, call: Call, door: Door) -> None:
        """Answer a request that came in by a door, or give it to who will. Never raises."""
        try:
            path, _, query = call.target.partition(b"?")
            if not door.admits(call, path):
                self.refuse(call, 404, "not_found", "this is not served at this address, but at the other")
            elif HOST in call.headers.get("host", ""):
                self.urls.at_host(call, path, query)
            elif path.startswith(RUN):
                self._run(call, path, query)
            elif path.startswith(PREFIX):
                self.urls.at_path(call, path, query)
            elif path.startswith(downloads.PREFIX):
                self.downloads.handle(call, path)
            elif path == b"/status":
                self._status_page(call, query)
            elif path == b"/stats":
                self._measures.fresh(lambda: self._page(call, self._stats, 200))
            elif path == b"/metrics":
                self._text(call, CONTENT_TYPE, self._metrics_page)
            elif self.control.takes(path):
                self.control.handle(call, path, query, door.access)
            else:
                known = "/run/<function>, /status, /stats, /metrics and AWS Lambda's API"
                self.refuse(call, 404, "not_found", f"there is {known}")
        except Exception as error:  # a bug of ours must end one request, not the worker
            self._log("error", "internal", request=call.id, error=repr(error))
            self.refuse(call, 500, "internal", "internal error")

    def _run(self, call: Call, path: bytes, query: bytes) -> None:
        name, slash, rest = path[len(RUN) :].decode("ascii", "replace").partition("/")
        function = self._fleet.functions.get(name) if ":" not in name else None  # published versions: by Invoke alone
        if function is None:
            if name in self._deployer.pending:
                self.refuse(call, 503, "deploying", "what it requires is being installed", (responses.RETRY_AFTER,))
            else:
                self.refuse(call, 404, "unknown_function", "there is no such function")
            return
        methods = function.config.methods
        if call.method not in (methods or _KNOWN):
            self.refuse(
                call, 405, "method_not_allowed", "not a method of this function", (("allow", function.config.allow()),)
            )
            return
        call.path, call.query = slash + rest, query.decode("ascii", "replace")
        function.submit(call)

    def _status_page(self, call: Call, query: bytes) -> None:
        """Show everything, or with `?function=NAME` one function with what it requires and its lock."""
        try:
            names = parse_qs(query.decode("ascii", "replace"), max_num_fields=_FIELDS).get("function", [])
        except ValueError:
            self.refuse(call, 400, "bad_request", f"a query of more than {_FIELDS} fields")
            return
        if not names or call.method not in _READ:
            self._page(call, self._status, 503 if self.edge.draining else 200)
        elif names[0] not in self._names():
            self.refuse(call, 404, "unknown_function", "there is no such function")
        else:
            self._one(call, names[0])

    def _one(self, call: Call, name: str) -> None:
        function = self._fleet.functions.get(name)
        shown = self._function(name)
        if function is None or not function.deployment.installation:
            self._page(call, lambda: shown, 200)
            return
        deployment = function.deployment
        shown |= {"requires": deployment.requirements, "packages": deployment.packages}

        def answer(read: asyncio.Future[str]) -> None:
            shown["lock"] = "" if read.exception() is not None else read.result()
            self._page(call, lambda: shown, 200)

        asyncio.get_running_loop().run_in_executor(None, self._locks.read, deployment.path).add_done_callback(answer)

    def _page(self, call: Call, make: Callable[[], object], status: int) -> None:
        self._text(call, JSON, lambda: msgspec.json.encode(make()) + b"\n", status)

    def _metrics_page(self) -> bytes:
        return self._metrics.page(self.edge, self._refused, self.zygotes, self.gains, self.events)

    def _text(self, call: Call, content_type: bytes, make: Callable[[], bytes], status: int = 200) -> None:
        if call.method not in _READ:
            self.refuse(call, 405, "method_not_allowed", "read only", (("allow", ", ".join(_READ)),))
            return
        call.reply(status, content_type, make())

    def refuse(
        self, call: Call, status: int, kind: str, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Answer with an error of the worker's own."""
        self.refused(status)
        body = responses.error_body(Error(kind, message), call.id)
        call.reply(status, JSON, body, responses.header_lines(headers))

    def refused(self, status: int) -> None:
        """Count a request that reached no function."""
        self._refused[str(status)] = self._refused.get(str(status), 0) + 1

    # -- pages --------------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, object]:
        return {
            "status": "draining" if self.edge.draining else "ready",
            "uptime_s": round(monotonic() - self._begun, 3),
            "functions": {name: self._function(name) for name in self._names()},
            "instances": self._fleet.states(),
            "zygotes": self._zygotes(),
        }

    def _names(self) -> list[str]:
        """Return every function: those that run, those that are on the way, and those that failed."""
        return sorted({*self._fleet.functions, *self._deployer.pending, *self.failures})

    def _function(self, name: str) -> dict[str, object]:
        shown: dict[str, object] = {}
        function = self._fleet.functions.get(name)
        if function is not None:
            shown = self._running(function)
        elif name in self.failures:
            shown["error"] = self.failures[name]
        if name in self._deployer.pending:
            shown["deploying"] = self._deployer.pending[name]
        return shown

    def _running(self, function: Function) -> dict[str, object]:
        deployment = function.deployment
        shown: dict[str, object] = {
            "version": deployment.version,
            "instances": function.count,
            "packages": len(deployment.packages),
        }
        if function.config.runtime:
            shown["runtime"] = function.config.runtime
        if function.error:
            shown["error"] = function.error
        if function.retries.failures:
            shown["init"] = {
                "failures": function.retries.failures,
                "retry_s": round(function.retries.pause(monotonic()), 3),
            }
        if function.config.zygote == "off":
            shown["zygote"] = "off"
        else:
            state = self._zygote(function)
            shown["zygote"] = state.state if state is not None else "building"
        return shown

    def _zygote(self, function: Function) -> ZygoteState | None:
        """Return the zygote that was made for a function, or for what it says that it imports."""
        if function.config.snapshot:
            return self.zygotes.get(f"function:{function.deployment.path}")
        imports = function.config.imports[:SHOWN]
        return next((each for each in self.zygotes.values() if each.imports == imports and not each.name), None)

    def _zygotes(self) -> list[dict[str, object]]:
        return [
            {name: value for name, value in msgspec.structs.asdict(state).items() if value or name in _ALWAYS}
            for _, state in sorted(self.zygotes.items())
        ]

    def _stats(self) -> dict[str, object]:
        process = psutil.Process(os.getpid())
        return {
            "uptime_s": round(monotonic() - self._begun, 3),
            "functions": {name: each.stats.summary() for name, each in sorted(self._fleet.functions.items())},
            "instances": self._fleet.states(),
            "memory": self._measures.summary(self._fleet.instances),
            "zygotes": self._zygotes(),
            "events": self.events.summary(),
            "evicted": dict(self._fleet.evicted),
            "refused": dict(sorted(self._refused.items())),
            "connections": len(self.edge),
            "process": {"memory_bytes": process.memory_info().rss, "cpu_s": round(sum(process.cpu_times()[:2]), 3)},
        }
