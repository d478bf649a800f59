"""How much a test of endurance does: seconds' worth in the suite, what the fault table asks for with OLSOCK_LONG=1."""

from __future__ import annotations

import os
from typing import TypeVar

Number = TypeVar("Number", int, float)

LONG = os.environ.get("OLSOCK_LONG") == "1"
TIMEOUT = 1800  # seconds that such a test may take then


def size(quick: Number, long: Number) -> Number:
    """Return how many, or for how many seconds."""
    return long if LONG else quick
