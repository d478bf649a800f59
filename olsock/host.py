"""What one library process owns on its host: a run directory, a cgroup subtree, a spawner and the base trees in it."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from pathlib import Path

from olsock.bases import Bases
from olsock.blanks import Blanks
from olsock.cgroups import Tree
from olsock.errors import UnsupportedError
from olsock.leftovers import Instance
from olsock.spawner import Spawner

BLANKS = 1  # sandboxes of each kind in use that are made ahead; OLSOCK_BLANKS overrides it


class Host:
    """Made on first use, ended with the process; everything that is made hangs below it, so that nothing is left."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise UnsupportedError(
                "olsock needs root to make sandboxes (user namespaces with id ranges, cgroups, mounts)"
            )
        self.pid = os.getpid()
        self._numbers = itertools.count(1)
        self.instance = Instance.create()
        try:
            self.tree = Tree.create(self.instance.name)
            self.instance.record_cgroups(self.tree.paths)
            root = Path(self.instance.directory, "root")
            root.mkdir(mode=0o700)
            self._spawn()
        except BaseException:
            if hasattr(self, "tree"):
                self.tree.close()
            self.instance.close()
            raise

    def _spawn(self) -> None:
        self.spawner = Spawner(os.path.join(self.instance.directory, "root"))
        self.bases = Bases(self.spawner)
        size = int(os.environ.get("OLSOCK_BLANKS", BLANKS))
        self.blanks = Blanks(self.tree, self.spawner, size, self.number)

    def revive(self) -> None:
        """Start another spawner in place of one that died; sandboxes live on without it."""
        self.blanks.close()
        self.spawner.close()
        self._spawn()

    def number(self) -> int:
        """A number that this host has not given before; names of cgroups are made of it."""
        return next(self._numbers)

    def close(self) -> None:
        """End every sandbox of this process and remove what was made for them."""
        self.blanks.close()
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
    if not host.spawner.alive:
        with _lock:
            if not host.spawner.alive:
                host.revive()
    return host


@atexit.register
def close() -> None:
    """Close this process's host, if it has one. Runs at exit; harmless to call before."""
    global _current
    host, _current = _current, None
    if host is not None and host.pid == os.getpid():
        host.close()
