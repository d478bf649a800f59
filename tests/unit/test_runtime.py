"""What runs inside a sandbox, run outside of one: the handler loop and the zygote loop, on every interpreter found."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from olsock.channel import Channel
from olsock.errors import InvocationError, SandboxDeadError
from olsock.runtime import wire
from support.boxes import RUNTIME, SOON, Box

pytestmark = pytest.mark.unit


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "code")
    yield made
    made.close()


# -- on every interpreter ---------------------------------------------------------------------------------------------


def test_every_interpreter(python: str, tmp_path: Path) -> None:
    made = Box(tmp_path / "code", python)
    try:
        made.start(
            """
            import sys
            async def later(event):
                return ["later", event]
            def f(event, context):
                if event == "raise":
                    raise ValueError("é")
                if event == "later":
                    return later
                return [event, context.aws_request_id, sys.version_info[:2]]
            """
        )
        ready = made.channel.wait_ready(SOON)
        assert ready.init_ms > 0
        assert not ready.imports and not ready.used
        event, request, version = made.invoke({"x": [1, None, "é\ud800"]}, id="r-1")
        assert (event, request) == ({"x": [1, None, "é\ud800"]}, "r-1")
        assert f"python{version[0]}.{version[1]}" in python
        failed = made.fails("raise")
        assert (failed.kind, failed.name, str(failed)) == ("handler", "ValueError", "é")
        assert 'raise ValueError("é")' in failed.traceback
        assert made.fails("later").kind == "serialize"
        made.sock.shutdown(socket.SHUT_WR)
        assert made.process.wait(SOON) == 0
        assert made.log() == ""
    finally:
        made.close()


def test_async_handlers(python: str, tmp_path: Path) -> None:
    made = Box(tmp_path / "code", python)
    try:
        made.start(
            """
            import functools
            async def f(event):
                import asyncio
                await asyncio.sleep(0)
                if event == "raise":
                    raise KeyError("inside")
                return event
            def shout(function):
                @functools.wraps(function)
                def wrapper(*args, **kwargs):
                    return function(*args, **kwargs)
                return wrapper
            g = shout(f)
            """,
            handler="f:g",
        )
        assert made.invoke([1]) == [1]
        failed = made.fails("raise")
        assert failed.name == "KeyError"
        assert "asyncio" not in failed.traceback  # nor our own frames: it begins with the user's
        assert failed.traceback.splitlines()[1].endswith(("in wrapper", "in f"))
        assert made.invoke([2]) == [2]
    finally:
        made.close()


def test_few_modules_are_loaded(python: str, tmp_path: Path) -> None:
    """A module that the runtime loads is one that a user's code pays for, and shares."""
    made = Box(tmp_path / "code", python)
    try:
        made.start("import sys\ndef f(event): return sorted(sys.modules)")
        loaded = set(made.invoke())
        bare = subprocess.run(
            [python, "-I", "-S", "-c", "import json, os, struct, time, sys; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        )
        own = {"__future__", "_olsock_main", "_olsock_measure", "_olsock_shortcut", "_olsock_wire", "f"}
        assert loaded - set(bare.stdout.split()) == own
        assert not loaded & {"asyncio", "threading", "socket", "_socket", "logging", "traceback", "inspect", "typing"}
    finally:
        made.close()


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wire", "handler", "zygote", "reseed", "_fork", "runtime"])
def test_users_modules_win(box: Box, name: str) -> None:
    box.code.mkdir(exist_ok=True)
    (box.code / f"{name}.py").write_text("mine = __file__\ndef f(event): return mine")
    box.start(f"import {name}\ndef f(event): return {name}.f(event)")
    assert box.invoke() == str(box.code / f"{name}.py")


def test_handler_module_may_be_called_like_ours(box: Box) -> None:
    box.code.mkdir(exist_ok=True)
    (box.code / "handler.py").write_text("def f(event): return __name__")
    box.start("", handler="handler:f")
    assert box.invoke() == "handler"


def test_environment_path_and_directory(box: Box, tmp_path: Path) -> None:
    packages, work = tmp_path / "packages", tmp_path / "work"
    (packages / "both").mkdir(parents=True)
    work.mkdir()
    (packages / "both" / "__init__.py").write_text("where = 'packages'")
    (packages / "only.py").write_text("where = 'packages'")
    (packages / "json.py").write_text("where = 'packages'")  # packages do not hide the standard library
    (box.code / "both.py").write_text("where = 'code'")
    box.start(
        """
        import os, sys, time, both, only, json
        def f(event):
            here = os.getcwd()
            return [os.environ["A"], here, both.where, only.where, json.__name__, sys.path[0], time.tzname[0],
                    "dumps" in dir(json)]
        """,
        env={"A": "é=1", "TZ": "XYZ-3"},
        path=[str(packages)],
        cwd=str(work),
    )
    code = str(box.code)
    assert box.invoke() == ["é=1", str(work), "code", "packages", "json", code, "XYZ", True]


# -- measuring --------------------------------------------------------------------------------------------------------


def test_ready_tells_what_was_imported_from_packages(python: str, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    (packages / "pkg").mkdir(parents=True)
    (packages / "pkg" / "__init__.py").write_text("from pkg import part")
    (packages / "pkg" / "part.py").write_text("import time; time.sleep(0.01)")
    (packages / "later.py").write_text("")
    made = Box(tmp_path / "code", python)
    try:
        source = """
        import csv, pkg, sys
        def f(event):
            import later
            return sys.modules["_frozen_importlib"]._load_unlocked.__module__
        """
        made.start(source, path=[str(packages)])
        ready = made.channel.wait_ready(SOON)
        assert [(each.module, each.package) for each in ready.imports] == [("pkg", "pkg"), ("pkg.part", "pkg")]
        assert 10 <= ready.imports[1].self_ms <= ready.imports[0].total_ms <= ready.init_ms
        assert not ready.used
        assert made.invoke() == "_frozen_importlib", "measuring has ended"
    finally:
        made.close()


def test_measuring_is_not_seen_in_what_fails(python: str, tmp_path: Path) -> None:
    """A loader that fails by itself is shown with the frames of the import system, of which one would be ours."""
    made = Box(tmp_path / "code", python)
    try:
        made.start(
            """
            import importlib.abc, importlib.util, sys
            class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
                def find_spec(self, name, path, target=None):
                    return importlib.util.spec_from_loader(name, self) if name == "made" else None
                def create_module(self, spec): return None
                def exec_module(self, module): raise ValueError
            sys.meta_path.append(Loader())
            import made
            """
        )
        with pytest.raises(InvocationError) as caught:
            made.channel.wait_ready(SOON)
        assert caught.value.traceback.count("in _load_unlocked") == 1, "importlib's own"
        assert caught.value.traceback.count("in exec_module") == 1 and "measure.py" not in caught.value.traceback
    finally:
        made.close()


def test_what_functions_may_import_of_ours_comes_last(box: Box, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "snapshot_restore_py.py").write_text("theirs = True")
    box.start(
        """
        import os, sys, olsock_runtime, snapshot_restore_py
        def f(event):
            return [snapshot_restore_py.theirs, sys.path.index(os.path.dirname(olsock_runtime.__file__)) == len(sys.path) - 1]
        """,
        path=[str(tmp_path / "packages")],
    )
    assert box.invoke() == [True, True]


@pytest.mark.parametrize("spec", ["pkg.sub:Outer.inner", "pkg.sub.f"])
def test_dotted_handlers(box: Box, spec: str) -> None:
    (box.code / "pkg").mkdir(parents=True)
    (box.code / "pkg" / "__init__.py").write_text("")
    (box.code / "pkg" / "sub.py").write_text(
        "class Outer:\n    @staticmethod\n    def inner(event): return 'found'\ndef f(event): return 'found'"
    )
    box.start("", handler=spec)
    assert box.invoke() == "found"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(event, context): pass", True),
        ("def f(event, anything): pass", True),
        ("def f(event, context=None): pass", True),
        ("def f(event, retries=3): pass", False),
        ("def f(event, *rest): pass", False),
        ("def f(event, *, context=None): pass", False),
        ("def f(*args): pass", False),
        ("class C:\n  def m(self, event): pass\nf = C().m", False),
        ("class C:\n  def m(self, event, context): pass\nf = C().m", True),
        ("class C:\n  def __call__(self, event, context): pass\nf = C()", True),
        ("class C:\n  def __call__(self, event): pass\nf = C()", False),
        ("class C:\n  @classmethod\n  def m(cls, event, context): pass\nf = C.m", True),
        ("import functools\ndef g(event, context): pass\n@functools.wraps(g)\ndef f(*a): return g(*a)", True),
        ("import functools\ndef g(event): pass\n@functools.wraps(g)\ndef f(*a): return g(*a)", False),
        ("import functools\n@functools.lru_cache\ndef f(event, context): pass", True),
        ("async def f(event, context): pass", True),
        ("f = len", False),
    ],
)
def test_who_gets_a_context(source: str, told: bool) -> None:
    from olsock.runtime import handler

    space: dict[str, Any] = {}
    exec(source, space)
    assert handler.wants_context(space["f"]) is told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(event, retries=3): pass", True),
        ("def f(event, *rest): pass", True),
        ("def f(*args, **more): pass", True),
        ("import functools\ndef g(a, event, context): pass\nf = functools.partial(g, 1)", True),
        ("def f(event): pass", False),
        ("def f(event, *, context=None): pass", False),
        ("class C:\n  def m(self, event): pass\nf = C().m", False),
        ("class C:\n  def m(self, event, context): pass\nf = C().m", True),
    ],
)
def test_who_gets_a_context_on_aws(source: str, told: bool) -> None:
    from olsock.runtime import handler

    space: dict[str, Any] = {}
    exec(source, space)
    assert handler.wants_context(space["f"], True) is told


