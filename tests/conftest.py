"""Who may run which test, what every privileged test must leave as it was, and a count of what was skipped.

`unit` tests need nothing; `system`, `attack` and `fault` tests need root; `cgroup` says that a test depends on the
cgroup mode, so that it runs under a pure version 2 kernel too. A test with none of these marks is an error.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from support import capabilities
from support.require import require

KINDS = ("unit", "system", "attack", "fault")
PRIVILEGED = frozenset(KINDS) - {"unit"}


def pytest_configure() -> None:
    """Have the signals that end a program end those that tests start, also where the suite itself was told to ignore them.

    A shell has what it starts in the background ignore SIGINT, nohup SIGHUP, and both are inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in KINDS):
            raise pytest.UsageError(f"{item.nodeid}: mark it as one of {', '.join(KINDS)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, probe in capabilities.FOR_MARKER.items():
        if item.get_closest_marker(marker):
            require(not probe(), probe())


@pytest.fixture(scope="session")
def _library() -> Iterator[None]:
    """Start what the library keeps for the life of a process, so that tests do not find it new; end it last."""
    from olsock import host, identity, leftovers

    # A stock that is refilled in the background is never quite as it was before; test_blanks.py is about it.
    os.environ["OLSOCK_BLANKS"] = "0"
    leftovers.clean()  # of an earlier run that was killed
    identity.claim().release()
    host.current()
    yield
    host.close()
    assert not [entry for entry in leftovers.list_instances() if entry.pid == os.getpid()]


@pytest.fixture(scope="session")
def index(_library: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that answers, as the environment's settings have it, or no test that needs one."""
    from olsock import PackageError, PackageStore

    with PackageStore(tmp_path_factory.mktemp("index") / "store", timeout=60) as store:
        try:
            store.resolve(["six"])
        except PackageError as error:
            require(False, f"needs a package index: {error}")


@pytest.fixture(autouse=True)
def _host_is_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a privileged test that leaves a mount, cgroup, process, fd, network namespace or directory."""
    if not any(request.node.get_closest_marker(kind) for kind in PRIVILEGED):
        yield
        return
    request.getfixturevalue("_library")
    from support.invariants import Snapshot, assert_restored

    before = Snapshot.take()
    yield
    assert_restored(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped, and why: a skipped test is one that has not been passed."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section(f"{sum(reasons.values())} skipped")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4d}  {reason}")
