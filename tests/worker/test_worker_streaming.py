"""InvokeWithResponseStream by AWS's own client: parts as they are made, how a call ended, and no faster than they are taken."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aws_client import client, create
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system
CODE = """
import os, pathlib, time
def parts(event, context):
    print("called", flush=True)
    yield "first"
    if "raise" in event:
        raise KeyError("late")
    if "exit" in event:
        os._exit(1)
    if "wait" in event:
        time.sleep(60)
    for _ in range(event.get("many", 1)):
        yield b"x" * 100_000
def whole(event, context):
    print("called", flush=True)
    if "raise" in event:
        raise KeyError("early")
    return "y" * event.get("size", 1)
def app(environ, start_response):
    start_response("201 Made", [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return iter([b"one", b"two"])
"""


@pytest.fixture(scope="module")
def aws(worker: WorkerProcess) -> Iterator[Any]:
    made = client(worker)
    for name in ("parts", "whole", "app"):
        create(made, name, {"app.py": CODE}, Handler=f"app.{name}", Timeout=20)
    yield made
    made.close()


def stream(aws: Any, name: str, event: Any = None, **more: Any) -> tuple[list[bytes], dict[str, Any]]:
    """Call a function; return the parts that came, and how it ended."""
    reply = aws.invoke_with_response_stream(FunctionName=name, Payload=json.dumps(event or {}), **more)
    assert reply["StatusCode"] == 200 and reply["ResponseStreamContentType"] == "application/vnd.amazon.eventstream"
    assert reply["ExecutedVersion"] == "$LATEST"
    events = list(reply["EventStream"])
    (end,) = [each["InvokeComplete"] for each in events if "InvokeComplete" in each]
    assert "InvokeComplete" in events[-1]
    return [each["PayloadChunk"]["Payload"] for each in events[:-1]], end


def test_parts_come_as_they_are_made(aws: Any) -> None:
    reply = aws.invoke_with_response_stream(FunctionName="parts", Payload=b'{"wait": 1}')
    first = next(iter(reply["EventStream"]))
    assert first["PayloadChunk"]["Payload"] == b"first", "the function sleeps, and its first part is here"
    reply["EventStream"].close()
    parts, end = stream(aws, "parts", {"many": 3})
    assert b"".join(parts) == b"first" + b"x" * 300_000 and end == {}


def test_what_is_whole_is_a_stream_as_well(aws: Any) -> None:
    assert stream(aws, "whole") == ([b'"y"'], {})
    parts, end = stream(aws, "whole", {"size": 3_000_000})
    assert len(parts) == 3 and json.loads(b"".join(parts)) == "y" * 3_000_000 and end == {}


def test_the_end_tells_of_a_failure(aws: Any) -> None:
    parts, end = stream(aws, "whole", {"raise": 1})
    assert not parts and end["ErrorCode"] == "Unhandled"
    details = json.loads(end["ErrorDetails"])
    assert (details["errorType"], details["errorMessage"]) == ("KeyError", "'early'") and details["stackTrace"]
    parts, end = stream(aws, "parts", {"raise": 1})
    assert parts == [b"first"] and json.loads(end["ErrorDetails"])["errorType"] == "KeyError"
    parts, end = stream(aws, "parts", {"exit": 1})
    assert parts == [b"first"] and json.loads(end["ErrorDetails"])["errorType"] == "Runtime.ExitError"
    assert stream(aws, "parts")[1] == {}, "the function serves on"


def test_the_end_has_the_log(worker: WorkerProcess, aws: Any) -> None:
    for name in ("parts", "whole"):
        end = stream(aws, name, LogType="Tail")[1]
        assert b"called\n" in base64.b64decode(end["LogResult"])


def test_a_web_application_says_status_and_headers_first(aws: Any) -> None:
    event = {"version": "2.0", "rawPath": "/", "requestContext": {"http": {"method": "GET"}}}
    parts, end = stream(aws, "app", event)
    head, _, body = b"".join(parts).partition(b"\0" * 8)
    assert (body, end) == (b"onetwo", {})
    assert json.loads(head) == {"statusCode": 201, "headers": {"content-type": "text/plain"}, "cookies": ["a=1", "b=2"]}


def test_what_never_reached_the_function_is_an_error(aws: Any) -> None:
    for given, kind in (
        ({"FunctionName": "absent"}, "ResourceNotFoundException"),
        ({"FunctionName": "whole", "Qualifier": "9"}, "ResourceNotFoundException"),
        ({"FunctionName": "whole", "Payload": b"no JSON"}, "InvalidRequestContentException"),
        ({"FunctionName": "parts", "Payload": b"no JSON"}, "InvalidRequestContentException"),
        ({"FunctionName": "whole", "ClientContext": "!"}, "InvalidRequestContentException"),
    ):
        with pytest.raises(ClientError) as error:
            aws.invoke_with_response_stream(**given)
        assert error.value.response["Error"]["Code"] == kind
    aws.put_function_concurrency(FunctionName="whole", ReservedConcurrentExecutions=0)
    with pytest.raises(ClientError) as error:
        aws.invoke_with_response_stream(FunctionName="whole")
    assert error.value.response["Error"]["Code"] == "TooManyRequestsException"
    aws.delete_function_concurrency(FunctionName="whole")


def test_who_does_not_read_holds_the_function_up(worker: WorkerProcess, aws: Any) -> None:
    """Fifty megabytes are made no faster than they are taken."""
    assert len(b"".join(stream(aws, "parts", {"many": 20})[0])) > 1_000_000  # buffers have their size by now
    body = json.dumps({"many": 500}).encode()
    path = "/2021-11-15/functions/parts/response-streaming-invocations"
    sock = worker.connect()
    read = 0

    def wait_and_read() -> None:
        nonlocal read
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert worker.until(lambda: worker.status()["instances"]["busy"])
        while read < 50_000_000:
            data = sock.recv(1 << 20)
            assert data
            read += len(data)

    with sock:
        assert worker.growth(wait_and_read) < 20 << 20
    assert read >= 50_000_000


def test_a_client_that_leaves_ends_the_stream(worker: WorkerProcess, aws: Any) -> None:
    reply = aws.invoke_with_response_stream(FunctionName="parts", Payload=b'{"many": 100000}')
    next(iter(reply["EventStream"]))
    reply["EventStream"].close()
    worker.until(lambda: worker.status()["instances"]["busy"] == 0)
