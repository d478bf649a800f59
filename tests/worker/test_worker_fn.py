"""`olsock-worker fn` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from worker_process import WorkerProcess

pytestmark = pytest.mark.system

SOURCE = (
    "def f(event):\n    print('printed')\n    if event == {'raise': 1}: raise KeyError(1)\n    return {'got': event}\n"
)


def fn(worker: WorkerProcess, *argv: str, status: int = 0, stdin: str = "") -> str:
    """Run a command; return what it printed, on standard error if it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "olsock_worker", "fn", *argv, "--state", str(worker.state)],
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def loaded(worker: WorkerProcess, *argv: str) -> Any:
    return json.loads(fn(worker, *argv, "--json"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "typed"
    (path / "__pycache__").mkdir(parents=True)
    (path / "__pycache__" / "f.pyc").write_text("left out")
    (path / "f.py").write_text(SOURCE)
    return path


def test_from_deploying_to_deleting(worker: WorkerProcess, source: Path) -> None:
    assert fn(worker, "deploy", str(source), "--env", "XX=1", "--timeout", "9").startswith("typed  Active  ")
    shown = loaded(worker, "show", "typed")["Configuration"]
    assert (shown["Handler"], shown["Timeout"], shown["Environment"]) == ("f.f", 9, {"Variables": {"XX": "1"}})
    assert "Timeout: 9\n" in fn(worker, "show", "typed")
    assert json.loads(fn(worker, "invoke", "typed", '{"a": 1}')) == {"got": {"a": 1}}
    assert json.loads(fn(worker, "invoke", "typed", "-", stdin="[2]")) == {"got": [2]}
    (source / "event").write_text("3")
    assert json.loads(fn(worker, "invoke", "typed", f"@{source}/event")) == {"got": 3}
    logged = loaded(worker, "invoke", "typed", "--log")
    start, printed, end, report = logged.pop("Log").splitlines()
    assert (start[:6], printed, end[:4], report[:7]) == ("START ", "printed", "END ", "REPORT ")
    assert logged == {"ExecutedVersion": "$LATEST", "Payload": {"got": {}}}
    fn(worker, "invoke", "typed", '{"raise": 1}', status=1)
    (source / "f.py").write_text("def f(event): return 2\n")
    assert loaded(worker, "deploy", str(source), "--publish", "--memory", "256")["Version"] == "1"
    assert fn(worker, "invoke", "typed") == fn(worker, "invoke", "typed:1") == "2\n"
    assert loaded(worker, "show", "typed")["Configuration"]["MemorySize"] == 256
    assert [each["Version"] for each in loaded(worker, "versions", "typed")] == ["$LATEST", "1"]
    fn(worker, "alias", "typed", "live", "1")
    fn(worker, "alias", "typed", "live", "1")
    assert [each["Name"] for each in loaded(worker, "alias", "typed")] == ["live"]
    assert fn(worker, "invoke", "typed:live") == "2\n"
    assert "live" in fn(worker, "delete", "typed:1", status=1)
    fn(worker, "alias", "typed", "live", "--delete")
    fn(worker, "delete", "typed:1")
    table = fn(worker, "list").splitlines()
    assert table[0].split()[:2] == ["FunctionName", "Runtime"] and table[1].split()[0] == "typed" and len(table) == 2
    fn(worker, "delete", "typed")
    assert loaded(worker, "list") == []
    assert "typed" in fn(worker, "show", "typed", status=1)


def test_a_zip_and_an_ol_yaml(worker: WorkerProcess, tmp_path: Path) -> None:
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("main.py", "def go(event): return 'gone'")
        archive.writestr("ol.yaml", "handler: 'main:go'\ntimeout: 5\n")
    fn(worker, "deploy", str(path))
    assert fn(worker, "invoke", "packed") == '"gone"\n'
    assert loaded(worker, "show", "packed")["Configuration"]["Handler"] == "main.go"
    fn(worker, "delete", "packed")


def test_what_is_wrong_is_said(worker: WorkerProcess, source: Path, tmp_path: Path) -> None:
    fn(worker, "deploy", str(tmp_path / "absent"), status=2)
    assert "NAME=VALUE" in fn(worker, "deploy", str(source), "--env", "XX", status=2)
    assert "expected" in fn(worker, "deploy", str(source), "--name", "a/b", status=1)
    assert "Timeout" in fn(worker, "deploy", str(source), "--timeout", "0", status=1)
    assert "registry directory" in fn(worker, "deploy", str(source), "--name", "echo", status=1)
    (source / "link").symlink_to("/etc/passwd")
    assert "links are not followed" in fn(worker, "deploy", str(source), status=1)
    (source / "link").unlink()
    (source / "f.py").rename(source / "g.py")
    assert "--handler" in fn(worker, "deploy", str(source), status=1)
    assert loaded(worker, "list") == []
    (source / "requirements.txt").write_text("no such thing as this\n")
    assert "requirements.txt" in fn(worker, "deploy", str(source), "--handler", "g.f", status=1)
    fn(worker, "invoke", "absent", status=1)


@pytest.mark.unit
def test_no_worker_is_status_3(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "olsock_worker", "fn", "list", "--state", str(tmp_path)],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 3 and b"no worker is running" in done.stderr


def git(*argv: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *argv], check=True, capture_output=True)


def test_a_repository_is_deployed(worker: WorkerProcess, tmp_path: Path) -> None:
    """By its address; one of its commits; a folder of it. Hooks and links out of it do nothing."""
    repository = tmp_path / "cloned"
    inner = repository / "functions" / "inner"
    inner.mkdir(parents=True)
    (repository / "f.py").write_text("def f(event):\n    return 1\n")
    (inner / "f.py").write_text("def f(event):\n    return 'inner'\n")
    (repository / "out").symlink_to(tmp_path)
    git("init", "--quiet", "--initial-branch=main", str(repository))
    git("-C", str(repository), "add", "f.py", "functions", "out")
    git("-C", str(repository), "commit", "--quiet", "--message", "first")
    git("-C", str(repository), "tag", "first")
    (repository / "out").unlink()
    (repository / "f.py").write_text("def f(event):\n    return 2\n")
    git("-C", str(repository), "commit", "--quiet", "--all", "--message", "second")
    url = f"file://{repository}"
    assert loaded(worker, "deploy", url)["FunctionName"] == "cloned"
    assert loaded(worker, "invoke", "cloned")["Payload"] == 2
    assert "neither a file nor a directory" in fn(worker, "deploy", f"{url}#first", status=1)
    assert loaded(worker, "deploy", f"{url}#main:functions/inner")["FunctionName"] == "inner"
    assert loaded(worker, "invoke", "inner")["Payload"] == "inner"
    for wrong in (f"{url}#absent", f"{url}-absent", f"{url}#first:out", f"{url}#main:../..", f"{url}#main:absent"):
        assert fn(worker, "deploy", wrong, "--name", "wrong", status=1).startswith("Error: ")
    assert "expected URL" in fn(worker, "deploy", f"{url}#main:a:b", status=1)
    assert "neither there nor" in fn(worker, "deploy", str(tmp_path / "absent"), status=2)
    for name in ("cloned", "inner"):
        fn(worker, "delete", name)


def test_commands_are_those_of_olsock_too_and_are_completed(worker: WorkerProcess, source: Path) -> None:
    fn(worker, "deploy", str(source))
    command = str(Path(sys.executable).with_name("olsock"))
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    listed = subprocess.run([command, "fn", "list", "--json", "--state", str(worker.state)], check=True, **options)  # type: ignore[call-overload]
    assert [each["FunctionName"] for each in json.loads(listed.stdout)] == ["typed"]
    wrong = subprocess.run([command, "fn", "absent"], check=False, **options)  # type: ignore[call-overload]
    assert wrong.returncode == 2 and "No such command" in wrong.stderr
    asked = {**os.environ, "_OLSOCK_COMPLETE": "bash_complete", "OLSOCK_WORKER_STATE": str(worker.state)}
    for words, found in (("olsock fn invo", "plain,invoke"), ("olsock fn invoke ty", "plain,typed")):
        asked |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run([command], check=False, env=asked, **options)  # type: ignore[call-overload]
        assert done.stdout.split() == [found]
    fn(worker, "delete", "typed")
