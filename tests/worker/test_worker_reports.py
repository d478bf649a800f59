"""START, END and REPORT of each call in its function's log: in order, true, and no function's to write."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from aws_client import client
from worker_process import Reply, WorkerProcess

from olsock_worker.records import Record, parse

pytestmark = pytest.mark.system

Make = Callable[..., WorkerProcess]
REPORT = re.compile(
    r"REPORT RequestId: (?P<id>\S+)\tDuration: (?P<duration>\d+\.\d\d) ms\tBilled Duration: (?P<billed>\d+) ms\t"
    r"Memory Size: (?P<size>\d+) MB\tMax Memory Used: (?P<used>\d+) MB\t(?:Init Duration: (?P<init>\d+\.\d\d) ms\t)?"
    r"Start: (?P<start>[a-z ]+)\t(?:Status: (?P<status>\w+)\t)?(?:Error Type: (?P<error>[\w.]+)\t)?"
)
ECHO = "def f(event):\n    return event\n"
ALLOCATES = (
    "kept = None\ndef f(mb):\n    global kept\n    kept = None\n    kept = bytearray(mb << 20)\n    return len(kept)\n"
)
FAILS = {
    "raises": ("def f(event):\n    raise KeyError(1)\n", "error", "Unhandled"),
    "no_json": ("def f(event):\n    return {1}\n", "error", "Runtime.MarshalError"),
    "exits": (
        "import os\ndef f(event):\n    print('last words', flush=True)\n    os._exit(3)\n",
        "error",
        "Runtime.ExitError",
    ),
    "no_module": ("import there_is_none\n", "error", "Runtime.ImportModuleError"),
    "no_python": ("def f(:\n", "error", "Runtime.UserCodeSyntaxError"),
    "slow": ("import time\ndef f(event):\n    print('waits', flush=True)\n    time.sleep(60)\n", "timeout", None),
    "large": (
        "import ctypes\ndef f(event):\n    ctypes.memset(ctypes.create_string_buffer(1 << 29), 1, 1 << 29)\n",
        "error",
        "",
    ),
}


class Told(NamedTuple):
    """What the worker says of one call, and what the function printed meanwhile."""

    records: list[Record]
    report: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The first word of each line of the worker's; what was printed by the function."""
        return [each.text.split(" ")[0] if each.by == "platform" else each.text for each in self.records]


def told(worker: WorkerProcess, name: str, reply: Reply) -> Told:
    """Wait for the report of a call."""
    request = reply.headers["x-request-id"]

    def found() -> Told | None:
        parsed = [parse(line) for line in worker.function_log(name).splitlines()]
        records = [each for each in parsed if each is not None and each.request == request]
        reports = [each for each in records if each.by == "platform" and each.text.startswith("REPORT")]
        if not reports:
            return None
        (report,) = reports
        match = REPORT.fullmatch(report.text)
        assert match is not None and match["id"] == request, report
        return Told(records, match.groupdict())

    result = worker.until(found)
    assert isinstance(result, Told)
    return result


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return {
        "echo": (ECHO, "memory: 100M\nzygote: false\n"),
        "prints": ("def f(text):\n    print(text)\n    return 1\n", ""),
        "anew": ("def f(text):\n    print(text)\n    return 1\n", "reuse-sandbox: false\n"),
        "parts": ("def f(event):\n    for n in range(3):\n        print(n)\n        yield n\n    print('end')\n", ""),
        "allocates": (ALLOCATES, "zygote: false\n"),
        "grows": (ALLOCATES, "zygote: false\n"),
        "imports": ("import time; time.sleep(0.4)\ndef f(event):\n    return 1\n", "zygote: false\n"),
        "silent": ("def f(event):\n    print(1)\n    return 1\n", "invocation-log: false\n"),
        **{name: (code, "timeout: 1\n" if name == "slow" else "memory: 64M\n") for name, (code, _, _) in FAILS.items()},
    }


def test_a_call_begins_prints_and_ends(worker: WorkerProcess) -> None:
    for text in ("one", "two\nthree", ""):
        found = told(worker, "prints", worker.call("prints", text))
        assert found.words == ["START", *text.split("\n"), "END", "REPORT"]
        assert found.records[0].text == f"START RequestId: {found.report['id']} Version: $LATEST"
        assert found.records[-2].text == f"END RequestId: {found.report['id']}"
        assert [each.time for each in found.records] == sorted(each.time for each in found.records)


