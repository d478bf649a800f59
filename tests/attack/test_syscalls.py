"""System calls that would lead out of a sandbox, made inside: by a command, a cold handler, a handler of a zygote.

The same program makes the same calls outside, as root and without a filter: a refusal counts only where that goes
otherwise. attacks.md rows 19-22 and 25-28.
"""

from __future__ import annotations

import errno
import json
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import olsock
from olsock._core import seccomp
from support import probes

pytestmark = pytest.mark.attack

HANDLER = """
import subprocess

def f(event):
    if "read" in event:
        with open(event["read"]) as file:
            return file.read()
    done = subprocess.run(event["argv"], input=event["input"], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]
"""

NEW = {
    "NEWTIME": 0x80,
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
SIGCHLD = 17
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the ABI is x86's")


class Inside:
    """Somewhere that programs can be run: in a sandbox, or outside as the control."""

    def __init__(
        self, run: Callable[[list[str], str], tuple[int, str]], read: Callable[[str], str], program: str
    ) -> None:
        self.run, self.read, self._program = run, read, program

    def attempt(self, lines: list[str]) -> list[int]:
        """Make the calls one after the other; the errno of each, 0 for success. The process must survive them all."""
        status, output = self.run([self._program], "\n".join(lines) + "\n")
        assert status == 0, f"ended with {status} after {output!r}"
        found = [int(line.split()[1]) for line in output.splitlines()]
        assert len(found) == len(lines)
        return found

    def outcome(self, line: str) -> int:
        """How a process that makes this one call ends."""
        return self.run([self._program], line + "\n")[0]

    def status(self) -> dict[str, str]:
        return dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", self.read("/proc/self/status"), re.MULTILINE))


def outside() -> Inside:
    def run(argv: list[str], text: str) -> tuple[int, str]:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout

    return Inside(run, lambda path: Path(path).read_text(), str(probes.build("calls")))


def in_sandbox(box: olsock.Sandbox) -> Inside:
    def run(argv: list[str], text: str) -> tuple[int, str]:
        done = box.run(argv, input=text.encode(), timeout=30)
        return done.returncode, done.stdout.decode()

    def read(path: str) -> str:
        return box.run(["cat", path], timeout=30, check=True).stdout.decode()

    return Inside(run, read, "/opt/probe/calls")


def in_handler(function: olsock.Function) -> Inside:
    def run(argv: list[str], text: str) -> tuple[int, str]:
        status, output, _ = function.invoke({"argv": argv, "input": text}, timeout=30)
        return status, output

    return Inside(run, lambda path: str(function.invoke({"read": path})), "/var/task/calls")


def code(folder: Path) -> Path:
    """A function's code: a handler and the probe."""
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / "f.py").write_text(HANDLER)
    shutil.copy(probes.build("calls"), folder / "calls")
    return folder


@contextmanager
def sandbox(**options: object) -> Iterator[Inside]:
    probes.build("calls")
    with olsock.Sandbox(binds=[f"{probes.folder()}:/opt/probe"], **options) as box:
        yield in_sandbox(box)


@contextmanager
def cold(tmp_path: Path) -> Iterator[Inside]:
    with olsock.Function(code=code(tmp_path / "code")) as function:
        yield in_handler(function)


@contextmanager
def forked(tmp_path: Path) -> Iterator[Inside]:
    with olsock.Zygote() as zygote, zygote.fork(code=code(tmp_path / "code")) as function:
        yield in_handler(function)


@pytest.fixture(params=["command", "cold", "zygote"])
def inside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inside]:
    places = {"command": sandbox, "cold": lambda: cold(tmp_path), "zygote": lambda: forked(tmp_path)}
    with places[request.param]() as place:
        yield place


def native(call: str, *args: int | str) -> str:
    number = seccomp.number(call)
    assert number is not None
    return f"native {number} {' '.join(map(str, args))}"


def assert_refused(inside: Inside, lines: dict[str, str], expected: int = errno.EPERM) -> None:
    """Every call gets `expected` inside, and something else outside, as root. What the kernel lacks shows nothing."""
    assert_control(lines, expected)
    found = dict(zip(lines, inside.attempt(list(lines.values())), strict=True))
    assert found == dict.fromkeys(lines, expected)


def assert_control(lines: dict[str, str], expected: int) -> None:
    control = dict(zip(lines, (outside().attempt([line])[0] for line in lines.values()), strict=True))
    real = {name: error for name, error in control.items() if error != errno.ENOSYS}
    assert len(real) > len(lines) / 2, control
    assert [name for name, error in real.items() if error == expected] == [], "no control"


