"""Each status of the front, from a real worker: what the client sees, and that the worker goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from double import CHANNEL
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system

BAD_WRITER = (
    CHANNEL
    + """
import struct
META = b'{"status":200,"content_type":"application/json"}'
def frame(kind, request, payload, flags=0):
    return struct.pack("<BBHIQ", kind, flags, 0, len(payload), request) + payload
def reply(request, body, meta=META):
    return frame(5, request, struct.pack("<I", len(meta)) + meta + body)
"""
)

FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "context": ("def f(event, context):\n    return [context.method, context.path, context.query]\n", ""),
    "only_get": ("def f(event):\n    return 1\n", "triggers: {http: [{method: GET}, {method: put}]}\n"),
    "raises": ("def f(event):\n    raise ValueError('secret-4711')\n", ""),
    "raises_debug": ("def f(event):\n    raise ValueError('secret-4711')\n", "debug: true\n"),
    "unserialisable": ("def f(event):\n    return {1, 2}\n", ""),
    "bad_import": ("import there_is_no_such_module\n", ""),
    "slow": ("import time\ndef f(event):\n    time.sleep(event['s'])\n    return 1\n", "concurrency: 1\nqueue: 1\n"),
    "hog": ("def f(event):\n    return len(bytearray(event['mb'] << 20))\n", "memory: 64M\n"),
    "fresh": ("n = 0\ndef f(event):\n    global n\n    n += 1\n    return n\n", "reuse-sandbox: false\n"),
    "kept": ("n = 0\ndef f(event):\n    global n\n    n += 1\n    return n\n", "concurrency: 1\n"),
    "environment": ("import os\ndef f(event):\n    return dict(os.environ)\n", "environment: {COLOUR: red, N: 3}\n"),
    "whole": ("import os\ndef f(event):\n    return sorted(os.listdir('/var/task'))\n", ""),
    "forged": (
        BAD_WRITER + "def f(event):\n    os.write(channel(), eval(event['send']))\n    return 'mine'\n",
        "timeout: 5\n",
    ),
    "malformed_yaml": ("def f(event):\n    return 1\n", "memmory: 64M\n"),
}


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    return 'registry_check = 0.2\n[http]\nbody = "64K"\n'


def test_echo_and_its_headers(worker: WorkerProcess) -> None:
    reply = worker.call("echo", {"a": [1, None, "ü"]})
    assert (reply.status, reply.json) == (200, {"a": [1, None, "ü"]})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"] and reply.headers["date"]


def test_no_body_is_the_empty_event(worker: WorkerProcess) -> None:
    assert worker.call("echo").json == {}


def test_request_ids_differ(worker: WorkerProcess) -> None:
    assert len({worker.call("echo").headers["x-request-id"] for _ in range(5)}) == 5


def test_context_has_method_path_and_query(worker: WorkerProcess) -> None:
    reply = worker.request("/run/context/a/b?x=1&y", method="DELETE")
    assert reply.json == ["DELETE", "/a/b", "x=1&y"]


def test_head_has_no_body(worker: WorkerProcess) -> None:
    reply = worker.request("/run/echo", method="HEAD")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "2")


@pytest.mark.parametrize("path", ["/run/absent", "/run/", "/run/echo%2f", "/run/..", "/", "/runecho", "/run/%00"])
def test_404(worker: WorkerProcess, path: str) -> None:
    reply = worker.request(path)
    assert reply.status == 404 and reply.error in ("unknown_function", "not_found")


@pytest.mark.parametrize("body", [b"{", b"nonsense", b"\xff", b'{"a":1}}', b"NaN"])
def test_400_for_what_is_not_json(worker: WorkerProcess, body: bytes) -> None:
    reply = worker.request("/run/echo", body)
    assert (reply.status, reply.error) == (400, "malformed")
    assert worker.call("echo", 1).json == 1


def test_405_names_what_is_allowed(worker: WorkerProcess) -> None:
    reply = worker.request("/run/only_get", b"1")
    assert (reply.status, reply.error, reply.headers["allow"]) == (405, "method_not_allowed", "GET, PUT")
    assert worker.request("/run/only_get", method="PUT").status == 200
    assert worker.request("/status").status == 405


def test_413_by_length_and_while_streaming(worker: WorkerProcess) -> None:
    reply = worker.request("/run/echo", b'"' + b"x" * (64 << 10) + b'"')
    assert (reply.status, reply.error) == (413, "body_too_large")
    with worker.connect() as sock:
        sock.sendall(b"POST /run/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        got = b""
        for _ in range(5):
            sock.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        while b"\r\n\r\n" not in got:
            got += sock.recv(4096)
        assert got.startswith(b"HTTP/1.1 413 ")
    assert worker.request("/run/echo", b'"' + b"x" * 60_000 + b'"').status == 200


def test_500_hides_the_traceback_unless_debug(worker: WorkerProcess) -> None:
    reply = worker.call("raises")
    assert (reply.status, reply.error) == (500, "handler")
    assert b"4711" not in reply.body
    error_id = reply.json["error"]["id"]
    log = worker.until(lambda: "Status: error" in (log := worker.function_log("raises")) and log)
    assert error_id in log and "ValueError: secret-4711" in log and reply.headers["x-request-id"] in log
    shown = worker.call("raises_debug").json["error"]
    assert "ValueError: secret-4711" in shown["traceback"] and "f.py" in shown["traceback"]


def test_500_for_a_result_that_is_not_json(worker: WorkerProcess) -> None:
    reply = worker.call("unserialisable")
    assert (reply.status, reply.error) == (500, "serialize")


def test_500_for_a_module_that_cannot_be_imported(worker: WorkerProcess) -> None:
    for _ in range(2):
        reply = worker.call("bad_import")
        assert (reply.status, reply.error) == (500, "init")
    worker.until(lambda: "there_is_no_such_module" in worker.function_log("bad_import"))


def test_429_when_the_queue_is_full(worker: WorkerProcess) -> None:
    worker.call("slow", {"s": 0})
    replies: list[Reply] = []

    def call() -> None:
        replies.append(worker.call("slow", {"s": 0.5}))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [reply for reply in replies if reply.status == 429]
    assert sorted(reply.status for reply in replies) == [200, 200, 429, 429]
    assert refused[0].error == "queue_full" and int(refused[0].headers["retry-after"]) >= 1


def test_502_out_of_memory_and_the_next_request_is_served(worker: WorkerProcess) -> None:
    assert worker.call("hog", {"mb": 8}).json == 8 << 20
    reply = worker.call("hog", {"mb": 512})
    # A handler that gets MemoryError instead of being killed has raised; the limit must show one way or the other.
    assert (reply.status, reply.error) == (502, "oom"), reply.body
    assert worker.call("hog", {"mb": 8}).status == 200


def test_reuse_and_fresh_sandboxes(worker: WorkerProcess) -> None:
    assert [worker.call("kept").json for _ in range(3)] == [1, 2, 3]
    assert [worker.call("fresh").json for _ in range(3)] == [1, 1, 1]


def test_environment_is_the_functions_own(worker: WorkerProcess) -> None:
    environment = worker.call("environment").json
    assert (environment["COLOUR"], environment["N"]) == ("red", "3")
    assert not {"NOTIFY_SOCKET", "OLSOCK_WORKER_STATE", "VIRTUAL_ENV"} & set(environment)


@pytest.mark.attack
@pytest.mark.parametrize(
    "send",
    [
        "reply(1 << 40, b'1')",  # for a request that is not
        "b'\\xff' * 64",  # no frame
        "frame(4, 0, struct.pack('<I', 2) + b'{}')",  # ready once more
        "frame(7, 0, b'')",
        "frame(5, 0, b'')",
        "frame(1, 0, b'')",  # a kind that only the host sends
        "struct.pack('<BBHIQ', 5, 0, 0, 0xffffffff, 1)",
    ],
)
def test_502_for_what_breaks_the_protocol(worker: WorkerProcess, send: str) -> None:
    reply = worker.call("forged", {"send": send})
    assert (reply.status, reply.error) == (502, "bad_reply")
    assert worker.call("forged", {"send": "b''"}).json == "mine"


@pytest.mark.attack
def test_a_forged_content_type_cannot_split_the_reply(worker: WorkerProcess) -> None:
    code = BAD_WRITER + (
        "import gc\n"
        "def f(event):\n"
        "    import sys\n"
        "    frames = sys._getframe()\n"
        "    request = frames.f_back.f_locals['request']\n"
        "    meta = ('{\"status\":%s,\"content_type\":\"%s\"}' % (event['status'], event['type'])).encode()\n"
        "    os.write(channel(), reply(request, b'1', meta))\n"
        "    import time; time.sleep(5)\n"
    )
    worker.deploy("splitter", code, "timeout: 5\n")
    worker.until(lambda: "splitter" in worker.status()["functions"])
    good = worker.call("splitter", {"status": 201, "type": "text/plain"})
    assert (good.status, good.headers["content-type"], good.body) == (201, "text/plain", b"1")  # the control
    for status, kind in [
        (200, r"text/plain\r\nx-evil: 1"),
        (200, r"text/plain\n"),
        (200, "plain"),
        (200, r"text/plain; \u00e9"),
        (100, "text/plain"),
        (101, "text/plain"),
        (600, "text/plain"),
        (-1, "text/plain"),
        ("1e3", "text/plain"),
    ]:
        reply = worker.call("splitter", {"status": status, "type": kind})
        assert (reply.status, reply.error) == (502, "bad_reply"), (status, kind)
        assert "x-evil" not in reply.headers


@pytest.mark.attack
def test_a_second_reply_retires_the_sandbox(worker: WorkerProcess) -> None:
    code = BAD_WRITER + (
        "import sys\nn = 0\n"
        "def f(event):\n"
        "    global n\n    n += 1\n"
        "    request = sys._getframe().f_back.f_locals['request']\n"
        "    if event['twice']:\n"
        "        os.write(channel(), reply(request, b'\"first\"'))\n"
        "    return n\n"
    )
    worker.deploy("twice", code, "concurrency: 1\n")
    worker.until(lambda: "twice" in worker.status()["functions"])
    assert [worker.call("twice", {"twice": False}).json for _ in range(2)] == [1, 2]  # the control: it is kept
    assert worker.call("twice", {"twice": True}).json == "first"
    # The second reply may come after the next request, which then fails with the sandbox: wait for its end.
    worker.until(lambda: not worker.status()["functions"]["twice"]["instances"])
    assert worker.call("twice", {"twice": False}).json == 1


def test_unknown_key_in_ol_yaml_is_named(worker: WorkerProcess) -> None:
    assert worker.call("malformed_yaml").status == 404
    assert "memmory" in worker.log()


def test_status_and_stats(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    status = worker.status()
    assert status["status"] == "ready"
    assert set(status["functions"]["echo"]) >= {"version", "instances", "zygote"}
    stats = worker.stats()
    echo = stats["functions"]["echo"]
    assert echo["requests"] >= 1 and echo["statuses"]["200"] >= 1
    for part in ("total", "queue", "start", "run"):
        assert set(echo[part]) == {"count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms"}
    assert echo["total"]["count"] == echo["requests"]
    assert 0 < echo["run"]["p50_ms"] <= echo["total"]["max_ms"]
    assert set(stats["instances"]) == {"starting", "idle", "busy", "frozen"}
    assert stats["zygotes"] and stats["process"]["memory_bytes"] > 0


def test_idle_instances_are_frozen_and_thaw(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    worker.until(
        lambda: (
            worker.stats()["instances"]
            == {"starting": 0, "idle": 0, "busy": 0} | {"frozen": sum(worker.stats()["instances"].values())}
        )
    )
    began = time.monotonic()
    assert worker.call("echo", 2).json == 2
    assert time.monotonic() - began < 2.0


def test_a_burst_scales_out_at_once(worker: WorkerProcess) -> None:
    worker.deploy("nap", "import time\ndef f(event):\n    time.sleep(0.5)\n    return 1\n", "concurrency: 8\n")
    worker.until(lambda: "nap" in worker.status()["functions"])
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(worker.call("nap"))) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 8
    assert time.monotonic() - began < 8 * 0.5 / 2  # one after the other it would be 4 s
    assert worker.status()["functions"]["nap"]["instances"] == 8


@pytest.mark.attack
def test_what_was_raised_cannot_forge_lines_of_any_log(worker: WorkerProcess) -> None:
    evil = "x\\n2026-01-01T00:00:00.000Z f0rged\\r\\x1b[2J\\u2028{}"
    worker.deploy(
        "evil", f"class E(Exception):\n    pass\nE.__name__ = 'a\\nb'\ndef f(event):\n    raise E('{evil}')\n"
    )
    worker.until(lambda: "evil" in worker.status()["functions"])
    before = len(worker.log().splitlines())
    replies = [worker.call("evil"), worker.request("/run/evil/%0a{}?%0d", b"1", headers={"X-Evil": "\t\x80\xff"})]
    assert {reply.status for reply in replies} == {500}
    ids = {reply.headers["x-request-id"] for reply in replies}
    lines = worker.function_log("evil").splitlines()
    assert len(lines) >= 6 and all(line.split(" ")[1] in ids for line in lines)
    assert not any(ord(character) < 32 for line in lines for character in line.replace("\t", ""))
    assert all(json.loads(line)["event"] for line in worker.log().splitlines()[before:])
    page = worker.request("/metrics", method="GET").body.decode()
    assert "f0rged" not in page
    assert len([line for line in page.splitlines() if 'function="evil"' in line and 'code="500"' in line]) == 1


@pytest.mark.attack
def test_sockets_that_a_handler_puts_in_the_way_are_nobodys(worker: WorkerProcess, tmp_path: Path) -> None:
    """The front dials no path: it talks to an instance by the descriptor that it has had from the start."""
    code = (
        "import os, socket\n"
        "made = []\n"
        "def f(event):\n"
        "    if event:\n"
        "        for path in ('/tmp/ol.sock', '/tmp/channel', '/host/ol.sock', '/var/task/ol.sock'):\n"
        "            try:\n"
        "                os.symlink(event, path)\n"
        "            except OSError:\n"
        "                pass\n"
        "        made.append(socket.socket(socket.AF_UNIX))\n"
        "        made[0].bind('/tmp/mine'); made[0].listen(); made[0].setblocking(False)\n"
        "    try:\n"
        "        made[0].accept()\n"
        "        return 'dialled'\n"
        "    except BlockingIOError:\n"
        "        return [os.path.lexists('/tmp/ol.sock'), os.path.exists('/tmp/ol.sock')]\n"
    )
    worker.deploy("swap", code, "concurrency: 1\n")
    worker.until(lambda: "swap" in worker.status()["functions"])
    with socket.socket(socket.AF_UNIX) as canary:
        path = str(tmp_path / "canary")
        canary.bind(path)
        canary.listen()
        canary.setblocking(False)
        for event in (path, "", "", ""):
            assert worker.call("swap", event).json == [True, False]
        with pytest.raises(BlockingIOError):
            canary.accept()
        with socket.socket(socket.AF_UNIX) as control:  # it would have heard
            control.connect(path)
            canary.accept()[0].close()


def test_output_goes_to_the_functions_log_and_cannot_forge_lines(worker: WorkerProcess) -> None:
    worker.deploy("prints", "def f(event):\n    print(event['text'])\n    return 1\n", "")
    worker.until(lambda: "prints" in worker.status()["functions"])
    evil = "one\r2026-01-01T00:00:00.000Z forged-00000001 two\x1b[2J\x00\u2028three\ntail"
    reply = worker.request("/run/prints", json.dumps({"text": evil}).encode())
    lines = worker.until(lambda: "REPORT" in (log := worker.function_log("prints")) and log.splitlines())
    assert [line.split(" ")[3] for line in lines if " platform/" in line] == ["START", "END", "REPORT"]
    assert all(line.split(" ")[1] == reply.headers["x-request-id"] for line in lines)
    lines = [line for line in lines if line.split(" ")[2].startswith("out/")]
    assert len(lines) == 2 and lines[1].endswith(" tail")
    assert r"\x0d2026-01-01" in lines[0] and r"\x1b[2J\x00\u2028three" in lines[0]
