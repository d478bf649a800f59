"""How often and for how long events are tried: AWS's operations for it, for functions, versions and aliases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from aws_client import active, client, create, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

ARN = "arn:aws:lambda:us-east-1:000000000000:function:ruled"


@pytest.fixture
def ruled(aws: Any) -> Iterator[str]:
    create(aws, "ruled", Publish=True)
    aws.create_alias(FunctionName="ruled", Name="live", FunctionVersion="1")
    yield "ruled"
    aws.delete_function(FunctionName="ruled")


def refused(kind: str, call: Callable[..., Any], *words: str, **given: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == kind, found
    for word in words:
        assert word in found["Message"], found


def test_rules_from_their_making_to_their_end(aws: Any, ruled: str) -> None:
    refused("ResourceNotFoundException", aws.get_function_event_invoke_config, "EventInvokeConfig", FunctionName=ruled)
    refused(
        "ResourceNotFoundException",
        aws.update_function_event_invoke_config,
        FunctionName=ruled,
        MaximumRetryAttempts=1,
    )
    made = aws.put_function_event_invoke_config(FunctionName=ruled, MaximumRetryAttempts=1)
    assert (made["FunctionArn"], made["MaximumRetryAttempts"]) == (f"{ARN}:$LATEST", 1)
    assert "MaximumEventAgeInSeconds" not in made and abs(made["LastModified"].timestamp() - time.time()) < 60
    assert made["DestinationConfig"] == {"OnSuccess": {}, "OnFailure": {}}
    changed = aws.update_function_event_invoke_config(FunctionName=f"{ARN}:$LATEST", MaximumEventAgeInSeconds=60)
    assert (changed["MaximumRetryAttempts"], changed["MaximumEventAgeInSeconds"]) == (1, 60)
    assert changed["LastModified"] >= made["LastModified"]
    got = aws.get_function_event_invoke_config(FunctionName=ruled, Qualifier="$LATEST")
    assert {**got, "ResponseMetadata": 0} == {**changed, "ResponseMetadata": 0}
    again = aws.put_function_event_invoke_config(FunctionName=ruled, MaximumEventAgeInSeconds=21600)
    assert "MaximumRetryAttempts" not in again, "what is put replaces all that there was"
    aws.delete_function_event_invoke_config(FunctionName=ruled)
    refused("ResourceNotFoundException", aws.delete_function_event_invoke_config, FunctionName=ruled)


def test_each_qualifier_has_its_own_and_they_go_with_it(aws: Any, ruled: str) -> None:
    for qualifier, retries in (("$LATEST", 0), ("1", 1), ("live", 2)):
        given = {"Qualifier": qualifier, "MaximumRetryAttempts": retries}
        made = aws.put_function_event_invoke_config(FunctionName=ruled, **given)
        assert made["FunctionArn"] == f"{ARN}:{qualifier}"
    pages = aws.get_paginator("list_function_event_invoke_configs").paginate(
        FunctionName=ruled, PaginationConfig={"PageSize": 2}
    )
    found = [[each["FunctionArn"].rpartition(":")[2] for each in page["FunctionEventInvokeConfigs"]] for page in pages]
    assert found == [["$LATEST", "1"], ["live"]]
    aws.delete_alias(FunctionName=ruled, Name="live")
    aws.delete_function(FunctionName=ruled, Qualifier="1")
    left = aws.list_function_event_invoke_configs(FunctionName=ruled)["FunctionEventInvokeConfigs"]
    assert [each["MaximumRetryAttempts"] for each in left] == [0]
    aws.delete_function(FunctionName=ruled)
    create(aws, ruled)
    assert aws.list_function_event_invoke_configs(FunctionName=ruled)["FunctionEventInvokeConfigs"] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["at least one"]),
        ({"MaximumRetryAttempts": 3}, ["MaximumRetryAttempts"]),
        ({"MaximumRetryAttempts": -1}, ["MaximumRetryAttempts"]),
        ({"MaximumEventAgeInSeconds": 59}, ["MaximumEventAgeInSeconds"]),
        ({"MaximumEventAgeInSeconds": 21601}, ["MaximumEventAgeInSeconds"]),
        ({"DestinationConfig": {"OnFailure": {"Destination": "arn:aws:sqs:us-east-1:000000000000:q"}}}, ["OnFailure"]),
        ({"DestinationConfig": {"OnSuccess": {"Destination": "arn:aws:sqs:us-east-1:000000000000:q"}}}, ["OnSuccess"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    worker: WorkerProcess, aws: Any, ruled: str, given: dict[str, Any], words: list[str]
) -> None:
    with closing(client(worker, parameter_validation=False)) as unchecked:
        for operation in ("put_function_event_invoke_config", "update_function_event_invoke_config"):
            call = getattr(unchecked, operation)
            refused("InvalidParameterValueException", call, *words, FunctionName=ruled, **given)
    assert aws.list_function_event_invoke_configs(FunctionName=ruled)["FunctionEventInvokeConfigs"] == []


def test_what_there_is_not(aws: Any, ruled: str) -> None:
    put = aws.put_function_event_invoke_config
    for given in ({"FunctionName": "absent"}, {"FunctionName": ruled, "Qualifier": "9"}, {"FunctionName": "echo"}):
        refused("ResourceNotFoundException", put, MaximumRetryAttempts=1, **given)
        refused("ResourceNotFoundException", aws.get_function_event_invoke_config, **given)
        refused("ResourceNotFoundException", aws.delete_function_event_invoke_config, **given)
    refused("ResourceNotFoundException", aws.list_function_event_invoke_configs, FunctionName="absent")
    empty = put(FunctionName=ruled, DestinationConfig={"OnSuccess": {}, "OnFailure": {}})
    assert "MaximumRetryAttempts" not in empty


def test_rules_outlive_the_worker_and_decide(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh({}, "registry_check = 0.2\n[events]\nretry_delay = 0.1\n")
    source = "def handler(event, context):\n    print('ran', flush=True)\n    raise KeyError(1)\n"
    with closing(client(worker)) as aws:
        create(aws, "ruled", {"app.py": source}, Publish=True)
        aws.create_alias(FunctionName="ruled", Name="live", FunctionVersion="1")
        aws.put_function_event_invoke_config(FunctionName="ruled", Qualifier="live", MaximumRetryAttempts=1)
        aws.put_function_event_invoke_config(FunctionName="ruled", MaximumRetryAttempts=0)
    worker.kill()
    worker.start()
    with closing(client(worker)) as aws:
        active(aws, "ruled")
        for qualifier in ("$LATEST", "1", "live"):
            aws.invoke(FunctionName="ruled", InvocationType="Event", Qualifier=qualifier)
        worker.until(lambda: worker.stats()["events"]["dead_letters"]["kept"] == 3)
        letters = worker.request("/dead-letters?FunctionName=ruled", method="GET").json["DeadLetters"]
        assert {each["Qualifier"]: each["Attempts"] for each in letters} == {"$LATEST": 1, "1": 3, "live": 2}
        aws.update_function_code(FunctionName="ruled", ZipFile=zipped())
        active(aws, "ruled")
        for each in letters:
            assert worker.request(f"/dead-letters/{each['RequestId']}", method="DELETE").status == 204
