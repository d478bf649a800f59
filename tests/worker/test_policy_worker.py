"""The policies at work in a real worker: who is evicted, who is kept, who is started ahead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from worker_process import WorkerProcess

from olsock_worker import broker_protocol
from olsock_worker.broker_client import BrokerClient
from olsock_worker.fleet import Fleet
from olsock_worker.policy.gdsf import Worth
from olsock_worker.policy.keepalive import LEAST_HISTORY
from olsock_worker.settings import load

pytestmark = pytest.mark.system

Make = Callable[..., WorkerProcess]
ECHO = "def f(event):\n    return event\n"
LARGE = "block = b'x' * (48 << 20)\n" + ECHO
DEAR = "import time; time.sleep(1.0)\n" + ECHO
QUICK = "registry_check = 0.2\n"


def instances(worker: WorkerProcess, name: str) -> int:
    count = worker.status()["functions"][name]["instances"]
    assert isinstance(count, int)
    return count


def kept(worker: WorkerProcess, name: str) -> dict[str, Any]:
    found = worker.stats()["functions"][name]["keep_alive"]
    assert isinstance(found, dict)
    return found


# -- eviction ------------------------------------------------------------------------------------------------


def test_what_was_dear_to_make_stays(fresh: Make) -> None:
    worker = fresh({"dear": (DEAR, ""), "cheap": (ECHO, ""), "new": (ECHO, "")}, QUICK + "instances = 2\n")
    assert worker.call("dear", 1).json == worker.call("cheap", 1).json == 1
    worker.until(lambda: worker.stats()["instances"]["frozen"] == 2)
    assert worker.call("new", 1).json == 1
    assert [instances(worker, name) for name in ("dear", "cheap", "new")] == [1, 0, 1]
    assert worker.stats()["evicted"] == {"instances": 1, "nodes": 0}


def test_memory_is_measured_and_the_larger_goes(fresh: Make) -> None:
    worker = fresh({"large": (LARGE, ""), "small": (ECHO, ""), "new": (ECHO, "")}, QUICK + "instances = 2\n")
    assert worker.call("small", 1).json == worker.call("large", 1).json == 1
    worker.until(lambda: worker.stats()["instances"]["frozen"] == 2)
    functions = worker.stats()["functions"]
    assert functions["large"]["memory_bytes"] >= 48 << 20 > functions["small"]["memory_bytes"] > 0
    assert worker.call("new", 1).json == 1
    assert [instances(worker, name) for name in ("large", "small", "new")] == [0, 1, 1]


class Node:
    """What a node of the zygote tree is to the fleet."""

    def __init__(self, worth: Worth, gone: list[Node]) -> None:
        self.worth = worth
        self.evictable = True
        self._gone = gone

    def evict(self) -> None:
        self._gone.append(self)


def test_nodes_of_the_tree_count_in_the_budget_and_are_evicted() -> None:
    async def main() -> None:
        ours, theirs = broker_protocol.socketpair()
        with ours, theirs:
            client = BrokerClient(ours, lambda _state: None, lambda: None, lambda: None)
            fleet = Fleet(load(None, {"memory_budget": "100M"}), client)
            gone: list[Node] = []
            cheap, dear, needed = (Node(fleet.values.new(cost, 30 << 20), gone) for cost in (10.0, 500.0, 1.0))
            needed.evictable = False
            fleet.nodes |= {cheap, dear, needed}
            assert fleet.admit(10 << 20) and not gone
            assert not fleet.admit(20 << 20, limit=cheap.worth.value()), "not for what is worth no more"
            assert fleet.admit(20 << 20) and gone == [cheap]
            assert not fleet.admit(80 << 20) and gone == [cheap, dear], "what is in use stays"
            assert fleet.nodes == {needed} and fleet.evicted["nodes"] == 2
            needed.worth.size = 120 << 20  # it has grown
            needed.evictable = True
            assert fleet.admit(0) and not fleet.nodes

    asyncio.run(main())


# -- keep-alive ----------------------------------------------------------------------------------------------


def test_idle_instances_end_after_a_fixed_time(fresh: Make) -> None:
    worker = fresh({"echo": (ECHO, "")}, QUICK + "keep_alive = 0.3\n")
    assert worker.call("echo", 1).status == 200
    worker.until(lambda: not instances(worker, "echo"))
    figures = kept(worker, "echo")
    assert figures["window"] == {"by": "fixed", "prewarm_s": 0.0, "keep_s": 0.3}
    assert (figures["expired"], figures["prewarms"]) == (1, 0) and figures["wasted_s"] >= 0.3
    assert worker.call("echo", 2).json == 2, "and it is there when it is called again"


def test_calls_keep_an_instance(fresh: Make) -> None:
    worker = fresh({"echo": (ECHO, "")}, QUICK + "keep_alive = 5\n")
    end = time.monotonic() + 6.0
    while time.monotonic() < end:
        worker.call("echo", 1)
        time.sleep(0.2)
    assert instances(worker, "echo") == 1 and kept(worker, "echo")["expired"] == 0


def test_a_function_is_started_ahead_of_its_next_call(fresh: Make) -> None:
    """Called every second or so; once that is known it is ended at once, and there again when it is due."""
    worker = fresh({"echo": (ECHO, "")}, QUICK + "keep_alive_bin = 0.5\n")
    for _ in range(LEAST_HISTORY + 1):
        assert worker.call("echo", 1).status == 200
        time.sleep(0.7)
    worker.call("echo", 1)
    worker.until(lambda: kept(worker, "echo")["window"]["by"] == "history")

    def taken() -> bool:
        time.sleep(0.7)
        worker.call("echo", 1)
        return bool(kept(worker, "echo")["hits"])

    worker.until(taken)
    figures = kept(worker, "echo")
    assert figures["prewarms"] > 0 and figures["expired"] > 0 and figures["window"]["prewarm_s"] >= 0.4
    # Now nobody calls: what is started ahead once more ends unused, and nothing is started after that.
    misses = figures["misses"]
    worker.until(lambda: kept(worker, "echo")["misses"] > misses)
    worker.until(lambda: not instances(worker, "echo"))
    prewarms = kept(worker, "echo")["prewarms"]
    time.sleep(2.0)
    assert kept(worker, "echo")["prewarms"] == prewarms and not instances(worker, "echo")


def test_nobody_is_evicted_for_what_may_be_called(fresh: Make) -> None:
    """The room is full with a function that was dearer to make: the due one has to wait for its call."""
    config = QUICK + "keep_alive_bin = 0.05\ninstances = 1\n"
    worker = fresh({"echo": (ECHO, ""), "dear": (DEAR, "")}, config)
    for _ in range(LEAST_HISTORY + 1):
        assert worker.call("echo", 1).status == 200
        time.sleep(0.5)
    worker.call("echo", 1)
    worker.until(lambda: kept(worker, "echo")["expired"] and not instances(worker, "echo"))
    prewarms = kept(worker, "echo")["prewarms"]
    assert worker.call("dear", 1).status == 200
    time.sleep(2.0)
    assert kept(worker, "echo")["prewarms"] == prewarms and instances(worker, "dear") == 1
    assert worker.call("echo", 1).status == 200, "a call evicts"
