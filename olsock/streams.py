"""Answers that are read while they are made."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Self

from olsock.errors import DeadlineError, ProtocolError, SandboxDeadError


class Stream:
    """The parts of an answer, as they come: to be iterated over once, and closed, which `with` does.

    Until its end the function takes no other call. Iterating raises `InvocationError` if the answer breaks off. Closing it
    early tells the function that nobody reads; one that does not end within a moment is closed.
    """

    def __init__(self, parts: Generator[Any, None, None], failure: Callable[[Exception], Exception]) -> None:
        self._parts, self._failure = parts, failure
        head = self._next()
        self.status: int = head.status
        self.headers: tuple[tuple[str, str], ...] = head.headers

    def _next(self) -> Any:
        try:
            return next(self._parts)
        except (SandboxDeadError, DeadlineError, ProtocolError) as e:
            raise self._failure(e) from None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        part: bytes = self._next()
        return part

    def read(self) -> bytes:
        """All that is left, joined."""
        return b"".join(self)

    def close(self) -> None:
        """Read no more. Idempotent."""
        try:
            self._parts.close()
        except (SandboxDeadError, DeadlineError, ProtocolError) as e:
            self._failure(e)  # the function is gone, as it would not end; nobody waits for its answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
