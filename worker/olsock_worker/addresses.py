"""The addresses of this worker as its clients are told them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.calls import Call

_EVERYWHERE = ("0.0.0.0", "::")
_PLACE = "{id}"


class Addresses:
    """What URLs begin with: the address that is listened on, unless the settings say otherwise.

    Of a worker that listens on every address that it has it is the one by which the client has come.
    """

    def __init__(self, calls: tuple[str, int], control: tuple[str, int], url_base: str) -> None:
        """`calls` and `control` are host and port of where functions are called, and of where the API is."""
        self._calls, self._control, self._url_base = calls, control, url_base

    def function_url(self, call: Call, number: str) -> str:
        """Return a function URL by its id."""
        base = self._url_base
        if _PLACE in base:
            return base.replace(_PLACE, number).rstrip("/") + "/"
        return f"{base.rstrip('/') or _base(self._calls, call)}/url/{number}/"

    def own(self, call: Call, path: str) -> str:
        """Return the address of a path that is served beside the API."""
        return _base(self._control, call) + path


def _base(address: tuple[str, int], call: Call) -> str:
    host, port = address
    if host in _EVERYWHERE:
        host = _reached(call) or ("127.0.0.1" if host == _EVERYWHERE[0] else "::1")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reached(call: Call) -> str:
    """Return the address of ours that a client has reached, "" if it has come by a socket without one."""
    addresses = getattr(call.connection, "addresses", None)
    try:
        return str(addresses()[1][0]) if addresses is not None else ""
    except (TypeError, ValueError, IndexError):
        return ""
