"""A full disk below the state directory (attack 86): calls go on, changes are refused rather than lost, and room heals it all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from aws_client import ROLE, active, client, create, invoke, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

from support.require import require

pytestmark = pytest.mark.fault

SIZE = 64 << 20
FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "once": ("def f(event):\n    print('x' * 1000)\n    return event\n", "reuse-sandbox: false\n"),
}


class Disk:
    """A file system of 64 MiB in a file, all of which anybody may use."""

    def __init__(self, directory: Path) -> None:
        require(shutil.which("mkfs.ext4"), "no mkfs.ext4")
        self._image, self.path = directory / "image", directory / "disk"
        self.path.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self._image)], check=True)
        self._fill = self.path / "fill"
        self._mount()

    def _mount(self) -> None:
        mount = ["mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path)]
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
        require(made.returncode == 0, f"no loop mounts: {made.stderr}")

    def fill(self, leave: int) -> None:
        """Take all room but for so many bytes, which whoever is quick may use meanwhile."""
        with open(self._fill, "ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                while self.free() >= leave + size:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break
                    os.fsync(file.fileno())

    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_bsize

    def fail(self) -> None:
        """Have the file system find an error, and refuse every write from then on."""
        (device,) = (
            line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {self.path} " in line
        )
        trigger = Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error")
        require(trigger.exists(), "no errors of ext4 on demand")
        trigger.write_text("a test")
        with pytest.raises(OSError, match="Read-only"):
            (self.path / "probe").write_text("written")

    def repair(self) -> None:
        """Check it, and mount it anew."""
        self.close()
        assert subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, check=False).returncode < 4
        self._mount()

    def clear(self) -> None:
        self._fill.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.close()


@pytest.fixture
def worker(disk: Disk, tmp_path: Path) -> Iterator[WorkerProcess]:
    """One whose state is on that disk, and its registry elsewhere."""
    process = WorkerProcess(tmp_path / "worker", "registry_check = 0.2\nlog_bytes = 65536\nlog_files = 2\n")
    process.state = disk.path / "state"
    for name, (code, yaml) in FUNCTIONS.items():
        process.deploy(name, code, yaml)
    process.start()
    yield process
    assert process.stop() == 0, process.log()
    process.kill()


def code(number: int, noise: int = 0) -> bytes:
    return zipped({"app.py": f"def handler(e, c): return {number}", "noise": os.urandom(noise)})


class Known:
    """What has been acknowledged, and what may or may not have happened."""

    def __init__(self, aws: Any) -> None:
        self.aws, self._number = aws, 0
        self.functions: dict[str, set[int]] = {}  # name -> what it may return
        self.versions: set[tuple[str, str]] = set()
        self.refused = 0

    def _try(self, work: Any) -> Any:
        try:
            return work()
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (500, 503, 507), error
            assert "raceback" not in str(error) and "internal error" not in str(error)
            self.refused += 1
            return None

    def change(self) -> None:
        """Change something of every kind; nothing else is at work, so that each ends before the next begins."""
        self._number += 1
        number, name = self._number, f"made-{self._number}"
        given = {"Runtime": "python3.11", "Handler": "app.handler", "Role": ROLE}
        package = {"ZipFile": code(number, 100_000)}
        if self._try(lambda: self.aws.create_function(FunctionName=name, Code=package, **given)):
            self.functions[name] = {number}
        else:
            self.functions[name] = {number, -1}
        update = code(-number - 1, 100_000)
        if self._try(lambda: self.aws.update_function_code(FunctionName="kept", ZipFile=update)):
            self.functions["kept"] = {-number - 1}
        else:
            self.functions["kept"].add(-number - 1)
        made = self._try(lambda: self.aws.publish_version(FunctionName="kept"))
        if made:
            self.versions.add(("kept", made["Version"]))
        self._try(
            lambda: self.aws.put_function_concurrency(FunctionName="kept", ReservedConcurrentExecutions=number + 9)
        )
        arn = "arn:aws:lambda:us-east-1:000000000000:function:kept"
        self._try(lambda: self.aws.tag_resource(Resource=arn, Tags={"number": str(number)}))

    def check(self, aws: Any) -> None:
        """Hold what is there against what was acknowledged."""
        there = {each["FunctionName"] for each in aws.list_functions()["Functions"]}
        for name, expected in self.functions.items():
            if name not in there:
                assert -1 in expected, f"{name} was acknowledged and is lost"
                continue
            active(aws, name)
            assert invoke(aws, name)["result"] in expected
        versions = {each["Version"] for each in aws.list_versions_by_function(FunctionName="kept")["Versions"]}
        assert {number for _, number in self.versions} <= versions


def test_a_full_disk(worker: WorkerProcess, disk: Disk) -> None:
    aws = client(worker)
    create(aws, "kept", {"app.py": "def handler(e, c): return -1"})
    known = Known(aws)
    known.functions["kept"] = {-1}
    known.change()  # the control: with room every change is acknowledged
    assert known.refused == 0
    active(aws, "kept")
    for leave in (1 << 20, 300_000, 100_000, 20_000, 0):
        disk.fill(leave)
        for _ in range(3):
            known.change()
            for name in FUNCTIONS:
                reply = worker.call(name, 1)
                assert reply.status == 200 and reply.json == 1, reply.body
            assert invoke(aws, "kept")["result"] in known.functions["kept"]
            assert worker.status()["status"] == "ready" and worker.stats()["process"]
    assert known.refused >= 15
    worker.deploy("late", "def f(event):\n    return 'late'\n", noise="x" * 1_000_000)
    worker.until(lambda: "late" in worker.status()["functions"])
    assert "No space" in worker.status()["functions"]["late"]["error"] and worker.call("late").status == 404
    disk.clear()
    # Nobody restarts anything: what was refused is taken now, and what waited in the registry directory is served.
    worker.until(lambda: worker.call("late").status == 200)
    known.check(aws)
    before = known.refused
    known.change()
    assert known.refused == before
    known.check(aws)
    aws.close()
    assert worker.stop() == 0
    connection = apsw.Connection(str(worker.state / "store" / "functions.db"))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
    worker.start()
    aws = client(worker)
    known.check(aws)
    for name in [each["FunctionName"] for each in aws.list_functions()["Functions"]]:
        aws.delete_function(FunctionName=name)
    aws.close()
    for part in ("code", "uploads", "scratch"):
        assert os.listdir(worker.state / "store" / part) == []


def test_a_disk_that_fails(worker: WorkerProcess, disk: Disk) -> None:
    """Its file system gives up in the middle of it all, as after an I/O error: nothing that was acknowledged is lost."""
    aws = client(worker)
    create(aws, "kept", {"app.py": "def handler(e, c): return -1"})
    known = Known(aws)
    known.functions["kept"] = {-1}
    known.change()
    assert known.refused == 0
    disk.fail()
    for _ in range(3):
        known.change()
        assert worker.call("echo", 1).json == 1 and worker.call("once", 1).json == 1
        assert invoke(aws, "kept")["result"] in known.functions["kept"]
    assert known.refused >= 12
    aws.close()
    assert worker.stop() == 0
    disk.repair()
    worker.start()
    aws = client(worker)
    known.aws = aws
    known.check(aws)
    before = known.refused
    known.change()
    assert known.refused == before
    aws.close()


def test_a_start_on_a_full_disk_says_so(worker: WorkerProcess, disk: Disk) -> None:
    """No traceback, no half a worker; and with room again the same command serves."""
    assert worker.stop() == 0
    disk.fill(0)
    done = subprocess.run(worker.command(), capture_output=True, text=True, timeout=60.0, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    assert "No space" in done.stderr or "a disk with room" in done.stderr, done.stderr  # as far as SQLite knows
    disk.clear()
    worker.start()
    assert worker.call("echo", 1).json == 1
