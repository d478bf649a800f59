"""A zygote runs the code of packages with rights in its own namespaces: what it can do with them (kernel traps 1 to 7)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import olsock
from olsock import host, identity
from olsock._core import seccomp
from olsock.errors import ZygoteError
from support.eventually import eventually
from support.places import HANDLERS

pytestmark = pytest.mark.attack

CAPABILITIES = f"{(1 << 21) | (1 << 6) | (1 << 7):016x}"  # SYS_ADMIN, SETGID, SETUID


def hostile_zygote(**env: str) -> olsock.Zygote:
    return olsock.Zygote(["hostile"], packages=[HANDLERS], env=env, spare=0)


def ask(zygote: olsock.Zygote, name: str) -> Any:
    with zygote.fork(HANDLERS, "probes:f") as fn:
        return fn.invoke({"probe": "hostile", "args": [name]})


def unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = seccomp.compile
    monkeypatch.setattr(seccomp, "compile", lambda name: b"" if name == "zygote" else compile_(name))


@pytest.fixture(params=["filtered", "unfiltered"])
def zygote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[olsock.Zygote]:
    """With the filter, and without it: what holds in the second case does not hang on the filter."""
    if request.param == "unfiltered":
        unfiltered(monkeypatch)
    with hostile_zygote() as zygote:
        yield zygote


# -- trap 2: mounts ----------------------------------------------------------------------------------------------------

NAIVE = """
import ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
import probes
from olsock._core import mounts
tree = mounts.bind(sys.argv[2], mounts.RDONLY | mounts.NOSUID | mounts.NODEV)
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    assert probes.call(probes.SYS["unshare"], 0x10000000 | 0x20000) == "ok"
    os.write(ready[1], b"x"); os.read(go[0], 1)
    os.setresuid(0, 0, 0)
    move = lambda: ctypes.CDLL(None).syscall(ctypes.c_long(429), tree, b"", -100, sys.argv[3].encode(), 4)
    assert move() == 0
    print(json.dumps(probes.remount([sys.argv[3]])[sys.argv[3]]), flush=True)
    os._exit(0)
