"""Too many processes, too much memory, no end (attacks 61 to 63, 70)."""

from __future__ import annotations

import pytest

import olsock
from olsock.errors import InvocationError
from support.eventually import eventually
from support.places import HANDLERS, PYTHON, open_place

pytestmark = [pytest.mark.attack, pytest.mark.cgroup]

MIB = 1 << 20
PIDS = 20


def stats(place):
    return place.inside.stats()


# -- 61: processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fork", "spawn", "thread"])
def test_processes_and_threads_are_counted(open_place, way):
    made, why = open_place(pids=PIDS)("forks", way, 1000)
    assert why == "EAGAIN"
    assert PIDS - 4 <= made < PIDS  # init and the program are counted too


@pytest.mark.parametrize("way", ["fork", "spawn", "thread"])
def test_with_a_higher_limit_there_are_more(open_place, way):
    assert open_place(pids=2 * PIDS)("forks", way, PIDS) == [PIDS, "enough"]


def test_a_fork_bomb_ends_with_its_sandbox():
    with olsock.Sandbox(pids=64, binds=[f"{HANDLERS}:/var/task"]) as box:
        with box.popen([PYTHON, "-ISB", "/var/task/probes.py"], stdin=olsock.PIPE) as bomb:
            bomb.stdin.write(b'{"probe": "bomb"}')
            bomb.stdin.close()
            assert eventually(lambda: box.stats().pids == 64)
            assert bomb.poll() is None


@pytest.mark.parametrize("kind", ["function", "zygote"])
def test_a_fork_bomb_ends_with_its_invocation(kind):
    with open_place(kind, pids=64) as place:
        with pytest.raises(InvocationError) as caught:
            place.inside.invoke({"probe": "bomb"}, timeout=0.3)
        assert caught.value.kind == "timeout"


def test_a_fork_bomb_leaves_the_neighbour_alone():
    with olsock.Sandbox(pids=64) as box, olsock.Sandbox() as neighbour:
        with box.popen(["sh", "-c", "bomb() { bomb | bomb & }; bomb"]):
            assert neighbour.run(["echo", "here"], timeout=60).stdout == b"here\n"


# -- 62: memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["bytes", "mmap", "children"])
def test_a_handler_out_of_memory_is_told_as_that(way):
    for kind in ("function", "zygote"):
        with open_place(kind, memory="48M") as place:
            assert place("cwd")
            with pytest.raises(InvocationError) as caught:
                place("swallow", way, 96)
            assert caught.value.kind == "oom", kind
            assert not place.inside.alive


@pytest.mark.parametrize("way", ["bytes", "mmap"])
def test_a_program_out_of_memory_is_told_as_that(way):
    event = f'{{"probe": "swallow", "args": ["{way}", 96]}}'.encode()
    with olsock.Sandbox(memory="48M", binds=[f"{HANDLERS}:/var/task"]) as box:
        done = box.run([PYTHON, "-ISB", "/var/task/probes.py"], input=event)
        assert (done.returncode, done.usage.oom_killed) == (-9, True)
        assert box.stats().oom_kills == 1
        again = box.run(["true"])
        assert (again.returncode, again.usage.oom_killed) == (0, False)


@pytest.mark.parametrize("way", ["bytes", "mmap"])
def test_with_more_memory_it_is_there(open_place, way):
    assert open_place(memory="256M")("swallow", way, 96) == "ok"


@pytest.mark.parametrize("way", ["/tmp", "/dev/shm", "memfd"])
def test_files_in_memory_are_charged(kind, way):
    with open_place(kind, memory="256M", tmpfs_size="128M") as place:
        before = stats(place).memory_bytes
        place("swallow", way, 8)
        if way != "memfd" or kind != "sandbox":  # there it is gone with the program
            assert stats(place).memory_bytes - before >= 7 * MIB


@pytest.mark.parametrize("way", ["/tmp", "/dev/shm"])
def test_files_in_memory_have_an_end(open_place, way):
    assert open_place(tmpfs_size="4M")("swallow_outcome", way, 8) == "ENOSPC"


def test_files_in_memory_cannot_be_without_number(open_place):
    made, why = open_place(tmpfs_inodes=100)("make_files", "/tmp", 200)
    assert (made < 100, why) == (True, "ENOSPC")
    assert open_place(tmpfs_inodes=300)("make_files", "/tmp", 200) == [200, "enough"]


def test_a_neighbour_of_one_out_of_memory_goes_on():
    with olsock.Zygote(spare=0) as zygote:
        with zygote.fork(HANDLERS, "probes:f") as neighbour:
            with zygote.fork(HANDLERS, "probes:f", memory="32M") as hungry:
                with pytest.raises(InvocationError):
                    hungry.invoke({"probe": "swallow", "args": ["bytes", 96]})
            assert neighbour.invoke({"probe": "cwd"}) == "/var/task"
            assert neighbour.stats().oom_kills == 0
        assert zygote.alive


# -- 68: files, file sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [32, 40, 64])
def test_open_files_are_limited(open_place, most):
    place = open_place(nofile=most)
    assert place("limits", "NOFILE") == {"NOFILE": [most, most]}
    assert place("open_many", 100)[1] == "EMFILE"
    assert place("open_many", 10) == [10, "enough"]


def test_the_size_of_a_file_is_limited(open_place):
    assert open_place(fsize="1M")("swallow_outcome", "/tmp", 2) == "EFBIG"
    assert open_place(fsize="1M")("swallow_outcome", "/tmp", 1) == "ok"


# -- 70: handlers that do not come back --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "zygote"])
@pytest.mark.parametrize("way", ["sleep", "busy", "daemon", "stopped", "print"])
def test_a_handler_that_does_not_answer_is_ended(kind, way):
    with open_place(kind) as place:
        place("cwd")
        with pytest.raises(InvocationError) as caught:
            place.inside.invoke({"probe": "hang", "args": [way]}, timeout=0.2)
        assert caught.value.kind == "timeout"
        assert not place.inside.alive


@pytest.mark.parametrize("kind", ["function", "zygote"])
def test_a_handler_with_a_traced_child_is_ended(kind):
    with open_place(kind) as place:
        with pytest.raises(InvocationError) as caught:
            place.inside.invoke({"probe": "trace_child"}, timeout=0.5)
        assert caught.value.kind in ("timeout", "handler")


@pytest.mark.parametrize("kind", ["function", "zygote"])
def test_a_frozen_handler_does_not_answer_and_is_ended(kind):
    with open_place(kind) as place:
        place("cwd")
        place.inside.pause()
        with pytest.raises(InvocationError) as caught:
            place.inside.invoke({"probe": "cwd"}, timeout=0.2)
        assert caught.value.kind == "timeout"


@pytest.mark.parametrize("way", ["sleep", "busy", "daemon", "stopped", "print"])
def test_a_program_that_does_not_end_is_ended(way):
    event = f'{{"probe": "hang", "args": ["{way}"]}}'.encode()
    with olsock.Sandbox(binds=[f"{HANDLERS}:/var/task"]) as box:
        done = box.run([PYTHON, "-ISB", "/var/task/probes.py"], input=event, timeout=0.3)
        assert done.usage.timed_out
        assert done.returncode == -9
        assert len(done.stdout) <= 64 * MIB


def test_a_daemon_that_was_left_does_not_outlive_the_sandbox():
    with olsock.Sandbox() as box:
        box.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], timeout=60, check=True)
        assert eventually(lambda: box.stats().pids >= 2)
