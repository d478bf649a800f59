"""A small stock of things that take longer to make than to use, refilled by a thread of its own after each use.

Not at once after a use, but a moment later: what was taken is being put to use just then, and on a host of few cores making
the next one would only slow that down.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from olsock.errors import OlsockError

PAUSE = 0.004  # seconds between a use and the refill

T = TypeVar("T")


class Stock(Generic[T]):
    """Keeps `size` things ready. What cannot be made in advance is simply not there: who takes must be able to make."""

    def __init__(self, make: Callable[[], T], discard: Callable[[T], None], size: int, name: str) -> None:
        self._make, self._discard, self.size, self._name = make, discard, size, name
        self._lock = threading.Lock()
        self._ready: deque[T] = deque()
        self._pending = 0
        self._closed = False
        self._end = threading.Event()
        self._pool: ThreadPoolExecutor | None = None

    def take(self) -> T | None:
        """Return a thing from the stock, or None; what is missing then is made in the background."""
        with self._lock:
            thing = self._ready.popleft() if self._ready else None
        self.refill(PAUSE)
        return thing

    def put(self, thing: T) -> None:
        """Take a thing back that was not used."""
        with self._lock:
            if not self._closed:
                self._ready.appendleft(thing)
                return
        self._discard(thing)

    def refill(self, pause: float = 0.0) -> None:
        """Begin to make what is missing, after a `pause` in seconds. Does not wait."""
        with self._lock:
            missing = 0 if self._closed else self.size - len(self._ready) - self._pending
            if missing <= 0:
                return
            self._pending += missing
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            for _ in range(missing):
                self._pool.submit(self._add, pause)

    def _add(self, pause: float) -> None:
        thing: T | None = None
        try:
            if not self._end.wait(pause):
                thing = self._make()
        except (OlsockError, OSError):
            pass  # who takes next makes its own, and reports what fails
        with self._lock:
            self._pending -= 1
            if thing is not None and not self._closed and len(self._ready) < self.size:
                self._ready.append(thing)
                return
        if thing is not None:
            self._discard(thing)

    def __len__(self) -> int:
        """How many are ready now."""
        return len(self._ready)

    def resize(self, size: int) -> None:
        """Keep another number ready from now on; those too many are discarded."""
        surplus = []
        with self._lock:
            self.size = size
            while len(self._ready) > size:
                surplus.append(self._ready.popleft())
        for thing in surplus:
            self._discard(thing)
        self.refill()

    def clear(self) -> None:
        """Discard what is ready, for instance because it no longer fits."""
        while True:
            with self._lock:
                if not self._ready:
                    return
                thing = self._ready.popleft()
            self._discard(thing)

    def close(self) -> None:
        """Discard everything and make no more. Idempotent."""
        with self._lock:
            self._closed = True
        self._end.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self.clear()
