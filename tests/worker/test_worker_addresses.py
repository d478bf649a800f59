"""Two addresses: functions are called at one, and controlled at the other."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from aws_client import client, create
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system
APART = 'registry_check = 0.2\ncontrol_listen = "127.0.0.1:0"\n'
CALLS = ("/run/echo", "/url/0", "/2015-03-31/functions/x/invocations")
CONTROL = ("/status", "/stats", "/metrics", "/2015-03-31/functions", "/registry/", "/code/x")


def control_port(process: WorkerProcess) -> int:
    running = json.loads((process.state / "worker.json").read_bytes())
    assert running["control_port"] != running["port"]
    return int(running["control_port"])


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Reply:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, b"", headers)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def elsewhere(reply: Reply) -> bool:
    return reply.status == 404 and b"at the other" in reply.body


def test_each_address_serves_its_part(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh(None, APART)
    control = control_port(process)
    for path in CALLS:
        assert elsewhere(ask(control, path, "POST")) and not elsewhere(ask(process.port, path, "POST")), path
    for path in CONTROL:
        assert elsewhere(ask(process.port, path)) and not elsewhere(ask(control, path)), path
    assert elsewhere(ask(control, "/status", Host="0.lambda-url.x"))
    aws = client(cast(WorkerProcess, SimpleNamespace(port=control)))
    calls = client(process)
    create(aws, "apart")
    assert json.load(calls.invoke(FunctionName="apart", Payload=b"{}")["Payload"])["event"] == {}
    assert elsewhere(ask(control, "/2015-03-31/functions/apart/invocations", "POST"))
    assert elsewhere(ask(process.port, "/2015-03-31/functions/apart"))
    found = aws.create_function_url_config(FunctionName="apart", AuthType="NONE")["FunctionUrl"]
    assert urlsplit(found).port == process.port and ask(process.port, urlsplit(found).path).status == 200
    location = aws.get_function(FunctionName="apart")["Code"]["Location"]
    assert urlsplit(location).port == control and ask(control, urlsplit(location).path).status == 200
    for each in (aws, calls):
        each.close()
    shown = subprocess.run(
        [sys.executable, "-m", "olsock_worker", "status", "--state", str(process.state)],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)["status"] == "ready"


def test_an_open_address_for_calls_does_not_open_the_api(fresh: Callable[..., WorkerProcess]) -> None:
    """Without credentials the API is for the loopback, each address for itself."""
    process = fresh({}, APART + 'host = "0.0.0.0"\n')
    aws = client(cast(WorkerProcess, SimpleNamespace(port=control_port(process))))
    create(aws, "apart")
    refused = process.request("/2015-03-31/functions/apart/invocations", b"{}")
    assert refused.headers["x-amzn-errortype"] == "AccessDeniedException"
    found: Any = aws.create_function_url_config(FunctionName="apart", AuthType="NONE")["FunctionUrl"]
    assert (
        found.startswith(f"http://127.0.0.1:{process.port}/url/")
        and ask(process.port, urlsplit(found).path).status == 200
    )
    aws.close()


@pytest.mark.parametrize("bad", ["127.0.0.1", "127.0.0.1:99999", "no.such.host.invalid:1", ":x"])
def test_what_is_no_address_is_refused(tmp_path: Any, bad: str) -> None:
    process = WorkerProcess(tmp_path / "w", f'control_listen = "{bad}"\n')
    done = subprocess.run(process.command(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "control_listen" in done.stderr and "Traceback" not in done.stderr
