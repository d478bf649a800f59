"""The filters: what the profiles say, what the compiled program answers, and what this kernel does with it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olsock._core import seccomp
from olsock.errors import SpecError
from support import bpf, probes

pytestmark = pytest.mark.unit

DATA = Path(seccomp.__file__).parents[1] / "data" / "seccomp"
NATIVE = {"x86_64": bpf.X86_64, "aarch64": bpf.AARCH64}[platform.machine()]
ARCHES = [NATIVE, bpf.I386, bpf.ARM, bpf.AARCH64 if NATIVE == bpf.X86_64 else bpf.X86_64]
NUMBERS = [
    *range(601),
    *range(1000, 1100),
    *(bpf.X32_BIT | n for n in range(601)),
    0x3FFFFFFF,
    0x7FFFFFFF,
    0xFFFFFFFE,
    0xFFFFFFFF,
]
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the ABI is x86's")


# What the data says, read by a second, independent reader: the one under test compiles, this one looks up.


def content(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return loaded


def table(name: str) -> dict[int, list[dict[str, Any]]]:
    """Rules by number, those of the profile extended included."""
    profile = content(name)
    rules = table(profile["extends"]) if "extends" in profile else {}
    own: dict[int, list[dict[str, Any]]] = {}
    for rule in profile["rules"]:
        for call in rule["names"]:
            number = seccomp.number(call)
            if number is not None:
                own.setdefault(number, []).append(rule)
    return {**rules, **own}


def value(text: Any) -> int:
    return int(text, 0) if isinstance(text, str) else text


def holds(test: dict[str, Any], args: tuple[int, ...]) -> bool:
    masked = args[test["arg"]] & value(test.get("mask", "0xffffffffffffffff"))
    return masked in [value(v) for v in test["in"].values()]


def action(text: str) -> int:
    return {"allow": bpf.ALLOW, "kill": bpf.KILL}.get(text) or bpf.ERRNO | getattr(errno, text)


class Intended:
    def __init__(self, name: str) -> None:
        profile = content(name)
        self.defaults = {**(content(profile["extends"]) if "extends" in profile else {}), **profile}
        self.rules = table(name)
        self.newest = content("numbers")["newest"][platform.machine()]

    def __call__(self, arch: int, nr: int, args: tuple[int, ...]) -> int:
        if arch != NATIVE:
            return action(self.defaults["foreign"])
        if nr > self.newest:
            return action(self.defaults["newer"])
        for rule in self.rules.get(nr, []):
            for refusal in rule.get("unless", []):
                if holds(refusal, args):
                    return action(refusal["action"])
            if all(holds(test, args) for test in rule.get("when", [])):
                return action(rule["action"])
        return action(self.defaults["otherwise"])


def interesting(rules: list[dict[str, Any]]) -> Iterator[tuple[int, ...]]:
    """Arguments at and around every value that a rule compares with: exact, off by a bit, with high halves set."""
    yield (0,) * 6
    yield ((1 << 64) - 1,) * 6
    for rule in rules:
        for test in [*rule.get("when", []), *rule.get("unless", [])]:
            for base in {0, *(value(v) for v in test["in"].values())}:
                for flip in (0, *(1 << bit for bit in range(64)), 0xFFFFFFFF00000000):
                    args = [0] * 6
                    args[test["arg"]] = base ^ flip
                    yield tuple(args)
                    yield tuple((1 << 64) - 1 if i != test["arg"] else a for i, a in enumerate(args))


def cases(*profiles: str) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Every number, on every architecture, with the arguments that any of `profiles` looks at."""
    tables = [table(name) for name in profiles]
    for nr in NUMBERS:
        rules = list(itertools.chain.from_iterable(t.get(nr, []) for t in tables))
        for args in interesting(rules):
            yield NATIVE, nr, args
        for arch in ARCHES[1:]:
            yield arch, nr, (0,) * 6


@pytest.mark.parametrize("name", ["default", "zygote", "handler-drop"])
def test_program_answers_as_the_profile_says(name: str) -> None:
    code, intended = bpf.instructions(seccomp.compile(name)), Intended(name)
    for arch, nr, args in cases(name):
        assert bpf.run(code, arch, nr, args) == intended(arch, nr, args), (hex(arch), nr, args)


