"""OpenLambda's /registry: uploads, lists, configurations, deletions."""

from __future__ import annotations

import io
import tarfile

import pytest
from worker_process import WorkerProcess

pytestmark = pytest.mark.system


def tarball(**files: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


def test_from_upload_to_deletion(worker: WorkerProcess) -> None:
    yaml = "environment: {A: b}\ntriggers: {http: [{method: POST}]}\n"
    reply = worker.request("/registry/up.one", tarball(f_py="def f(event): return 1\n", ol_yaml=yaml))
    assert (reply.status, reply.json) == (201, "Lambda up.one uploaded successfully")
    assert worker.call("up.one").json == 1
    assert worker.request("/run/up.one", method="GET").status == 405
    assert "up.one" in worker.request("/registry/", method="GET").json
    shown = worker.request("/registry/up.one/config", method="GET").json
    assert (
        shown["Triggers"]["HTTP"] == [{"Method": "POST"}] and shown["Environment"]["A"] == "b" and shown["ReuseSandbox"]
    )
    assert worker.request("/registry/up.one", tarball(f_py="def f(event): return 2\n")).status == 201
    worker.until(lambda: worker.call("up.one").json == 2)
    assert worker.request("/registry/up.one", method="DELETE").status == 200
    assert worker.call("up.one").status == 404
    assert worker.request("/registry/up.one", method="DELETE").status == 404
    assert worker.request("/registry/up.one/config", method="GET").status == 404


@pytest.mark.parametrize("name", ["..", ".x", "a%2fb", "x" * 65, "a%00", "%c3%a9"])
def test_names_that_are_none_are_refused(worker: WorkerProcess, name: str) -> None:
    assert worker.request(f"/registry/{name}", tarball(f_py="def f(event): return 1\n")).status in (400, 404)
    assert worker.request("/registry/", method="GET").json == ["echo", "slow"]


def test_what_cannot_run_is_refused(worker: WorkerProcess) -> None:
    for body in (b"", b"no archive", tarball(f_py="", ol_yaml="nonsense: 1\n"), tarball(f_py="x")[:-30]):
        reply = worker.request("/registry/bad", body)
        assert reply.status == 400, reply.body
    assert worker.request("/registry/echo", tarball(f_py="def f(event): return 2\n")).status == 409
    assert worker.call("bad").status == 404
