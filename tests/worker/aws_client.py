"""boto3 as a client of a worker, with every reply held against botocore's own model of the API."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

import boto3
from botocore.config import Config
from botocore.model import ListShape, MapShape, OperationModel, Shape, StringShape, StructureShape
from worker_process import WorkerProcess

ROLE = "arn:aws:iam::000000000000:role/any"
_OTHER = {("Invoke", 202), ("Invoke", 204)}  # of events and of dry runs: the model has one status an operation
HANDLER = """
import os
def handler(event, context):
    print("called", flush=True)
    if "raise" in event:
        raise KeyError(event["raise"])
    return {"event": event, "version": os.environ["AWS_LAMBDA_FUNCTION_VERSION"], "x": os.environ.get("XX")}
"""


def client(worker: WorkerProcess, secret: str = "secret", **config: Any) -> Any:
    """A client that does not try again, and fails for a reply that is not of its operation's shape."""
    made = boto3.client(
        "lambda",
        endpoint_url=f"http://127.0.0.1:{worker.port}",
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=60, **config),
    )
    made.meta.events.register("after-call.lambda", _validate, unique_id="model")
    return made


def _validate(http_response: Any, parsed: dict[str, Any], model: OperationModel, **_: Any) -> None:
    status = http_response.status_code
    if status >= 400:
        kind, code = parsed["Error"]["Code"], {each.name: each for each in model.error_shapes}
        assert kind in code, f"{model.name} has no error {kind}: {parsed}"
        assert status == code[kind].metadata["error"]["httpStatusCode"], parsed
        assert parsed["Error"]["Message"], parsed
        return
    assert status == model.http["responseCode"] or (model.name, status) in _OTHER, (model.name, status)
    shape = model.output_shape
    streams = shape is not None and shape.serialization.get("payload")
    if not streams and http_response.content:
        sent = json.loads(http_response.content)
        known = set(shape.members) if shape is not None else set()
        assert sent.keys() <= known, f"{model.name} does not have {sent.keys() - known}"
        check(sent, shape, model.name)


def check(value: Any, shape: Shape, where: str) -> None:
    """Hold JSON against a shape: names, types, patterns, lengths, ranges, enumerations."""
    if isinstance(shape, StructureShape):
        assert isinstance(value, dict), where
        assert set(shape.required_members) <= value.keys(), f"{where} lacks a member"
        for name, each in value.items():
            assert name in shape.members, f"{where}.{name}"
            check(each, shape.members[name], f"{where}.{name}")
    elif isinstance(shape, ListShape):
        assert isinstance(value, list), where
        for index, each in enumerate(value):
            check(each, shape.member, f"{where}[{index}]")
    elif isinstance(shape, MapShape):
        for name, each in value.items():
            check(name, shape.key, where)
            check(each, shape.value, f"{where}.{name}")
    elif isinstance(shape, StringShape):
        assert isinstance(value, str), where
        assert not shape.enum or value in shape.enum, f"{where}={value!r}"
        pattern = shape.metadata.get("pattern", "").replace(r"\p{L}\p{Z}\p{N}", r"\w\s") or None
        assert pattern is None or re.fullmatch(pattern, value), f"{where}={value!r}"
    else:
        types = {"integer": int, "long": int, "double": int | float, "boolean": bool, "timestamp": int | float}
        assert isinstance(value, types[shape.type_name]), f"{where}={value!r}"
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    size = value if isinstance(value, int | float) else len(value)
    assert (low is None or size >= low) and (high is None or size <= high), f"{where}={value!r}"


def zipped(files: dict[str, str | bytes] | None = None) -> bytes:
    """A zip of some files; of a module `app` with a handler, if none are given."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (files or {"app.py": HANDLER}).items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)  # the same bytes at any time
    return data.getvalue()


def create(aws: Any, name: str, files: dict[str, str | bytes] | None = None, **more: Any) -> Any:
    """Create a function, and wait until it is active."""
    given = {
        "Runtime": "python3.11",
        "Handler": "app.handler",
        "Role": ROLE,
        "Code": {"ZipFile": zipped(files)},
        **more,
    }
    made = aws.create_function(FunctionName=name, **given)
    active(aws, name)
    return made


def active(aws: Any, name: str) -> None:
    """Wait until a function is served as it was last changed."""
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 400})
    aws.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 400})


def invoke(aws: Any, name: str, event: Any = None, **more: Any) -> Any:
    """Call a function; what it returned is under "result"."""
    reply = aws.invoke(FunctionName=name, Payload=json.dumps(event or {}), **more)
    return {**reply, "result": json.loads(reply["Payload"].read() or b"null")}
