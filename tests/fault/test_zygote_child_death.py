"""Zygotes forked from zygotes, their inits, handlers that wait, and the spawner die at any moment: nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import olsock
from olsock import host, leftovers
from olsock.errors import InvocationError, ZygoteError
from olsock.zygote import Zygote
from support.eventually import eventually, passes

pytestmark = pytest.mark.fault


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text("import os\ndef f(event): return [event, os.getpid()]")
    return tmp_path / "code"


@pytest.fixture
def parent() -> Iterator[Zygote]:
    with olsock.Zygote(descendants=4, spare=0) as zygote:
        yield zygote


def entries(zygote: Zygote) -> list[str]:
    return sorted(path.name for path in Path(host.current().tree.paths[0], zygote.name).iterdir() if path.is_dir())


# -- when it is there --------------------------------------------------------------------------------------------------


def test_the_end_of_a_childs_init_ends_what_is_in_it_and_no_more(parent, code):
    with parent.child(descendants=1, spare=0) as child, parent.child(spare=0) as sibling:
        with (
            child.child(spare=0) as below,
            child.fork(code) as one,
            below.fork(code) as two,
            parent.fork(code) as three,
        ):
            for fn in (one, two, three):
                fn.wait_ready()
            os.kill(child._domain.box.pid, signal.SIGKILL)
            assert eventually(lambda: not (child.alive or below.alive or one.alive or two.alive))
            for fn in (one, two):
                with pytest.raises(InvocationError) as caught:
                    fn.invoke()
                assert caught.value.kind == "crash"
            for zygote in (child, below):
                with pytest.raises(olsock.OlsockError):
                    zygote.fork(code)
            assert three.invoke(1) == [1, 1]
        with sibling.fork(code) as fn:
            assert fn.invoke(2) == [2, 1]
        child.close()
        with parent.child(descendants=1, spare=0) as another, another.fork(code) as fn:
            assert fn.invoke(3) == [3, 1]


def test_the_end_of_the_outermost_init_ends_everything(parent, code):
    child = parent.child(descendants=1, blanks=1)
    below = child.child(spare=0)
    fn = below.fork(code)
    fn.wait_ready()
    os.kill(parent._domain.box.pid, signal.SIGKILL)
    assert eventually(lambda: not [each for each in (parent, child, below, fn) if each.alive])
    with pytest.raises(olsock.OlsockError):
        parent.child(spare=0)
    with pytest.raises(olsock.OlsockError):
        child.child(spare=0)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1), (1, 0), (0, 1, 2)])
def test_handlers_outlive_whichever_zygotes(parent, code, victims):
    with parent.child(descendants=1, spare=0) as child, child.child(spare=0) as below:
        zygotes = [parent, child, below]
        functions = [zygote.fork(code) for zygote in zygotes]
        for number in victims:
            os.kill(zygotes[number].pid, signal.SIGKILL)
            assert eventually(lambda number=number: not zygotes[number].alive)
        for number, fn in enumerate(functions):
            assert fn.invoke(number) == [number, 1]
            fn.pause()
            fn.resume()
            assert fn.invoke(number) == [number, 1]
        for number, zygote in enumerate(zygotes):
            if number in victims:
                with pytest.raises(ZygoteError, match="gone"):
                    zygote.fork(code)
            else:
                with zygote.fork(code) as fn:
                    assert fn.invoke(1) == [1, 1]
        for fn in functions:
            fn.close()


def test_dead_ones_can_be_closed_in_any_order(code):
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        parent = olsock.Zygote(descendants=2, spare=0)
        child = parent.child(descendants=1, spare=0)
        zygotes = [parent, child, child.child(spare=0)]
        fn = zygotes[2].fork(code)
        for number in order:
            os.kill(zygotes[number].pid, signal.SIGKILL)
        for number in order:
            zygotes[number].close()
        assert not fn.alive
        fn.close()


# -- while it is born --------------------------------------------------------------------------------------------------


def victims(parent: Zygote, child: Zygote) -> dict[str, int]:
    box = child._domain.box
    return {"parent": parent.pid, "init": 0 if box is None else box.pid, "child": child.pid}


@pytest.mark.parametrize("victim", ["parent", "init", "child"])
@pytest.mark.parametrize("stage", ["_fork_from", "_prepare", "_receive_report"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_birth_in_which_somebody_ends_is_told_or_succeeds(code, monkeypatch, stage, victim, number):
    for module in ("olsock.zygote.BIRTH_TIMEOUT", "olsock.forks.TIMEOUT", "olsock.box.TIMEOUT"):
        monkeypatch.setattr(module, 1.0)
    with olsock.Zygote(descendants=1, spare=0) as parent:
        spoil_birth(parent, code, monkeypatch, stage, victim, number)


def spoil_birth(
    parent: Zygote, code: Path, monkeypatch: pytest.MonkeyPatch, stage: str, victim: str, number: int
) -> None:
    real: Callable[..., object] = getattr(Zygote, stage)
    hit: list[int] = []

    def harmed(self: Zygote, *args: object) -> object:
        pid = victims(parent, self)[victim] if self is not parent else 0
        if pid and not hit:
            hit.append(pid)
            os.kill(pid, number)
        return real(self, *args)

    monkeypatch.setattr(Zygote, stage, harmed)
    before = entries(parent)
    with contextlib.suppress(olsock.OlsockError), parent.child(spare=0, timeout=2.0) as child:
        child.fork(code).close()
    monkeypatch.undo()
    assert hit or (stage, victim) == ("_fork_from", "child")  # there is none yet
    assert eventually(lambda: entries(parent) == before)
    if victim == "parent" and (number == signal.SIGKILL or stage == "_fork_from"):  # one that does not answer is killed
        assert eventually(lambda: not parent.alive)
    elif victim == "parent":
        os.kill(parent.pid, signal.SIGCONT)
    if parent.alive:
        with parent.child(spare=0) as child, child.fork(code) as fn:
            assert fn.invoke(1) == [1, 1]
    assert eventually(lambda: entries(parent) == before)


def test_any_of_its_processes_is_killed_at_any_moment(parent, code):
    """Blindly, by a thread that does not know what is being done; parents are left, or there would be nothing to do."""
    done, stop = [0, 0], threading.Event()
    outermost = {parent.pid, parent._domain.box.pid}

    def kill() -> None:
        group = Path(host.current().tree.paths[0], parent.name)
        while not stop.is_set():
            with contextlib.suppress(OSError):  # it changes as we look
                for procs in group.rglob("cgroup.procs"):
                    for pid in {int(line) for line in procs.read_text().split()} - outermost - {0}:
                        os.kill(pid, signal.SIGKILL)
            passes(0.003)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(60):
            try:
                with parent.child(blanks=1) as child, child.fork(code) as fn:
                    assert fn.invoke(1) == [1, 1]
                done[0] += 1
            except olsock.OlsockError:
                done[1] += 1
    finally:
        stop.set()
        killer.join()
    assert done[1]
    with parent.child(spare=0) as child, child.fork(code) as fn:
        assert fn.invoke(1) == [1, 1]


# -- handlers that wait ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
def test_one_that_is_killed_as_it_gets_its_function(code, monkeypatch, moment):
    finish = olsock.forks.finish

    def harmed(kit: object, *args: object) -> None:
        (pid,) = kit.leaf.pids()
        if moment == "before":
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: not psutil.pid_exists(pid))
        finish(kit, *args)
        if moment == "after":
            os.kill(pid, signal.SIGKILL)

    with olsock.Zygote(blanks=1) as zygote:
        assert eventually(lambda: zygote.waiting == 1)
        monkeypatch.setattr("olsock.forks.finish", harmed)
        with zygote.fork(code) as fn:
            if moment == "before":
                assert fn.invoke(1) == [1, 1]
            else:
                with pytest.raises(InvocationError, match="SIGKILL"):
                    fn.invoke(1)
        monkeypatch.undo()
        assert eventually(lambda: zygote.waiting == 1)
        with zygote.fork(code) as fn:
            assert fn.invoke(2) == [2, 1]


def test_a_zygote_that_is_killed_while_it_refills(code):
    for _ in range(5):
        with olsock.Zygote(blanks=8) as zygote:
            os.kill(zygote.pid, signal.SIGKILL)
            with contextlib.suppress(olsock.OlsockError):
                while True:
                    zygote.fork(code).close()


# -- the spawner, the library ------------------------------------------------------------------------------------------

SPAWNER = """
import os, signal, sys
import olsock
from olsock import host, trust

