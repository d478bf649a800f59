"""Zygote trees and function zygotes of a running worker: what starts from where, and what never leaks between functions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_process import WorkerProcess, ended, kill

from olsock import interpreters

pytestmark = pytest.mark.system

LONG = 120.0  # seconds: packages come from the network
Make = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("packages")
    return (
        f'registry_check = 0.2\ntree_interval = 0.5\ngrace = 0.01\npackage_store = "{store}"\n'
        '[function]\nmemory = "256M"\n'
    )


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return {"echo": ("def f(event):\n    return event\n", "")}


def deployed(worker: WorkerProcess, name: str) -> None:
    def look() -> bool:
        shown = worker.status()["functions"].get(name, {})
        assert "error" not in shown, shown["error"]
        return "version" in shown and "deploying" not in shown

    worker.until(look, LONG)


def nodes(worker: WorkerProcess, *imports: str) -> list[Any]:
    """Nodes that are ready and import all of these."""
    return [
        each
        for each in worker.status()["zygotes"]
        if each["kind"] == "node" and each["state"] == "ready" and set(imports) <= set(each["imports"])
    ]


def snapshot(worker: WorkerProcess, name: str) -> Any:
    return worker.until(
        lambda: next(
            (each for each in worker.status()["zygotes"] if each.get("name") == name and each["state"] == "ready"), None
        ),
        LONG,
    )


LOADED = """
import sys
before = set(sys.modules)
import {imports}
def f(event):
    return [name in before for name in event]
