"""Provisioned concurrency by AWS's client: instances that are initialised before anybody calls, and stay."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aws_client import client, create, invoke
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system
CODE = """
import os, time
BORN = time.time()
def handler(event, context):
    time.sleep(event.get("s", 0))
    if "exit" in event:
        os._exit(1)
    return [os.getpid(), BORN, os.path.exists("/tmp/used"), open("/tmp/used", "w").close()]
"""
ABSENT = "ProvisionedConcurrencyConfigNotFoundException"


@pytest.fixture(scope="module")
def config() -> str:
    # Idle instances go after half a second, and a blink of grace, unless they are provisioned.
    return "registry_check = 0.2\ngrace = 0.01\nkeep_alive = 0.5\ninstances = 8\n"


def put(aws: Any, name: str, qualifier: str, count: int) -> Any:
    return aws.put_provisioned_concurrency_config(
        FunctionName=name, Qualifier=qualifier, ProvisionedConcurrentExecutions=count
    )


def get(aws: Any, name: str, qualifier: str) -> Any:
    return aws.get_provisioned_concurrency_config(FunctionName=name, Qualifier=qualifier)


def refused(kind: str, call: Callable[..., Any], *words: str, **given: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == kind and all(word in found["Message"] for word in words), found


def counts(shape: Any) -> tuple[str, int, int, int]:
    parts = (f"{part}ProvisionedConcurrentExecutions" for part in ("Requested", "Allocated", "Available"))
    requested, allocated, available = (shape[part] for part in parts)
    return shape["Status"], requested, allocated, available


def ready(worker: WorkerProcess, aws: Any, name: str, qualifier: str, count: int) -> None:
    worker.until(lambda: counts(get(aws, name, qualifier)) == ("READY", count, count, count))


def of(worker: WorkerProcess, key: str) -> int:
    return int(worker.status()["functions"].get(key, {}).get("instances", 0))


def test_instances_are_there_before_anybody_calls(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "warm", {"app.py": CODE}, Publish=True, Timeout=60)
    made = put(aws, "warm", "1", 2)
    assert made["Status"] == "IN_PROGRESS" and made["RequestedProvisionedConcurrentExecutions"] == 2
    ready(worker, aws, "warm", "1", 2)
    assert of(worker, "warm:1") == 2 and of(worker, "warm") == 0
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(invoke, aws, "warm", {"s": 4}, Qualifier="1") for _ in range(3)]
        worker.until(lambda: counts(get(aws, "warm", "1"))[3] == 0)
        worker.until(lambda: of(worker, "warm:1") == 3)  # the third is beyond them
        found = [call.result()["result"] for call in calls]
    assert len({pid for pid, *_ in found}) <= 3
    worker.until(lambda: of(worker, "warm:1") == 2)
    ready(worker, aws, "warm", "1", 2)
    listed = aws.list_provisioned_concurrency_configs(FunctionName="warm")["ProvisionedConcurrencyConfigs"]
    assert [(each["FunctionArn"].rpartition(":")[2], each["Status"]) for each in listed] == [("1", "READY")]
    assert counts(put(aws, "warm", "1", 1))[:2] == ("READY", 1)
    worker.until(lambda: of(worker, "warm:1") == 1)
    ready(worker, aws, "warm", "1", 1)
    aws.delete_provisioned_concurrency_config(FunctionName="warm", Qualifier="1")
    refused(ABSENT, aws.get_provisioned_concurrency_config, FunctionName="warm", Qualifier="1")
    worker.until(lambda: of(worker, "warm:1") == 0)
    aws.delete_provisioned_concurrency_config(FunctionName="warm", Qualifier="1")
    aws.delete_function(FunctionName="warm")


def test_an_alias_takes_them_along(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "alias", {"app.py": CODE}, Publish=True)
    aws.update_function_configuration(FunctionName="alias", Timeout=9)
    aws.publish_version(FunctionName="alias")
    aws.create_alias(FunctionName="alias", Name="live", FunctionVersion="1")
    put(aws, "alias", "live", 1)
    ready(worker, aws, "alias", "live", 1)
    assert of(worker, "alias:1") == 1
    aws.update_alias(FunctionName="alias", Name="live", FunctionVersion="2")
    ready(worker, aws, "alias", "live", 1)
    assert of(worker, "alias:2") == 1
    worker.until(lambda: of(worker, "alias:1") == 0)
    refused(
        "ResourceConflictException", put, "live", aws=aws, name="alias", qualifier="2", count=1
    )  # it has one already
    put(aws, "alias", "1", 1)
    ready(worker, aws, "alias", "1", 1)
    ready(worker, aws, "alias", "live", 1)
    assert of(worker, "alias:1") == of(worker, "alias:2") == 1
    page = aws.list_provisioned_concurrency_configs(FunctionName="alias", MaxItems=1)
    rest = aws.list_provisioned_concurrency_configs(FunctionName="alias", Marker=page["NextMarker"])
    both = [*page["ProvisionedConcurrencyConfigs"], *rest["ProvisionedConcurrencyConfigs"]]
    assert [each["FunctionArn"].rpartition(":")[2] for each in both] == ["1", "live"]
    aws.delete_alias(FunctionName="alias", Name="live")
    refused(ABSENT, aws.get_provisioned_concurrency_config, FunctionName="alias", Qualifier="live")
    worker.until(lambda: of(worker, "alias:2") == 0)
    aws.delete_function(FunctionName="alias", Qualifier="1")
    worker.until(lambda: of(worker, "alias:1") == 0)
    aws.delete_function(FunctionName="alias")


def test_those_that_end_are_replaced(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "replaced", {"app.py": CODE}, Publish=True)
    put(aws, "replaced", "1", 2)
    ready(worker, aws, "replaced", "1", 2)
    assert invoke(aws, "replaced", {"exit": 1}, Qualifier="1")["FunctionError"]
    ready(worker, aws, "replaced", "1", 2)
    victims = handlers(worker, "replaced:1")
    assert len(victims) == 2
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    ready(worker, aws, "replaced", "1", 2)
    assert invoke(aws, "replaced", Qualifier="1")["result"]
    aws.delete_function(FunctionName="replaced")
    worker.until(lambda: of(worker, "replaced:1") == 0)


def handlers(worker: WorkerProcess, key: str) -> list[int]:
    """Pids of the processes that work in the code of a version."""
    (code,) = (worker.state / "code" / key).iterdir()
    wanted, found = code.stat(), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/cwd"), wanted):
                found.append(int(pid))
    return found


def test_what_cannot_be_initialised_has_failed(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "broken", {"app.py": "raise RuntimeError('not today')\n"}, Publish=True)
    put(aws, "broken", "1", 1)
    worker.until(lambda: get(aws, "broken", "1")["Status"] == "FAILED")
    assert "not today" in get(aws, "broken", "1")["StatusReason"]
    starts = sum(worker.stats()["functions"]["broken:1"]["starts"].values())
    assert starts <= 4, "it is tried again, with growing waits"
    aws.delete_function(FunctionName="broken")


def test_they_are_never_evicted_and_there_is_a_limit(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "kept", {"app.py": CODE}, Publish=True)
    put(aws, "kept", "1", 6)
    ready(worker, aws, "kept", "1", 6)
    invalid = "InvalidParameterValueException"
    refused(invalid, put, "9 in all", aws=aws, name="kept", qualifier="1", count=9)
    create(aws, "crowd", {"app.py": CODE})
    with ThreadPoolExecutor(5) as pool:  # two places are left: whoever comes evicts whom it can
        found = [pool.submit(invoke, aws, "crowd", {"s": 0.2}) for _ in range(5)]
        assert all(call.result()["result"] for call in found)
        assert worker.call("echo", {}).status in (200, 503)
    assert counts(get(aws, "kept", "1")) == ("READY", 6, 6, 6)
    for name in ("kept", "crowd"):
        aws.delete_function(FunctionName=name)


def test_what_makes_no_sense_is_refused(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "refusing", {"app.py": CODE}, Publish=True)
    invalid, absent = "InvalidParameterValueException", "ResourceNotFoundException"
    refused(invalid, put, "$LATEST", aws=aws, name="refusing", qualifier="$LATEST", count=1)
    refused(absent, put, aws=aws, name="refusing", qualifier="9", count=1)
    refused(absent, put, aws=aws, name="refusing", qualifier="live", count=1)
    refused(absent, put, aws=aws, name="absent", qualifier="1", count=1)
    refused(absent, aws.list_provisioned_concurrency_configs, FunctionName="absent")
    refused(ABSENT, aws.get_provisioned_concurrency_config, FunctionName="refusing", Qualifier="1")
    loose = client(worker, parameter_validation=False)
    refused(invalid, put, aws=loose, name="refusing", qualifier="1", count=0)
    loose.close()
    aws.put_function_concurrency(FunctionName="refusing", ReservedConcurrentExecutions=2)
    refused(invalid, put, "reserved", aws=aws, name="refusing", qualifier="1", count=3)
    put(aws, "refusing", "1", 2)
    less = {"FunctionName": "refusing", "ReservedConcurrentExecutions": 1}
    refused(invalid, aws.put_function_concurrency, "provisioned", **less)
    aws.delete_function(FunctionName="refusing")


def test_they_are_there_again_after_a_kill(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({})
    aws = client(process)
    create(aws, "lasting", {"app.py": CODE}, Publish=True)
    put(aws, "lasting", "1", 2)
    ready(process, aws, "lasting", "1", 2)
    aws.close()
    process.kill()
    process.start()
    aws = client(process)
    ready(process, aws, "lasting", "1", 2)
    assert of(process, "lasting:1") == 2
    aws.close()
