"""A worker for tests: one a module where tests only ask, one a test where they break things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_process import WorkerProcess

from support import invariants

FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "slow": ("import time\ndef f(event):\n    time.sleep(event['s'])\n    return event['s']\n", "timeout: 10\n"),
}
QUICK = "registry_check = 0.2\n"


@pytest.fixture(autouse=True)
def _host_is_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check round the whole module where a worker serves all of it, and round each test otherwise."""
    if "worker" in request.fixturenames or request.node.get_closest_marker("unit"):
        yield
    else:
        yield from _unchanged(request)


def _unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    request.getfixturevalue("_library")
    from support.invariants import Snapshot, assert_restored

    before = Snapshot.take()
    yield
    assert_restored(before)


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    """Code and ol.yaml of the functions of the module's worker; modules override it."""
    return FUNCTIONS


@pytest.fixture(scope="module")
def config() -> str:
    """Configuration of the module's worker; modules override it."""
    return QUICK


@pytest.fixture(scope="module")
def _module_unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from _unchanged(request)


@pytest.fixture(scope="module")
def worker(
    _module_unchanged: None,
    tmp_path_factory: pytest.TempPathFactory,
    functions: dict[str, tuple[str, str]],
    config: str,
) -> Iterator[WorkerProcess]:
    """A worker that the tests of a module share."""
    process = WorkerProcess(tmp_path_factory.mktemp("worker"), config)
    for name, (code, yaml) in functions.items():
        process.deploy(name, code, yaml)
    process.start()
    assert process.process is not None
    pid = process.process.pid
    invariants.SHARED.add(pid)  # its tree of zygotes grows while tests run that have nothing to do with it
    try:
        yield process
        assert process.stop() == 0, process.log()
        assert not (process.state / "code").exists()
    finally:
        process.kill()
        invariants.SHARED.discard(pid)


@pytest.fixture(scope="module")
def aws(worker: WorkerProcess) -> Iterator[Any]:
    """A client of AWS's for the module's worker; modules override it. Every reply is held against AWS's own model."""
    from aws_client import client

    made = client(worker)
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Make workers of the test's own; they are stopped at its end, and then nothing of them may be left."""
    made: list[WorkerProcess] = []

    def make(functions: dict[str, tuple[str, str]] | None = None, config: str = QUICK) -> WorkerProcess:
        process = WorkerProcess(tmp_path / f"worker-{len(made)}", config)
        made.append(process)
        for name, (code, yaml) in (functions or FUNCTIONS).items():
            process.deploy(name, code, yaml)
        process.start()
        return process

    try:
        yield make
        for process in made:
            process.stop()
    finally:
        for process in made:
            process.kill()
