"""Handlers that a zygote keeps forked ahead of their function, and zygotes of one function."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import olsock
from olsock import host
from olsock.errors import InvocationError, SpecError, ZygoteError
from support.eventually import eventually

pytestmark = [pytest.mark.system, pytest.mark.cgroup]

MIB = 1 << 20
Directory = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """Make a directory of modules, readable for everybody as pytest's own are not."""
    made: list[Path] = []

    def make(**modules: str) -> Path:
        made.append(tmp_path / f"directory-{len(made)}")
        made[-1].mkdir()
        for name, source in modules.items():
            (made[-1] / f"{name}.py").write_text(dedent(source))
        return made[-1]

    return make


@pytest.fixture
def code(directory: Directory) -> Path:
    return directory(f="def f(event): return event")


@pytest.fixture
def zygote() -> Iterator[olsock.Zygote]:
    with olsock.Zygote(blanks=2) as zygote:
        assert settled(zygote)
        yield zygote


def settled(zygote: olsock.Zygote) -> bool:
    """All are there that should be, and nothing is being made any more."""
    stock = zygote._blanks
    assert eventually(lambda: zygote.waiting == zygote.blanks and not stock._pending)
    # Made is not yet there: each says with a byte, which is left where it is, that it waits.
    return all(blank.kit.ends.channel.recv(1, socket.MSG_PEEK) for blank in stock._ready)


def waiting(zygote: olsock.Zygote) -> list[int]:
    return [blank.child.pid for blank in zygote._blanks._ready]


# -- used --------------------------------------------------------------------------------------------------------------


def test_they_are_used_and_replaced(zygote, code):
    first = waiting(zygote)
    functions = [zygote.fork(code) for _ in range(2)]
    assert [fn.pid for fn in functions] == first
    assert [fn.invoke(n) for n, fn in enumerate(functions)] == [0, 1]
    assert settled(zygote)
    assert not set(waiting(zygote)) & set(first)
    for fn in functions:
        fn.close()


def test_more_than_wait_can_be_had(zygote, code):
    functions = [zygote.fork(code) for _ in range(6)]
    assert [fn.invoke(n) for n, fn in enumerate(functions)] == list(range(6))
    assert len({fn.pid for fn in functions}) == 6


def test_their_number_can_be_changed_at_any_time(zygote, code):
    zygote.blanks = 4
    assert settled(zygote) and len(waiting(zygote)) == 4
    before = waiting(zygote)
    zygote.blanks = 1
    assert zygote.waiting == 1
    assert eventually(lambda: sum(map(psutil.pid_exists, before)) == 1)
    zygote.blanks = 0
    assert zygote.waiting == 0
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == 1 and fn.pid not in before
    zygote.blanks = 1
    assert settled(zygote)
    with zygote.fork(code) as fn:
        assert fn.invoke(2) == 2


@pytest.mark.parametrize("count", [-1, 1025, "1", 1.0, True, None])
def test_a_number_that_makes_no_sense_is_refused(zygote, count):
    with pytest.raises(SpecError):
        zygote.blanks = count
    assert zygote.blanks == 2


def test_those_that_wait_end_with_the_zygote(zygote):
    pids = waiting(zygote)
    zygote.close()
    assert eventually(lambda: not any(map(psutil.pid_exists, pids))) and zygote.waiting == 0
    zygote.blanks = 3  # nothing comes of it
    assert zygote.waiting == 0


def test_of_a_child_zygote(code):
    with olsock.Zygote(descendants=1, spare=0) as parent, parent.child(blanks=1) as child:
        assert settled(child)
        (pid,) = waiting(child)
        with child.fork(code) as fn:
            assert (fn.pid, fn.invoke(1)) == (pid, 1)


