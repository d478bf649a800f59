"""Sandboxes: what each option does, what is refused, what is measured, and how they end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import olsock
from olsock import host, rootfs
from support.eventually import eventually

pytestmark = pytest.mark.system

MIB = 1 << 20
PYTHON = rootfs.host_python()


@pytest.fixture
def box() -> Iterator[olsock.Sandbox]:
    with olsock.Sandbox() as box:
        yield box


def output(box: olsock.Sandbox, *argv: str) -> str:
    return box.run(argv, check=True, timeout=60).stdout.decode().strip()


# -- what it is by default ---------------------------------------------------------------------------------------------


def test_a_program_runs_and_says_what_it_has_to(box):
    done = box.run([PYTHON, "-c", "import sys; print(6*7); print('oh', file=sys.stderr); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"42\n", b"oh\n")
    assert not done.truncated and not done.usage.timed_out and not done.usage.oom_killed


def test_every_namespace_is_its_own(box):
    with box.popen(["sleep", "1000"]):
        (pid,) = [child.pid for child in psutil.Process(box.pid).children()]
        for name in ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name


def test_two_sandboxes_have_no_namespace_and_no_id_in_common(box):
    with olsock.Sandbox() as other:
        for name in ("user", "mnt", "pid", "ipc", "uts", "net"):
            assert os.readlink(f"/proc/{box.pid}/ns/{name}") != os.readlink(f"/proc/{other.pid}/ns/{name}"), name
        assert psutil.Process(box.pid).uids() != psutil.Process(other.pid).uids()


def test_only_loopback_is_there_and_it_is_up(box):
    assert output(box, "ls", "/proc/sys/net/ipv4/conf").split() == ["all", "default", "lo"]
    connected = "import socket as s; a = s.create_server(('127.0.0.1', 0)); s.create_connection(a.getsockname())"
    assert box.run([PYTHON, "-c", connected]).returncode == 0


# -- options -----------------------------------------------------------------------------------------------------------


def test_env_is_what_is_given_and_little_else(monkeypatch):
    monkeypatch.setenv("OLSOCK_OF_THE_HOST", "1")
    with olsock.Sandbox(env={"A": "1", "B": "2"}) as box:
        lines = box.run(["env"], env={"B": "3", "C": "ä"}).stdout.decode().split()
    assert sorted(lines) == sorted(
        ["A=1", "B=3", "C=ä", "HOME=/tmp", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin"]
    )


def test_cwd_of_the_sandbox_and_of_a_command():
    with olsock.Sandbox(cwd="/usr") as box:
        assert output(box, "pwd") == "/usr"
        assert box.run(["pwd"], cwd="/usr/bin").stdout == b"/usr/bin\n"


@pytest.mark.parametrize(
    ("user", "ids"), [(None, "1000:1000"), ("root", "0:0"), ("nobody", "65534:65534"), (7, "7:7"), ("7:8", "7:8")]
)
def test_user(user, ids):
    with olsock.Sandbox(user=user) as box:
        assert output(box, "sh", "-c", "echo $(id -u):$(id -g)") == ids
        assert output(box, "id", "-G") == ids.split(":")[1]


def test_hostname():
    with olsock.Sandbox(hostname="a.b") as box:
        assert output(box, "uname", "-n") == "a.b"
        assert output(box, "cat", "/etc/hostname") == "a.b"
    with olsock.Sandbox() as box:
        assert output(box, "uname", "-n") == "sandbox"


def test_a_bind_is_read_only_unless_it_is_told_otherwise(tmp_path):
    (tmp_path / "file").write_text("content")
    tmp_path.chmod(0o777)
    with olsock.Sandbox(binds=[f"{tmp_path}:/mnt/ro", f"{tmp_path}:/mnt/rw:rw"]) as box:
        assert output(box, "cat", "/mnt/ro/file") == "content"
        assert box.run(["touch", "/mnt/ro/new"]).stderr.endswith(b"Read-only file system\n")
        assert box.run(["touch", "/mnt/rw/new"]).returncode == 0
        assert output(box, "ls", "/mnt/ro") == "file\nnew"
    assert (tmp_path / "new").exists()


def test_a_file_can_be_bound(tmp_path):
    source = tmp_path / "source"
    source.write_text("content")
    with olsock.Sandbox(binds=[olsock.Bind(str(source), "/etc/deep/file")]) as box:
        assert output(box, "cat", "/etc/deep/file") == "content"


def test_tmpfs_size():
    fill = ["dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=3"]
    with olsock.Sandbox(tmpfs_size="2M") as box:
        assert b"No space left" in box.run(fill).stderr
    with olsock.Sandbox(tmpfs_size="4M") as box:
        assert box.run(fill).returncode == 0


def test_resource_limits():
    with olsock.Sandbox(nofile=50, fsize="1M") as box:
        assert output(box, "sh", "-c", "ulimit -Hn; ulimit -n; ulimit -f; ulimit -c").split() == [
            "50",
            "50",
            "2048",
            "0",
        ]


@pytest.mark.cgroup
def test_limits_are_in_force():
    with olsock.Sandbox(memory="64M", pids=10, cpus=0.5) as box:
        made = box.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; :"], timeout=60)
        assert b"Cannot fork" in made.stderr
        assert 8 <= box.stats().pids <= 10
    with olsock.Sandbox(memory="64M") as box:
        assert box.run([PYTHON, "-c", "bytearray(100 << 20)"]).usage.oom_killed
        assert not box.run([PYTHON, "-c", "bytearray(10 << 20)"]).usage.oom_killed


@pytest.mark.cgroup
def test_a_cpu_limit_slows_down():
    timed = """
