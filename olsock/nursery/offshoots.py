"""Function zygotes below the nodes of a live tree, and what else a worker asks of one node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from olsock.errors import OlsockError, ZygoteError
from olsock.nursery.builds import MAX_DEPTH
from olsock.owned import Owned

if TYPE_CHECKING:
    from olsock.nursery.slots import Closure, Live
    from olsock.nursery.tree import ZygoteTree
    from olsock.zygote import Zygote


class Offshoot(Owned):
    """A zygote of one function, forked from a node of a tree. The node stays for as long as this is open."""

    def __init__(self, tree: ZygoteTree, above: Live, key: str, zygote: Zygote) -> None:
        """Take over a zygote, and its place below `above`."""
        self.zygote = zygote
        self.above = key  # of the node
        self._tree, self._live = tree, above
        self._own()

    def _end(self) -> None:
        try:
            with contextlib.suppress(OlsockError, OSError):
                self.zygote.close()
        finally:
            _give_back(self._tree, self._live)


def grow(
    tree: ZygoteTree,
    code: str | os.PathLike[str],
    handler: str,
    closure: Closure | None,
    imports: Mapping[str, float] | None = None,
    **options: Any,
) -> Offshoot:
    """Fork a zygote of one function from the best node that is ready and has room; options as for `Zygote.child`.

    It sees the packages of `closure` and no others. Takes as long as its module's import. Raises `ZygoteError` if that fails,
    or if no node is ready.
    """
    ranked, bound = tree._choices.ranked(closure, imports)
    packages = bound.lock.packages if bound is not None else frozenset[str]()
    with tree._lock:
        for choice in ranked:
            slot = tree._slots.get(choice.key)
            if slot is None or slot.live is None or not slot.usable() or not slot.node.packages <= packages:
                continue
            if slot.live.taken < slot.live.cells and slot.live.depth < MAX_DEPTH:
                live, key = slot.live, slot.key
                live.taken += 1
                live.children += 1
                break
        else:
            raise ZygoteError("no zygote is ready that it could be forked from")
    try:
        directories = [closure.directory] if closure is not None else []
        zygote = live.zygote.child(packages=directories, code=code, handler=handler, **options)
    except BaseException:
        _give_back(tree, live)
        raise
    return Offshoot(tree, live, key, zygote)


def _give_back(tree: ZygoteTree, live: Live) -> None:
    with tree._lock:
        live.taken -= 1
        live.children -= 1
        if not tree._closed:
            tree._nudge()


def best(tree: ZygoteTree, closure: Closure | None, imports: Mapping[str, float] | None = None) -> str:
    """Return the key of the node that would be best for a function, whether it is ready or not."""
    return tree._choices.ranked(closure, imports)[0][0].key


def keep_blanks(tree: ZygoteTree, key: str, count: int) -> int:
    """Have a node keep so many handlers forked ahead; return how many it kept before, -1 if it is not ready."""
    with tree._lock:
        slot = tree._slots.get(key)
        zygote = slot.live.zygote if slot is not None and slot.live is not None else None
    if zygote is None:
        return -1
    before = zygote.blanks
    if before != count:
        zygote.blanks = count
    return before
