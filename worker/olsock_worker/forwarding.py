"""What a sandbox is told of a request. Web applications get its headers as they came, but for what the front answers for."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from time import time
from typing import TYPE_CHECKING, cast

import msgspec

from olsock.runtime import wire
from olsock_worker import gateway
from olsock_worker.handshakes import Handshake, RefusedError, wishes
from olsock_worker.heads import HOP_BY_HOP, tokens

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Client
    from olsock_worker.ol_yaml import FunctionConfig

_FORWARDED = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
_NEEDED = frozenset(("host", "content-length"))  # whatever `Connection` says


class EventMeta(msgspec.Struct):
    """Metadata of a REQUEST frame for event handlers."""

    id: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    deadline_ms: int  # Unix time


class _ToldMeta(EventMeta, omit_defaults=True):
    """The same with what only calls of the control API have."""

    client_context: dict[str, object] | None = None
    arn: str | None = None
    trace: str | None = None


class WebMeta(msgspec.Struct, omit_defaults=True):
    """Metadata of a REQUEST frame for WSGI and ASGI applications."""

    id: str
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    deadline_ms: int  # Unix time
    web: bool
    scheme: str
    http_version: str
    server: tuple[str, int]
    client: tuple[str, int]
    type: str = ""  # "websocket": a handshake
    subprotocols: list[str] | None = None
    root_path: str | None = None  # what it is mounted at for this request; None: at what its instance was told


_encode = msgspec.json.Encoder().encode


def event(call: Call, deadline_ms: int) -> EventMeta:
    """Return what an event handler is told of a call."""
    told = call.told
    if told is not None and call.visit is not None:
        call.visit.as_event(call)
    of_call = call.id, call.method, call.path, call.query, call.headers, deadline_ms
    if told is None:
        return EventMeta(*of_call)
    return _ToldMeta(*of_call, told.client_context, told.arn, told.trace)


def request(call: Call, asgi: bool, config: FunctionConfig, proxies: tuple[str, ...]) -> list[bytes]:
    """Return a call as frames for a web application, as a WebSocket's handshake if it is one and the application can.

    What `proxies` say of the request that came to them is believed. Raises `RefusedError`.
    """
    visit = call.visit
    if call.told is not None and visit is None:
        gateway.unfold(call)
    elif asgi and wishes(call):
        call.handshake = Handshake(call)
        if visit is not None:
            visit.step_aside(call)
    timeout = config.timeout if call.handshake is None else config.websocket_timeout
    client, server = cast("Client", call.connection).addresses()
    trusted = _trusted(client[0], proxies)
    meta = WebMeta(
        id=call.id,
        method=call.method,
        path=call.path,
        query=call.query,
        headers=headers(call, client[0], trusted),
        deadline_ms=int((time() + timeout) * 1000),
        web=True,
        scheme="https" if trusted and call.headers.get(_FORWARDED[1]) == "https" else "http",
        http_version=call.version,
        server=server,
        client=client,
        root_path=None if visit is None else visit.mount,
    )
    if call.handshake is not None:
        meta.type, meta.subprotocols = "websocket", call.handshake.subprotocols
    data = _encode(meta)
    if len(data) > wire.MAX_META:
        raise RefusedError(431, "headers_too_large", "request line and headers too large for a function")
    return wire.split_message(wire.REQUEST, call.number, data, call.body)


def told(call: Call, address: str, proxies: tuple[str, ...]) -> tuple[str, list[tuple[str, str]]]:
    """Return the address of the client, as far as anybody may be believed, and the headers that an event has of a request."""
    trusted = _trusted(address, proxies)
    given = call.headers.get(_FORWARDED[0], "").rpartition(",")[2].strip() if trusted else ""
    return given or address, headers(call, address, trusted)


@lru_cache(1024)
def _trusted(address: str, proxies: tuple[str, ...]) -> bool:
    return any(ip_address(address) in ip_network(each) for each in proxies)


def headers(call: Call, address: str, trusted: bool) -> list[tuple[str, str]]:
    """Return the headers in their order, those that come twice twice, without hop-by-hop ones, with X-Forwarded-*.

    Of these, what a proxy that is not `trusted` has sent is dropped: anybody can write them.
    """
    given = call.headers
    # To WSGI an underscore is a hyphen, so that x_forwarded_for would be taken for ours: no header with one is passed on.
    dropped = HOP_BY_HOP | (tokens(given.get("connection", "")) - _NEEDED) | {"expect", *_FORWARDED}
    found = [
        (name, value)
        for name, value in call.fields()
        if name not in dropped and not name.startswith("proxy-") and "_" not in name
    ]
    if "transfer-encoding" in given:
        found.append(("content-length", str(len(call.body))))  # it came in chunks, and is whole now
    before = [given.get(name, "") if trusted else "" for name in _FORWARDED]
    found.append((_FORWARDED[0], f"{before[0]}, {address}" if before[0] else address))
    found.append((_FORWARDED[1], before[1] or "http"))
    host = before[2] or given.get("host", "")
    if host:
        found.append((_FORWARDED[2], host))
    return found
