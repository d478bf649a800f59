"""The command `olsock` as a shell sees it: exit statuses, output, and that nothing is left however it ends."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from olsock import cli, leftovers
from support.eventually import eventually

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "olsock.cli"]
ALLOCATE = "x = bytearray(200_000_000)"


def olsock(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


# What `run` passes on.


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["/etc/passwd"], 126),
        (["no-such-program"], 127),
        (["/no/such/program"], 127),
    ],
)
@pytest.mark.cgroup
def test_run_passes_the_exit_status_on(command: list[str], status: int) -> None:
    done = olsock("run", "--", *command)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("olsock:" in done.stderr) == (status in (126, 127))


def test_run_connects_the_streams() -> None:
    """Ours are the command's: bytes in, bytes out, stderr apart."""
    done = olsock("run", "--", "sh", "-c", "cat; echo words >&2", stdin=None, input="ä\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ä\n", "words\n")


def test_run_options_arrive(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("bound\n")
    script = (
        "cat /data/file; echo $NAME; pwd; hostname; id -u; ulimit -n; ulimit -f; df -k --output=size /tmp | tail -1"
    )
    done = olsock(
        *("run", "--bind", f"{tmp_path}:/data", "--env", "NAME=value", "--cwd", "/data", "--hostname", "inside"),
        *("--user", "1234", "--nofile", "100", "--fsize", "1M", "--tmpfs-size", "8M", "--", "bash", "-c", script),
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words == ["bound", "value", "/data", "inside", "1234", "100", "1024", "8192"]


def test_options_of_the_command_are_the_commands() -> None:
    """With and without --, what comes after the command is not ours."""
    for arguments in (["--", "echo", "--memory", "--json"], ["echo", "--memory", "--json"]):
        assert olsock("run", *arguments).stdout == "--memory --json\n"


def test_keep_keeps_changes_and_writable_does_not(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    write, read = ["--user", "root", "--", "sh", "-c", "echo here > /usr/mark"], ["--", "cat", "/usr/mark"]
    assert olsock("run", *write).returncode != 0, "the root is read-only by default"
    assert olsock("run", "--writable", *write).returncode == 0
    assert olsock("run", "--writable", *read).returncode != 0
    assert olsock("run", "--keep", kept, *write).returncode == 0
    assert olsock("run", "--keep", kept, *read).stdout == "here\n"
    assert not Path("/usr/mark").exists()


@pytest.mark.cgroup
def test_timeout_kills_with_status_124() -> None:
    done = olsock("run", "--timeout", "0.3", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "0.3 s" in done.stderr
    assert olsock("run", "--timeout", "50", "--", "true").returncode == 0


@pytest.mark.cgroup
def test_memory_limit_and_its_control() -> None:
    python = ["--", "python3", "-c", ALLOCATE]
    assert olsock("run", "--memory", "32M", *python).returncode == 128 + signal.SIGKILL
    assert olsock("run", "--memory", "none", *python).returncode == 0


def test_seccomp_and_network_can_be_asked_for() -> None:
    """What is refused by default (a netlink socket, the host's interfaces) is there when the layer is turned off."""
    netlink = ["--", "python3", "-c", "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"]
    assert olsock("run", *netlink).returncode == 1
    assert olsock("run", "--seccomp", "off", *netlink).returncode == 0
    names = ["--", "python3", "-c", "import socket; print(*sorted(n for _, n in socket.if_nameindex()))"]
    own = olsock("run", "--seccomp", "off", *names).stdout.split()
    shared = olsock("run", "--seccomp", "off", "--network", "host", *names).stdout.split()
    assert own == ["lo"]
    assert shared == sorted(os.listdir("/sys/class/net"))


# --json.


def test_json_has_result_output_and_usage() -> None:
    done = olsock("run", "--json", "--", "sh", "-c", "cat; echo err >&2; exit 4", stdin=None, input="in")
    assert done.returncode == 4
    result = json.loads(done.stdout)
    assert set(result) == {"args", "returncode", "stdout", "stderr", "truncated", "usage"}
    assert result["args"][0] == "sh"
    assert (result["returncode"], result["stdout"], result["stderr"]) == (4, "in", "err\n")
    assert result["truncated"] is False
    usage = result["usage"]
    assert set(usage) == {"cpu_seconds", "oom_killed", "peak_memory", "system_seconds", "timed_out", "user_seconds"}
    assert usage["cpu_seconds"] == usage["user_seconds"] + usage["system_seconds"]
    assert usage["peak_memory"] > 0 and not usage["oom_killed"] and not usage["timed_out"]


def test_json_of_bytes_that_are_no_text() -> None:
    done = olsock("run", "--json", "--", "printf", r"\xff")
    assert json.loads(done.stdout)["stdout"] == {"base64": "/w=="}


@pytest.mark.cgroup
def test_json_says_why_it_was_killed() -> None:
    done = olsock("run", "--json", "--timeout", "0.3", "--", "sleep", "1000")
    usage = json.loads(done.stdout)["usage"]
    assert (done.returncode, usage["timed_out"], usage["oom_killed"]) == (124, True, False)
    done = olsock("run", "--json", "--memory", "32M", "--", "python3", "-c", ALLOCATE)
    usage = json.loads(done.stdout)["usage"]
    assert (done.returncode, usage["timed_out"], usage["oom_killed"]) == (137, False, True)


# What cannot be done is one line and a status, and leaves nothing (the fixture round each test looks).


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "nonsense"], "memory='nonsense'"),
        (["--memory", "1k"], "memory='1k'"),
        (["--cpus", "nan"], "cpus=nan"),
        (["--cpus", "0"], "cpus=0.0"),
        (["--pids", "0"], "pids=0"),
        (["--tmpfs-size", "1"], "tmpfs_size"),
        (["--hostname", "-"], "hostname='-'"),
        (["--user", "99999"], "user='99999'"),
        (["--bind", "/no/such/thing:/x"], "'/no/such/thing'"),
        (["--bind", "/etc"], "binds='/etc'"),
        (["--bind", "/etc:/proc/x"], "/proc"),
        (["--rootfs", "/etc/passwd"], "rootfs='/etc/passwd'"),
        (["--cwd", "relative"], "cwd='relative'"),
        (["--cwd", "/no/such/directory"], "chdir /no/such/directory"),
        (["--keep", "/proc/nothing"], "/proc/nothing"),
        (["--seccomp", "/no/such/profile"], "/no/such/profile"),
        (["--seccomp", "/etc/passwd"], "/etc/passwd"),
        (["--network", "wifi"], "wifi"),
        (["--timeout", "0"], "above 0"),
        (["--timeout", "nan"], "above 0"),
        (["--env", "NAME"], "NAME=VALUE"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], words: str) -> None:
    done = olsock("run", *arguments, "--", "true")
    if arguments == ["--no-such-option"]:  # an option that we do not know begins the command
        assert done.returncode == 127
    else:
        assert done.returncode == 125
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["no-such-command"], ["run"], ["run", "--memory"], ["ps", "--bad"]])
def test_wrong_usage_is_not_a_status_of_a_command(arguments: list[str]) -> None:
    done = olsock(*arguments)
    assert done.returncode == 125
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