import time
wall, cpu = time.perf_counter(), time.process_time()
while time.process_time() < cpu + 0.15:
    pass
print(time.perf_counter() - wall)
"""
    with olsock.Sandbox(cpus=0.1) as box:
        assert float(output(box, PYTHON, "-c", timed)) > 0.5  # the rest is waiting


def test_network_of_the_host():
    with olsock.Sandbox(network="host") as box:
        with box.popen(["sleep", "1000"]):
            (child,) = psutil.Process(box.pid).children()
            assert os.readlink(f"/proc/{child.pid}/ns/net") == os.readlink("/proc/self/ns/net")
        assert "nameserver" in output(box, "cat", "/etc/resolv.conf") or not Path("/etc/resolv.conf").exists()


def test_time_namespace_of_its_own():
    with olsock.Sandbox(time_ns=True) as box:
        assert output(box, "readlink", "/proc/self/ns/time") != os.readlink("/proc/self/ns/time")


def test_a_seccomp_profile_of_ones_own():
    profile = {"why": ["x"], "extends": "default", "rules": [{"why": "x", "action": "EPERM", "names": ["uname"]}]}
    with olsock.Sandbox(seccomp=profile) as box:
        assert box.run(["uname"]).stderr.endswith(b"Operation not permitted\n")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"memory": "lots"}, "memory"),
        ({"memory": 1}, "memory"),
        ({"pids": 0}, "pids"),
        ({"cpus": -1}, "cpus"),
        ({"network": "wifi"}, "network"),
        ({"rootfs": "/does/not/exist"}, "rootfs"),
        ({"binds": ["/usr"]}, "binds"),
        ({"binds": ["/does/not/exist:/mnt"]}, "binds"),
        ({"binds": ["/usr:/proc/x"]}, "binds"),
        ({"cwd": "tmp"}, "cwd"),
        ({"user": "mallory"}, "user"),
        ({"hostname": "a b"}, "hostname"),
        ({"env": {"A=": "1"}}, "env"),
        ({"seccomp": "none"}, "seccomp"),
        ({"writable": 3}, "writable"),
        ({"memroy": 1}, "memroy"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_and_nothing_is_made(options, field):
    before = set(os.listdir(host.current().tree.paths[0]))
    with pytest.raises(olsock.SpecError) as caught:
        olsock.Sandbox(**options)
    assert caught.value.field == field
    assert field in str(caught.value) and caught.value.accepted
    assert set(os.listdir(host.current().tree.paths[0])) == before


@pytest.mark.parametrize("argv", [[], "true", b"true"])
def test_a_command_has_to_be_a_list(box, argv):
    with pytest.raises(olsock.SpecError, match="argv"):
        box.run(argv)


@pytest.mark.parametrize(
    ("argv", "cwd", "step", "path", "number"),
    [
        (["does-not-exist"], None, "execve", "does-not-exist", errno.ENOENT),
        (["/usr"], None, "execve", "/usr", errno.EACCES),
        (["/etc/passwd"], None, "execve", "/etc/passwd", errno.EACCES),
        (["true"], "/does/not/exist", "chdir", "/does/not/exist", errno.ENOENT),
        (["true"], "/etc/passwd", "chdir", "/etc/passwd", errno.ENOTDIR),
    ],
)
def test_a_command_that_cannot_start_says_which_step_failed(box, argv, cwd, step, path, number):
    with pytest.raises(olsock.KernelError) as caught:
        box.run(argv, cwd=cwd)
    assert (caught.value.step, caught.value.path, caught.value.errno) == (step, path, number)
    assert isinstance(caught.value, OSError)
    assert box.run(["true"]).returncode == 0  # and the sandbox goes on


def test_a_program_with_arguments_that_are_too_long_says_so(box):
    with pytest.raises(olsock.OlsockError):
        box.run(["true", "x" * (256 << 10)])
    assert box.run(["true"]).returncode == 0


def test_arguments_arrive_as_they_are(box):
    odd = ["", " ", "a b", "ä", "'\"$x", "-n", "\n"]
    shown = box.run([PYTHON, "-c", "import sys; print(ascii(sys.argv[1:]))", *odd], check=True)
    assert shown.stdout.decode().strip() == ascii(odd)
    raw = box.run([b"printf", b"%s", b"\xff\xfe"], check=True)
    assert raw.stdout == b"\xff\xfe"


def test_a_root_without_the_hosts_mounts_to_bind_over_is_a_typed_error():
    with pytest.raises(olsock.OlsockError):
        olsock.Sandbox(binds=["/usr:/etc/passwd/below"])


# -- results -----------------------------------------------------------------------------------------------------------


def test_input_goes_in(box):
    data = os.urandom(3 * MIB)
    assert box.run(["cat"], input=data).stdout == data
    assert box.run(["cat"]).stdout == b""
    assert box.run(["head", "-c1"], input=data).stdout == data[:1]


def test_output_is_kept_up_to_a_limit(box):
    done = box.run(["sh", "-c", "head -c 300000 /dev/zero; head -c 10 /dev/zero >&2"], output_limit=100_000)
    assert (len(done.stdout), len(done.stderr), done.truncated) == (100_000, 10, True)
    assert done.returncode == 0
    assert not box.run(["head", "-c", "100000", "/dev/zero"], output_limit=100_000).truncated


def test_a_program_that_prints_without_end_costs_no_memory(box):
    before = psutil.Process().memory_info().rss
    done = box.run(["yes"], timeout=0.5, output_limit=MIB)
    assert done.truncated and done.usage.timed_out and len(done.stdout) == MIB
    assert psutil.Process().memory_info().rss - before < 64 * MIB


def test_a_program_that_takes_too_long_is_killed_with_what_it_started(box):
    done = box.run(["sh", "-c", "echo before; sleep 1000 & sleep 1000"], timeout=0.2)
    assert (done.returncode, done.stdout, done.usage.timed_out) == (-signal.SIGKILL, b"before\n", True)
    assert eventually(lambda: box.stats().pids == 1)


def test_what_a_program_leaves_behind_does_not_hold_up_the_result(box):
    done = box.run(["sh", "-c", "sleep 1000 & echo done"], timeout=60)
    assert (done.returncode, done.stdout, done.usage.timed_out) == (0, b"done\n", False)
    assert box.stats().pids == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_program_that_a_signal_ends_says_which(box, number):
    assert box.run(["sh", "-c", f"kill -{number:d} $$"]).returncode == -number


def test_check_raises_what_went_wrong(box):
    with pytest.raises(olsock.CommandError, match="returned 4: oh no") as caught:
        box.run(["sh", "-c", "echo oh no >&2; exit 4"], check=True)
    assert caught.value.completed.returncode == 4


def test_usage_is_measured(box):
    spin = "import time\nx = bytearray(40 << 20)\nwhile time.process_time() < 0.2: pass"
    usage = box.run([PYTHON, "-c", spin]).usage
    assert usage.cpu_seconds >= 0.2
    assert usage.cpu_seconds == usage.user_seconds + usage.system_seconds
    assert usage.peak_memory >= 40 * MIB


def test_stats_are_of_the_whole_sandbox(box):
    before = box.stats()
    box.run(["sh", "-c", "head -c 20000000 /dev/zero > /tmp/x"], check=True)
    after = box.stats()
    assert after.cpu_usec > before.cpu_usec
    assert after.memory_bytes - before.memory_bytes > 15 * MIB
    assert after.pids == 1


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_paused_sandbox_stands_still(box):
    with box.popen([PYTHON, "-c", "while 1: pass"]):
        assert eventually(lambda: box.stats().cpu_usec > 10_000)
        box.pause()
        before = box.stats().cpu_usec
        assert box.stats().cpu_usec == before
        box.resume()
        assert eventually(lambda: box.stats().cpu_usec > before)


def test_pause_and_resume_can_be_repeated(box):
    for _ in range(3):
        box.pause()
        box.pause()
        box.resume()
        box.resume()
    assert box.run(["true"]).returncode == 0


def test_close_can_be_repeated(box):
    assert box.alive
    box.close()
    box.close()
    assert not box.alive


def test_a_paused_sandbox_can_be_closed(box):
    with box.popen(["sleep", "1000"]):
        box.pause()
        box.close()


def test_a_closed_sandbox_says_so(box):
    box.close()
    for use in (lambda: box.run(["true"]), box.pause, box.resume, box.stats, lambda: box.pid):
        with pytest.raises(olsock.SandboxDeadError, match="closed"):
            use()


def test_a_sandbox_whose_init_was_killed_says_so(box):
    os.kill(box.pid, signal.SIGKILL)
    assert eventually(lambda: not box.alive)
    with pytest.raises(olsock.SandboxDeadError):
        box.run(["true"])


def test_a_forgotten_sandbox_is_closed():
    box = olsock.Sandbox()
    pid = box.pid
    del box
    assert eventually(lambda: not psutil.pid_exists(pid))


def test_closing_ends_a_program_that_another_thread_waits_for(box):
    said: list[object] = []

    def wait() -> None:
        try:
            said.append(box.run(["sleep", "1000"]).returncode)
        except olsock.SandboxDeadError as error:
            said.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert eventually(lambda: box.stats().pids == 2)
    box.close()
    thread.join(30)
    assert not thread.is_alive()
    assert said == [-signal.SIGKILL] or isinstance(said[0], olsock.SandboxDeadError)


def test_many_programs_at_once_in_one_sandbox(box):
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda n: box.run(["echo", str(n)]).stdout, range(40)))
    assert outputs == [f"{n}\n".encode() for n in range(40)]


def test_many_sandboxes_at_once_from_threads():
    def once(number: int) -> bytes:
        with olsock.Sandbox(env={"N": str(number)}) as box:
            return box.run(["sh", "-c", "echo $N"], check=True).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(once, range(64))) == [f"{n}\n".encode() for n in range(64)]


def test_a_fork_of_the_process_leaves_its_sandboxes_alone(box):
    pid = os.fork()
    if pid == 0:
        box.__del__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert box.run(["echo", "here"]).stdout == b"here\n"


def test_the_host_needs_root():
    script = "import olsock\ntry: olsock.Sandbox()\nexcept olsock.UnsupportedError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", script], user=65534, group=65534, capture_output=True, check=False, cwd="/"
    )
    if b"No module" in done.stderr or b"Permission" in done.stderr:
        pytest.skip("the package is where other users cannot read it")
    assert b"needs root" in done.stdout


def test_a_process_that_forgets_to_close_ends_quietly_and_leaves_nothing():
    script = "import olsock; box = olsock.Sandbox(); box.popen(['sleep', '1000'], stdout=-3, stderr=-3); print(box.pid)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stderr == b""
    assert not psutil.pid_exists(int(done.stdout))


def test_what_was_accepted_before_is_not_taken_for_what_equals_it(tmp_path):
    (tmp_path / "f.py").write_text("def f(event): return event\n")
    tmp_path.chmod(0o755)
    with olsock.Sandbox(cpus=1), olsock.Zygote() as zygote, zygote.fork(tmp_path, cpus=1):
        with pytest.raises(olsock.SpecError, match="cpus=True"):
            olsock.Sandbox(cpus=True)
        with pytest.raises(olsock.SpecError, match="cpus=True"):
            zygote.fork(tmp_path, cpus=True)
