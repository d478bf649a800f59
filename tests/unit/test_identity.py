"""Blocks of ids: no two holders at once, freed by release and by death, reused late, never one that was given away."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock import identity
from olsock.errors import KernelError
from olsock.identity import COUNT, FIRST, LAST, SIZE, Ids, reserved

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> str:
    return os.fspath(tmp_path / "run")


@pytest.fixture
def ids(run: str) -> Iterator[Ids]:
    made = Ids(run, subordinate=())
    yield made
    made.close()


def claim_elsewhere(run: str, count: int) -> subprocess.Popen[str]:
    """Claim blocks in another process that then waits; its first line of output names them."""
    code = (
        "import sys; from olsock.identity import Ids; ids = Ids(sys.argv[1], subordinate=())\n"
        "print(*[ids.claim().base for _ in range(int(sys.argv[2]))], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, run, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(base) for base in process.stdout.readline().split()]


def test_the_range_is_the_one_that_nobody_owns() -> None:
    assert (FIRST, LAST) == (1879048192, 2147352575)
    assert FIRST % SIZE == 0 and FIRST + COUNT * SIZE == LAST + 1
    assert LAST < 2**31 - 65536, "ids of 2**31 and above are negative to some programs"


def test_claims_are_whole_blocks_apart(ids: Ids) -> None:
    blocks = [ids.claim() for _ in range(50)]
    bases = {block.base for block in blocks}
    assert len(bases) == 50 and all((base - FIRST) % SIZE == 0 for base in bases)
    assert all(block.base > FIRST and block.base + block.size - 1 <= LAST for block in blocks)


def test_block_0_is_never_claimed(ids: Ids) -> None:
    assert FIRST not in {ids.claim().base for _ in range(COUNT - 1)}
    with pytest.raises(KernelError, match="in use"):
        ids.claim()


def test_a_released_block_is_the_last_to_be_claimed_again(ids: Ids) -> None:
    with ids.claim() as block:
        base = block.base
    later = []
    for _ in range(COUNT - 1):
        with ids.claim() as other:
            later.append(other.base)
    assert later.index(base) == COUNT - 2


def test_the_order_goes_on_across_processes(ids: Ids, run: str) -> None:
    last = [ids.claim().base for _ in range(3)][-1]
    with claim_elsewhere(run, 1) as process:
        assert first_line(process) == [last + SIZE]
        process.communicate()


def test_releasing_twice_does_not_free_the_next_holder(ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ids.claim()
    old.release()
    monkeypatch.setattr(Ids, "_next", lambda self: (old.base - FIRST) // SIZE)
    new = ids.claim()
    assert new.base == old.base
    old.release()
    assert ids.claim().base != new.base


def test_another_process_never_gets_a_held_block(ids: Ids, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim_elsewhere(run, 20) as process:
        theirs = first_line(process)
        monkeypatch.setattr(Ids, "_next", lambda self: (theirs[0] - FIRST) // SIZE)
        assert ids.claim().base not in theirs
        process.communicate()


def test_death_frees_blocks(ids: Ids, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim_elsewhere(run, 1) as process:
        (theirs,) = first_line(process)
        monkeypatch.setattr(Ids, "_next", lambda self: (theirs - FIRST) // SIZE)
        held = ids.claim()
        assert held.base != theirs, "the control: while it lives, it holds it"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert ids.claim().base == theirs


def test_threads_share_nothing(ids: Ids) -> None:
    def cycle(_: int) -> list[int]:
        bases = []
        for _ in range(20):
            with ids.claim() as block:
                bases.append(block.base)
        return bases

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: ids.claim().base, range(100)))
        cycled = [base for bases in pool.map(cycle, range(8)) for base in bases]
    assert len(set(kept)) == 100 and not set(kept) & set(cycled)


def test_a_fork_has_claims_of_its_own_and_frees_none_of_its_parents(ids: Ids, run: str) -> None:
    mine = ids.claim()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mine.release()  # not the child's to give
            number = (mine.base - FIRST) // SIZE
            os.pwrite(ids._open(), number.to_bytes(4, "little"), 0)  # have it try the parent's block first
            os.write(writer, str(ids.claim().base).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0
    with open(reader) as pipe:
        assert int(pipe.read()) != mine.base
    with claim_elsewhere(run, COUNT - 2) as process:
        assert mine.base not in first_line(process)
        process.communicate()


def test_the_file_and_its_directory_are_ours_alone(ids: Ids, run: str) -> None:
    ids.claim()
    assert stat.S_IMODE(os.stat(f"{run}/ids").st_mode) == 0o600
    assert not stat.S_IMODE(os.stat(run).st_mode) & 0o022


def test_a_directory_that_others_may_write_is_not_used(ids: Ids, run: str) -> None:
    os.mkdir(run)
    os.chmod(run, 0o777)
    with pytest.raises(KernelError, match="others may write"):
        ids.claim()


def test_a_link_in_place_of_the_directory_is_not_followed(ids: Ids, run: str, tmp_path: Path) -> None:
    os.symlink(tmp_path, run)
    with pytest.raises(KernelError):
        ids.claim()
    assert not (tmp_path / "ids").exists()


class TestSubordinateIds:
    def test_a_range_that_somebody_was_given_is_left_out(self, run: str, tmp_path: Path) -> None:
        file = tmp_path / "subuid"
        file.write_text(f"# all but one\nalice:100000:65536\nbob:{FIRST}:{(COUNT - 1) * SIZE - 1}\n")
        ids = Ids(run, subordinate=[os.fspath(file), os.fspath(tmp_path / "missing")])
        try:
            assert ids.claim().base == LAST + 1 - SIZE
            with pytest.raises(KernelError, match="in use"):
                ids.claim()
        finally:
            ids.close()

    @pytest.mark.parametrize(
        ("line", "blocks"),
        [
            (f"a:{FIRST}:1", {0}),
            (f"a:{FIRST + SIZE - 1}:2", {0, 1}),
            (f"a:{FIRST - 1}:1", set()),
            (f"a:{FIRST - 1}:2", {0}),
            (f"a:{LAST}:100000", {COUNT - 1}),
            (f"a:{LAST + 1}:1", set()),
            (f"a:{FIRST}:0", set()),
            (f"# a:{FIRST}:1", set()),
            ("a:b:c", set()),
            ("", set()),
        ],
    )
    def test_lines(self, line: str, blocks: set[int]) -> None:
        assert reserved(line) == blocks

    @given(st.integers(0, 2**32), st.integers(0, 2**28))
    def test_a_block_is_reserved_just_if_it_overlaps(self, start: int, count: int) -> None:
        found = reserved(f"x:{start}:{count}\n")
        for number in {0, COUNT - 1, *list(found)[:3], (start - FIRST) // SIZE, (start + count - FIRST) // SIZE}:
            if 0 <= number < COUNT:
                low = FIRST + number * SIZE
                overlaps = count > 0 and start < low + SIZE and start + count > low
                assert (number in found) is overlaps

    @given(st.text())
    def test_any_file_can_be_read(self, text: str) -> None:
        assert reserved(text) <= set(range(COUNT))


def test_the_library_uses_the_host_wide_file() -> None:
    assert identity._ids._path == "/run/olsock/ids"
