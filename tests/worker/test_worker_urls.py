"""Function URLs: made, changed and deleted by AWS's client, and what a function behind one is told and answers."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from aws_client import ROLE, client, create, zipped
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from websockets.sync.client import connect
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system
SECRET = "a secret of the tests"
ECHO = """
import json
def handler(event, context):
    if "result" in (event.get("queryStringParameters") or {}):
        return json.loads(event["body"])
    if event["rawPath"] == "/raise":
        raise KeyError("x")
    if event["rawPath"] == "/exit":
        import os
        os._exit(3)
    return event
def parts(event, context):
    yield "first,"
    if event["rawPath"] == "/raise":
        raise KeyError("x")
    yield "x" * int(event["rawQueryString"] or 1)
"""
SITE = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"),
                              ("Access-Control-Allow-Origin", "https://function.example")])
    body = environ["wsgi.input"].read()
    return [f"{environ['REQUEST_METHOD']} {environ['SCRIPT_NAME']} {environ['PATH_INFO']} "
            f"{environ['QUERY_STRING']} {len(body)}".encode("latin-1")]
async def socket(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": scope["root_path"] + " " + scope["path"]})
    await receive()
"""


@pytest.fixture(scope="module")
def config() -> str:
    return f'registry_check = 0.2\n[http]\nreply = "64K"\n[credentials]\nkeys = {{AKIDEXAMPLE = "{SECRET}"}}\n'


@pytest.fixture(scope="module")
def aws(worker: WorkerProcess) -> Iterator[Any]:
    made = client(worker, SECRET)
    yield made
    made.close()


@pytest.fixture(scope="module")
def deployed(aws: Any) -> Any:
    """Two functions of which the tests ask only."""
    create(aws, "echo-event", {"app.py": ECHO})
    create(aws, "site", {"app.py": SITE}, Handler="app.app")
    return aws


def url_of(aws: Any, name: str, kind: str = "NONE", **more: Any) -> str:
    """Make a URL, or one with another configuration in its place."""
    try:
        aws.delete_function_url_config(FunctionName=name)
    except ClientError:
        pass
    return str(aws.create_function_url_config(FunctionName=name, AuthType=kind, **more)["FunctionUrl"])


