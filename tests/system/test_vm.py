"""scripts/vm: a command under a kernel with cgroup v2 alone. Each test here boots that kernel, in about two seconds."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
VM = ROOT / "scripts" / "vm"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="User-Mode Linux runs on x86 only"),
    pytest.mark.skipif(not shutil.which("dpkg"), reason="the guest's kernel comes from Debian's packages"),
    pytest.mark.skipif("OLSOCK_VM" in os.environ, reason="this is the guest already"),
]


def vm(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VM, *command], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def leftovers() -> list[str]:
    """What a guest that is gone must not leave: its processes and its job folder. Only of those that we started."""
    mine = f"/tmp/olsock-vm.{os.getpid()}."
    processes = [
        f"{process.pid} {process.name()}"
        for process in psutil.process_iter()
        if process.status() != psutil.STATUS_ZOMBIE and f"uml_dir={mine}" in " ".join(process.cmdline())
    ]
    return processes + [str(path) for path in Path("/tmp").glob(f"{Path(mine).name}*")]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert leftovers() == []


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1), ("exit 42", 42), ("kill -9 $$", 137)])
def test_exit_status_is_the_commands(command: str, status: int) -> None:
    assert vm("bash", "-c", command).returncode == status


def test_guest_has_cgroup2_alone_with_every_controller_enabled() -> None:
    done = vm(
        "sh",
        "-c",
        "cd /sys/fs/cgroup; cat /proc/mounts; echo; cat cgroup.controllers; cat cgroup.subtree_control;"
        " cat /proc/self/cgroup; echo $OLSOCK_CGROUP; id -u",
    )
    assert done.returncode == 0, done.stderr
    mounts, rest = done.stdout.split("\n\n")
    hierarchies = [line.split()[:3] for line in mounts.splitlines() if "cgroup" in line.split()[2]]
    assert hierarchies == [["cgroup2", "/sys/fs/cgroup", "cgroup2"]]
    controllers, enabled, own, parent, uid = rest.splitlines()
    assert sorted(enabled.split()) == sorted(controllers.split())
    assert {"memory", "pids", "cpu"} <= set(enabled.split())
    assert (own, parent, uid) == ("0::/init", "/", "0")


def test_guest_is_another_kernel_and_streams_apart() -> None:
    done = vm("sh", "-c", "uname -r; echo two >&2")
    assert done.stdout.strip() != platform.release()
    assert done.stdout.strip()[0].isdigit()
    assert done.stderr == "two\n"


def test_output_arrives_whole_and_arguments_unchanged() -> None:
    text = "a  b\n'$HOME' \\ \"x\" é"
    done = vm("sh", "-c", 'printf %s "$1"; head -c 2000000 /dev/zero | tr "\\0" x', "sh", text)
    assert done.stdout == text + "x" * 2_000_000


def test_checkout_and_interpreter_are_the_hosts_and_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("host")
    script = (
        "import os, pathlib, olsock._core._olsock as core; here = pathlib.Path('kept');"
        "print(here.read_text(), core.__file__, os.getcwd()); here.write_text('guest'); print(here.read_text())"
    )
    done = vm(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split()[0] == "host"
    assert first.split()[2] == str(tmp_path)
    assert second == "guest"
    assert (tmp_path / "kept").read_text() == "host"


def test_a_writable_folder_is_the_hosts(tmp_path: Path) -> None:
    done = vm("--writable", tmp_path, "sh", "-c", f"echo from the guest >{tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "from the guest\n"


def test_memory_limit_kills_in_the_guest() -> None:
    """The positive control of every cgroup test there: a controller that is enabled and works."""
    script = (
        "cd /sys/fs/cgroup && mkdir t && echo 20M >t/memory.max && echo 0 >t/memory.swap.max &&"
        " ( echo 0 >t/cgroup.procs; exec head -c 60M /dev/zero | tail >/dev/null );"
        " sed -n s/^oom_kill\\ //p t/memory.events"
    )
    done = vm("sh", "-c", script)
    assert int(done.stdout) >= 1, done.stderr


def test_time_limit_stops_the_guest_and_everything_in_it() -> None:
    done = vm("--timeout", "5", "sh", "-c", "echo started; sleep 1000 & sleep 1000")
    assert done.returncode == 124
    assert done.stdout == "started\n"
    assert "after 5 seconds" in done.stderr


def test_a_signal_stops_the_guest_and_everything_in_it() -> None:
    with subprocess.Popen([VM, "sh", "-c", "echo started; sleep 1000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert len(leftovers()) > 1, "the check for leftovers does not see a running guest"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_a_command_that_cannot_run_says_so() -> None:
    done = vm("/nonexistent/command")
    assert done.returncode == 127
    assert "/nonexistent/command" in done.stderr


def test_a_kernel_that_does_not_boot_is_status_125() -> None:
    environment = {**os.environ, "OLSOCK_VM_KERNEL": "/bin/true"}
    done = subprocess.run([VM, "true"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert "did not get as far" in done.stderr
