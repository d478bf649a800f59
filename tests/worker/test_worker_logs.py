"""Logs of functions: read back across rotations, filtered, followed, and by whom a line is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_process import WorkerProcess

from olsock_worker.logs import FunctionLog, escape, prune
from olsock_worker.records import LogReader, parse, shown

SAYS = "def f(event):\n    print(event)\n    return event\n"


class Said(NamedTuple):
    text: str

    def lines(self, before: str, _request: str) -> str:
        return f"{before}{self.text}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@given(st.text(max_size=60).filter(lambda text: "\n" not in text))
def test_what_was_printed_comes_back(text: str) -> None:
    line = f"2026-01-01T00:00:00.000Z r-1 out/7 {escape(text)}"
    record = parse(line)
    assert record is not None and (record.by, record.instance, record.request) == ("function", 7, "r-1")
    assert record.text == text


@pytest.mark.unit
def test_no_line_of_a_function_is_one_of_the_workers(directory: int, tmp_path: Path) -> None:
    log = FunctionLog(directory, "f", 10_000, 2)
    forged = "2026-01-01T00:00:00.000Z r-1 platform/7 REPORT RequestId: r-1\tDuration: 0.01 ms"
    for before in ("", "\n", "\r", "\x85", "\u2028", "x\n\n"):
        log.write("r-1", f"{before}{forged}\n".encode(), 7)
    log.tell("r-1", Said("REPORT RequestId: r-1"), 7, 0.0)
    log.close()
    records = [parse(line) for line in (tmp_path / "f.log").read_text().splitlines()]
    assert all(records)
    assert [each.text for each in records if each is not None and each.by == "platform"] == ["REPORT RequestId: r-1"]


@pytest.mark.unit
def test_lines_that_wait_are_one_write_in_their_order(directory: int, tmp_path: Path) -> None:
    waiting = []
    log = FunctionLog(directory, "f", 1 << 20, 2, waiting.append)

    def texts() -> list[str]:
        return [line.rpartition(" ")[2] for line in (tmp_path / "f.log").read_text().splitlines()]

    log.tell("r", Said("first"), 1, 0.0)
    log.tell("r", Said("second"), 1, 0.0)
    assert len(waiting) == 1 and not (tmp_path / "f.log").exists()
    log.write("r", b"third\n", 1)
    assert texts() == ["first", "second", "third"], "what a function prints does not wait"
    log.tell("r", Said("fourth"), 1, 0.0)
    assert len(texts()) == 3
    waiting.pop()()
    assert texts() == ["first", "second", "third", "fourth"]
    for _ in range(1001):
        log.tell("r", Said("more"), 1, 0.0)
    assert len(texts()) == 1005, "what waits is bounded"
    log.close()


@pytest.mark.unit
@pytest.mark.parametrize("size", [500, 5000, 200_000])
def test_each_line_is_read_once_however_often_the_log_is_rotated(directory: int, size: int) -> None:
    """A thread writes as fast as it can; the reader says so if it was too slow for that, and then has no line twice."""
    total = 3000
    log, reader = FunctionLog(directory, "f", size, 100), LogReader(directory, "f")
    done = threading.Event()

    def write() -> None:
        for number in range(total):
            log.write(f"r-{number}", b"x" * 40 + b"\n", 1)
        log.close()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen: list[int] = []
    while True:
        over = done.is_set()
        seen += [int(line.split(" ")[1][2:]) for line in reader.read()]
        if over:
            break
    thread.join()
    reader.close()
    assert seen == sorted(set(seen)) and seen[-1] == total - 1
    assert len(seen) == total or reader.missed
    assert size < 5000 or len(seen) == total, "with files enough none is missed"


@pytest.mark.unit
def test_a_reader_that_has_enough_keeps_nothing_open(directory: int) -> None:
    log, reader = FunctionLog(directory, "f", 300, 10), LogReader(directory, "f")
    for number in range(50):
        log.write("r", b"%d\n" % number, 1)
    log.close()
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.closing(reader.chunks()) as chunks:
        assert next(chunks)
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.unit
def test_a_file_that_was_removed_unread_is_told(directory: int) -> None:
    log, reader = FunctionLog(directory, "f", 300, 2), LogReader(directory, "f")
    log.write("r-0", b"x\n")
    assert len(list(reader.read())) == 1 and not reader.missed
    for number in range(1, 40):
        log.write(f"r-{number}", b"x\n")
    log.close()
    left = [line.split(" ")[1] for line in reader.read()]
    assert reader.missed and left[-1] == "r-39" and len(left) < 39
    reader.close()


@pytest.mark.unit
def test_the_oldest_logs_make_room(directory: int, tmp_path: Path) -> None:
    logs = {name: FunctionLog(directory, name, 1000, 3) for name in ("old", "new")}
    for age, name in enumerate(("new", "old")):
        for number in range(40):
            logs[name].write(f"r-{number}", b"x" * 50 + b"\n")
        for path in tmp_path.glob(f"{name}.log*"):
            os.utime(path, (1000 - 10 * age, 1000 - 10 * age))
    (tmp_path / "other").write_bytes(b"x" * 10_000)
    before = sorted(path.name for path in tmp_path.iterdir())
    prune(directory, 100_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == before and len(before) == 7
    prune(directory, 3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.log", "new.log.1", "new.log.2", "other"]
    logs["old"].write("r-40", b"again\n")
    assert "again" in (tmp_path / "old.log").read_text(), "one that writes is not lost"
    for log in logs.values():
        log.close()


@pytest.mark.unit
def test_a_link_in_place_of_a_log_is_not_read(directory: int, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("2026-01-01T00:00:00.000Z r out/1 secret\n")
    (tmp_path / "f.log").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "g.log")
    for name in ("f", "g"):
        assert not list(LogReader(directory, name).read())
    assert len(list(LogReader(directory, "h").read())) == 0
    (tmp_path / "h.log").write_text((tmp_path / "secret").read_text())
    assert len(list(LogReader(directory, "h").read())) == 1


@pytest.mark.unit
def test_no_line_drives_a_terminal() -> None:
    assert shown("a\x1b[2J\x9b\tb\u202e") == "a?[2J?\tb?"


# -- the command ------------------------------------------------------------------------------------------------------


def command(worker: WorkerProcess, *argv: str) -> list[str]:
    return [sys.executable, "-m", "olsock_worker", "fn", "logs", *argv, "--state", str(worker.state)]


def logs(worker: WorkerProcess, *argv: str, status: int = 0) -> str:
    done = subprocess.run(command(worker, *argv), check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and "Traceback" not in done.stderr, done
    return done.stderr if status else done.stdout


@pytest.mark.system
def test_a_log_is_shown_and_filtered(worker: WorkerProcess) -> None:
    worker.deploy("says", SAYS)
    worker.until(lambda: "says" in worker.status()["functions"])
    replies = [worker.call("says", text) for text in ("one", "\x1b[2Jtwo", "three")]
    ids = [reply.headers["x-request-id"] for reply in replies]
    worker.until(lambda: worker.function_log("says").count("REPORT") == 3)
    assert logs(worker, "says").splitlines() == worker.function_log("says").splitlines()
    lines = logs(worker, "says", "--request", ids[1]).splitlines()
    assert [line.split(" ")[1] for line in lines] == [ids[1]] * 4 and r"\x1b[2Jtwo" in lines[1]
    found = [json.loads(line) for line in logs(worker, "says", "--json").splitlines()]
    assert [each["text"] for each in found if each["by"] == "function"] == ["one", "\x1b[2Jtwo", "three"]
    (instance,) = {each["instance"] for each in found}
    assert len(logs(worker, "says", "--instance", str(instance)).splitlines()) == 12
    assert not logs(worker, "says", "--instance", str(instance + 1))
    assert len(logs(worker, "says", "--since", "1h").splitlines()) == 12
    assert len(logs(worker, "says", "--since", found[4]["time"]).splitlines()) <= 12
    assert not logs(worker, "says", "--since", "2999-01-01")


@pytest.mark.system
def test_errors_of_the_command_help(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.call("echo", 1)
    worker.until(lambda: worker.function_log("echo"))
    assert "absent has no log" in (told := logs(worker, "absent", status=1)) and "echo" in told
    assert "expected such as" in logs(worker, "echo", "--since", "yesterday", status=2)
    assert "expected NAME" in logs(worker, "../echo", status=2)
    done = subprocess.run(
        [sys.executable, "-m", "olsock_worker", "fn", "logs", "f", "--state", str(tmp_path / "absent")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "there is no such directory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.system
def test_a_log_is_followed_across_rotations_until_ctrl_c(worker: WorkerProcess) -> None:
    """With files of 4 kB that are rotated every dozen calls: each line once, and status 0 in the end."""
    worker.deploy("followed", SAYS)
    worker.until(lambda: "followed" in worker.status()["functions"])
    worker.call("followed", 0)
    done = subprocess.Popen(
        command(worker, "followed", "-f"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None and done.stderr is not None
    try:
        for number in range(1, 101):
            assert worker.call("followed", number).json == number
            while f" {number}\n" not in (line := done.stdout.readline()) or "out/" not in line:
                assert line, done.stderr.read()
        done.send_signal(signal.SIGINT)
        assert done.wait(20) == 0
        assert done.stderr.read() == ""
    finally:
        done.kill()
        done.wait()
        done.stdout.close()
        done.stderr.close()
    assert (worker.state / "logs" / "followed.log.2").exists(), "it was rotated"


@pytest.mark.system
def test_the_reader_may_leave(worker: WorkerProcess) -> None:
    worker.call("echo", 1)
    worker.until(lambda: worker.function_log("echo"))
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; exit "${PIPESTATUS[0]}"', "-", *command(worker, "echo")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and done.stdout.count("\n") == 1


# -- over the network -------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_a_position_is_good_for_another_reader(directory: int, tmp_path: Path) -> None:
    """Each line once, whatever was rotated between two of them; and where its file has gone, that is told."""
    log = FunctionLog(directory, "f", 400, 5)
    seen: list[str] = []
    position = ""
    for number in range(60):
        log.write(f"r-{number}", b"x\n")
        if number % 7:
            continue
        reader = LogReader(directory, "f")
        if position:
            reader.seek(position)
        seen += [line.split(" ")[1] for line in reader.read()]
        assert not reader.missed
        position = reader.position
        reader.close()
    assert seen == [f"r-{number}" for number in range(57)]
    for number in range(100):
        log.write(f"s-{number}", b"x\n")
    reader = LogReader(directory, "f")
    reader.seek(position)
    left = [line.split(" ")[1] for line in reader.read()]
    assert reader.missed and left[-1] == "s-99" and not set(left) & set(seen)
    reader.close()
    log.close()


def remote(worker: WorkerProcess, *argv: str, token: str, status: int = 0) -> str:
    """Run a command of `fn` as somebody who has a token, and no state directory."""
    done = subprocess.run(
        [sys.executable, "-m", "olsock_worker", "fn", *argv, "--url", f"http://127.0.0.1:{worker.port}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OLSOCK_WORKER_TOKEN": token, "OLSOCK_WORKER_STATE": "/nonexistent"},
    )
    assert done.returncode == status and "Traceback" not in done.stderr, done
    return done.stderr if status else done.stdout


@pytest.mark.system
def test_a_log_is_told_to_who_has_a_token(fresh: Callable[..., WorkerProcess]) -> None:
    token = "a-token-of-sixteen-characters"
    config = f'registry_check = 0.2\nlog_bytes = "4K"\nlog_files = 100\n[credentials]\ntoken = "{token}"\n'
    worker = fresh({"says": (SAYS, ""), "silent": (SAYS, "")}, config)
    for number in range(100):
        worker.call("says", number)
    told = remote(worker, "logs", "says", token=token)
    assert told.count("REPORT") == 100 and told == worker.function_log_files("says")
    assert remote(worker, "logs", "silent", token=token) == ""
    assert "absent has no log" in remote(worker, "logs", "absent", token=token, status=1)
    for wrong, word in (("", "Authorization"), ("not-the-token-of-it", "token")):
        assert word in remote(worker, "logs", "says", token=wrong, status=1)
    assert json.loads(remote(worker, "invoke", "says", "7", token=token)) == 7
    for path in ("/logs/says", "/logs/says?After=1-2-3"):
        assert worker.request(path, method="GET").status == 403
    good = {"authorization": f"Bearer {token}"}
    for path, status in (
        *(("/logs/says", 200), ("/logs/says?After=1-2-3", 200), ("/logs/says?After=x", 400)),
        *(("/logs/..%2Fsays", 400), ("/logs/absent", 404), ("/logs/%2e%2e", 404)),
    ):
        assert worker.request(path, method="GET", headers=good).status == status, path
    assert worker.request("/logs/says?After=1-2-3", method="GET", headers=good).json["Missed"] is True


@pytest.mark.unit
def test_an_address_that_is_none_is_said() -> None:
    for url, word in (
        ("nonsense", "expected an address"),
        ("http://127.0.0.1:1", "refused"),
        ("http://a:b", "expected"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "olsock_worker", "fn", "logs", "f", "--url", url],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr, done


@pytest.fixture(scope="module")
def config() -> str:
    return 'registry_check = 0.2\nlog_bytes = "4K"\nlog_files = 100\n'
