"""A disk that is full: events are refused, none that was accepted is lost, and all goes on when there is room again."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from worker_process import WorkerProcess

pytestmark = pytest.mark.fault

SLOW = "import time\ndef f(event):\n    print('ran', event['n'], flush=True)\n    time.sleep(event['s'])\n"


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess(tmp_path / "worker", "registry_check = 0.2\n[events]\nfunction_running = 4\n")
    store = process.state / "store"
    store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", store], check=True)
    try:
        process.deploy("slow", SLOW, "timeout: 60\n")
        process.start()
        yield process
        assert process.stop() == 0
    finally:
        process.kill()
        subprocess.run(["umount", store], check=True)


def send(worker: WorkerProcess, event: object) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30.0)) as connection:
        headers = {"X-Amz-Invocation-Type": "Event"}
        connection.request("POST", "/2015-03-31/functions/slow/invocations", json.dumps(event), headers)
        reply = connection.getresponse()
        data = reply.read()
        assert reply.status == 202 or json.loads(data)["Type"] == "Service", data
        return reply.status


def runs(worker: WorkerProcess) -> Counter[int]:
    return Counter(map(int, re.findall(r" ran (\d+)$", worker.function_log("slow"), re.MULTILINE)))


def test_a_full_disk(cramped: WorkerProcess) -> None:
    worker = cramped
    accepted: list[int] = []
    # The first run until the disk is full, and then their ends cannot be written down.
    for number in range(200):
        status = send(worker, {"n": number, "s": 4 if number < 4 else 0, "x": "x" * 100_000})
        if status != 202:
            break
        accepted.append(number)
    assert status == 500 and len(accepted) > 8
    worker.until(lambda: worker.call("slow", {"n": -1, "s": 0}).status == 200, timeout=30.0)
    worker.until(lambda: '"event":"events"' in worker.log(), timeout=30.0)
    subprocess.run(["mount", "-o", "remount,size=64M", worker.state / "store"], check=True)
    worker.until(lambda: worker.stats()["events"]["waiting"] == 0, timeout=60.0)
    worker.until(lambda: runs(worker).keys() >= set(accepted))
    ran = runs(worker)
    assert all(ran[number] == 1 for number in accepted), "what could not be written down was not done again"
    assert send(worker, {"n": 999, "s": 0}) == 202
    worker.until(lambda: worker.stats()["events"]["waiting"] == 0)
