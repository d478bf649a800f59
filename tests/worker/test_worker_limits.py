"""What is bounded: instances, memory, sizes of requests and replies, time to start. And how a full host says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system

Make = Callable[..., WorkerProcess]
ECHO = "def f(event):\n    return event\n"
SLOW = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n"
QUICK = "registry_check = 0.2\n"


def test_a_full_host_is_a_503_and_idle_ones_make_room(fresh: Make) -> None:
    worker = fresh({"a": (SLOW, ""), "b": (SLOW, ""), "c": (ECHO, "")}, QUICK + "instances = 2\n")
    running = [threading.Thread(target=lambda name=name: replies.append(worker.call(name, 2.0))) for name in ("a", "b")]
    replies: list[Reply] = []
    for thread in running:
        thread.start()
    worker.until(lambda: worker.stats()["instances"]["busy"] == 2)
    refused = worker.call("c", 1)
    assert (refused.status, refused.error) == (503, "host_full") and int(refused.headers["retry-after"]) >= 1
    for thread in running:
        thread.join()
    assert [reply.status for reply in replies] == [200, 200]
    for _ in range(20):  # so that b's is worth least, however long either took to start
        worker.call("a", 0.0)
    assert worker.call("c", 1).json == 1
    functions = worker.status()["functions"]
    assert [functions[name]["instances"] for name in ("a", "b", "c")] == [1, 0, 1]


def test_memory_limits_are_bounded_together(fresh: Make) -> None:
    functions = {"a": (SLOW, "memory: 64M\n"), "b": (ECHO, "memory: 64M\n")}
    worker = fresh(functions, QUICK + 'memory_budget = "100M"\n')
    running = threading.Thread(target=lambda: worker.call("a", 1.5))
    running.start()
    worker.until(lambda: worker.stats()["instances"]["busy"] == 1)
    assert worker.call("b", 1).status == 503
    running.join()
    assert worker.call("b", 1).status == 200
    assert worker.status()["functions"]["a"]["instances"] == 0


def test_nothing_is_started_when_memory_is_short(fresh: Make) -> None:
    worker = fresh({"a": (ECHO, ""), "b": (ECHO, "")}, QUICK + 'memory_floor = "1000G"\n')  # always short
    assert worker.call("a", 1).status == 503  # nothing can be evicted for it


def test_large_requests_and_replies(fresh: Make) -> None:
    worker = fresh({"echo": (ECHO, ""), "grow": ("def f(n):\n    return 'x' * n\n", "")})
    text = "x" * (5 << 20)
    assert worker.call("echo", text).json == text
    reply = worker.call("grow", 7 << 20)
    assert (reply.status, reply.error) == (502, "reply_too_large")
    assert worker.call("grow", 10).json == "x" * 10


def test_a_handler_that_is_not_imported_in_time(fresh: Make) -> None:
    worker = fresh(
        {"late": ("import time; time.sleep(60)\n", ""), "echo": (ECHO, "")}, QUICK + "[function]\ninit_timeout = 1.0\n"
    )
    began = time.monotonic()
    reply = worker.call("late")
    assert (reply.status, reply.error) == (504, "start_timeout")
    assert time.monotonic() - began < 5.0
    assert worker.call("echo", 1).status == 200


def test_a_queue_does_not_wait_for_ever(fresh: Make) -> None:
    config = QUICK + "start_timeout = 0.5\n"
    worker = fresh({"slow": (SLOW, "concurrency: 1\ntimeout: 1\n"), "echo": (ECHO, "")}, config)
    worker.until(lambda: worker.call("slow", 0).status == 200)
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(worker.call("slow", 0.9))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(reply.status for reply in replies)
    assert statuses[0] == 200 and statuses[-1] == 503
    assert next(reply for reply in replies if reply.status == 503).error == "queue_timeout"


def test_imports_come_from_the_zygote(fresh: Make) -> None:
    """The module is there before the handler's own code runs: sys.modules says so on its first line."""
    code = "import sys\nseen = 'decimal' in sys.modules\ndef f(event):\n    return seen\n"
    functions = {
        "warm": (code, "imports: [decimal]\nzygote: wait\n"),
        "cold": (code, "imports: [decimal]\nzygote: false\n"),
        "half": (code, "imports: [decimal, there_is_no_such_module]\nzygote: wait\n"),
    }
    worker = fresh(functions)
    assert worker.call("warm").json is True
    assert worker.call("cold").json is False
    assert worker.call("half").json is True
    assert worker.status()["functions"]["cold"]["zygote"] == "off"
    details = [each["detail"] for each in worker.zygotes_ready() if "there_is_no_such_module" in each["imports"]]
    assert "there_is_no_such_module" in details[0]
