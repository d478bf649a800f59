"""The function store without a worker: versions, aliases, code by content, and that a kill leaves the old or the new."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from olsock_worker.ol_yaml import FunctionError
from olsock_worker.store.code import CodeStore
from olsock_worker.store.records import (
    LATEST,
    Absent,
    Alias,
    Code,
    Configuration,
    Conflict,
    Different,
    Stale,
    StoreError,
    Version,
)
from olsock_worker.store.sqlite import FILE, SqliteStore
from olsock_worker.unpack import Copy, TooLarge

pytestmark = pytest.mark.unit


class Place:
    """A directory with a store in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fd = os.open(directory, os.O_RDONLY)
        self.store = SqliteStore(self.fd)

    def again(self) -> SqliteStore:
        """The store as the next process finds it."""
        self.store.close()
        self.store = SqliteStore(self.fd)
        return self.store


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()
    os.close(made.fd)


def version(name: str = "f", digest: str = "d", revision: str = "r") -> Version:
    code = Code(digest, f"sha-{digest}", 10)
    return Version(
        name, LATEST, code, Configuration(handler="a.b", environment={"A": "b"}), ("numpy",), revision, "now"
    )


def test_what_is_stored_is_there_again(place: Place) -> None:
    shown = {"TracingConfig": msgspec.Raw(b'{"Mode":"Active"}')}
    made = msgspec.structs.replace(version(), configuration=Configuration(handler="a.b", timeout=3, shown=shown))
    assert place.store.create(made, {"k": "v"}, False) is None
    place.store.reserve("f", 3)
    found = place.again().version("f", LATEST)
    assert msgspec.json.encode(found) == msgspec.json.encode(made)
    assert (place.store.tags("f"), place.store.reserved("f"), place.store.keys()) == ({"k": "v"}, 3, [("f", LATEST)])


def test_versions_are_numbered_and_stay(place: Place) -> None:
    store = place.store
    store.create(version(), {}, False)
    one = store.publish("f", "first", None, None)
    assert store.publish("f", None, None, None) == one and store.publish("f", "first", "sha-d", "r") == one
    changed, _ = store.change("f", Code("e", "sha-e", 20), None, None, "r", False)
    assert changed.configuration.handler == "a.b" and changed.requirements == ("numpy",)
    two = store.publish("f", None, None, changed.revision)
    assert [each.number for each in store.versions("f", "", 9)] == [LATEST, "1", "2"]
    assert [each.number for each in store.versions("f", "1", 9)] == ["2"]
    assert store.version("f", "1") == one and two.code.digest == "e"
    store.delete_version("f", "2")
    assert store.publish("f", None, None, None).number == "3"
    assert store.digests() == {"d", "e"} and store.usage().functions == 1 and store.usage().bytes == 50
    store.delete("f")
    assert store.keys() == [] and store.digests() == set()


def test_each_refusal_changes_nothing(place: Place) -> None:
    store = place.store
    store.create(version(), {}, False)
    store.publish("f", None, None, None)
    store.create_alias(Alias("f", "live", "1", {}, "", "r"))
    before = (place.directory / FILE).stat(), store.versions("f", "", 9), store.aliases("f", None, "", 9)
    for error, call in (
        (Conflict, lambda: store.create(version(), {}, False)),
        (Absent, lambda: store.version("f", "7")),
        (Absent, lambda: store.version("f", "x")),
        (Absent, lambda: store.version("g", LATEST)),
        (Absent, lambda: store.delete("g")),
        (Absent, lambda: store.set_tags("g", {})),
        (Absent, lambda: store.reserve("g", 1)),
        (Absent, lambda: store.alias("f", "dead")),
        (Absent, lambda: store.create_alias(Alias("f", "new", "1", {"9": 0.5}, "", "r"))),
        (Absent, lambda: store.change_alias("f", "live", "9", None, None, None)),
        (Conflict, lambda: store.create_alias(Alias("f", "live", "1", {}, "", "r"))),
        (Conflict, lambda: store.delete_version("f", "1")),
        (Stale, lambda: store.change("f", None, None, None, "other", True)),
        (Different, lambda: store.publish("f", None, "other", None)),
        (Stale, lambda: store.change_alias("f", "live", None, None, "d", "other")),
    ):
        with pytest.raises(error):
            call()
    assert (store.versions("f", "", 9), store.aliases("f", None, "", 9)) == before[1:]


def test_a_store_of_a_later_format_is_left_alone(place: Place) -> None:
    place.store._db.pragma("user_version", 99)
    place.store.close()
    with pytest.raises(StoreError, match="format 99"):
        SqliteStore(place.fd)
    place.store = None  # type: ignore[assignment]
    (place.directory / FILE).write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match=FILE):
        SqliteStore(place.fd)
    (place.directory / FILE).unlink()
    place.store = SqliteStore(place.fd)


# -- code by content ----------------------------------------------------------------------------------------------


def put(code: CodeStore, **files: str) -> str:
    """Add files, and keep them for now."""

    def fill(copy: Copy) -> None:
        import io

        for name, text in files.items():
            copy.add_file(name.replace("__", "/"), io.BytesIO(text.encode()), False)

    return code.add(fill, 1000, 10)


def test_equal_contents_are_there_once(place: Place) -> None:
    code = CodeStore(place.fd)
    first, second = put(code, a="1", d__b="2"), put(code, a="1", d__b="2")
    assert first == second and os.listdir(place.directory / "code") == [first] and len(first) == 64
    code.unpin(first)
    assert code.collect(set) == 0, "the other one still wants it"
    code.unpin(first)
    assert code.collect(lambda: {first}) == 0
    assert code.collect(set) == 1 and os.listdir(place.directory / "code") == []


def test_links_are_of_the_same_files(place: Place, tmp_path: Path) -> None:
    code = CodeStore(place.fd)
    digest = put(code, a="1", d__b="2")
    (tmp_path / "runs").mkdir()
    target = os.open(tmp_path / "runs", os.O_RDONLY)
    try:
        for _ in range(2):
            code.link([digest], target, "f:1/v")
    finally:
        os.close(target)
    linked = tmp_path / "runs" / "f:1" / "v" / "d" / "b"
    assert linked.samefile(place.directory / "code" / digest / "d" / "b")
    assert sorted(os.listdir(tmp_path / "runs")) == ["f:1"], "no scratch directory is left"


def test_what_is_refused_leaves_nothing(place: Place) -> None:
    code = CodeStore(place.fd)
    for files, error in (
        ({"a": "x" * 2000}, TooLarge),
        ({f"f{n}": "" for n in range(11)}, TooLarge),
        ({"A": "", "a": ""}, FunctionError),
        ({"D__x": "", "d__y": ""}, FunctionError),
        ({"\u00e9": "", "e\u0301": ""}, FunctionError),
        ({"a\n": ""}, FunctionError),
        ({"a\\b": ""}, FunctionError),
    ):
        with pytest.raises(error):
            put(code, **files)
    assert os.listdir(place.directory / "code") == [] and os.listdir(place.directory / "scratch") == []


# -- kills --------------------------------------------------------------------------------------------------------

_WRITER = """
import io, os, sys
from olsock_worker.store.code import CodeStore
from olsock_worker.store.records import LATEST, Code, Configuration, Version
from olsock_worker.store.sqlite import SqliteStore
fd = os.open(sys.argv[1], os.O_RDONLY)
store, code = SqliteStore(fd), CodeStore(fd)
known = {each.function for each in store.functions("", 100)}
number = int(sys.argv[2])
while True:
    number += 1
    text = str(number).encode()
    digest = code.add(lambda copy: copy.add_file("n/f.py", io.BytesIO(text), False), 1000, 10)
    made = Code(digest, str(number), number)
    if "f" in known:
        store.change("f", made, Configuration(description=str(number)), None, None, True)
    else:
        store.create(Version("f", LATEST, made, Configuration(description=str(number)), (), "r", ""), {}, True)
        known.add("f")
    code.unpin(digest)
    print(number, flush=True)  # acknowledged
    code.collect(store.digests)
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, seed: int) -> None:
    """Five kills each, at any moment: what was acknowledged is there, whole, and nothing is left that is not wanted."""
    chance, last = random.Random(seed), 0
    for _ in range(5):
        argv = [sys.executable, "-c", _WRITER, str(tmp_path), str(last)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randrange(1, 12)):
                assert writer.stdout.readline()
            os.sched_yield()
            for _ in range(chance.randrange(20_000)):
                pass  # so that the kill comes anywhere between two acknowledgements
            writer.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in writer.stdout.read().split()] or [last]
        fd = os.open(tmp_path, os.O_RDONLY)
        store, code = SqliteStore(fd), CodeStore(fd)
        try:
            found = store.version("f", LATEST)
            number = int(found.code.sha256)
            assert number >= acknowledged[-1], "what was acknowledged is lost"
            assert found.configuration.description == str(number) and found.code.size == number
            assert code.read(found.code.digest, "n/f.py", 99) == str(number).encode()
            assert next(iter(store._db.execute("PRAGMA integrity_check")))[0] == "ok"
            versions = store.versions("f", "", 1000)
            assert versions[-1].code == found.code, "changed, but not published"
            code.collect(store.digests)
            assert (
                set(os.listdir(tmp_path / "code")) == {each.code.digest for each in versions}
                and os.listdir(tmp_path / "scratch") == []
            )
            last = number
        finally:
            store.close()
            os.close(fd)
