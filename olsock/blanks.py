"""Blank sandboxes: an init in fresh namespaces and cgroup, waiting to be told what it is.

Making one costs about a millisecond, half of it the network namespace; telling it what it is costs a fifth of that. A blank
knows nothing of who will use it and has run no code but ours, so any sandbox of this process may be made of it, once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from olsock import identity
from olsock.bases import Bases
from olsock.box import Box
from olsock.cgroups import Leaf, Tree
from olsock.spawner import Spawner
from olsock.spec import Limits, SandboxSpec
from olsock.stock import Stock

REMOVAL_TIMEOUT = 20.0


@dataclass(slots=True)
class Blank:
    """A cloned init with what it lives in. `bases`: how many base trees there were to be copied when it was cloned."""

    block: identity.Block
    leaf: Leaf
    box: Box
    bases: int

    def remove(self) -> None:
        """Kill everything and remove every trace. Works on a frozen sandbox."""
        self.leaf.kill()
        self.box.close()
        self.leaf.remove(REMOVAL_TIMEOUT)
        self.block.release()


class Blanks:
    """Makes blanks, and keeps some with a network namespace of their own; one on the host's network is made to order."""

    def __init__(self, tree: Tree, spawner: Spawner, bases: Bases, size: int) -> None:
        self._tree, self._spawner, self._bases = tree, spawner, bases
        self._numbers = itertools.count(1)
        self._limits = SandboxSpec().limits  # of those that wait: what was asked for last
        self._stock: Stock[Blank] = Stock(self._make, Blank.remove, size, "olsock-blanks")

    def _make(self) -> Blank:
        return self._clone(self._limits, network=True)

    def _clone(self, limits: Limits, *, network: bool) -> Blank:
        """Clone one; whatever fails, nothing is left."""
        block = identity.claim()
        leaf: Leaf | None = None
        try:
            leaf = self._tree.leaf(f"s-{next(self._numbers)}")
            leaf.set(limits)
            bases = self._bases.built
            box = Box(self._spawner, [(0, block.base, block.size)], leaf, network=network)
        except BaseException:
            if leaf is not None:
                leaf.remove(REMOVAL_TIMEOUT)
            block.release()
            raise
        return Blank(block, leaf, box, bases)

    def take(self, limits: Limits, base: str | None, *, network: bool) -> Blank:
        """Return a blank with these limits that can copy the tree `base`."""
        self._limits = limits
        blank = self._stock.take() if network else None
        if blank is not None and base is not None and Bases.number(base) >= blank.bases:
            blank.remove()  # cloned before the tree was there
            blank = None
        if blank is None:
            return self._clone(limits, network=network)
        try:
            blank.leaf.set(limits)
        except BaseException:
            blank.remove()
            raise
        return blank

    def close(self) -> None:
        """Remove those that wait."""
        self._stock.close()
