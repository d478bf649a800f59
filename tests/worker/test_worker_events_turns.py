"""Whose event is next: what is slow, broken or throttled delays nobody else, and each function has its turn."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from worker_process import WorkerProcess, kill

from olsock_worker.metrics import OTHERS

pytestmark = pytest.mark.system

Make = Callable[..., WorkerProcess]
SLOW = (
    "import time\ndef f(event):\n    print('ran', event, flush=True)\n    time.sleep(event['s'])\n",
    "timeout: 120\n",
)
BROKEN = ("def f(event):\n    raise KeyError(event['n'])\n", "")
QUICK = ("def f(event):\n    print('ran', event, flush=True)\n", "")
STOP = "registry_check = 0.2\ndrain = 0.2\n"


def send(worker: WorkerProcess, name: str, events: list[Any]) -> None:
    """Have a function called for each of some events, over one connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30.0)) as connection:
        for event in events:
            body, headers = json.dumps(event), {"X-Amz-Invocation-Type": "Event"}
            connection.request("POST", f"/2015-03-31/functions/{name}/invocations", body, headers)
            reply = connection.getresponse()
            assert (reply.status, reply.read()) == (202, b"")


def ran(worker: WorkerProcess, name: str) -> list[str]:
    return re.findall(r"^.*? ran (.*)$", worker.function_log(name), re.MULTILINE)


def events(worker: WorkerProcess) -> Any:
    return worker.stats()["events"]


def test_slow_and_broken_functions_delay_nobody(fresh: Make) -> None:
    """Both have more events than may run in all, and they came first."""
    functions = {"slow": SLOW, "other": SLOW, "broken": BROKEN, "quick": QUICK}
    worker = fresh(functions, STOP + "[events]\nrunning = 6\nfunction_running = 4\nretry_delay = 30.0\nbackoff = 0.1\n")
    send(worker, "slow", [{"s": 100}] * 100)
    send(worker, "other", [{"s": 100}] * 100)
    worker.until(lambda: len(ran(worker, "slow")) + len(ran(worker, "other")) >= 6)
    send(worker, "broken", [{"n": number} for number in range(50)])
    send(worker, "quick", [{"n": number} for number in range(50)])
    worker.until(lambda: len(ran(worker, "quick")) == 50)
    worker.until(lambda: events(worker)["attempts"]["error"] == 50)
    assert len(ran(worker, "slow")) + len(ran(worker, "other")) in (6, 7, 8), "all of those that run run still"
    assert events(worker)["waiting_by_function"] == {"slow": 100, "other": 100, "broken": 50}


def test_functions_take_turns(fresh: Make) -> None:
    """The many events of one, which came first, and the few of others are begun side by side."""
    names = ["a", "b", "c"]
    code = (
        "import time\ndef f(event):\n    print('ran', event, flush=True)\n    time.sleep(0.02)\n",
        "concurrency: 1\n",
    )
    worker = fresh({"many": code, **dict.fromkeys(names, code)}, "[events]\nrunning = 2\n")
    send(worker, "many", list(range(300)))
    for name in names:
        send(worker, name, list(range(10)))
    worker.until(lambda: all(len(ran(worker, name)) == 10 for name in names))
    before = len(ran(worker, "many"))
    assert before < 250, "the others had to wait for nearly all of it"
    worker.until(lambda: events(worker)["waiting"] == 0)
    worker.until(lambda: sorted(map(int, ran(worker, "many"))) == list(range(300)))


def test_a_version_that_is_throttled_waits_alone(fresh: Make) -> None:
    """One instance is all that the host has room for, and it is another's for a while."""
    worker = fresh({"slow": SLOW, "quick": QUICK}, "registry_check = 0.2\ninstances = 1\n[events]\nbackoff = 0.1\n")
    caller = threading.Thread(target=worker.call, args=("slow", {"s": 2}))
    caller.start()
    worker.until(lambda: ran(worker, "slow"))
    send(worker, "quick", [1, 2, 3])
    worker.until(lambda: events(worker)["attempts"]["throttled"] >= 2)
    assert ran(worker, "quick") == [] and events(worker)["attempts"]["error"] == 0
    caller.join(30.0)
    worker.until(lambda: sorted(ran(worker, "quick")) == ["1", "2", "3"])
    worker.until(lambda: events(worker)["waiting"] == 0)


def test_memory_holds_a_window_of_the_queue(fresh: Make) -> None:
    """A hundred and fifty megabytes wait, of which the front has few in memory."""
    config = STOP + "[events]\nfunction_running = 1\n"
    worker = fresh({"slow": SLOW}, config)
    send(worker, "slow", [{"s": 100}])
    front = psutil.Process(worker.front)
    before = front.memory_info().rss
    send(worker, "slow", [{"s": 0, "x": "x" * 250_000}] * 600)
    assert events(worker)["waiting_bytes"] > 150_000_000
    assert front.memory_info().rss - before < 60_000_000