def ask(
    url: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[Reply, list[tuple[str, str]]]:
    """Send a request to a URL; return the reply, and its headers one by one."""
    found = urlsplit(url)
    with closing(http.client.HTTPConnection(found.netloc, timeout=20.0)) as connection:
        target = found.path + (f"?{found.query}" if found.query else "")
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        given = [(name.lower(), value) for name, value in response.getheaders()]
        return Reply(response.status, dict(given), response.read()), given


def refused(kind: str, call: Callable[..., Any], *words: str, **given: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == kind and all(word in found["Message"] for word in words), found


def result(url: str, value: Any) -> tuple[Reply, list[tuple[str, str]]]:
    """Have the function return a value."""
    return ask(url + "?result", "POST", json.dumps(value).encode(), {"content-type": "application/json"})


# -- the configuration --------------------------------------------------------------------------------------------


def test_a_url_from_its_making_to_its_end(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "made", Publish=True)
    made = aws.create_function_url_config(FunctionName="made", AuthType="NONE")
    assert re.fullmatch(rf"http://127\.0\.0\.1:{worker.port}/url/[0-9a-f]{{32}}/", made["FunctionUrl"])
    assert (made["AuthType"], made["InvokeMode"]) == ("NONE", "BUFFERED") and "Cors" not in made
    refused("ResourceConflictException", aws.create_function_url_config, FunctionName="made", AuthType="NONE")
    got = aws.get_function_url_config(FunctionName="made")
    assert got["FunctionUrl"] == made["FunctionUrl"] and got["FunctionArn"].endswith(":function:made")
    cors = {"AllowOrigins": ["https://a.example"], "MaxAge": 5, "AllowCredentials": True}
    after = aws.update_function_url_config(FunctionName="made", Cors=cors, InvokeMode="RESPONSE_STREAM")
    assert (after["Cors"], after["InvokeMode"], after["FunctionUrl"]) == (cors, "RESPONSE_STREAM", made["FunctionUrl"])
    assert aws.update_function_url_config(FunctionName="made", AuthType="AWS_IAM")["Cors"] == cors
    assert "Cors" not in aws.update_function_url_config(FunctionName="made", Cors={})
    aws.create_alias(FunctionName="made", Name="live", FunctionVersion="1")
    live = aws.create_function_url_config(FunctionName="made", Qualifier="live", AuthType="NONE")
    assert live["FunctionArn"].endswith(":made:live")
    told = ask(live["FunctionUrl"])[0].json
    assert told.get("version") == "1", told
    first = aws.list_function_url_configs(FunctionName="made", MaxItems=1)
    assert [each["FunctionUrl"] for each in first["FunctionUrlConfigs"]] == [made["FunctionUrl"]]
    rest = aws.list_function_url_configs(FunctionName="made", Marker=first["NextMarker"])
    assert [each["FunctionUrl"] for each in rest["FunctionUrlConfigs"]] == [live["FunctionUrl"]]
    assert "NextMarker" not in rest
    aws.delete_alias(FunctionName="made", Name="live")
    assert ask(live["FunctionUrl"])[0].status == 404, "an alias takes its URL along"
    aws.update_function_url_config(FunctionName="made", AuthType="NONE")
    assert ask(made["FunctionUrl"])[0].status == 200
    aws.delete_function_url_config(FunctionName="made")
    refused("ResourceNotFoundException", aws.delete_function_url_config, FunctionName="made")
    refused("ResourceNotFoundException", aws.get_function_url_config, FunctionName="made")
    assert ask(made["FunctionUrl"])[0].error == "unknown_function"
    again = url_of(aws, "made")
    aws.delete_function(FunctionName="made")
    assert ask(again)[0].status == 404
    refused("ResourceNotFoundException", aws.list_function_url_configs, FunctionName="made")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"AuthType": "SOME"}, "AuthType"),
        ({"AuthType": "NONE", "InvokeMode": "OTHER"}, "InvokeMode"),
        ({"AuthType": "NONE", "Cors": {"AllowOrigins": ["https://a\r\nx: y"]}}, "AllowOrigins"),
        ({"AuthType": "NONE", "Cors": {"AllowHeaders": ["a: b"]}}, "AllowHeaders"),
        ({"AuthType": "NONE", "Cors": {"ExposeHeaders": ["a,b"]}}, "ExposeHeaders"),
        ({"AuthType": "NONE", "Cors": {"AllowMethods": ["NO\n"]}}, "AllowMethods"),
        ({"AuthType": "NONE", "Cors": {"MaxAge": 90_000}}, "MaxAge"),
        ({"AuthType": "NONE", "Cors": {"AllowOrigins": ["*"] * 101}}, "AllowOrigins"),
    ],
)
def test_what_makes_no_sense_is_refused(worker: WorkerProcess, deployed: Any, given: dict[str, Any], word: str) -> None:
    aws = client(worker, SECRET, parameter_validation=False)
    refused("InvalidParameterValueException", aws.create_function_url_config, word, FunctionName="site", **given)
    refused("ResourceNotFoundException", aws.get_function_url_config, FunctionName="site")
    aws.close()


def test_what_there_is_not_has_no_url(aws: Any, deployed: Any) -> None:
    absent = "ResourceNotFoundException"
    refused(absent, aws.create_function_url_config, FunctionName="absent", AuthType="NONE")
    refused(absent, aws.create_function_url_config, FunctionName="site", Qualifier="no", AuthType="NONE")
    refused(absent, aws.update_function_url_config, FunctionName="site", AuthType="NONE")


# -- events and results -------------------------------------------------------------------------------------------


