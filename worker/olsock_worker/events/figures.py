"""What is counted about events, as /stats and /metrics show it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from olsock_worker.stats import Histogram

if TYPE_CHECKING:
    from olsock_worker.events.backlog import Backlog
    from olsock_worker.events.interface import EventQueue

_OTHERS = "_other_"


class Figures:
    """Counts since the start, and how much there is now."""

    def __init__(self, backlog: Backlog, queue: EventQueue, functions: int) -> None:
        self.accepted = 0
        self.refused = 0  # for want of room
        self.attempts: Counter[str] = Counter()  # by how they ended: success, error, throttled
        self.retries = 0
        self.buried: Counter[str] = Counter()  # by reason
        self.running = 0
        self.age = Histogram()  # of events when they were handed to their function
        self._backlog, self._queue, self._functions = backlog, queue, functions

    @property
    def oldest(self) -> float:
        """For how many seconds the event has waited that has waited longest."""
        oldest = self._queue.oldest
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    def summary(self) -> dict[str, object]:
        """Return what `/stats` shows."""
        letters = self._queue.letters
        return {
            "waiting": self._backlog.count,
            "waiting_bytes": self._backlog.size,
            "waiting_by_function": self._depths(),
            "running": self.running,
            "oldest_s": round(self.oldest, 3),
            "accepted": self.accepted,
            "refused": self.refused,
            "attempts": {kind: self.attempts[kind] for kind in ("success", "error", "throttled")},
            "retries": self.retries,
            "age": self.age.summary(),
            "dead_letters": {
                "kept": letters.count,
                "kept_bytes": letters.size,
                "dropped": letters.dropped,
                "by_reason": dict(sorted(self.buried.items())),
            },
        }

    def _depths(self) -> dict[str, int]:
        """Return how many events wait by function: those with most, and the others together."""
        depths = Counter[str]()
        for lane in self._backlog:
            depths[lane.name] += lane.count
        most = depths.most_common()
        shown = dict(most[: self._functions])
        if len(most) > len(shown):
            shown[_OTHERS] = sum(count for _, count in most[self._functions :])
        return shown

    def collect(self) -> Iterator[Metric]:
        """Yield what `/metrics` shows."""
        letters = self._queue.letters
        yield CounterMetricFamily("olsock_events_accepted", "Events that were accepted.", self.accepted)
        yield CounterMetricFamily("olsock_events_refused", "Events for which there was no room.", self.refused)
        yield _counter("olsock_event_attempts", "Attempts by how they ended.", "result", self.attempts)
        yield CounterMetricFamily("olsock_event_retries", "Attempts that were put off after an error.", self.retries)
        yield _counter("olsock_event_dead_letters", "Events that were given up.", "reason", self.buried)
        depth = GaugeMetricFamily("olsock_events_waiting", "Events that wait or run.", labels=("function",))
        for name, count in self._depths().items():
            depth.add_metric((name,), count)
        yield depth
        yield GaugeMetricFamily("olsock_events_waiting_bytes", "Bytes that these take.", self._backlog.size)
        yield GaugeMetricFamily("olsock_events_running", "Events that run.", self.running)
        yield GaugeMetricFamily("olsock_events_oldest_seconds", "Age of the oldest of them.", self.oldest)
        yield GaugeMetricFamily("olsock_dead_letters", "Dead letters that are kept.", letters.count)
        yield GaugeMetricFamily("olsock_dead_letters_bytes", "Bytes that these take.", letters.size)
        yield CounterMetricFamily("olsock_dead_letters_dropped", "Dead letters that had to go.", letters.dropped)


def _counter(name: str, text: str, label: str, values: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family
