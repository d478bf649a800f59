"""Functions that require packages of PyPI: resolved, installed, locked, and kept apart."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_process import WorkerProcess, ended

from olsock import interpreters

pytestmark = pytest.mark.system

INSTALLED = 180.0  # seconds: packages come from the network
VERSIONS = """
from importlib.metadata import version
{imports}
def f(event):
    return {{name: version(name) for name in event}}
"""


def versions(imports: str) -> str:
    return VERSIONS.format(imports=imports)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages that the tests here share, so that each comes over the network once."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def config(store: Path) -> str:
    return f'registry_check = 0.2\npackage_store = "{store}"\n[function]\nmemory = "512M"\n'


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return {"bare": ("def f(event):\n    import importlib\n    importlib.import_module(event)\n", "debug: true\n")}


def deployed(worker: WorkerProcess, name: str, timeout: float = INSTALLED) -> dict[str, object]:
    """Wait until the newest version of a function runs; return its part of the status."""

    def look() -> dict[str, object]:
        shown = worker.status()["functions"].get(name, {})
        assert "error" not in shown, shown["error"]
        return shown if "version" in shown and "deploying" not in shown else {}

    found = worker.until(look, timeout)
    assert isinstance(found, dict)
    return found


def failed(worker: WorkerProcess, name: str, timeout: float = INSTALLED) -> str:
    """Wait until a function could not be deployed; return why."""
    return str(worker.until(lambda: worker.status()["functions"].get(name, {}).get("error", ""), timeout))


def details(worker: WorkerProcess, name: str) -> dict[str, object]:
    found = worker.request(f"/status?function={name}", method="GET").json
    assert isinstance(found, dict)
    return found


# -- what works --------------------------------------------------------------------------------------------------------


def test_a_function_gets_what_it_requires(worker: WorkerProcess) -> None:
    code = """
    import flask, pydantic, requests
    class Point(pydantic.BaseModel):
        x: int
    def f(event):
        with flask.Flask("f").test_request_context("/a?b=1"):
            seen = flask.request.args["b"]
        return [Point(x="3").x, seen, requests.Request("GET", "http://a/", params={"q": 1}).prepare().url]
    """
    worker.deploy("web", code, requirements="requests>=2\nflask\npydantic[email]  # a comment\n")
    shown = deployed(worker, "web")
    assert worker.call("web").json == [3, "1", "http://a/?q=1"]
    found = details(worker, "web")
    names = {each.split("==")[0] for each in found["packages"]}
    assert {"requests", "flask", "pydantic", "pydantic-core", "werkzeug", "email-validator"} <= names
    assert shown["packages"] == len(found["packages"])
    assert set(found["requires"]) == {"requests>=2", "flask", "pydantic[email]"}


def test_two_versions_side_by_side_and_nobody_else_sees_them(worker: WorkerProcess) -> None:
    for name, requirement in (("np1", "numpy==1.26.4"), ("np2", "numpy==2.2.*")):
        worker.deploy(name, "import numpy\ndef f(event):\n    return numpy.__version__\n", requirements=requirement)
    deployed(worker, "np1")
    deployed(worker, "np2")
    assert worker.call("np1").json == "1.26.4"
    assert worker.call("np2").json.startswith("2.2.")
    assert worker.call("np1").json == "1.26.4"
    reply = worker.call("bare", "numpy")
    assert reply.status == 500 and "No module named 'numpy'" in reply.json["error"]["message"]


def test_the_lock_is_shown(worker: WorkerProcess) -> None:
    worker.deploy("locked", versions("import six"), requirements="six")
    deployed(worker, "locked")
    found = details(worker, "locked")
    lock = found["lock"]
    assert found["packages"][0] in lock and "sha256:" in lock
    command = [sys.executable, "-I", "-m", "olsock_worker", "lock", "--state", str(worker.state), "locked"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == lock
    command[-1] = "absent"
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert answer.returncode == 1 and "no such function" in answer.stderr


def test_pep_723_and_pyproject(worker: WorkerProcess) -> None:
    block = '# /// script\n# dependencies = ["six==1.16.0"]\n# ///\n'
    worker.deploy("script", block + versions("import six"))
    deployed(worker, "script")
    assert worker.call("script", ["six"]).json == {"six": "1.16.0"}


@pytest.mark.parametrize("name", sorted(interpreters.find()))
def test_each_interpreter(worker: WorkerProcess, name: str) -> None:
    function = name.replace("python", "on")
    code = "import six, sys, markupsafe._speedups\ndef f(event):\n    return list(sys.version_info[:2])\n"
    worker.deploy(function, code, f"runtime: {name}\n", requirements="six\nmarkupsafe\n")
    assert deployed(worker, function)["runtime"] == name
    assert worker.call(function).json == [int(part) for part in name.removeprefix("python").split(".")]


def test_a_runtime_without_requirements(worker: WorkerProcess) -> None:
    name = sorted(interpreters.find())[0]
    worker.deploy("plain", "import sys\ndef f(event):\n    return list(sys.version_info[:2])\n", f"runtime: {name}\n")
    deployed(worker, "plain")
    assert worker.call("plain").json == [int(part) for part in name.removeprefix("python").split(".")]


def test_packages_of_a_removed_function_can_go(worker: WorkerProcess) -> None:
    worker.deploy("leaves", versions("import six"), requirements="six")
    deployed(worker, "leaves")
    folder = worker.state / "locks" / "leaves"
    assert list(folder.glob("*.lock"))
    for path in (worker.registry / "leaves").iterdir():
        path.unlink()
    (worker.registry / "leaves").rmdir()
    worker.until(lambda: worker.call("leaves", []).status == 404)
    worker.until(lambda: not folder.exists())


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("this-name-is-not-on-pypi-7f3a", "this-name-is-not-on-pypi-7f3a"),
        ("flask==3.0.0\nwerkzeug<2", "werkzeug"),
        ("six==99.0", "six"),
        ("not a requirement", "not a requirement"),
        ("../../etc/passwd", "passwd"),
        ("-r other.txt", "-r"),
        ("six @ https://example.invalid/six.whl", "six"),
    ],
)
def test_what_cannot_be_installed_is_not_deployed(
    worker: WorkerProcess, store: Path, requirement: str, said: str
) -> None:
    name = f"bad-{abs(hash(requirement))}"
    before = tree(store)
    worker.deploy(name, "def f(event):\n    return 1\n", requirements=requirement)
    assert said in failed(worker, name)
    reply = worker.call(name)
    assert (reply.status, reply.error) == (404, "unknown_function")
    assert tree(store) == before


def tree(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.glob("*/*")}


def test_an_unknown_runtime_is_not_deployed(worker: WorkerProcess) -> None:
    worker.deploy("future", "def f(event):\n    return 1\n", "runtime: python3.99\n")
    assert "python3.99" in failed(worker, "future")


def test_a_failing_update_leaves_the_old_version_in_service(worker: WorkerProcess) -> None:
    worker.deploy("updated", versions("import six"), requirements="six==1.16.0")
    deployed(worker, "updated")
    worker.deploy("updated", versions("import six"), requirements="six==99.0")
    failed(worker, "updated")
    assert worker.call("updated", ["six"]).json == {"six": "1.16.0"}
    worker.deploy("updated", versions("import six"), requirements="six==1.17.0")
    worker.until(lambda: worker.call("updated", ["six"]).json == {"six": "1.17.0"}, INSTALLED)
    assert "error" not in worker.status()["functions"]["updated"]


class Index(http.server.BaseHTTPRequestHandler):
    """An index that answers nothing until it is told to, and then that it has nothing."""

    asked = threading.Event()
    answer = threading.Event()

    def do_GET(self) -> None:
        self.asked.set()
        self.answer.wait(60.0)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def slow_index() -> Iterator[str]:
    Index.asked.clear()
    Index.answer.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        Index.answer.set()
        server.shutdown()
        serving.join()


def test_nobody_waits_for_an_index(slow_index: str, tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "worker", 'registry_check = 0.2\npackage_network = "host"\n')
    worker.environment = {"UV_DEFAULT_INDEX": slow_index}
    worker.deploy("old", "def f(event):\n    return 'old'\n")
    worker.start()
    try:
        worker.deploy("old", "def f(event):\n    return 'new'\n", requirements="six")
        worker.deploy("first", "def f(event):\n    return 1\n", requirements="six")
        assert Index.asked.wait(60.0)
        reply = worker.until(lambda: [each for each in [worker.call("first")] if each.status == 503])[0]
        assert reply.error == "deploying" and reply.headers["retry-after"] == "1"
        assert worker.call("old").json == "old"
        shown = worker.status()["functions"]
        assert shown["old"]["deploying"] != shown["old"]["version"] and "deploying" in shown["first"]
        Index.answer.set()
        assert "six" in failed(worker, "old") and "six" in failed(worker, "first")
        assert worker.call("first").status == 404
        assert worker.call("old").json == "old"
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_the_end_does_not_wait_for_an_index(slow_index: str, tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "worker", 'registry_check = 0.2\npackage_network = "host"\n')
    worker.environment = {"UV_DEFAULT_INDEX": slow_index}
    worker.deploy("waits", "def f(event):\n    return 1\n", requirements="six")
    worker.start()
    try:
        assert Index.asked.wait(60.0)
        assert worker.stop(20.0) == 0
    finally:
        worker.kill()


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_restart_uses_the_lock_and_needs_no_network(tmp_path: Path, config: str) -> None:
    worker = WorkerProcess(tmp_path / "worker", config)
    worker.deploy("again", versions("import six"), requirements="six\nmarkupsafe<3")
    worker.start()
    try:
        deployed(worker, "again")
        lock = details(worker, "again")["lock"]
        assert worker.stop() == 0
        worker.environment = {"UV_DEFAULT_INDEX": "http://127.0.0.1:1/simple"}  # nobody listens there
        worker.start()
        deployed(worker, "again", 20.0)
        assert details(worker, "again")["lock"] == lock
        assert set(worker.call("again", ["six", "markupsafe"]).json) == {"six", "markupsafe"}
        worker.deploy("again", versions("import six"), requirements="idna")  # the control: the index is not there
        assert "idna" in failed(worker, "again")
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_an_earlier_version_comes_back_with_its_lock(worker: WorkerProcess) -> None:
    worker.deploy("turned", versions("import six"), requirements="six<1.17")
    deployed(worker, "turned")
    first = details(worker, "turned")
    worker.deploy("turned", versions("import six"), requirements="six>=1.17")
    worker.until(lambda: worker.call("turned", ["six"]).json == {"six": "1.17.0"}, INSTALLED)
    (lock,) = (worker.state / "locks" / "turned").glob(f"{first['version']}.lock")
    stamp = lock.stat().st_mtime_ns
    worker.deploy("turned", versions("import six"), requirements="six<1.17")
    worker.until(lambda: worker.call("turned", ["six"]).json == {"six": "1.16.0"}, INSTALLED)
    assert details(worker, "turned")["lock"] == first["lock"] and lock.stat().st_mtime_ns == stamp


@pytest.mark.fault
@pytest.mark.timeout(400)
def test_kill_during_an_install_leaves_nothing_half_made(fresh: Callable[..., WorkerProcess]) -> None:
    worker = fresh({"echo": ("def f(event):\n    return event\n", "")})
    required = ["flask", "requests", "rich", "pydantic", "jinja2"]
    for number, name in enumerate(required):
        worker.deploy(name, f"import {name}\ndef f(event):\n    return {name}.__name__\n", requirements=name)
        worker.until(lambda each=name: each in worker.status()["functions"])
        time.sleep(0.3 * number)  # each time a little further into it; where exactly does not matter
        front = worker.front
        worker.kill()
        assert ended(front, 10.0)
        worker.start()
        assert worker.call("echo", 1).json == 1
    for name in required:
        deployed(worker, name)
        assert worker.call(name).json == name
    packages = worker.state / "packages"
    assert not [path for path in packages.rglob("*") if path.name.startswith((".new", ".tmp"))]