def test_context(box: Box) -> None:
    box.start(
        """
        def f(event, context):
            return [context.aws_request_id, context.function_name, context.method, context.path, context.query,
                    context.headers, context.get_remaining_time_in_millis()]
        """,
        env={"AWS_LAMBDA_FUNCTION_NAME": "echo"},
    )
    meta = {"method": "PUT", "path": "/a", "query": "b=1", "headers": {"x": "y"}}
    *fields, left = box.invoke({}, id="r", deadline_ms=int(time.time() * 1000) + 60_000, **meta)
    assert fields == ["r", "echo", "PUT", "/a", "b=1", {"x": "y"}]
    assert 0 < left <= 60_000
    *fields, left = box.invoke({}, deadline_ms=1)
    assert fields[0].isdigit()
    assert left == 0
    assert box.invoke({})[-1] > 10**9


# -- events and results -----------------------------------------------------------------------------------------------


def test_empty_body_is_an_empty_event(box: Box) -> None:
    box.start("def f(event): return event")
    assert box.invoke(b"") == {}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b" ",
        b"{'a': 1}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        pytest.param(b"9" * 10_000, id="digits"),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_malformed_events(box: Box, body: bytes) -> None:
    box.start("def f(event): return event")
    if body == b"9" * 10_000 and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this interpreter reads numbers of any length")
    assert box.fails(body).kind == "malformed"
    assert box.invoke([1]) == [1]