# -- the worker's own end -----------------------------------------------------------------------------------------


def test_a_drain_begins_nothing_new_and_the_next_start_goes_on(fresh: Make) -> None:
    slow = (SLOW[0], "timeout: 30\nconcurrency: 2\n")
    worker = fresh({"slow": slow}, "registry_check = 0.2\n")
    send(worker, "slow", [{"s": 1, "n": number} for number in range(6)])
    worker.until(lambda: len(ran(worker, "slow")) == 2)
    assert worker.stop() == 0
    assert len(ran(worker, "slow")) == 2, "those that ran were given their time, and no other was begun"
    assert worker.log().count('"event":"events"') == 0
    worker.start()
    assert events(worker)["waiting"] == 4
    worker.until(lambda: len(ran(worker, "slow")) == 6)
    worker.until(lambda: events(worker)["waiting"] == 0)
    found = [json.loads(each.replace("'", '"'))["n"] for each in ran(worker, "slow")]
    assert sorted(found) == list(range(6)), "each once"


@pytest.mark.fault
@pytest.mark.parametrize("who", ["broker", "front"])
def test_what_was_cut_short_is_done_again(fresh: Make, who: str) -> None:
    worker = fresh({"slow": SLOW, "quick": QUICK}, "registry_check = 0.2\n")
    send(worker, "slow", [{"s": 1}])
    worker.until(lambda: len(ran(worker, "slow")) == 1)
    kill(worker.pid if who == "broker" else worker.front)
    assert worker.process is not None
    worker.process.wait(30.0)
    worker.start()
    worker.until(lambda: events(worker)["waiting"] == 0)
    worker.until(lambda: len(ran(worker, "slow")) == 2)
    assert events(worker)["attempts"] == {"success": 1, "error": 0, "throttled": 0}, "the kill was not its fault"


def test_events_wait_for_a_directory_that_is_being_deployed(fresh: Make) -> None:
    """At the start nothing is deployed yet, and what the last worker had accepted is not taken for orphaned."""
    worker = fresh({"slow": SLOW}, STOP)
    send(worker, "slow", [{"s": 30}])
    worker.until(lambda: len(ran(worker, "slow")) == 1)
    worker.kill()
    worker.deploy("slow", SLOW[0], "nonsense: 1\n")
    worker.start()
    worker.until(lambda: "nonsense" in worker.status()["functions"]["slow"].get("error", ""))
    assert events(worker)["waiting"] == 1 and events(worker)["dead_letters"]["kept"] == 0
    worker.deploy("slow", QUICK[0])
    worker.until(lambda: len(ran(worker, "slow")) == 2)
    worker.until(lambda: events(worker)["waiting"] == 0)


def test_events_of_a_directory_that_is_gone_are_dead(fresh: Make) -> None:
    worker = fresh({"slow": SLOW}, STOP + "[events]\nfunction_running = 1\n")
    send(worker, "slow", [{"s": 60}, {"s": 1}])
    worker.until(lambda: len(ran(worker, "slow")) == 1)
    worker.kill()
    (worker.registry / "slow").rename(worker.registry / ".slow")
    worker.start()
    worker.until(lambda: events(worker)["waiting"] == 0)
    assert events(worker)["dead_letters"]["by_reason"] == {"ResourceNotFound": 2}


def test_metrics_tell_the_same_and_labels_are_bounded(fresh: Make) -> None:
    functions = {**dict.fromkeys(("a", "b", "c"), SLOW), "broken": BROKEN}
    worker = fresh(functions, STOP + "metrics_functions = 2\n[events]\nretries = 0\nfunction_running = 1\n")
    for name, count in (("a", 5), ("b", 3), ("c", 2)):
        send(worker, name, [{"s": 100}] * count)
    send(worker, "broken", [{"n": 1}])
    worker.until(lambda: events(worker)["dead_letters"]["kept"] == 1)
    text = worker.request("/metrics", method="GET").body.decode()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for key, value in {
        ("olsock_events_accepted_total",): 11,
        ("olsock_events_waiting", "a"): 5,
        ("olsock_events_waiting", "b"): 3,
        ("olsock_events_waiting", OTHERS): 2,
        ("olsock_events_running",): 3,
        ("olsock_event_attempts_total", "error"): 1,
        ("olsock_event_dead_letters_total", "RetriesExhausted"): 1,
        ("olsock_dead_letters",): 1,
    }.items():
        assert found[key] == value, key
    assert found["olsock_events_oldest_seconds",] > 0
    assert len([key for key in found if key[0] == "olsock_events_waiting"]) == 3
