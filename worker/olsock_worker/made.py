"""What comes of a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import olsock
from olsock_worker.broker_protocol import Origin


@dataclass(frozen=True, slots=True)
class Made:
    """A new instance: from which zygote, what it began from, and what to call when it has gone."""

    function: olsock.Function
    key: str
    kind: Origin
    release: Callable[[], None]

    @property
    def origin(self) -> Origin:
        """What it began from."""
        return "blank" if self.function.was_blank else self.kind
