"""How much memory each instance has of its own: asked of the broker when somebody wants to know, and not too often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Measure, Measured

if TYPE_CHECKING:
    from olsock_worker.instances import Instance

_AGE = 2.0  # seconds that an answer is good for: the kernel walks the page tables of every instance for it


class Measures:
    """The latest answer."""

    def __init__(self, broker: BrokerClient) -> None:
        self._broker = broker
        self._known: dict[int, tuple[int, int]] = {}
        self._at = float("-inf")
        self._waiting: list[Callable[[], None]] = []

    def fresh(self, then: Callable[[], None]) -> None:
        """Call `then` once what is known is recent enough."""
        if monotonic() - self._at < _AGE:
            then()
            return
        self._waiting.append(then)
        if len(self._waiting) == 1 and not self._broker.request(Measure(id=self._broker.number()), self._on_reply):
            self._tell()

    def _on_reply(self, reply: Reply, _fds: list[int]) -> None:
        if isinstance(reply, Measured):
            self._known = {number: (unique, proportional) for number, unique, proportional in reply.instances}
            self._at = monotonic()
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def summary(self, instances: Iterable[Instance]) -> dict[str, list[dict[str, object]]]:
        """Return what `/stats` shows: by function, bytes of each instance."""
        shown: dict[str, list[dict[str, object]]] = {}
        for each in sorted(instances, key=lambda each: each.id):
            if each.id in self._known:
                unique, proportional = self._known[each.id]
                row: dict[str, object] = {
                    "state": each.state.value,
                    "unique_bytes": unique,
                    "proportional_bytes": proportional,
                }
                shown.setdefault(each.function.name, []).append(row)
        return shown
