"""A zygote dies or cannot fork: handlers that it made live on, and whoever forks next is told (attack 73)."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import olsock
from olsock import kits
from olsock.errors import InvocationError, KernelError, ZygoteError
from support.eventually import eventually

pytestmark = pytest.mark.fault


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text("import os\ndef f(event): return [event, os.getpid()]")
    return tmp_path / "code"


@pytest.fixture
def zygote() -> Iterator[olsock.Zygote]:
    with olsock.Zygote(spare=0) as zygote:
        yield zygote


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_handlers_outlive_their_zygote(zygote, code, number):
    with zygote.fork(code) as one, zygote.fork(code) as two:
        assert one.invoke(1) == [1, 1]
        os.kill(zygote.pid, number)
        assert eventually(lambda: not zygote.alive)
        assert one.invoke(2) == [2, 1]
        assert two.invoke(3) == [3, 1]
        one.pause()
        one.resume()
        assert one.invoke(4) == [4, 1]
        with pytest.raises(ZygoteError, match="gone"):
            zygote.fork(code)
        assert one.alive and two.alive


def test_the_end_of_a_handler_is_told_even_without_its_zygote(zygote, code):
    (code / "f.py").write_text("import os\ndef f(event): os._exit(5)")
    with zygote.fork(code) as fn:
        fn.wait_ready()
        os.kill(zygote.pid, signal.SIGKILL)
        with pytest.raises(InvocationError, match="exit status 5"):
            fn.invoke()


def test_handlers_do_not_outlive_init(zygote, code):
    with zygote.fork(code) as fn:
        fn.wait_ready()
        os.kill(zygote._domain.box.pid, signal.SIGKILL)
        assert eventually(lambda: not fn.alive)
        assert eventually(lambda: not zygote.alive)
        with pytest.raises(InvocationError) as caught:
            fn.invoke()
        assert caught.value.kind == "crash"
        with pytest.raises(olsock.OlsockError):
            zygote.fork(code)


def test_a_dead_zygote_can_be_closed_with_handlers_alive(zygote, code):
    fn = zygote.fork(code)
    os.kill(zygote.pid, signal.SIGKILL)
    zygote.close()
    assert not fn.alive


def test_a_zygote_beside_a_dead_one_goes_on(zygote, code):
    with olsock.Zygote(spare=0) as other:
        os.kill(zygote.pid, signal.SIGKILL)
        with other.fork(code) as fn:
            assert fn.invoke(1) == [1, 1]


def test_a_stopped_zygote_is_given_up(zygote, code, monkeypatch):
    monkeypatch.setattr("olsock.forks.TIMEOUT", 0.2)
    os.kill(zygote.pid, signal.SIGSTOP)
    with pytest.raises(ZygoteError, match="was killed"):
        zygote.fork(code)
    assert eventually(lambda: not zygote.alive)


# -- forks that fail ---------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Put the null device in the place of one of the next kit's descriptors."""
    take = kits.Kits.take

    def taken(self: kits.Kits, spec: object) -> kits.Kit:
        kit = take(self, spec)
        os.close(getattr(kit, name))
        setattr(kit, name, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        monkeypatch.setattr(kits.Kits, "take", take)
        return kit

    monkeypatch.setattr(kits.Kits, "take", taken)


def test_a_clone_that_fails_is_told_and_the_next_works(zygote, code, monkeypatch):
    spoil(monkeypatch, "cgroup")
    with pytest.raises(ZygoteError, match="clone3"):
        zygote.fork(code)
    assert zygote.alive
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == [1, 1]


@pytest.mark.parametrize(("name", "step"), [("tmp", "move_mount"), ("shm", "move_mount"), ("netns", "setns")])
def test_a_set_up_that_fails_is_told_with_its_step_and_the_next_works(zygote, code, monkeypatch, name, step):
    spoil(monkeypatch, name)
    with pytest.raises(KernelError) as caught:
        with zygote.fork(code) as fn:
            fn.invoke(1)
    assert caught.value.step.startswith(step)
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == [1, 1]


def test_code_that_vanishes_is_told_and_the_next_works(zygote, code, monkeypatch):
    parsed = olsock.zygote.FunctionSpec.parse

    def parse_and_remove(**options: object) -> object:
        spec = parsed(**options)
        shutil.rmtree(code)
        return spec

    with monkeypatch.context() as patch:
        patch.setattr(olsock.zygote.FunctionSpec, "parse", parse_and_remove)
        with pytest.raises(KernelError) as caught:
            zygote.fork(code)
    assert (caught.value.step, caught.value.path) == ("open_tree", str(code))
    code.mkdir()
    (code / "f.py").write_text("def f(event): return event")
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == 1


@pytest.mark.cgroup
def test_handlers_do_not_count_against_the_limit_of_their_zygote(code):
    with olsock.Zygote(pids=2, spare=0) as zygote:  # two: on version 1 a handler is born in it, and moves at once
        with zygote.fork(code) as one, zygote.fork(code) as two, zygote.fork(code) as three:
            assert [fn.invoke(1) for fn in (one, two, three)] == [[1, 1]] * 3


@pytest.mark.cgroup
def test_a_handler_that_has_too_little_memory_to_start_is_out_of_memory(zygote, code):
    (code / "f.py").write_text("x = bytearray(b'x') * (30 << 20)\ndef f(event): return event")
    fn = zygote.fork(code, memory="8M")
    with pytest.raises(InvocationError) as caught:
        fn.invoke(1)
    assert caught.value.kind == "oom"
    with zygote.fork(code, memory="128M") as fn:
        assert fn.invoke(1) == 1
