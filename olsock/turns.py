"""Turns: how many may do something at one time, in what order the others follow, and how many may wait.

A turn is a future, so that threads wait for it with `result` and tasks of a loop without a thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from olsock.errors import DeadlineError, OlsockError


class Turns:
    """`size` at one time; of further ones `queue` wait, first come, first served. Safe to use from several threads."""

    def __init__(self, size: int, queue: int) -> None:
        self._size, self._queue = size, queue
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: deque[Future[None]] = deque()
        self._closed: Callable[[], OlsockError] | None = None

    def ask(self) -> Future[None]:
        """Return a future that is done when it is one's turn. Whoever has had it calls `give_back`, once.

        Raises `DeadlineError` if too many wait already. One that no longer wants its turn calls `give_up`.
        """
        turn: Future[None] = Future()
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if self._taken < self._size:
                self._taken += 1
                turn.set_result(None)
            elif len(self._waiting) >= self._queue:
                raise DeadlineError(f"{self._size} calls run and {self._queue} wait already")
            else:
                self._waiting.append(turn)
        return turn

    def give_up(self, turn: Future[None]) -> None:
        """Wait no longer; a turn that has come meanwhile goes to the next."""
        with self._lock:
            try:
                self._waiting.remove(turn)
            except ValueError:
                came = turn.done() and not turn.cancelled() and turn.exception() is None
            else:
                turn.cancel()
                came = False
        if came:
            self.give_back()

    def give_back(self) -> None:
        """Let the next one have it."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._taken -= 1
                    return
                following = self._waiting.popleft()
            try:
                following.set_result(None)
            except InvalidStateError:
                continue  # it was cancelled by whom it belongs to, who asks for no turn any more
            return

    def close(self, why: Callable[[], OlsockError]) -> None:
        """Refuse whoever waits, and whoever asks from now on. Idempotent."""
        with self._lock:
            self._closed = why
            waiting = list(self._waiting)
            self._waiting.clear()
        for turn in waiting:
            try:
                turn.set_exception(why())  # one for each: a traceback grows where it is raised
            except InvalidStateError:
                continue

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._lock:
            return len(self._waiting)
