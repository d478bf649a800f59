"""How many calls run or wait: of each function over all of its versions, and of all that have no reservation.

As AWS Lambda counts: a reservation is a function's own, and is taken from what the others have together.
"""

from __future__ import annotations

OVER_RESERVED = "ReservedFunctionConcurrentInvocationLimitExceeded"
OVER_ALL = "ConcurrentInvocationLimitExceeded"
_LEAST = 10  # reservations leave one in so many to functions that have none


class Concurrency:
    """Counts calls from when they are taken until they have ended; says whom there is no room for."""

    def __init__(self, most: int) -> None:
        self.most = most  # of all functions together
        self._reserved: dict[str, int] = {}
        self._promised = 0  # sum of the reservations
        self._calls: dict[str, int] = {}  # by function
        self._shared = 0  # calls of those without a reservation

    @property
    def unreserved(self) -> int:
        """How many calls those without a reservation may have together."""
        return max(0, self.most - self._promised)

    @property
    def least(self) -> int:
        """How many no reservation may take from them."""
        return max(1, self.most // _LEAST)

    def fits(self, name: str, calls: int) -> bool:
        """Say whether so many can be reserved."""
        return self.most - self._promised + self._reserved.get(name, 0) - calls >= self.least

    def reserve(self, name: str, calls: int | None) -> None:
        """Reserve for a function, or let its reservation go."""
        if name in self._reserved:
            self._promised -= self._reserved.pop(name)
            self._shared += self._calls.get(name, 0)
        if calls is not None:
            self._reserved[name] = calls
            self._promised += calls
            self._shared -= self._calls.get(name, 0)

    def over(self, name: str) -> str:
        """Say why another call of a function cannot be taken, in AWS's words; "" if it can."""
        reserved = self._reserved.get(name)
        if reserved is not None:
            return OVER_RESERVED if self._calls.get(name, 0) >= reserved else ""
        return OVER_ALL if self._shared >= self.unreserved else ""

    def off(self, name: str) -> bool:
        """Say whether a function may have no call at all."""
        return self._reserved.get(name) == 0

    def begin(self, name: str) -> str:
        """Count a call; say whether there was room for it, as `over` does."""
        calls = self._calls.get(name, 0)
        self._calls[name] = calls + 1
        if name in self._reserved:
            return OVER_RESERVED if calls >= self._reserved[name] else ""
        shared = self._shared
        self._shared = shared + 1
        return OVER_ALL if shared >= self.most - self._promised else ""

    def end(self, name: str) -> None:
        """Count one no longer."""
        left = self._calls[name] - 1
        if left:
            self._calls[name] = left
        else:
            del self._calls[name]
        if name not in self._reserved:
            self._shared -= 1
