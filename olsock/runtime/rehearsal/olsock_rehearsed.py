"""The function of a rehearsal: see ../rehearse.py."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def f(event: "Any") -> "Any":
    """Give back what comes."""
    return event
