"""What one library process owns on its host: a run directory, a cgroup subtree, a spawner and the base trees in it."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections import OrderedDict
from pathlib import Path

from olsock import rootfs
from olsock.cgroups import Tree
from olsock.errors import UnsupportedError
from olsock.leftovers import Instance
from olsock.rootfs import Recipe
from olsock.spawner import Spawner

MAX_BASES = 64  # base trees kept; sandboxes have copies, so that the least recently used can go at any time


class Host:
    """Made on first use, ended with the process; everything that is made hangs below it, so that nothing is left."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise UnsupportedError("olsock needs root to make sandboxes (user namespaces with id ranges, cgroups, mounts)")
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._bases: OrderedDict[Recipe, str] = OrderedDict()
        self.instance = Instance.create()
        try:
            self.tree = Tree.create(self.instance.name)
            self.instance.record_cgroups(self.tree.paths)
            root = Path(self.instance.directory, "root")
            root.mkdir(mode=0o700)
            self.spawner = Spawner(os.fspath(root))
        except BaseException:
            if hasattr(self, "tree"):
                self.tree.close()
            self.instance.close()
            raise

    def number(self) -> int:
        """A number that this host has not given before; names of cgroups are made of it."""
        return next(self._numbers)

    def base(self, recipe: Recipe) -> str:
        """Return where the spawner keeps the tree of `recipe`, building it on first use."""
        with self._lock:
            place = self._bases.get(recipe)
            if place is None:
                place = f"/b/{self.number()}"
                rootfs.build_base(self.spawner, recipe, place)
                self._bases[recipe] = place
                if len(self._bases) > MAX_BASES:
                    self.spawner.detach(self._bases.popitem(last=False)[1])
            else:
                self._bases.move_to_end(recipe)
            return place

    def close(self) -> None:
        """End every sandbox of this process and remove what was made for them."""
        self.tree.close()
        self.spawner.close()
        self.instance.close()


_current: Host | None = None
_lock = threading.Lock()


def current() -> Host:
    """Return this process's host; a forked child gets one of its own and leaves its parent's alone."""
    global _current
    host = _current
    if host is None or host.pid != os.getpid():
        with _lock:
            if _current is None or _current.pid != os.getpid():
                _current = Host()
            host = _current
    return host


@atexit.register
def close() -> None:
    """Close this process's host, if it has one. Runs at exit; harmless to call before."""
    global _current
    host, _current = _current, None
    if host is not None and host.pid == os.getpid():
        host.close()