def test_200_starts_leave_nothing(zygote, code):
    def look() -> tuple[int, list[str]]:
        return len(os.listdir("/proc/self/fd")), sorted(
            name.split("-")[0] for name in os.listdir(f"{host.current().tree.paths[0]}/{zygote.name}")
        )

    def once(number: int) -> int:
        with zygote.fork(code) as fn:
            return fn.invoke(number)

    def many(count: int) -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(once, range(count)))
        assert settled(zygote) and eventually(lambda: len(zygote._kits._stock) == 1)
        return done

    many(20)  # some descriptors are opened on first use
    before = look()
    assert many(200) == list(range(200))
    assert eventually(lambda: look() == before), (look(), before)


# -- a function's own part ---------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_what_a_function_gets(zygote, directory):
    packages = directory(extra="X = 'extra'")
    code = directory(
        f="""
        import os, resource, extra
        def f(event):
            tmp, shm = os.statvfs("/tmp"), os.statvfs("/dev/shm")
            return {
                "tmp": [tmp.f_blocks * tmp.f_frsize, tmp.f_files],
                "shm": shm.f_blocks * shm.f_frsize,
                "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
                "fsize": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
                "env": os.environ.get("X"),
                "package": extra.X,
                "cwd": os.getcwd(),
                "writes": open("/tmp/file", "w").write("x"),
            }
        """
    )
    options = {"tmpfs_size": "4M", "tmpfs_inodes": 100, "nofile": 100, "fsize": "1M", "env": {"X": "1"}}
    for _ in range(2):
        (pid, *_) = waiting(zygote)
        with zygote.fork(code, packages=[packages], **options) as fn:
            assert fn.pid == pid
            assert fn.invoke() == {
                "tmp": [4 * MIB, 100],
                "shm": 4 * MIB,
                "nofile": 100,
                "fsize": MIB,
                "env": "1",
                "package": "extra",
                "cwd": "/var/task",
                "writes": 1,
            }
        assert settled(zygote)
    with zygote.fork(code) as fn, pytest.raises(InvocationError, match="extra"):
        fn.invoke()
    assert settled(zygote)
    with zygote.fork(code, packages=[packages]) as fn:
        said = fn.invoke()
    default = zygote.fork(code).spec
    assert (said["tmp"], said["nofile"]) == ([default.tmpfs_size, default.tmpfs_inodes], default.nofile)
    assert said["fsize"] in (resource.RLIM_INFINITY, 2**64 - 1) and said["env"] is None


def test_limits_are_the_functions(zygote, directory):
    code = directory(f="def f(event): return len(bytearray(b'x') * (event << 20))")
    with zygote.fork(code, memory="64M") as small, zygote.fork(code, memory="256M") as large:
        assert large.invoke(100) == 100 * MIB
        with pytest.raises(InvocationError) as caught:
            small.invoke(100)
        assert caught.value.kind == "oom"
    assert settled(zygote)
    with zygote.fork(code) as fn:
        assert fn.invoke(100) == 100 * MIB


def test_how_one_ended_is_told(zygote, directory):
    code = directory(f="import os\ndef f(event): os._exit(5)")
    with zygote.fork(code) as fn, pytest.raises(InvocationError, match="exit status 5"):
        fn.invoke()


def test_a_large_environment(zygote, directory):
    code = directory(f="import os\ndef f(event): return len(os.environ['X'])")
    with zygote.fork(code, env={"X": "x" * 50_000}) as fn:
        assert fn.invoke() == 50_000


def test_code_that_is_not_there_costs_one_that_waited_and_no_more(zygote, code, tmp_path):
    with pytest.raises(olsock.OlsockError):
        zygote.fork(tmp_path / "missing")
    assert settled(zygote)
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(SpecError, match="chmod"):
        zygote.fork(tmp_path / "closed")
    assert settled(zygote)
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == 1


# -- those that die waiting --------------------------------------------------------------------------------------------