@pytest.mark.parametrize(
    "result",
    [
        "float('nan')",
        "1e999",
        "{1}",
        "b''",
        "object()",
        "lambda: 1",
        "(x for x in [1])",
        "{(1, 2): 3}",
        "loop()",
        "deep()",
        "Odd(a=1)",
    ],
)
def test_results_that_are_not_json(box: Box, result: str) -> None:
    box.start(
        f"""
        class Odd(dict):
            def items(self): raise SystemExit("from inside the encoder")
        def loop():
            it = []
            it.append(it)
            return it
        def deep():
            it = []
            for _ in range(200_000): it = [it]
            return it
        def f(event):
            return ({result}) if event else "fine"
        """
    )
    failed = box.fails(1)
    assert failed.kind == "serialize"
    assert failed.traceback == ""
    assert box.invoke(0) == "fine"


def test_large_bodies_both_ways(box: Box) -> None:
    box.start("def f(event): return event")
    for size in (0, 60_000, wire.MAX_PAYLOAD - 100, wire.MAX_PAYLOAD, wire.MAX_PAYLOAD + 1, 3 * wire.MAX_PAYLOAD + 7):
        assert box.invoke("x" * size) == "x" * size


@pytest.mark.parametrize("length", range(-3, 4))
def test_replies_about_as_long_as_a_frame(box: Box, length: int) -> None:
    from olsock.runtime import handler

    box.start("def f(event): return 'x' * event")
    for frames in (0, 1, 2):
        size = handler.FIRST_PART + frames * wire.MAX_PAYLOAD + length
        assert len(box.invoke(size - 2)) == size - 2


def test_frames_in_any_pieces(box: Box) -> None:
    box.start("def f(event): return event")
    box.channel.wait_ready(SOON)
    requests = b"".join(wire.message(wire.REQUEST, n, b"{}", b'"%d"' % n) for n in (1, 2**63, 2**64 - 1))
    box.sock.setblocking(True)
    box.sock.settimeout(SOON)
    box.sock.sendall(requests)
    for i in range(len(requests)):
        box.sock.sendall(requests[i : i + 1])
    parser, frames = wire.Parser(wire.FROM_BOX, 1 << 20), []
    while len(frames) < 6:
        frames += parser.feed(box.sock.recv(65536))
    bodies = [(request, wire.split(payload)[1]) for _, _, request, payload in frames]
    assert bodies == [(n, b'"%d"' % n) for n in (1, 2**63, 2**64 - 1)] * 2


