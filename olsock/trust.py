"""Trust domains: what each zygote has of its own, so that the package code it runs can touch nothing of anybody else.

A block of ids and a user namespace for them, a pid namespace with a C init that outlives the zygote, mounts, a cgroup below
which it may clone. The domain of a zygote that was forked from another is nested in that one's: its user namespace, because
only who has rights in a namespace can enter one below it, and its cgroups, because a clone needs rights on the common
ancestor. Rights go down, never up and never sideways: what runs above is part of what runs below, as its memory is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from olsock import cgroups, identity, spawner
from olsock._core import process, seccomp
from olsock.box import (
    CAP_NET_ADMIN,
    CAP_SETGID,
    CAP_SETPCAP,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    INIT_CAPABILITIES,
    Box,
    Mounts,
    Setup,
    limits,
)
from olsock.errors import ZygoteError
from olsock.host import Host
from olsock.spec import Limits

CAPABILITIES = CAP_SYS_ADMIN | CAP_SETGID | CAP_SETUID
"""What a zygote keeps in its own user namespace: to mount a handler's trees and proc, and to give up its id."""

CELL = 4096  # ids of a nested zygote: as many handlers as that, less the thousand that systems keep to themselves
NOFILE = 1024
TMPFS_SIZE = 64 * 1024 * 1024
KEEP_ROOT = "/"  # csrc/spawner/root.c: a nested init has its root already

ENTERED = (
    ("user", spawner.NEWUSER),
    ("mnt", spawner.NEWNS),
    ("pid", spawner.NEWPID),
    ("ipc", spawner.NEWIPC),
    ("uts", spawner.NEWUTS),
    ("net", spawner.NEWNET),
)
"""The namespaces of its init that a nested zygote enters; the user namespace first, whose rights the others take."""


@dataclass(slots=True)
class Room:
    """Ids of a zygote (`own`, from 0 on inside) and, after them, cells for those that will be forked from it."""

    base: int  # the host's id for 0
    own: int
    cells: int
    _used: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> int:
        """How many ids are mapped."""
        return self.own + self.cells * CELL

    def take(self, descendants: int) -> tuple[int, Room]:
        """Return (its first id in this user namespace, room) for a zygote with that many below it."""
        count = descendants + 1
        with self._lock:
            for first in range(self.cells - count + 1):
                wanted = range(first, first + count)
                if self._used.isdisjoint(wanted):
                    self._used.update(wanted)
                    offset = self.own + first * CELL
                    return offset, Room(self.base + offset, CELL, descendants)
        raise ZygoteError(
            f"no room for a zygote with {descendants} below it: {self.cells} were planned for (descendants=), "
            f"{len(self._used)} are taken",
            "room",
        )

    def give(self, room: Room) -> None:
        """Take back what `take` gave."""
        first = (room.base - self.base - self.own) // CELL
        with self._lock:
            self._used.difference_update(range(first, first + room.cells + 1))


class TrustDomain:
    """A zygote's own ids, cgroups and init. Closing it ends everything in it, and in the domains nested in it."""

    def __init__(
        self, name: str, room: Room, group: cgroups.Domain, give_back: Callable[[], None], above: TrustDomain | None
    ) -> None:
        self.name, self.room, self.group, self.above = name, room, group, above
        self._give_back = give_back
        self.box: Box | None = None

    @classmethod
    def root(cls, host: Host, name: str, descendants: int) -> Self:
        """Make one that is nested in none."""
        block = identity.claim(1 + -(-descendants * CELL // identity.SIZE))
        try:
            room = Room(block.base, identity.SIZE, descendants)
            return cls(name, room, host.tree.domain(name), block.release, None)
        except BaseException:
            block.release()
            raise

    def nested(self, name: str, descendants: int) -> TrustDomain:
        """Make one within this one."""
        offset, room = self.room.take(descendants)
        try:
            made = TrustDomain(name, room, self.group.domain(name), lambda: self.room.give(room), self)
        except BaseException:
            self.room.give(room)
            raise
        made._offset = offset
        return made

    _offset = 0  # of its ids in the user namespace above

    @property
    def witness(self) -> Box:
        """The init to which orphans come: the outermost, as every clone of a zygote has its maker's parent."""
        domain = self
        while domain.above is not None:
            domain = domain.above
        assert domain.box is not None
        return domain.box

    def open(self, host: Host, root: str, limits_: Limits, over: Mounts, *, network: bool) -> None:
        """Make its cgroups and its init, with `over` mounted over the base tree `root` (or over the root above)."""
        self.group.delegate(self.room.base)
        # Init stays out of the zygote's cgroup: it has to outlive the zygote for the handlers' sake.
        self.init_leaf = self.group.leaf("init")
        self.leaf = self.group.leaf("zygote")
        self.leaf.set(limits_)
        inside: list[int] = []
        first = self.room.base
        try:
            if self.above is not None:
                assert self.above.box is not None
                inside = self.above.namespaces(("user", "pid", "mnt"))
                self.leaf.delegate(self.above.room.base)  # the zygote above clones into it
                first, root = self._offset, KEEP_ROOT
            maps = [(0, first, self.room.size)]
            self.box = box = Box(host.spawner, maps, self.init_leaf, network=network, inside=inside)
        finally:
            process.close_all(*inside)
        box.setup(
            Setup(
                root=root,
                mounts=over,
                hostname="sandbox",
                rlimits=limits(NOFILE, None),
                filter=seccomp.compile("zygote"),
                filter_init=False,  # init makes network namespaces, which the zygote's filter does not allow
                capabilities=INIT_CAPABILITIES | CAPABILITIES | CAP_SETPCAP | CAP_NET_ADMIN,
                network=network,
                # With one rooted at its own leaf, nsdelegate refuses births elsewhere (ENOENT); handlers get theirs.
                cgroup=False,
            )
        )

    def namespaces(self, kinds: tuple[str, ...]) -> list[int]:
        """Return new fds of namespaces of its init, opened with the host's rights."""
        assert self.box is not None
        opened: list[int] = []
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            for kind in kinds:
                opened.append(process.namespace(proc, self.box.pid, kind))
        except BaseException:
            process.close_all(*opened)
            raise
        finally:
            os.close(proc)
        return opened

    def close(self) -> None:
        """End every process in it and remove it. Its ids go last, when nothing can have them."""
        self.group.kill()
        if self.box is not None:
            self.box.close()
        self.group.remove()
        self._give_back()


def own_mounts() -> Mounts:
    """What every zygote has of its own over its root."""
    over = Mounts()
    over.proc(())  # unmasked: the kernel refuses handlers a proc of their own below a masked one
    over.tmpfs("/tmp", TMPFS_SIZE, 4096)
    over.tmpfs("/dev/shm", TMPFS_SIZE, 4096)
    return over
