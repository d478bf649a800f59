"""Code.Location: an address that is good for a while, and the zip that is behind it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aws_client import ROLE, active, create, invoke, zipped
from worker_process import WorkerProcess

from olsock_worker.downloads import Downloads

pytestmark = pytest.mark.system
FILES: dict[str, str | bytes] = {"app.py": "def handler(e, c): return 1\n", "deep/er/x": b"\0\xff" * 1000, "empty": b""}


def fetch(url: str) -> dict[str, bytes]:
    with urllib.request.urlopen(url, timeout=20) as reply:
        assert reply.headers["content-type"] == "application/zip"
        data = reply.read()
        assert len(data) == int(reply.headers["content-length"])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_the_code_can_be_fetched_and_deployed_again(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "fetched", FILES, Tags={"a": "b"}, Publish=True)
    aws.put_function_concurrency(FunctionName="fetched", ReservedConcurrentExecutions=3)
    got = aws.get_function(FunctionName="fetched")
    assert got["Tags"] == {"a": "b"} and got["Concurrency"] == {"ReservedConcurrentExecutions": 3}
    expected = {name: text.encode() if isinstance(text, str) else text for name, text in FILES.items()}
    assert fetch(got["Code"]["Location"]) == expected
    with urllib.request.urlopen(got["Code"]["Location"], timeout=20) as reply:
        again = reply.read()
    aws.update_function_code(FunctionName="fetched", ZipFile=zipped({"app.py": "def handler(e, c): return 2\n"}))
    active(aws, "fetched")
    assert invoke(aws, "fetched")["result"] == 2
    old = aws.get_function(FunctionName="fetched", Qualifier="1")
    assert old["Configuration"]["Version"] == "1" and fetch(old["Code"]["Location"]) == expected
    aws.update_function_code(FunctionName="fetched", ZipFile=again)
    active(aws, "fetched")
    assert invoke(aws, "fetched")["result"] == 1
    aws.delete_function(FunctionName="fetched")
    path = urlsplit(got["Code"]["Location"]).path
    assert worker.request(path, method="GET").error == "not_found"


def test_layers_can_be_fetched(aws: Any) -> None:
    made = aws.publish_layer_version(LayerName="fetched", Content={"ZipFile": zipped({"python/x.py": "X = 1\n"})})
    assert fetch(made["Content"]["Location"]) == {"python/x.py": b"X = 1\n"}
    aws.delete_layer_version(LayerName="fetched", VersionNumber=1)


def test_only_signed_addresses_are_good(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "closed", FILES)
    path = urlsplit(aws.get_function(FunctionName="closed")["Code"]["Location"]).path
    _, _, digest, until, mac = path.split("/")
    assert worker.request(path, method="GET").status == 200
    for bad in (
        f"/code/{digest}/{until}/{mac[:-1]}{int(mac[-1], 16) ^ 1:x}",
        f"/code/{digest}/{int(until) + 1}/{mac}",
        f"/code/{digest[:-1]}{int(digest[-1], 16) ^ 1:x}/{until}/{mac}",
        f"/code/{digest}",
        "/code/../uploads",
        f"{path}/",
    ):
        assert worker.request(bad, method="GET").error == "forbidden"
    assert worker.request(path, b"", method="POST").error == "method_not_allowed"
    head = worker.request(path, method="HEAD")
    assert head.status == 200 and not head.body and int(head.headers["content-length"]) > 100
    aws.delete_function(FunctionName="closed")


def test_who_does_not_read_does_not_make_the_worker_grow(worker: WorkerProcess, aws: Any) -> None:
    create(aws, "large", {"app.py": "def handler(e, c): return 1\n", "data": os.urandom(40_000_000)})
    path = urlsplit(aws.get_function(FunctionName="large")["Code"]["Location"]).path
    read = 0

    def wait_and_read() -> None:
        nonlocal read
        with worker.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
            assert worker.status()["status"] == "ready"
            while data := sock.recv(1 << 20):
                read += len(data)

    assert worker.growth(wait_and_read) < 20 << 20
    assert read > 40_000_000
    with worker.connect() as sock:  # and who leaves leaves nothing behind
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        sock.recv(100)
    front = Path(f"/proc/{worker.front}/fd")
    worker.until(lambda: not [each for each in front.iterdir() if "(deleted)" in _target(each)])
    aws.delete_function(FunctionName="large")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def test_addresses_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    refused: list[tuple[int, str]] = []

    class Asked:
        method = "GET"

    async def look() -> None:
        downloads = Downloads(None, lambda _call, status, kind, *_: refused.append((status, kind)), None)  # type: ignore[arg-type]
        path = downloads.path("0" * 64)
        monkeypatch.setattr("olsock_worker.downloads.time.time", lambda: int(path.split("/")[3]) + 1)
        downloads.handle(Asked(), path.encode())  # type: ignore[arg-type]

    asyncio.run(look())
    assert refused == [(403, "forbidden")]


def test_the_aws_command(worker: WorkerProcess, tmp_path: Path) -> None:
    """Layers, function URLs and provisioned concurrency from a shell; what curl gets is the code."""
    (tmp_path / "code.zip").write_bytes(zipped(FILES))
    (tmp_path / "layer.zip").write_bytes(zipped({"python/x.py": "X = 1\n"}))
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

    name = ("--function-name", "typed")
    layer = run("publish-layer-version", "--layer-name", "typed", "--zip-file", "fileb://layer.zip")["LayerVersionArn"]
    how = ("--runtime", "python3.11", "--handler", "app.handler", "--role", ROLE, "--zip-file", "fileb://code.zip")
    assert run("create-function", *name, *how, "--layers", layer, "--publish")["Layers"][0]["Arn"] == layer
    run("wait", "function-active-v2", *name)
    url = run("create-function-url-config", *name, "--auth-type", "NONE")["FunctionUrl"]
    with urllib.request.urlopen(url, timeout=20) as reply:
        assert reply.read() == b"1"
    run("put-provisioned-concurrency-config", *name, "--qualifier", "1", "--provisioned-concurrent-executions", "1")
    location = run("get-function", *name, "--query", "Code.Location")
    fetched = subprocess.run(["curl", "-sf", location], capture_output=True, check=True).stdout
    with zipfile.ZipFile(io.BytesIO(fetched)) as archive:
        assert set(FILES) <= set(archive.namelist())
    run("delete-function", *name)
    run("delete-layer-version", "--layer-name", "typed", "--version-number", "1")