def test_without_root_it_says_so() -> None:
    """As an ordinary user, with a checkout that this user can read; else there is nothing to run."""
    if subprocess.run([*COMMAND, "--version"], user=65534, capture_output=True, check=False).returncode != 0:
        pytest.skip("the checkout is not readable by an ordinary user")
    done = olsock("run", "--", "true", user=65534, group=65534, extra_groups=[])
    assert done.returncode == 125
    assert "root" in done.stderr and "Traceback" not in done.stderr
    done = olsock("doctor", "--json", user=65534, group=65534, extra_groups=[])
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["usable"] is False and report["root"] is False
    assert any("root" in gap["what"] for gap in report["gaps"])


def test_closed_streams_are_not_ours_to_give() -> None:
    """With fd 0, 1 or 2 closed the next file that olsock opens gets that number; the command must not inherit it."""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'exec "$@" {closed}',
                "bash",
                *COMMAND,
                "run",
                "--",
                "python3",
                "-c",
                "import os; os.fstat(0)",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (closed, done.stderr)
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&-', "bash", *COMMAND, "run", "--", "readlink", "/proc/self/fd/0"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"/dev/null\n"


# How it ends.


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `olsock run` of a command that says when it runs; killed at the end if it still does."""
    made: list[subprocess.Popen[str]] = []

    def start(*options: str, **settings: Any) -> subprocess.Popen[str]:
        command = [*COMMAND, "run", *options, "--", "sh", "-c", "echo running >&2; sleep 1000 & sleep 1000"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
        )
        made.append(process)
        if "--json" not in options:
            assert process.stderr is not None
            assert process.stderr.readline() == "running\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.cgroup
def test_a_signal_ends_command_and_sandbox(started: Callable[..., subprocess.Popen[str]], number: int) -> None:
    process = started()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == ""
    assert not [entry for entry in leftovers.list_instances() if entry.pid == process.pid]


def test_ctrl_c_of_a_terminal() -> None:
    """The terminal signals the whole foreground group: olsock and its spawner, but not what is in the sandbox."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "run", "--", "sh", "-c", "echo running; sleep 1000"])
    try:
        seen = b""
        while b"running" not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
        rest = b""
        try:
            while data := os.read(terminal, 1024):
                rest += data
        except OSError as error:  # nobody has the terminal open any more
            assert error.errno == errno.EIO
        assert b"Traceback" not in rest
    finally:
        os.close(terminal)


