"""Code on its way from the registry into the store: what is taken, what is refused, and that nothing leads outside."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olsock_worker.ol_yaml import FunctionError
from olsock_worker.registry import Changes, Registry
from olsock_worker.settings import load
from olsock_worker.unpack import Copy, unpack

pytestmark = pytest.mark.unit


class Place:
    """A registry directory, a store, and the registry that copies from one to the other."""

    def __init__(self, directory: Path) -> None:
        self.source, self.store = directory / "registry", directory / "store"
        self.source.mkdir()
        self.store.mkdir()
        self.store_fd = os.open(self.store, os.O_RDONLY)
        self.registry = Registry(self.store_fd, load(None, {"code": "1M", "code_files": 20}))

    def look(self) -> Changes:
        fd = os.open(self.source, os.O_RDONLY)
        try:
            return self.registry.look(fd)
        finally:
            os.close(fd)

    def put(self, name: str, text: str = "def f(event): return 1\n", file: str = "f.py") -> None:
        (self.source / name).mkdir(exist_ok=True)
        (self.source / name / file).write_text(text)

    def archive(self, name: str, *members: tuple[tarfile.TarInfo, bytes]) -> None:
        (self.source / f"{name}.tar.gz").write_bytes(archive(*members))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    os.close(made.store_fd)


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


GOOD = member("f.py", b"def f(event): return 1\n")


def test_a_directory_and_an_archive_with_the_same_contents_are_one_version(place: Place) -> None:
    place.put("a", GOOD[1].decode())
    place.archive("b", GOOD)
    first, second = place.look().deployed
    assert (first.name, second.name) == ("a", "b") and first.version == second.version
    assert (place.store / first.path / "f.py").read_bytes() == GOOD[1]


def test_only_changes_are_reported(place: Place) -> None:
    place.put("a")
    assert [each.name for each in place.look().deployed] == ["a"]
    assert place.look() == Changes([], {}, [])
    place.put("a", "def f(event): return 2\n")
    (changed,) = place.look().deployed
    assert "return 2" in (place.store / changed.path / "f.py").read_text()
    place.put("a")
    (back,) = place.look().deployed
    assert back.version != changed.version
    (place.source / "a" / "f.py").unlink()
    (place.source / "a").rmdir()
    assert place.look().removed == ["a"]


def test_forgotten_versions_leave_the_store(place: Place) -> None:
    place.put("a")
    (deployed,) = place.look().deployed
    place.registry.forget(deployed.path)
    assert not (place.store / deployed.path).exists()
    assert not list(place.store.glob(".new-*"))


def test_names_that_are_no_names_are_left_alone(place: Place) -> None:
    for name in (".hidden", "-dash", "a b", "x" * 65, "ü"):
        place.put(name)
    (place.source / "link").symlink_to("/etc")
    (place.source / "file.txt").write_text("x")
    assert place.look() == Changes([], {}, [])
    assert list(place.store.iterdir()) == []


def test_modes_are_reduced_to_whether_it_runs(place: Place) -> None:
    place.put("a")
    place.put("a", "#!/bin/sh\n", "tool")
    (place.source / "a" / "tool").chmod(0o6777)
    (deployed,) = place.look().deployed
    code = place.store / deployed.path
    assert (code / "tool").stat().st_mode & 0o7777 == 0o755
    assert (code / "f.py").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("target", ["/etc/passwd", "f.py", "../../store", "absent"])
def test_a_link_in_a_directory_is_refused(place: Place, target: str) -> None:
    place.put("a")
    assert len(place.look().deployed) == 1  # the control
    (place.source / "a" / "evil").symlink_to(target)
    assert "symbolic link" in place.look().failed["a"]


def test_a_fifo_in_a_directory_is_refused_without_waiting_for_it(place: Place) -> None:
    place.put("a")
    os.mkfifo(place.source / "a" / "pipe")
    assert "neither a file nor a directory" in place.look().failed["a"]


HOSTILE = {
    "absolute": member("/tmp/olsock-evil", b"x"),
    "climbing": member("../evil", b"x"),
    "climbing in the middle": member("a/../../evil", b"x"),
    "a directory that climbs": member("../evil", kind=tarfile.DIRTYPE),
    "symbolic link": member("evil", kind=tarfile.SYMTYPE, link="/etc"),
    "hard link": member("evil", kind=tarfile.LNKTYPE, link="f.py"),
    "character device": member("evil", kind=tarfile.CHRTYPE),
    "block device": member("evil", kind=tarfile.BLKTYPE),
    "fifo": member("evil", kind=tarfile.FIFOTYPE),
    "unknown kind": member("evil", kind=b"Z", data=b""),
    "twice": member("f.py", b"x"),
    "a file as a directory": member("f.py/x", b"x"),
    "deep": member("/".join("d" * 40), b"x"),
    "too large": member("big", b"\0" * ((1 << 20) + 1)),
    "long name": member("n" * 300, b"x"),
    "long header": member("h" * (2 << 20), b"x"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(place: Place, case: str) -> None:
    before = sorted(place.store.parent.rglob("*"))
    place.archive("a", GOOD, HOSTILE[case])
    changes = place.look()
    assert changes.deployed == []
    if case != "unknown kind":
        assert changes.failed["a"]
    (place.source / "a.tar.gz").unlink()
    assert sorted(place.store.parent.rglob("*")) == before
    assert not Path("/tmp/olsock-evil").exists()


def test_a_link_then_a_file_through_it(place: Place) -> None:
    place.archive("a", GOOD, member("d", kind=tarfile.SYMTYPE, link="/tmp"), member("d/olsock-evil", b"x"))
    assert place.look().deployed == []
    assert not Path("/tmp/olsock-evil").exists()


def test_many_files_are_refused(place: Place) -> None:
    place.archive("a", GOOD, *(member(f"n{number}", b"") for number in range(30)))
    assert "more than 20 files" in place.look().failed["a"]


@pytest.mark.parametrize("kilobytes", [1, 32 << 10])
def test_a_bomb_is_stopped_by_what_comes_out(tmp_path: Path, kilobytes: int) -> None:
    """Whatever the headers say, and even where the limit on files would let it through."""
    data = archive(member("big", b"\0" * (kilobytes << 10)))
    assert len(data) < 64 << 10
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if kilobytes == 1:
            unpack(io.BytesIO(data), Copy(fd, 1 << 40, 10), 4096)  # the control
        else:
            with pytest.raises(FunctionError, match="unpacks to more"):
                unpack(io.BytesIO(data), Copy(fd, 1 << 40, 10), 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"", b"no archive", gzip.compress(b"no tar"), archive(GOOD)[:-20]])
def test_broken_archives_are_refused(place: Place, data: bytes) -> None:
    (place.source / "a.tar.gz").write_bytes(data)
    changes = place.look()
    assert changes.deployed == [] and "a" in changes.failed


def test_a_bad_function_is_tried_again_only_when_it_changes(place: Place) -> None:
    place.put("a", "x: 1\n", "ol.yaml")
    assert "x" in place.look().failed["a"]
    assert place.look() == Changes([], {}, [])
    place.put("a", "", "ol.yaml")
    assert "f.py" in place.look().failed["a"]
    place.put("a")
    assert len(place.look().deployed) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "..", ".", "", "/", "c\0", "ü"]), min_size=1, max_size=5).map("/".join),
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
            st.binary(max_size=20),
        ),
        max_size=6,
    )
)
def test_no_archive_writes_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bytes]]
) -> None:
    outer = tmp_path_factory.mktemp("outer")
    target = outer / "target"
    target.mkdir()
    fd = os.open(target, os.O_RDONLY)
    made = [member(name, data if kind == tarfile.REGTYPE else b"", kind, "/etc") for name, kind, data in members]
    try:
        unpack(io.BytesIO(archive(*made)), Copy(fd, 1000, 10), 1000)
    except FunctionError:
        pass
    finally:
        os.close(fd)
    assert [path.name for path in outer.iterdir()] == ["target"]
    for path in target.rglob("*"):
        assert not path.is_symlink() and (path.is_file() or path.is_dir())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_unpacked_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    target = tmp_path_factory.mktemp("any")
    fd = os.open(target, os.O_RDONLY)
    try:
        unpack(io.BytesIO(gzip.compress(data)), Copy(fd, 1000, 10), 1000)
    except FunctionError:
        pass
    finally:
        os.close(fd)
