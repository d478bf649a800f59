"""Group commit: what is to be written while a commit is under way goes into the next one, all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from olsock_worker.store.records import StoreError

if TYPE_CHECKING:
    from olsock_worker.events.interface import EventQueue

Work = Callable[[], Any]
Then = Callable[[Any], None]
_Result = TypeVar("_Result")


class Writer:
    """Has work done on a queue, in the order in which it is given, in a thread. To be used on one loop."""

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._waiting: list[tuple[Work, Then]] = []
        self._busy = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    def submit(self, work: Work, then: Then) -> None:
        """Do `work` in the next commit, and call `then` with its result once that is safe, or with a `StoreError`."""
        self._waiting.append((work, then))
        if not self._busy:
            self._begin()

    async def ask(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` in the next commit, and return its result. It is finished even if nobody waits any more."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

        def then(result: _Result | StoreError) -> None:
            if future.done():
                return
            if isinstance(result, StoreError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.submit(work, then)
        return await future

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, []
        self._busy = True
        self._quiet.clear()
        works = [work for work, _ in batch]
        committing = asyncio.get_running_loop().run_in_executor(self._thread, self._queue.commit, works)
        committing.add_done_callback(partial(self._committed, batch))

    def _committed(self, batch: list[tuple[Work, Then]], committing: asyncio.Future[list[object]]) -> None:
        error = committing.exception()
        self._busy = False
        if self._waiting:
            self._begin()  # the disk works on while the loop passes the results on
        else:
            self._quiet.set()
        if error is None:
            for (_, then), result in zip(batch, committing.result(), strict=True):
                then(result)
        else:
            failed = error if isinstance(error, StoreError) else StoreError(repr(error))
            for _, then in batch:
                then(failed)

    async def close(self) -> None:
        """Finish what was given, then let go of the queue."""
        while self._busy or self._waiting:
            await self._quiet.wait()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._queue.close)
        self._thread.shutdown()