"""


# -- trees -------------------------------------------------------------------------------------------------------------


def test_a_hint_becomes_a_node_that_is_used(worker: WorkerProcess) -> None:
    worker.deploy("hinted", LOADED.format(imports="markupsafe"), "imports: [markupsafe]\n", requirements="markupsafe")
    deployed(worker, "hinted")
    (node,) = worker.until(lambda: nodes(worker, "markupsafe"), LONG)
    assert [each.partition("==")[0] for each in node["packages"]] == ["markupsafe"]
    assert worker.call("hinted", ["markupsafe"]).json == [True]
    # By then another node may stand beside it, of what the function was seen to import.
    worker.until(lambda: sum(each["hits"] for each in nodes(worker, "markupsafe")) == 1)


def test_a_tree_grows_from_what_functions_import(worker: WorkerProcess) -> None:
    code = LOADED.format(imports="jinja2")
    worker.deploy("learns", code, "reuse-sandbox: false\n", requirements="jinja2")
    deployed(worker, "learns")
    assert worker.call("learns", ["jinja2"]).json == [False]  # the control: nobody knows yet
    worker.until(lambda: worker.call("learns", ["jinja2"]).json == [True], 30.0)
    node = worker.until(lambda: [each for each in worker.status()["zygotes"] if each["saved_ms"] > 0.0])[0]
    assert node["memory"] > 0 and node["build_ms"] > 0
    assert (worker.state / "tree.json").exists() and b'"learns"' in (worker.state / "trace.jsonl").read_bytes()


def test_the_tree_is_drawn(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.until(lambda: nodes(worker, "markupsafe"), LONG)
    command = [sys.executable, "-I", "-m", "olsock_worker", "tree", "--state", str(worker.state)]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "markupsafe" in drawn and "MiB" in drawn
    subprocess.run([*command, "--svg", str(tmp_path / "tree.svg")], check=True)
    assert "markupsafe" in (tmp_path / "tree.svg").read_text()


def test_no_function_sees_packages_of_another(worker: WorkerProcess) -> None:
    """Also not by way of the zygote that it starts from: no module, no mapping, no file."""
    look = """
    import sys
    def f(event):
        with open("/proc/self/maps") as maps:
            mapped = sorted({line.split("/var/packages")[1].strip() for line in maps if "/var/packages" in line})
        loaded = sorted(name for name, module in sys.modules.items()
                        if (getattr(module, "__file__", None) or "").startswith("/var/packages"))
        import os
        return [loaded, mapped, sorted(os.listdir("/var/packages/0"))]
    """
    worker.deploy(
        "hinted2", LOADED.format(imports="yaml"), "imports: [yaml, markupsafe]\n", requirements="pyyaml\nmarkupsafe"
    )
    deployed(worker, "hinted2")
    worker.until(lambda: nodes(worker, "yaml"), LONG)
    worker.deploy("bare", look, "zygote: wait\n")
    deployed(worker, "bare")
    assert worker.call("bare").json == [[], [], []]
    worker.deploy("six", look, "zygote: wait\n", requirements="six")
    deployed(worker, "six")
    loaded, mapped, files = worker.call("six").json
    assert (loaded, mapped) == ([], []) and all("six" in each or "pycache" in each for each in files)


def test_other_interpreters_have_trees_of_their_own(worker: WorkerProcess) -> None:
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    name = next(name for name in interpreters.find() if name != own)
    yaml = f"runtime: {name}\nzygote: wait\nimports: [markupsafe]\n"
    worker.deploy("elsewhere", LOADED.format(imports="markupsafe"), yaml, requirements="markupsafe")
    deployed(worker, "elsewhere")
    assert worker.call("elsewhere", ["markupsafe"]).json == [True]
    assert name in {each["runtime"] for each in nodes(worker, "markupsafe")}


def test_a_tree_from_a_file(fresh: Make, tmp_path: Path, config: str) -> None:
    plan = tmp_path / "tree.json"
    plan.write_text(json.dumps({"packages": [], "children": [{"packages": ["markupsafe"], "children": []}]}))
    worker = fresh({"echo": ("def f(event):\n    return event\n", "")}, f'tree = "{plan}"\n{config}')
    worker.deploy("planned", LOADED.format(imports="markupsafe"), "zygote: wait\n", requirements="markupsafe")
    deployed(worker, "planned")
    assert worker.call("planned", ["markupsafe"]).json == [True]


def test_what_was_learnt_outlives_the_worker(fresh: Make, config: str) -> None:
    worker = fresh({"echo": ("def f(event):\n    return event\n", "")}, config)
    worker.deploy("kept", LOADED.format(imports="markupsafe"), "reuse-sandbox: false\n", requirements="markupsafe")
    deployed(worker, "kept")
    worker.until(lambda: worker.call("kept", ["markupsafe"]).json == [True], 30.0)
    worker.stop()
    worker.start()
    deployed(worker, "kept")
    worker.until(lambda: nodes(worker, "markupsafe"), 30.0)
    assert worker.call("kept", ["markupsafe"]).json == [True]


def test_a_node_makes_room_for_instances_and_comes_back(fresh: Make, config: str) -> None:
    """One policy for both: what saves little for its memory goes first."""
    functions = {"echo": ("def f(event):\n    return event\n", "")}
    yaml = "imports: [numpy]\nreuse-sandbox: false\n"
    slow = "import time\ndef f(event):\n    time.sleep(event)\n"
    first = fresh(functions, config)
    first.deploy("np", LOADED.format(imports="numpy"), yaml, requirements="numpy")
    deployed(first, "np")
    size = first.until(lambda: nodes(first, "numpy"), LONG)[0]["memory"]
    root = next(each["memory"] for each in nodes(first) if not each.get("above"))
    first.stop()
    budget = 2 * (256 << 20) + root + size // 2
    second = fresh(functions | {"slow": (slow, "")}, f"memory_budget = {budget}\n{config}")
    second.deploy("np", LOADED.format(imports="numpy"), yaml, requirements="numpy")
    deployed(second, "np")
    second.until(lambda: nodes(second, "numpy"), LONG)
    calls = [threading.Thread(target=second.call, args=("slow", 2.0)) for _ in range(2)]
    for call in calls:
        call.start()
    second.until(lambda: not nodes(second, "numpy"))
    assert second.stats()["evicted"]["nodes"] == 1
    for call in calls:
        call.join()
    second.until(lambda: second.call("np", ["numpy"]).json == [True])


def test_a_node_that_is_asked_for_often_keeps_blanks(worker: WorkerProcess) -> None:
    yaml = "imports: [colorsys]\nzygote: wait\nreuse-sandbox: false\n"
    worker.deploy("often", LOADED.format(imports="colorsys"), yaml)
    deployed(worker, "often")
    for _ in range(5):
        assert worker.call("often", ["colorsys"]).json == [True]
    node = worker.until(lambda: [each for each in nodes(worker, "colorsys") if each.get("blanks")])[0]
    assert 1 <= node["blanks"] <= 4
    assert worker.call("often", ["colorsys"]).json == [True]  # from a blank


@pytest.mark.fault
def test_kills_while_a_tree_grows_leave_nothing(fresh: Make, config: str) -> None:
    worker = fresh({"echo": ("def f(event):\n    return event\n", "")}, config)
    yaml = "imports: [markupsafe, yaml, six]\nsnapshot: true\n"
    requirements = "markupsafe\npyyaml\nsix\n"
    worker.deploy("grows", LOADED.format(imports="six"), yaml, requirements=requirements)
    deployed(worker, "grows")
    for attempt in range(6):
        time.sleep(0.06 * attempt)  # each time a little later; where exactly does not matter
        front = worker.front
        worker.kill()
        assert ended(front, 10.0)
        worker.start()
        assert worker.call("echo", 1).json == 1
        deployed(worker, "grows")
    worker.until(lambda: nodes(worker, "yaml"))
    snapshot(worker, "grows")
    worker.until(lambda: worker.call("grows", ["markupsafe"]).json == [True])


def test_packages_that_are_kept_by_hand(fresh: Make, tmp_path: Path, config: str) -> None:
    """All see them; who requires something of its own as well sees both, its own first."""
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    (by_hand / "common.py").write_text("WHERE = 'by hand'\n")
    (by_hand / "markupsafe.py").write_text("WHERE = 'by hand'\n")
    worker = fresh({"echo": ("def f(event):\n    return event\n", "")}, f'packages = ["{by_hand}"]\n{config}')
    worker.deploy("shared", LOADED.format(imports="common"), "imports: [common]\nzygote: wait\n")
    deployed(worker, "shared")
    assert worker.call("shared", ["common"]).json == [True]
    code = "import common, markupsafe\ndef f(event):\n    return [common.WHERE, markupsafe.escape('<')]\n"
    worker.deploy("both", code, "imports: [markupsafe]\nzygote: wait\n", requirements="markupsafe")
    deployed(worker, "both")
    assert worker.call("both").json == ["by hand", "&lt;"]


# -- function zygotes --------------------------------------------------------------------------------------------------

SNAPSHOT = """
import os, random, time
import olsock_runtime
STATE = os.urandom(8).hex()
seen = ["import"]
@olsock_runtime.before_snapshot
def before():
    seen.append("before")
