"""Functions, cold and from a zygote: what they are given, what they return, how they fail, what they print, how they end."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import olsock
from olsock._core import process
from olsock.errors import InvocationError
from olsock.runtime import wire
from support.eventually import eventually

pytestmark = pytest.mark.system

MIB = 1 << 20
Start = Callable[..., olsock.Function]


@pytest.fixture(params=["cold", "forked"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Return what starts a function from its source."""
    with ExitStack() as stack:
        zygote = None

        def begin(source: str, handler: str = "f:f", **options: object) -> olsock.Function:
            nonlocal zygote
            directory = tmp_path / "code"
            directory.mkdir(exist_ok=True)
            (directory / "f.py").write_text(dedent(source))
            if request.param == "cold":
                return stack.enter_context(olsock.Function(directory, handler, **options))
            if zygote is None:
                zygote = stack.enter_context(olsock.Zygote(spare=0))
            return stack.enter_context(zygote.fork(directory, handler, **options))

        yield begin


ECHO = "def f(event): return event"


def test_what_goes_in_comes_out(start):
    fn = start(ECHO)
    for value in ({}, {"x": 1}, [1, 2.5, "ä", None, True], "text", 0, False, {"deep": [[[[]]]]}):
        assert fn.invoke(value) == value
    assert fn.invoke() == {}  # no event at all
    assert fn.invoke("x" * 3_000_000) == "x" * 3_000_000


def test_the_handler_keeps_its_state_between_invocations(start):
    fn = start("count = 0\ndef f(event):\n    global count\n    count += 1\n    return count")
    assert [fn.invoke() for _ in range(3)] == [1, 2, 3]


def test_two_functions_have_no_state_in_common(start):
    source = "seen = []\ndef f(event):\n    seen.append(event)\n    return seen"
    one, two = start(source), start(source)
    assert one.invoke(1) == [1]
    assert two.invoke(2) == [2]


def test_handler_names_a_module_and_an_attribute(start, tmp_path):
    (tmp_path / "code" / "package").mkdir(parents=True)
    (tmp_path / "code" / "package" / "__init__.py").write_text("")
    (tmp_path / "code" / "package" / "inner.py").write_text(
        "class A:\n    @staticmethod\n    def b(event): return 'inner'"
    )
    assert start(ECHO, "package.inner:A.b").invoke() == "inner"


def test_env_reaches_the_code_before_it_is_imported(start):
    fn = start("import os\nX = os.environ['X']\ndef f(event): return X, sorted(os.environ)", env={"X": "ä"})
    value, names = fn.invoke()
    assert value == "ä"
    assert "OLSOCK_CGROUP" not in names and "PWD" not in names


def test_a_handler_may_be_a_coroutine(start):
    assert (
        start("import asyncio\nasync def f(event):\n    await asyncio.sleep(0)\n    return 'awaited'").invoke()
        == "awaited"
    )


def test_a_handler_may_take_a_context(start):
    fn = start("def f(event, context): return context.method, context.get_remaining_time_in_millis() > 0")
    assert fn.invoke() == ["POST", True]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A directory for a function that is the same for all. (pytest's own are closed to other users, handlers too.)"""
    (tmp_path / "code").mkdir()
    return tmp_path / "code"


def test_packages_are_importable_and_read_only(tmp_path, code):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "mine.py").write_text("X = 'of the package'")
    (code / "f.py").write_text("import mine\ndef f(event): return mine.X, mine.__file__")
    with olsock.Function(code, packages=[tmp_path / "packages"]) as fn:
        assert fn.invoke() == ["of the package", "/var/packages/0/mine.py"]
    with olsock.Zygote(imports=["mine"], packages=[tmp_path / "packages"]) as zygote, zygote.fork(code) as fn:
        assert fn.invoke() == ["of the package", "/var/packages/0/mine.py"]


def test_packages_of_the_host_are_not_there(start):
    with pytest.raises(InvocationError, match="No module named 'cffi'"):
        start("import cffi").invoke()


# -- how it can fail ---------------------------------------------------------------------------------------------------


