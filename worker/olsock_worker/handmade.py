"""Zygotes where the operator keeps the packages by hand: one for each set of imports that functions name.

All functions see the same directories there, so each may start from any; a tree has nothing to tell apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, Literal

import olsock
from olsock_worker.broker_protocol import SHOWN, Start, ZygoteState
from olsock_worker.closings import Closings
from olsock_worker.logs import WorkerLog
from olsock_worker.made import Made
from olsock_worker.settings import Settings

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0  # seconds between attempts to build one
_SOUND_AFTER = 10.0  # a zygote that lived this long was not built wrong
_FORKERS = 4  # threads that may wait for one zygote; others' functions never wait behind them
_STRIKES = 3  # failed forks in a row after which a zygote that still lives is replaced


class Slot:
    """The place of one zygote, whether there is one in it or not."""

    def __init__(self, imports: tuple[str, ...]) -> None:
        self.imports = imports
        self.key = "imports:" + hashlib.sha256(" ".join(imports).encode()).hexdigest()[:16]
        self.zygote: olsock.Zygote | None = None
        self.executor = ThreadPoolExecutor(_FORKERS, thread_name_prefix="zygote")
        self.ready = asyncio.Event()
        self.wait = _FIRST_WAIT
        self.born = 0.0
        self.strikes = 0
        self.wanted = True
        self.task: asyncio.Task[None] | None = None


class Handmade:
    """Keeps the wanted zygotes alive. All methods are called on the broker's loop."""

    def __init__(
        self, settings: Settings, closings: Closings, tell: Callable[[ZygoteState], None], log: WorkerLog
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._log = log
        self._slots: dict[tuple[str, ...], Slot] = {}
        self._closings = closings
        self._uses: Counter[olsock.Zygote] = Counter()  # handlers forked from each
        self._retired: set[olsock.Zygote] = set()

    def want(self, wanted: tuple[tuple[str, ...], ...]) -> None:
        """Build what is missing, close what nobody wants any more."""
        for imports in wanted:
            if imports not in self._slots:
                slot = self._slots[imports] = Slot(imports)
                slot.task = asyncio.create_task(self._keep(slot))
        for imports in set(self._slots) - set(wanted):
            self._remove(self._slots.pop(imports))

    async def start(self, message: Start, code: str, options: dict[str, Any]) -> Made | None:
        """Fork an instance, if there is a zygote for its imports."""
        slot = self._slots.get(message.imports)
        if slot is None:
            return None
        if message.zygote == "wait":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.ready.wait(), self._settings.start_timeout)
        zygote = slot.zygote
        if zygote is None:
            return None
        self._uses[zygote] += 1
        work = partial(zygote.fork, code, message.handler, **options)
        try:
            function = await asyncio.get_running_loop().run_in_executor(slot.executor, work)
        except olsock.SpecError:
            self._release(zygote)
            raise
        except Exception as error:  # also RuntimeError: its executor was shut down meanwhile
            self._failed(slot, zygote, error)
            self._release(zygote)
            return None
        slot.strikes = 0
        return Made(function, slot.key, "zygote", lambda: self._release(zygote))

    def _failed(self, slot: Slot, zygote: olsock.Zygote, error: Exception) -> None:
        """Count a failed fork; after some in a row the zygote is replaced."""
        slot.strikes += 1
        self._log("warning", "fork_failed", imports=slot.imports, error=str(error))
        if slot.strikes >= _STRIKES and slot.zygote is zygote:
            self._end(slot)

    def _release(self, zygote: olsock.Zygote) -> None:
        """Note that one has gone. The domain of a dead or replaced zygote goes with its last handler."""
        self._uses[zygote] -= 1
        if not self._uses[zygote]:
            del self._uses[zygote]
            if zygote in self._retired:
                self._retired.discard(zygote)
                self._closings.begin(zygote)

    async def close(self) -> None:
        """End all of them, with what was forked from them."""
        for slot in list(self._slots.values()):
            self._remove(slot)
        self._slots.clear()
        for zygote in self._retired:
            self._closings.begin(zygote)
        self._retired.clear()

    async def _keep(self, slot: Slot) -> None:
        """Build, wait for its death, and again, with growing waits while that happens quickly."""
        loop = asyncio.get_running_loop()
        while slot.wanted:
            self._show(slot, "building")
            died = asyncio.Event()
            try:
                zygote = await loop.run_in_executor(slot.executor, self._build, slot.imports)
            except Exception as error:
                self._log("error", "zygote_failed", imports=slot.imports, error=str(error), retry_s=slot.wait)
                self._show(slot, "failed", str(error))
            else:
                slot.zygote, slot.born, slot.strikes = zygote, monotonic(), 0
                pidfd = zygote.pidfd
                loop.add_reader(pidfd, died.set)
                slot.ready.set()
                self._show(slot, "ready", _left_out(zygote))
                try:
                    await died.wait()
                finally:
                    loop.remove_reader(pidfd)
                    self._end(slot)
                self._log("warning", "zygote_died", imports=slot.imports)
                if monotonic() - slot.born > _SOUND_AFTER:
                    slot.wait = _FIRST_WAIT
            await asyncio.sleep(slot.wait)
            slot.wait = min(2 * slot.wait, _LONGEST_WAIT)

    def _build(self, imports: tuple[str, ...]) -> olsock.Zygote:
        settings = self._settings
        return olsock.Zygote(
            imports=list(imports),
            packages=settings.packages,
            python=settings.python,
            memory=int(settings.zygote_memory),
            skip_bad=True,  # a function whose zygote lacks a module imports it by itself
        )

    def _end(self, slot: Slot) -> None:
        """Take the zygote out of its slot. Closing one ends its handlers too, so that waits for the last of them."""
        zygote, slot.zygote = slot.zygote, None
        slot.ready.clear()
        if zygote is not None:
            if self._uses[zygote]:
                self._retired.add(zygote)
            else:
                self._closings.begin(zygote)

    def _remove(self, slot: Slot) -> None:
        slot.wanted = False
        if slot.task is not None:
            slot.task.cancel()
        self._end(slot)
        slot.executor.shutdown(wait=False, cancel_futures=True)
        self._show(slot, "gone")

    def _show(self, slot: Slot, state: Literal["building", "ready", "failed", "gone"], detail: str = "") -> None:
        pid = slot.zygote.pid if slot.zygote is not None else 0
        self._tell(
            ZygoteState(key=slot.key, kind="node", state=state, imports=slot.imports[:SHOWN], pid=pid, detail=detail)
        )


def _left_out(zygote: olsock.Zygote) -> str:
    return "; ".join(f"{name} left out: {reason}" for name, reason in sorted(zygote.bad.items()))
