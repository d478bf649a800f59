"""Invoke: a call to a function on behalf of a request, and what each end of it is in the words of the API."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from typing import TYPE_CHECKING, cast

import msgspec

from olsock_worker import calls, gateway, responses
from olsock_worker.aws import names
from olsock_worker.aws.errors import ApiError, absent, invalid
from olsock_worker.aws.messages import Answer, Request
from olsock_worker.calls import Call, Failure, Told
from olsock_worker.catalog import NotReady
from olsock_worker.concurrency import OVER_ALL
from olsock_worker.events.backlog import QueueFull
from olsock_worker.instances import ASGI, WSGI
from olsock_worker.logs import Tail
from olsock_worker.responses import JSON
from olsock_worker.store.records import LATEST

if TYPE_CHECKING:
    from olsock_worker.calls import Client
    from olsock_worker.catalog import Catalog
    from olsock_worker.events.dispatcher import Dispatcher
    from olsock_worker.fleet import Fleet
    from olsock_worker.functions import Function
    from olsock_worker.heads import Head
    from olsock_worker.streams import Source

_CONTEXT = 3583  # bytes of base64
_ENTRY = re.compile(r"(?=^  File )", re.MULTILINE)
_REFUSED = {
    "malformed": ("InvalidRequestContentException", ""),
    "no_http_event": ("InvalidRequestContentException", ""),
    "throttled": ("TooManyRequestsException", ""),  # the failure has the reason
    "queue_full": ("TooManyRequestsException", OVER_ALL),
    "queue_timeout": ("TooManyRequestsException", OVER_ALL),
    "host_full": ("TooManyRequestsException", OVER_ALL),
    "unknown_function": ("ResourceNotFoundException", ""),
    "headers_too_large": ("InvalidParameterValueException", ""),
    "start_failed": ("ServiceException", ""),
    "internal": ("ServiceException", ""),
}
_UNSUPPORTED = ("x-amz-tenant-id", "x-amz-durable-execution-name")
_IMPORTS = {"ImportError", "ModuleNotFoundError"}


class Invocations:
    """Calls functions of the store, and of the registry directory as well."""

    def __init__(self, catalog: Catalog, fleet: Fleet, events: Dispatcher) -> None:
        self._catalog, self._fleet, self._events = catalog, fleet, events

    async def invoke(self, request: Request, way: type[Invocation] | None = None) -> Answer | None:
        """Invoke. The answer comes from the function, or from what has kept it from answering, by a `way` of its kind."""
        name, qualifier = names.parse(request.names[0], request.query("Qualifier"))
        return await self._invoke(request, name, qualifier, way)

    async def emulated(self, request: Request) -> Answer | None:
        """Invoke under the name that AWS's runtime interface emulator has for the only function there is."""
        name = "function"
        if name not in self._fleet.functions:
            plain = [each for each in self._fleet.functions if ":" not in each]
            if len(plain) != 1:
                raise absent(
                    "Function not found: there is none of the name `function`, and not exactly one function in all"
                )
            name = plain[0]
        return await self._invoke(request, name, None)

    async def _invoke(
        self, request: Request, name: str, qualifier: str | None, way: type[Invocation] | None = None
    ) -> Answer | None:
        headers = request.call.headers
        kind = headers.get("x-amz-invocation-type", "RequestResponse")
        if kind not in ("RequestResponse", "Event", "DryRun"):
            raise invalid(f"InvocationType {kind[:50]!r}: expected RequestResponse, Event or DryRun")
        if kind == "Event" and way is not None:
            raise invalid("InvocationType Event: a stream of the response was asked for")
        if headers.get("x-amz-log-type", "None") not in ("None", "Tail"):
            raise invalid("LogType: expected None or Tail")
        for header in _UNSUPPORTED:
            if headers.get(header):
                raise invalid(f"{header} is not supported")
        context = _context(headers.get("x-amz-client-context", ""))
        number = self._number(name, qualifier)
        if kind == "DryRun":
            return Answer(204)
        told = Told(context, names.arn(name, qualifier), headers.get("x-amzn-trace-id"))
        if kind == "Event":
            return await self._accept(request, name, qualifier, told)
        function = await self._function(name, number)
        tail = headers.get("x-amz-log-type") == "Tail"
        invocation = (way or Invocation)(request, function, number, tail)
        invocation.run(told)
        return None

    async def _accept(self, request: Request, name: str, qualifier: str | None, told: Told) -> Answer:
        """Answer for an event once it is safe on the disk."""
        payload, most = request.call.body or b"{}", int(self._fleet.settings.events.payload)
        if len(payload) > most:
            raise ApiError(
                "RequestTooLargeException",
                f"{len(payload)} byte payload is too large for the Event invocation type (limit {most} bytes)",
            )
        try:
            msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ApiError("InvalidRequestContentException", "Could not parse request body into json") from None
        target = name if qualifier is None else f"{name}:{qualifier}"
        try:
            await self._events.add(target, request.call.id, payload, msgspec.json.encode(told))
        except QueueFull as error:
            raise ApiError("TooManyRequestsException", str(error)) from None
        return Answer(202)

    def _number(self, name: str, qualifier: str | None) -> str:
        if name not in self._catalog and name in self._fleet.functions and qualifier in (None, LATEST):
            return LATEST
        return self._catalog.resolve(name, qualifier)

    async def _function(self, name: str, number: str) -> Function:
        if number == LATEST and name in self._fleet.functions:
            return self._fleet.functions[name]
        try:
            return await self._catalog.function(name, number)
        except NotReady as error:
            raise ApiError(
                "ResourceConflictException", f"The operation cannot be performed at this time: {name}: {error}"
            ) from None


