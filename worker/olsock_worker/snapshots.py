"""The broker's function zygotes: one for each current version with `snapshot: true`, which has its module imported."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import olsock
from olsock.nursery.offshoots import Offshoot
from olsock_worker.blanks import Blanks
from olsock_worker.broker_protocol import Deploy, ZygoteState
from olsock_worker.closings import Closings
from olsock_worker.logs import WorkerLog

FIRST_WAIT, LONGEST_WAIT = 0.25, 60.0  # seconds between attempts to make one
_FAILURES = 8  # in a row, after which it is given up: its instances go on without it
_LONG_LIFE = 10.0  # seconds after which one was not made wrong
_STRIKES = 3  # failed forks in a row
_REASON = 2000  # characters of why there is none
_FORKERS = 4  # threads that may wait for one; others' functions never wait behind them


Shown = Literal["cold", "building", "ready", "failed", "given up"]


@dataclass(slots=True)
class Live:
    """A zygote, and how many instances of it there are."""

    offshoot: Offshoot
    memory: int
    uses: int = 0
    retired: bool = False


class Snapshot:
    """The zygote of one version, whether there is one now or not. Used on the broker's loop."""

    def __init__(
        self,
        deploy: Deploy,
        grow: Callable[[int], Offshoot],
        most_blanks: int,
        closings: Closings,
        tell: Callable[[ZygoteState], None],
        log: WorkerLog,
    ) -> None:
        """`grow` makes one that keeps so many blanks; it is called in a thread."""
        self.deploy = deploy
        self.key = f"function:{deploy.code}"
        self.settled = asyncio.Event()  # there is one, or there will not be one soon
        self.executor = ThreadPoolExecutor(_FORKERS, thread_name_prefix="snapshot")
        self._grow, self._closings, self._tell, self._log = grow, closings, tell, log
        self._live: Live | None = None
        # With an instance for every request, the next one is needed for certain.
        self._blanks = Blanks(most_blanks, min(1, most_blanks) if deploy.alone else 0, self._keep_blanks)
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._detail, self._hits, self._build_ms, self._frequency = "", 0, 0.0, 0.0
        self._strikes = self._failures = 0
        self._died = asyncio.Event()
        self._told = ZygoteState(key=self.key, kind="function", state="cold")
        self._task = asyncio.create_task(self._keep())

    # -- forks --------------------------------------------------------------------------------------------------------

    def hold(self) -> Live | None:
        """Use the zygote, if there is one; to be released with `release`."""
        live = self._live
        if live is None:
            self._wanted.set()  # it was evicted
            return None
        live.uses += 1
        return live

    def release(self, live: Live) -> None:
        """End a use: a fork that failed, or an instance that has gone."""
        live.uses -= 1
        self._close_if_over(live)

    def forked(self) -> None:
        """Count a start."""
        self._strikes = 0
        self._hits += 1
        self._frequency += 1
        self._blanks.started()

    def failed(self, live: Live, error: Exception) -> None:
        """Count a fork that failed; after some in a row the zygote is replaced."""
        self._strikes += 1
        self._log("warning", "fork_failed", function=self.deploy.name, error=str(error))
        if self._strikes >= _STRIKES and self._live is live:
            self._died.set()

    # -- life ---------------------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """End it because its memory is needed; the next start has it made again."""
        if self._live is not None:
            self._wanted.clear()
            self._frequency /= 2
            self._died.set()

    def close(self) -> None:
        """Make no more; the last one goes with its last instance."""
        self._task.cancel()
        self._blanks.stop()
        self._retire()
        self.settled.set()
        self.executor.shutdown(wait=False, cancel_futures=True)
        self._tell(ZygoteState(key=self.key, kind="function", state="gone"))

    async def _keep(self) -> None:
        wait = FIRST_WAIT
        while self._failures < _FAILURES:
            await self._wanted.wait()
            self.show("building")
            began = monotonic()
            try:
                offshoot = await self._make()
            except Exception as error:
                self._failures += 1
                self._detail = str(error)
                self._log("warning", "snapshot_failed", function=self.deploy.name, error=str(error), retry_s=wait)
                self.settled.set()  # who waits for it starts without it
                self.show("failed")
            else:
                self._build_ms = round((monotonic() - began) * 1e3, 3)
                self._detail = ""
                await self._live_out(offshoot)
                if monotonic() - began > _LONG_LIFE:
                    self._failures, wait = 0, FIRST_WAIT
                if not self._wanted.is_set():
                    self.show("cold")
                    continue
                self._failures += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        self.show("given up")

    async def _make(self) -> Offshoot:
        """Have one made; one that nobody waits for any more is closed when it is there."""
        making = asyncio.get_running_loop().run_in_executor(self.executor, self._grow, self._blanks.count)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._drop)
            raise

    def _drop(self, made: asyncio.Future[Offshoot]) -> None:
        if not made.cancelled() and made.exception() is None:
            self._closings.begin(made.result())

    async def _live_out(self, offshoot: Offshoot) -> None:
        """Have it forked from until it dies or has to go."""
        loop = asyncio.get_running_loop()
        self._died.clear()
        self._live = Live(offshoot, await asyncio.to_thread(lambda: offshoot.zygote.memory().unique))
        self._strikes = 0
        pidfd = offshoot.zygote.pidfd
        loop.add_reader(pidfd, self._died.set)
        self.settled.set()
        self.show("ready")
        try:
            await self._died.wait()
        finally:
            loop.remove_reader(pidfd)
            self.settled.clear()
            self._retire()

    def _retire(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.retired = True
            self._close_if_over(live)

    def _close_if_over(self, live: Live) -> None:
        """Closing it would end its instances, so that waits for the last of them."""
        if live.retired and not live.uses:
            self._closings.begin(live.offshoot)

    def show(self, state: Shown | None = None) -> None:
        """Tell the front how it is, if that has changed."""
        live = self._live
        told = ZygoteState(
            key=self.key,
            kind="function",
            state=state or self._told.state,
            name=self.deploy.name,
            above=live.offshoot.above if live else "",
            pid=live.offshoot.zygote.pid if live else 0,
            detail=self._detail[-_REASON:],
            memory=live.memory if live else 0,
            handlers=live.uses if live else 0,
            blanks=live.offshoot.zygote.blanks if live else 0,
            hits=self._hits,
            frequency=self._frequency,
            cost_ms=self._build_ms,
            saved_ms=round(self._hits * self._build_ms, 3),
            build_ms=self._build_ms,
            leaf=live is not None,
        )
        if told != self._told:
            self._told = told
            self._tell(told)

    def _keep_blanks(self, count: int) -> None:
        """Have so many handlers wait, forked ahead."""
        live = self._live
        if live is not None:
            with contextlib.suppress(RuntimeError):  # it is being closed
                self.executor.submit(_set_blanks, live.offshoot.zygote, count)


def _set_blanks(zygote: olsock.Zygote, count: int) -> None:
    with contextlib.suppress(olsock.OlsockError, OSError):
        zygote.blanks = count
