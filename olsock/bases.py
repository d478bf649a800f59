"""Base trees: roots that the spawner keeps mounted, for sandboxes to copy."""

from __future__ import annotations

import threading
from collections import OrderedDict

from olsock import rootfs
from olsock.rootfs import Recipe
from olsock.spawner import Spawner

KEPT = 64  # sandboxes have copies, so that the least recently used tree can go at any time


class Bases:
    """The trees of one spawner, by recipe, built on first use."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self._lock = threading.Lock()
        self._places: OrderedDict[Recipe, str] = OrderedDict()
        self._built = 0

    def place(self, recipe: Recipe) -> str:
        """Return where the spawner has the tree of `recipe`. Sandboxes that are cloned from now on can copy it."""
        with self._lock:
            place = self._places.get(recipe)
            if place is None:
                place = f"/b/{self._built}"
                rootfs.build_base(self._spawner, recipe, place)
                self._places[recipe] = place
                self._built += 1
                if len(self._places) > KEPT:
                    self._spawner.detach(self._places.popitem(last=False)[1])
            else:
                self._places.move_to_end(recipe)
            return place
