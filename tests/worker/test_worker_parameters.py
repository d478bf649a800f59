"""Every member that AWS's own model has for functions: honoured, accepted because nothing depends on it, or refused by its name.

A member that a newer model adds has to be put into one of these tables.
"""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from aws_client import ROLE, active, client, create, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

from olsock_worker.aws import parameters

pytestmark = pytest.mark.system
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
LAYER = "arn:aws:lambda:us-east-1:000000000000:layer:member:1"

HONOURED: dict[str, Any] = {  # a value, which is given back
    "FunctionName": "members",
    "Runtime": "python3.11",
    "Handler": "app.handler",
    "Role": "arn:aws:iam::000000000000:role/other",
    "Description": "described",
    "Timeout": 7,
    "MemorySize": 192,
    "Environment": {"Variables": {"AA": "b"}},
    "EphemeralStorage": {"Size": 600},
    "PackageType": "Zip",
    "Architectures": [ARCHITECTURE],
    "Layers": [LAYER],
}
OTHERWISE = {"Code", "ZipFile", "Tags", "Publish", "DryRun", "RevisionId"}  # honoured, as tests of their own show
ACCEPTED: dict[str, Any] = {  # nothing is different without
    "TracingConfig": {"Mode": "Active"},
    "LoggingConfig": {"LogFormat": "JSON"},
    "SnapStart": {"ApplyOn": "PublishedVersions"},
    "VpcConfig": {"SubnetIds": [], "SecurityGroupIds": []},
    "DeadLetterConfig": {"TargetArn": ""},
    "FileSystemConfigs": [],
    "KMSKeyArn": "",
}
REFUSED: dict[str, Any] = {  # whoever asks for it would be wrong about what they get
    "VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
    "DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:queue"},
    "KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/k",
    "FileSystemConfigs": [{"Arn": "arn:aws:elasticfilesystem:x", "LocalMountPath": "/mnt/x"}],
    "CodeSigningConfigArn": "arn:aws:lambda:us-east-1:000000000000:code-signing-config:csc-1",
    "ImageConfig": {"Command": ["x"]},
    "PackageType": "Image",
    "Architectures": ["arm64" if ARCHITECTURE == "x86_64" else "x86_64"],
    "PublishTo": "LATEST_PUBLISHED",
    "TenancyConfig": {"TenantIsolationMode": "PER_TENANT"},
    "CapacityProviderConfig": {"LambdaManagedInstancesCapacityProviderConfig": {}},
    "DurableConfig": {"ExecutionTimeout": 5},
    "RuntimeConfig": {"x": 1},
    "AcceleratorConfig": {"x": 1},
    "S3Bucket": "bucket",
    "S3Key": "key",
    "S3ObjectVersion": "1",
    "S3ObjectStorageMode": "COPY",
    "ImageUri": "image",
    "SourceKMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/k",
}
OPERATIONS = {
    "CreateFunction": parameters.CreateFunction,
    "UpdateFunctionConfiguration": parameters.UpdateFunctionConfiguration,
    "UpdateFunctionCode": parameters.UpdateFunctionCode,
}


OF_CODE = {"S3Bucket", "S3Key", "S3ObjectVersion", "S3ObjectStorageMode", "ImageUri", "SourceKMSKeyArn"}


def members(operation: str) -> set[str]:
    """What the body of a request may have."""
    model = botocore.session.get_session().get_service_model("lambda").operation_model(operation)
    found = dict(model.input_shape.members)
    if operation == "CreateFunction":
        found |= found["Code"].members
    return {name for name, shape in found.items() if shape.serialization.get("location") is None}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_member_is_decided_on(operation: str) -> None:
    undecided = members(operation) - HONOURED.keys() - OTHERWISE - ACCEPTED.keys() - REFUSED.keys()
    assert not undecided, f"{operation}: put these into one of the tables"


@pytest.fixture(scope="module")
def loose(worker: WorkerProcess) -> Iterator[Any]:
    """A client that sends what it is told to."""
    made = client(worker, parameter_validation=False)
    made.publish_layer_version(LayerName="member", Content={"ZipFile": zipped({"x": "y"})})
    create(made, "existing")
    yield made
    made.delete_function(FunctionName="existing")
    made.close()


def send(worker: WorkerProcess, operation: str, name: str, value: Any) -> Any:
    """Send one member beside those that have to be there, as any client could: botocore drops what its model lacks."""
    archive = base64.b64encode(zipped()).decode()
    if operation == "CreateFunction":
        body: dict[str, Any] = {
            "FunctionName": "members",
            "Runtime": "python3.11",
            "Handler": "app.handler",
            "Role": ROLE,
        }
        body["Code"] = {"ZipFile": archive}
        method, path = "POST", "/2015-03-31/functions"
        (body["Code"] if name in OF_CODE else body)[name] = value
    elif operation == "UpdateFunctionCode":
        method, path, body = "PUT", "/2015-03-31/functions/existing/code", {"ZipFile": archive, name: value}
    else:
        method, path, body = "PUT", "/2015-03-31/functions/existing/configuration", {name: value}
    return worker.request(path, json.dumps(body).encode(), method=method)


CASES = [(operation, name) for operation in OPERATIONS for name in sorted(members(operation))]


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if case[1] in REFUSED])
def test_what_is_not_supported_is_refused_by_its_name(
    worker: WorkerProcess, loose: Any, operation: str, name: str
) -> None:
    before = loose.get_function_configuration(FunctionName="existing")["RevisionId"]
    reply = send(worker, operation, name, REFUSED[name])
    assert reply.status == 400 and reply.headers["x-amzn-errortype"] == "InvalidParameterValueException"
    assert name in reply.json["message"], reply.json
    assert loose.get_function_configuration(FunctionName="existing")["RevisionId"] == before
    with pytest.raises(ClientError):
        loose.get_function(FunctionName="members")


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if case[1] in ACCEPTED])
def test_what_means_nothing_is_accepted(worker: WorkerProcess, loose: Any, operation: str, name: str) -> None:
    assert send(worker, operation, name, ACCEPTED[name]).status in (200, 201)
    active(loose, "existing")
    if operation == "CreateFunction":
        loose.delete_function(FunctionName="members")


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if case[1] in HONOURED])
def test_what_is_honoured_is_given_back(worker: WorkerProcess, loose: Any, operation: str, name: str) -> None:
    reply = send(worker, operation, name, HONOURED[name])
    assert reply.status in (200, 201), reply.json
    found = reply.json[name]
    if name == "Layers":
        found = [each["Arn"] for each in found]
    assert found == HONOURED[name]
    active(loose, "existing")
    if operation == "CreateFunction":
        loose.delete_function(FunctionName="members")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_nobody_knows_is_refused_by_its_name(worker: WorkerProcess, loose: Any, operation: str) -> None:
    reply = send(worker, operation, "ComingSoon", {})
    assert reply.status == 400 and "ComingSoon" in reply.json["message"]


@pytest.mark.parametrize("name", ["x-amz-tenant-id", "x-amz-durable-execution-name"])
def test_calls_that_are_not_supported_are_refused_by_name(worker: WorkerProcess, loose: Any, name: str) -> None:
    for path in (
        "2015-03-31/functions/existing/invocations",
        "2021-11-15/functions/existing/response-streaming-invocations",
    ):
        reply = worker.request(f"/{path}", b"{}", headers={name: "x"})
        assert reply.status == 400 and name in reply.json["message"]
