"""Sandboxes made ahead: an init in fresh namespaces and cgroup, set up as the last ones like it were asked to be.

Making one takes about a millisecond and a half, a third of it the network namespace; handing one out takes a tenth of that. It
has run no code but ours, and is handed out once, to whoever asks for exactly the same set-up; limits are set then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from olsock import identity
from olsock.box import Box, Setup
from olsock.cgroups import Leaf, Tree
from olsock.spawner import Spawner
from olsock.spec import Limits
from olsock.stock import Stock

REMOVAL_TIMEOUT = 20.0


KINDS = 4  # different set-ups of which a stock is kept; the least recently used goes


@dataclass(slots=True)
class Blank:
    """A cloned init with what it lives in."""

    block: identity.Block
    leaf: Leaf
    box: Box

    def remove(self) -> None:
        """Kill everything and remove every trace. Works on a frozen sandbox."""
        self.leaf.kill()
        self.box.close()
        self.leaf.remove(REMOVAL_TIMEOUT)
        self.block.release()


class Blanks:
    """Makes sandboxes up to their first command: to order, or from a stock of `size` of each kind in use."""

    def __init__(self, tree: Tree, spawner: Spawner, size: int, number: Callable[[], int]) -> None:
        self._tree, self._spawner, self._size, self._number = tree, spawner, size, number
        self._lock = threading.Lock()
        self._stocks: OrderedDict[bytes, Stock[Blank]] = OrderedDict()

    def clone(self, limits: Limits, *, network: bool) -> Blank:
        """Clone an init that waits for its set-up; whatever fails, nothing is left."""
        block = identity.claim()
        leaf: Leaf | None = None
        try:
            leaf = self._tree.leaf(f"s-{self._number()}")
            leaf.set(limits)
            return Blank(block, leaf, Box(self._spawner, [(0, block.base, block.size)], leaf, network=network))
        except BaseException:
            if leaf is not None:
                leaf.remove(REMOVAL_TIMEOUT)
            block.release()
            raise

    def make(self, limits: Limits, setup: Setup) -> Blank:
        """Make a sandbox to order."""
        blank = self.clone(limits, network=setup.network)
        try:
            blank.box.setup(setup)
        except BaseException:
            blank.remove()
            raise
        return blank

    def take(self, limits: Limits, setup: Setup) -> Blank:
        """Return a sandbox that is set up like this, from the stock if there is one."""
        kind, fds = setup.pack()
        blank = None if fds or not self._size else self._stock(kind, limits, setup).take()
        if blank is None:
            return self.make(limits, setup)
        try:
            blank.leaf.set(limits)
        except BaseException:
            blank.remove()
            raise
        return blank

    def _stock(self, kind: bytes, limits: Limits, setup: Setup) -> Stock[Blank]:
        dropped = None
        with self._lock:
            stock = self._stocks.get(kind)
            if stock is None:
                stock = Stock(lambda: self.make(limits, setup), Blank.remove, self._size, "olsock-blanks")
                self._stocks[kind] = stock
                if len(self._stocks) > KINDS:
                    dropped = self._stocks.popitem(last=False)[1]
            self._stocks.move_to_end(kind)
        if dropped is not None:
            dropped.close()
        return stock

    def close(self) -> None:
        """Remove those that wait."""
        while self._stocks:
            self._stocks.popitem()[1].close()
