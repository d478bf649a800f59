"""Flask, Django and FastAPI applications, unchanged, deployed with what they require and served by a worker."""

from __future__ import annotations

import http.client
import json
import socket

import pytest
from aws_client import ROLE, active, client, create, zipped
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from worker_process import Reply, WorkerProcess

from support.web_apps import DJANGO, FASTAPI, FLASK

pytestmark = pytest.mark.system

INSTALLED = 180.0  # seconds: packages come from the network
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return {"echo": ("def f(event):\n    return event\n", "")}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("packages")
    return f'registry_check = 0.2\npackage_store = "{store}"\n[function]\nmemory = "512M"\ntimeout = 30\n'


def get(worker: WorkerProcess, path: str, **headers: str) -> Reply:
    return worker.request(f"/run/{path}", method="GET", headers=headers)


def deployed(worker: WorkerProcess, name: str) -> None:
    def look() -> bool:
        shown = worker.status()["functions"].get(name, {})
        assert "error" not in shown, shown["error"]
        return "version" in shown and "deploying" not in shown

    worker.until(look, INSTALLED)


def test_flask_over_the_control_api(worker: WorkerProcess) -> None:
    aws = client(worker)
    create(aws, "shop", {"app.py": FLASK, "requirements.txt": "flask\n"}, Handler="app.app", MemorySize=512, Timeout=30)
    told = get(worker, "shop/items/caf%C3%A9?q=1%202", host="shop.example").json
    assert (told["name"], told["q"], told["host"]) == ("café", "1 2", "shop.example")
    assert told["url"] == "http://shop.example/run/shop/items/café"
    first = get(worker, "shop/")
    assert first.body == b"seen 1"
    assert get(worker, "shop/", cookie=first.headers["set-cookie"].partition(";")[0]).body == b"seen 2"
    moved = get(worker, "shop/go", **{"x-forwarded-proto": "https"})
    assert (moved.status, moved.headers["location"]) == (302, "/run/shop/items/there")
    assert worker.request("/run/shop/json", b'{"a": 1}', headers=JSON).json == {"a": 1}
    assert get(worker, "shop/stream").body == b"0\n1\n2\n"
    assert [get(worker, f"shop/{path}").status for path in ("broken", "teapot", "nosuch")] == [500, 418, 404]
    assert worker.request("/run/shop/", method="DELETE").status == 405
    head = worker.request("/run/shop/file", method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "8")
    with pytest.raises(http.client.IncompleteRead):
        get(worker, "shop/late")  # it fails inside of its stream: the client can see that it is not whole
    assert get(worker, "shop/file").body == b"contents"
    event = {
        "version": "2.0",
        "rawPath": "/items/x",
        "rawQueryString": "q=y",
        "headers": {"Host": "by.event"},
        "requestContext": {"http": {"method": "GET"}},
    }
    answer = json.loads(aws.invoke(FunctionName="shop", Payload=json.dumps(event))["Payload"].read())
    assert answer["statusCode"] == 200 and json.loads(answer["body"])["host"] == "by.event"
    active(aws, "shop")
    aws.delete_function(FunctionName="shop")


