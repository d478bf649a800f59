"""How many calls run at one time: of all functions, of those with a reservation, and what is said when it is too many."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aws_client import create
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from worker_process import Reply, WorkerProcess

from olsock_worker.concurrency import OVER_ALL, OVER_RESERVED, Concurrency

NAP = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n"
HANDLER = {"app.py": "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"}


# -- counting ---------------------------------------------------------------------------------------------------------


class Model:
    """The rules once more, by counting everything each time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.reserved: dict[str, int] = {}
        self.running: Counter[str] = Counter()

    def over(self, name: str) -> str:
        if name in self.reserved:
            return OVER_RESERVED if self.running[name] >= self.reserved[name] else ""
        shared = sum(count for each, count in self.running.items() if each not in self.reserved)
        return OVER_ALL if shared >= max(0, self.most - sum(self.reserved.values())) else ""


@pytest.mark.unit
@given(
    st.lists(st.tuples(st.sampled_from(["begin", "end", "reserve", "free"]), st.sampled_from("abc"), st.integers(0, 4)))
)
def test_calls_are_counted_as_if_they_were_counted_anew(steps: list[tuple[str, str, int]]) -> None:
    counted, model = Concurrency(6), Model(6)
    for step, name, calls in steps:
        if step == "begin":
            assert counted.begin(name) == model.over(name)
            model.running[name] += 1
        elif step == "end" and model.running[name]:
            counted.end(name)
            model.running[name] -= 1
        elif step == "reserve":
            counted.reserve(name, calls)
            model.reserved[name] = calls
        elif step == "free":
            counted.reserve(name, None)
            model.reserved.pop(name, None)
        assert [counted.over(each) for each in "abc"] == [model.over(each) for each in "abc"]
        assert counted.unreserved == max(0, 6 - sum(model.reserved.values()))


@pytest.mark.unit
def test_a_tenth_is_left_to_those_without_a_reservation() -> None:
    counted = Concurrency(100)
    assert counted.fits("a", 90) and not counted.fits("a", 91)
    counted.reserve("a", 60)
    assert counted.fits("b", 30) and not counted.fits("b", 31) and counted.fits("a", 90)
    assert Concurrency(1).least == 1


# -- a worker ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config() -> str:
    return "registry_check = 0.2\nconcurrent_executions = 10\n[function]\nzygote = 'off'\n"


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return {"nap": (NAP, "memory: 32M\n"), "other": (NAP, "memory: 32M\n"), "one": (NAP, "concurrency: 1\n")}


def busy(worker: WorkerProcess, name: str, calls: int, seconds: float) -> Callable[[], list[Reply]]:
    """Have calls run; return what waits for their replies."""
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(worker.call(name, seconds))) for _ in range(calls)]
    for thread in threads:
        thread.start()

    def join() -> list[Reply]:
        for thread in threads:
            thread.join()
        return replies

    def taken() -> bool:
        functions = worker.stats()["functions"]
        return sum(each["requests"] - sum(each["statuses"].values()) for each in functions.values()) >= calls

    worker.until(taken)
    return join


def reason(call: Callable[..., Any], **given: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**given)
    assert error.value.response["Error"]["Code"] == "TooManyRequestsException"
    assert int(error.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
    return str(error.value.response["Reason"])


@pytest.mark.system
def test_all_functions_together(worker: WorkerProcess, aws: Any) -> None:
    join = busy(worker, "nap", 10, 3.0)
    for name in ("nap", "other"):
        reply = worker.call(name, 0)
        assert (reply.status, reply.error) == (429, "throttled") and int(reply.headers["retry-after"]) >= 1
        assert reason(aws.invoke, FunctionName=name, Payload=b"0") == OVER_ALL
    assert [reply.status for reply in join()] == [200] * 10
    assert worker.call("other", 0).status == 200
    assert worker.stats()["functions"]["other"]["statuses"] == {"200": 1, "429": 2}


@pytest.mark.system
def test_calls_that_wait_count_too(worker: WorkerProcess) -> None:
    """And one whose client leaves does not count any longer."""
    worker.call("one", 0)
    before = worker.stats()["functions"]["one"]["requests"]
    socks = []
    for _ in range(10):
        sock = worker.connect()
        sock.sendall(b"POST /run/one HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n2.0")
        socks.append(sock)
    worker.until(lambda: worker.stats()["functions"]["one"]["requests"] == before + 10)
    assert worker.call("other", 0).status == 429
    for sock in socks[1:]:
        sock.close()
    worker.until(lambda: worker.call("other", 0).status == 200)
    socks[0].close()
    worker.until(lambda: worker.stats()["functions"]["one"]["statuses"].get("499") == 9)


@pytest.mark.system
def test_a_reservation_is_taken_from_the_others(worker: WorkerProcess, aws: Any) -> None:
    for name in ("kept", "more"):
        create(aws, name, HANDLER, Timeout=20)
    limit = aws.get_account_settings()["AccountLimit"]
    assert (limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"]) == (10, 10)
    aws.put_function_concurrency(FunctionName="kept", ReservedConcurrentExecutions=7)
    assert aws.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 3
    with pytest.raises(ClientError) as error:
        aws.put_function_concurrency(FunctionName="more", ReservedConcurrentExecutions=3)
    found = error.value.response["Error"]
    assert found["Code"] == "InvalidParameterValueException" and "below its minimum value of [1]" in found["Message"]
    assert "ReservedConcurrentExecutions" not in aws.get_function_concurrency(FunctionName="more")
    with pytest.raises(ClientError) as error:
        aws.put_function_concurrency(FunctionName="absent", ReservedConcurrentExecutions=9)
    assert error.value.response["Error"]["Code"] == "ResourceNotFoundException"

    join = busy(worker, "nap", 3, 3.0)  # all that is left to those without
    assert reason(aws.invoke, FunctionName="more", Payload=b"0") == OVER_ALL
    assert worker.call("other", 0).error == "throttled"
    assert aws.invoke(FunctionName="kept", Payload=b"0")["Payload"].read() == b"0", "its own are its own"
    join()
    join = busy(worker, "kept", 7, 3.0)
    assert reason(aws.invoke, FunctionName="kept", Payload=b"0") == OVER_RESERVED
    assert worker.call("kept", 0).error == "throttled"
    assert worker.call("other", 0).status == 200, "the others have theirs"
    assert [reply.status for reply in join()] == [200] * 7

    aws.delete_function_concurrency(FunctionName="kept")
    assert aws.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 10
    aws.put_function_concurrency(FunctionName="more", ReservedConcurrentExecutions=9)
    for name in ("kept", "more"):
        aws.delete_function(FunctionName=name)
    assert aws.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 10, (
        "it went with its function"
    )


@pytest.mark.system
def test_every_call_is_counted_until_its_end_and_no_longer(fresh: Callable[..., WorkerProcess]) -> None:
    """Whatever its end: with room for one call alone, a call too many in the books would be the last."""
    functions = {
        "echo": ("def f(event):\n    return event\n", ""),
        "raises": ("def f(event):\n    raise KeyError(1)\n", ""),
        "exits": ("import os\ndef f(event):\n    os._exit(3)\n", ""),
        "slow": ("import time\ndef f(event):\n    time.sleep(60)\n", "timeout: 0.2\n"),
        "broken": ("import there_is_none\n", ""),
        "parts": ("def f(event):\n    yield 1\n    yield 2\n", ""),
        "site": ("def app(environ, start):\n    start('204 No Content', [])\n    return []\n", "handler: 'f:app'\n"),
    }
    worker = fresh(functions, "registry_check = 0.2\nconcurrent_executions = 1\n")
    for _ in range(2):
        for name, status in zip(functions, (200, 500, 502, 504, 500, 200, 204), strict=True):
            assert worker.call(name, 1).status == status, name
        assert worker.request("/run/echo", b"no JSON").status == 400
    assert all("429" not in each["statuses"] for each in worker.stats()["functions"].values())
