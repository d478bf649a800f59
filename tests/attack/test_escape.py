"""Out of the root file system, into files of the host (attacks 1 to 9)."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import olsock
from olsock import rootfs, rundir
from support import places
from support.places import HANDLERS, InSandbox, Place, outside

pytestmark = pytest.mark.attack

ROOT = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "run", "sbin", "tmp", "usr", "var"}
WRITABLE = {"/tmp", "/dev/shm"}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("of the host")
    return path


# -- 1: chroot ---------------------------------------------------------------------------------------------------------


def test_a_plain_chroot_is_escaped(tmp_path):
    (tmp_path / "jail" / "tmp").mkdir(parents=True)
    assert outside("chroot_escape", str(tmp_path / "jail"))["root"] == sorted(os.listdir("/"))


def test_the_way_out_of_a_chroot_leads_nowhere(place):
    found = place("chroot_escape")
    assert found["chroot"] == "EPERM"
    assert set(found["root"]) <= ROOT


def without_filter(kind: str) -> dict[str, str]:
    return {} if kind == "zygote" else {"seccomp": "off"}  # a zygote's handlers have the zygote's filter


def test_without_the_filter_there_is_no_way_out_either(open_place, kind):
    place = open_place(**without_filter(kind))
    found = place("chroot_escape")
    assert found["chroot"] == "EPERM"
    assert set(found["root"]) <= ROOT


# -- 2: files of the host ----------------------------------------------------------------------------------------------


def test_files_of_the_host_are_not_there(place, secret):
    paths = ["/etc/shadow", rundir.RUN, "/root", "/sys", "/home", "/boot", str(secret), "/proc/1/root/etc/shadow"]
    present = [path for path in paths if os.path.exists(path)]
    assert set(outside("open_each", present).values()) == {"ok"}
    assert set(place("open_each", paths).values()) <= {"ENOENT", "EACCES"}
    assert {place("open_each", [path])[path] for path in paths[:-1]} == {"ENOENT"}


def test_dots_lead_nowhere(place, secret):
    up = "/tmp" + "/.." * 64
    assert place("open_each", [f"{up}{secret}"]) == {f"{up}{secret}": "ENOENT"}
    assert set(place("listing", up)) <= ROOT


def test_every_mount_is_one_that_belongs_there(place):
    allowed = ROOT_MOUNTS | {rootfs.TASK, rootfs.RUNTIME}
    found = place("mounts")
    assert {point for point, *_ in found} <= allowed
    assert {kind for point, _, kind, _ in found if point in ("/proc", "/tmp", "/dev/shm")} == {"proc", "tmpfs"}


def test_every_mount_is_restricted(place):
    for point, options, kind, _ in place("mounts"):
        assert "nosuid" in options, point
        assert "nodev" in options or (kind == "devtmpfs" and point.startswith(("/dev/", "/proc/"))), point
        assert "ro" in options or point in WRITABLE or point.startswith(("/dev/", "/proc")), point


ROOT_MOUNTS = (
    {"/", "/usr", "/etc/alternatives", "/proc", "/tmp", "/dev", "/dev/shm"}
    | {f"/{name}" for name in rootfs.MERGED}
    | {f"/dev/{name}" for name in rootfs.DEVICES}
    | set(rootfs.MASKED)
    | {rootfs.interpreter_prefix(rootfs.host_python())}
)


# -- 3: what is inherited ----------------------------------------------------------------------------------------------


def test_the_probe_sees_an_inherited_directory(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        probe = "import sys; sys.path.insert(0, sys.argv[1]); import probes; print(sorted(probes.fds().values()))"
        argv = [sys.executable, "-S", "-B", "-c", probe, str(HANDLERS)]
        seen = subprocess.run(argv, pass_fds=[directory], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    finally:
        os.close(directory)
    assert b"directory" in seen.stdout


def test_nothing_is_inherited_but_streams_and_the_channel(place):
    kinds = sorted(place("fds").values())
    if place.kind == "sandbox":
        assert kinds == ["pipe"] * 3  # stdin had the event
    else:
        assert kinds == ["device 1:3", "pipe", "pipe", "pipe", "socket"]  # one pipe is a spare of the log's


def test_nothing_of_the_hosts_environment_is_inherited(place, monkeypatch):
    monkeypatch.setenv("OLSOCK_SECRET", "of the host")
    single_threaded = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    assert set(place("environment")) <= {"HOME", "LANG", "PATH"} | single_threaded


# -- 4: the working directory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cwd", ["tmp", "", ".", "/tmp/..", "/./tmp", "//tmp", "/tmp/", "/tmp\0", "/" + "x" * 4095])
def test_a_cwd_that_is_not_plain_is_refused(cwd):
    with pytest.raises(olsock.SpecError, match="cwd"):
        olsock.Sandbox(cwd=cwd)


@pytest.mark.parametrize("number", range(20))
def test_a_cwd_behind_an_open_file_is_not_reached(box, number):
    with pytest.raises(olsock.KernelError) as caught:
        box.run(["pwd"], cwd=f"/proc/self/fd/{number}")
    assert caught.value.step == "chdir"


@pytest.fixture
def box():
    with olsock.Sandbox() as box:
        yield box


def test_cwd_is_inside(place):
    assert place("cwd") == {"sandbox": "/tmp"}.get(place.kind, rootfs.TASK)


# -- 5: sockets between sandboxes, descriptors to the host -------------------------------------------------------------


@pytest.mark.parametrize("name", ["/tmp/meet", "@meet", "/dev/shm/meet"])
def test_two_handlers_have_no_socket_in_common(name):
    with (
        olsock.Zygote(spare=0) as zygote,
        zygote.fork(HANDLERS, "probes:f") as one,
        zygote.fork(HANDLERS, "probes:f") as two,
    ):
        listening, connecting = {"probe": "listen", "args": [name]}, {"probe": "connect", "args": [name]}
        assert one.invoke(listening) == "ok"
        assert one.invoke(connecting) == "ok"
        assert two.invoke(connecting) in ("ECONNREFUSED", "ENOENT")


@pytest.mark.parametrize("kind", ["function", "zygote"])
def test_descriptors_sent_to_the_host_do_not_arrive(kind):
    with places.open_place(kind) as place:
        place("fds")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(olsock.InvocationError, match="condemned"):
            place("send_directory")
        assert len(os.listdir("/proc/self/fd")) <= before


def test_descriptors_arrive_where_they_are_taken(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        directory = os.open(tmp_path, os.O_RDONLY)
        socket.send_fds(theirs, [b"x"], [directory])
        os.close(directory)
        _, (received,), _, _ = socket.recv_fds(ours, 1, 1)
        os.close(received)


# -- 6: mounts that cross over -----------------------------------------------------------------------------------------


def test_later_mounts_of_the_host_do_not_come_in(tmp_path):
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "hidden").touch()
    with olsock.Sandbox(binds=[f"{source}:/mnt/source"]) as box:
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "below"], check=True)
        try:
            assert os.listdir(source / "below") == []
            assert box.run(["ls", "/mnt/source/below"], check=True).stdout == b"hidden\n"
        finally:
            subprocess.run(["umount", source / "below"], check=True)


def test_mounts_below_a_bind_come_along_restricted(tmp_path):
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", source / "below"], check=True)
    try:
        with olsock.Sandbox(binds=[f"{source}:/mnt/source"]) as box:
            line = box.run(["grep", "/mnt/source/below", "/proc/self/mountinfo"], check=True).stdout.split()
        assert {b"ro", b"nosuid", b"nodev"} <= set(line[5].split(b","))
    finally:
        subprocess.run(["umount", source / "below"], check=True)


def test_mounts_are_private(place):
    table = place("read", "/proc/self/mountinfo")
    assert "shared:" not in table and "master:" not in table


# -- 7: later commands -------------------------------------------------------------------------------------------------


def test_a_later_command_is_in_every_namespace_and_the_root_of_the_first(box):
    with box.popen(["sleep", "1000"]), box.popen(["sleep", "1000"]):
        init = Path("/proc", str(box.pid))
        inside = [Path("/proc", line) for line in _children(box.pid)]
        assert len(inside) == 2
        for name in os.listdir(init / "ns"):
            ours, theirs = os.stat(f"/proc/self/ns/{name}"), os.stat(init / "ns" / name)
            assert {os.stat(process / "ns" / name).st_ino for process in inside} == {theirs.st_ino}
            if name not in ("time", "time_for_children"):
                assert ours.st_ino != theirs.st_ino, name
        assert {os.readlink(process / "root") for process in inside} == {"/"}
        assert len({_identity(process / "root") for process in (init, *inside)}) == 1


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _identity(path: Path) -> tuple[int, int]:
    st = os.stat(path)
    return st.st_dev, st.st_ino


# -- 8: the programs that run ------------------------------------------------------------------------------------------


def test_running_programs_cannot_be_overwritten(place):
    programs = [rootfs.host_python(), str(Path(rootfs.runtime_directory()) / "handler.py")]
    before = [hashlib.sha256(Path(program).read_bytes()).digest() for program in programs]
    files = [rootfs.host_python(), f"{rootfs.RUNTIME}/handler.py", f"{rootfs.TASK}/probes.py"]
    paths = ["/proc/self/exe", "/proc/1/exe", *files]
    refused = {"EROFS", "ETXTBSY", "EACCES", "ENOENT", "EPERM"}
    assert set(place("overwrite", paths).values()) <= refused
    assert set(place("map_files")) <= refused
    assert [hashlib.sha256(Path(program).read_bytes()).digest() for program in programs] == before


def test_a_program_that_is_writable_can_be_overwritten(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"")
    assert outside("overwrite", [str(program)]) == {str(program): "ok"}


# -- 9: read-only ------------------------------------------------------------------------------------------------------


def test_only_the_temporary_directories_can_be_written(place):
    read_only = ["/", "/usr", "/usr/bin", "/etc", "/dev", "/var", "/run", rootfs.TASK, "/proc"]
    said = place("touch_each", [*read_only, *WRITABLE])
    assert {path for path, outcome in said.items() if outcome == "ok"} == WRITABLE


def test_read_only_mounts_stay_so(place):
    points = [point for point, options, *_ in place("mounts") if "ro" in options]
    for point, (remounted, changed, touched) in place("remount", points).items():
        assert remounted == "EPERM" and changed in ("EPERM", "ENOSYS") and touched != "ok", point


def test_root_of_the_host_can_remount(tmp_path):
    point = str(tmp_path)
    said = outside("remount", [point], before=f"mount --bind {point} {point}; mount -o remount,bind,ro {point}")
    assert said[point] == ["ok", "ok", "ok"]


def test_as_root_and_without_a_filter_mounts_stay_read_only():
    with olsock.Sandbox(user="root", seccomp="off", binds=[f"{HANDLERS}:{rootfs.TASK}"]) as box:
        place = Place("sandbox", box, InSandbox(box))
        points = [point for point, options, *_ in place("mounts") if "ro" in options]
        for point, (remounted, _, touched) in place("remount", points).items():
            assert remounted != "ok" and touched != "ok", point