def test_an_exception_is_told_and_the_function_goes_on(start):
    fn = start("def f(event):\n    if event: raise ValueError('odd: ä')\n    return 'fine'")
    with pytest.raises(InvocationError) as caught:
        fn.invoke({"x": 1})
    assert (caught.value.kind, caught.value.name, str(caught.value)) == ("handler", "ValueError", "odd: ä")
    assert 'File "/var/task/f.py", line 2, in f' in caught.value.traceback
    assert fn.invoke() == "fine"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import does_not_exist", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("1/0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("g = 1", "AttributeError"),
        ("f = 1", "TypeError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(start, source, name):
    fn = start(source)
    with pytest.raises(InvocationError) as caught:
        fn.invoke()
    assert (caught.value.kind, caught.value.name) == ("init", name)
    assert eventually(lambda: not fn.alive)


def test_wait_ready_tells_how_long_the_import_took(start):
    assert start(ECHO).wait_ready() >= 0
    with pytest.raises(InvocationError) as caught:
        start("1/0").wait_ready()
    assert caught.value.kind == "init"


@pytest.mark.parametrize("result", ["{1, 2}", "object()", "float('nan')", "b'bytes'", "{(1, 2): 3}"])
def test_a_result_that_is_not_json_is_told_and_the_function_goes_on(start, result):
    fn = start(f"def f(event): return {result} if event else 'fine'")
    with pytest.raises(InvocationError) as caught:
        fn.invoke(1)
    assert caught.value.kind == "serialize"
    assert fn.invoke() == "fine"


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os._exit(0)", "exit status 0"),
        ("os._exit(1)", "exit status 1"),
        ("os._exit(255)", "exit status 255"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGSEGV|SIGABRT"),  # abort() of a pid 1 shows as the former
    ],
)
def test_a_crash_is_told_with_its_status(start, end, how):
    fn = start(f"import ctypes, os\ndef f(event): {end}")
    with pytest.raises(InvocationError, match=how) as caught:
        fn.invoke()
    assert caught.value.kind == "crash"
    assert not fn.alive
    with pytest.raises(InvocationError, match="closed"):
        fn.invoke()


@pytest.mark.parametrize("end", ["ctypes.string_at(0)", "os._exit(5)"])
def test_a_crash_at_import_is_told(start, end):
    with pytest.raises(InvocationError) as caught:
        start(f"import ctypes, os\n{end}").invoke()
    assert caught.value.kind == "crash"


def test_a_stack_that_overflows_is_an_error_or_a_crash(start):
    fn = start("def f(event): return f(event)")
    with pytest.raises(InvocationError, match="recursion") as caught:
        fn.invoke()
    assert (caught.value.kind, caught.value.name) == ("handler", "RecursionError")
    fn = start("import sys\nsys.setrecursionlimit(1 << 30)\ndef f(event): return eval('f(event)', globals(), locals())")
    with pytest.raises(InvocationError) as caught:
        fn.invoke()
    assert caught.value.kind in ("crash", "oom")


def test_a_timeout_is_told_and_closes(start):
    fn = start("import time\ndef f(event): time.sleep(event)")
    fn.invoke(0)
    with pytest.raises(InvocationError) as caught:
        fn.invoke(1000, timeout=0.05)
    assert caught.value.kind == "timeout"
    assert not fn.alive


def test_an_import_that_takes_too_long_is_a_timeout(start):
    with pytest.raises(InvocationError) as caught:
        start("import time; time.sleep(1000)", timeout=0.1).wait_ready()
    assert caught.value.kind == "timeout"


def test_out_of_memory_is_told(start):
    fn = start("def f(event): return len(bytearray(event << 20))", memory="48M")
    assert fn.invoke(1) == MIB
    with pytest.raises(InvocationError) as caught:
        fn.invoke(500)
    assert caught.value.kind == "oom"


def test_a_memory_error_is_the_handlers(start):
    fn = start("def f(event): return len(bytearray(1 << 60)) if event else 'fine'")
    with pytest.raises(InvocationError) as caught:
        fn.invoke(1)
    assert (caught.value.kind, caught.value.name) == ("handler", "MemoryError")
    assert fn.invoke() == "fine"


