"""Where requests come in, and what is served there: everything, or either calls or control where these have addresses apart."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from olsock_worker.urls import HOST, PREFIX

if TYPE_CHECKING:
    from olsock_worker.aws.access import Access
    from olsock_worker.calls import Call

RUN = b"/run/"
_INVOKE = re.compile(
    rb"/20\d\d-\d\d-\d\d/functions/[^/]+/(?:invocations|response-streaming-invocations|invoke-async/?)"
)


class Door(NamedTuple):
    """One of the sockets that are listened on."""

    access: Access | None  # who may use the API; None: whoever can open the socket
    calls: bool = True  # whether functions are called here
    control: bool = True  # whether all else is served here

    def admits(self, call: Call, path: bytes) -> bool:
        """Say whether a path is served here."""
        if self.calls and self.control:
            return True
        is_call = (
            path.startswith((RUN, PREFIX)) or HOST in call.headers.get("host", "") or bool(_INVOKE.fullmatch(path))
        )
        return self.calls if is_call else self.control