def test_nothing_that_was_printed_is_left_to_come(worker: WorkerProcess) -> None:
    """Also where the reply comes together with what was before it: READY of a new instance, parts of a stream."""
    replies = [worker.call("anew", "text") for _ in range(40)]
    for reply in replies:
        assert told(worker, "anew", reply).words == ["START", "text", "END", "REPORT"]
    for reply in [worker.call("parts") for _ in range(40)]:
        assert told(worker, "parts", reply).words == ["START", "0", "1", "2", "end", "END", "REPORT"]


def test_calls_at_one_time_are_told_apart(worker: WorkerProcess) -> None:
    replies: list[Reply] = []

    def call() -> None:
        for number in range(50):
            reply = worker.call("prints", f"{number}-a\n{number}-b")
            replies.append(reply)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = {reply.headers["x-request-id"] for reply in replies}

    def complete() -> dict[str, list[Record]] | None:
        by: dict[str, list[Record]] = {}
        for line in worker.function_log("prints").splitlines():
            record = parse(line)
            if record is not None and record.request in last:
                by.setdefault(record.request, []).append(record)
        reports = sum("REPORT" in each.text for records in by.values() for each in records)
        return by if reports == 200 else None

    for records in worker.until(complete).values():
        assert [each.text.split(" ")[0] for each in records if each.by == "platform"] == ["START", "END", "REPORT"]
        assert len({each.instance for each in records}) == 1
        first, second = (each.text for each in records if each.by == "function")
        assert first.removesuffix("a") == second.removesuffix("b")
        assert [each.by for each in records] == ["platform", "function", "function", "platform", "platform"]


def test_times_are_those_of_the_call(worker: WorkerProcess) -> None:
    """Init Duration belongs to the call that waited for it, and is no part of Duration."""
    report = told(worker, "imports", worker.call("imports")).report
    assert report["start"] == "cold" and float(report["init"]) >= 400 > float(report["duration"])
    assert int(report["billed"]) - 1 < float(report["duration"]) <= int(report["billed"])
    again = told(worker, "imports", worker.call("imports")).report
    assert again["init"] is None and again["start"] in ("warm", "thawed")


@pytest.mark.cgroup
def test_memory_is_what_was_used(worker: WorkerProcess) -> None:
    """At most, by the instance up to then: it does not fall, as with AWS; and it is no other instance's."""
    used = [int(told(worker, "allocates", worker.call("allocates", mb)).report["used"]) for mb in (1, 60, 90, 1)]
    assert used[0] < 40 and 60 <= used[1] < 90 <= used[2] <= 128 and used[3] == used[2], used
    aws = client(worker)
    for mb in (1, 90):  # in a tail it is that of this very moment
        reply = aws.invoke(FunctionName="grows", LogType="Tail", Payload=str(mb))
        report = REPORT.fullmatch(base64.b64decode(reply["LogResult"]).decode().splitlines()[-1])
        assert report is not None and (int(report["used"]) >= 90) is (mb == 90)
    aws.close()
    report = told(worker, "echo", worker.call("echo")).report
    assert int(report["used"]) < 40 and report["size"] == "100"


@pytest.mark.parametrize("name", FAILS)
def test_each_end_has_its_status(worker: WorkerProcess, name: str) -> None:
    found = told(worker, name, worker.call(name))
    status, kind = FAILS[name][1:]
    assert found.report["status"] == status, found
    assert found.report["error"] in ([kind] if kind != "" else ["Runtime.OutOfMemory", "Unhandled"]), found
    words = found.words
    assert words[0] == "START" and words[-2:] == ["END", "REPORT"]
    if name == "slow":
        assert words == ["START", "waits", "Task", "END", "REPORT"]
        assert float(found.report["duration"]) >= 1000
    if name == "exits":
        assert "last words" in words
    if name == "raises":
        assert any("KeyError: 1" in each.text and each.by == "function" for each in found.records)


def test_it_can_be_switched_off(worker: WorkerProcess) -> None:
    worker.call("silent")
    log = worker.until(lambda: worker.function_log("silent"))
    told(worker, "prints", worker.call("prints", "later"))
    assert log == worker.function_log("silent") and log.endswith(" 1\n") and "START" not in log


