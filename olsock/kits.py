"""What a handler will need, made before it is asked for: cgroup, network namespace, tmpfs and an id.

Together they cost more than the fork itself (a network namespace alone about 0.4 ms), and none depends on the function.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from olsock._core import mounts, process
from olsock.box import SHM_SIZE
from olsock.cgroups import Leaf
from olsock.endpoints import Endpoints
from olsock.errors import OlsockError, ZygoteError
from olsock.spec import FunctionSpec, Limits, SandboxSpec
from olsock.stock import Stock
from olsock.trust import TrustDomain

CHECK_AFTER = 0.25  # seconds; a handler takes about a millisecond to enter
FIRST_ID = 1000
LAST_ID = 65000

Tmpfs = tuple[int, int]  # bytes and inodes of /tmp; /dev/shm has as many inodes, and no more bytes than SHM_SIZE


@dataclass(slots=True)
class Kit:
    """One handler's own resources. `release` removes all of them."""

    owner: Kits
    leaf: Leaf
    cgroup: int
    tasks: list[int]  # of version 1, for the handler to enter
    netns: int
    tmp: int
    shm: int
    tmpfs: Tmpfs
    uid: int
    ends: Endpoints | None = None  # until a handler has them
    released: bool = False

    def close_fds(self) -> None:
        """Close what was handed over; idempotent."""
        process.close_all(self.cgroup, *self.tasks, self.netns, self.tmp, self.shm)
        self.tasks = []
        self.cgroup = self.netns = self.tmp = self.shm = -1

    def release(self) -> None:
        """Remove the cgroup (killing who is in it) and give the id back."""
        self.released = True
        self.close_fds()
        if self.ends is not None:
            self.ends.close()
        self.leaf.remove()
        self.owner.free(self.uid)


class Kits:
    """A small stock of kits for one zygote, refilled by a thread after each use."""

    def __init__(self, domain: TrustDomain, *, spare: int, network: bool, separate_stderr: bool = False) -> None:
        assert domain.box is not None
        self._group, self._box, self._room = domain.group, domain.box, domain.room
        self._network, self._separate_stderr = network, separate_stderr
        self._last_id = min(LAST_ID, self._room.own - 1)
        self._lock = threading.Lock()
        self._next_id = FIRST_ID
        self._used: set[int] = set()
        self._number = 0
        default = SandboxSpec()
        # What was asked for last; to begin with, the defaults.
        self._like: tuple[Limits, Tmpfs] = (default.limits, (default.tmpfs_size, default.tmpfs_inodes))
        self._stock: Stock[Kit] = Stock(lambda: self._make(*self._like), Kit.release, spare, "olsock-kits")
        self._unchecked: list[tuple[Kit, int]] = []
        self._timer: threading.Timer | None = None
        self._closed = False
        self._stock.refill()

    def take(self, spec: FunctionSpec) -> Kit:
        """Return a kit with the limits of `spec`, from the stock if there is one that fits."""
        like = self.remember(spec)
        kit = self._stock.take()
        if kit is None:
            return self._make(*like)
        try:
            if kit.tmpfs != like[1]:
                self.fill(kit, like[1])
            kit.leaf.set(spec.limits)
        except BaseException:
            kit.release()
            raise
        return kit

    def remember(self, spec: FunctionSpec) -> tuple[Limits, Tmpfs]:
        """Make what is made ahead like this from now on; return what that is."""
        self._like = (spec.limits, (spec.tmpfs_size, spec.tmpfs_inodes))
        return self._like

    def take_any(self) -> Kit:
        """Return a kit with the limits that were asked for last."""
        return self._stock.take() or self._make(*self._like)

    def check(self, kit: Kit, pid: int) -> None:
        """See to it, soon, that a handler has entered its cgroups of version 1.

        An honest zygote's child enters them before it does anything else. One of a hostile zygote that does not is held by
        the zygote's own limits meanwhile, and by those of its own after this.
        """
        if not kit.tasks:
            return
        with self._lock:
            self._unchecked.append((kit, pid))
            if self._timer is None and not self._closed:
                self._timer = threading.Timer(CHECK_AFTER, self._check_all)
                self._timer.daemon = True
                self._timer.start()

    def _check_all(self) -> None:
        with self._lock:
            self._timer = None
            unchecked, self._unchecked = self._unchecked, []
        for kit, pid in unchecked:
            try:
                if not kit.released and not kit.leaf.has(pid):
                    kit.leaf.attach_all()
            except (OlsockError, OSError):
                continue  # removed meanwhile

    def free(self, uid: int) -> None:
        """Take an id back."""
        with self._lock:
            self._used.discard(uid)

    def close(self) -> None:
        """Remove the stock."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            timer.join()
        self._stock.close()

    def fill(self, kit: Kit, tmpfs: Tmpfs) -> None:
        """Give a kit its file systems, instead of those that it may have."""
        process.close_all(kit.tmp, kit.shm)
        kit.tmp = kit.shm = -1
        (size, inodes), owner = tmpfs, self._room.base + kit.uid
        kit.tmp = mounts.tmpfs(size, inodes=inodes, mode=0o1777, uid=owner, gid=owner)
        kit.shm = mounts.tmpfs(min(SHM_SIZE, size), inodes=inodes, mode=0o1777, uid=owner, gid=owner)
        kit.tmpfs = tmpfs

    def _claim_id(self) -> int:
        with self._lock:
            if len(self._used) > self._last_id - FIRST_ID:
                raise ZygoteError(f"all {self._last_id - FIRST_ID + 1} ids of this zygote are in use")
            self._number += 1
            while self._next_id in self._used:
                self._next_id = self._next_id + 1 if self._next_id < self._last_id else FIRST_ID
            uid = self._next_id
            self._used.add(uid)
            self._next_id = uid + 1 if uid < self._last_id else FIRST_ID
            return uid

    def _make(self, limits: Limits, tmpfs: Tmpfs) -> Kit:
        uid = self._claim_id()
        leaf = self._group.leaf(f"s-{self._number}-{uid}")
        kit = Kit(self, leaf, -1, [], -1, -1, -1, tmpfs, uid)
        try:
            leaf.set(limits)
            leaf.delegate(self._room.base)
            kit.ends = Endpoints(separate_stderr=self._separate_stderr)
            kit.cgroup = leaf.detached_fd()
            kit.tasks = leaf.open_tasks()
            self.fill(kit, tmpfs)
            if self._network:
                kit.netns = self._box.new_network()
        except BaseException:
            kit.release()
            raise
        return kit
