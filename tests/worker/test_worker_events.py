"""Asynchronous invocations by AWS's own clients: accepted, run, tried again, given up."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aws_client import active, client, create, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

SAYS = "import json\ndef handler(event, context):\n    print('ran', json.dumps(event), context.aws_request_id, flush=True)\n"
FAILS = SAYS + "    raise KeyError('no')\n"
SLEEPS = "import time\n" + SAYS + "    time.sleep(event['s'])\n    print('done', json.dumps(event), flush=True)\n"
FUNCTIONS = {
    "echo": ("def f(event):\n    print('ran', event, flush=True)\n    return event\n", ""),
    "parts": ("def f(event):\n    yield 'a'\n    print('ran', event, flush=True)\n    yield 'b'\n", ""),
    "breaks": ("def f(event):\n    yield 'a'\n    raise KeyError('later')\n", ""),
    "site": (
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n",
        "handler: 'f:app'\n",
    ),
}
CONFIG = """
registry_check = 0.2
[events]
retry_delay = 0.2
backoff = 0.1
backoff_most = 0.5
payload = "64K"
"""


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    return CONFIG


def send(aws: Any, name: str, event: Any = None, **more: Any) -> str:
    """Have a function called later; return the id of the request."""
    reply = aws.invoke(FunctionName=name, InvocationType="Event", Payload=json.dumps(event or {}), **more)
    assert (reply["StatusCode"], reply["Payload"].read()) == (202, b"")
    assert "FunctionError" not in reply and "ExecutedVersion" not in reply
    return str(reply["ResponseMetadata"]["RequestId"])


def ran(worker: WorkerProcess, name: str, word: str = "ran") -> list[str]:
    """What a function has printed after a word."""
    return re.findall(rf"^.*? {word} (.*)$", worker.function_log(name), re.MULTILINE)


def events(worker: WorkerProcess) -> Any:
    return worker.stats()["events"]


def quiet(worker: WorkerProcess) -> None:
    """Wait until no event waits."""
    worker.until(lambda: events(worker)["waiting"] == 0)


def letters(worker: WorkerProcess, name: str = "") -> list[Any]:
    found = worker.request("/dead-letters" + (f"?FunctionName={name}" if name else ""), method="GET").json
    return list(found["DeadLetters"])


def letter(worker: WorkerProcess, identity: str) -> Any:
    """Wait for the dead letter of a request."""

    def look() -> Any:
        reply = worker.request(f"/dead-letters/{identity}", method="GET")
        return reply.json if reply.status == 200 else None

    return worker.until(look)


# -- accepted and run ---------------------------------------------------------------------------------------------


def test_an_event_is_accepted_and_run_later(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "says", {"app.py": SAYS})
    before = events(worker)
    identity = send(aws, "says", {"a": 1})
    worker.until(lambda: ran(worker, "says") == [f'{{"a": 1}} {identity}'])
    quiet(worker)
    after = events(worker)
    assert after["accepted"] == before["accepted"] + 1
    assert after["attempts"]["success"] == before["attempts"]["success"] + 1
    assert after["age"]["count"] == before["age"]["count"] + 1
    aws.delete_function(FunctionName="says")


def test_nobody_waits_for_the_function(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "sleeps", {"app.py": SLEEPS}, Timeout=20)
    identity = send(aws, "sleeps", {"s": 1})
    assert ran(worker, "sleeps", "done") == [], "the reply came before the function had ended"
    worker.until(lambda: ran(worker, "sleeps", "done"))
    assert ran(worker, "sleeps") == [f'{{"s": 1}} {identity}']
    quiet(worker)
    aws.delete_function(FunctionName="sleeps")


def test_what_the_function_is_told(worker: WorkerProcess, aws: Any) -> None:
    source = """
    def handler(event, context):
        told = context.client_context
        print("ran", event, told.custom if told else None, context.invoked_function_arn, context.aws_request_id)
    """
    create(aws, "told", {"app.py": source.replace("\n    ", "\n")}, Publish=True)
    context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    identity = send(aws, "told", ClientContext=context, Qualifier="1")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:told:1"
    worker.until(lambda: ran(worker, "told:1") == [f"{{}} {{'k': 'v'}} {arn} {identity}"])
    send(aws, "told")
    worker.until(lambda: ran(worker, "told") and " None arn:" in ran(worker, "told")[0])
    quiet(worker)
    aws.delete_function(FunctionName="told")


def test_every_attempt_resolves_its_alias(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "aliases", {"app.py": SAYS}, Publish=True)
    aws.update_function_code(FunctionName="aliases", ZipFile=zipped({"app.py": "# two\n" + SAYS}), Publish=True)
    active(aws, "aliases")
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    aws.create_alias(FunctionName="aliases", Name="live", FunctionVersion="1", RoutingConfig=weights)
    for _ in range(40):
        send(aws, "aliases", Qualifier="live")
    worker.until(lambda: len(ran(worker, "aliases:1")) + len(ran(worker, "aliases:2")) == 40)
    assert ran(worker, "aliases:1") and ran(worker, "aliases:2")
    quiet(worker)
    aws.delete_function(FunctionName="aliases")


def test_functions_of_the_directory_and_other_contracts(worker: WorkerProcess, aws: Any) -> None:
    send(aws, "echo", {"a": 1})
    send(aws, "parts", {"a": 2})
    worker.until(lambda: ran(worker, "echo") == ["{'a': 1}"] and ran(worker, "parts") == ["{'a': 2}"])
    broken = letter(worker, send(aws, "breaks"))
    assert (broken["Reason"], broken["ErrorType"], broken["Attempts"]) == ("RetriesExhausted", "KeyError", 3)
    page = {"version": "2.0", "rawPath": "/x", "rawQueryString": "", "headers": {}, "isBase64Encoded": False}
    page["requestContext"] = {"http": {"method": "GET", "path": "/x"}}
    send(aws, "site", page)
    assert letter(worker, send(aws, "site", {"no": "request"}))["Reason"] == "RetriesExhausted"
    quiet(worker)


def test_the_commands(worker: WorkerProcess, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    (tmp_path / "code.zip").write_bytes(zipped({"app.py": FAILS}))

    def run(*argv: str) -> Any:
        command = [sys.executable, "-m", "awscli", "lambda", *argv, "--endpoint-url", f"http://127.0.0.1:{worker.port}"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or b"null")

    def fn(*argv: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "olsock_worker", "fn", *argv, "--state", str(worker.state)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == status and "Traceback" not in done.stderr, done
        return done.stderr if status else done.stdout

    named = ("--function-name", "typed")
    how = ("--runtime", "python3.11", "--handler", "app.handler", "--role", "arn:aws:iam::000000000000:role/any")
    run("create-function", *named, *how, "--zip-file", "fileb://code.zip")
    run("wait", "function-active-v2", *named)
    assert run("put-function-event-invoke-config", *named, "--maximum-retry-attempts", "0")["MaximumRetryAttempts"] == 0
    assert run("invoke", *named, "--invocation-type", "Event", "--payload", '{"a": 1}', "out") == {"StatusCode": 202}
    assert (tmp_path / "out").read_bytes() == b""
    worker.until(lambda: len(letters(worker, "typed")) == 1)
    identity = fn("invoke", "typed", '{"a": 2}', "--event").strip()
    assert letter(worker, identity)["Payload"] == {"a": 2}
    table = fn("dead-letters", "list", "typed").splitlines()
    assert table[0].split()[:2] == ["RequestId", "FunctionName"] and len(table) == 3
    assert "Reason: RetriesExhausted\n" in fn("dead-letters", "show", identity)
    shown = json.loads(fn("dead-letters", "show", identity, "--json"))
    assert (shown["Payload"], shown["Attempts"], shown["ErrorType"]) == ({"a": 2}, 1, "KeyError")
    fn("dead-letters", "retry", identity)
    worker.until(lambda: len(ran(worker, "typed")) == 3)
    assert letter(worker, identity)["Attempts"] == 1, "it has failed again, and its past does not count"
    assert len(json.loads(fn("dead-letters", "retry", "--name", "typed", "--json"))) == 2
    worker.until(lambda: len(ran(worker, "typed")) == 5 and len(letters(worker, "typed")) == 2)
    fn("dead-letters", "delete", identity)
    assert "not found" in fn("dead-letters", "show", identity, status=1)
    assert "not found" in fn("dead-letters", "retry", identity, status=1)
    assert "not found" in fn("dead-letters", "delete", identity, status=1)
    assert fn("dead-letters", "delete", "--name", "typed") == ""
    assert json.loads(fn("dead-letters", "list", "typed", "--json")) == []
    assert "expected one of" in fn("dead-letters", "retry", status=2)
    assert "expected one of" in fn("dead-letters", "delete", identity, "--all", status=2)
    assert "--log" in fn("invoke", "typed", "--event", "--log", status=2)
    assert "not found" in fn("invoke", "absent", "--event", status=1)
    run("delete-function", *named)


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("ResourceNotFoundException", {"FunctionName": "absent"}),
        ("ResourceNotFoundException", {"FunctionName": "echo", "Qualifier": "9"}),
        ("InvalidRequestContentException", {"FunctionName": "echo", "Payload": b"{no json"}),
        ("InvalidRequestContentException", {"FunctionName": "echo", "Payload": b"\xff"}),
        ("InvalidRequestContentException", {"FunctionName": "echo", "Payload": b"[" * 30_000}),
        ("InvalidRequestContentException", {"FunctionName": "echo", "ClientContext": "?"}),
        ("RequestTooLargeException", {"FunctionName": "echo", "Payload": b'"' + b"x" * 65535 + b'"'}),
        ("InvalidParameterValueException", {"FunctionName": "echo", "InvocationType": "Sometime"}),
        ("InvalidParameterValueException", {"FunctionName": "a/b"}),
    ],
)
def test_what_is_refused_is_not_kept(worker: WorkerProcess, kind: str, given: dict[str, Any]) -> None:
    before = events(worker)["accepted"]
    with closing(client(worker, parameter_validation=False)) as aws, pytest.raises(ClientError) as error:
        aws.invoke(**{"InvocationType": "Event", **given})
    assert error.value.response["Error"]["Code"] == kind
    assert events(worker)["accepted"] == before


def test_the_largest_payload(worker: WorkerProcess, aws: Any) -> None:
    text = "x" * (65536 - 2)
    assert letter(worker, send(aws, "breaks", text))["Payload"] == text
    assert (
        json.loads(aws.invoke(FunctionName="echo", Payload=json.dumps(text + "more"))["Payload"].read())
        == text + "more"
    )


# -- tried again, given up ----------------------------------------------------------------------------------------


def stamps(worker: WorkerProcess, name: str) -> list[float]:
    found = re.findall(r"^(\S+)Z .*? ran ", worker.function_log(name), re.MULTILINE)
    return [time.mktime(time.strptime(each[:19], "%Y-%m-%dT%H:%M:%S")) + float(each[19:]) for each in found]


def test_an_error_of_the_function_is_retried_twice(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "fails", {"app.py": FAILS})
    before = events(worker)
    identity = send(aws, "fails", {"a": 1})
    found = letter(worker, identity)
    worker.until(lambda: ran(worker, "fails") == [f'{{"a": 1}} {identity}'] * 3)  # one request, three attempts
    first, second, third = stamps(worker, "fails")
    assert second - first >= 0.15 and third - second >= 0.3, "the second wait is twice the first, more or less"
    assert found["ErrorMessage"] == "'no'" and found["FunctionName"] == "fails" and found["Died"] > found["Accepted"]
    after = events(worker)
    assert after["retries"] == before["retries"] + 2 and after["attempts"]["error"] == before["attempts"]["error"] + 3
    exhausted = [each["dead_letters"]["by_reason"].get("RetriesExhausted", 0) for each in (before, after)]
    assert exhausted[1] == exhausted[0] + 1
    aws.put_function_event_invoke_config(FunctionName="fails", MaximumRetryAttempts=0)
    assert letter(worker, send(aws, "fails", {"a": 2}))["Attempts"] == 1
    worker.until(lambda: len(ran(worker, "fails")) == 4)
    aws.delete_function(FunctionName="fails")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import os\ndef handler(e, c): os._exit(3)\n", "crash"),
        ("import time\ndef handler(e, c): time.sleep(60)\n", "timeout"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("def handler(e, c): return {1, 2}\n", "TypeError"),
    ],
)
def test_each_way_to_fail_is_an_error_of_the_function(worker: WorkerProcess, aws: Any, source: str, kind: str) -> None:
    create(aws, "ends", {"app.py": source}, Timeout=1 if "sleep" in source else 20)
    aws.put_function_event_invoke_config(FunctionName="ends", MaximumRetryAttempts=1)
    found = letter(worker, send(aws, "ends"))
    assert (found["Reason"], found["Attempts"], found["ErrorType"]) == ("RetriesExhausted", 2, kind)
    aws.delete_function(FunctionName="ends")


def test_a_function_that_is_mended_takes_its_events(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "mended", {"app.py": FAILS})
    identity = send(aws, "mended", {"a": 1})
    letter(worker, identity)
    aws.update_function_code(FunctionName="mended", ZipFile=zipped({"app.py": SAYS}))
    active(aws, "mended")
    assert worker.request(f"/dead-letters/{identity}/retry", b"").status == 202
    quiet(worker)
    worker.until(lambda: len(ran(worker, "mended")) == 4)
    assert letters(worker, "mended") == []
    aws.delete_function(FunctionName="mended")


def test_a_throttled_event_waits_for_its_turn(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "one", {"app.py": SLEEPS}, Timeout=20)
    aws.put_function_concurrency(FunctionName="one", ReservedConcurrentExecutions=1)
    aws.put_function_event_invoke_config(FunctionName="one", MaximumRetryAttempts=0)
    for number in range(5):
        send(aws, "one", {"s": 0.2, "n": number})
    quiet(worker)
    worker.until(lambda: len(ran(worker, "one", "done")) == 5)
    said = re.findall(r"^.*? (ran|done) ", worker.function_log("one"), re.MULTILINE)
    assert said == ["ran", "done"] * 5, "never two at one time, and none was given up for having been throttled"
    assert letters(worker, "one") == []
    aws.delete_function(FunctionName="one")


def test_a_function_that_is_turned_off_has_dead_letters_at_once(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "off", {"app.py": SAYS})
    aws.put_function_concurrency(FunctionName="off", ReservedConcurrentExecutions=0)
    found = letter(worker, send(aws, "off", {"a": 1}))
    assert (found["Reason"], found["Attempts"], found["Payload"]) == ("ZeroReservedConcurrency", 0, {"a": 1})
    assert ran(worker, "off") == []
    aws.delete_function(FunctionName="off")


def test_events_of_a_deleted_function_are_dead_and_not_its_successors(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "gone", {"app.py": FAILS})
    aws.put_function_event_invoke_config(FunctionName="gone", MaximumRetryAttempts=2)
    identity = send(aws, "gone", {"a": 1})
    worker.until(lambda: len(ran(worker, "gone")) == 1)
    aws.delete_function(FunctionName="gone")
    create(aws, "gone", {"app.py": SAYS})
    assert letter(worker, identity)["Reason"] == "ResourceNotFound"
    after = send(aws, "gone", {"a": 2})
    worker.until(lambda: f'{{"a": 2}} {after}' in ran(worker, "gone"))
    quiet(worker)
    assert len([each for each in ran(worker, "gone") if identity in each]) == 1
    aws.delete_function(FunctionName="gone")


def test_events_of_an_alias_that_is_gone_are_dead(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "unnamed", {"app.py": FAILS}, Publish=True)
    aws.create_alias(FunctionName="unnamed", Name="live", FunctionVersion="1")
    identity = send(aws, "unnamed", Qualifier="live")
    worker.until(lambda: len(ran(worker, "unnamed:1")) == 1)
    aws.delete_alias(FunctionName="unnamed", Name="live")
    found = letter(worker, identity)
    assert (found["Reason"], found["Qualifier"]) == ("ResourceNotFound", "live")
    aws.delete_function(FunctionName="unnamed")


def test_dead_letters_are_listed_page_by_page(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "many", {"app.py": SAYS})
    aws.put_function_concurrency(FunctionName="many", ReservedConcurrentExecutions=0)
    sent = [send(aws, "many") for _ in range(7)]
    worker.until(lambda: len(letters(worker, "many")) == 7)
    found, marker = [], ""
    while True:
        query = f"FunctionName=many&MaxItems=3{marker}"
        page = worker.request(f"/dead-letters?{query}", method="GET").json
        found += [each["RequestId"] for each in page["DeadLetters"]]
        if "NextMarker" not in page:
            break
        marker = f"&Marker={page['NextMarker']}"
    assert found == sent
    for path in ("/dead-letters?Marker=x", "/dead-letters?MaxItems=0", "/dead-letters?FunctionName=a/b"):
        assert worker.request(path, method="GET").status == 400
    assert worker.request("/dead-letters/absent", method="DELETE").status == 404
    assert worker.request("/dead-letters/absent", method="PUT").status == 404
    for identity in sent:
        assert worker.request(f"/dead-letters/{identity}", method="DELETE").status == 204
    aws.delete_function(FunctionName="many")


# -- bounds -------------------------------------------------------------------------------------------------------


def refused(worker: WorkerProcess, name: str) -> Any:
    """Send an event that has to be refused at once."""
    with closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=20)) as connection:
        path = f"/2015-03-31/functions/{name}/invocations"
        connection.request("POST", path, b"{}", {"X-Amz-Invocation-Type": "Event"})
        reply = connection.getresponse()
        data = json.loads(reply.read())
        assert (reply.status, reply.headers["x-amzn-errortype"]) == (429, "TooManyRequestsException"), data
        assert int(reply.headers["retry-after"]) > 0
        return data["message"]


def test_the_queue_is_bounded_and_one_function_has_a_share(fresh: Callable[..., WorkerProcess]) -> None:
    functions = dict.fromkeys("abc", ("import time\ndef f(event):\n    time.sleep(event['s'])\n", "timeout: 60\n"))
    worker = fresh(functions, "registry_check = 0.2\ndrain = 0.2\n[events]\ncount = 6\nshare = 0.5\n")
    with closing(client(worker)) as aws:
        for _ in range(3):
            send(aws, "a", {"s": 40})
        assert "of this function" in refused(worker, "a")
        for _ in range(3):
            send(aws, "b", {"s": 40})
        assert "6 events wait" in refused(worker, "c")
        with pytest.raises(ClientError) as error:
            aws.invoke(FunctionName="c", InvocationType="Event", Payload=b"{}")
        assert error.value.response["Error"]["Code"] == "TooManyRequestsException"
        found = events(worker)
        assert (found["waiting"], found["refused"]) == (6, 3)
        assert found["waiting_by_function"] == {"a": 3, "b": 3}


def test_bytes_are_bounded(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh(
        {"a": ("import time\ndef f(event):\n    time.sleep(40)\n", "timeout: 60\n")},
        "registry_check = 0.2\ndrain = 0.2\n[events]\nbytes = 5000\nshare = 1.0\n",
    )
    with closing(client(worker)) as aws:
        for _ in range(2):
            send(aws, "a", "x" * 1800)
        assert "bytes" in json.dumps(events(worker)) and events(worker)["waiting_bytes"] > 3600
        with pytest.raises(ClientError) as error:
            send(aws, "a", "x" * 1800)
        assert error.value.response["Error"]["Code"] == "TooManyRequestsException"


def test_an_event_gets_too_old(fresh: Callable[..., WorkerProcess]) -> None:
    """One is throttled by a call that takes longer than its age; the other would be retried after its age."""
    worker = fresh(
        {}, "registry_check = 0.2\n[events]\nage = 1.0\nretry_delay = 5.0\nbackoff = 0.2\nbackoff_most = 0.4\n"
    )
    with closing(client(worker)) as aws:
        create(aws, "busy", {"app.py": SLEEPS}, Timeout=20)
        aws.put_function_concurrency(FunctionName="busy", ReservedConcurrentExecutions=1)
        send(aws, "busy", {"s": 3})
        worker.until(lambda: ran(worker, "busy"))
        with closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=20)) as connection:
            connection.request("POST", "/run/busy", b'{"s": 3}')
            assert connection.getresponse().status == 429
        found = letter(worker, send(aws, "busy", {"s": 0}))
        assert (found["Reason"], found["Attempts"]) == ("EventAgeExceeded", 0)
        create(aws, "fails", {"app.py": FAILS})
        found = letter(worker, send(aws, "fails"))
        assert (found["Reason"], found["Attempts"], found["ErrorType"]) == ("EventAgeExceeded", 1, "KeyError")
        assert events(worker)["dead_letters"]["by_reason"] == {"EventAgeExceeded": 2}
