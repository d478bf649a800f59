"""What a handler's runtime tells once it is ready: what its import took, what that imported and what it used.

The twin of olsock/runtime/measure.py. It comes from a sandbox, so a figure may be a lie; its form and its bounds may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_IMPORTS = 500
MAX_USED = 64
# Whitespace and control characters have no place in the names of modules, nor in what they are printed to.
_Module = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f\x7f-\x9f]+\Z")]
_Package = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\s.\x00-\x1f\x7f-\x9f]+\Z")]
_Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
_Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]


class Imported(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A module that was imported from one of the packages."""

    module: _Module
    package: _Package  # its top-level module
    self_ms: _Milliseconds  # without what it imported in turn
    total_ms: _Milliseconds
    bytes: _Bytes  # by which resident memory grew; 0 where another module's import was the cause of this one


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A handler is imported."""

    init_ms: _Milliseconds
    imports: Annotated[tuple[Imported, ...], Meta(max_length=MAX_IMPORTS)] = ()  # the longest ones first
    used: Annotated[tuple[_Package, ...], Meta(max_length=MAX_USED)] = ()  # of what its zygote had imported
    contract: Literal["event", "stream", "wsgi", "asgi"] = "event"  # how it is called


decode: Callable[[bytes], Ready] = msgspec.json.Decoder(Ready).decode
"""Read READY's metadata; raises `ValueError`."""


def imports(report: object) -> tuple[Imported, ...]:
    """Read a list of imports that a zygote has reported, already parsed; raises `ValueError`."""
    found: tuple[Imported, ...] = msgspec.convert(report, Annotated[tuple[Imported, ...], Meta(max_length=MAX_IMPORTS)])
    return found