# -- what a handler may raise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "name"),
    [
        ("ValueError('no')", "ValueError"),
        ("SystemExit(3)", "SystemExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("GeneratorExit", "GeneratorExit"),
        ("MemoryError", "MemoryError"),
        ("BrokenPipeError", "BrokenPipeError"),
        ("ConnectionResetError", "ConnectionResetError"),
        ("ChildProcessError", "ChildProcessError"),
        ("Bad()", "Bad"),
        ("Worse()", "Worse"),
    ],
)
def test_exceptions(box: Box, raised: str, name: str) -> None:
    box.start(
        f"""
        class Bad(Exception):
            def __str__(self): raise RuntimeError("not even this")
        class Worse(BaseException):
            def __str__(self): raise SystemExit(1)
            __repr__ = __str__
        def f(event):
            if event:
                raise {raised}
            return "fine"
        """
    )
    failed = box.fails(1)
    assert (failed.kind, failed.name) == ("handler", name)
    assert box.invoke(0) == "fine"
    assert box.process.poll() is None


def test_tracebacks_show_the_users_frames_only(box: Box) -> None:
    box.start(
        """
        def f(event):
            try:
                inner()
            except ValueError as e:
                raise KeyError("outer") from e
        def inner(): raise ValueError("inner")
        """
    )
    trace = box.fails().traceback
    assert str(RUNTIME) not in trace
    assert "in inner" in trace
    assert "direct cause" in trace
    assert trace.rstrip().endswith("KeyError: 'outer'")


@pytest.mark.parametrize(
    "body",
    [
        "return f(event)",
        "raise ValueError('\\x00' * 10**6)",
        "raise ValueError('\\U0001f600' * 10**6)",
        "raise ValueError('\\ud800' * 10**6)",
        "raise type('N' * 10**6, (Exception,), {})()",
        "raise ExceptionGroup('g', [ValueError('\\x01' * 1000)] * 10**4)",
    ],
)
def test_huge_errors_are_cut(box: Box, body: str) -> None:
    if "Group" in body and sys.version_info < (3, 11):
        pytest.skip("this interpreter has no exception groups")
    box.start(f"def f(event):\n    if not event: return 'fine'\n    {body}")
    failed = box.fails(1)
    assert failed.kind == "handler"
    assert failed.name != ""
    assert len(failed.traceback) <= 32 * 1024
    assert box.invoke(0) == "fine"


def test_memory_that_runs_out(box: Box) -> None:
    box.start(
        """
        import resource
        def f(event):
            if event: return ["x" * 1000] * 10**6
            return "fine"
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
        """
    )
    failed = box.fails(1)
    assert (failed.kind, failed.name) == ("handler", "MemoryError")
    assert box.invoke(0) == "fine"


@pytest.mark.parametrize(
    ("source", "handler", "name"),
    [
        ("", "nosuch:f", "ModuleNotFoundError"),
        ("", "f:nosuch", "AttributeError"),
        ("f = 1", "f:f", "TypeError"),
        ("", "f", "ValueError"),
        ("", ":f", "ValueError"),
        ("def f(:", "f:f", "SyntaxError"),
        ("1/0", "f:f", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "f:f", "SystemExit"),
        ("raise KeyboardInterrupt", "f:f", "KeyboardInterrupt"),
    ],
)
def test_failed_imports(box: Box, source: str, handler: str, name: str) -> None:
    box.start("print('before')\n" + source, handler=handler)
    with pytest.raises(InvocationError) as caught:
        box.channel.wait_ready(SOON)
    assert (caught.value.kind, caught.value.name) == ("init", name)
    assert str(RUNTIME) not in caught.value.traceback.replace("ValueError: handler", "")
    assert box.process.wait(SOON) == 1
    assert ("before" in box.log()) == (handler.startswith("f:") and "(:" not in source)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("os._exit(0)", 0),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_crashes_end_the_channel(box: Box, body: str, status: int) -> None:
    box.start(f"import os, signal\ndef f(event):\n    {body}")
    with pytest.raises(SandboxDeadError):
        box.invoke()
    assert box.process.wait(SOON) == status


# -- what a handler may do to its process -----------------------------------------------------------------------------


def test_output_is_in_the_log_before_the_reply(box: Box) -> None:
    box.start("import sys\ndef f(event):\n    sys.stdout.write('out'); sys.stderr.write('err'); return 1")
    for _ in range(3):
        box.invoke()
        assert sorted([*box.log().replace("err", "e").replace("out", "o")]) == ["e", "o"]


def test_lines_are_in_the_log_at_once(box: Box) -> None:
    """A handler that is killed has not flushed anything."""
    box.start("import os\ndef f(event):\n    print('last words')\n    os._exit(1)")
    with pytest.raises(SandboxDeadError):
        box.invoke()
    box.process.wait(SOON)
    assert box.log() == "last words\n"