def test_zygote_and_drop_together_equal_default() -> None:
    default, zygote, drop = (bpf.instructions(seccomp.compile(n)) for n in ("default", "zygote", "handler-drop"))
    generator = random.Random(29)
    for arch, nr, args in cases("default", "zygote", "handler-drop"):
        for shaken in (args, tuple(generator.getrandbits(64) for _ in args)):
            both = bpf.stacked([bpf.run(drop, arch, nr, shaken), bpf.run(zygote, arch, nr, shaken)])
            assert both == bpf.run(default, arch, nr, shaken), (hex(arch), nr, shaken)


def test_drop_names_exactly_what_the_zygote_adds() -> None:
    named = {
        name: {call for rule in content(name)["rules"] for call in rule["names"]} for name in ("zygote", "handler-drop")
    }
    assert named["zygote"] == named["handler-drop"]


@pytest.mark.parametrize(
    "call",
    [
        "mount_setattr",
        "open_tree_attr",
        "fspick",
        "fsopen",
        "fsconfig",
        "fsmount",
        "pivot_root",
        "chroot",
        "ptrace",
        "bpf",
    ],
)
def test_zygote_is_not_given_more_than_forking_needs(call: str) -> None:
    number = seccomp.number(call)
    assert number is not None
    assert bpf.run(bpf.instructions(seccomp.compile("zygote")), NATIVE, number) == bpf.ERRNO | errno.EPERM


@pytest.mark.parametrize("flags", [0, 0x20, 0x1000, 0x1020, 0xF, 0x2E, 0x102E, 0xE | 1 << 32, 0x4000])
def test_zygote_mounts_with_the_flags_of_proc_only(flags: int) -> None:
    code, mount = bpf.instructions(seccomp.compile("zygote")), seccomp.number("mount")
    assert mount is not None
    assert bpf.run(code, NATIVE, mount, (0, 0, 0, 0xE)) == bpf.ALLOW
    assert bpf.run(code, NATIVE, mount, (0, 0, 0, flags)) == bpf.ERRNO | errno.EPERM


@pytest.mark.parametrize("profile", ["default", "zygote"])
def test_the_policy_itself(profile: str) -> None:
    """Said once more by hand: the tests above only compare the program with the data, whatever that says."""
    code = bpf.instructions(seccomp.compile(profile))

    def verdict(call: str, *args: int) -> int:
        number = seccomp.number(call)
        assert number is not None
        return bpf.run(code, NATIVE, number, args)

    refused = bpf.ERRNO | errno.EPERM
    assert verdict("clone", 0x3D0F00 | 17) == verdict("clone", 0x1200011) == bpf.ALLOW  # pthread_create, fork
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict("clone", flag) == verdict("clone", flag | 17 | 1 << 32) == refused
    assert [family for family in range(64) if verdict("socket", family) == bpf.ALLOW] == [1, 2, 10]
    for kind in (0x2000, 0x4000, 0x6000):  # character, directory (refused by mknod anyway), block
        assert verdict("mknodat", 0, 0, kind | 0o666) == refused
    assert verdict("mknodat", 0, 0, 0x1000 | 0o666) == bpf.ALLOW
    assert verdict("personality", 0x40000) == verdict("personality", 0x400000) == refused
    assert verdict("ioctl", 0, 0x5412) == verdict("ioctl", 0, 0x541C | 1 << 35) == refused
    for call in (
        "mount",
        "umount2",
        "unshare",
        "setns",
        "open_tree",
        "ptrace",
        "bpf",
        "io_uring_setup",
        "keyctl",
        "chroot",
    ):
        assert verdict(call, 0, 0, 0, 0) == refused


def header_numbers() -> dict[str, int]:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if platform.machine() != "x86_64" or not header.exists():
        pytest.skip("needs the kernel's x86_64 headers (linux-libc-dev)")
    return {name: int(nr) for name, nr in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}


def test_every_known_call_is_decided() -> None:
    decided = {call for rule in content("default")["rules"] for call in rule["names"]}
    newest = content("numbers")["newest"]["x86_64"]
    known = {name for name, number in header_numbers().items() if number <= newest}
    assert len(known) > 300
    assert known | set(content("numbers")["numbers"]) <= decided


def test_no_call_is_named_twice() -> None:
    for name in seccomp.names():
        calls = [call for rule in content(name)["rules"] for call in rule["names"]]
        assert len(calls) == len(set(calls)), name


def test_numbers_agree_with_the_kernel_headers() -> None:
    header = header_numbers()
    table = content("numbers")
    ours = {**table["numbers"], **table["only"]["x86_64"]}
    assert {name: header[name] for name in ours if name in header} == {n: v for n, v in ours.items() if n in header}
    assert seccomp.number("read") == header["read"]
    assert seccomp.number("io_uring_setup") == header["io_uring_setup"]


