"""The page /metrics: read back by Prometheus's own parser, and the same as /stats tells."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from worker_process import WorkerProcess

from olsock_worker.broker_protocol import Origin
from olsock_worker.metrics import LIMITS_US, OTHERS
from olsock_worker.stats import FunctionStats, Histogram


def families(worker: WorkerProcess) -> dict[str, Metric]:
    reply = worker.request("/metrics", method="GET")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {each.name: each for each in text_string_to_metric_families(reply.body.decode())}


def value(metric: Metric, sample: str = "", **labels: str) -> float:
    """The one sample with these labels."""
    name = sample or metric.name
    (found,) = [each.value for each in metric.samples if each.name == name and labels.items() <= each.labels.items()]
    return float(found)


@pytest.mark.system
def test_it_is_what_stats_tells(worker: WorkerProcess) -> None:
    for number in range(5):
        assert worker.call("echo", number).json == number
    assert worker.call("absent").status == 404
    assert worker.request("/run/echo", body=b"no JSON").status == 400
    stats, found = worker.stats(), families(worker)
    echo = stats["functions"]["echo"]
    calls = found["olsock_invocations"]
    for code, count in echo["statuses"].items():
        assert value(calls, "olsock_invocations_total", function="echo", code=code) == count
    assert echo["statuses"] == {"200": 5, "400": 1}
    assert value(found["olsock_rejections"], "olsock_rejections_total", code="404") == stats["refused"]["404"]
    kinds = {
        each.labels["kind"]: each.value for each in found["olsock_starts"].samples if each.labels["function"] == "echo"
    }
    assert kinds == echo["starts"] and sum(kinds.values()) == 1
    calls = found["olsock_invocation_starts"]
    kinds = {each.labels["kind"]: each.value for each in calls.samples if each.labels["function"] == "echo"}
    assert {name.removesuffix("_total"): count for name, count in kinds.items()} == echo["calls"]
    assert sum(kinds.values()) == 6 and kinds.keys() <= {*get_args(Origin), "warm", "thawed"}
    times = found["olsock_invocation_duration_seconds"]
    for stage in ("total", "queue", "start", "run"):
        labels = {"function": "echo", "stage": stage}
        assert value(times, f"{times.name}_count", **labels) == echo[stage]["count"]
        assert value(times, f"{times.name}_sum", **labels) == pytest.approx(
            echo[stage]["mean_ms"] * echo[stage]["count"] / 1e3, rel=0.01, abs=1e-5
        )
    assert sum(each.value for each in found["olsock_instances"].samples) == sum(stats["instances"].values())
    assert value(found["olsock_draining"]) == 0
    assert {
        "process_resident_memory_bytes",
        "olsock_zygotes",
        "olsock_zygote_hits",
        "olsock_queue_depth",
    } <= found.keys()


@pytest.mark.system
def test_labels_are_bounded(fresh: Callable[..., WorkerProcess]) -> None:
    code = ("def f(event):\n    return event\n", "")
    worker = fresh(dict.fromkeys(("a", "b", "c", "d"), code), "registry_check = 0.2\nmetrics_functions = 2\n")
    for name, calls in (("a", 1), ("b", 3), ("c", 2), ("d", 1)):
        for _ in range(calls):
            worker.call(name)
    calls = families(worker)["olsock_invocations"]
    counts = {each.labels["function"]: each.value for each in calls.samples}
    assert counts == {"b": 3, "c": 2, OTHERS: 2}


@pytest.mark.system
def test_it_is_only_read(worker: WorkerProcess) -> None:
    reply = worker.request("/metrics", body=b"{}")
    assert reply.status == 405 and reply.headers["allow"] == "GET, HEAD"


@pytest.mark.unit
def test_limits_of_buckets_are_exact() -> None:
    chance, histogram = random.Random(1), Histogram()
    values = [int(10 ** chance.uniform(0, 9.5)) for _ in range(5000)] + [
        each + off for each in LIMITS_US for off in (-1, 0)
    ]
    for each in values:
        histogram.add((each + 0.5) / 1e6)
    for limit in LIMITS_US:
        assert histogram.below(limit) == sum(each < limit for each in values)
    for limit in (0, 3, 8, 1000):
        with pytest.raises(ValueError):
            histogram.below(limit)


@pytest.mark.unit
def test_the_sum_of_functions_is_what_they_have_together() -> None:
    one, other = FunctionStats(), FunctionStats()
    for stats, times in ((one, 3), (other, 5)):
        for _ in range(times):
            stats.requests += 1
            stats.statuses[200] += 1
            stats.total.add(0.001 * times)
    found = FunctionStats.together([one, other])
    assert (found.requests, found.statuses, found.total.count) == (8, {200: 8}, 8)
    assert found.total.total == pytest.approx(0.034) and found.total.largest == pytest.approx(0.005)
    assert one.total.count == 3