class Invocation:
    """The way back from one call."""

    def __init__(self, request: Request, function: Function, number: str, tail: bool) -> None:
        self._request, self._function, self._number = request, function, number
        self._tail = Tail() if tail else None
        self._inner: Call  # from when it is answered in parts
        self._head: Head | None = None
        self._parts = bytearray()

    def run(self, told: Told) -> None:
        """Call the function."""
        outer = self._request.call
        if outer.connection is None:
            return  # the client has gone while the function was made ready
        inner = Call(self, "POST", b"/", {}, outer.body, True)
        inner.id, inner.told = outer.id, told
        outer.on_abandon = lambda _: self._abandon(inner)
        if self._tail is not None:
            self._function.log.tails[inner.id] = self._tail
        self._function.submit(inner)

    def _abandon(self, inner: Call) -> None:
        self._function.log.tails.pop(inner.id, None)
        inner.abandon()

    def reply(self, call: Call, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Take what became of the call. What it has printed may be read only after this, in the same turn of the loop."""
        if self._tail is None:
            self._reply(call, status, body)
        else:
            asyncio.get_running_loop().call_soon(self._reply, call, status, body)

    # -- what comes with headers, or in parts ------------------------------------------------------------------------

    def answer(self, call: Call, head: Head, body: bytes) -> None:
        """Take what a web application answers, or a generator function whose parts were collected."""
        if self._function.contract in (WSGI, ASGI):
            self.reply(call, 200, JSON, gateway.fold(head, body), b"")
        else:
            self.reply(call, 200, JSON, body, b"")

    def begin(self, call: Call, _stream: Source | None, head: Head) -> bool:
        """Collect what comes in parts: Invoke answers with all of it."""
        self._inner, self._head = call, head
        return False

    def write(self, data: bytes) -> None:
        """Collect a part."""
        room = self._function.fleet.settings.http.reply
        if len(self._parts) + len(data) > int(room):
            self._inner.failure = calls.over(room)
        else:
            self._parts += data

    def finish(self, call: Call, _data: bytes) -> None:
        """Answer with what was collected."""
        if self._head is None or call.failure is not None:
            self.reply(call, 500, JSON, b"", b"")
        else:
            self.answer(call, self._head, bytes(self._parts))

    def cut(self, _visible: bool) -> None:
        """Answer with why it has ended early, for which the parts that came are given up."""
        self.reply(self._inner, 500, JSON, b"", b"")

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return those of the request."""
        return cast("Client", self._request.call.connection).addresses()

    def _reply(self, call: Call, status: int, body: bytes) -> None:
        headers = [("x-amzn-requestid", call.id), ("x-amz-executed-version", self._number)]
        if self._tail is not None:
            self._function.log.tails.pop(call.id, None)
            headers.append(("x-amz-log-result", base64.b64encode(self._tail.data).decode()))
        refused = self._refused(call, status)
        if refused is not None:
            self._request.fail(refused)
            return
        if call.failure is not None or status != 200:
            headers.append(("x-amz-function-error", "Unhandled"))
            body = self._failed(call, status)
        self._request.call.reply(200, JSON, body, responses.header_lines(tuple(headers)))

    def _refused(self, call: Call, status: int) -> ApiError | None:
        """Return the error of a call that never reached its function, None if it did."""
        failure = call.failure
        if failure is None or failure.kind not in _REFUSED or (failure.kind == "start_failed" and status == 500):
            return None
        return _refusal(failure)

    def _failed(self, call: Call, status: int) -> bytes:
        """Return the JSON about a call that failed in its function."""
        failure = call.failure or Failure("bad_reply", "", f"the reply has the status {status}")
        return _explained(failure, call.id, self._function)


def _refusal(failure: Failure) -> ApiError:
    """Return the error for a call that never reached its function."""
    kind, reason = _REFUSED[failure.kind]
    if failure.kind == "malformed":
        return ApiError(kind, "Could not parse request body into json")
    if failure.kind == "throttled":
        return ApiError(kind, "Rate Exceeded.", Reason=failure.name)
    return ApiError(kind, failure.message, **({"Reason": reason} if reason else {}))


def _explained(failure: Failure, request_id: str, function: Function) -> bytes:
    """Return the JSON that AWS's runtime for Python has for a call that failed in its function."""
    message, kind, trace = failure.message, failure.name, _stack(failure.traceback)
    handler = function.config.handler.replace(":", ".")
    if failure.kind == "init" and kind in _IMPORTS:
        kind, message = (
            "Runtime.ImportModuleError",
            f"Unable to import module '{handler.rpartition('.')[0]}': {message}",
        )
    elif failure.kind == "init" and kind == "SyntaxError":
        kind, message = (
            "Runtime.UserCodeSyntaxError",
            f"Syntax error in module '{handler.rpartition('.')[0]}': {message}",
        )
    elif failure.kind == "init" and kind in ("AttributeError", "TypeError", "ValueError") and not trace:
        kind, message = "Runtime.HandlerNotFound", f"Handler '{handler}' missing: {message}"
    elif failure.kind == "serialize":
        kind, message = "Runtime.MarshalError", f"Unable to marshal response: {message}"
    elif failure.kind in ("timeout", "start_timeout"):
        seconds = function.config.timeout if failure.kind == "timeout" else function.config.init_timeout
        kind, message = "Sandbox.Timedout", f"RequestId: {request_id} Error: Task timed out after {seconds:.2f} seconds"
    elif failure.kind in ("crash", "oom"):
        kind, message = "Runtime.ExitError", f"RequestId: {request_id} Error: {message}"
    elif failure.kind == "reply_too_large":
        kind = "Function.ResponseSizeTooLarge"
    elif failure.kind == "bad_reply":
        kind = "Runtime.InvalidResponse"
    shown: dict[str, object] = {"errorMessage": message, "errorType": kind, "requestId": request_id}
    if failure.kind in ("handler", "init", "serialize"):
        shown["stackTrace"] = trace
    return msgspec.json.encode(shown)


def _stack(traceback: str) -> list[str]:
    """Return the entries of a traceback, without the lines before and after."""
    entries = [each for each in _ENTRY.split(traceback) if each.startswith("  File ")]
    if entries:  # the last has the exception behind it
        lines = entries[-1].splitlines(keepends=True)
        entries[-1] = "".join(line for index, line in enumerate(lines) if index == 0 or line.startswith(" "))
    return entries


def _context(text: str) -> dict[str, object] | None:
    """Return a client context, which is JSON in base64."""
    if not text:
        return None
    try:
        if len(text) > _CONTEXT:
            raise ValueError(f"longer than {_CONTEXT} bytes")
        # Not by `json`, which takes surrogates: they could not be told to a function.
        found = msgspec.json.decode(base64.b64decode(text, validate=True), type=dict[str, object])
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ApiError("InvalidRequestContentException", f"ClientContext is not JSON in base64: {error}") from None
    return found