def test_names_of_another_architecture_are_left_out() -> None:
    foreign = "cacheflush" if platform.machine() == "x86_64" else "open"
    assert seccomp.number(foreign) is None
    with_it = {
        "otherwise": "EPERM",
        "newer": "ENOSYS",
        "foreign": "kill",
        "rules": [{"action": "allow", "names": [foreign]}],
    }
    assert bpf.run(bpf.instructions(seccomp.compile(with_it)), NATIVE, 1) == bpf.ERRNO | errno.EPERM


def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = seccomp.compile("default")
    monkeypatch.setattr(seccomp, "call", lambda *_: pytest.fail("compiled again"))
    assert seccomp.compile("default") is first


def test_extends_replaces_rules_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "extends": "default",
                "rules": [{"action": "allow", "names": ["ptrace"]}, {"action": "EACCES", "names": ["socket"]}],
            }
        )
    )
    code = bpf.instructions(seccomp.compile(path))
    ptrace, socket, read = (seccomp.number(n) for n in ("ptrace", "socket", "read"))
    assert ptrace is not None and socket is not None and read is not None
    assert bpf.run(code, NATIVE, ptrace) == bpf.ALLOW
    assert bpf.run(code, NATIVE, socket, (1,)) == bpf.ERRNO | errno.EACCES
    assert bpf.run(code, NATIVE, read) == bpf.ALLOW


BASE: dict[str, Any] = {"otherwise": "EPERM", "newer": "ENOSYS", "foreign": "kill"}


