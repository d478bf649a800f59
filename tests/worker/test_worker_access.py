"""Who may use the control API: signatures by AWS's own signer, tokens, neighbours on the loopback, and everybody else."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aws_client import client, zipped
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

from olsock_worker.aws import signatures
from olsock_worker.aws.errors import ApiError
from olsock_worker.settings import SettingsError, load

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "a-secret-of-some-length", "a-token-of-some-length"
CONFIG = f'registry_check = 0.2\n[credentials]\nkeys = {{ {KEY} = "{SECRET}" }}\ntoken = "{TOKEN}"\n'
PATH = "/2015-03-31/functions"


@pytest.fixture(scope="module")
def config() -> str:
    return CONFIG


# -- signatures ---------------------------------------------------------------------------------------------------


def signed(
    method: str = "POST", path: str = PATH, body: bytes = b"{}", secret: str = SECRET, **headers: str
) -> tuple[Any, bytes, bytes]:
    """What botocore signs, as the front sees it."""
    request = AWSRequest(method, f"http://127.0.0.1:5000{path}", data=body, headers=headers)
    SigV4Auth(Credentials(KEY, secret), "lambda", "us-east-1").add_auth(request)
    sent = {name.lower(): value for name, value in request.headers.items()} | {"host": "127.0.0.1:5000"}
    target, _, query = path.partition("?")
    return SimpleNamespace(method=method, headers=sent, body=body), target.encode(), query.encode()


def verify(call: Any, path: bytes, query: bytes, later: float = 0.0) -> None:
    signatures.verify(call, path, query, {KEY: SECRET}, time.time() + later)


@pytest.mark.unit
@pytest.mark.parametrize(
    "path",
    [
        PATH,
        f"{PATH}/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af/invocations?Qualifier=%24LATEST",
        f"{PATH}?MaxItems=2&Marker=a&FunctionVersion=ALL",
        "/2017-03-31/tags/arn%3Aaws?tagKeys=b&tagKeys=a&empty=",
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 1000])
def test_what_botocore_signs_is_accepted(path: str, body: bytes) -> None:
    verify(*signed(path=path, body=body, **{"X-Amz-Log-Type": "Tail", "X-Amz-Client-Context": "a   b"}))


def _other_body(call: Any) -> None:
    call.body += b"x"


def _other_method(call: Any) -> None:
    call.method = "DELETE"


def _other_header(call: Any) -> None:
    call.headers["x-amz-log-type"] = "None"


def _added_header(call: Any) -> None:
    call.headers["x-amz-client-context"] = "new"


def _removed_header(call: Any) -> None:
    del call.headers["x-amz-log-type"]


def _other_host(call: Any) -> None:
    call.headers["host"] = "elsewhere"


def _other_date(call: Any) -> None:
    call.headers["x-amz-date"] = call.headers["x-amz-date"][:-3] + "99Z"


def _other_service(call: Any) -> None:
    call.headers["authorization"] = call.headers["authorization"].replace("/lambda/", "/s3/")


def _other_region(call: Any) -> None:
    call.headers["authorization"] = call.headers["authorization"].replace("us-east-1", "eu-west-1")


def _other_key(call: Any) -> None:
    call.headers["authorization"] = call.headers["authorization"].replace(KEY, "AKIDOTHER")


def _cut(call: Any) -> None:
    call.headers["authorization"] = call.headers["authorization"][:-1]


def _no_host(call: Any) -> None:
    call.headers["authorization"] = call.headers["authorization"].replace("host;", "")


def _wrong_hash(call: Any) -> None:
    call.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_other_body, "InvalidSignatureException"),
        (_other_method, "InvalidSignatureException"),
        (_other_header, "InvalidSignatureException"),
        (_added_header, "IncompleteSignatureException"),
        (_removed_header, "IncompleteSignatureException"),
        (_other_host, "InvalidSignatureException"),
        (_other_date, "IncompleteSignatureException"),
        (_other_service, "IncompleteSignatureException"),
        (_other_region, "InvalidSignatureException"),
        (_other_key, "UnrecognizedClientException"),
        (_cut, "IncompleteSignatureException"),
        (_no_host, "IncompleteSignatureException"),
        (_wrong_hash, "IncompleteSignatureException"),
    ],
)
def test_what_was_changed_is_refused(change: Callable[[Any], None], kind: str) -> None:
    call, path, query = signed(**{"X-Amz-Log-Type": "Tail"})
    verify(call, path, query)
    change(call)
    with pytest.raises(ApiError) as error:
        verify(call, path, query)
    assert error.value.type == kind


@pytest.mark.attack
def test_a_signature_is_of_one_path_one_query_one_secret_and_now() -> None:
    call, path, query = signed(path=f"{PATH}?a=1")
    verify(call, path, query, 290.0)
    verify(call, path, query, -290.0)
    for other in (
        (call, path + b"/x", query),
        (call, path, b"a=2"),
        (call, path, b""),
        signed(secret="of another key"),
    ):
        with pytest.raises(ApiError, match="signature"):
            verify(*other)
    for late in (310.0, -310.0):
        with pytest.raises(ApiError, match="expired"):
            verify(call, path, query, late)


@pytest.mark.unit
@pytest.mark.parametrize(
    "text", ['token = "short"', 'token = "with spaces in between"', 'keys = { a = "short" }', "users = 1"]
)
def test_credentials_that_are_none_are_named(tmp_path: Any, text: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(f"[credentials]\n{text}\n")
    with pytest.raises(SettingsError, match="credentials"):
        load(str(file), {})


# -- a worker with credentials ------------------------------------------------------------------------------------


@pytest.mark.system
def test_keys_and_tokens_are_asked_for(worker: WorkerProcess) -> None:
    def answer(**headers: str) -> tuple[int, str]:
        reply = worker.request(PATH, method="GET", headers=headers)
        return reply.status, reply.headers.get("x-amzn-errortype", "")

    assert answer() == (403, "MissingAuthenticationTokenException")
    assert answer(Authorization="Basic eDp5") == (403, "MissingAuthenticationTokenException")
    assert answer(Authorization="Bearer another-token-of-some-length") == (403, "UnrecognizedClientException")
    assert answer(Authorization="Bearer \xff") == (403, "UnrecognizedClientException")
    assert answer(Authorization=f"Bearer {TOKEN}") == (200, "")
    assert answer(Authorization=f"bearer {TOKEN}") == (200, "")
    assert worker.request("/registry/", method="GET").status == 403
    assert worker.request("/dead-letters", method="GET").status == 403
    assert worker.request("/2015-03-31/functions/function/invocations", b"{}").status == 403
    assert worker.call("echo", 1).json == 1 and worker.request("/status", method="GET").status == 200


@pytest.mark.system
def test_boto_signs_and_is_believed(worker: WorkerProcess) -> None:
    given = {"Runtime": "python3.11", "Handler": "app.handler", "Role": "arn:aws:iam::000000000000:role/any"}
    wrong = client(worker, secret="not the secret of this key")
    wrong.meta.events.unregister("after-call.lambda", unique_id="model")
    with pytest.raises(ClientError, match="InvalidSignatureException"):
        wrong.create_function(FunctionName="signed", Code={"ZipFile": zipped()}, **given)
    wrong.close()
    aws = client(worker, secret=SECRET)
    large = zipped({"app.py": "def handler(e, c): return e", "noise": os.urandom(2 << 20)})
    aws.create_function(FunctionName="signed", Code={"ZipFile": large}, **given)
    assert aws.list_functions()["Functions"][0]["FunctionName"] == "signed"
    aws.delete_function(FunctionName="signed")
    aws.close()


@pytest.mark.system
def test_the_local_socket_needs_none(worker: WorkerProcess) -> None:
    path = worker.state / "api.sock"
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o600)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20.0)
    connection.sock.connect(str(path))
    connection.request("GET", PATH)
    assert json.loads(connection.getresponse().read()) == {"Functions": []}
    connection.close()


# -- a worker without -----------------------------------------------------------------------------------------------


@pytest.mark.attack
def test_a_web_page_is_not_a_neighbour(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh()

    def status(**headers: str) -> int:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return process.request(PATH, method="GET", headers=named).status

    assert (
        status() == status(Host="localhost:5000") == status(Host="[::1]:5000") == status(Sec_Fetch_Site="none") == 200
    )
    assert status(Host="rebound.example.com") == status(Host="10.0.0.1") == 403
    assert status(Host="127.0.0.1@evil.example") == 400
    assert status(Origin="http://evil.example") == status(Origin="null") == status(Sec_Fetch_Site="cross-site") == 403


@pytest.mark.attack
def test_another_address_is_closed_without_credentials(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh(config='host = "0.0.0.0"\n')
    reply = process.request(PATH, method="GET")
    assert reply.status == 403 and "credentials" in reply.json["Message"]
    assert process.call("echo", 1).json == 1


# -- from inside --------------------------------------------------------------------------------------------------

REACHES = """
import os, socket

def f(event):
    said = {}
    for family, address in ((socket.AF_INET, tuple(event["tcp"])), (socket.AF_UNIX, event["local"])):
        with socket.socket(family) as sock:
            sock.settimeout(3)
            try:
                sock.connect(address)
                said[family.name] = "connected"
            except OSError as error:
                said[family.name] = type(error).__name__
    mine = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(mine.getsockname()).close()
    return said
"""


@pytest.mark.attack
@pytest.mark.parametrize("zygote", ["off", "wait"])
def test_a_function_reaches_neither_address(fresh: Callable[..., WorkerProcess], zygote: str) -> None:
    """Its loopback is its own, where it may connect, and the local socket is not in what it sees of the host."""
    worker = fresh({"reaches": (REACHES, f"zygote: {zygote}\n")})
    event = {"tcp": ["127.0.0.1", worker.port], "local": str(worker.state / "api.sock")}
    said = worker.call("reaches", event).json
    assert said == {"AF_INET": "ConnectionRefusedError", "AF_UNIX": "FileNotFoundError"}
    with socket.create_connection(tuple(event["tcp"]), timeout=5), socket.socket(socket.AF_UNIX) as local:
        local.connect(str(event["local"]))  # the control: from outside both take connections