@pytest.mark.parametrize(
    "harm",
    [
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
        "sys.stdout.close(); os.close(1); sys.stderr.close(); os.close(2)",
        "sys.stdout = sys.stderr = None",
        "del sys.stdout, sys.stderr",
        "print('x', end=''); os.close(1)",
        "os.close(0)",
        "os.closerange(3, 50)",
        "sys.stdin.close()",
        "sys.path.clear(); os.chdir('/'); os.environ.clear()",
        "json.loads = json.dumps = json.JSONEncoder = json.JSONDecoder = json.encoder.JSONEncoder = None",
        "os.read = os.write = None",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "sys.setrecursionlimit(60)",
        "os.set_blocking(0, False)",
        "gc.disable(); gc.freeze()",
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "warnings.simplefilter('error')",
        "sys.__stdout__ = sys.__stderr__ = None",
    ],
)
def test_harm_does_not_reach_the_next_request(box: Box, harm: str) -> None:
    box.start(
        f"""
        import gc, json, os, signal, sys, threading, time, warnings
        def f(event):
            if event == "harm":
                {harm}
                return "done"
            import sys as now
            print("printed", event, file=now.stdout)
            print("warned", event, file=now.stderr)
            return event
        """
    )
    assert box.invoke("harm") == "done"
    box.log()
    for number in (1, 2):
        assert box.invoke(number) == number
    log = box.log()
    for number in (1, 2):
        assert f"printed {number}\n" in log
        assert f"warned {number}\n" in log


def test_a_child_that_comes_back_is_no_second_handler(box: Box) -> None:
    box.start(
        """
        import os, sys
        def f(event):
            pid = os.fork()
            if pid == 0:
                if event == "raise": raise ValueError("in the child")
                if event == "exit": sys.exit(7)
                if event == "grandchild":
                    if os.fork() == 0: return "grandchild"
                return "child"
            return ["parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
        """
    )
    assert box.invoke("return") == ["parent", 0]
    assert box.invoke("exit") == ["parent", 7]
    assert box.invoke("grandchild") == ["parent", 0]
    assert box.invoke("raise") == ["parent", 1]
    assert "ValueError: in the child" in box.log()
    assert box.invoke("return") == ["parent", 0]


def test_the_channel_is_not_inherited(box: Box) -> None:
    box.start(
        """
        import os, socket, subprocess, sys
        def f(event):
            if event == "exec":
                text = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True).stdout
                return "socket:" in text.decode()
            if event == "control":
                a, b = socket.socketpair()
                text = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], pass_fds=[a.fileno()],
                                      capture_output=True).stdout
                return "socket:" in text.decode()
            read, write = os.pipe()
            if os.fork() == 0:
                links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != str(read)
                         and os.path.exists(f"/proc/self/fd/{fd}") or int(fd) < 3]
                os.write(write, b"1" if any("socket:" in link for link in links) else b"0")
                os._exit(0)
            os.wait()
            return os.read(read, 1) == b"1"
        """
    )
    assert box.invoke("control") is True
    assert box.invoke("exec") is False
    assert box.invoke("fork") is False


@pytest.mark.parametrize("nofile", [16, 24, 48, 64, 256])
def test_small_limits_on_open_files(tmp_path: Path, nofile: int) -> None:
    made = Box(tmp_path / "code", nofile=nofile)
    try:
        made.start("import os\ndef f(event):\n    os.close(1)\n    return event")
        assert made.invoke(1) == 1
        assert made.invoke(2) == 2
    finally:
        made.close()


def test_children_that_nobody_waits_for_are_reaped(box: Box) -> None:
    box.start(
        """
        import os
        def f(event):
            if event == "leave":
                for _ in range(3):
                    if os.fork() == 0: os._exit(0)
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
                return 3
            with open("/proc/thread-self/children") as file:
                return len(file.read().split())
        """
    )
    if not Path("/proc/thread-self/children").exists():
        pytest.skip("this kernel does not list children")
    box.invoke("leave")
    assert box.invoke("count") >= 1  # one request later they may still be waited for
    deadline = time.monotonic() + SOON
    while box.invoke("count"):
        assert time.monotonic() < deadline


