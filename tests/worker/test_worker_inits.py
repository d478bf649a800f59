"""A function whose module cannot be imported: everybody is told, it is not tried at every call, and it is tried again."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from aws_client import active, client, create, invoke, zipped
from worker_process import Reply, WorkerProcess

from olsock_worker.policy.retries import FIRST, LONGEST, Retries

Make = Callable[..., WorkerProcess]
QUICK = "registry_check = 0.2\n[function]\nzygote = 'off'\n"


@pytest.mark.unit
def test_pauses_double_up_to_a_bound_and_begin_anew() -> None:
    retries, now = Retries(), 100.0
    pauses = []
    for _ in range(100):
        pauses.append(retries.failed(now))
        assert retries.pause(now) == pytest.approx(pauses[-1]) and not retries.pause(now + pauses[-1])
        now += pauses[-1]
    assert pauses[0] == FIRST and pauses[-1] == LONGEST and retries.failures == 100
    assert all(2 * a == b or b == LONGEST for a, b in itertools.pairwise(pauses))
    retries.worked()
    assert not retries.pause(now) and retries.failed(now) == FIRST


def starts(worker: WorkerProcess, name: str) -> int:
    return sum(worker.stats()["functions"][name]["starts"].values())


@pytest.mark.system
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("import there_is_none\n", 500, "init"),
        ("import os\nos._exit(3)\n", 502, "crash"),
        ("import time\ntime.sleep(60)\n", 504, "start_timeout"),
    ],
)
def test_it_is_not_started_at_every_call(fresh: Make, code: str, status: int, kind: str) -> None:
    """The control is a function that works: without a sandbox to keep, each of its calls has a start of its own."""
    functions = {
        "broken": (code, "init-timeout: 0.5\n"),
        "sound": ("def f(e):\n    return 1\n", "reuse-sandbox: false\n"),
    }
    worker = fresh(functions, QUICK)
    began = time.monotonic()
    replies = []
    while time.monotonic() - began < 3.0:
        replies.append(worker.call("broken"))
    assert {(reply.status, reply.error) for reply in replies} == {(status, kind)}
    # At 0, 0.25, 0.75 and 1.75 seconds, each after the one before has failed, and perhaps once more.
    assert len(replies) > 20 and 3 <= starts(worker, "broken") <= 5
    told = [reply for reply in replies if "retry-after" in reply.headers]
    assert len(told) == len(replies) - starts(worker, "broken") and all(
        int(r.headers["retry-after"]) >= 1 for r in told
    )
    shown = worker.status()["functions"]["broken"]["init"]
    assert shown["failures"] == starts(worker, "broken") and 0 <= shown["retry_s"] <= 4.0
    assert '"event":"init_failed"' in worker.log()
    for _ in range(10):
        assert worker.call("sound").status == 200
    assert starts(worker, "sound") == 10


@pytest.mark.system
def test_many_at_one_time_are_answered_with_one_start(fresh: Make) -> None:
    code = "import time\ntime.sleep(0.5)\nimport there_is_none\n"
    worker = fresh({"broken": (code, "")}, QUICK)
    assert worker.call("broken").error == "init"
    worker.until(lambda: not worker.status()["functions"]["broken"]["init"]["retry_s"])
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(worker.call("broken"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.error for reply in replies} == {"init"} and len(replies) == 16
    assert starts(worker, "broken") == 2


@pytest.mark.system
def test_it_is_tried_again_and_then_works_at_once(fresh: Make) -> None:
    """What it fails for goes away: here it looks at a clock, elsewhere it may be a service that was not there."""
    code = f"import time\nif time.time() < {time.time() + 4.0}: raise OSError('not yet')\ndef f(event):\n    return event\n"
    worker = fresh({"late": (code, "")}, QUICK)
    assert worker.call("late", 1).error == "init"
    assert worker.until(lambda: (reply := worker.call("late", 1)).status == 200 and reply).json == 1
    assert "init" not in worker.status()["functions"]["late"]
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(worker.call("late", 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.status for reply in replies} == {200}


@pytest.mark.system
def test_a_new_version_does_not_wait(fresh: Make) -> None:
    worker = fresh({}, QUICK)
    aws: Any = client(worker)
    create(aws, "fixed", {"app.py": "import there_is_none\n"})
    for _ in range(3):
        assert invoke(aws, "fixed")["result"]["errorType"] == "Runtime.ImportModuleError"
    assert worker.status()["functions"]["fixed"]["init"]["failures"] >= 1
    aws.update_function_code(FunctionName="fixed", ZipFile=zipped({"app.py": "def handler(e, c): return 1\n"}))
    active(aws, "fixed")
    assert invoke(aws, "fixed")["result"] == 1
    aws.close()