os.read(ready[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as file: file.write(f"0 {sys.argv[4]} 65536")
os.write(go[1], b"x")
os.waitpid(pid, 0)
"""


def test_a_tree_that_was_only_given_could_be_remounted(code):
    source, point = code / "source", code / "point"
    source.mkdir(), point.mkdir()
    source.chmod(0o1777)
    with identity.claim() as block:
        argv = [sys.executable, "-c", NAIVE, HANDLERS, source, point, str(block.base)]
        done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    remounted, _, touched = json.loads(done.stdout)
    assert (remounted, touched) == ("ok", "ok")


def test_read_only_mounts_cannot_be_changed(zygote):
    found = ask(zygote, "remount")
    assert {"/", "/usr", "/var/runtime", "/var/packages/0", "/dev"} <= set(found)
    for point, (remounted, changed, touched) in found.items():
        assert remounted == "EPERM", point
        assert changed in ("EPERM", "ENOSYS"), point
        assert touched == "EROFS" or point.startswith("/dev/"), point


def test_mounts_cannot_be_taken_away(zygote):
    found = ask(zygote, "umount")
    assert set(found.values()) <= {"EINVAL", "EPERM"}


def test_nothing_can_be_mounted_over_what_handlers_see():
    with hostile_zygote() as zygote:
        assert set(ask(zygote, "cover").values()) == {"EPERM"}


def test_what_is_mounted_over_it_harms_only_its_own_handlers(monkeypatch):
    unfiltered(monkeypatch)
    with olsock.Zygote(spare=0) as innocent, hostile_zygote(HOSTILE="cover") as hostile:
        with pytest.raises(olsock.OlsockError):
            ask(hostile, "cover")
        with innocent.fork(HANDLERS, "probes:f") as fn:
            assert "probes.py" in fn.invoke({"probe": "listing", "args": ["/var/task"]})
            assert "bin" in fn.invoke({"probe": "listing", "args": ["/usr"]})


# -- trap 3: each other, and capabilities ------------------------------------------------------------------------------


def test_a_zygote_has_the_rights_to_fork_and_no_more(zygote):
    status = ask(zygote, "status")
    assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == (CAPABILITIES, CAPABILITIES, "0" * 16)
    assert (status["NoNewPrivs"], status["dumpable"], status["groups"]) == ("1", 0, [])


def test_a_program_that_a_package_starts_has_no_rights(zygote):
    assert int(ask(zygote, "children"), 16) == 0


def test_handlers_have_no_rights_whatever_the_package_did(zygote):
    with zygote.fork(HANDLERS, "probes:f") as fn:
        status = fn.invoke({"probe": "status"})
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["groups"], status["dumpable"]) == ("1", [], 0)


def test_zygotes_do_not_see_each_other(zygote):
    with hostile_zygote() as sibling:
        assert ask(sibling, "pids") == ask(zygote, "pids") == [1, 2]
        assert psutil.Process(sibling.pid).uids().real != psutil.Process(zygote.pid).uids().real


def test_its_own_init_cannot_be_spied_on(zygote):
    said = ask(zygote, "init")
    assert {said[name] for name in ("mem", "environ", "fd", "root")} <= {"EACCES", "EPERM"}
    assert said["ptrace"] == "EPERM"


def test_no_id_outside_its_own_can_be_had(zygote):
    assert ask(zygote, "setuid") == "EINVAL"


def test_no_device_can_be_made(zygote):
    assert ask(zygote, "devices") == "EPERM"


def test_no_namespace_is_entered_or_made():
    with hostile_zygote() as zygote:
        assert set(ask(zygote, "setns").values()) <= {"EPERM", "EACCES"}
        made = ask(zygote, "unshare")
        assert made.pop("NEWCGROUP") in ("ok", "EPERM")
        assert set(made.values()) == {"EPERM"}


# -- trap 5: what it says about its children ---------------------------------------------------------------------------


def test_a_forged_pid_is_not_believed():
    with hostile_zygote(HOSTILE="forge") as zygote, zygote.fork(HANDLERS, "probes:f") as fn:
        assert fn.invoke({"probe": "pids"}) == [1]
        status = Path(f"/proc/{fn.pid}/status").read_text()
        assert "\t1\n" in next(line + "\n" for line in status.splitlines() if line.startswith("NSpid:"))
        assert f"\t{fn.pid}\t" in status


@pytest.mark.parametrize(
    ("how", "message", "alive"),
    [
        ("nobody", "forked nobody", True),
        ("refuse", "could not fork", True),
        ("exit", "gone", False),
    ],
)
def test_a_zygote_that_does_not_fork_is_told(how, message, alive):
    with hostile_zygote(HOSTILE=how) as zygote:
        with pytest.raises(ZygoteError, match=message):
            zygote.fork(HANDLERS, "probes:f")
        assert eventually(lambda: zygote.alive is alive)


def test_a_zygote_that_does_not_answer_is_killed(monkeypatch):
    monkeypatch.setattr("olsock.forks.TIMEOUT", 0.2)
    with hostile_zygote(HOSTILE="hang") as zygote:
        with pytest.raises(ZygoteError, match="was killed"):
            zygote.fork(HANDLERS, "probes:f")
        assert eventually(lambda: not zygote.alive)


def test_garbage_between_the_answers_harms_only_the_zygote():
    with hostile_zygote(HOSTILE="garbage") as zygote:
        for _ in range(2):
            try:
                with zygote.fork(HANDLERS, "probes:f") as fn:
                    assert fn.invoke({"probe": "cwd"}) == "/var/task"
            except olsock.OlsockError:
                pass


def test_a_zygote_that_moves_into_its_handlers_cgroups_does_not_keep_them():
    with hostile_zygote(HOSTILE="moves") as zygote:
        fn = zygote.fork(HANDLERS, "probes:f")
        said = fn.invoke({"probe": "hostile", "args": ["moves"]})
        fn.close()  # in time, and the fixture looks for what is left
        assert zygote.alive is ("ok" not in said)  # where there are lists to enter by (version 1), it ends with them


# -- traps 6 and 7: control groups -------------------------------------------------------------------------------------


def test_the_cgroup_descriptor_leads_nowhere_else():
    with hostile_zygote() as zygote:
        found = ask(zygote, "cgroup")
    assert found.pop("here") == found.pop("up")
    assert {path: said for path, said in found.items() if path.startswith("..")} == {
        "../zygote/cgroup.procs": "ENOENT",
        "../cgroup.procs": "ok",  # `..` of the top is the top: the handler's own
        "../../cgroup.procs": "ok",
    }
    assert found["cgroup.freeze"] == "EACCES"
    assert found["pids.max"] in ("EACCES", "ENOENT")


def test_an_ordinary_cgroup_descriptor_leads_up():
    leaf = host.current().tree.leaf("control")
    try:
        assert os.stat("../..", dir_fd=leaf.fd).st_ino != os.stat(".", dir_fd=leaf.fd).st_ino
    finally:
        leaf.remove()


def test_only_the_lists_of_processes_are_delegated():
    with olsock.Zygote(spare=0) as zygote, zygote.fork(HANDLERS, "probes:f") as fn:
        fn.invoke({"probe": "cwd"})
        owned = {path for top in domains(zygote) for path in top.rglob("*") if path.stat().st_uid != 0}
        owned |= {top for top in domains(zygote) if top.stat().st_uid != 0}
        assert owned and {path.name for path in owned} == {"cgroup.procs"}
        assert not [path for path in owned if path.parent.name in ("zygote", "init")]
        assert all(stat.S_ISREG(path.stat().st_mode) for path in owned)


def domains(zygote: olsock.Zygote) -> list[Path]:
    return [Path(path, zygote.name) for path in host.current().tree.paths]


# -- trap 8: nice ------------------------------------------------------------------------------------------------------


@pytest.mark.cgroup
@pytest.mark.parametrize(
    ("favour", "least", "most"),
    [(lambda leaf, pid: psutil.Process(pid).nice(-10), 0, 3), (lambda leaf, pid: leaf.weight(True), 4, float("inf"))],
    ids=["nice", "weight"],
)
def test_nice_is_nothing_between_two_cpu_cgroups_and_weight_is(
    favour: Callable[[Any, int], None], least: float, most: float
):
    cpu = min(os.sched_getaffinity(0))
    leaves, spinners = [host.current().tree.leaf(f"spin-{n}") for n in range(2)], []
    try:
        for leaf in leaves:
            spinners.append(subprocess.Popen([sys.executable, "-S", "-c", "while 1: pass"]))
            os.sched_setaffinity(spinners[-1].pid, {cpu})
            leaf.adopt(spinners[-1].pid)
        favour(leaves[0], spinners[0].pid)
        before = [leaf.stats().cpu_usec for leaf in leaves]
        assert eventually(lambda: leaves[0].stats().cpu_usec - before[0] > 300_000, timeout=60)
        used = [leaf.stats().cpu_usec - was for leaf, was in zip(leaves, before, strict=True)]
        assert least <= used[0] / max(used[1], 1) <= most
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
        for leaf in leaves:
            leaf.remove()


# -- trap 1: the thread id ---------------------------------------------------------------------------------------------

STALE = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
import probes, threading
if os.fork() == 0:  # pid 2, as a zygote below its init
    class Args(ctypes.Structure):
        _fields_ = [(n, ctypes.c_uint64) for n in
                    ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")]
    address = ctypes.c_void_p()
    assert probes.libc.prctl(40, ctypes.byref(address), 0, 0, 0) == 0
    corrected = sys.argv[2] == "corrected"
    args = Args(0x20000000 | (0x01200000 if corrected else 0), 0, address.value if corrected else 0, 0, signal.SIGCHLD)
    pid = probes.libc.syscall(ctypes.c_long(435), ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    if pid == 0:
        os.write(1, probes.recursive_mutex().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(("how", "said"), [("", b"owned"), ("corrected", b"EBUSY")])
def test_a_raw_clone_leaves_the_thread_id_of_the_parent(how, said):
    argv = ["unshare", "--pid", "--fork", sys.executable, "-S", "-c", STALE, str(HANDLERS), how]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == said


def test_in_a_handler_the_thread_id_is_its_own(place):
    assert place("recursive_mutex") == "EBUSY"