def test_a_child_of_the_invocation_before_can_be_waited_for(box: Box) -> None:
    box.start(
        """
        import subprocess
        child = None
        def f(event):
            global child
            if event == "start":
                child = subprocess.Popen(["/bin/sh", "-c", "exit 5"], stdout=subprocess.PIPE)
                child.stdout.read()  # it has ended
                return None
            return child.wait()
        """
    )
    box.invoke("start")
    assert box.invoke("wait") == 5


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", wire.message(wire.REQUEST, 1, b"{}", b"[1]")[:20]])
def test_the_hosts_end_ends_it(box: Box, sent: bytes) -> None:
    box.start("def f(event): return event")
    box.channel.wait_ready(SOON)
    box.sock.sendall(sent)
    box.sock.close()
    assert box.process.wait(SOON) == 0


def test_the_host_may_go_while_it_works(box: Box) -> None:
    box.start("import os\ndef f(event):\n    os.read(0, 1)\n    return 'x' * 10**7")
    box.channel.wait_ready(SOON)
    box.sock.sendall(wire.message(wire.REQUEST, 1, b"{}", b"[1]"))
    box.sock.close()
    assert box.process.wait(SOON) == 0


def test_a_broken_host_ends_it_with_a_word(box: Box) -> None:
    box.start("def f(event): return event")
    box.channel.wait_ready(SOON)
    box.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert box.process.wait(SOON) == 1
    assert "WireError" in box.log()


# -- reseeding --------------------------------------------------------------------------------------------------------


