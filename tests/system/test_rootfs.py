"""Roots: the host's, a directory, one that can be written; and directories that mean harm."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import olsock
from olsock import identity
from support import probes

pytestmark = pytest.mark.system


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small root: one static program (a probe of system calls: it prints "<result> <errno>" for each line) and a file."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "calls").write_bytes(probes.build("calls").read_bytes())
    (root / "bin" / "calls").chmod(0o755)
    (root / "etc").mkdir()
    (root / "etc" / "release").write_text("mine")
    return root


GETPID = b"native 39\n" if os.uname().machine == "x86_64" else b"native 172\n"


def test_a_directory_is_the_root(directory):
    with olsock.Sandbox(rootfs=directory) as box:
        assert box.run(["/bin/calls"], input=GETPID, check=True).stdout == b"2 0\n"
        with pytest.raises(olsock.KernelError) as caught:
            box.run(["/usr/bin/env"])
        assert caught.value.step == "execve"


def test_the_directory_is_not_changed(directory):
    before = sorted(map(str, directory.rglob("*")))
    with olsock.Sandbox(rootfs=directory) as box:
        box.run(["/bin/calls"])
    assert sorted(map(str, directory.rglob("*"))) == before


def test_mount_points_that_a_directory_lacks_are_there_all_the_same(directory, tmp_path):
    (tmp_path / "bound").mkdir()
    with olsock.Sandbox(rootfs=directory, binds=[f"{tmp_path}/bound:/opt/deep/bound"], cwd="/opt/deep/bound") as box:
        assert box.run(["/bin/calls"], input=GETPID).returncode == 0


@pytest.mark.parametrize("name", ["dev", "proc", "tmp", "etc", "var", "run"])
@pytest.mark.parametrize("target", ["/", "../../../..", "host", "/proc/self/root", "dangling"])
def test_a_link_in_the_place_of_a_mount_point_leads_nowhere(directory, tmp_path, name, target):
    host = tmp_path / "of the host"
    host.mkdir()
    for old in (directory / name).glob("*"):
        old.unlink()
    if (directory / name).exists():
        (directory / name).rmdir()
    (directory / name).symlink_to(host if target == "host" else target)
    try:
        with olsock.Sandbox(rootfs=directory) as box:
            assert box.run(["/bin/calls"], input=GETPID).returncode == 0
    except olsock.OlsockError as error:
        assert isinstance(error, olsock.KernelError | olsock.SpecError), error
    assert list(host.iterdir()) == []
    assert (directory / name).is_symlink()


@pytest.mark.parametrize("name", ["dev", "proc", "tmp"])
def test_a_file_in_the_place_of_a_mount_point_is_a_typed_error(directory, name):
    (directory / name).write_text("not a directory")
    with pytest.raises((olsock.KernelError, olsock.SpecError)):
        olsock.Sandbox(rootfs=directory)


def test_a_directory_that_is_a_link_itself_is_what_it_leads_to(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    with olsock.Sandbox(rootfs=tmp_path / "link") as box:
        assert box.run(["/bin/calls"], input=GETPID).returncode == 0


def test_devices_of_a_directory_do_not_work_and_those_made_by_us_do(directory):
    os.mkdir(directory / "dev")
    os.mknod(directory / "dev" / "kmsg", stat.S_IFCHR | 0o666, os.makedev(1, 11))
    with olsock.Sandbox(rootfs=directory, writable=True) as box:
        with pytest.raises(olsock.KernelError):
            box.run(["/dev/kmsg"])
        with pytest.raises(olsock.KernelError) as caught:
            box.run(["/dev/null"])
        assert caught.value.errno == 13  # there, but no program


# -- the host's root ---------------------------------------------------------------------------------------------------


def test_users_and_hosts_are_made_up():
    with olsock.Sandbox(user="1234", hostname="box") as box:
        passwd = box.run(["cat", "/etc/passwd"]).stdout.decode().splitlines()
        assert [line.split(":")[0] for line in passwd] == ["root", "sandbox", "nobody"]
        assert "1234" in passwd[1]
        assert b"box" in box.run(["cat", "/etc/hosts"]).stdout


def test_base_trees_are_shared_and_made_again_after_they_were_dropped():
    boxes = []
    try:
        for number in range(70):  # more than are kept
            boxes.append(olsock.Sandbox(hostname=f"h{number}"))
        assert boxes[0].run(["uname", "-n"]).stdout == b"h0\n"
        with olsock.Sandbox(hostname="h0") as again:
            assert again.run(["cat", "/etc/hostname"]).stdout == b"h0\n"
    finally:
        for box in boxes:
            box.close()


# -- writable ----------------------------------------------------------------------------------------------------------


def write(box: olsock.Sandbox, path: str) -> bool:
    return box.run(["sh", "-c", f"echo changed > {path}"]).returncode == 0


@pytest.mark.parametrize("user", [None, "root"])
def test_changes_to_the_root_are_thrown_away(user):
    with olsock.Sandbox(writable=True, user=user) as box:
        for path in ("/new", "/etc/passwd", "/usr/bin/env", "/usr/new"):
            assert write(box, path), path
        assert box.run(["cat", "/etc/passwd"]).stdout == b"changed\n"
    assert "changed" not in Path("/etc/passwd").read_text()
    assert not Path("/usr/new").exists()
    with olsock.Sandbox(writable=True, user=user) as box:
        assert box.run(["ls", "/new"]).returncode != 0
    with olsock.Sandbox(user=user) as box:
        assert not write(box, "/etc/passwd") and not write(box, "/new")


def test_files_can_be_removed_and_made_anew():
    with olsock.Sandbox(writable=True) as box:
        box.run(["rm", "/usr/bin/env"], check=True)
        assert box.run(["ls", "/usr/bin/env"]).returncode != 0
        box.run(["mkdir", "-p", "/opt/a/b"], check=True)
        box.run(["mv", "/opt/a/b", "/opt/c"], check=True)
    assert Path("/usr/bin/env").exists()


def test_changes_take_no_more_than_tmpfs_size():
    with olsock.Sandbox(writable=True, tmpfs_size="2M") as box:
        assert b"No space" in box.run(["dd", "if=/dev/zero", "of=/usr/x", "bs=1M", "count=3"]).stderr


def test_a_directory_that_is_written_stays_as_it_is(directory):
    with olsock.Sandbox(rootfs=directory, writable=True, binds=["/usr:/usr", "/lib64:/lib64", "/lib:/lib"]) as box:
        assert (
            write(box, "/etc/release")
            or box.run(["/usr/bin/dash", "-c", "echo changed > /etc/release"]).returncode == 0
        )
    assert (directory / "etc" / "release").read_text() == "mine"


def test_a_kept_directory_keeps_the_changes(tmp_path):
    kept = tmp_path / "kept"
    with olsock.Sandbox(writable=kept) as box:
        assert write(box, "/new") and write(box, "/usr/new")
    with olsock.Sandbox(writable=kept) as box:
        assert box.run(["cat", "/new", "/usr/new"]).stdout == b"changed\nchanged\n"
    assert not Path("/usr/new").exists()


def test_a_kept_directory_is_closed_to_others_and_its_files_belong_to_nobody(tmp_path):
    kept = tmp_path / "kept"
    with olsock.Sandbox(writable=kept) as box:
        assert write(box, "/new")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    (new,) = kept.rglob("upper/new")
    assert new.stat().st_uid >= identity.FIRST


@pytest.mark.parametrize("name", ["root", "usr"])
def test_a_link_in_a_kept_directory_is_not_followed(tmp_path, name):
    kept, host = tmp_path / "kept", tmp_path / "host"
    kept.mkdir(mode=0o700)
    host.mkdir()
    (kept / name).symlink_to(host)
    with pytest.raises(olsock.OlsockError):
        olsock.Sandbox(writable=kept)
    assert list(host.iterdir()) == []


def test_links_below_a_kept_directory_are_not_followed(tmp_path):
    kept, host = tmp_path / "kept", tmp_path / "host"
    host.mkdir()
    with olsock.Sandbox(writable=kept):
        pass
    for upper in kept.glob("root/upper"):
        for child in upper.iterdir():
            child.unlink() if not child.is_dir() else child.rmdir()
        upper.rmdir()
        upper.symlink_to(host)
    with pytest.raises(olsock.OlsockError):
        olsock.Sandbox(writable=kept)
    assert list(host.iterdir()) == []


def test_a_kept_directory_whose_place_is_missing_is_made(tmp_path):
    with olsock.Sandbox(writable=tmp_path / "a" / "b") as box:
        assert write(box, "/new")