# -- what it prints ----------------------------------------------------------------------------------------------------


def test_what_it_prints_is_kept(start):
    fn = start("import os, sys\nprint('import')\ndef f(event):\n    print('ä')\n    os.system('echo child >&2')")
    fn.invoke()
    assert fn.output == "import\nä\nchild\n"


def test_output_stays_after_the_end(start):
    fn = start("import os\ndef f(event):\n    print('last words')\n    os._exit(1)")
    with pytest.raises(InvocationError):
        fn.invoke()
    assert fn.output == "last words\n"


def test_only_the_end_of_much_output_is_kept_and_nothing_blocks(start):
    fn = start("def f(event):\n    for i in range(20000): print('x' * 100)\n    print('end')")
    fn.invoke()
    assert 1000 < len(fn.output) <= 64 * 1024
    assert fn.output.endswith("xxx\nend\n")


def test_a_handler_that_closes_its_streams_prints_again(start):
    fn = start(
        "import os, sys\ndef f(event):\n    if event: os.closerange(0, 3); sys.stdout.close()\n    else: print('again')"
    )
    fn.invoke(1)
    fn.invoke()
    assert fn.output == "again\n"


# -- children of the handler -------------------------------------------------------------------------------------------


def test_children_and_threads_of_the_handler_work(start):
    fn = start(
        """
        import concurrent.futures, multiprocessing, subprocess, threading

        def f(event):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                threads = sum(pool.map(int, "1234"))
            with multiprocessing.Pool(2) as pool:
                children = sum(pool.map(abs, [-1, -2]))
            return threads, children, subprocess.check_output(["echo", "x"], text=True)
        """
    )
    assert fn.invoke() == [10, 3, "x\n"]


def test_a_child_that_comes_back_out_of_the_handler_does_not_answer(start):
    fn = start("import os\ndef f(event):\n    os.fork()\n    return 'once'")
    assert [fn.invoke() for _ in range(3)] == ["once"] * 3


def test_children_left_behind_are_reaped(start):
    fn = start(
        "import subprocess\ndef f(event):\n    for _ in range(5): subprocess.Popen(['true']).returncode = 0", pids=20
    )
    for _ in range(10):
        fn.invoke()
    assert fn.alive


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_paused_function_stands_still_and_goes_on(start):
    fn = start("def f(event): return 'awake'")
    fn.invoke()
    for _ in range(3):
        fn.pause()
        before = fn.stats().cpu_usec
        assert fn.stats().cpu_usec == before
        fn.resume()
        assert fn.invoke() == "awake"


def test_close_can_be_repeated_and_on_a_paused_function(start):
    fn = start(ECHO)
    pid = fn.pid
    fn.pause()
    fn.close()
    fn.close()
    assert not fn.alive
    assert eventually(lambda: not psutil.pid_exists(pid))
    with pytest.raises(InvocationError, match="closed"):
        fn.invoke()


def test_a_function_that_is_forgotten_is_closed(code):
    (code / "f.py").write_text(ECHO)
    fn = olsock.Function(code)
    pid = fn.pid
    del fn
    gc.collect()
    assert eventually(lambda: not psutil.pid_exists(pid))


