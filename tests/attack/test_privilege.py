"""More privilege than was given: ids, capabilities, setuid files, devices, namespaces, cgroups (attacks 16 to 24)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

import olsock
from olsock import identity, rootfs, rundir
from support.places import HANDLERS, InSandbox, Place, open_place, outside

pytestmark = pytest.mark.attack

NOBODY = 65534
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NO_CAPABILITIES = dict.fromkeys(SETS, "0" * 16)
CAP_DAC_OVERRIDE = bytes.fromhex("0100000202000000020000000000000000000000")  # as a file's capability, effective


# -- 16: files that give privilege -------------------------------------------------------------------------------------


@pytest.fixture
def setuid_id(code: Path) -> Path:
    """A copy of id(1) that runs as its owner, root, beside the handlers."""
    path = code / "id"
    shutil.copy("/usr/bin/id", path)
    path.chmod(0o4755)
    return path


def test_a_setuid_program_changes_nobody(kind, code, setuid_id):
    control = subprocess.run([setuid_id, "-u"], user=NOBODY, group=NOBODY, capture_output=True, check=True)
    assert control.stdout == b"0\n"
    with open_place(kind, code=code) as place:
        assert place("execute", f"{rootfs.TASK}/id", "-u") == str(place("status")["uids"][0]) != "0"


def test_a_file_with_capabilities_gives_none(kind, code):
    reads_caps = code / "reads-caps"
    shutil.copy("/bin/grep", reads_caps)
    reads_caps.chmod(0o755)
    os.setxattr(reads_caps, "security.capability", CAP_DAC_OVERRIDE)
    argv = [reads_caps, "CapEff", "/proc/self/status"]
    control = subprocess.run(argv, user=NOBODY, group=NOBODY, capture_output=True, check=True)
    assert int(control.stdout.split()[1], 16) != 0
    with open_place(kind, code=code) as place:
        assert int(place("execute", f"{rootfs.TASK}/reads-caps", "CapEff", "/proc/self/status").split()[1], 16) == 0


def test_a_setuid_file_made_inside_is_worth_nothing(tmp_path):
    kept = tmp_path / "kept"
    with olsock.Sandbox(writable=str(kept), user="root") as box:
        box.run(["sh", "-c", "cp /usr/bin/id /usr/bin/id2 && chmod u+s /usr/bin/id2"], check=True)
    (made,) = kept.rglob("id2")
    assert made.stat().st_uid >= identity.FIRST  # an id that nobody on the host has
    assert kept.stat().st_mode & 0o077 == 0  # 17: and nobody gets there


# -- 17: state on the host ---------------------------------------------------------------------------------------------


def test_other_users_of_the_host_do_not_reach_our_state(tmp_path):
    directories = [rundir.RUN]
    assert outside("open_each", directories) == dict.fromkeys(directories, "ok")
    with olsock.Sandbox():
        own = [str(path) for path in Path(rundir.RUN).iterdir() if path.is_dir()]
        assert set(outside("open_each", own, user=NOBODY).values()) == {"EACCES"}


# -- 18: devices -------------------------------------------------------------------------------------------------------

DEVICES = {"/dev/null": "1:3", "/dev/zero": "1:5", "/dev/full": "1:7", "/dev/random": "1:8", "/dev/urandom": "1:9"}


def test_only_harmless_devices_are_there(place):
    assert place("devices") == DEVICES


@pytest.mark.parametrize(
    "device", [("c", 1, 1), ("c", 1, 3), ("c", 10, 229), ("c", 10, 232), ("b", 8, 0), ("b", 254, 0)]
)
def test_no_device_node_can_be_made(place, device, tmp_path):
    assert outside("mknod", str(tmp_path / "node"), *device) == "ok"
    assert place("mknod", "/tmp/node", *device) == "EPERM"


def test_no_device_node_can_be_made_without_a_filter_either():
    with olsock.Sandbox(user="root", seccomp="off", binds=[f"{HANDLERS}:{rootfs.TASK}"]) as box:
        assert Place("sandbox", box, InSandbox(box))("mknod", "/tmp/node", "c", 1, 3) == "EPERM"


def test_a_device_node_that_comes_with_the_code_does_not_open(kind, code):
    node = code / "null"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert outside("open_each", [str(node)]) == {str(node): "ok"}
    with open_place(kind, code=code) as place:
        assert place("open_each", [f"{rootfs.TASK}/null"]) == {f"{rootfs.TASK}/null": "EACCES"}


# -- 19, 20: capabilities, ids, no new privileges ----------------------------------------------------------------------


def test_the_probe_sees_the_capabilities_of_the_hosts_root():
    assert int(outside("status")["CapEff"], 16) != 0


def test_every_set_of_capabilities_is_empty(place):
    status = place("status")
    assert {name: status[name] for name in SETS} == NO_CAPABILITIES


def test_root_of_a_sandbox_has_no_capabilities_either():
    with olsock.Sandbox(user="root", binds=[f"{HANDLERS}:{rootfs.TASK}"]) as box:
        status = Place("sandbox", box, InSandbox(box))("status")
    assert status["uids"] == [0, 0, 0]
    assert {name: status[name] for name in SETS} == NO_CAPABILITIES


def test_nothing_can_be_gained_and_the_filter_is_on(place):
    status = place("status")
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["securebits"] & 0b11 == 0b11  # NOROOT, locked


def test_ids_are_ordinary_ones_and_there_are_no_groups(place):
    status = place("status")
    assert len(set(status["uids"] + status["gids"])) == 1 and status["uids"][0] >= 1000
    assert status["groups"] == []


def test_without_the_filter_seccomp_is_off():
    with olsock.Sandbox(seccomp="off") as box:
        assert b"Seccomp:\t0\n" in box.run(["cat", "/proc/self/status"]).stdout


def test_for_the_host_everybody_inside_is_an_id_of_nobody_else():
    with olsock.Sandbox(user="root") as box, box.popen(["sleep", "1000"]):
        inside = [psutil.Process(box.pid), *psutil.Process(box.pid).children(recursive=True)]
        ids = {number for process in inside for number in (*process.uids(), *process.gids())}
        groups = [Path(f"/proc/{process.pid}/status").read_text() for process in inside]
    assert len(inside) == 2
    assert min(ids) >= identity.FIRST
    assert all("Groups:\t \n" in status for status in groups)


def test_a_handler_with_a_zygotes_memory_is_not_dumpable(kind):
    with open_place(kind) as place:
        assert place("status")["dumpable"] == (0 if kind == "zygote" else 1)


# -- 21, 22: handles and namespaces ------------------------------------------------------------------------------------


def test_a_handle_opens_for_the_hosts_root(tmp_path):
    assert outside("open_by_handle", str(tmp_path)) == ["ok", "ok"]


def test_no_file_is_opened_by_handle(place):
    _, opened = place("open_by_handle", "/usr")
    assert opened in ("EPERM", "ENOSYS")


def test_no_namespace_is_made(place):
    assert set(place("unshare_each").values()) == {"EPERM"}
    for name, (cloned, cloned3) in place("clone_each").items():
        assert (cloned, cloned3) == ("EPERM", "ENOSYS"), name


def test_without_the_filter_a_user_namespace_can_be_made():
    with olsock.Sandbox(seccomp="off", binds=[f"{HANDLERS}:{rootfs.TASK}"]) as box:
        place = Place("sandbox", box, InSandbox(box))
        made = place("unshare_each")
        assert made.pop("NEWUSER") == "ok"
        assert set(made.values()) == {"EPERM"}  # the others need a capability
        assert place("clone_each")["NEWUSER"] == ["ok", "ok"]


def test_no_namespace_is_entered(place):
    assert set(outside("setns", "/proc/self/ns").values()) <= {"ok", "EINVAL"}
    assert set(place("setns", "/proc/self/ns").values()) <= {"EPERM", "EACCES"}
    assert set(place("setns", "/proc/1/ns").values()) <= {"EPERM", "EACCES"}


def test_threads_and_programs_still_work(place):
    assert place("threads_and_children_work") == [1, "42"]


# -- 23, 24: control groups --------------------------------------------------------------------------------------------


def test_no_control_group_is_in_reach(place):
    assert outside("cgroup_files")["writable"]
    found = place("cgroup_files")
    assert found["writable"] == []
    paths = {line.split(":", 2)[2] for line in found["self"].splitlines()}
    # From its own namespace; a handler that is moved on version 1 after its birth sees the name of its own directory.
    assert paths == {"/"} or (place.kind == "zygote" and all(path.startswith(("/", "/../s-")) for path in paths))
    assert not any("olsock-" in path for path in paths)


def test_no_control_group_file_system_is_mounted(place):
    assert not {kind for _, _, kind, _ in place("mounts")} & {"cgroup", "cgroup2", "sysfs", "securityfs", "debugfs"}