def test_ignored_hangup_stays_ignored(started: Callable[..., subprocess.Popen[str]]) -> None:
    """As under nohup(1)."""
    process = started(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.fault
@pytest.mark.cgroup
def test_killed_then_listed_and_cleaned(started: Callable[..., subprocess.Popen[str]]) -> None:
    """After SIGKILL the commands are gone by themselves; `ps` shows the rest as dead and `clean` removes it."""
    process = started()
    (alive,) = [entry for entry in _listed() if entry["pid"] == process.pid]
    assert alive["alive"] and alive["sandboxes"] >= 1
    cgroups = alive["cgroups"]
    assert cgroups and all(os.path.isdir(path) for path in cgroups)

    assert str(process.pid) not in olsock("clean").stdout, "what lives is left alone"
    assert process.poll() is None

    process.kill()
    process.wait()

    def dead() -> bool:
        return any(entry["pid"] == process.pid and not entry["alive"] for entry in _listed())

    assert eventually(dead)
    assert f"{process.pid}-" in olsock("ps").stdout

    done = olsock("clean", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    removed = [removal for removal in json.loads(done.stdout) if removal["instance"] == alive["name"]]
    assert {removal["what"] for removal in removed} >= set(cgroups)
    assert all(set(removal) == {"instance", "what", "problem"} and not removal["problem"] for removal in removed)
    assert not any(os.path.exists(path) for path in cgroups)
    assert not [entry for entry in _listed() if entry["pid"] == process.pid]


def _listed() -> list[dict[str, Any]]:
    done = olsock("ps", "--json")
    assert done.returncode == 0, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    keys = {"name", "alive", "pid", "started", "argv0", "sandboxes", "cgroups", "directories"}
    assert all(set(entry) >= keys for entry in listed)
    return listed


# The other commands.


def test_ps_has_a_line_for_each() -> None:
    """This very process has a host, so that there is one."""
    lines = olsock("ps").stdout.splitlines()
    assert lines[0].split() == ["INSTANCE", "STATE", "PID", "SANDBOXES", "STARTED", "COMMAND"]
    (ours,) = [line.split() for line in lines[1:] if line.split()[2] == str(os.getpid())]
    assert ours[1] == "alive"


@pytest.mark.cgroup
def test_doctor_reports_in_both_forms() -> None:
    shown = olsock("doctor")
    assert shown.returncode == 0, shown.stdout
    assert "sandboxes with every default layer will start" in shown.stdout
    done = olsock("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["usable"] is True
    assert {"kernel", "machine", "root", "cgroups", "ids", "features", "layers", "gaps", "usable"} == set(report)
    assert report["cgroups"]["mode"] in ("unified", "hybrid")
    assert all(layer["name"] in shown.stdout for layer in report["layers"])


# Help.


def _commands() -> list[tuple[str, click.Command]]:
    return [("", cli.main), *((name, command) for name, command in sorted(cli.main.commands.items()))]


@pytest.mark.parametrize(("name", "command"), _commands(), ids=lambda each: each if isinstance(each, str) else "")
def test_help_names_every_option_and_says_what_it_does(name: str, command: click.Command) -> None:
    words = [name] if name else []
    texts = [olsock(*words, flag) for flag in ("--help", "-h")]
    assert all(done.returncode == 0 for done in texts)
    assert texts[0].stdout == texts[1].stdout
    text = texts[0].stdout
    for option in command.params:
        if isinstance(option, click.Option):
            assert all(spelling in text for spelling in option.opts)
            assert option.help, f"{option.name} has no explanation"
    assert command.help and command.help.split("\n", maxsplit=1)[0].split(".")[0].split()[0] in text


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("olsock") in olsock("--version").stdout
