"""What a killed process left is found and removed, and nothing that lives or is not ours."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from olsock import leftovers
from olsock.cgroups import Tree
from olsock.leftovers import Instance
from support.children import Child
from support.eventually import eventually

pytestmark = [pytest.mark.fault, pytest.mark.cgroup]

# A process of the library with a frozen sandbox in a domain, and a file and a directory of its own.
LIBRARY = """
import os, subprocess, sys, time
from pathlib import Path
from olsock.cgroups import Tree
from olsock.leftovers import Instance
instance = Instance.create(sys.argv[1])
tree = Tree.create(instance.name)
if sys.argv[2] == "noted":
    instance.record_cgroups(tree.paths)
leaf = tree.domain("tenant").leaf("one")
sleeper = subprocess.Popen(["sleep", "1000"])
leaf.adopt(sleeper.pid)
leaf.freeze()
Path(instance.directory, "root").mkdir()
Path(instance.directory, "root", "link").symlink_to("/etc")
print(instance.name, sleeper.pid, *tree.paths, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> str:
    return os.fspath(tmp_path / "run")


class Library:
    """A process that uses the library, and what it says it made."""

    def __init__(self, run: str, noted: str = "noted") -> None:
        command = [sys.executable, "-c", LIBRARY, run, noted]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.name, sleeper, *paths = self.process.stdout.readline().split()
        self.sleeper, self.cgroups, self.directory = int(sleeper), paths, Path(run, self.name)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def close(self) -> None:
        self.kill()
        with contextlib.ExitStack() as stack:
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                stack.callback(pipe.close)


@pytest.fixture
def library(run: str) -> Iterator[Library]:
    made = Library(run)
    yield made
    made.close()
    leftovers.clean(run)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_living_process_is_listed_and_left_alone(run: str, library: Library) -> None:
    (entry,) = leftovers.list_instances(run)
    assert (entry.name, entry.pid, entry.alive, entry.sandboxes) == (library.name, library.process.pid, True, 1)
    assert entry.argv0 == "-c" and entry.cgroups == tuple(library.cgroups)
    assert leftovers.clean(run) == []
    assert runs(library.sleeper) and library.directory.is_dir() and all(map(os.path.isdir, library.cgroups))


def test_all_of_a_killed_process_is_removed(run: str, library: Library) -> None:
    library.kill()
    (entry,) = leftovers.list_instances(run)
    assert not entry.alive and entry.sandboxes == 1 and runs(library.sleeper), (
        "the control: there is something to remove"
    )
    removed = leftovers.clean(run)
    assert not any(removal.problem for removal in removed)
    assert {removal.what for removal in removed} == {*library.cgroups, os.fspath(library.directory)}
    assert not any(map(os.path.exists, (*library.cgroups, library.directory)))
    assert eventually(lambda: not runs(library.sleeper))
    assert leftovers.clean(run) == [] and leftovers.list_instances(run) == []


def test_a_process_killed_before_it_noted_its_tree(run: str) -> None:
    library = Library(run, "unnoted")
    try:
        library.kill()
        assert {removal.what for removal in leftovers.clean(run)} == {*library.cgroups, os.fspath(library.directory)}
        assert not any(map(os.path.exists, library.cgroups))
    finally:
        library.close()


@pytest.mark.parametrize("state", [None, "", "{", "[1]", '{"cgroups": 5}', '{"pid": "x"}'])
def test_a_process_killed_while_it_wrote_its_entry(run: str, state: str | None) -> None:
    with Instance.create(run):
        directory = Path(run, "1-0123abcd")
        directory.mkdir()
        if state is not None:
            (directory / "state.json").write_text(state)
        entries = {entry.name: entry.alive for entry in leftovers.list_instances(run)}
        assert entries.pop("1-0123abcd") is False and list(entries.values()) == [True]
        leftovers.clean(run)
        assert not directory.exists() and len(leftovers.list_instances(run)) == 1


def test_a_forked_child_does_not_keep_its_dead_parent_alive(run: str) -> None:
    code = """
import os, sys
from olsock.leftovers import Instance
instance = Instance.create(sys.argv[1])
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "forked\n"
        assert [entry.alive for entry in leftovers.list_instances(run)] == [True]
        process.kill()
        process.wait(30)
        assert [entry.alive for entry in leftovers.list_instances(run)] == [False]
        leftovers.clean(run)


def test_closing_removes_the_entry_and_a_fork_does_not(run: str) -> None:
    with Instance.create(run) as instance:
        assert stat.S_IMODE(os.stat(instance.directory).st_mode) == 0o700
        pid = os.fork()
        if pid == 0:
            instance.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert [entry.alive for entry in leftovers.list_instances(run)] == [True]
    instance.close()
    assert leftovers.list_instances(run) == [] and os.listdir(run) == []


class TestRefusals:
    """A state file can say anything: it is a dead process's word."""

    @pytest.fixture
    def dead(self, run: str) -> Iterator[Path]:
        with Instance.create(run):
            pass
        directory = Path(run, "1-0123abcd")
        directory.mkdir(mode=0o700)
        yield directory
        if directory.is_dir():
            (directory / "state.json").write_text("{}")
        leftovers.clean(run)

    @staticmethod
    def clean(dead: Path, **state: list[str]) -> list[leftovers.Removal]:
        (dead / "state.json").write_text(json.dumps(state))
        return leftovers.clean(os.fspath(dead.parent))

    def test_a_recorded_directory_is_removed_without_following_links(self, dead: Path, tmp_path: Path) -> None:
        treasure = tmp_path / "treasure"
        treasure.mkdir()
        (treasure / "file").write_text("kept")
        ours = tmp_path / "olsock-kept"
        (ours / "sub").mkdir(parents=True)
        (ours / "sub" / "link").symlink_to(treasure)
        assert not any(removal.problem for removal in self.clean(dead, directories=[os.fspath(ours)]))
        assert not ours.exists() and (treasure / "file").read_text() == "kept" and not dead.exists()

    def test_a_directory_with_another_name_is_kept(self, dead: Path, tmp_path: Path) -> None:
        other = tmp_path / "precious"
        other.mkdir()
        removed = self.clean(dead, directories=[os.fspath(other), "olsock-relative", f"{tmp_path}/../olsock-x"])
        assert [bool(removal.problem) for removal in removed] == [True] * 3
        assert other.is_dir() and dead.is_dir(), "the entry stays while something of it could not be removed"

    def test_a_directory_of_somebody_else_is_kept(self, dead: Path, tmp_path: Path) -> None:
        other = tmp_path / "olsock-other"
        other.mkdir()
        os.chown(other, 12345, 12345)
        (removal,) = self.clean(dead, directories=[os.fspath(other)])
        assert "uid 12345" in removal.problem and other.is_dir()

    def test_a_link_on_the_way_is_not_followed(self, dead: Path, tmp_path: Path) -> None:
        (tmp_path / "real" / "olsock-target").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (removal,) = self.clean(dead, directories=[f"{tmp_path}/link/olsock-target"])
        assert removal.problem and (tmp_path / "real" / "olsock-target").is_dir()

    def test_another_file_system_is_not_entered(self, dead: Path, tmp_path: Path) -> None:
        ours = tmp_path / "olsock-mounted"
        (ours / "inner").mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", ours / "inner"], check=True)
        try:
            (ours / "inner" / "file").write_text("kept")
            (removal,) = self.clean(dead, directories=[os.fspath(ours)])
            assert "another file system" in removal.problem and (ours / "inner" / "file").read_text() == "kept"
        finally:
            subprocess.run(["umount", ours / "inner"], check=True)

    def test_a_directory_that_is_no_cgroup_is_not_taken_for_one(self, dead: Path, tmp_path: Path) -> None:
        (tmp_path / "olsock-fake").mkdir()
        (tmp_path / "olsock-fake" / "cgroup.kill").write_text("")
        (removal,) = self.clean(dead, cgroups=[f"{tmp_path}/olsock-fake"])
        assert removal.problem and (tmp_path / "olsock-fake" / "cgroup.kill").read_text() == ""

    def test_a_cgroup_without_our_name_is_not_killed(self, dead: Path) -> None:
        with Tree.create(f"{os.getpid()}-test") as tree, Child("import signal\nsignal.pause()") as child:
            leaf = tree.leaf("bystander")
            leaf.adopt(child.pid)
            (removal,) = self.clean(dead, cgroups=[leaf.paths[0]])
            assert removal.problem and child.poll() is None and leaf.pids() == [child.pid]


def test_network_interfaces_go_with_their_process(run: str) -> None:
    """Those of a dead one, by the name that they bear; those of others stay."""
    names = {"olsock-0ab1fff1": "1-0123abcd", "olsock-0ab1fff2": "2-0123abcd"}
    with Instance.create(run), IPRoute() as netlink, contextlib.ExitStack() as stack:
        for name, owner in names.items():
            try:
                netlink.link("add", ifname=name, kind="veth", peer={"ifname": f"peer-{name[-8:]}"})
            except NetlinkError as error:
                if error.code == errno.EOPNOTSUPP:
                    pytest.skip("this kernel makes no veth")
                raise
            (index,) = netlink.link_lookup(ifname=name)
            stack.callback(_unless_gone, netlink, name)
            netlink.link("set", index=index, ifalias=f"olsock {owner} test")
        Path(run, "1-0123abcd").mkdir()
        assert "network interface olsock-0ab1fff1" in {str(removal) for removal in leftovers.clean(run)}
        assert [bool(netlink.link_lookup(ifname=name)) for name in names] == [False, True]


def _unless_gone(netlink: IPRoute, name: str) -> None:
    for index in netlink.link_lookup(ifname=name):
        netlink.link("del", index=index)