# Row 19, 20.

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def test_no_capabilities(inside: Inside) -> None:
    control = outside().status()
    assert int(control["CapEff"], 16) and int(control["CapBnd"], 16)
    status = inside.status()
    assert {name: int(status[name], 16) for name in SETS} == dict.fromkeys(SETS, 0)


def test_root_of_the_sandbox_gains_none_by_exec() -> None:
    """Uid 0 of a namespace gets its capabilities back at exec, unless the bounding set is empty or NOROOT is set."""
    with sandbox(user=0) as place:
        status = place.status()  # of cat, which was exec'd
        assert status["Uid"].split() == ["0"] * 4
        assert {name: int(status[name], 16) for name in SETS} == dict.fromkeys(SETS, 0)
        status_again, output = place.run(["sh", "-c", "exec cat /proc/self/status"], "")
        assert status_again == 0 and re.search(r"^CapEff:\s*0+$", output, re.MULTILINE)


def test_none_by_a_new_user_namespace(inside: Inside) -> None:
    assert_refused(inside, {"unshare": native("unshare", NEW["NEWUSER"])})


def test_status_of_a_process_inside(inside: Inside) -> None:
    status = inside.status()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Groups"] == ""
    assert int(status["Uid"].split()[0]) != 0
    control = outside().status()
    assert (control["NoNewPrivs"], control["Seccomp"]) == ("0", "0")


def test_uid_on_the_host_is_nobody_elses() -> None:
    """Seen from the host, whatever uid it has inside."""
    used = {process.uids().real for process in psutil.process_iter()}
    assert 0 in used
    for user in (0, 1000):
        with olsock.Sandbox(user=user) as box, box.popen(["sleep", "60"]):
            family = [psutil.Process(box.pid), *psutil.Process(box.pid).children(recursive=True)]
            assert len(family) >= 2
            for process in family:
                status = Path(f"/proc/{process.pid}/status").read_text()
                ids = {
                    int(n) for key in ("Uid", "Gid") for n in re.findall(rf"^{key}:\s*(.*)$", status, re.M)[0].split()
                }
                assert min(ids) > 65535 and not ids & used
                assert re.search(r"^Groups:\s*$", status, re.MULTILINE)


# Row 21.


def test_files_by_handle(inside: Inside) -> None:
    at_fdcwd, at_empty_path = -100, 0x1000
    lines = {
        "name_to_handle_at": native("name_to_handle_at", at_fdcwd, "page", "page", "page", at_empty_path),
        "open_by_handle_at": native("open_by_handle_at", -1, "page", 0),
    }
    assert_refused(inside, lines)


# Row 22.


@pytest.mark.parametrize("name", sorted(NEW))
def test_unshare(inside: Inside, name: str) -> None:
    assert_refused(inside, {name: native("unshare", NEW[name])})


def test_setns(inside: Inside) -> None:
    assert_refused(inside, {name: native("setns", -1, flag) for name, flag in NEW.items()})


def test_clone_with_namespaces(inside: Inside) -> None:
    """A clone that works prints a second line for its child: the control is told by that, not by its errno."""
    flags = {name: flag for name, flag in NEW.items() if name != "NEWTIME"}  # the same bits are a signal to clone(2)
    for flag in flags.values():
        status, output = outside().run([str(probes.build("calls"))], native("clone", flag | SIGCHLD) + "\n")
        assert (status, output.splitlines()[0].split()[1]) == (0, "0")
    found = inside.attempt([native("clone", flag | SIGCHLD) for flag in flags.values()])
    assert found == [errno.EPERM] * len(flags)
    hidden = inside.attempt([native("clone", flag | SIGCHLD | 1 << 40) for flag in flags.values()])
    assert hidden == [errno.EPERM] * len(flags)


def test_clone3_is_not_there_and_libc_copes(inside: Inside) -> None:
    assert_refused(inside, {"clone3": native("clone3", "page", 1)}, errno.ENOSYS)
    script = (
        "import threading, subprocess; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join();"
        "subprocess.run(['echo', 'child'], check=True)"
    )
    assert inside.run(["python3", "-u", "-c", script], "") == (0, "thread\nchild\n")


# Rows 25, 26. Arguments are ones that the kernel refuses for their own sake, later than for want of a privilege.

