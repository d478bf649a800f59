"""Open what the front has written, from the privileged side: it owns those directories, so no link in them is followed."""

from __future__ import annotations

import os

import olsock
from olsock._core import mounts


def open_beneath(root_fd: int, path: str, flags: int, field: str) -> int:
    """Open `path` below a directory. Raises `SpecError` naming `field` for what is no path."""
    if not path or path.startswith("/") or "\0" in path:
        raise olsock.SpecError(field, path, "a path below the store")
    return mounts.resolve(
        root_fd,
        path,
        flags | os.O_CLOEXEC,
        mounts.BENEATH | mounts.NO_SYMLINKS | mounts.NO_MAGICLINKS,
    )