def test_the_event_is_that_of_api_gateway(worker: WorkerProcess, deployed: Any) -> None:
    url = url_of(deployed, "echo-event")
    headers = {"X-One": "a", "Cookie": "a=1; b=2", "Content-Type": "text/plain", "User-Agent": "me"}
    reply, _ = ask(f"{url}caf%C3%A9/x?q=1&q=%202&r", "PUT", "bödy".encode(), headers)
    event = reply.json
    number = url.split("/")[-2]
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/caf%C3%A9/x", "q=1&q=%202&r")
    assert event["queryStringParameters"] == {"q": "1, 2", "r": ""}
    assert event["cookies"] == ["a=1", "b=2"] and "cookie" not in event["headers"]
    assert event["headers"]["x-one"] == "a" and event["body"] == "bödy" and not event["isBase64Encoded"]
    context = event["requestContext"]
    assert context["http"] == {
        "method": "PUT",
        "path": "/caf%C3%A9/x",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "me",
    }
    assert (context["apiId"], context["domainName"], context["accountId"]) == (number, "127.0.0.1", "anonymous")
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", context["time"])
    assert context["timeEpoch"] > 1e12 and context["requestId"] == reply.headers["x-request-id"]
    plain = ask(url)[0].json
    assert plain["rawPath"] == "/" and not {"body", "cookies", "queryStringParameters"} & plain.keys()
    binary = ask(url, "POST", b"\xff\x00", {"content-type": "application/octet-stream"})[0].json
    assert base64.b64decode(binary["body"]) == b"\xff\x00" and binary["isBase64Encoded"]


def test_headers_that_come_twice_are_joined(worker: WorkerProcess, deployed: Any) -> None:
    path = urlsplit(url_of(deployed, "echo-event")).path.encode()
    sock = worker.connect()
    sock.sendall(
        b"GET %b HTTP/1.1\r\nHost: x\r\nA: 1\r\nCookie: a=1\r\nA: 2\r\nCookie: b=2\r\nConnection: close\r\n\r\n" % path
    )
    with sock, sock.makefile("rb") as file:
        event = json.loads(file.read().partition(b"\r\n\r\n")[2])
    assert event["headers"]["a"] == "1,2" and event["cookies"] == ["a=1", "b=2"]


def test_a_result_is_an_answer(deployed: Any) -> None:
    url = url_of(deployed, "echo-event")
    given = {
        "statusCode": 201,
        "headers": {
            "Content-Type": "text/x",
            "X-Number": 7,
            "Content-Length": "9999",
            "Connection": "x-hop",
            "x-hop": "1",
        },
        "cookies": ["a=1; Secure", "b=2"],
        "body": base64.b64encode(b"\xff\xfe").decode(),
        "isBase64Encoded": True,
    }
    reply, headers = result(url, given)
    assert (reply.status, reply.body) == (201, b"\xff\xfe")
    assert [value for name, value in headers if name == "set-cookie"] == ["a=1; Secure", "b=2"]
    assert (reply.headers["content-type"], reply.headers["x-number"]) == ("text/x", "7")
    assert reply.headers["content-length"] == "2" and "x-hop" not in reply.headers
    for value in ("text", {"a": 1}, [1], None, 3.5, {"headers": 1}):
        reply, _ = result(url, value)
        assert (reply.status, reply.json, reply.headers["content-type"]) == (200, value, "application/json")
    assert result(url, {"statusCode": 204})[0].body == b""
    reply, _ = result(url, {"statusCode": 302, "headers": {"location": "/x"}})
    assert reply.status == 302 and reply.headers["location"] == "/x"
    head = ask(url + "?result", "HEAD", b'{"statusCode": 200, "body": "abc"}', {"content-type": "application/json"})[0]
    assert head.body == b"" and head.headers["content-length"] == "3"


@pytest.mark.parametrize(
    "value",
    [
        {"statusCode": 200, "headers": {"a": "b\r\nset-cookie: evil=1"}},
        {"statusCode": 200, "headers": {"a: b\r\nc": "d"}},
        {"statusCode": 200, "cookies": ["a\nb: c"]},
        {"statusCode": 200, "headers": {"a": "\u1234"}},
        {"statusCode": 99},
        {"statusCode": 101},
        {"statusCode": "200"},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "body": "§", "isBase64Encoded": True},
    ],
    ids=str,
)
def test_what_is_no_answer_is_not_sent(worker: WorkerProcess, deployed: Any, value: Any) -> None:
    url = url_of(deployed, "echo-event")
    reply, headers = result(url, value)
    assert (reply.status, reply.error) == (502, "bad_result") and "set-cookie" not in dict(headers)
    assert ask(url)[0].status == 200, "the instance serves on"


