"""What comes of a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import olsock


@dataclass(frozen=True, slots=True)
class Made:
    """An instance that was forked: from which zygote, and what to call when it has gone."""

    function: olsock.Function
    key: str
    release: Callable[[], None]
