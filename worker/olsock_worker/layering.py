"""What functions find at /opt: the contents of their layers in one tree, `.layers/<digest>` below the code that runs.

The tree is made of links to contents of the store. Versions with the same layers in the same order share one, and it goes with
the last of them that is served or still runs.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olsock_worker.store.code import CodeStore

PLACE = ".layers"


def merged(digests: Sequence[str]) -> str:
    """Return the name of the tree for layers in their order; "" for none."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else ""


class Layering:
    """Makes and removes trees of layers below `code_fd`. Blocks on the disk: to be used in threads, one at a time."""

    def __init__(self, code: CodeStore, code_fd: int) -> None:
        self._code, self._code_fd = code, code_fd
        self._used: dict[str, str] = {}  # tree by the path of the version that has it

    def make(self, path: str, digests: Sequence[str]) -> str:
        """Make the tree for a version that is at `path`; return its name."""
        name = merged(digests)
        if name:
            self._code.link(digests, self._code_fd, f"{PLACE}/{name}")
            self._used[path] = name
        return name

    def collect(self, paths: Iterable[str]) -> None:
        """Remove the trees that no version at any of these paths has."""
        wanted = set(paths)
        gone = [path for path in self._used if path not in wanted]
        names = {self._used.pop(path) for path in gone} - set(self._used.values())
        for name in names:
            shutil.rmtree(f"{PLACE}/{name}", ignore_errors=True, dir_fd=self._code_fd)