def kill():
    spawner = host.current().spawner
    os.kill(spawner.pid, signal.SIGKILL)
    while spawner.alive:
        pass

def serves(zygote):
    with zygote.fork(sys.argv[1]) as fn:
        return fn.invoke(1)[0] == 1

class Killing(trust.Box):
    def __init__(self, *args, **kwargs):
        kill()
        super().__init__(*args, **kwargs)

box = trust.Box
with olsock.Zygote(descendants=2, blanks=1) as parent, parent.child(blanks=1) as child:
    trust.Box = Killing
    try:
        parent.child()
    except olsock.OlsockError as error:
        print("told:", error)
    trust.Box = box
    assert serves(parent) and serves(child)  # neither needs it
    with parent.child() as another:  # and there is a new one
        assert serves(another)
    kill()
    assert serves(parent) and serves(child)
host.close()
"""

LIBRARY = """
import os, signal, sys
import olsock
parent = olsock.Zygote(descendants=2, blanks=2)
child = parent.child(descendants=1, blanks=2)
below = child.child(blanks=2)
functions = [zygote.fork(sys.argv[1]) for zygote in (parent, child, below)]
for fn in functions:
    fn.invoke(1)
print(*[each.pid for each in (parent, child, below, *functions)], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_spawner_ends_between(code):
    argv = [sys.executable, "-c", SPAWNER, str(code)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("told:"), done.stdout + done.stderr


def test_the_library_ends_with_all_of_it(code):
    argv = [sys.executable, "-c", LIBRARY, str(code)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        pids = [int(word) for word in output.split()]
        assert len(pids) == 6
        assert eventually(lambda: not any(map(psutil.pid_exists, pids)))
    leftovers.clean()
    assert not [entry for entry in leftovers.list_instances() if entry.pid == process.pid]