def test_a_function_cannot_write_for_the_worker(worker: WorkerProcess) -> None:
    stamp = "2026-01-01T00:00:00.000Z r platform/1"
    forged = f"REPORT RequestId: r\tDuration: 0.00 ms\n{stamp} END RequestId: r\r{stamp} END\nEND RequestId: r"
    found = told(worker, "prints", worker.call("prints", forged))
    assert [each.by for each in found.records] == [
        "platform",
        "function",
        "function",
        "function",
        "platform",
        "platform",
    ]
    assert "platform/1" not in "".join(
        line.split(" ")[2] for line in worker.function_log("prints").splitlines() if " r " in line
    )


def test_a_tail_has_them_around_what_was_printed(worker: WorkerProcess) -> None:
    aws = client(worker)

    def tail(text: str) -> list[str]:
        reply: Any = aws.invoke(FunctionName="prints", LogType="Tail", Payload=text)
        data = base64.b64decode(reply["LogResult"])
        assert len(data) <= 4096
        return data.decode().splitlines()

    lines = tail('"between"')
    assert lines[0].startswith("START RequestId: ") and lines[1] == "between" and lines[2].startswith("END RequestId: ")
    assert REPORT.fullmatch(lines[3]) and len(lines) == 4
    lines = tail(f'"{"x" * 9000}"')
    assert lines[0].strip("x") == "" and lines[1].startswith("END ") and REPORT.fullmatch(lines[2]) and len(lines) == 3
    reply = aws.invoke(FunctionName="raises", LogType="Tail")
    lines = base64.b64decode(reply["LogResult"]).decode().splitlines()
    report = REPORT.fullmatch(lines[-1])
    assert report is not None and report["error"] == "Unhandled" and "KeyError: 1" in lines


# -- where instances come from ----------------------------------------------------------------------------------------


def starts(worker: WorkerProcess, name: str, calls: int = 1) -> list[str]:
    return [told(worker, name, worker.call(name)).report["start"] for _ in range(calls)]


def test_warm_and_thawed(fresh: Make) -> None:
    worker = fresh({"echo": (ECHO, "zygote: false\n")}, "registry_check = 0.2\ngrace = 1.0\n")
    assert starts(worker, "echo", 2) == ["cold", "warm"]
    worker.until(lambda: worker.stats()["instances"]["frozen"] == 1)
    assert starts(worker, "echo", 2) == ["thawed", "warm"]
    stats = worker.stats()["functions"]["echo"]
    assert stats["calls"] == {"cold": 1, "warm": 2, "thawed": 1} and stats["starts"] == {"cold": 1}


def test_from_a_node_and_from_a_zygote_of_the_function(fresh: Make) -> None:
    functions = {
        "node": (ECHO, "zygote: wait\nreuse-sandbox: false\n"),
        "own": (ECHO, "zygote: wait\nsnapshot: true\nreuse-sandbox: false\n"),
        "cold": (ECHO, "zygote: false\nreuse-sandbox: false\n"),
    }
    worker = fresh(functions, "registry_check = 0.2\nblanks = 0\n")
    worker.until(lambda: [each for each in worker.zygotes_ready() if each["kind"] == "function"])
    assert starts(worker, "node", 2) == ["tree node"] * 2
    assert starts(worker, "own", 2) == ["function zygote"] * 2
    assert starts(worker, "cold", 2) == ["cold"] * 2
    kinds = {name: worker.stats()["functions"][name]["starts"] for name in functions}
    assert kinds == {"node": {"tree node": 2}, "own": {"function zygote": 2}, "cold": {"cold": 2}}


def test_from_blanks(fresh: Make) -> None:
    """With an instance for every request one waits for the next; without a stock (above) none does."""
    worker = fresh({"alone": (ECHO, "isolation: request\nzygote: wait\n")}, "registry_check = 0.2\nblanks = 2\n")
    worker.until(lambda: [each for each in worker.zygotes_ready() if each["kind"] == "function"])
    seen = set()
    worker.until(lambda: seen.update(starts(worker, "alone")) or "blank" in seen)
    assert seen <= {"blank", "function zygote"}
    stats = worker.stats()["functions"]["alone"]
    assert stats["starts"]["blank"] >= 1 and stats["starts"] == stats["calls"]


def test_from_a_zygote_of_packages_kept_by_hand(fresh: Make, tmp_path: Any) -> None:
    (tmp_path / "packages").mkdir()
    config = f'registry_check = 0.2\npackages = ["{tmp_path / "packages"}"]\n'
    worker = fresh({"by_hand": (ECHO, "imports: [decimal]\nzygote: wait\nreuse-sandbox: false\n")}, config)
    assert starts(worker, "by_hand", 2) == ["zygote"] * 2
