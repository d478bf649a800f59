"""Zygotes: what they import, what they refuse, what their handlers get, how they end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import olsock
from olsock import host, identity
from olsock.errors import InvocationError, ZygoteError
from support.eventually import eventually

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A directory for a function's code, readable for everybody as pytest's own are not."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text("def f(event): return event")
    return tmp_path / "code"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


@pytest.fixture
def zygote() -> Iterator[olsock.Zygote]:
    with olsock.Zygote(spare=0) as zygote:
        yield zygote


def handler(code: Path, source: str) -> Path:
    (code / "f.py").write_text(dedent(source))
    return code


# -- imports -----------------------------------------------------------------------------------------------------------


def test_what_was_imported_is_there(code):
    source = "import sys\nLOADED = set(sys.modules)\ndef f(event): return [name in LOADED for name in ('decimal', 'xml.dom')]"
    handler(code, source)
    with olsock.Zygote(imports=["decimal"]) as zygote, zygote.fork(code) as fn:
        assert fn.invoke() == [True, False]


def test_what_is_imported_once_is_shared_and_copied_on_write(code, packages):
    (packages / "counted.py").write_text("import os\nPID = os.getpid()\nstate = []")
    handler(
        code, "import counted, os\ndef f(event):\n    counted.state.append(1)\n    return counted.PID, counted.state"
    )
    with olsock.Zygote(imports=["counted"], packages=[packages]) as zygote:
        for _ in range(2):
            with zygote.fork(code) as fn:
                assert fn.invoke() == [2, [1]]  # pid 2 of its sandbox, below init


def test_what_is_imported_is_told_only_if_asked(code, packages):
    (packages / "mine.py").write_text("x = 1")
    handler(code, "import mine\ndef f(event): return mine.x")
    with olsock.Zygote(packages=[packages]) as zygote:
        with zygote.fork(code) as fn:
            assert [each.module for each in fn.ready.imports] == ["mine"] and fn.invoke() == 1
        with zygote.fork(code, measure=False) as fn:
            assert fn.ready.imports == () and fn.invoke() == 1
        with pytest.raises(olsock.SpecError, match="measure"):
            zygote.fork(code, measure="no")


def test_imports_that_fail_are_named_with_the_reason(packages):
    (packages / "broken.py").write_text("1/0")
    with pytest.raises(ZygoteError, match=r"broken: ZeroDivisionError.*missing: ModuleNotFoundError"):
        olsock.Zygote(imports=["broken", "json", "missing"], packages=[packages])


def test_imports_that_fail_can_be_left_out(code, packages):
    (packages / "broken.py").write_text("raise SystemExit(3)")
    with olsock.Zygote(imports=["broken", "json"], packages=[packages], skip_bad=True) as zygote:
        assert set(zygote.bad) == {"broken"}
        with zygote.fork(code) as fn:
            assert fn.invoke(1) == 1


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_import_that_starts_a_thread_is_refused(packages, skip_bad):
    (packages / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    )
    with pytest.raises(ZygoteError, match="threaded: started 1 thread"):
        olsock.Zygote(imports=["json", "threaded"], packages=[packages], skip_bad=skip_bad)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_import_that_makes_shared_memory_is_refused(packages, skip_bad):
    (packages / "private.py").write_text("import mmap; kept = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE)")
    (packages / "common.py").write_text("import mmap; kept = mmap.mmap(-1, 4096)")
    with olsock.Zygote(["private"], packages=[packages], skip_bad=skip_bad) as zygote:
        assert not zygote.bad
    with pytest.raises(olsock.ZygoteError, match="shared memory behind.*common: made memory that all"):
        olsock.Zygote(["common"], packages=[packages], skip_bad=skip_bad)


def test_a_thread_that_ended_is_none(code, packages):
    (packages / "threaded.py").write_text("import threading\nt = threading.Thread(target=print)\nt.start(); t.join()")
    with olsock.Zygote(imports=["threaded"], packages=[packages]) as zygote, zygote.fork(code) as fn:
        assert fn.invoke(1) == 1


def test_a_thread_that_starts_later_is_refused_at_the_fork(code, packages):
    # Started by a signal: no line of package code runs between the imports and a fork otherwise.
    (packages / "later.py").write_text(
        "import signal, threading, time\n"
        "def begin(*_): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "signal.signal(signal.SIGUSR1, begin)"
    )
    with olsock.Zygote(imports=["later"], packages=[packages], spare=0) as zygote:
        with zygote.fork(code) as fn:
            assert fn.invoke(1) == 1
        os.kill(zygote.pid, signal.SIGUSR1)
        assert eventually(lambda: psutil.Process(zygote.pid).num_threads() == 2)
        with pytest.raises(ZygoteError, match="2 threads"):
            zygote.fork(code)
        assert zygote.alive


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import os; os._exit(7)", "exit status 7"),
        ("import os; os._exit(0)", "exit status 0"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; print('last words', flush=True); os._exit(1)", "last words"),
    ],
)
def test_an_import_that_ends_the_interpreter_is_told(packages, source, why):
    (packages / "ends.py").write_text(source)
    with pytest.raises(ZygoteError, match=why):
        olsock.Zygote(imports=["ends"], packages=[packages])


@pytest.mark.cgroup
def test_an_import_that_takes_too_much_memory_is_told(packages):
    (packages / "big.py").write_text("x = bytearray(b'x') * (100 << 20)")
    with pytest.raises(ZygoteError, match="out of memory"):
        olsock.Zygote(imports=["big"], packages=[packages], memory="48M")
    with olsock.Zygote(imports=["big"], packages=[packages], memory="256M") as zygote:
        assert zygote.stats().memory_bytes > 100 * MIB  # charged to the zygote itself


def test_an_import_that_takes_too_long_is_told(packages):
    (packages / "slow.py").write_text("import time; time.sleep(1000)")
    with pytest.raises(ZygoteError, match=r"longer than 0.2 s"):
        olsock.Zygote(imports=["slow"], packages=[packages], timeout=0.2)


def test_an_import_that_prints_without_end_does_not_block(packages):
    (packages / "noisy.py").write_text("for _ in range(3000): print('x' * 100)")
    olsock.Zygote(imports=["noisy"], packages=[packages]).close()


def test_an_import_that_closes_the_control_socket_is_told(packages):
    (packages / "closes.py").write_text("import os; os.close(3)")
    with pytest.raises(ZygoteError):
        olsock.Zygote(imports=["closes"], packages=[packages], timeout=5.0)


@pytest.mark.parametrize(
    "report", [b"", b"not json", b"[]", b'{"ok": true, "bad": 3}', b'{"ok": false}', b"x" * 100_000]
)
def test_a_report_that_was_forged_is_an_error(packages, report):
    (packages / "forges.py").write_text(f"import os\ntry: os.write(3, {report!r})\nexcept OSError: pass\nos._exit(0)")
    with pytest.raises(ZygoteError):
        olsock.Zygote(imports=["forges"], packages=[packages], timeout=5.0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"imports": "json"}, "imports"),
        ({"imports": ["a b"]}, "imports"),
        ({"imports": ["os; import sys"]}, "imports"),
        ({"packages": ["/does/not/exist"]}, "packages"),
        ({"python": "/does/not/exist"}, "python"),
        ({"memory": "1"}, "memory"),
        ({"timeout": 0}, "timeout"),
        ({"env": {"": "x"}}, "env"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_and_nothing_is_made(options, field):
    before = set(os.listdir(host.current().tree.paths[0]))
    with pytest.raises(olsock.SpecError) as caught:
        olsock.Zygote(**options)
    assert caught.value.field == field
    assert set(os.listdir(host.current().tree.paths[0])) == before


# -- forks -------------------------------------------------------------------------------------------------------------


def test_each_handler_has_its_own_environment_and_limits(zygote, code):
    handler(
        code,
        """
        import os, resource
        def f(event):
            return os.environ.get("X"), resource.getrlimit(resource.RLIMIT_NOFILE)[1], os.statvfs("/tmp").f_blocks
        """,
    )
    with (
        zygote.fork(code, env={"X": "1"}, nofile=100, tmpfs_size="4M") as one,
        zygote.fork(code, env={"X": "2"}, nofile=200, tmpfs_size="8M") as two,
        zygote.fork(code) as three,
    ):
        assert one.invoke() == ["1", 100, 1024]
        assert two.invoke() == ["2", 200, 2048]
        assert three.invoke()[:1] == [None]


@pytest.mark.cgroup
def test_memory_of_a_handler_is_its_own(zygote, code):
    handler(code, "kept = []\ndef f(event):\n    kept.append(bytearray(b'x') * (event << 20))")
    with zygote.fork(code, memory="64M") as small, zygote.fork(code, memory="256M") as large:
        large.invoke(100)
        assert large.stats().memory_bytes > 100 * MIB
        assert small.stats().memory_bytes < 30 * MIB
        with pytest.raises(InvocationError) as caught:
            small.invoke(100)
        assert caught.value.kind == "oom"
        large.invoke(1)


def test_each_handler_has_an_id_and_namespaces_of_its_own(zygote, code):
    with zygote.fork(code) as one, zygote.fork(code) as two:
        one.invoke(), two.invoke()
        ids = [psutil.Process(fn.pid).uids() for fn in (one, two)]
        assert ids[0] != ids[1] and min(min(uids) for uids in ids) > identity.FIRST
        for name in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
            spaces = {os.readlink(f"/proc/{pid}/ns/{name}") for pid in (one.pid, two.pid, zygote.pid, os.getpid())}
            assert len(spaces) == (4 if name != "cgroup" else 3), name  # zygotes have the host's: nsdelegate wants that
        assert len({os.readlink(f"/proc/{pid}/ns/user") for pid in (one.pid, two.pid, zygote.pid)}) == 1


def test_a_handler_is_pid_1_with_a_net_of_its_own_that_is_up(zygote, code):
    handler(
        code,
        """
        import os, socket
        def f(event):
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
            return os.getpid(), os.getppid()
        """,
    )
    with zygote.fork(code) as fn:
        assert fn.invoke() == [1, 0]


def test_more_kits_than_are_spare_can_be_had(code):
    with olsock.Zygote(spare=2) as zygote:
        functions = [zygote.fork(code) for _ in range(6)]
        assert [fn.invoke(n) for n, fn in enumerate(functions)] == list(range(6))


def test_kits_that_were_made_ahead_have_what_is_asked_for(code):
    handler(
        code,
        """
        from os import statvfs
        def f(event): return statvfs("/tmp").f_blocks, statvfs("/tmp").f_files, statvfs("/dev/shm").f_blocks
        """,
    )
    with olsock.Zygote(spare=1) as zygote:
        assert eventually(lambda: zygote._kits._stock._ready)
        with zygote.fork(code, tmpfs_size="4M", tmpfs_inodes=100) as fn:
            assert fn.invoke() == [1024, 100, 1024]


def test_forks_from_many_threads(zygote, code):
    def once(number: int) -> int:
        with zygote.fork(code) as fn:
            return fn.invoke(number)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(once, range(60))) == list(range(60))


def test_a_zygote_of_another_interpreter(code):
    with olsock.Zygote(python=sys.executable) as zygote, zygote.fork(code) as fn:
        assert fn.invoke(1) == 1


def test_network_of_the_host(code):
    handler(code, "import os\ndef f(event): return os.readlink('/proc/self/ns/net')")
    with olsock.Zygote(network="host", spare=0) as zygote, zygote.fork(code) as fn:
        assert fn.invoke() == os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize("option", [{"network": "host"}, {"seccomp": "off"}, {"python": "/usr/bin/env"}])
def test_what_the_zygote_decides_cannot_be_asked_of_a_fork(zygote, code, option):
    with pytest.raises(olsock.SpecError) as caught:
        zygote.fork(code, **option)
    assert caught.value.field in option


def test_a_bare_handler_has_few_modules(zygote, code):
    handler(code, "import sys\ndef f(event): return sorted(sys.modules)")
    with zygote.fork(code) as fn:
        loaded = set(fn.invoke())
    assert not loaded & {
        "asyncio",
        "typing",
        "ssl",
        "socket",
        "subprocess",
        "threading",
        "random",
        "tempfile",
        "logging",
    }
    assert len(loaded) < 80


# -- thread ids, fork hooks --------------------------------------------------------------------------------------------


def test_hooks_of_a_fork_run_once_in_the_child(code, packages):
    (packages / "hooked.py").write_text(
        "import os\ncalls = []\n"
        "os.register_at_fork(before=lambda: calls.append('before'), after_in_child=lambda: calls.append('child'),\n"
        "                    after_in_parent=lambda: calls.append('parent'))"
    )
    handler(code, "import hooked\ndef f(event): return hooked.calls")
    with olsock.Zygote(imports=["hooked"], packages=[packages]) as zygote:
        with zygote.fork(code) as one:
            assert one.invoke() == ["before", "child"]
        with zygote.fork(code) as two:
            assert two.invoke() == ["before", "parent", "before", "child"]


def test_threads_asyncio_and_logging_work_in_the_child(code):
    handler(
        code,
        """
        import asyncio, logging, threading

        def f(event):
            named = []
            thread = threading.Thread(target=lambda: named.append(threading.get_native_id()))
            thread.start()
            thread.join()
            logging.warning("logged")
            main = threading.main_thread()
            return asyncio.run(asyncio.sleep(0, "slept")), main.native_id, named != [main.native_id], main.is_alive()
        """,
    )
    with olsock.Zygote(imports=["asyncio", "logging", "threading"]) as zygote, zygote.fork(code) as fn:
        assert fn.invoke() == ["slept", 1, True, True]
        assert "logged" in fn.output


def test_the_thread_id_that_libc_keeps_is_the_childs(code):
    probes = Path(__file__).parents[1] / "attack" / "handlers"
    with olsock.Zygote(imports=["ctypes", "threading"], spare=0) as zygote:
        for _ in range(3):
            with zygote.fork(probes, "probes:f") as fn:
                assert fn.invoke({"probe": "recursive_mutex"}) == "EBUSY"
    mutex = ctypes.create_string_buffer(64)  # and the probe can tell: in one thread it is owned
    attribute = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutexattr_init(attribute)
    libc.pthread_mutexattr_settype(attribute, 1)
    libc.pthread_mutex_init(mutex, attribute)
    assert (libc.pthread_mutex_lock(mutex), libc.pthread_mutex_trylock(mutex)) == (0, 0)


# -- life --------------------------------------------------------------------------------------------------------------


def test_close_ends_the_handlers_too_and_can_be_repeated(zygote, code):
    fn = zygote.fork(code)
    zygote.close()
    zygote.close()
    assert not zygote.alive and not fn.alive
    with pytest.raises(ZygoteError, match="closed"):
        zygote.fork(code)
    with pytest.raises(InvocationError, match="closed"):
        fn.invoke()


def test_a_zygote_that_is_forgotten_is_closed():
    zygote = olsock.Zygote(spare=0)
    pid = zygote.pid
    del zygote
    assert eventually(lambda: not psutil.pid_exists(pid))


def test_the_zygote_itself_is_limited():
    with olsock.Zygote(memory="100M", pids=5, spare=0) as zygote:
        assert zygote.stats().pids == 1
        assert 0 < zygote.stats().memory_bytes < 100 * MIB


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("1/0", "imports"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()", "unforkable"),
        ("import mmap\nm = mmap.mmap(-1, 4096)", "unforkable"),
        ("import os\nos.abort()", "crash"),
        ("x = bytearray(10 ** 9)", "crash"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("import time\ntime.sleep(99)", "slow"),
    ],
)
def test_an_error_says_of_which_kind_it_is(packages, source, kind):
    (packages / "bad.py").write_text(source)
    with pytest.raises(ZygoteError) as caught:
        olsock.Zygote(["bad"], packages=[packages], memory="128M", timeout=3.0)
    assert caught.value.kind == kind


def test_errors_of_a_zygote_that_was_made(zygote, code):
    with pytest.raises(ZygoteError) as caught:
        zygote.child()
    assert caught.value.kind == "room"
    os.kill(zygote.pid, signal.SIGKILL)
    assert eventually(lambda: not zygote.alive)
    with pytest.raises(ZygoteError) as caught:
        zygote.fork(code)
    assert caught.value.kind == "gone"


def test_kill_ends_a_zygote_and_what_was_forked_from_it(zygote, code):
    with zygote.fork(code) as fn:
        assert (zygote.handlers, zygote.children) == (1, 0)
        assert fn.alive
        zygote.kill()
        assert eventually(lambda: not fn.alive and not zygote.alive)
    assert zygote.handlers == 0