def rule(**more: Any) -> dict[str, Any]:
    return {**BASE, "rules": [{"action": "allow", "names": ["read"], **more}]}


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        ("nonsense", "seccomp"),
        ("/nonexistent/profile.json", "seccomp"),
        ({}, "seccomp.otherwise"),
        ({**BASE}, "seccomp.rules"),
        ({**BASE, "rules": ["read"]}, "seccomp.rules[0]"),
        ({**BASE, "rules": [], "default": 1}, "seccomp.default"),
        ({**BASE, "rules": [], "otherwise": "EMADEUP"}, "seccomp.otherwise"),
        ({**BASE, "rules": [], "extends": "nonsense"}, "seccomp"),
        ({**BASE, "rules": [], "extends": "/etc/passwd"}, "seccomp.extends"),
        (rule(names=["raed"]), "seccomp.names"),
        (rule(names="read"), "seccomp.rules[0].names"),
        (rule(names=[7]), "seccomp.rules[0].names"),
        (rule(arg=1), "seccomp.rules[0].arg"),
        (rule(when=[{"arg": 6, "in": {"x": 1}}]), "seccomp.rules[0].when.arg"),
        (rule(when=[{"arg": 0, "in": {}}]), "seccomp.rules[0].when.in"),
        (rule(when=[{"arg": 0, "in": {"x": "zero"}}]), "seccomp.rules[0].when.in"),
        (rule(when=[{"arg": 0, "in": {"x": 1 << 64}}]), "seccomp.rules[0].when.in"),
        (rule(when=[{"arg": 0, "mask": 1, "in": {"x": 2}}]), "seccomp.rules[0].when.in"),
        (rule(when=[{"arg": 0, "mask": 0, "in": {"x": 0}}]), "seccomp.rules[0].when.mask"),
        (rule(when=[{"arg": 0, "in": {"x": 1}}, {"arg": 0, "in": {"x": 1}}]), "seccomp.rules[0].when"),
        (rule(action="EPERM", unless=[{"arg": 0, "in": {"x": 1}, "action": "EPERM"}]), "seccomp.rules[0].unless"),
        (rule(unless=[{"arg": 0, "in": {"x": 1}}]), "seccomp.rules[0].unless.action"),
        (
            {**BASE, "rules": [{"action": "allow", "names": ["read"]}, {"action": "ENOSYS", "names": ["read"]}]},
            "seccomp.rules",
        ),
    ],
)
def test_nonsense_is_refused_by_field(profile: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        seccomp.compile(profile)
    assert caught.value.field == field


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    for text in ("{", "[]", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(SpecError, match="JSON"):
            seccomp.compile(path)


# What this kernel does with it. Every denial beside the same call without the filter.


def calls(lines: list[str], filters: tuple[str, ...], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    paths = []
    for name in filters:
        path = tmp_path / f"{name}.bpf"
        path.write_bytes(seccomp.compile(name))
        paths.append(str(path))
    probe = probes.build("calls")
    return subprocess.run(
        [probe, *paths], input="\n".join(lines), capture_output=True, text=True, timeout=30, check=False
    )


def results(lines: list[str], filters: tuple[str, ...], tmp_path: Path) -> list[int]:
    """The errno of each call, 0 for success."""
    done = calls(lines, filters, tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr)
    found = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


# Arguments that fail early and harmlessly without a filter, whoever asks: bad addresses, bad ids, bad commands.
REFUSED: dict[str, tuple[str, int]] = {
    "pivot_root": ("0 0", errno.EPERM),
    "move_mount": ("-1 page -1 page 0", errno.EPERM),
    "open_tree": ("-1 1 0", errno.EPERM),
    "mount_setattr": ("-1 page 0xffff page 32", errno.EPERM),
    "open_by_handle_at": ("-1 0 0", errno.EPERM),
    "name_to_handle_at": ("-1 0 0 0 0", errno.EPERM),
    "setns": ("-1 0", errno.EPERM),
    "unshare": ("0", errno.EPERM),
    "ptrace": ("0x4206 0 0 0", errno.EPERM),  # PTRACE_SEIZE of pid 0
    "process_vm_readv": ("0 page 1 page 1 0", errno.EPERM),
    "process_vm_writev": ("0 page 1 page 1 0", errno.EPERM),
    "keyctl": ("0 -3 0", errno.EPERM),  # the id of the session keyring
    "io_uring_setup": ("0 0", errno.EPERM),
    "bpf": ("0 0 1", errno.EPERM),
    "perf_event_open": ("0 0 0 -1 0", errno.EPERM),
    "userfaultfd": ("0xffff", errno.EPERM),
    "get_mempolicy": ("0 0 0 0 0xff", errno.EPERM),
    "clone3": ("page 1", errno.ENOSYS),  # EINVAL: shorter than its first version
    "seccomp": ("2 0 page", errno.ENOSYS),  # SECCOMP_GET_ACTION_AVAIL of SECCOMP_RET_KILL_THREAD
}


@pytest.mark.parametrize("call", sorted(REFUSED))
def test_refused_by_this_kernel(call: str, tmp_path: Path) -> None:
    args, expected = REFUSED[call]
    number = seccomp.number(call)
    line = [f"native {number} {args}"]
    (control,) = results(line, (), tmp_path)
    if control == errno.ENOSYS:
        pytest.skip(f"this kernel has no {call}")
    if control == expected and os.geteuid() != 0:
        pytest.skip("only root sees more than the filter's own answer")
    assert control != expected, "without the filter it must go otherwise, or this shows nothing"
    assert results(line, ("default",), tmp_path) == [expected]
    assert results(line, ("zygote", "handler-drop"), tmp_path) == [expected]


def native(call: str, *args: int) -> str:
    return f"native {seccomp.number(call)} {' '.join(map(str, args))}"


def test_refused_by_argument_only(tmp_path: Path) -> None:
    lines = [
        native("socket", 1, 1, 0),  # AF_UNIX
        native("socket", 16, 3, 0),  # AF_NETLINK, NETLINK_ROUTE
        native("socket", 16 | 1 << 32, 3, 0),
        native("socketpair", 16, 3, 0),
        native("personality", 0xFFFFFFFF),
        native("personality", 0x0040000),  # ADDR_NO_RANDOMIZE
        native("ioctl", 0, 0x5401, 0),  # TCGETS of what is no terminal
        native("ioctl", 0, 0x5412, 0),  # TIOCSTI
        native("ioctl", 0, 0x5412 | 1 << 32, 0),
        native("ioctl", 0, 0x541C, 0),
        native("prctl", 3),  # PR_GET_DUMPABLE
        native("prctl", 22, 9, 0),  # PR_SET_SECCOMP
    ]
    free = results(lines, (), tmp_path)
    assert [free[i] for i in (0, 1, 2, 4, 5, 10)] == [0] * 6
    assert free[7:10] == [errno.ENOTTY] * 3
    for filters in (("default",), ("zygote", "handler-drop")):
        assert results(lines, filters, tmp_path) == [
            *(0, errno.EPERM, errno.EPERM, errno.EPERM),
            *(0, errno.EPERM),
            *(errno.ENOTTY, errno.EPERM, errno.EPERM, errno.EPERM),
            *(0, errno.EINVAL),
        ]


def test_only_unix_and_internet_sockets(tmp_path: Path) -> None:
    lines = [native("socket", family, 2, 0) for family in range(51)]  # SOCK_DGRAM
    opened = [family for family, error in enumerate(results(lines, (), tmp_path)) if not error]
    assert set(opened) - {1, 2, 10}, "nothing else to refuse on this kernel"
    filtered = results(lines, ("default",), tmp_path)
    assert [family for family, error in enumerate(filtered) if not error] == [f for f in (1, 2, 10) if f in opened]
    assert {error for family, error in enumerate(filtered) if family not in (1, 2, 10)} == {errno.EPERM}


def test_numbers_that_do_not_exist(tmp_path: Path) -> None:
    newest = content("numbers")["newest"][platform.machine()]
    lines = [f"native {n}" for n in (newest + 1, 600, 1000, 0x3FFFFFFF)]
    assert results(lines, ("default",), tmp_path) == [errno.ENOSYS] * 4
    unused = 400  # inside the list, but no call: 335..423 were left free
    assert results([f"native {unused}"], ("default",), tmp_path) == [errno.EPERM]


@X86
def test_x32_is_refused_for_every_number(tmp_path: Path) -> None:
    lines = [f"x32 {n}" for n in range(601) if n not in (60, 231)]  # not exit, should it work after all
    assert set(results(lines, ("default",), tmp_path)) == {errno.ENOSYS}
    assert set(results(lines, ("zygote", "handler-drop"), tmp_path)) == {errno.ENOSYS}


@X86
@pytest.mark.parametrize("filters", [("default",), ("zygote",), ("zygote", "handler-drop")])
def test_the_32_bit_gate_kills(filters: tuple[str, ...], tmp_path: Path) -> None:
    lines = ["i386 20"]  # getpid
    control = calls(lines, (), tmp_path)
    # a process id: User-Mode Linux, whose guests have no such gate, takes the number for an x86_64 one
    if control.returncode or int(control.stdout.split()[0]) <= 0:
        pytest.skip("this kernel has no 32-bit gate")
    assert calls(lines, filters, tmp_path).returncode == -signal.SIGSYS
    socketcall = calls(["i386 102 1 page"], filters, tmp_path)
    assert socketcall.returncode == -signal.SIGSYS


@X86
def test_a_32_bit_program_is_killed(tmp_path: Path) -> None:
    program = probes.build("i386", "-m32", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie")
    try:
        control = subprocess.run([program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        pytest.skip(f"this kernel runs no 32-bit programs: {failure}")
    assert control.stdout == "ok\n"
    path = str(program)
    done = subprocess.run(
        ["python3", "-c", LOAD_AND_EXEC, path], input=seccomp.compile("default"), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, b""), done.stderr


LOAD_AND_EXEC = """
import ctypes, os, struct, sys
program = sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(program, len(program))
fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, fprog, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""

ORDINARY = """
import concurrent.futures, json, os, socket, sqlite3, ssl, subprocess, sys, tempfile, threading, time, urllib.request
import asyncio, multiprocessing, selectors, signal, uuid
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(lambda x: x * x, range(100))) == 328350
assert subprocess.run(["/bin/echo", "hi"], capture_output=True).stdout == b"hi\\n"
assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def main():
    process = await asyncio.create_subprocess_exec("/bin/true")
    return await process.wait()
assert asyncio.run(main()) == 0
with tempfile.TemporaryDirectory() as folder:
    db = sqlite3.connect(os.path.join(folder, "x.db")); db.execute("create table t(x)"); db.commit(); db.close()
    os.mkfifo(os.path.join(folder, "fifo"))
    os.chmod(folder, 0o700); os.utime(folder)
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
try:
    socket.getaddrinfo("localhost", 80)
except socket.gaierror:
    pass
ssl.create_default_context()
signal.setitimer(signal.ITIMER_REAL, 0)
print("fine")
"""


@pytest.mark.parametrize("filtered", [False, True])
def test_ordinary_programs_do_not_notice(filtered: bool) -> None:
    """Threads, subprocesses, databases, sockets, event loops: libc's fallbacks (clone3, netlink) work."""
    import sys

    start = LOAD_AND_EXEC if filtered else "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", start, sys.executable, "-c", ORDINARY],
        input=seccomp.compile("default"),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"fine\n"), done.stderr.decode()