def test_a_version_that_is_published_before_it_is_installed(worker: WorkerProcess) -> None:
    """It waits as the newest does, and gets the packages that were installed for that, for good."""
    aws = client(worker)
    code = "import six\ndef handler(event, context): return six.__name__\n"
    given = {"Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE}
    files: dict[str, str | bytes] = {"app.py": code, "requirements.txt": "six\n"}
    made = aws.create_function(FunctionName="pinned", Code={"ZipFile": zipped(files)}, Publish=True, **given)
    assert (made["Version"], made["State"]) == ("1", "Pending")
    active(aws, "pinned")
    kept = worker.until(lambda: [*(worker.state / "locks" / "pinned:1").glob("*.lock")])
    latest = [*(worker.state / "locks" / "pinned").glob("*.lock")]
    assert [each.name for each in kept] == [each.name for each in latest]
    assert aws.get_function_configuration(FunctionName="pinned", Qualifier="1")["State"] == "Active"
    assert json.loads(aws.invoke(FunctionName="pinned", Qualifier="1")["Payload"].read()) == "six"
    aws.delete_function(FunctionName="pinned")


@pytest.mark.parametrize("contract", ["wsgi", "asgi"])
def test_django(worker: WorkerProcess, contract: str) -> None:
    source = DJANGO + f"from django.core.{contract} import get_{contract}_application as get\nf = get()\n"
    worker.deploy(f"d-{contract}", source, "", requirements="django\n")
    deployed(worker, f"d-{contract}")
    host = {"host": "shop.example"}
    told = get(worker, f"d-{contract}/items/caf%C3%A9?q=1%202", **host).json
    assert told == {"name": "café", "q": "1 2", "path": f"/run/d-{contract}/items/café", "body": ""}
    assert get(worker, f"d-{contract}/stream", **host).body == b"0,1,2,"
    assert [get(worker, f"d-{contract}/{path}", **host).status for path in ("broken", "nosuch", "")] == [500, 404, 200]
    assert get(worker, f"d-{contract}/later").status == 400, "a host that is not allowed"


@pytest.fixture(scope="module")
def fastapi(worker: WorkerProcess) -> str:
    worker.deploy(
        "api",
        FASTAPI.replace("app = FastAPI", "f = app = FastAPI"),
        "concurrency: 1\n",
        requirements="fastapi\npython-multipart\n",
    )
    deployed(worker, "api")
    return "api"


def test_fastapi(worker: WorkerProcess, fastapi: str) -> None:
    body = {"name": "é", "price": 1.5}
    made = worker.request(f"/run/{fastapi}/items/7?q=x", json.dumps(body).encode(), headers=JSON)
    assert (made.status, made.json) == (201, {"number": 7, "item": body, "q": "x"})
    assert worker.request(f"/run/{fastapi}/items/seven", b"{}", headers=JSON).status == 422
    told = get(worker, f"{fastapi}/sync", host="shop.example", **{"x-forwarded-proto": "https"}).json
    assert told == {"state": "at startup", "url": "https://shop.example/run/api/sync", "root": "/run/api"}
    stream = get(worker, f"{fastapi}/stream")
    assert stream.body == b"0,1,2," and stream.headers["content-type"].startswith("text/event-stream")
    assert [get(worker, f"{fastapi}/{path}").status for path in ("gone", "nosuch", "docs", "broken")] == [
        410,
        404,
        200,
        500,
    ]
    assert get(worker, f"{fastapi}/later").body == b'"at once"'
    worker.until(lambda: "in the background" in get(worker, f"{fastapi}/worked").json)


def test_a_client_that_leaves_an_endless_stream(worker: WorkerProcess, fastapi: str) -> None:
    with worker.connect() as sock:
        sock.sendall(b"GET /run/api/endless HTTP/1.1\r\nhost: a\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        sock.shutdown(socket.SHUT_RDWR)
    worker.until(lambda: "closed" in get(worker, f"{fastapi}/worked").json)


def test_a_websocket(worker: WorkerProcess, fastapi: str) -> None:
    url = f"ws://127.0.0.1:{worker.port}/run/{fastapi}/chat/lobby"
    with connect(url, subprotocols=["chat"]) as chat:  # type: ignore[list-item]
        assert chat.subprotocol == "chat"
        for said in ("hello", "é" * 1000):
            chat.send(said)
            assert json.loads(chat.recv(10.0)) == {"room": "lobby", "said": said}
        chat.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            chat.recv(10.0)
        assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "left")
    with pytest.raises(InvalidStatus) as refused:  # the application chooses a subprotocol that nobody has offered
        connect(url)
    assert refused.value.response.status_code == 500
    with connect(url, subprotocols=["chat"]) as chat:  # type: ignore[list-item]
        chat.close(4321)
    worker.until(lambda: 4321 in get(worker, f"{fastapi}/worked").json)