def test_failures(deployed: Any) -> None:
    url = url_of(deployed, "echo-event")
    assert (ask(url + "raise")[0].status, ask(url + "raise")[0].error) == (502, "handler")
    assert ask(url + "exit")[0].error == "crash"
    assert ask(url, "TRACE")[0].error == "method_not_allowed"
    deployed.put_function_concurrency(FunctionName="echo-event", ReservedConcurrentExecutions=0)
    assert ask(url)[0].error == "throttled"
    deployed.delete_function_concurrency(FunctionName="echo-event")
    assert ask(re.sub(r"url/.*", "url/", url))[0].status == 404


# -- web applications ---------------------------------------------------------------------------------------------


def test_a_web_application_is_served_as_it_is(worker: WorkerProcess, deployed: Any) -> None:
    url = url_of(deployed, "site")
    for _ in range(2):  # before and after it is known what it is
        reply, headers = ask(url + "caf%C3%A9?a=%20", "POST", b"12345")
        mount = urlsplit(url).path.rstrip("/")
        assert reply.body.decode() == f"POST {mount} /café a=%20 5"
        assert [value for name, value in headers if name == "set-cookie"] == ["a=1", "b=2"]
    number = url.split("/")[-2]
    named = worker.request("/deep/er", headers={"host": f"{number}.lambda-url.us-east-1.example:80"})
    assert named.body == b"POST  /deep/er  0"
    assert worker.request("/run/site/x", b"").body == b"POST /run/site /x  0"
    assert worker.request("/", headers={"host": "0.lambda-url.x"}).error == "unknown_function"


def test_a_websocket_at_a_url(worker: WorkerProcess, deployed: Any) -> None:
    create(deployed, "talks", {"app.py": SITE}, Handler="app.socket")
    url = url_of(deployed, "talks", Cors={"AllowOrigins": ["*"]})
    with connect(url.replace("http:", "ws:") + "x") as talk:
        assert talk.recv() == f"{urlsplit(url).path[:-1]} {urlsplit(url).path}x"
    deployed.delete_function(FunctionName="talks")


# -- streams ------------------------------------------------------------------------------------------------------


def test_parts_are_collected_or_streamed(deployed: Any) -> None:
    create(deployed, "parts", {"app.py": ECHO}, Handler="app.parts")
    url = url_of(deployed, "parts")
    whole, _ = ask(url + "?3")
    assert whole.body == b"first,xxx" and whole.headers["content-length"] == "9"
    assert ask(url + "?70000")[0].error == "reply_too_large"
    assert ask(url + "raise")[0].error == "handler"
    deployed.update_function_url_config(FunctionName="parts", InvokeMode="RESPONSE_STREAM")
    streamed, _ = ask(url + "?70000")
    assert len(streamed.body) == 70_006 and streamed.headers["transfer-encoding"] == "chunked"
    assert streamed.headers["content-type"] == "text/plain; charset=utf-8"
    with pytest.raises(http.client.IncompleteRead):
        ask(url + "raise")
    deployed.delete_function(FunctionName="parts")


# -- who may ------------------------------------------------------------------------------------------------------


def signed(url: str, secret: str = SECRET, body: bytes = b"", service: str = "lambda") -> dict[str, str]:
    request = AWSRequest("POST", url, data=body)
    SigV4Auth(Credentials("AKIDEXAMPLE", secret), service, "us-east-1").add_auth(request)
    return dict(request.headers)


