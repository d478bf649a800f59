"""Finding the cgroup directories of a host, from tables of hosts that this one is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.errors import UnsupportedError
from olsock.hierarchies import Layout, arrange, parse_membership, parse_mounts

pytestmark = pytest.mark.unit


class FakeHost:
    """A /sys/fs/cgroup below a temporary directory, with a mountinfo that says so."""

    def __init__(self, root: Path) -> None:
        self.root, self.lines = root, [f"27 1 254:0 / {root} rw - ext4 /dev/vda rw"]

    def mount(self, name: str, kind: str, options: str, *, root: str = "/", controllers: str = "") -> Path:
        point = self.root / name
        point.mkdir(parents=True, exist_ok=True)
        escaped = str(point).replace(" ", "\\040")
        self.lines.append(f"32 31 0:29 {root} {escaped} rw,relatime shared:9 - {kind} {kind} rw,{options}")
        if kind == "cgroup2":
            (point / "cgroup.controllers").write_text(controllers)
        return point

    def find(self, membership: str, parent: str | None = None) -> Layout:
        return arrange(parse_mounts("\n".join(self.lines)), parse_membership(membership), parent)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_pure_version_2(host: FakeHost) -> None:
    point = host.mount("cgroup", "cgroup2", "nsdelegate", controllers="cpuset cpu io memory pids rdma\n")
    service = point / "system.slice" / "x.service"
    service.mkdir(parents=True)
    (service / "cgroup.controllers").write_text("cpu memory pids\n")
    layout = host.find("0::/system.slice/x.service\n")
    assert layout.mode == "unified" and layout.v2.parent == str(service) and layout.v1 == ()
    assert layout.controllers == {"cpu", "memory", "pids"}


def test_hybrid_with_a_directory_for_each_hierarchy(host: FakeHost) -> None:
    memory = host.mount("memory", "cgroup", "memory")
    (memory / "deep" / "er").mkdir(parents=True)
    cpu = host.mount("cpu,cpuacct", "cgroup", "cpu,cpuacct")
    pids = host.mount("pids", "cgroup", "pids")
    host.mount("freezer", "cgroup", "freezer")
    v2 = host.mount("unified", "cgroup2", "", controllers="")
    layout = host.find("8:pids:/\n4:memory:/deep/er\n2:cpu,cpuacct:/\n6:freezer:/\n1:name=systemd:/\n0::/\n")
    assert layout.mode == "hybrid" and layout.v2.parent == str(v2)
    assert {h.parent: set(h.controllers) for h in layout.v1} == {
        str(memory / "deep" / "er"): {"memory"},
        str(cpu): {"cpu"},
        str(pids): {"pids"},
    }


def test_controllers_mounted_together_are_one_hierarchy(host: FakeHost) -> None:
    host.mount("all", "cgroup", "memory,pids,cpu")
    host.mount("unified", "cgroup2", "", controllers="")
    layout = host.find("3:memory,pids,cpu:/\n0::/\n")
    assert [set(h.controllers) for h in layout.v1] == [{"memory", "pids", "cpu"}]


def test_some_controllers_on_each_version(host: FakeHost) -> None:
    host.mount("memory", "cgroup", "memory")
    host.mount("unified", "cgroup2", "", controllers="pids cpu")
    layout = host.find("4:memory:/\n0::/\n")
    assert layout.v2.controllers == {"pids", "cpu"} and layout.controllers == {"memory", "pids", "cpu"}


def test_a_container_sees_a_part_of_the_hierarchy(host: FakeHost) -> None:
    point = host.mount("cgroup", "cgroup2", "", root="/docker/abc", controllers="memory")
    (point / "inner").mkdir()
    (point / "inner" / "cgroup.controllers").write_text("memory")
    assert host.find("0::/docker/abc/inner\n").v2.parent == str(point / "inner")
    assert host.find("0::/docker/abc\n").v2.parent == str(point)


@pytest.mark.parametrize("path", ["/docker/abcd", "/docker", "/", "/../elsewhere"])
def test_a_cgroup_that_no_mount_shows(host: FakeHost, path: str) -> None:
    host.mount("cgroup", "cgroup2", "", root="/docker/abc", controllers="memory")
    with pytest.raises(UnsupportedError, match="cgroup v2"):
        host.find(f"0::{path}\n")


def test_what_is_mounted_over_is_not_used(host: FakeHost) -> None:
    host.mount("cgroup", "cgroup2", "", controllers="memory")
    host.lines.append(f"40 31 0:30 / {host.root}/cgroup rw - tmpfs tmpfs rw")
    with pytest.raises(UnsupportedError):
        host.find("0::/\n")


def test_blanks_in_a_path(host: FakeHost) -> None:
    point = host.mount("a b", "cgroup2", "", controllers="memory")
    assert host.find("0::/\n").v2.parent == str(point)


def test_a_parent_may_be_named(host: FakeHost) -> None:
    point = host.mount("cgroup", "cgroup2", "", controllers="memory")
    (point / "mine").mkdir()
    (point / "mine" / "cgroup.controllers").write_text("memory")
    for parent in ("/mine", "mine", "/mine/"):
        assert host.find("0::/elsewhere\n", parent).v2.parent == str(point / "mine")
    assert host.find("0::/elsewhere\n", "/").v2.parent == str(point)


@pytest.mark.parametrize(
    ("parent", "words"), [("/absent", "does not exist"), ("/mine/../..", r"'\.\.' is not followed")]
)
def test_a_parent_that_cannot_be_used_is_refused(host: FakeHost, parent: str, words: str) -> None:
    host.mount("cgroup", "cgroup2", "", controllers="memory")
    with pytest.raises(UnsupportedError, match=words):
        host.find("0::/\n", parent)


def test_a_child_of_a_supervised_process_goes_beside_it(host: FakeHost) -> None:
    point = host.mount("cgroup", "cgroup2", "", controllers="memory")
    (point / "svc" / "olsock-supervisor").mkdir(parents=True)
    (point / "svc" / "cgroup.controllers").write_text("memory")
    assert host.find("0::/svc/olsock-supervisor\n").v2.parent == str(point / "svc")


@given(st.text())
def test_any_table_can_be_read(text: str) -> None:
    parse_mounts(text)