def test_one_that_was_killed_while_it_waited_is_replaced_and_nobody_notices(zygote, code):
    dead = waiting(zygote)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(psutil.pid_exists, dead)))
    functions = [zygote.fork(code) for _ in range(4)]
    assert [fn.invoke(n) for n, fn in enumerate(functions)] == list(range(4))
    assert not {fn.pid for fn in functions} & set(dead)
    assert settled(zygote)
    with zygote.fork(code) as fn:
        assert fn.invoke(1) == 1


def test_one_that_was_stopped_runs_when_it_goes_on(zygote, code):
    (pid, *_) = waiting(zygote)
    os.kill(pid, signal.SIGSTOP)
    with zygote.fork(code) as fn:
        os.kill(pid, signal.SIGCONT)
        assert (fn.pid, fn.invoke(1)) == (pid, 1)


def test_without_its_zygote_one_that_waits_still_serves(zygote, code):
    (pid, *_) = waiting(zygote)
    os.kill(zygote.pid, signal.SIGKILL)
    assert eventually(lambda: not zygote.alive)
    with zygote.fork(code) as fn:
        assert (fn.pid, fn.invoke(1)) == (pid, 1)
    zygote.fork(code).close()
    with pytest.raises(ZygoteError, match="gone"):
        zygote.fork(code)


def test_a_hook_that_starts_a_thread_leaves_none_with_more_rights(directory):
    """A thread from before the handler's filter would be one that the function's code can have do what it may not."""
    packages = directory(
        restarts="""
        import os, threading
        def restart(): threading.Thread(target=threading.Event().wait, daemon=True).start()
        os.register_at_fork(after_in_child=restart)
        """
    )
    code = directory(
        f="""
        import os
        def f(event):
            found = []
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/status") as file:
                    status = dict(line.split(":", 1) for line in file)
                found.append([status["Uid"], status["CapEff"], status.get("Seccomp_filters")])
            return found
        """
    )
    with olsock.Zygote(["restarts"], packages=[packages], blanks=2) as zygote:
        for _ in range(5):
            with zygote.fork(code) as fn:
                one, other = fn.invoke()
                assert one == other
            eventually(lambda: zygote.waiting == 2, timeout=0.2)
        assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in waiting(zygote)))


def test_a_thread_of_a_hook_that_has_ended_is_none(directory, code):
    packages = directory(
        brief="""
        import os, threading
        def begin():
            thread = threading.Thread(target=print)
            thread.start()
            thread.join()
        os.register_at_fork(after_in_child=begin)
        """
    )
    with olsock.Zygote(["brief"], packages=[packages], blanks=1) as zygote:
        assert settled(zygote)
        (pid,) = waiting(zygote)
        with zygote.fork(code) as fn:
            assert (fn.pid, fn.invoke(1)) == (pid, 1)


# -- stderr ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blanks", [0, 1])
@pytest.mark.parametrize("separate", [False, True])
def test_stderr_apart(directory, separate, blanks):
    code = directory(f="import os, sys\ndef f(event):\n    print('to stdout')\n    os.write(2, b'to stderr\\n')")
    with olsock.Zygote(separate_stderr=separate, descendants=1, blanks=blanks) as parent:
        with parent.child(blanks=blanks) as child:
            for zygote in (parent, child):
                assert settled(zygote)
                with zygote.fork(code) as fn:
                    fn.invoke()
                    apart = ("to stdout\n", "to stderr\n")
                    assert (fn.output, fn.errors) == (apart if separate else ("".join(apart), ""))
                assert (fn.output, fn.errors) == (apart if separate else ("".join(apart), ""))  # after its end as well


def test_neither_stream_can_block_a_handler(directory):
    code = directory(
        f="import os\ndef f(event): return [os.write(fd, b'x' * 65536) for fd in (1, 2) for _ in range(20)]"
    )
    with olsock.Zygote(separate_stderr=True, spare=0) as zygote, zygote.fork(code) as fn:
        assert sum(fn.invoke()) == 40 * 65536
        assert len(fn.output) == len(fn.errors) == 65536


