"""A zygote that is followed by another when it has died, so that who forks from it need not care.

One that died stays until its last fork has ended, which its death does not touch. A successor is made in a thread of its
own, when it is asked for: the first at once, later ones after pauses that grow while zygotes keep dying young.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from olsock.deadline import Deadline
from olsock.errors import DeadlineError, ZygoteError
from olsock.zygote import Zygote

FIRST_PAUSE = 0.25  # seconds before the second successor; doubled for each one after it
LAST_PAUSE = 60.0
LONG_LIFE = 30.0  # seconds after which a death is no longer counted with those before it


@dataclass(slots=True, eq=False)
class _Reign:
    """One zygote, and how many use it."""

    zygote: Zygote
    since: float = field(default_factory=time.monotonic)
    users: int = 0
    over: bool = False


class Lineage:
    """Zygotes made by `make`, one after the other. Safe to use from several threads.

    Making it makes the first, and raises what that raises.
    """

    def __init__(self, make: Callable[[], Zygote]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._current: _Reign | None = _Reign(make())
        self._past: set[_Reign] = set()  # dead ones that are still used
        self._coming: Future[None] | None = None
        self._maker: threading.Thread | None = None
        self._deaths = 0
        self._not_before = 0.0
        self._why = ""
        self._closed = False

    @contextmanager
    def hold(self, deadline: Deadline) -> Iterator[Zygote]:
        """Give a living zygote, which is not removed meanwhile; waits for a successor until `deadline`.

        Raises `DeadlineError` then, and `ZygoteError` if no successor could be made, or may be tried yet.
        """
        reign = self._take(deadline)
        try:
            yield reign.zygote
        finally:
            with self._lock:
                reign.users -= 1
                done = reign.over and not reign.users
                if done:
                    self._past.discard(reign)
            if done:
                reign.zygote.close()

    def depose(self, zygote: Zygote, why: str) -> None:
        """Use a zygote no more, dead or not: it did not do what it is for."""
        with self._lock:
            if self._current is not None and self._current.zygote is zygote:
                self._end(self._current, why)

    @property
    def alive(self) -> bool:
        """Whether there is a living zygote at this moment."""
        with self._lock:
            return self._current is not None and self._current.zygote.alive

    def close(self) -> None:
        """End all of them, and whatever they have forked. Idempotent."""
        with self._lock:
            self._closed = True
            maker = self._maker
        if maker is not None:
            maker.join()
        with self._lock:
            reigns = [*self._past, *([self._current] if self._current else [])]
            self._past.clear()
            self._current = None
        for reign in reigns:
            reign.zygote.close()

    def _take(self, deadline: Deadline) -> _Reign:
        while True:
            with self._lock:
                if self._closed:
                    raise ZygoteError("the pool is closed")
                reign = self._current
                if reign is not None and reign.zygote.alive:
                    reign.users += 1
                    return reign
                if reign is not None:
                    self._end(reign, "it died")
                coming = self._coming or self._begin()
            try:
                coming.result(deadline.seconds())
            except TimeoutError:
                raise DeadlineError("the zygote had to be replaced, and its successor is not ready yet") from None
            except ZygoteError as error:  # one object for all who waited: each raises its own
                raise ZygoteError(str(error)) from error

    def _end(self, reign: _Reign, why: str) -> None:
        """Note a death. Under the lock, so a zygote that nobody uses is left to the maker to remove."""
        reign.over = True
        self._current = None
        self._past.add(reign)
        if time.monotonic() - reign.since > LONG_LIFE:
            self._deaths = 0
        self._failed(why)

    def _failed(self, why: str) -> None:
        self._why = why
        self._deaths += 1
        pause = 0.0 if self._deaths == 1 else min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._deaths - 2, 16))
        self._not_before = time.monotonic() + pause

    def _begin(self) -> Future[None]:
        left = self._not_before - time.monotonic()
        if left > 0:
            raise ZygoteError(f"the zygote has to be replaced ({self._why}); the next attempt is in {left:.1f} s")
        self._coming = Future()
        self._maker = threading.Thread(target=self._succeed, args=(self._coming,), name="olsock-lineage", daemon=True)
        self._maker.start()
        return self._coming

    def _succeed(self, coming: Future[None]) -> None:
        with self._lock:
            unused = [reign for reign in self._past if not reign.users]
            self._past.difference_update(unused)
        for reign in unused:
            reign.zygote.close()
        try:
            made = self._make()
        except BaseException as error:
            with self._lock:
                self._coming = None
                self._failed(str(error))
            coming.set_exception(ZygoteError(f"the zygote died and could not be replaced: {error}"))
            return
        with self._lock:
            self._coming = None
            if not self._closed:
                self._current = _Reign(made)
        if self._closed:
            made.close()
        coming.set_result(None)
