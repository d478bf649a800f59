"""Every block of the README is run, in order, in one empty directory, and shows what the README shows."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import ROOT, Block, blocks
from support.require import require

pytestmark = [pytest.mark.system, pytest.mark.cgroup]

README = ROOT / "README.md"
ELSEWHERE = {"./scripts/demo\n./scripts/test\n"}  # tests/system/test_demo.py, and what you are looking at
COMMANDS = ("olsock", "olsock-worker")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory whose functions ordinary ids can read."""
    tmp_path.chmod(0o755)
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in COMMANDS:
        found = shutil.which(name, path=os.path.dirname(sys.executable))
        assert found, f"{name} is not beside {sys.executable}"
        (bin / name).symlink_to(found)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "PYTHONWARNINGS": "error",
    }


def shell(place: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", text], cwd=place, env=environment(place), capture_output=True, text=True, timeout=60, check=False
    )


def readme() -> list[tuple[Block, Block | None]]:
    """Each block that is run, with the block of its output if one follows."""
    found = blocks(README)
    return [
        (block, following if following is not None and following.language == "text" else None)
        for block, following in zip(found, [*found[1:], None], strict=True)
        if block.language != "text" and block.text not in ELSEWHERE
    ]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {block.language for block, _ in readme()} == {"sh", "python", "console"}
    assert not [block for block in blocks(README) if block.language not in ("sh", "python", "console", "text")]


def prepare(place: Path) -> None:
    """What the README makes before it uses it: the blocks that only make files."""
    for block, output in readme():
        if block.language == "sh" and output is None:
            done = shell(place, f"set -e\n{block.text}")
            assert done.returncode == 0, f"line {block.line}: {done.stderr}"


@pytest.mark.parametrize(
    ("block", "output"), [pair for pair in readme() if pair[0].language == "python"], ids=lambda each: f"{each.line}"
)
def test_python(place: Path, block: Block, output: Block | None) -> None:
    prepare(place)
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert output is not None, f"line {block.line}: what it prints is not shown"
    assert done.stdout == output.text


def _console() -> list[tuple[str, str]]:
    """Commands of the console blocks, each with the lines that are shown below it."""
    found: list[tuple[str, str]] = []
    for block, _ in readme():
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                found.append((command, shown))
    return found


@pytest.mark.parametrize(("command", "shown"), _console(), ids=[command for command, _ in _console()])
def test_console(place: Path, command: str, shown: str) -> None:
    if shown.startswith("mount:"):
        # util-linux's later versions add a line of advice
        first = shell(place, f"{{ {command}; }} 2>&1").stdout.splitlines()[0]
        assert f"{first}\n" == shown
        return
    assert shell(place, f"{{ {command}; }} 2>&1").stdout == shown


def test_console_shows_refusals_that_are_ours(place: Path) -> None:
    """Controls: outside of a sandbox the same commands can do what the README shows refused."""
    assert shell(place, "cat /etc/shadow").returncode == 0
    assert os.access("/usr", os.W_OK)


def _with_workers() -> list[tuple[Block, Block | None]]:
    return [(block, output) for block, output in readme() if "olsock-worker up" in block.text]


def test_the_worker_in_five_lines_has_five() -> None:
    assert len(_with_workers()[0][0].text.splitlines()) == 5


@pytest.mark.parametrize(("block", "output"), _with_workers(), ids=lambda each: f"line-{each.line}")
def test_worker(place: Path, block: Block, output: Block | None) -> None:
    """As it stands, on another port, as 5000 may be taken."""
    require(shutil.which("curl"), "needs curl")
    assert output is not None
    prepare(place)
    text = block.text.replace("5000", str(_free_port()))
    try:
        done = shell(place, f"{{\n{text}}} 2>worker.log")
        assert done.returncode == 0, (place / "worker.log").read_text()
        assert done.stdout == output.text
    finally:
        for pid in _workers(place):  # only if it did not get as far as its last line
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _workers(place: Path) -> Iterator[int]:
    """Brokers that this test has started: they have its state directory on their command line and it as theirs."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if shlex.join(words).count("olsock-worker") and os.readlink(entry / "cwd") == str(place):
                yield int(entry.name)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