def test_signatures(worker: WorkerProcess, deployed: Any) -> None:
    url = url_of(deployed, "echo-event", "AWS_IAM") + "p?a=1"
    good, _ = ask(url, "POST", b"", signed(url))
    assert good.json["requestContext"]["authorizer"]["iam"]["accessKey"] == "AKIDEXAMPLE"
    large = b"x" * 1_100_000
    assert ask(url, "POST", large, signed(url, body=large))[0].status in (200, 502)
    for headers, body in (
        ({}, b""),
        (signed(url, "another secret!!"), b""),
        (signed(url), b"another body"),
        (signed(url + "2"), b""),
        (signed(url, service="s3"), b""),
    ):
        reply, _ = ask(url, "POST", body, headers)
        assert (reply.status, reply.error) == (403, "forbidden")


def test_nobody_signs_without_keys(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({})
    aws = client(process)
    create(aws, "closed")
    url = url_of(aws, "closed", "AWS_IAM")
    assert ask(url, "POST", b"", signed(url))[0].error == "forbidden"
    aws.update_function_url_config(FunctionName="closed", AuthType="NONE")
    assert ask(url)[0].status == 200
    process.kill()
    process.start()
    aws.close()
    aws = client(process)
    found = aws.get_function_url_config(FunctionName="closed")["FunctionUrl"]
    assert found.split("/")[-2] == url.split("/")[-2]
    process.until(lambda: ask(found)[0].status == 200)
    aws.close()


# -- browsers -----------------------------------------------------------------------------------------------------

PREFLIGHT = {"origin": "https://a.example", "access-control-request-method": "PUT"}


def cors_of(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_browsers_are_told_what_is_configured(deployed: Any) -> None:
    cors = {
        "AllowOrigins": ["https://a.example"],
        "AllowMethods": ["PUT", "GET"],
        "AllowHeaders": ["x-a", "x-b"],
        "ExposeHeaders": ["x-c"],
        "MaxAge": 9,
        "AllowCredentials": True,
    }
    for name in ("site", "echo-event"):
        url = url_of(deployed, name, Cors=cors)
        assert cors_of(ask(url, "OPTIONS", headers=PREFLIGHT)[0].headers) == {
            "access-control-allow-origin": "https://a.example",
            "access-control-allow-methods": "PUT,GET",
            "access-control-allow-headers": "x-a,x-b",
            "access-control-max-age": "9",
            "access-control-allow-credentials": "true",
        }
        assert not cors_of(ask(url, "OPTIONS", headers={**PREFLIGHT, "origin": "https://b.example"})[0].headers)
        reply, headers = ask(url, headers={"origin": "https://a.example"})
        assert reply.status == 200 and cors_of(reply.headers) == {
            "access-control-allow-origin": "https://a.example",
            "access-control-expose-headers": "x-c",
            "access-control-allow-credentials": "true",
        }
        assert ("vary", "Origin") in headers
        assert not cors_of(ask(url, headers={"origin": "https://b.example"})[0].headers)
    failed, _ = ask(url + "raise", headers={"origin": "https://a.example"})
    assert failed.status == 502 and failed.headers["access-control-allow-origin"] == "https://a.example"
    deployed.update_function_url_config(FunctionName="echo-event", Cors={"AllowOrigins": ["*"]})
    assert cors_of(ask(url, headers={"origin": "https://z.example"})[0].headers) == {"access-control-allow-origin": "*"}


def test_without_a_configuration_the_function_answers(deployed: Any) -> None:
    url = url_of(deployed, "site")
    reply, _ = ask(url, "OPTIONS", headers=PREFLIGHT)
    assert reply.body.startswith(b"OPTIONS ")
    assert cors_of(reply.headers) == {"access-control-allow-origin": "https://function.example"}


def test_urls_begin_with_what_is_set(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({}, 'url_base = "https://{id}.lambda-url.example.org"\n')
    aws = client(process)
    aws.create_function(
        FunctionName="named", Runtime="python3.11", Handler="app.handler", Role=ROLE, Code={"ZipFile": zipped()}
    )
    url = url_of(aws, "named")
    assert re.fullmatch(r"https://[0-9a-f]{32}\.lambda-url\.example\.org/", url)
    process.until(lambda: process.request("/", b"{}", headers={"host": urlsplit(url).netloc}).status == 200)
    aws.close()