def test_killing_the_handler_is_noticed(start):
    fn = start(ECHO)
    fn.invoke()
    os.kill(fn.pid, signal.SIGKILL)
    with pytest.raises(InvocationError, match="SIGKILL") as caught:
        fn.invoke()
    assert caught.value.kind == "crash"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"code": "/does/not/exist"}, "code"),
        ({"handler": "f"}, "handler"),
        ({"handler": "f:1"}, "handler"),
        ({"handler": "../f:f"}, "handler"),
        ({"memory": "x"}, "memory"),
        ({"python": "/etc/passwd"}, "python"),
        ({"packages": "/usr"}, "packages"),
        ({"rootfs": "/"}, "rootfs"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(tmp_path, options, field):
    with pytest.raises(olsock.SpecError) as caught:
        olsock.Function(**{"code": tmp_path, **options})
    assert caught.value.field == field


def test_a_cold_function_has_a_hash_seed_of_its_own(code):
    (code / "f.py").write_text("def f(event): return hash('text')")
    seeds = set()
    for _ in range(3):
        with olsock.Function(code) as fn:
            seeds.add(fn.invoke())
    assert len(seeds) > 1


def test_another_interpreter_can_be_named(code):
    (code / "f.py").write_text("import sys\ndef f(event): return sys.executable")
    with olsock.Function(code, python=sys.executable) as fn:
        assert fn.invoke() == os.path.realpath(sys.executable)


# -- handles for an unprivileged server --------------------------------------------------------------------------------

FRONT = """
import json, os, select, signal, socket, sys
freeze, kill, events, log, pidfd, channel = map(int, sys.argv[1:])
said = {}
def frozen():
    return b"frozen 1" in os.pread(events, 4096, 0)
poll = select.poll(); poll.register(events, select.POLLPRI)
os.pread(events, 4096, 0)
os.write(freeze, b"1")
while not frozen(): poll.poll(10000)
said["frozen"] = True
os.write(freeze, b"0")
while frozen(): poll.poll(10000)
said["thawed"] = True
try:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL); said["signal"] = "ok"
except PermissionError: said["signal"] = "EPERM"
os.write(kill, b"1")
end = select.poll(); end.register(pidfd, select.POLLIN)
said["ended"] = bool(end.poll(10000))
said["channel"] = socket.socket(fileno=channel).recv(65536)[:1].hex()
said["log"] = os.read(log, 100).decode()
print(json.dumps(said))
"""


def test_handles_are_enough_to_serve_a_function_without_privilege(start):
    fn = start("print('printed')\ndef f(event): pass")
    handles = fn.handles()
    fds = [handles.freeze, handles.kill, handles.events, handles.log, handles.pidfd, handles.channel]
    try:
        eventually(lambda: select.select([handles.channel], [], [], 0)[0])
        argv = [sys.executable, "-S", "-c", FRONT, *map(str, fds)]
        done = subprocess.run(
            argv, pass_fds=fds, user=65534, group=65534, extra_groups=[], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    finally:
        process.close_all(
            *(fd for fd in (*fds, handles.memory_events, handles.memory, handles.memory_peak) if fd is not None)
        )
    said = json.loads(done.stdout)
    assert bytes.fromhex(said.pop("channel"))[0] in wire.FROM_BOX
    assert said == {
        "frozen": True,
        "thawed": True,
        "signal": "EPERM",
        "ended": True,
        "log": "printed\n",
    }


def test_handles_are_fresh_and_of_the_function(start):
    fn = start(ECHO)
    first, second = fn.handles(), fn.handles()
    names = [name for name in first.__slots__ if getattr(first, name) is not None]
    try:
        assert not {getattr(first, name) for name in names} & {getattr(second, name) for name in names}
        assert f"Pid:\t{fn.pid}\n" in Path(f"/proc/self/fdinfo/{first.pidfd}").read_text()
    finally:
        process.close_all(*(getattr(handles, name) for handles in (first, second) for name in names))


def test_code_that_others_may_not_read_is_refused_by_name(tmp_path):
    code = tmp_path / "code"
    code.mkdir(mode=0o700)
    (code / "f.py").write_text("def f(event): return event\n")
    with olsock.Zygote() as zygote:
        for make in (olsock.Function, zygote.fork):
            with pytest.raises(olsock.SpecError, match="other users may read"):
                make(code)
        code.chmod(0o755)
        for make in (olsock.Function, zygote.fork):
            with make(code) as fn:
                assert fn.invoke(1) == 1


def test_a_handler_that_only_closes_its_channel_is_ended_without_delay(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "f.py").write_text("import os, time\ndef f(event):\n    os.closerange(3, 64)\n    time.sleep(1000)\n")
    with olsock.Function(tmp_path) as fn:
        with pytest.raises(olsock.InvocationError, match="closed its channel") as caught:
            fn.invoke(1)
        assert caught.value.kind == "crash"
        assert not fn.alive
