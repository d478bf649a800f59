"""A function is changed while it is used: no request is lost, and each sees one version whole."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Callable

import pytest
from aws_client import active, client, create, invoke, zipped
from worker_process import Reply, WorkerProcess

pytestmark = pytest.mark.system


def test_an_update_loses_no_request(fresh: Callable[..., WorkerProcess]) -> None:
    code = "import time\ndef f(event):\n    time.sleep(0.02)\n    return {n}\n"
    worker = fresh({"counted": (code.format(n=0), "")})
    replies: list[Reply] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            replies.append(worker.call("counted"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 4):
        worker.until(lambda n=number - 1: replies and replies[-1].json == n)
        worker.deploy("counted", code.format(n=number))
    worker.until(lambda: replies[-1].json == 3)
    stop.set()
    for thread in threads:
        thread.join()
    assert {reply.status for reply in replies} == {200}
    assert {reply.json for reply in replies} == {0, 1, 2, 3}
    worker.until(lambda: len(list((worker.state / "code" / "counted").iterdir())) == 1)  # old code is removed


def test_a_running_request_finishes_on_its_version(fresh: Callable[..., WorkerProcess]) -> None:
    code = "import time\ndef f(event):\n    time.sleep(event)\n    import late\n    return late.n\n"
    worker = fresh({"own": (code, "")})
    (worker.registry / "own" / "late.py").write_text("n = 1\n")
    worker.until(lambda: worker.call("own", 0).status == 200)
    replies: list[Reply] = []
    running = threading.Thread(target=lambda: replies.append(worker.call("own", 1.5)))
    worker.deploy("own", code.replace("late.n", "late.n + 10"))  # all instances are new from here on ...
    (worker.registry / "own" / "late.py").write_text("n = 2\n")
    worker.until(lambda: worker.call("own", 0).json == 12)
    running.start()
    worker.until(lambda: worker.stats()["instances"]["busy"])
    (worker.registry / "own" / "late.py").write_text("n = 3\n")
    worker.until(lambda: worker.call("own", 0).json == 13)
    running.join()
    assert replies[0].json == 12  # ... and this one imported its module after the change


def test_a_broken_update_leaves_the_old_version_in_service(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh({"steady": ("def f(event):\n    return 'old'\n", "")})
    worker.deploy("steady", "def f(event):\n    return 'new'\n", "unknown_key: 1\n")
    worker.until(lambda: "unknown_key" in worker.status()["functions"]["steady"].get("error", ""))
    assert worker.call("steady").json == "old"
    worker.deploy("steady", "def f(event):\n    return 'new'\n")
    worker.until(lambda: worker.call("steady").json == "new")
    assert "error" not in worker.status()["functions"]["steady"]


def test_added_removed_and_from_an_archive(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        code = b"import data.table\ndef f(event):\n    return data.table.rows\n"
        for name, content in (("./f.py", code), ("data/__init__.py", b""), ("data/table.py", b"rows = [1, 2]\n")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    scratch = worker.registry / "packed.tmp"
    scratch.write_bytes(data.getvalue())
    scratch.rename(worker.registry / "packed.tar.gz")
    worker.until(lambda: worker.call("packed").status == 200)
    assert worker.call("packed").json == [1, 2]
    (worker.registry / "packed.tar.gz").unlink()
    worker.until(lambda: worker.call("packed").status == 404)
    assert worker.call("echo", 1).status == 200


def test_a_replaced_registry_directory_is_seen(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh()
    assert worker.call("echo", 1).status == 200
    old = worker.registry.with_name("old-registry")
    worker.registry.rename(old)
    worker.registry.mkdir()
    (worker.registry / "other").mkdir()
    (worker.registry / "other" / "f.py").write_text("def f(event):\n    return 'other'\n")
    worker.until(lambda: worker.call("other").status == 200)
    worker.until(lambda: worker.call("echo", 1).status == 404)


def test_queued_requests_of_clients_that_left_are_dropped(fresh: Callable[..., WorkerProcess]) -> None:
    seen = "import time\nseen = []\ndef f(event):\n    time.sleep(event['s'])\n"
    seen += "    seen.append(event['n'])\n    return seen\n"
    worker = fresh({"one": (seen, "concurrency: 1\nqueue: 10\n")})
    worker.call("one", {"s": 0, "n": "first"})
    running = threading.Thread(target=lambda: worker.call("one", {"s": 1.0, "n": "running"}))
    running.start()
    worker.until(lambda: worker.stats()["instances"]["busy"])
    with worker.connect() as sock:
        body = b'{"s": 0, "n": "left"}'
        sock.sendall(b"POST /run/one HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        time.sleep(0.2)
    running.join()
    assert worker.call("one", {"s": 0, "n": "last"}).json == ["first", "running", "last"]
    assert worker.stats()["functions"]["one"]["statuses"]["499"] == 1


def test_a_version_is_compiled_beside_its_code(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh({"own": ("import sys\ndef f(event):\n    return f.__code__.co_filename\n", "")})
    (code,) = (worker.state / "code" / "own").iterdir()
    assert worker.until(lambda: list(code.glob("__pycache__/f.*.pyc")))
    assert worker.call("own").json == "/var/task/f.py"
    worker.deploy("own", "def f(:")  # cannot be compiled: who calls it is told
    assert worker.until(lambda: worker.call("own").status == 500)
    assert worker.until(lambda: not code.exists())


def _call_slowly(worker: WorkerProcess, results: list[int]) -> None:
    aws = client(worker)
    results.append(invoke(aws, "raced", {"s": 0.5})["result"])
    aws.close()


def test_what_was_acknowledged_is_what_is_called(fresh: Callable[..., WorkerProcess]) -> None:
    """Over the API, while instances of the version before are warm and busy."""
    worker = fresh({})
    aws = client(worker)
    code = "import time\ndef handler(event, context):\n    time.sleep(event['s'])\n    return {n}\n"
    create(aws, "raced", {"app.py": code.format(n=0)})
    stop = threading.Event()
    seen: list[list[int]] = [[], []]

    def ask(mine: list[int]) -> None:
        other = client(worker)
        while not stop.is_set():
            mine.append(invoke(other, "raced", {"s": 0.01})["result"])
        other.close()

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 6):
            late: list[int] = []
            running = threading.Thread(target=_call_slowly, args=(worker, late))
            running.start()
            worker.until(lambda: worker.stats()["instances"]["busy"])
            aws.update_function_code(FunctionName="raced", ZipFile=zipped({"app.py": code.format(n=number)}))
            active(aws, "raced")
            assert invoke(aws, "raced", {"s": 0})["result"] == number
            running.join()
            assert late[0] in (number - 1, number)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for mine in seen:
        assert mine == sorted(mine), "never back to an older version"
    aws.close()