# -- zygotes of one function -------------------------------------------------------------------------------------------

COUNTED = """
import os
from olsock_runtime import register_after_restore, register_before_snapshot
events = []
def note(what): events.append([what, os.getpid(), os.getuid()])
note("import")
register_before_snapshot(note, "before")
register_after_restore(note, "after")
def f(event):
    events.append(event)
    return events
"""


@pytest.mark.parametrize("blanks", [0, 1])
@pytest.mark.parametrize("nested", [False, True])
def test_module_is_imported_once_and_hooks_run_once_each(directory, nested, blanks):
    code = directory(f=COUNTED)
    with olsock.Zygote(descendants=1, spare=0) as parent:
        options = {"code": code, "handler": "f:f", "blanks": blanks}
        with parent.child(**options) if nested else olsock.Zygote(**options) as zygote:
            assert settled(zygote)
            for number in range(2):
                with zygote.fork() as fn:
                    said = fn.invoke(number)
                    uid = psutil.Process(fn.pid).uids().real - psutil.Process(zygote.pid).uids().real
                # Before the snapshot as root of the zygote, after the restore as the handler that it is by then.
                assert said == [["import", 2, 0], ["before", 2, 0], ["after", 1, uid], number]


def test_a_function_zygote_can_fork_another_function(directory, code):
    mine = directory(g="def f(event): return 'mine'")
    with olsock.Zygote(code=mine, handler="g:f", spare=0) as zygote:
        with zygote.fork() as fn:
            assert fn.invoke(1) == "mine"
        with zygote.fork(code, "f:f") as fn:
            assert fn.invoke(1) == 1


def test_environment_and_packages_are_there_at_import(directory):
    packages = directory(extra="X = 1")
    code = directory(f="import os, extra\nENV = os.environ.get('Y'), os.getcwd(), extra.X\ndef f(event): return ENV")
    options = {"code": code, "handler": "f:f", "env": {"Y": "2"}, "packages": [packages], "spare": 0}
    with olsock.Zygote(descendants=1, spare=0) as parent:
        for make in (olsock.Zygote, parent.child):
            with make(**options) as zygote, zygote.fork() as fn:
                assert fn.invoke() == ["2", "/var/task", 1]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import os\n1/0", "ZeroDivisionError: division by zero"),
        ("def g(): pass", "AttributeError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import os; os._exit(4)", "exit status 4"),
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\ndef f(e): pass",
            "threads",
        ),
        (
            "from olsock_runtime import register_before_snapshot\n"
            "def hook(): raise ValueError('in the hook')\nregister_before_snapshot(hook)\ndef f(event): pass",
            "ValueError: in the hook",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(directory, source, why):
    code = directory(f=source)
    with olsock.Zygote(descendants=1, spare=0) as parent:
        for make in (olsock.Zygote, parent.child):
            with pytest.raises(ZygoteError) as caught:
                make(code=code, handler="f:f", spare=0)
            assert why in str(caught.value)


def test_an_after_restore_hook_that_fails_is_the_functions_error(directory):
    code = directory(
        f="from olsock_runtime import register_after_restore\n"
        "def hook(): raise ValueError('in the hook')\nregister_after_restore(hook)\ndef f(event): return event"
    )
    with olsock.Zygote(code=code, handler="f:f", spare=0) as zygote:
        with zygote.fork() as fn, pytest.raises(InvocationError, match="in the hook"):
            fn.invoke()
        assert zygote.alive


@pytest.mark.parametrize("options", [{"code": "/usr"}, {"handler": "f:f"}, {"code": "/missing", "handler": "f:f"}])
def test_half_a_function_is_refused(options):
    with olsock.Zygote(descendants=1, spare=0) as parent:
        for make in (olsock.Zygote, parent.child):
            with pytest.raises(SpecError):
                make(**options)