@olsock_runtime.after_restore
def after():
    seen.append("after")
def f(event):
    time.sleep(event or 0)
    return [STATE, seen, random.random(), os.environ["SAID"]]
"""


def test_instances_share_the_state_of_a_snapshot(worker: WorkerProcess) -> None:
    worker.deploy("shot", SNAPSHOT, "snapshot: true\nzygote: wait\nreuse-sandbox: false\nenvironment: {SAID: x}\n")
    deployed(worker, "shot")
    replies = [worker.call("shot").json for _ in range(3)]
    assert {each[0] for each in replies} == {replies[0][0]}  # one import for all
    assert {tuple(each[1]) for each in replies} == {("import", "before", "after")}
    assert len({each[2] for each in replies}) == 3  # but not one source of randomness
    assert {each[3] for each in replies} == {"x"}
    found = snapshot(worker, "shot")
    worker.until(lambda: snapshot(worker, "shot")["hits"] == 3)
    assert found["memory"] > 0 and found["above"]


def test_a_new_version_has_a_snapshot_of_its_own(worker: WorkerProcess) -> None:
    code = "VALUE = {}\ndef f(event):\n    return VALUE\n"
    for value in (1, 2):
        worker.deploy("turns", code.format(value), "snapshot: true\nzygote: wait\n")
        worker.until(lambda want=value: worker.call("turns").json == want)
    assert len([each for each in worker.status()["zygotes"] if each.get("name") == "turns"]) == 1


def test_a_snapshot_with_packages(worker: WorkerProcess) -> None:
    code = "import markupsafe\ndef f(event):\n    return [str(markupsafe.escape('<')), markupsafe.__file__]\n"
    yaml = "snapshot: true\nzygote: wait\nimports: [markupsafe]\n"
    worker.deploy("wrapped", code, yaml, requirements="markupsafe")
    deployed(worker, "wrapped")
    text, file = worker.call("wrapped").json
    assert text == "&lt;" and file.startswith("/var/packages/0/")
    worker.until(lambda: snapshot(worker, "wrapped")["hits"] >= 1)
    assert snapshot(worker, "wrapped")["above"] in {each["key"] for each in nodes(worker, "markupsafe")}


def test_a_snapshot_of_a_web_application(worker: WorkerProcess) -> None:
    """The contract is found in the zygote, and what is mounted where is told to its children."""
    code = (
        "def f(environ, start_response):\n"
        "    start_response('200 OK', [('content-type', 'text/plain')])\n"
        "    return [(environ['SCRIPT_NAME'] + ' ' + environ['PATH_INFO']).encode()]\n"
    )
    worker.deploy("mounted", code, "snapshot: true\nzygote: wait\ncontract: wsgi\nreuse-sandbox: false\n")
    deployed(worker, "mounted")
    worker.until(lambda: snapshot(worker, "mounted")["state"] == "ready")
    for _ in range(3):
        reply = worker.request("/run/mounted/here", method="GET")
        assert (reply.status, reply.body) == (200, b"/run/mounted /here")
    worker.until(lambda: snapshot(worker, "mounted")["hits"] >= 1)


@pytest.mark.fault
def test_a_dead_snapshot_is_made_again(worker: WorkerProcess) -> None:
    code = "import os\nSTATE = os.urandom(8).hex()\ndef f(event):\n    return STATE\n"
    worker.deploy("dies", code, "snapshot: true\nzygote: wait\nreuse-sandbox: false\n")
    deployed(worker, "dies")
    first = worker.call("dies").json
    found = snapshot(worker, "dies")
    kill(found["pid"])
    assert ended(found["pid"], 5.0)
    assert worker.call("dies").status == 200
    worker.until(lambda: snapshot(worker, "dies")["pid"] != found["pid"])
    assert worker.call("dies").json != first


def test_a_module_that_fails_is_no_snapshot_and_says_so(worker: WorkerProcess) -> None:
    worker.deploy("fails", "raise RuntimeError('not today')\ndef f(event):\n    pass\n", "snapshot: true\n")
    deployed(worker, "fails")

    def detail() -> str:
        return str(next((each["detail"] for each in worker.status()["zygotes"] if each.get("name") == "fails"), ""))

    worker.until(lambda: "not today" in detail(), LONG)
    assert worker.call("fails").status == 500


# -- a sandbox for each request ----------------------------------------------------------------------------------------

LEAVES = """
import os, threading, time, glob
left = []
def f(event):
    found = {
        "globals": list(left),
        "tmp": sorted(os.listdir("/tmp")) + sorted(os.listdir("/dev/shm")),
        "env": os.environ.get("LEFT"),
        "threads": threading.active_count(),
        "processes": sorted(each for each in os.listdir("/proc") if each.isdigit()),
        "cwd": os.getcwd(),
    }
    left.append(event)
    os.environ["LEFT"] = "x"
    os.chdir("/tmp")
    open("/tmp/left", "w").close()
    open("/dev/shm/left", "w").close()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    return found
"""


def test_nothing_survives_a_request(worker: WorkerProcess) -> None:
    worker.deploy("kept", LEAVES, "zygote: wait\n")  # the control
    deployed(worker, "kept")
    worker.call("kept", 1)
    again = worker.call("kept", 2).json
    assert again["globals"] == [1] and again["tmp"] == ["left", "left"] and again["env"] == "x"
    worker.deploy("alone", LEAVES, "isolation: request\nzygote: wait\n")
    deployed(worker, "alone")
    replies = [worker.call("alone", number).json for number in range(6)]
    assert all(each == replies[0] for each in replies)
    assert replies[0] | {"processes": None} == {
        "globals": [],
        "tmp": [],
        "env": None,
        "threads": 1,
        "processes": None,
        "cwd": "/var/task",
    }
    assert len(replies[0]["processes"]) == 1
    worker.until(lambda: snapshot(worker, "alone")["hits"] == 6)
    worker.until(lambda: worker.status()["functions"]["alone"]["instances"] == 0)


def test_memory_is_told_for_each_instance(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    (found,) = worker.until(lambda: worker.stats()["memory"].get("echo"))
    assert 0 < found["unique_bytes"] <= found["proportional_bytes"]
    assert found["state"] in ("idle", "frozen")
