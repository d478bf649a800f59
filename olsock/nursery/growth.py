"""How a live tree grows and shrinks: what is wanted is built, what dies is replaced, what is retired goes when it may.

One lock guards the slots and is held for bookkeeping only, never while something is imported, installed, forked or closed.
A thread of its own, the keeper, learns of deaths by pidfds and of what is due, and has pool threads build and close.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from olsock.errors import OlsockError, ZygoteError
from olsock.nursery.builds import BadNodeError, Job, NoRoomError, Settings, build, job_for
from olsock.nursery.choices import ROOT, Facts
from olsock.nursery.evictions import is_leaf, victims
from olsock.nursery.slots import LONG_LIFE, Live, NodeStats, Slot, Store, describe
from olsock.owned import Owned
from olsock.trees.plan import Node

MAX_SLOTS = 2048  # built or not; what matters least is forgotten first
FULL_WAIT = 30.0  # seconds before a node for which there was no room is tried again
LOOK = 0.25  # seconds between looks at retired zygotes, whose last handler nobody tells of

Listener = Callable[[NodeStats], None]


class Growth(Owned):
    """The slots of a tree, and what goes on in the background. `self._lock` is held where a method says so."""

    def __init__(
        self, store: Store, settings: Settings, root: Node, memory: int, builders: int, listener: Listener | None
    ) -> None:
        """Begin to build the root."""
        self._store, self._settings, self._memory, self._listener = store, settings, memory, listener
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._slots: dict[str, Slot] = {ROOT: Slot(ROOT, root, None, None, wanted=True)}
        self._facts: dict[str, Facts] = {}  # of slots, to find them in another plan
        self._retired: set[Live] = set()
        self._building: dict[str, Future[None]] = {}
        self._clock = 0.0  # of the eviction
        self._ending = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._builders = ThreadPoolExecutor(builders, thread_name_prefix="olsock-nursery")
        self._closers = ThreadPoolExecutor(2, thread_name_prefix="olsock-retired")
        self._keeper = threading.Thread(target=self._keep, name="olsock-keeper", daemon=True)
        self._own()
        self._keeper.start()

    def _ask(self, slot: Slot) -> None:
        """Have a slot built after all that is above it. Under the lock."""
        if slot.full_until <= time.monotonic() and not all(each.wanted for each in slot.path):
            for each in slot.path:
                each.wanted = each.wanted or each.state == "cold"
            self._nudge()

    def _make_room(self) -> None:
        """Forget the slot that matters least, if there are too many. Under the lock."""
        if len(self._slots) < MAX_SLOTS:
            return
        needed = {id(each.above) for each in self._slots.values()}
        idle = [
            each
            for each in self._slots.values()
            if each.state in ("cold", "bad", "given up") and id(each) not in needed
        ]
        least = min((each for each in idle if each.above is not None), key=lambda each: each.priority, default=None)
        if least is not None:
            self._forget(least)

    def _forget(self, slot: Slot) -> None:
        del self._slots[slot.key]
        self._facts.pop(slot.key, None)

    def _drop(self) -> None:
        """Retire what the plan has no more, leaves first: what is below something that goes stays as it is. Under the lock."""
        for slot in list(self._slots.values()):
            if slot.planned or slot.above is None:
                continue
            if slot.live is not None:
                self._retire(slot)
                slot.state = "cold"
            if slot.state != "building":
                self._forget(slot)

    def _evict(self, slot: Slot) -> None:
        self._clock = max(self._clock, slot.priority)
        slot.frequency *= 0.5
        self._retire(slot)
        slot.state, slot.wanted, slot.reason = "cold", False, "evicted"
        self._tell(slot)

    def _used(self) -> int:
        """Bytes of all zygotes of the tree. Under the lock."""
        return sum(slot.live.size for slot in self._slots.values() if slot.live is not None)

    # -- the keeper ---------------------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def _keep(self) -> None:
        with contextlib.suppress(RuntimeError):  # no more threads: the interpreter ends, and nobody has closed this
            self._look_after()

    def _look_after(self) -> None:
        while True:
            with self._lock:
                if self._ending:
                    return
                watched = {slot.live.zygote.pidfd: slot for slot in self._slots.values() if slot.live is not None}
                due = self._schedule()
                self._sweep()
                if self._retired:
                    due = min(due, LOOK)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for fd in watched:
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, event in poll.poll(None if due == float("inf") else int(due * 1000) + 1)]
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            with self._lock:
                for fd in ready:
                    slot = watched.get(fd)
                    if slot is not None and slot.live is not None and not slot.live.zygote.alive:
                        self._died(slot, "the zygote died")

    def _schedule(self) -> float:
        """Have everything built that is wanted and can be; return the seconds until more may be. Under the lock."""
        due, now = float("inf"), time.monotonic()
        for slot in list(self._slots.values()):
            if not slot.wanted or slot.state != "cold" or slot.key in self._building:
                continue
            if slot.not_before > now:
                due = min(due, slot.not_before - now)
                continue
            if not all(each.planned for each in slot.path):
                slot.wanted = False  # of a plan that is no more; who wants it again says below what
                continue
            try:
                job = job_for(slot, self._settings)
            except NoRoomError as error:
                self._put_off(slot, str(error))
                continue
            if job is None:
                continue  # what it is forked from comes first, and says when it has
            if not self._fits(slot):
                self._put_off(slot, "no memory for it: what is there is worth more")
                continue
            self._begin(job)
        return due

    def _put_off(self, slot: Slot, why: str) -> None:
        slot.reason, slot.full_until, slot.wanted = why, time.monotonic() + FULL_WAIT, False
        self._tell(slot)

    def _fits(self, slot: Slot) -> bool:
        """Whether there is memory for a node, or what is worth less can make room. Under the lock."""
        over = self._used() + slot.size - self._memory
        if over <= 0 or slot.above is None:
            return True
        return bool(victims(self._slots.values(), over, below=slot.priority, spare=slot.path))

    def _begin(self, job: Job) -> None:
        slot = job.slot
        slot.state, slot.reason = "building", ""
        if job.above is not None:
            job.above.users += 1
            job.above.taken += job.cells + 1
        self._tell(slot)
        self._building[slot.key] = self._builders.submit(self._build, job)

    def _build(self, job: Job) -> None:
        slot, live, problem = job.slot, None, None
        began = time.monotonic()
        try:
            live = build(job, self._store, self._settings)
        except Exception as error:  # whatever a package, an index or the kernel comes up with
            problem = error
        with self._lock:
            self._building.pop(slot.key, None)
            if job.above is not None:
                job.above.users -= 1
                if live is None:
                    job.above.taken -= job.cells + 1
                else:
                    job.above.children += 1
            if live is not None:
                slot.build_ms = round((time.monotonic() - began) * 1000, 3)
                self._settle(slot, live)
            else:
                self._unsettle(slot, job, problem or ZygoteError("not built"))
            self._tell(slot)
            self._nudge()

    def _settle(self, slot: Slot, live: Live) -> None:
        """Put a zygote into its slot, and others out that there is no memory for. Under the lock."""
        if self._ending or not slot.planned or self._slots.get(slot.key) is not slot:
            slot.state = "cold"
            self._retire_live(live)
            if not slot.planned:
                self._drop()
            return
        slot.live, slot.state, slot.reason, slot.strikes = live, "ready", "", 0
        slot.measured = live.size
        slot.wanted = True  # to be there again after its death
        over = self._used() - self._memory
        if over > 0:
            for victim in victims(self._slots.values(), over, below=float("inf")):
                self._evict(victim)

    def _unsettle(self, slot: Slot, job: Job, problem: Exception) -> None:
        """Note that a node could not be built. Under the lock."""
        if isinstance(problem, BadNodeError):
            slot.state, slot.wanted, slot.reason = "bad", False, str(problem)
        elif job.above is not None and not job.above.zygote.alive:
            slot.state = "cold"  # not its own fault: what it was forked from has died meanwhile
            slot.not_before = time.monotonic() + 0.01
        else:
            slot.failed(str(problem) or type(problem).__name__, root=slot.above is None)
            if _is_final(problem, slot):
                slot.state, slot.wanted, slot.reason = "bad", False, str(problem)

    def _died(self, slot: Slot, why: str) -> None:
        """Take out a zygote that is dead, or of no use. Under the lock."""
        live = slot.live
        if live is None:
            return
        if time.monotonic() - live.born > LONG_LIFE:
            slot.failures = 0
        self._retire(slot)
        slot.failed(why, root=slot.above is None)
        self._tell(slot)
        self._nudge()

    def _retire(self, slot: Slot) -> None:
        """Take the zygote out of a slot; it goes once nothing needs it. Under the lock."""
        live, slot.live = slot.live, None
        slot.strikes = 0
        if live is not None:
            self._retire_live(live)

    def _retire_live(self, live: Live) -> None:
        self._retired.add(live)
        self._nudge()

    def _sweep(self) -> None:
        """Close retired zygotes that nothing needs any more. Under the lock."""
        for live in [each for each in self._retired if not each.in_use]:
            self._retired.discard(live)
            self._closers.submit(self._close_live, live)

    def _close_live(self, live: Live) -> None:
        try:
            with contextlib.suppress(OlsockError, OSError):
                live.zygote.close()
        finally:
            if live.closure is not None:
                live.closure.close()
            with self._lock:
                if live.above is not None:
                    live.above.taken -= live.held
                    live.above.children -= 1
                self._nudge()

    def _tell(self, slot: Slot) -> None:
        """Wake who waits, and call the listener, from a thread that holds no lock."""
        self._changed.notify_all()
        if self._listener is not None and not self._ending:
            self._closers.submit(self._listener, describe(slot, is_leaf(slot)))

    def _end(self) -> None:
        with self._lock:
            self._ending = True
            self._nudge()
            self._changed.notify_all()
        self._keeper.join()
        self._builders.shutdown(wait=False, cancel_futures=True)
        self._stop_builds()
        self._builders.shutdown(wait=True)
        with self._lock:
            lives = [slot.live for slot in self._slots.values() if slot.live is not None] + list(self._retired)
            for slot in self._slots.values():
                slot.live, slot.state = None, "cold"
            self._retired.clear()
        self._closers.shutdown(wait=True)
        for live in sorted(lives, key=lambda each: -each.depth):
            self._close_live(live)
        os.close(self._wake)

    def _stop_builds(self) -> None:
        """End imports that are going on, by ending everything below the roots that they are forked from."""
        while True:
            with self._lock:
                running = [each for each in self._building.values() if not each.cancelled()]
                lives = [slot.live for slot in self._slots.values() if slot.live is not None] + list(self._retired)
                roots = [live for live in lives if live.above is None]
            if not running or not wait(running, 0.05).not_done:
                return
            for live in roots:
                with contextlib.suppress(OlsockError, OSError):
                    live.zygote.kill()


def _is_final(problem: Exception, slot: Slot) -> bool:
    """Whether trying again is of no use: imports that leave threads behind, or did not end well, or at all, twice."""
    if not isinstance(problem, ZygoteError):
        return False
    return problem.kind == "unforkable" or (problem.kind in ("crash", "slow") and slot.failures >= 2)
