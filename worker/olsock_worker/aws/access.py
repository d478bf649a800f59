"""Who may use the API: whoever can reach a loopback address, unless credentials are configured; then who has them.

On another address nobody may without. A web page in a browser on this host reaches the loopback too, by a name of its own or from
an origin of its own, and is told apart by either.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from functools import partial
from typing import TYPE_CHECKING

from olsock_worker.aws import signatures
from olsock_worker.aws.errors import ApiError

if TYPE_CHECKING:
    from olsock_worker.calls import Call
    from olsock_worker.settings import Credentials

_LARGE = 1 << 20  # bytes of a body that is hashed in a thread
_BEARER = "bearer "


class Access:
    """Lets requests pass, or raises `ApiError`."""

    def __init__(self, credentials: Credentials, address: str) -> None:
        self._keys, self._token = credentials.keys, credentials.token
        self._loopback = _is_loopback(address)

    async def check(self, call: Call, path: bytes, query: bytes) -> None:
        """Check one request that came in over the network."""
        if not self._keys and not self._token:
            self._check_neighbour(call)
            return
        given = call.headers.get("authorization", "")
        if given[: len(_BEARER)].lower() == _BEARER and self._token:
            if not hmac.compare_digest(given[len(_BEARER) :].strip().encode("latin-1"), self._token.encode()):
                raise ApiError("UnrecognizedClientException", "The bearer token is not the one of the configuration.")
        elif given.startswith(signatures.SCHEME) and self._keys:
            await self.signed(call, path, query)
        else:
            accepted = [("a version 4 signature", self._keys), ("a bearer token", self._token)]
            words = " or ".join(word for word, has in accepted if has)
            raise ApiError("MissingAuthenticationTokenException", f"Authorization header missing: expected {words}")

    async def signed(self, call: Call, path: bytes, query: bytes) -> str:
        """Return the key that a request is signed with; without one of the configuration nobody can sign."""
        work = partial(signatures.verify, call, path, query, self._keys, time.time())
        if len(call.body) > _LARGE:
            return await asyncio.get_running_loop().run_in_executor(None, work)
        return work()

    def _check_neighbour(self, call: Call) -> None:
        if not self._loopback:
            raise ApiError(
                "AccessDeniedException", "this worker has no `credentials`, and is not on a loopback address"
            )
        host = call.headers.get("host", "").rpartition("@")[2]
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name and not _is_loopback(name):  # HTTP/1.0 may have none, and browsers always do
            raise ApiError(
                "AccessDeniedException", f"host {name[:100]!r} is no loopback address: configure `credentials`"
            )
        if any(each in call.headers for each in _OF_PROXIES):
            raise ApiError("AccessDeniedException", "this came through a proxy: configure `credentials`")
        if "origin" in call.headers or call.headers.get("sec-fetch-site", "none") != "none":
            raise ApiError("AccessDeniedException", "web pages may not use this API: configure `credentials`")


_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def _is_loopback(name: str) -> bool:
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
