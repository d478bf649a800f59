"""Archives of strangers: what must not come in over the API does not, nothing is written outside, and the host is as before."""

from __future__ import annotations

import io
import os
import socket
import stat
import struct
import tarfile
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aws_client import ROLE, zipped
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_process import WorkerProcess

import olsock
from olsock import archives
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.unpack import Copy, take

QUICK = 'registry_check = 0.2\ncode = "4M"\ncode_files = 100\n'


@pytest.fixture(scope="module")
def config() -> str:
    return QUICK


def special(name: str, mode: int, data: bytes = b"/etc/passwd") -> bytes:
    """A zip with one member of a kind, beside a sound one."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("app.py", "def handler(e, c): return 1")
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, data)
    return out.getvalue()


def twice(*names: str) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w") as archive:  # of names that are there
        for name in names:
            archive.writestr(name, "1")
    return out.getvalue()


def overlapping() -> bytes:
    """Many members of the directory that are the same bytes of the file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * (3 << 20))
        (first,) = archive.infolist()
        for number in range(50):
            other = zipfile.ZipInfo(f"b{number}")
            other.compress_type, other.CRC = first.compress_type, first.CRC
            other.file_size, other.compress_size = first.file_size, first.compress_size
            other.header_offset = first.header_offset
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    return out.getvalue()


def lying() -> bytes:
    """A member that is larger than its headers say."""
    data = bytearray(twice("app.py"))
    for offset in (data.find(b"PK\3\4") + 22, data.find(b"PK\1\2") + 24):
        data[offset : offset + 4] = struct.pack("<I", 1 << 30)
    return bytes(data)


def tarred(files: dict[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


ZIPS = {
    "climbing": twice("../x"),
    "climbing inside": twice("a/../../x"),
    "absolute": twice("/tmp/olsock-escaped"),
    "drive": twice("C:\\x"),
    "backslash": twice("..\\x"),
    "twice": twice("a", "a"),
    "case": twice("a", "A"),
    "composition": twice("\u00e9", "e\u0301"),
    "file and directory": twice("a", "a/b"),
    "control character": twice("a\x1b[2J"),
    "deep": twice("/".join("a" * 40)),
    "long": twice("a" * 300),
    "symlink": special("x", stat.S_IFLNK | 0o777),
    "device": special("x", stat.S_IFCHR | 0o666),
    "fifo": special("x", stat.S_IFIFO | 0o666),
    "socket": special("x", stat.S_IFSOCK | 0o666),
    "too many": twice(*(f"f{number}" for number in range(101))),
    "bomb": zipped({"app.py": b"\0" * (5 << 20)}),
    "overlapping": overlapping(),
    "wrong size": lying(),
    "cut": zipped()[:-30],
    "cut more": zipped()[:40],
    "empty": b"PK\5\6" + b"\0" * 18 + b"x",
    "noise": os.urandom(5000),
}


def inside(worker: WorkerProcess) -> list[str]:
    """Everything in the state directory but what changes by itself."""
    found = (str(path.relative_to(worker.state)) for path in worker.state.rglob("*"))
    kept = ("store/code", "store/uploads", "store/scratch", "code/")
    return sorted(path for path in found if path.startswith(kept) and "__pycache__" not in path)


@pytest.mark.attack
@pytest.mark.parametrize("name", ZIPS)
def test_a_bad_zip_leaves_nothing(worker: WorkerProcess, aws: Any, name: str) -> None:
    before, begun = inside(worker), time.monotonic()
    with pytest.raises(ClientError) as error:
        aws.create_function(
            FunctionName="bad", Runtime="python3.11", Handler="app.handler", Role=ROLE, Code={"ZipFile": ZIPS[name]}
        )
    assert error.value.response["Error"]["Code"] == "InvalidParameterValueException"
    assert "raceback" not in error.value.response["Error"]["Message"]
    assert time.monotonic() - begun < 30.0
    assert inside(worker) == before
    assert not Path("/tmp/olsock-escaped").exists() and not (worker.state / "x").exists()


@pytest.mark.attack
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S"]
)
def test_a_bad_tar_leaves_nothing(worker: WorkerProcess, kind: bytes) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        good = tarfile.TarInfo("f.py")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"1"))
        bad = tarfile.TarInfo("x")
        bad.type, bad.linkname = kind, "/etc/passwd"
        tar.addfile(bad)
    before = inside(worker)
    reply = worker.request("/registry/bad", data.getvalue())
    assert reply.status == 400, reply.body
    assert inside(worker) == before


@pytest.mark.attack
def test_a_tar_bomb_is_too_large(worker: WorkerProcess) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo("f.py")
        info.size = 40 << 20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    before = inside(worker)
    assert worker.request("/registry/bad", data.getvalue()).status == 413
    assert inside(worker) == before


