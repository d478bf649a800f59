"""One event loop for all requests of a process: what a function keeps between them, such as a client, goes on working.

Tasks that a request leaves behind go on in the next one. Whatever they do, be it to exit, a request ends with its own
result and no other.
"""

from __future__ import annotations

import asyncio
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine


async def _nothing() -> None:
    """Show that a loop runs."""


class Loop:
    """Runs coroutines, one at a time, each to its end."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return a coroutine's result, or raise what it raised."""
        if self._loop is None or self._loop.is_closed():
            self._loop = _usable()
        loop = self._loop
        task = loop.create_task(coroutine)
        task.add_done_callback(lambda _: loop.stop())
        while True:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # of our task, which has it as its result, or of one that was left behind
            except BaseException:
                # Somebody has closed the loop's own descriptors: the next request gets another one.
                self._loop = None
                if not task.done():
                    raise
            if task.done():  # or else something has stopped the loop that is not its to stop
                return task.result()


def _usable() -> asyncio.AbstractEventLoop:
    """Return the loop that the function's module has set up, perhaps with things that belong to it, or a fresh one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's own, about its future
            loop = asyncio.get_event_loop()
        loop.run_until_complete(_nothing())  # one that was made before a fork has lost its descriptors
        return loop
    except Exception:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop
