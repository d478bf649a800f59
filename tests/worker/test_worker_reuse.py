"""What stays from one call to the next, and what never does; and what else a function is limited to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from aws_client import active, client, create, invoke, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

KEEPS = """
import os
calls = 0
def handler(event, context):
    global calls
    calls += 1
    seen = sorted(os.listdir("/tmp"))
    if "write" in event:
        with open("/tmp/" + event["write"], "w") as file:
            file.write("x")
    return [calls, seen, os.getpid()]
"""
DISK = """
import errno, os
def handler(event, context):
    size = os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize >> 20
    fd = os.open("/tmp/file", os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, event["mb"] << 20)
        return [size, "fits"]
    except OSError as error:
        return [size, errno.errorcode[error.errno]]
    finally:
        os.close(fd)
        os.unlink("/tmp/file")
"""


@pytest.fixture(scope="module")
def aws(worker: WorkerProcess) -> Iterator[Any]:
    made = client(worker, parameter_validation=False)  # botocore's own limits are AWS's, which are narrower
    yield made
    made.close()


def test_globals_and_tmp_stay_in_an_instance(aws: Any) -> None:
    create(aws, "keeps", {"app.py": KEEPS})
    first, second = invoke(aws, "keeps", {"write": "a"})["result"], invoke(aws, "keeps")["result"]
    assert first[:2] == [1, []] and second[:2] == [2, ["a"]]
    aws.delete_function(FunctionName="keeps")


def test_nothing_comes_from_another_function_or_version(aws: Any) -> None:
    """What stays in one (above) is not there in any other, whose code is the same to the byte."""
    for name in ("mine", "others"):
        create(aws, name, {"app.py": KEEPS})
    invoke(aws, "mine", {"write": "secret"})
    number = aws.publish_version(FunctionName="mine")["Version"]
    assert invoke(aws, "others")["result"][:2] == [1, []]
    assert invoke(aws, "mine", Qualifier=number)["result"][:2] == [1, []]
    assert invoke(aws, "mine")["result"][:2] == [2, ["secret"]]
    aws.update_function_configuration(FunctionName="mine", Environment={"Variables": {"XX": "other"}})
    active(aws, "mine")
    assert invoke(aws, "mine")["result"][:2] == [1, []]
    assert invoke(aws, "mine", Qualifier=number)["result"][:2] == [2, []], "a published version goes on as it was"
    aws.update_function_code(FunctionName="mine", ZipFile=zipped({"app.py": KEEPS + "\n"}))
    active(aws, "mine")
    assert invoke(aws, "mine")["result"][:2] == [1, []]
    for name in ("mine", "others"):
        aws.delete_function(FunctionName=name)


def test_ephemeral_storage_is_the_size_of_tmp(aws: Any) -> None:
    """512 MB by default; what is in it counts as memory, of which there has to be enough."""
    create(aws, "disk", {"app.py": DISK}, MemorySize=1024, Timeout=30)
    assert invoke(aws, "disk", {"mb": 500})["result"] == [512, "fits"]
    assert invoke(aws, "disk", {"mb": 520})["result"] == [512, "ENOSPC"]
    aws.update_function_configuration(FunctionName="disk", EphemeralStorage={"Size": 600})
    active(aws, "disk")
    assert aws.get_function_configuration(FunctionName="disk")["EphemeralStorage"] == {"Size": 600}
    assert invoke(aws, "disk", {"mb": 520})["result"] == [600, "fits"]
    aws.delete_function(FunctionName="disk")


def refused(call: Any, word: str, **given: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == "InvalidParameterValueException" and word in found["Message"], found


def test_limits_may_be_reached_and_not_passed(worker: WorkerProcess, aws: Any) -> None:
    """Each with the last value that is accepted; nothing is changed by one that is not."""
    total = psutil.virtual_memory().total >> 20
    create(aws, "limits")
    change = aws.update_function_configuration
    for given, accepted, beyond in (
        ("Timeout", (1, 900), (901,)),
        ("MemorySize", (128, min(total, 10_240)), (63, total + 1)),
    ):
        for value in accepted:
            assert change(FunctionName="limits", **{given: value})[given] == value, given
        before = aws.get_function_configuration(FunctionName="limits")
        for value in beyond:
            refused(change, given, FunctionName="limits", **{given: value})
        assert aws.get_function_configuration(FunctionName="limits")["RevisionId"] == before["RevisionId"]
    full = {"Variables": {"XX": "x" * 4094}}
    assert change(FunctionName="limits", Environment=full)["Environment"] == full
    refused(change, "exceeded the 4KB limit", FunctionName="limits", Environment={"Variables": {"XX": "x" * 4095}})
    refused(change, "exceeded the 4KB limit", FunctionName="limits", Environment={"Variables": {"XX": "ü" * 2048}})
    assert aws.get_function_configuration(FunctionName="limits")["Environment"] == full
    path = "/2015-03-31/functions/limits/configuration"
    reply = worker.request(path, b'{"MemorySize": 64}', "PUT")  # less than AWS has, and than its model of a reply
    assert reply.status == 200 and reply.json["MemorySize"] == 64
    aws.delete_function(FunctionName="limits")


def test_a_timeout_of_a_second_is_one(aws: Any) -> None:
    source = {"app.py": "import time\ndef handler(event, context):\n    time.sleep(event['s'])\n    return 1\n"}
    create(aws, "timed", source, Timeout=1)
    assert invoke(aws, "timed", {"s": 0.5})["result"] == 1
    assert invoke(aws, "timed", {"s": 3})["result"]["errorType"] == "Sandbox.Timedout"
    aws.update_function_configuration(FunctionName="timed", Timeout=20)
    active(aws, "timed")
    assert invoke(aws, "timed", {"s": 3})["result"] == 1
    aws.delete_function(FunctionName="timed")


def test_processor_time_is_in_proportion_to_memory(fresh: Callable[..., WorkerProcess]) -> None:
    """64 MB of 640 are a tenth of a processor: 0.15 s of its time take ten periods of 100 ms and more."""
    code = (
        "import time\ndef f(event):\n    began, used = time.monotonic(), time.process_time()\n"
        "    while time.process_time() - used < 0.15: pass\n    return time.monotonic() - began\n"
    )
    functions = {
        "small": (code, "memory: 64M\n"),
        "large": (code, "memory: 640M\n"),
        "set": (code, "memory: 64M\ncpus: 1\n"),
    }
    worker = fresh(functions, "registry_check = 0.2\n[function]\nmemory_per_cpu = '640M'\n")
    assert worker.call("small").json > 1.0
    for name in ("large", "set"):  # others may have the processors as well, so not at once for certain
        worker.until(lambda name=name: worker.call(name).json < 1.0)