@pytest.mark.attack
def test_an_upload_that_is_cut_off_changes_nothing(worker: WorkerProcess) -> None:
    """After every KiB, and one byte before its end: what was there stays whole, and serves."""
    old, new = (tarred({"f.py": f"def f(event): return {n}", "noise": os.urandom(20_000)}) for n in (1, 2))
    assert worker.request("/registry/cut", old).status == 201
    worker.until(lambda: worker.call("cut").status == 200)
    head = b"POST /registry/cut HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(new)
    before, open_before = inside(worker), worker.stats()["connections"]
    for size in [*range(0, len(new), 1024), len(new) - 1]:
        with worker.connect() as sock:
            sock.sendall(head + new[:size])
            if size % 2048:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    worker.until(lambda: worker.stats()["connections"] <= open_before)
    assert worker.call("cut").json == 1 and inside(worker) == before
    with (
        worker.connect() as sock
    ):  # longer than it says: what is too much is no request, and what is not enough no archive
        sock.sendall(head.replace(b"%d" % len(new), b"%d" % (len(new) - 9)) + new)
        got = sock.recv(65536)
    assert got.startswith(b"HTTP/1.1 400 ") and worker.call("cut").json == 1 and inside(worker) == before
    assert worker.request("/registry/cut", new).status == 201  # the control: the same bytes, all of them
    worker.until(lambda: worker.call("cut").json == 2)
    assert worker.request("/registry/cut", method="DELETE").status == 200


@pytest.mark.attack
def test_uploads_of_one_function_at_the_same_time(worker: WorkerProcess) -> None:
    """While it is called: whoever comes last is served, whole, and nothing of the others stays."""
    code = "import other\ndef f(event): return [{n}, other.N]"
    archives_of = [tarred({"f.py": code.format(n=n), "other.py": f"N = {n}"}) for n in range(8)]
    assert worker.request("/registry/twice", archives_of[0]).status == 201
    worker.until(lambda: worker.call("twice").status == 200)
    seen: list[Any] = []
    with ThreadPoolExecutor(9) as pool:
        uploads = [pool.submit(worker.request, "/registry/twice", each) for each in archives_of]
        while not all(each.done() for each in uploads):
            reply = worker.call("twice")
            assert reply.status == 200, reply.body
            seen.append(reply.json)
    assert {each.result().status for each in uploads} == {201}
    assert all(first == second for first, second in seen)
    first, second = worker.call("twice").json
    assert first == second
    assert len(os.listdir(worker.state / "store" / "code")) == 1 and not os.listdir(worker.state / "store" / "uploads")
    assert worker.request("/registry/twice", method="DELETE").status == 200


@pytest.mark.system
def test_a_good_one_is_taken(worker: WorkerProcess, aws: Any) -> None:
    """The control: the same way in, for an archive that has nothing wrong with it."""
    code = {"ZipFile": zipped({"app.py": "def handler(e, c): return 1", "a/b/c.txt": "x", "empty/": ""})}
    aws.create_function(FunctionName="good", Runtime="python3.11", Handler="app.handler", Role=ROLE, Code=code)
    (digest,) = os.listdir(worker.state / "store" / "code")
    assert (worker.state / "store" / "code" / digest / "a" / "b" / "c.txt").read_text() == "x"
    assert not os.listdir(worker.state / "store" / "uploads")
    aws.delete_function(FunctionName="good")
    worker.until(lambda: not os.listdir(worker.state / "store" / "code"))


@pytest.mark.system
def test_the_sandbox_has_nothing_but_the_archive(tmp_path: Path) -> None:
    """What unpacks reads its standard input; a program in its place finds no network, and no descriptor but three."""
    look = "import os; print(len(os.listdir('/proc/self/fd')), open('/proc/net/dev').read().count(':'))"
    with olsock.Sandbox(memory=archives.MEMORY, pids=archives.PIDS) as box:
        done = box.run(["python3", "-I", "-S", "-c", look])
    assert done.stdout == b"4 1\n", "0, 1, 2 and that of the list; the loopback"


# -- records ------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.binary(max_size=30))), st.binary(max_size=20))
def test_records_that_nobody_should_send_are_survived(tmp_path_factory: Any, sent: Any, rest: bytes) -> None:
    """Whatever a sandbox that was taken over says: files in the target, or an error of ours; never anything else."""
    stream = b"".join(struct.pack("<BBHI", kind, flags, 0, len(data)) + data for kind, flags, data in sent) + rest
    top = tmp_path_factory.mktemp("records")
    (top / "target").mkdir()
    fd = os.open(top / "target", os.O_RDONLY)
    try:
        take(io.BytesIO(stream), Copy(fd, 100, 5, lasting=True))
    except (FunctionError, olsock.ProtocolError):
        pass
    finally:
        os.close(fd)
    assert os.listdir(top) == ["target"]
    assert sum(path.stat().st_size for path in top.rglob("*") if path.is_file()) <= 100