MOUNTS = {
    "mount": native("mount", 0, 0, 0, 0, 0),
    "mount(remount)": native("mount", 0, "page", 0, 0x1020, 0),
    "umount2": native("umount2", "page", 0),
    "umount2(detach)": native("umount2", "page", 2),
    "pivot_root": native("pivot_root", 0, 0),
    "chroot": native("chroot", 0),
    "fsopen": native("fsopen", 0, 0),
    "fsconfig": native("fsconfig", -1, 0, 0, 0, 0),
    "fsmount": native("fsmount", -1, 0, 0),
    "fspick": native("fspick", -1, "page", 0),
    "move_mount": native("move_mount", -1, "page", -1, "page", 0),
    "open_tree": native("open_tree", -1, "page", 1),
    "mount_setattr": native("mount_setattr", -1, "page", 0xFFFF, "page", 32),
    "open_tree_attr": native("open_tree_attr", -1, "page", 0xFFFF, 0, 0),
    "quotactl": native("quotactl", -1, 0, 0, 0),
    "quotactl_fd": native("quotactl_fd", -1, 0, 0, 0),
}

KERNEL = {
    "io_uring_setup": native("io_uring_setup", 0, 0),
    "io_uring_enter": native("io_uring_enter", -1, 0, 0, 0, 0, 0),
    "io_uring_register": native("io_uring_register", -1, 0, 0, 0),
    "bpf": native("bpf", 0, 0, 1),
    "perf_event_open": native("perf_event_open", 0, 0, 0, -1, 0),
    "userfaultfd": native("userfaultfd", 0xFFFF),
    "kexec_load": native("kexec_load", 0, 1 << 20, 0, 0),
    "kexec_file_load": native("kexec_file_load", -1, -1, 0, 0, 0xFFFF),
    "init_module": native("init_module", 0, 0, 0),
    "finit_module": native("finit_module", -1, 0, 0xFFFF),
    "delete_module": native("delete_module", 0, 0),
    "keyctl": native("keyctl", 0, -3, 0),
    "add_key": native("add_key", 0, 0, 0, 0, 0),
    "request_key": native("request_key", 0, 0, 0, 0),
    "ptrace": native("ptrace", 0x4206, 0, 0, 0),
    "process_vm_readv": native("process_vm_readv", 0, "page", 1, "page", 1, 0),
    "process_vm_writev": native("process_vm_writev", 0, "page", 1, "page", 1, 0),
    "process_madvise": native("process_madvise", -1, 0, 0, 0, 0),
    "pidfd_getfd": native("pidfd_getfd", -1, 0, 0),
    "kcmp": native("kcmp", 0, 0, 0, 0, 0),
    "personality": native("personality", 0x0040000),
    "syslog": native("syslog", 99, 0, 0),
    "acct": native("acct", 1),
    "swapon": native("swapon", 1, 0),
    "swapoff": native("swapoff", 1),
    "reboot": native("reboot", 0, 0, 0, 0),
    "settimeofday": native("settimeofday", 1, 0),
    "clock_settime": native("clock_settime", 0, 1),
    "clock_adjtime": native("clock_adjtime", 0, 1),
    "adjtimex": native("adjtimex", 1),
    "sethostname": native("sethostname", 0, 1 << 20),
    "setdomainname": native("setdomainname", 0, 1 << 20),
    "mbind": native("mbind", 1, 0, 0, 0, 0, 0),
    "set_mempolicy": native("set_mempolicy", 99, 0, 0),
    "move_pages": native("move_pages", -1, 1, 0, 0, 0, 0xFFFF),
    "fanotify_init": native("fanotify_init", 0xFFFFFF, 0),
}


ZYGOTE_MAY = {"move_mount", "umount2(detach)", "sethostname"}


@pytest.mark.parametrize("lines", [MOUNTS, KERNEL], ids=["mounts", "kernel"])
def test_refused_and_the_process_survives(inside: Inside, lines: dict[str, str]) -> None:
    assert_refused(inside, lines)


SPY = """
import ctypes, json, os

libc = ctypes.CDLL(None, use_errno=True)
page = ctypes.create_string_buffer(4096)

def attempt(line):
    _, number, *arguments = line.split()
    values = [ctypes.addressof(page) if a == "page" else int(a, 0) for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(int(number)), *(ctypes.c_ulong(value) for value in values))
    return ctypes.get_errno() if result == -1 else 0

with open(os.path.join(os.path.dirname(__file__), "lines.json")) as file:
    found = {name: attempt(line) for name, line in json.load(file).items()}
with open("/proc/self/status") as file:
    capabilities = int(file.read().partition("CapEff:")[2].split()[0], 16)
"""


# Of which a zygote is handed descriptors when it is to fork another; the descriptor is what counts, and it can open none:
# test_hostile_zygote.py, test_nested_zygotes.py.
ENTERED = ("NEWUSER", "NEWNS", "NEWPID", "NEWIPC", "NEWUTS", "NEWNET")