def run(script: str, *, python: str = sys.executable, check: bool = True) -> str:
    prelude = f"import sys; sys.path.insert(0, {str(RUNTIME)!r}); import reseed, os\n"
    command = [python, "-I", "-c", prelude + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def test_reseeding_loads_nothing(python: str) -> None:
    out = run(
        """
        before = set(sys.modules)
        reseed.restore()
        print(set(sys.modules) - before)
        """,
        python=python,
    )
    assert out == "set()\n"


@pytest.mark.parametrize(
    ("module", "prepare", "draw"),
    [
        ("numpy.random", "numpy.random.seed(1)", "numpy.random.rand()"),
        ("numpy.random", "numpy.random.set_bit_generator(numpy.random.PCG64(1))", "numpy.random.rand()"),
        ("tempfile", "tempfile._get_candidate_names().rng.seed(1)", "next(tempfile._get_candidate_names())"),
        ("uuid", "uuid._node = 1", "uuid.uuid1().node"),
    ],
)
def test_reseeding_restores(module: str, prepare: str, draw: str) -> None:
    """From one prepared state every process draws the same; after `restore` no two do."""
    if module.startswith("numpy"):
        pytest.importorskip("numpy")
    if module == "tempfile":
        # Its generator notices another pid by itself, unless all are 1: make it believe so.
        prepare = "tempfile._os.getpid = lambda: 1; " + prepare

    def draws(restore: str) -> set[str]:
        return {run(f"import {module}\n{prepare}\n{restore}\nprint({draw})") for _ in range(2)}

    assert len(draws("")) == 1
    assert len(draws("reseed.restore()")) == 2


def test_reseeding_feeds_openssl(python: str) -> None:
    out = run(
        """
        import _ssl
        fed = []
        _ssl.RAND_add = lambda data, entropy: fed.append((len(data), entropy))
        reseed.restore()
        print(fed)
        """,
        python=python,
    )
    assert out == "[(32, 32.0)]\n"


# -- zygotes ----------------------------------------------------------------------------------------------------------

FORK_DOUBLE = """
import os
hardened = []
def harden(capabilities, /): hardened.append(capabilities)
def threads(): return len(os.listdir("/proc/self/task"))
def fork(request, fds, /):
    if request == b"fail": raise OSError(28, "No space left on device", "clone3")
    pid = os.fork()
    if pid: return pid
    os.dup2(fds[0], 100); os.dup2(fds[1], 101)
    os.dup2(100, 3); os.dup2(101, 1); os.dup2(101, 2)
    os.closerange(4, 1024)
    return 0
def window(capsule, name, size, /): raise ValueError("no such capsule")
"""


class Zygote:
    """The zygote program with a `_fork` that forks without isolating, which needs no privilege."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        home = folder / "runtime"
        home.mkdir()
        for path in RUNTIME.glob("*.py"):
            shutil.copy(path, home)
        shutil.copytree(RUNTIME / "rehearsal", home / "rehearsal")
        (home / "_fork.py").write_text(FORK_DOUBLE)
        self.packages = folder / "packages"
        self.packages.mkdir()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(SOON)
        self.log_fd, log = os.pipe()
        os.set_blocking(self.log_fd, False)
        self.folder = folder

        def move() -> None:
            os.dup2(theirs.fileno(), 3)
            os.closerange(4, 1024)

        self.process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(home / "zygote.py")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
            preexec_fn=move,  # noqa: PLW1509 - the channel has to be fd 3, as in a sandbox
        )
        theirs.close()
        os.close(log)
        self.channels: list[socket.socket] = []

    def prepare(self, imports: Sequence[str], **modules: str) -> dict[str, Any]:
        for name, source in modules.items():
            (self.packages / f"{name}.py").write_text(textwrap.dedent(source))
        order = {"imports": imports, "path": [str(self.packages)], "capabilities": 0x2000C0}
        self.sock.send(json.dumps(order).encode())
        report: dict[str, Any] = json.loads(self.sock.recv(65536))
        return report

    def fork(self, source: str) -> Channel:
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        socket.send_fds(self.sock, [b"please"], [theirs.fileno(), write])
        theirs.close()
        os.close(write)
        os.close(read)
        answer = self.sock.recv(65536)
        assert answer[0] == 0, answer
        (pid,) = struct.unpack("<I", answer[1:])
        assert pid > 0
        self.channels.append(ours)
        code = self.folder / f"code-{len(self.channels)}"
        code.mkdir()
        (code / "f.py").write_text(textwrap.dedent(source))
        channel = Channel(ours)
        channel.configure({"code": str(code), "handler": "f:f", "path": [str(self.packages)]})
        return channel

    def log(self) -> str:
        try:
            return os.read(self.log_fd, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        for sock in self.channels:
            sock.close()
        self.sock.close()
        os.close(self.log_fd)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    made = Zygote(tmp_path)
    yield made
    made.close()


def ask(channel: Channel, event: Any = None) -> Any:
    return json.loads(channel.invoke(json.dumps(event).encode(), {}, SOON)[1])


def test_zygote_on_every_interpreter(python: str, tmp_path: Path) -> None:
    made = Zygote(tmp_path, python)
    try:
        report = made.prepare(["good", "random", "ssl"], good="import uuid\nvalue = uuid.getnode() and 1")
        assert (report["ok"], report["bad"], report["threads"]) == (True, {}, 1)
        assert report["modules"] > 10
        source = """
            import gc, good, os, random, ssl, sys, uuid
            def f(event):
                return [good.value, random.random(), os.getppid(), gc.isenabled(), "__main__" in sys.modules,
                        uuid.getnode()]
        """
        answers = [ask(made.fork(source)) for _ in range(3)]
        assert [a[0] for a in answers] == [1, 1, 1]
        assert len({a[1] for a in answers}) == 3
        assert len({a[5] for a in answers}) == 3  # cached in the zygote: this is the runtime's doing, no hook's
        assert {a[2] for a in answers} == {made.process.pid}
        assert all(a[3] and a[4] for a in answers)
        made.sock.close()
        assert made.process.wait(SOON) == 0
        assert made.log() == ""
    finally:
        made.close()


def test_children_of_a_zygote_have_few_modules(python: str, tmp_path: Path) -> None:
    made = Zygote(tmp_path, python)
    try:
        made.prepare([])
        loaded = set(ask(made.fork("import sys\ndef f(event): return sorted(sys.modules)")))
        bare = subprocess.run(
            [python, "-I", "-S", "-c", "import json, os, struct, time, errno, gc, _socket, sys; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        )
        own = {
            "__future__",
            "f",
            *(
                f"_olsock_{name}"
                for name in (
                    *(
                        "main",
                        "wire",
                        "atfork",
                        "handler",
                        "hooks",
                        "measure",
                        "rehearse",
                        "reseed",
                        "shortcut",
                        "fork",
                    ),
                    "context",
                )
            ),
        }
        assert loaded - set(bare.stdout.split()) == own
        assert not loaded & {"asyncio", "threading", "socket", "logging", "traceback", "inspect", "typing"}
    finally:
        made.close()


# A fork that `threading` has seen has another lock; the handler tells of itself, and of a fork of its own.
TOLD = """
import os, threading
import spy
def seen():
    return threading._active_limbo_lock is not spy.LOCK
def f(event):
    reader, writer = os.pipe()
    if os.fork() == 0:
        threading.Thread(target=lambda: os.write(writer, b"1" if seen() else b"0")).start()
        threading.enumerate()[-1].join()
        os._exit(0)
    return [seen(), os.read(reader, 1) == b"1", threading.main_thread() is threading.current_thread()]
"""


@pytest.mark.parametrize(
    ("ended", "seen"), [("", False), ("KEPT = threading.Thread(target=int)\nKEPT.start()\nKEPT.join()", True)]
)
def test_children_are_spared_what_is_for_other_threads(tmp_path: Path, python: str, ended: str, seen: bool) -> None:
    made = Zygote(tmp_path, python)
    try:
        made.prepare(["spy"], spy=f"import threading\n{ended}\nLOCK = threading._active_limbo_lock")
        assert ask(made.fork(TOLD)) == [seen, True, True]
    finally:
        made.close()


def test_bad_imports_are_named_and_left_out(zygote: Zygote) -> None:
    report = zygote.prepare(
        ["good", "nosuch", "broken", "leaves", "odd", "also_good"],
        good="",
        also_good="",
        broken="1/0",
        leaves="import sys; sys.exit(0)",
        odd="""
        class Odd(BaseException):
            def __str__(self): raise RuntimeError
        raise Odd
        """,
    )
    assert report["ok"] is True
    assert sorted(report["bad"]) == ["broken", "leaves", "nosuch", "odd"]
    assert report["bad"]["broken"] == "ZeroDivisionError: division by zero"
    assert report["bad"]["leaves"] == "SystemExit: 0"
    assert report["bad"]["odd"] == "Odd"
    assert ask(zygote.fork("import good, also_good\ndef f(event): return 'up'")) == "up"


def test_modules_that_start_threads_are_named(zygote: Zygote) -> None:
    threads = """
    import threading, time
    for _ in range({}): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    """
    report = zygote.prepare(["good", "one", "two"], good="", one=threads.format(1), two=threads.format(2))
    assert report["ok"] is False
    assert report["threads"] == 4
    assert report["bad"] == {"one": "started 1 thread", "two": "started 2 threads"}
    zygote.sock.send(b"please")
    answer = zygote.sock.recv(65536)
    assert struct.unpack_from("<Bi", answer) == (1, errno.EBUSY)
    assert b"4 threads" in answer[5:]


def test_what_a_zygote_imported_and_its_children_use(zygote: Zygote) -> None:
    report = zygote.prepare(["big", "small"], big="import json, part", part="def work(): pass", small="")
    assert {row[0] for row in report["imports"]} == {"big", "part", "small"}
    assert all(len(row) == 5 for row in report["imports"])
    used = zygote.fork("import big as b\nfrom part import work\ndef f(event): return 1").wait_ready(SOON)
    assert used.used == ("big", "part") and not used.imports
    (zygote.packages / "late.py").write_text("")
    other = zygote.fork("import late, json\ndef f(event): return 1").wait_ready(SOON)
    assert not other.used and [each.module for each in other.imports] == ["late"]


def test_a_fork_that_fails_harms_nothing(zygote: Zygote) -> None:
    zygote.prepare([])
    zygote.sock.send(b"fail")
    answer = zygote.sock.recv(65536)
    assert struct.unpack_from("<Bi", answer) == (1, errno.ENOSPC)
    assert b"clone3" in answer[5:]
    assert ask(zygote.fork("def f(event): return 1")) == 1


def test_a_zygote_keeps_no_descriptors(zygote: Zygote) -> None:
    zygote.prepare([])

    def held() -> int:
        return len(os.listdir(f"/proc/{zygote.process.pid}/fd"))

    before = held()
    for _ in range(5):
        zygote.fork("def f(event): return 1")
    rights = [0] * 16
    socket.send_fds(zygote.sock, [b"fail"], rights)
    assert zygote.sock.recv(65536)[0] == 1
    assert held() == before


def test_what_imports_print_is_printed_once(zygote: Zygote) -> None:
    zygote.prepare(["talks"], talks="import sys; sys.stdout.write('unfinished'); sys.stderr.write('!')")
    for _ in range(3):
        assert ask(zygote.fork("def f(event): return 1")) == 1
    assert sorted(zygote.log()) == sorted("unfinished!")


def test_users_modules_win_in_children_too(zygote: Zygote) -> None:
    zygote.prepare([])
    channel = zygote.fork(
        """
        import os, sys
        def f(event):
            with open(os.path.join(os.path.dirname(__file__), event + ".py"), "w") as file:
                file.write("mine = True")
            return __import__(event).mine
        """
    )
    for name in ("wire", "handler", "reseed", "shortcut", "zygote", "_fork"):
        assert ask(channel, name) is True


@pytest.mark.parametrize("order", [b"", b"{", b"[]", b"{}", b'{"capabilities": 0, "imports": 3}'])
def test_a_broken_order_ends_the_zygote(zygote: Zygote, order: bytes) -> None:
    if order:
        zygote.sock.send(order)
    else:
        zygote.sock.close()
    assert zygote.process.wait(SOON) == (1 if order else 0)
    assert ("zygote failed" in zygote.log()) == bool(order)


def test_too_many_descriptors_end_the_zygote(zygote: Zygote) -> None:
    zygote.prepare([])
    with contextlib.suppress(OSError):
        socket.send_fds(zygote.sock, [b"please"], [0] * 40)
    assert zygote.process.wait(SOON) == 1
