"""What sandboxes, zygotes and functions have in common: each has one owner, and ends once."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Owned(ABC):
    """A context manager whose `close` runs once, and only in the process that made it: a fork has but a copy."""

    _closed = True  # until `_own`: there is nothing to close of an object that was never finished

    def _own(self) -> None:
        """From here on there is something to close."""
        self._owner = os.getpid()
        self._closing = threading.Lock()
        self._closed = False

    @abstractmethod
    def _end(self) -> None:
        """Remove every trace."""

    def close(self) -> None:
        """End it and remove every trace; works while it is paused. Idempotent."""
        if self._closed or self._owner != os.getpid():
            return
        with self._closing:
            first, self._closed = not self._closed, True
        if first:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