def test_package_code_in_a_zygote(tmp_path: Path) -> None:
    """Imports run with CAP_SYS_ADMIN of the zygote's namespace: what forking does not need is refused all the same."""
    lines = {name: line for name, line in {**MOUNTS, **KERNEL}.items() if name not in ZYGOTE_MAY}
    lines |= {f"unshare({name})": native("unshare", flag) for name, flag in NEW.items() if name != "NEWCGROUP"}
    lines |= {f"setns({name})": native("setns", -1, flag) for name, flag in NEW.items() if name not in ENTERED}
    assert_control(lines, errno.EPERM)
    packages = tmp_path / "packages"
    packages.mkdir(mode=0o755)
    (packages / "spy.py").write_text(SPY)
    (packages / "lines.json").write_text(json.dumps(lines))
    folder = code(tmp_path / "code")
    (folder / "f.py").write_text("import spy\n\ndef f(event):\n    return [spy.capabilities, spy.found]\n")
    options = {"packages": [str(packages)]}
    with olsock.Zygote(imports=["spy"], **options) as zygote, zygote.fork(code=folder) as function:
        capabilities, found = function.invoke(None)
    assert capabilities >> 21 & 1, "not tried with CAP_SYS_ADMIN: shows nothing of the zygote's filter"
    assert found == dict.fromkeys(lines, errno.EPERM)


def test_the_filter_and_not_only_the_missing_privilege_refuses() -> None:
    """The same sandbox with its filter off: what needs no capability works, so it was the filter that refused it."""
    lines = [
        native("unshare", 0),
        native("personality", 0x0040000),
        native("socket", 16, 3, 0),
        native("keyctl", 0, -3, 0),
    ]
    with sandbox(seccomp="off") as bare:
        assert bare.attempt(lines)[:3] == [0, 0, 0]
    with sandbox() as place:
        assert place.attempt(lines) == [errno.EPERM] * 4


def test_no_devices(inside: Inside) -> None:
    """mknod makes fifos and no devices."""
    device, fifo = 0o020666, 0o010666
    assert_refused(inside, {"device": native("mknodat", -100, 1, device, 0x103)})
    script = "import os; os.mkfifo('/tmp/fifo'); print('made')"
    assert inside.run(["python3", "-c", script], "") == (0, "made\n")
    assert inside.attempt([native("mknodat", -100, 1, fifo, 0)]) == [errno.EFAULT]


# Row 27.


@X86
def test_the_32_bit_gate(inside: Inside) -> None:
    status, output = outside().run([str(probes.build("calls"))], "i386 20\n")
    if status or int(output.split()[0]) <= 0:
        pytest.skip("this kernel has no 32-bit gate")
    for line in ("i386 20", "i386 102 1 page"):  # getpid, socketcall(SYS_SOCKET)
        assert inside.outcome(line) == -signal.SIGSYS
    assert inside.outcome(native("getpid")) == 0, "the sandbox lives on"


@X86
def test_x32(inside: Inside) -> None:
    assert set(inside.attempt([f"x32 {number}" for number in range(601) if number not in (60, 231)])) == {errno.ENOSYS}
    assert inside.attempt([native("getpid")]) == [0]


# Row 28.


def test_socket_families(inside: Inside) -> None:
    families = range(51)
    lines = [native("socket", family, 2, 0) for family in families]
    opened = {family for family, error in zip(families, outside().attempt(lines), strict=True) if not error}
    internet = {1, 2, 10}
    assert opened - internet, "nothing else to refuse on this kernel"
    found = dict(zip(families, inside.attempt(lines), strict=True))
    assert {family for family, error in found.items() if not error} == opened & internet
    assert {error for family, error in found.items() if family not in internet} == {errno.EPERM}


def test_socketpair_families(inside: Inside) -> None:
    found = inside.attempt([native("socketpair", family, 2, 0, "page") for family in range(51)])
    assert [family for family, error in enumerate(found) if not error] == [1]
    assert {error for family, error in enumerate(found) if family not in (1, 2, 10)} == {errno.EPERM}


def test_an_unknown_call_is_denied(inside: Inside) -> None:
    assert inside.attempt([f"native {number}" for number in (600, 1000, 1 << 20)]) == [errno.ENOSYS] * 3


def test_no_filters_of_its_own(inside: Inside) -> None:
    """Neither seccomp(2) nor prctl: asked whether an action exists, and for a mode that does not."""
    assert_refused(inside, {"seccomp": native("seccomp", 2, 0, "page")}, errno.ENOSYS)
    assert inside.attempt([native("prctl", 22, 1, 0)]) == [errno.EINVAL]  # PR_SET_SECCOMP, strict: would kill


def test_numbers_came_from_this_kernel() -> None:
    """The lines above name calls by number: a table that were wrong would refuse something else."""
    assert outside().attempt([native("getpid"), native("close", 99)]) == [0, errno.EBADF]
