"""AWS Lambda's API by its own client: every operation, every way to fail, and that the shapes are those of the model."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_client import HANDLER, ROLE, active, client, create, invoke, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

ARN = "arn:aws:lambda:us-east-1:000000000000:function:"


def refused(kind: str, call: Callable[..., Any], *words: str, **given: Any) -> str:
    """Make a call that has to fail with an error of that type."""
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == kind, found
    for word in words:
        assert word in found["Message"], found
    return str(found["Message"])


# -- functions ----------------------------------------------------------------------------------------------------


def test_a_function_from_its_making_to_its_end(aws: Any) -> None:
    made = create(
        aws,
        "whole",
        Description="d",
        Timeout=7,
        MemorySize=256,
        Tags={"a": "b"},
        Environment={"Variables": {"XX": "1"}},
    )
    assert (made["FunctionArn"], made["Version"], made["CodeSize"]) == (f"{ARN}whole", "$LATEST", len(zipped()))
    assert (made["Description"], made["Timeout"], made["MemorySize"]) == ("d", 7, 256)
    assert made["Environment"] == {"Variables": {"XX": "1"}}
    got = aws.get_function(FunctionName="whole")
    assert got["Tags"] == {"a": "b"} and got["Configuration"]["State"] == "Active"
    assert got["Configuration"]["CodeSha256"] == made["CodeSha256"]
    shown = aws.get_function_configuration(FunctionName=f"{ARN}whole")
    assert shown["RevisionId"] == made["RevisionId"]
    assert invoke(aws, "whole", {"a": 1})["result"] == {"event": {"a": 1}, "version": "$LATEST", "x": "1"}
    aws.delete_function(FunctionName="whole")
    refused("ResourceNotFoundException", aws.get_function, "whole", FunctionName="whole")
    refused("ResourceNotFoundException", aws.invoke, FunctionName="whole")
    refused("ResourceNotFoundException", aws.delete_function, FunctionName="whole")


def test_defaults_are_those_of_aws(aws: Any) -> None:
    made = create(aws, "plain")
    assert (made["Timeout"], made["MemorySize"], made["EphemeralStorage"]) == (3, 128, {"Size": 512})
    aws.delete_function(FunctionName="plain")


def test_code_and_configuration_are_changed(aws: Any) -> None:
    made = create(aws, "changed")
    new = {"app.py": "import os\ndef handler(e, c): return ['new', os.environ.get('XX')]"}
    after = aws.update_function_code(FunctionName="changed", ZipFile=zipped(new), RevisionId=made["RevisionId"])
    assert after["CodeSha256"] != made["CodeSha256"] and after["RevisionId"] != made["RevisionId"]
    active(aws, "changed")
    assert invoke(aws, "changed")["result"] == ["new", None]
    aws.update_function_configuration(FunctionName="changed", Environment={"Variables": {"XX": "y"}}, Timeout=9)
    active(aws, "changed")
    assert invoke(aws, "changed")["result"] == ["new", "y"]
    shown = aws.get_function_configuration(FunctionName="changed")
    assert (shown["Timeout"], shown["MemorySize"]) == (9, 128)
    refused(
        "PreconditionFailedException",
        aws.update_function_code,
        FunctionName="changed",
        ZipFile=zipped(),
        RevisionId="x",
    )
    refused("PreconditionFailedException", aws.update_function_configuration, FunctionName="changed", RevisionId="x")
    dry = aws.update_function_code(FunctionName="changed", ZipFile=zipped(), DryRun=True)
    assert dry["CodeSha256"] == made["CodeSha256"]
    assert aws.get_function_configuration(FunctionName="changed")["CodeSha256"] == after["CodeSha256"]
    aws.delete_function(FunctionName="changed")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"Runtime": "nodejs20.x"}, "Runtime"),
        ({"Handler": "app"}, "handler"),
        ({"Handler": "../app.handler"}, "handler"),
        ({"Timeout": 901}, "Timeout"),
        ({"MemorySize": 32}, "MemorySize"),
        ({"EphemeralStorage": {"Size": 1}}, "EphemeralStorage"),
        ({"Environment": {"Variables": {"AWS_REGION": "x"}}}, "AWS_REGION"),
        ({"Environment": {"Variables": {"XX": "x" * 4095}}}, "4KB"),
        ({"Environment": {"Variables": {"a-b": "x"}}}, "a-b"),
        ({"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": []}}, "VpcConfig"),
        ({"KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/x"}, "KMSKeyArn"),
        ({"Layers": ["arn:aws:lambda:us-east-1:000000000000:layer:x:1"]}, "Layers"),
        ({"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:x"}}, "DeadLetterConfig"),
        ({"FileSystemConfigs": [{"Arn": "a", "LocalMountPath": "/mnt/x"}]}, "FileSystemConfigs"),
        ({"PackageType": "Image"}, "PackageType"),
        ({"Architectures": ["mips"]}, "Architectures"),
        ({"Code": {"S3Bucket": "bucket", "S3Key": "k"}}, "S3Bucket"),
        ({"Code": {"ImageUri": "x"}}, "ImageUri"),
        ({"Code": {"ZipFile": b""}}, "ZipFile"),
        ({"Code": {"ZipFile": b"no zip"}}, "unzip"),
        ({"Code": {"ZipFile": zipped({"requirements.txt": "-r other\n", "app.py": ""})}}, "requirements.txt"),
        ({"Code": {"ZipFile": zipped({"ol.yaml": "nonsense: 1\n", "app.py": ""})}}, "nonsense"),
        ({"FunctionName": "a/b"}, "FunctionName"),
        ({"FunctionName": "x" * 65}, "FunctionName"),
        ({"FunctionName": "a.b"}, "FunctionName"),
        ({"FunctionName": "name:1"}, "qualifier"),
        ({"Tags": {"x" * 129: "y"}}, "Tags"),
        ({"Description": "x" * 257}, "Description"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(worker: WorkerProcess, given: dict[str, Any], word: str) -> None:
    unchecked = client(worker, parameter_validation=False)
    whole = {"FunctionName": "never", "Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE, **given}
    whole.setdefault("Code", {"ZipFile": zipped()})
    refused("InvalidParameterValueException", unchecked.create_function, word, **whole)
    assert "never" not in [each["FunctionName"] for each in unchecked.list_functions()["Functions"]]
    unchecked.close()


def test_what_does_no_harm_is_accepted(aws: Any) -> None:
    made = create(
        *(aws, "harmless"),
        VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
        TracingConfig={"Mode": "Active"},
        SnapStart={"ApplyOn": "PublishedVersions"},
        LoggingConfig={"LogFormat": "JSON", "LogGroup": "/mine"},
        KMSKeyArn="",
        Layers=[],
    )
    assert made["TracingConfig"] == {"Mode": "Active"} and made["LoggingConfig"]["LogGroup"] == "/mine"
    aws.delete_function(FunctionName="harmless")


def test_a_name_is_taken_once(aws: Any) -> None:
    create(aws, "once")
    given = {"Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    refused("ResourceConflictException", aws.create_function, "once", FunctionName="once", **given)
    refused("ResourceConflictException", aws.create_function, "registry directory", FunctionName="echo", **given)
    aws.delete_function(FunctionName="once")


def test_a_directory_waits_for_a_name_of_the_api(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "both")
    worker.deploy("both", "def f(event): return 'directory'\n")
    worker.until(lambda: "control API" in worker.status()["functions"]["both"].get("error", ""))
    assert invoke(aws, "both")["result"]["version"] == "$LATEST"
    aws.delete_function(FunctionName="both")
    worker.until(lambda: worker.call("both").status == 200 and worker.call("both").json == "directory")


def test_lists_go_on_where_they_ended(aws: Any) -> None:
    names = [f"page-{number:02}" for number in range(55)]
    given = {"Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    for name in names:
        aws.create_function(FunctionName=name, **given)
    first = aws.list_functions()
    assert len(first["Functions"]) == 50 and first["NextMarker"]
    pages = aws.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 7})
    assert [
        each["FunctionName"] for page in pages for each in page["Functions"] if "page-" in each["FunctionName"]
    ] == names
    aws.publish_version(FunctionName=names[3])
    every = aws.get_paginator("list_functions").paginate(FunctionVersion="ALL", PaginationConfig={"PageSize": 3})
    found = [each["FunctionArn"] for page in every for each in page["Functions"] if "page-" in each["FunctionArn"]]
    expected = [
        f"{ARN}{name}:{number}" for name in names for number in (["$LATEST", "1"] if name == names[3] else ["$LATEST"])
    ]
    assert found == expected
    unchecked = client_without_checks(aws)
    refused("InvalidParameterValueException", unchecked.list_functions, MaxItems=0)
    unchecked.close()
    for name in names:
        aws.delete_function(FunctionName=name)


def client_without_checks(aws: Any) -> Any:
    """A client of the same worker that sends what makes no sense."""

    class Port:
        port = int(aws.meta.endpoint_url.rpartition(":")[2])

    return client(Port(), parameter_validation=False)  # type: ignore[arg-type]


# -- calls --------------------------------------------------------------------------------------------------------


def test_an_error_of_the_handler_is_told_as_aws_does(aws: Any) -> None:
    create(aws, "raises")
    reply = invoke(aws, "raises", {"raise": "no"}, LogType="Tail")
    assert (reply["StatusCode"], reply["FunctionError"]) == (200, "Unhandled")
    assert reply["result"]["errorType"] == "KeyError" and reply["result"]["errorMessage"] == "'no'"
    (entry,) = reply["result"]["stackTrace"]
    assert entry.startswith('  File "/var/task/app.py", line 6, in handler\n')
    assert reply["result"]["requestId"] == reply["ResponseMetadata"]["RequestId"]
    assert base64.b64decode(reply["LogResult"]).splitlines()[1] == b"called"
    reply = invoke(aws, "raises", {"a": 1}, LogType="Tail")
    assert "FunctionError" not in reply and reply["ExecutedVersion"] == "$LATEST"
    assert base64.b64decode(reply["LogResult"]).splitlines()[1:-2] == [b"called"]
    aws.delete_function(FunctionName="raises")


@pytest.mark.parametrize(
    ("source", "kind", "word"),
    [
        ("import nothing_of_this_name\n", "Runtime.ImportModuleError", "Unable to import module 'app'"),
        ("def handler(:\n", "Runtime.UserCodeSyntaxError", "app"),
        ("def handler(e, c): return {1, 2}\n", "Runtime.MarshalError", "marshal"),
        ("import os\ndef handler(e, c): os._exit(3)\n", "Runtime.ExitError", "ended"),
        ("import time\ndef handler(e, c): time.sleep(60)\n", "Sandbox.Timedout", "timed out after 1.00 seconds"),
        ("def handler(e, c): return len(bytearray(1 << 30))\n", "MemoryError", ""),
    ],
)
def test_each_way_to_fail_has_its_type(aws: Any, source: str, kind: str, word: str) -> None:
    create(aws, "fails", {"app.py": source}, Timeout=1 if "sleep" in source else 20)
    try:
        reply = invoke(aws, "fails")
        assert reply["FunctionError"] == "Unhandled"
        found = reply["result"]["errorType"], reply["result"]["errorMessage"]
        assert found[0] == kind or (kind == "MemoryError" and found[0] == "Runtime.ExitError"), found
        assert word in found[1], found
    finally:
        aws.delete_function(FunctionName="fails")


def test_a_dry_run_calls_nobody(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "dry")
    assert aws.invoke(FunctionName="dry", InvocationType="DryRun")["StatusCode"] == 204
    assert worker.function_log("dry") == ""
    refused("ResourceNotFoundException", aws.invoke, FunctionName="dry", InvocationType="DryRun", Qualifier="9")
    refused("InvalidParameterValueException", aws.invoke, "Other", FunctionName="dry", InvocationType="Other")
    refused("InvalidRequestContentException", aws.invoke, FunctionName="dry", Payload=b"{no json")
    refused("InvalidRequestContentException", aws.invoke, "ClientContext", FunctionName="dry", ClientContext="?")
    aws.delete_function(FunctionName="dry")


def test_a_client_context_is_understood(aws: Any) -> None:
    create(aws, "told")
    context = base64.b64encode(json.dumps({"custom": {"a": "b"}}).encode()).decode()
    assert invoke(aws, "told", {"a": 1}, ClientContext=context)["result"]["event"] == {"a": 1}
    for wrong in (b'{"a": "\\ud800"}', b"[1]", b"{", b"\xff"):  # what no function could be told
        encoded = base64.b64encode(wrong).decode()
        refused("InvalidRequestContentException", aws.invoke, FunctionName="told", ClientContext=encoded)
    assert invoke(aws, "told", {"a": 2})["result"]["event"] == {"a": 2}
    aws.delete_function(FunctionName="told")


def test_a_context_tells_of_the_function(aws: Any) -> None:
    code = (
        "def handler(*arguments):\n    event, context = arguments\n"
        "    return [context.function_name, context.function_version, context.invoked_function_arn,\n"
        "            context.memory_limit_in_mb, context.log_group_name, context.get_remaining_time_in_millis()]\n"
    )
    create(aws, "tells", {"app.py": code}, MemorySize=192, Timeout=7, Publish=True)
    *told, left = invoke(aws, "tells", {}, Qualifier="1")["result"]
    assert told == ["tells", "1", f"{ARN}tells:1", "192", "/aws/lambda/tells"] and 0 < left <= 7000
    aws.delete_function(FunctionName="tells")


YAMLS = {
    "memory: 8192\n": "memory",
    "tmpfs-size: 1152921504606846976\n": "tmpfs-size",
    "environment:\n" + "".join(f"  V{number}: a\n" for number in range(1001)): "environment",
    'environment:\n  A: "' + "\\a" * 30_000 + '"\n': "environment",
    'environment:\n  A: "\\ud800"\n': "environment",
    "environment:\n  " + "A" * 256 + ": a\n": "environment",
}


@pytest.mark.parametrize("yaml", YAMLS, ids=list(range(len(YAMLS))))
def test_what_the_broker_could_not_be_told_is_refused(worker: WorkerProcess, aws: Any, yaml: str) -> None:
    """Nothing of it is kept, and nobody is ended by it."""
    front = worker.front
    files: dict[str, str | bytes] = {"app.py": HANDLER, "ol.yaml": yaml}
    given = {"FunctionName": "extreme", "Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE}
    refused(
        "InvalidParameterValueException", aws.create_function, YAMLS[yaml], Code={"ZipFile": zipped(files)}, **given
    )
    refused("ResourceNotFoundException", aws.get_function, FunctionName="extreme")
    assert worker.front == front and worker.call("echo", 1).json == 1


def test_functions_of_the_directory_are_invoked_too(worker: WorkerProcess, aws: Any) -> None:
    assert invoke(aws, "echo", {"a": 1})["result"] == {"a": 1}
    assert invoke(aws, f"{ARN}echo", [1], Qualifier="$LATEST")["result"] == [1]
    refused("ResourceNotFoundException", aws.invoke, FunctionName="echo", Qualifier="1")
    refused("ResourceNotFoundException", aws.get_function, FunctionName="echo")


def test_a_payload_that_is_too_large(aws: Any) -> None:
    create(aws, "small")
    refused(
        "RequestTooLargeException",
        aws.invoke,
        "over 6291456 bytes",
        FunctionName="small",
        Payload=b'"' + b"x" * (6 << 20),
    )
    assert invoke(aws, "small", {"a": 1})["result"]["event"] == {"a": 1}
    aws.delete_function(FunctionName="small")


def test_the_emulators_path(worker: WorkerProcess, aws: Any) -> None:
    path = "/2015-03-31/functions/function/invocations"
    assert worker.request(path, b"{}").status == 404, "there are two functions, and none is called `function`"
    create(aws, "function")
    assert worker.request(path, b'{"a": 2}').json["event"] == {"a": 2}
    aws.delete_function(FunctionName="function")


def test_functions_of_the_api_are_run_too(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "ran")
    assert worker.call("ran", {"a": 1}).json["event"] == {"a": 1}
    aws.delete_function(FunctionName="ran")
    assert worker.call("ran").status == 404


def test_the_aws_command(worker: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "code.zip").write_bytes(zipped())
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def run(*argv: str) -> Any:
        command = [sys.executable, "-m", "awscli", "lambda", *argv, "--endpoint-url", f"http://127.0.0.1:{worker.port}"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or b"null")

    how = ("--runtime", "python3.11", "--handler", "app.handler", "--role", ROLE, "--zip-file", "fileb://code.zip")
    assert run("create-function", "--function-name", "typed", *how)["Version"] == "$LATEST"
    run("wait", "function-active-v2", "--function-name", "typed")
    assert run("invoke", "--function-name", "typed", "--payload", '{"a": 1}', "out")["StatusCode"] == 200
    assert json.loads((tmp_path / "out").read_bytes())["event"] == {"a": 1}
    assert run("publish-version", "--function-name", "typed")["Version"] == "1"
    run("delete-function", "--function-name", "typed")


# -- versions and aliases -----------------------------------------------------------------------------------------


def test_versions_stay_as_they_were(aws: Any) -> None:
    create(aws, "versions", Publish=True)
    again = aws.publish_version(FunctionName="versions")
    assert again["Version"] == "1", "nothing has changed"
    aws.update_function_code(FunctionName="versions", ZipFile=zipped({"app.py": "def handler(e, c): return 'two'"}))
    active(aws, "versions")
    latest = aws.get_function_configuration(FunctionName="versions")
    refused("InvalidParameterValueException", aws.publish_version, FunctionName="versions", CodeSha256="x")
    two = aws.publish_version(FunctionName="versions", CodeSha256=latest["CodeSha256"], Description="second")
    assert (two["Version"], two["FunctionArn"], two["Description"]) == ("2", f"{ARN}versions:2", "second")
    assert invoke(aws, "versions", Qualifier="1")["result"]["version"] == "1"
    assert invoke(aws, "versions:2")["result"] == "two"
    listed = aws.list_versions_by_function(FunctionName="versions", MaxItems=2)
    assert [each["Version"] for each in listed["Versions"]] == ["$LATEST", "1"]
    rest = aws.list_versions_by_function(FunctionName="versions", Marker=listed["NextMarker"])
    assert [each["Version"] for each in rest["Versions"]] == ["2"] and "NextMarker" not in rest
    aws.delete_function(FunctionName="versions", Qualifier="1")
    refused("ResourceNotFoundException", aws.invoke, FunctionName="versions", Qualifier="1")
    refused("InvalidParameterValueException", aws.delete_function, FunctionName="versions", Qualifier="$LATEST")
    assert aws.publish_version(FunctionName="versions", Description="third")["Version"] == "2", "nothing has changed"
    aws.delete_function(FunctionName="versions", Qualifier="2")
    assert aws.publish_version(FunctionName="versions")["Version"] == "3", "numbers are used once"
    aws.delete_function(FunctionName="versions")


def test_aliases_lead_to_versions(aws: Any) -> None:
    create(aws, "aliases", Publish=True)
    aws.update_function_code(
        FunctionName="aliases", ZipFile=zipped({"app.py": "def handler(e, c): return 'two'"}), Publish=True
    )
    active(aws, "aliases")
    made = aws.create_alias(FunctionName="aliases", Name="live", FunctionVersion="1", Description="d")
    assert made["AliasArn"] == f"{ARN}aliases:live"
    assert invoke(aws, "aliases", Qualifier="live")["ExecutedVersion"] == "1"
    assert aws.get_function(FunctionName="aliases", Qualifier="live")["Configuration"]["Version"] == "1"
    refused("ResourceConflictException", aws.create_alias, FunctionName="aliases", Name="live", FunctionVersion="1")
    refused("ResourceConflictException", aws.delete_function, "live", FunctionName="aliases", Qualifier="1")
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    changed = aws.update_alias(
        FunctionName="aliases", Name="live", RoutingConfig=weights, RevisionId=made["RevisionId"]
    )
    assert changed["RoutingConfig"] == weights and changed["FunctionVersion"] == "1" and changed["Description"] == "d"
    seen = {invoke(aws, "aliases", Qualifier="live")["ExecutedVersion"] for _ in range(60)}
    assert seen == {"1", "2"}
    refused("PreconditionFailedException", aws.update_alias, FunctionName="aliases", Name="live", RevisionId="x")
    refused("ResourceNotFoundException", aws.update_alias, FunctionName="aliases", Name="live", FunctionVersion="9")
    refused("ResourceNotFoundException", aws.create_alias, FunctionName="aliases", Name="other", FunctionVersion="9")
    aws.create_alias(FunctionName="aliases", Name="head", FunctionVersion="$LATEST")
    bad = {"AdditionalVersionWeights": {"1": 0.5}}
    refused("InvalidParameterValueException", aws.update_alias, FunctionName="aliases", Name="head", RoutingConfig=bad)
    listed = aws.list_aliases(FunctionName="aliases", MaxItems=1)
    assert [each["Name"] for each in listed["Aliases"]] == ["head"]
    assert [each["Name"] for each in aws.list_aliases(FunctionName="aliases", FunctionVersion="2")["Aliases"]] == [
        "live"
    ]
    assert aws.update_alias(FunctionName="aliases", Name="live", RoutingConfig={})["FunctionVersion"] == "1"
    assert aws.get_alias(FunctionName="aliases", Name="live").get("RoutingConfig") is None
    aws.delete_alias(FunctionName="aliases", Name="live")
    aws.delete_alias(FunctionName="aliases", Name="live")
    refused("ResourceNotFoundException", aws.get_alias, FunctionName="aliases", Name="live")
    refused("ResourceNotFoundException", aws.invoke, FunctionName="aliases", Qualifier="live")
    aws.delete_function(FunctionName="aliases")


# -- concurrency, tags, account -----------------------------------------------------------------------------------


def test_a_reservation_of_nothing_turns_a_function_off(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "reserved")
    assert "ReservedConcurrentExecutions" not in aws.get_function_concurrency(FunctionName="reserved")
    aws.put_function_concurrency(FunctionName="reserved", ReservedConcurrentExecutions=0)
    assert aws.get_function_concurrency(FunctionName="reserved")["ReservedConcurrentExecutions"] == 0
    assert aws.get_function(FunctionName="reserved")["Concurrency"] == {"ReservedConcurrentExecutions": 0}
    with pytest.raises(ClientError) as error:
        aws.invoke(FunctionName="reserved")
    assert error.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert worker.call("reserved").error == "throttled"
    refused(
        "InvalidParameterValueException",
        aws.put_function_concurrency,
        FunctionName="reserved",
        ReservedConcurrentExecutions=10**6,
    )
    aws.delete_function_concurrency(FunctionName="reserved")
    assert invoke(aws, "reserved")["StatusCode"] == 200
    aws.delete_function(FunctionName="reserved")


def test_tags(aws: Any) -> None:
    create(aws, "tagged", Tags={"a": "1"})
    aws.tag_resource(Resource=f"{ARN}tagged", Tags={"b": "2", "c": "3"})
    aws.untag_resource(Resource=f"{ARN}tagged", TagKeys=["a", "c"])
    assert aws.list_tags(Resource=f"{ARN}tagged")["Tags"] == {"b": "2"}
    refused(
        "InvalidParameterValueException",
        aws.tag_resource,
        Resource=f"{ARN}tagged",
        Tags={str(n): "" for n in range(51)},
    )
    refused("ResourceNotFoundException", aws.list_tags, Resource=f"{ARN}absent")
    aws.delete_function(FunctionName="tagged")


def test_account(aws: Any) -> None:
    create(aws, "counted")
    found = aws.get_account_settings()
    assert found["AccountUsage"]["FunctionCount"] >= 1 and found["AccountUsage"]["TotalCodeSize"] >= len(zipped())
    assert found["AccountLimit"]["ConcurrentExecutions"] == 1000
    aws.delete_function(FunctionName="counted")


def test_what_there_is_not_is_said(worker: WorkerProcess) -> None:
    for method, path in (
        ("GET", "/2015-03-31/nothing"),
        ("PATCH", "/2015-03-31/functions/x"),
        ("GET", "/2021-10-31/functions/x/nothing"),
    ):
        reply = worker.request(path, method=method)
        assert reply.status == 404 and reply.headers["x-amzn-errortype"] == "UnknownOperationException"
    assert worker.request("/2015-03-31/functions", b"[]").status == 400
    assert worker.request("/2015-03-31/functions", b"\xff").status == 400
    assert worker.request("/2015-03-31/functions?" + "&".join(f"a{n}=1" for n in range(99)), method="GET").status == 400
