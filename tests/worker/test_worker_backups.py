"""Backups of a worker that runs, put into an empty state directory; and that a damaged one changes nothing."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from aws_client import active, client, create, invoke, zipped
from worker_process import WorkerProcess

pytestmark = pytest.mark.system
LAYERED = {"app.py": "import layered\ndef handler(e, c): return [layered.X, 1]\n", "deep/er/file": b"\0" * 1000}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "olsock_worker", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def deployed(process: WorkerProcess) -> None:
    """Deploy one of everything."""
    aws = client(process)
    layer = aws.publish_layer_version(LayerName="l", Content={"ZipFile": zipped({"python/layered.py": "X = 7\n"})})
    create(aws, "kept", LAYERED, Layers=[layer["LayerVersionArn"]], Publish=True, Tags={"a": "b"})
    aws.create_alias(FunctionName="kept", Name="live", FunctionVersion="1")
    aws.create_function_url_config(FunctionName="kept", AuthType="NONE")
    aws.put_provisioned_concurrency_config(FunctionName="kept", Qualifier="1", ProvisionedConcurrentExecutions=1)
    aws.delete_layer_version(LayerName="l", VersionNumber=1)
    aws.close()


def entries(directory: Path) -> set[str]:
    return {str(each.relative_to(directory)) for each in directory.rglob("*") if each.is_file()}


def test_all_that_is_deployed_is_there_again(fresh: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    process = fresh({})
    deployed(process)
    before = client(process)
    url = before.get_function_url_config(FunctionName="kept")["FunctionUrl"].split("/")[-2]
    shown = before.get_function_configuration(FunctionName="kept", Qualifier="1")
    before.close()
    file = tmp_path / "backup"
    done = run("backup", "--state", process.state, file)
    assert done.returncode == 0 and str(file) in done.stdout, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600 and not (tmp_path / "backup.new").exists()
    process.stop()
    assert run("backup", "--state", process.state, tmp_path / "again").returncode == 0, "a worker need not run"
    wrong = run("restore", "--state", process.state, file)
    assert wrong.returncode == 1 and "already" in wrong.stderr and "Traceback" not in wrong.stderr
    kept = process.state.with_name("kept")
    process.state.rename(kept)
    done = run("restore", "--state", process.state, file)
    assert done.returncode == 0, done.stderr
    for part in ("store/code", "locks"):
        assert entries(process.state / part) == entries(kept / part)
    process.start()
    aws = client(process)
    active(aws, "kept")
    assert invoke(aws, "kept", Qualifier="live")["result"] == [7, 1]
    assert aws.get_function_configuration(FunctionName="kept", Qualifier="1")["RevisionId"] == shown["RevisionId"]
    assert aws.get_function(FunctionName="kept")["Tags"] == {"a": "b"}
    assert aws.get_function_url_config(FunctionName="kept")["FunctionUrl"].split("/")[-2] == url
    assert aws.get_provisioned_concurrency_config(FunctionName="kept", Qualifier="1")
    aws.close()
    shutil.rmtree(kept)


def test_a_backup_of_a_busy_worker_is_of_one_moment(fresh: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    process = fresh({})
    ends = threading.Event()

    def change() -> None:
        aws, number = client(process), 0
        while not ends.is_set():
            number += 1
            name = f"f{number % 4}"
            try:
                aws.delete_function(FunctionName=name)
            except aws.exceptions.ResourceNotFoundException:
                pass
            create(aws, name, {"app.py": f"def handler(e, c): return {number}\n"})
        aws.close()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(4):
            done = run("backup", "--state", process.state, tmp_path / f"{number}")
            assert done.returncode == 0, done.stderr
    finally:
        ends.set()
        thread.join()
    process.stop()
    for number in range(4):
        assert run("restore", "--state", tmp_path / f"state-{number}", tmp_path / f"{number}").returncode == 0


@pytest.mark.fault
def test_what_is_damaged_changes_nothing(fresh: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    process = fresh({})
    deployed(process)
    file, state = tmp_path / "backup", tmp_path / "restored"
    assert run("backup", "--state", process.state, file).returncode == 0
    process.stop()
    with tarfile.open(file) as archive:
        members = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    code = [name for name in members if name.startswith("code/")]
    assert len(code) == 2

    def without(*names: str) -> dict[str, bytes]:
        return {name: data for name, data in members.items() if name not in names}

    database = bytearray(members["functions.db"])
    database[5000] ^= 1
    for number, bad in enumerate(
        (
            without(code[0]),
            without("manifest.json"),
            without("functions.db"),
            {**members, "functions.db": bytes(database)},
            {**members, "functions.db": b"no database"},
            {**members, "locks.json": b'{"../x.lock": ""}'},
            {**members, "manifest.json": members["manifest.json"].replace(b'"format":1', b'"format":9')},
            {**members, code[0]: members[code[1]]},
            {**members, code[0]: b"no archive"},
            {**members, "code/../../x": b""},
            {**members, "other": b""},
        )
    ):
        with tarfile.open(tmp_path / f"bad-{number}", "w") as made:
            for name, data in bad.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    whole = file.read_bytes()
    (tmp_path / "bad-cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad-empty").write_bytes(b"")
    (tmp_path / "bad-text").write_bytes(b"no tar at all" * 1000)
    for bad_file in sorted(tmp_path.glob("bad-*")):
        done = run("restore", "--state", state, bad_file)
        assert done.returncode == 1 and str(bad_file) in done.stderr and "Traceback" not in done.stderr, bad_file
        assert not (state / "store" / "functions.db").exists(), bad_file
        for part in ("code", "scratch", "uploads"):
            assert os.listdir(state / "store" / part) == [], bad_file
        assert os.listdir(state / "locks") == []
    assert run("restore", "--state", state, file).returncode == 0, "the sound one still is"


def test_where_there_is_nothing(tmp_path: Path) -> None:
    done = run("backup", "--state", tmp_path / "absent", tmp_path / "backup")
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "backup").exists()
    done = run("restore", "--state", tmp_path / "state", tmp_path / "absent")
    assert done.returncode == 2 and not (tmp_path / "state").exists()


def test_a_worker_that_runs_is_not_restored_over(fresh: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    process = fresh({})
    deployed(process)
    assert run("backup", "--state", process.state, tmp_path / "backup").returncode == 0
    done = run("restore", "--state", process.state, tmp_path / "backup")
    assert done.returncode == 1 and "another worker" in done.stderr
    aws = client(process)
    assert invoke(aws, "kept")["result"] == [7, 1]
    aws.close()
