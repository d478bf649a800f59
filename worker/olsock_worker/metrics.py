"""The page /metrics: what is counted anyway, in the text format of Prometheus, put together when it is asked for.

Labels are bounded: the functions that are called most have rows of their own, all others share one. Names and units follow
https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from olsock_worker.stats import FunctionStats, Histogram

if TYPE_CHECKING:
    from olsock_worker.broker_protocol import ZygoteState
    from olsock_worker.edge import Edge
    from olsock_worker.events.figures import Figures
    from olsock_worker.fleet import Fleet
    from olsock_worker.stats import Gains

_VERSION = version("olsock")  # now: later this process may not read where it was installed
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_VERSION = version("olsock")  # read as long as we may read wherever this is installed
OTHERS = "_other_"  # no function can be called that
STAGES = ("total", "queue", "start", "run")
# Powers of four of a microsecond, 64 us to 18 minutes: limits that a `Histogram` knows exactly.
LIMITS_US = tuple(4**power for power in range(3, 16))

Row = tuple[str, FunctionStats, int]  # name, what was counted, how many wait


class Metrics:
    """Collects from the front's own objects."""

    def __init__(self, fleet: Fleet, most: int) -> None:
        self._fleet, self._most = fleet, most
        self._edge: Edge | None = None
        self._events: Figures
        self._refused: dict[str, int] = {}
        self._zygotes: dict[str, ZygoteState] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(
        self, edge: Edge, refused: dict[str, int], zygotes: dict[str, ZygoteState], gains: Gains, events: Figures
    ) -> bytes:
        """Return the page as it is now."""
        self._edge, self._refused, self._zygotes, self._events = edge, refused, zygotes, events
        self._gains = gains
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family; called by the registry."""
        if self._edge is None:
            return  # it is being registered
        rows = self._rows()
        yield from _of_functions(rows)
        yield _gauge("olsock_instances", "Instances by what they do.", "state", self._fleet.states())
        yield _counter("olsock_evictions", "What had to go for want of room.", "kind", self._fleet.evicted)
        yield _counter("olsock_rejections", "Requests that reached no function.", "code", self._refused)
        yield from self._of_zygotes()
        yield _counter("olsock_zygote_hits", "New instances that were forked from zygotes.", "kind", self._gains.hits)
        yield _counter(
            "olsock_zygote_misses", "New instances that a zygote had been better for.", "kind", self._gains.misses
        )
        yield from self._events.collect()
        yield GaugeMetricFamily("olsock_connections", "Connections that are open.", len(self._edge))
        yield GaugeMetricFamily("olsock_draining", "Whether the worker is about to end.", int(self._edge.draining))
        yield InfoMetricFamily("olsock_build", "The version that runs.", {"version": _VERSION})

    def _rows(self) -> list[Row]:
        """The functions with rows of their own, and the others as one."""
        functions = sorted(self._fleet.functions.values(), key=lambda each: (-each.stats.requests, each.name))
        rows = [(each.name, each.stats, len(each.queue)) for each in functions[: self._most]]
        others = functions[self._most :]
        if others:
            together = FunctionStats.together(each.stats for each in others)
            rows.append((OTHERS, together, sum(len(each.queue) for each in others)))
        return rows

    def _of_zygotes(self) -> Iterator[Metric]:
        counts, sizes = Counter[tuple[str, str]](), Counter[str]()
        for each in self._zygotes.values():
            counts[each.kind, each.state] += 1
            sizes[each.kind] += each.memory
        family = GaugeMetricFamily("olsock_zygotes", "Zygotes by what they are and do.", labels=("kind", "state"))
        for labels, count in sorted(counts.items()):
            family.add_metric(labels, count)
        yield family
        yield _gauge("olsock_zygote_memory_bytes", "Memory of zygotes that nobody else has.", "kind", sizes)


def _of_functions(rows: Iterable[Row]) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "olsock_invocations", "Requests by how they were answered.", labels=("function", "code")
    )
    starts = CounterMetricFamily("olsock_starts", "New instances by what they began from.", labels=("function", "kind"))
    kinds = CounterMetricFamily(
        "olsock_invocation_starts", "Requests by where their instance came from.", labels=("function", "kind")
    )
    cold = CounterMetricFamily("olsock_cold_invocations", "Requests that waited for a start.", labels=("function",))
    depth = GaugeMetricFamily("olsock_queue_depth", "Requests that wait.", labels=("function",))
    memory = GaugeMetricFamily(
        "olsock_instance_memory_bytes", "Charged to the instance that was looked at last.", labels=("function",)
    )
    times = HistogramMetricFamily(
        "olsock_invocation_duration_seconds",
        "total: request to reply; queue: for an instance; start: of an instance; run: of the function.",
        labels=("function", "stage"),
    )
    for name, stats, waiting in rows:
        for status, count in sorted(stats.statuses.items()):
            calls.add_metric((name, str(status)), count)
        for kind, count in sorted(stats.starts.items()):
            starts.add_metric((name, kind), count)
        for kind, count in sorted(stats.calls.items()):
            kinds.add_metric((name, kind), count)
        cold.add_metric((name,), stats.cold)
        depth.add_metric((name,), waiting)
        memory.add_metric((name,), stats.memory)
        for stage in STAGES:
            histogram: Histogram = getattr(stats, stage)
            times.add_metric((name, stage), _buckets(histogram), histogram.total)
    yield from (calls, starts, kinds, cold, depth, memory, times)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    below = [(str(limit / 1e6), float(histogram.below(limit))) for limit in LIMITS_US]
    return [*below, ("+Inf", float(histogram.count))]


def _gauge(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family
