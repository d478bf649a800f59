"""Programs that run while the caller does something else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

import olsock
from olsock import DEVNULL, PIPE, STDOUT, rootfs
from olsock.deadline import Deadline
from support.eventually import eventually

pytestmark = pytest.mark.system

PYTHON = rootfs.host_python()


@pytest.fixture
def box() -> Iterator[olsock.Sandbox]:
    with olsock.Sandbox() as box:
        yield box


def test_a_conversation(box):
    with box.popen(["cat"], stdin=PIPE) as cat:
        for line in (b"one\n", b"two\n"):
            cat.stdin.write(line)
            assert cat.stdout.read(len(line)) == line
        assert cat.poll() is None and cat.returncode is None
        cat.stdin.close()
        assert cat.wait(30) == 0
        assert cat.returncode == cat.poll() == cat.wait() == 0


def test_streams_can_be_joined_dropped_or_given(box, tmp_path):
    both = ["sh", "-c", "echo out; echo err >&2"]
    with box.popen(both, stderr=STDOUT) as child:
        assert child.stderr is None
        assert child.stdout.read().split() == [b"out", b"err"]
        child.wait(30)
    with box.popen(both, stdout=DEVNULL, stderr=DEVNULL) as child:
        assert (child.stdin, child.stdout, child.stderr) == (None, None, None)
        assert child.wait(30) == 0
    with open(tmp_path / "out", "wb") as file, box.popen(both, stdout=file.fileno()) as child:
        child.wait(30)
    assert (tmp_path / "out").read_bytes() == b"out\n"


@pytest.mark.parametrize("which", ["stdin", "stdout"])
def test_a_stream_that_makes_no_sense_is_named(box, which):
    with pytest.raises(olsock.SpecError, match=which):
        box.popen(["true"], **{which: STDOUT})


def test_waiting_has_a_deadline(box):
    with box.popen(["sleep", "1000"]) as child:
        with pytest.raises(olsock.DeadlineError):
            child.wait(0.01)
        assert child.poll() is None


def test_signals_reach_the_program_and_its_group(box):
    with box.popen(["sh", "-c", "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done"]) as child:
        assert child.stdout.read(6) == b"ready\n"
        child.terminate()
        assert child.wait(30) == 7
        assert child.stdout.read() == b"caught\n"
    with box.popen(["sh", "-c", "sleep 1000; :"]) as child:
        assert eventually(lambda: box.stats().pids == 3)
        child.kill()
        assert child.wait(30) == -signal.SIGKILL
        assert eventually(lambda: box.stats().pids == 1)


def test_a_signal_to_a_program_that_has_ended_does_nothing(box):
    with box.popen(["true"]) as child:
        child.wait(30)
        child.kill()
        child.send_signal(signal.SIGUSR1)


def test_leaving_the_context_kills(box):
    with box.popen(["sh", "-c", "trap '' TERM; sleep 1000"]):
        assert eventually(lambda: box.stats().pids >= 2)
    assert eventually(lambda: box.stats().pids == 1)


def test_closing_the_sandbox_ends_its_programs(box):
    child = box.popen(["sleep", "1000"])
    box.close()
    with pytest.raises(olsock.SandboxDeadError):
        child.wait(30)
    child.close()
    child.close()


def test_programs_end_in_any_order(box):
    first, second = box.popen(["sh", "-c", "read x; exit 1"], stdin=PIPE), box.popen(["sh", "-c", "exit 2"])
    with first, second:
        assert second.wait(30) == 2
        first.stdin.close()
        assert first.wait(30) == 1


def test_a_program_sees_its_own_pid_as_the_library_does(box):
    with box.popen(["sh", "-c", "echo $$"]) as child:
        assert int(child.stdout.read()) == child.pid
        child.wait(30)


def test_each_program_is_a_session_of_its_own_without_a_terminal(box):
    script = "import os; print(os.getpid() == os.getsid(0) == os.getpgrp()); os.open('/dev/tty', 0)"
    done = box.run([PYTHON, "-c", script])
    assert done.stdout == b"True\n"
    assert b"No such" in done.stderr


def test_signals_that_the_host_ignores_or_blocks_are_not_so_inside(box):
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with olsock.Sandbox() as fresh:
            lines = fresh.run(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]).stdout.split()
    finally:
        signal.signal(signal.SIGPIPE, before[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, before[1])
    assert lines[1::2] == [b"0" * 16, b"0" * 16]


def test_an_interrupt_ends_a_program(box):
    with box.popen(["sleep", "1000"]) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == -signal.SIGINT


def test_orphans_are_reaped(box):
    box.run(["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.01 &); done"], check=True)
    assert eventually(lambda: box.stats().pids == 1)


def test_more_orphans_than_anybody_reads_do_not_stop_init(box):
    box.run(
        [PYTHON, "-c", "import os\nfor i in range(3000):\n if os.fork() == 0:\n  os.fork(); os._exit(0)\n os.wait()"]
    )
    assert box.run(["echo", "here"], timeout=60).stdout == b"here\n"


def test_no_descriptor_of_the_host_is_inherited(box, tmp_path):
    with open(tmp_path / "file", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with olsock.Sandbox() as fresh:
            found = fresh.run(["sh", "-c", "ls -l /proc/$$/fd"]).stdout.decode()
    assert str(tmp_path) not in found
    assert len(found.splitlines()) == 4


def test_a_program_s_end_is_not_swallowed_by_a_wait_for_another():
    """Whoever waits reads for all of a sandbox: the news of this thread's program may come to another thread."""
    with olsock.Sandbox() as box, box.popen(["sleep", "1000"]) as other:
        for _ in range(20):
            done = threading.Event()

            def run(done: threading.Event = done) -> None:
                box.run(["true"])
                done.set()

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            waited = Deadline(20)
            while not done.is_set():
                assert other.poll() is None
                assert not waited.passed, "the end of a program was never told"
            thread.join()
