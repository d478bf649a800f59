"""Snippets that mean harm: each gets a result and hurts nobody, and the same is shown to work where it may.

Whatever a snippet does, `exec` returns, the pool goes on, and the next snippet finds everything as it should be; `alone` sees
to that after each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from olsock.function import LOG_LIMIT
from olsock.python_pool import PythonPool
from olsock.runtime import wire
from olsock.snippets import MAX_ANSWER, ExecResult
from support.eventually import eventually

pytestmark = pytest.mark.attack

MIB = 1 << 20
LOOK = """
import builtins, json, os, sys
json.dumps([print.__module__, len(os.listdir("/tmp")), len(os.listdir("/dev/shm")), sorted(os.environ), 6 * 7])
"""


@pytest.fixture
def pool() -> Iterator[PythonPool]:
    with PythonPool(["json"], size=2, memory="96M", pids=32) as pool:
        yield pool


@pytest.fixture
def alone(pool: PythonPool) -> Iterator[Callable[..., ExecResult]]:
    """Run a snippet; in the end the pool must do what it did before, from the same zygote."""
    before = pool.exec(LOOK, timeout=30.0).value
    assert before is not None
    reign = pool._lineage._current
    yield lambda source, inputs=None, timeout=10.0: pool.exec(source, inputs, timeout)
    assert pool.exec(LOOK, timeout=30.0).value == before
    assert pool._lineage._current is reign, "the zygote lives"


# Too much of everything.


@pytest.mark.cgroup
def test_a_fork_bomb(alone: Callable[..., ExecResult]) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    done = alone(bomb, timeout=0.5)
    assert done.ended is not None
    made = alone(
        "import os\npids = [os.fork() for _ in range(1)]\nif not pids[0]: os._exit(7)\nos.waitpid(pids[0], 0)[1] >> 8"
    )
    assert made.value == 7, "the control"


@pytest.mark.cgroup
def test_processes_are_bounded(alone: Callable[..., ExecResult]) -> None:
    source = """
import os, time
made = 0
try:
    for made in range(1000):
        if not os.fork():
            time.sleep(1000)
except BlockingIOError:
    pass
made
"""
    assert 24 <= alone(source).value < 32


@pytest.mark.cgroup
@pytest.mark.parametrize(
    "source",
    [
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = bytearray(10 ** 12)",
        "open('/tmp/x', 'wb').write(bytes(60 << 20)); open('/dev/shm/x', 'wb').write(bytes(60 << 20))",
        "'x' * 10 ** 11",
        "list(range(10 ** 10))",
    ],
)
def test_a_memory_bomb(alone: Callable[..., ExecResult], source: str) -> None:
    done = alone(source, timeout=60.0)
    assert not done.ok
    assert done.usage.oom_killed or (done.exception is not None and done.exception.type in ("MemoryError", "OSError"))
    assert alone("len(bytearray(20 << 20))").value == 20 * MIB, "the control"


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
        "9 ** 9 ** 9",
        "import signal\nfor n in {1, 2, 3, 10, 12, 13, 14, 15}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "import threading; threading.Lock().acquire() and threading.Event().wait()",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        "def f():\n    try:\n        f()\n    finally:\n        f()\nf()",
    ],
)
def test_no_end(alone: Callable[..., ExecResult], source: str) -> None:
    began = time.monotonic()
    done = alone(source, timeout=0.5)
    assert done.usage.timed_out and done.ended == "timed out after 0.5 s"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("writers", [1, 8])
def test_output_without_end(alone: Callable[..., ExecResult], stream: str, writers: int) -> None:
    fork = f"import os\nfor _ in range({writers - 1}):\n    if not os.fork(): break\n"
    source = f"{fork}while True: os.write({1 if stream == 'stdout' else 2}, b'x' * 65536)"
    began = time.monotonic()
    done = alone(source, timeout=0.5)
    assert done.usage.timed_out and done.truncated
    assert LOG_LIMIT <= len(getattr(done, stream)) < LOG_LIMIT + 100 and "cut" in getattr(done, stream)[:100]
    assert time.monotonic() - began < 10


def test_output_of_what_was_left_behind(alone: Callable[..., ExecResult]) -> None:
    """A snippet that has answered, and children of it that print for ever."""
    source = "import os\nfor _ in range(8):\n    if not os.fork():\n        while True: os.write(1, b'x' * 65536)\n5"
    done = alone(source)
    assert done.value == 5 and done.usage.wall_seconds < 10


def test_output_is_bytes_of_any_kind(alone: Callable[..., ExecResult]) -> None:
    done = alone("import os\nos.write(1, bytes(range(256))); os.write(2, b'\\xff\\xfe\\0'); None")
    assert done.ok and done.stdout.startswith("\0\1\2") and "\ufffd" in done.stdout and "\0" in done.stderr
    done.stdout.encode()


@pytest.mark.parametrize(
    "value",
    [
        "'x' * (40 << 20)",
        "[0] * (4 << 20)",
        "{str(n): n for n in range(300_000)}",
        "[[]] * 3_000_000",
        "10 ** 100_000",
        "2 ** 100_000_000",
    ],
)
def test_a_huge_value(alone: Callable[..., ExecResult], value: str) -> None:
    done = alone(value, timeout=30.0)
    assert done.value is None
    assert done.repr is None or len(done.repr) < MAX_ANSWER
    assert done.repr is None or done.truncated or "digits" in done.repr
    control = alone("'x' * 10_000")
    assert control.value == "x" * 10_000 and not control.truncated


# Ends that nobody asked for.


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os; os._exit(0)", "exit status 0"),
        ("import os; os._exit(255)", "exit status 255"),
        ("import os; os.kill(os.getpid(), 9)", ""),
        ("import os; os.abort()", "signal"),
        ("import ctypes; ctypes.string_at(0)", "signal"),
        ("import os; os.execv('/bin/true', ['true'])", ""),
        ("import os; os.closerange(0, 1024)\nwhile True: pass", "closed its channel"),
        ("import os; os.closerange(0, 1024)", ""),
        (
            "import threading, os; threading.Thread(target=os._exit, args=(4,)).start()\nwhile True: pass",
            "exit status 4",
        ),
        ("import atexit, os; atexit.register(os._exit, 5); import sys; sys.exit(6)", ""),
        ("import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()", ""),
        ("import sys; sys.settrace(lambda *_: 1 / 0)\ndef f(): pass\nf()", ""),
        ("import os, signal; os.kill(-1, signal.SIGKILL); os.kill(1, signal.SIGKILL); 1", ""),
        ("import signal; signal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile True: pass", ""),
        ("import sys; sys.stdout.close(); sys.stderr.close(); sys.stdout = sys.stderr = None; 1", ""),
        (
            "import gc; [o.clear() for o in gc.get_objects() if isinstance(o, (dict, list)) and o is not globals()]; 1",
            "",
        ),
        ("import _thread; _thread.interrupt_main()\nwhile True: pass", ""),
        ("raise SystemExit(10 ** 30)", ""),
        ("raise KeyboardInterrupt", ""),
        ("class E(BaseException):\n    def __str__(self): raise self\n    __repr__ = __str__\nraise E", ""),
        ("raise type('x' * 100_000, (Exception,), {})('y' * 10_000_000)", ""),
        ("raise ExceptionGroup('all', [ValueError(n) for n in range(10_000)])", ""),
        ("e = ValueError(); e.__cause__ = e; e.__context__ = e; raise e", ""),
    ],
)
def test_ends_of_all_kinds(alone: Callable[..., ExecResult], source: str, words: str) -> None:
    done = alone(source, timeout=4.0)
    assert words in (done.ended or "")
    assert not words or not done.ok
    assert len(str(done.exception)) < 100_000


def test_what_is_left_behind_does_not_stay(alone: Callable[..., ExecResult]) -> None:
    """Threads, processes and hooks end with the sandbox, which answers without waiting for them."""
    source = """
import atexit, os, sys, threading, time
atexit.register(time.sleep, 1000)
threading.Thread(target=time.sleep, args=(1000,)).start()
sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None); sys.excepthook = None
if os.fork() == 0:
    os.setsid(); time.sleep(1000)
5
"""
    done = alone(source)
    assert done.value == 5 and done.usage.wall_seconds < 5


# What is of others.


def test_files_of_the_host(alone: Callable[..., ExecResult], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o644)
    tmp_path.chmod(0o755)
    read = "open(path).read()"
    for path in (str(secret), "/etc/shadow", "/proc/1/root/etc/shadow", "/root", "/run/olsock", "/proc/kcore"):
        done = alone(read, {"path": path})
        assert done.exception is not None and done.exception.type in ("FileNotFoundError", "PermissionError"), path
    assert secret.read_text() == "hidden" and alone(read, {"path": "/etc/passwd"}).ok, "the controls"
    written = (
        alone("open('/var/packages/0/x', 'w')"),
        alone("open('/usr/x', 'w')"),
        alone("open('/var/runtime/x', 'w')"),
    )
    assert all(done.exception is not None for done in written)
    assert alone("open('/tmp/x', 'w').write('x')").value == 1, "the control"


def test_neighbours_cannot_be_seen(pool: PythonPool) -> None:
    """Two at one time: the other's processes, files, shared memory, environment and abstract sockets."""
    one = """
import os, socket, sys, time
from multiprocessing import shared_memory
sys.argv = ["needle-one"]; os.environ["NEEDLE"] = "1"
open("/tmp/needle", "w").close(); open("/dev/shm/needle", "w").close()
s = socket.socket(socket.AF_UNIX); s.bind("\\0needle"); s.listen()
print("ready", flush=True)
time.sleep(3)
"""
    other = """
import os, socket
found = [name for place in ("/tmp", "/dev/shm") for name in os.listdir(place)]
found += [pid for pid in os.listdir("/proc") if pid.isdigit() and pid != str(os.getpid())]
found += [name for name in os.environ if name == "NEEDLE"]
try:
    socket.socket(socket.AF_UNIX).connect("\\0needle")
    found.append("socket")
except OSError:
    pass
found
"""
    control = pool.exec(one.replace("time.sleep(3)", "") + other, timeout=10.0)
    assert set(control.value) >= {"needle", "NEEDLE", "socket"}, control
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(pool.exec, one, timeout=1.5)
        assert eventually(lambda: any(call._made and "ready" in call._made.output for call in pool._calls))
        assert pool.exec(other, timeout=10.0).value == []
        assert running.result().usage.timed_out


@pytest.mark.parametrize("network", ["none"])
def test_the_network(alone: Callable[..., ExecResult], network: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = "import socket; socket.create_connection(('127.0.0.1', port), 2).close()"
        done = alone(source, {"port": port})
        assert done.exception is not None and done.exception.type in ("ConnectionRefusedError", "OSError")
        subprocess.run([sys.executable, "-c", f"port = {port}\n{source}"], check=True, timeout=30)
    inside = "import socket\ns = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close(); 1"
    assert alone(inside).value == 1, "the control: its own loopback"


@pytest.mark.parametrize(
    "call",
    [
        "libc.ptrace(0, 0, 0, 0)",
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.umount2(b'/tmp', 2)",
        "libc.setns(os.open('/proc/self/ns/mnt', os.O_RDONLY), 0)",
        "libc.pivot_root(b'/', b'/')",
        "libc.chroot(b'/tmp')",
        "libc.setuid(0)",
        "libc.sethostname(b'x', 1)",
        "libc.syscall(425, 1, 0)",
        "libc.syscall(321, 0, 0, 0)",
        "libc.syscall(250, 0, 0, 0)",
        "libc.reboot(0x89abcdef)",
        "libc.swapon(b'/tmp/x', 0)",
    ],
)
def test_privileged_calls(alone: Callable[..., ExecResult], call: str) -> None:
    source = f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n[{call}, ctypes.get_errno()]"
    done = alone(source)
    assert done.value is not None, done
    result, number = done.value
    assert result == -1 and number != 0
    assert alone("import ctypes; ctypes.CDLL(None).getpid()").value == 1, "the control"


# The runtime beside them.


def test_patched_modules_deceive_themselves_only(alone: Callable[..., ExecResult]) -> None:
    source = """
import builtins, json, os, sys, types
for name in list(sys.modules):
    module = sys.modules[name]
    for attribute in list(vars(module)) if isinstance(module, types.ModuleType) and name != "builtins" else ():
        if callable(getattr(module, attribute, None)):
            try:
                setattr(module, attribute, lambda *a, **k: "patched")
            except Exception:
                pass
sys.modules.clear()
builtins.repr = builtins.str = builtins.len = builtins.isinstance = builtins.type = lambda *a, **k: "patched"
builtins.__import__ = None
"done"
"""
    done = alone(source)
    assert done.value in ("done", None, "patched") or not done.ok
    assert isinstance(done.value, str | None)


FORGED = {
    "an answer": json.dumps({"value": "forged", "repr": "forged", "error": None}).encode(),
    "nothing": b"",
    "no object": b"[1, 2]",
    "wrong types": json.dumps({"value": 1, "repr": 2, "error": 3}).encode(),
    "no JSON": b"\xff\xfe{",
    "depth": b'{"value": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "length": b'{"value": "' + b"x" * (MAX_ANSWER + 1) + b'"}',
    "many small ones": b'{"value": [' + b"{}," * 300_000 + b"{}]}",
    "an integer without end": b'{"value": ' + b"9" * 1_000_000 + b"}",
}
FRAMES = {
    "bytes": b"\xff" * 1000,
    "a kind that there is not": wire.frame(99, 0),
    "ready again": wire.message(wire.READY, 0, b'{"init_ms": 1.0}'),
    "an answer to nobody": wire.message(wire.REPLY, 1, b'{"status":200,"content_type":"application/json"}', b"1"),
    "a promise of more": wire.HEADER.pack(wire.REPLY, 1, 0, wire.MAX_PAYLOAD, 5) + b"x" * 100,
}
SEND = """
import os, socket, stat
def channel():
    for fd in range(3, 1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass
data = bytes.fromhex(data)
os.set_blocking(channel(), True)
view = memoryview(data)
while view:
    view = view[os.write(channel(), view):]
"""


@pytest.mark.parametrize("what", FRAMES)
def test_frames_written_by_hand(alone: Callable[..., ExecResult], what: str) -> None:
    done = alone(SEND + "5", {"data": FRAMES[what].hex()}, timeout=2.0)
    assert done.value is None and done.ended is not None
    assert "condemned" in done.ended or "timed out" in done.ended
    assert alone(SEND + "5", {"data": ""}).value == 5, "the control"


@pytest.mark.parametrize("what", FORGED)
def test_answers_written_by_hand(alone: Callable[..., ExecResult], what: str) -> None:
    """With the number of the request, which a snippet can find in the memory of its process."""
    source = (
        SEND.replace("data = bytes.fromhex(data)", "")
        + """
import struct, sys
frame, number = sys._getframe(), None
while frame is not None and number is None:
    number = frame.f_locals.get("request") if isinstance(frame.f_locals.get("request"), int) else None
    frame = frame.f_back
"""
    )
    assert alone("import sys\nsys._getframe().f_back is not None").value is True
    body, meta = FORGED[what], b'{"status":200,"content_type":"application/json"}'
    first = wire.MAX_PAYLOAD - wire.META.size - len(meta)
    parts = [struct_frame(wire.REPLY, len(body) > first, wire.META.pack(len(meta)) + meta + body[:first])]
    rest = body[first:]
    while rest:
        parts.append(struct_frame(wire.BODY, len(rest) > wire.MAX_PAYLOAD, rest[: wire.MAX_PAYLOAD]))
        rest = rest[wire.MAX_PAYLOAD :]
    build = "data = b''.join(bytes.fromhex(h) + struct.pack('<Q', number or 0) + bytes.fromhex(p) for h, p in parts)\n"
    send = "os.set_blocking(channel(), True)\nview = memoryview(data)\nwhile view:\n    view = view[os.write(channel(), view):]\n"
    head, _, _ = source.partition("os.set_blocking")
    look = source[source.index("import struct") :]
    done = alone(head + look + build + send + "os._exit(0)", {"parts": parts}, timeout=5.0)
    if what == "an answer":
        assert done.value == "forged" and done.ok, "its caller is told what it says of itself"
    elif what != "many small ones":
        assert done.value is None and done.ended is not None


def struct_frame(kind: int, more: bool, payload: bytes) -> list[str]:
    """A frame but for its request, as hexadecimal text: what stands before that, and after it."""
    return [wire.HEADER.pack(kind, int(more), 0, len(payload), 0)[:8].hex(), payload.hex()]


# Values and sources that are meant to be trouble.


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("float('nan')", "nan"),
        ("[float('inf')]", "[inf]"),
        ("'\\ud800'", "'\\ud800'"),
        ("{'\\udfff': 1}", "{'\\udfff': 1}"),
        ("(n for n in range(3))", "<generator object"),
        ("x = []; x.append(x); x", "[[...]]"),
        ("{1: 2}", "{1: 2}"),
        ("{None: 1, 'null': 2}", "{None: 1, 'null': 2}"),
        ("b'bytes'", "b'bytes'"),
        ("class D(dict):\n    def items(self): raise OSError\nD(a=1)", "{'a': 1}"),
        ("class I(int):\n    def __repr__(self): return 'not a number'\nI(5)", "not a number"),
        ("class S(str):\n    def __repr__(self): return 5\nS('x')", ""),
        ("class R:\n    def __repr__(self): raise OSError('no text')\nR()", ""),
        ("class R:\n    def __repr__(self): raise SystemExit\nR()", ""),
        ("class R:\n    def __repr__(self): return 'x' * 10_000_000\nR()", "xxxx"),
        ("class R:\n    def __repr__(self): return '\\ud800'\nR()", ""),
        ("x = []\nfor _ in range(100_000): x = [x]\nx", ""),
        ("x = {}\nfor _ in range(2_000): x = {'a': x}\nx", ""),
        ("class L(list):\n    def __iter__(self):\n        while True: yield self\nL([1])", ""),
        ("print", "<built-in function print>"),
        ("Ellipsis", "Ellipsis"),
        ("...", "Ellipsis"),
    ],
)
def test_values_that_are_no_json(alone: Callable[..., ExecResult], source: str, text: str) -> None:
    done = alone(source, timeout=5.0)
    assert done.ended is None
    if text:
        assert done.ok and done.repr is not None and text in done.repr
    for shown in (done.repr or "", done.stdout, done.stderr, str(done.exception)):
        shown.encode()
    json.dumps(done.value, allow_nan=False).encode()


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\0",
        "\0",
        "(" * 1_000_000 + ")" * 1_000_000,
        "[" * 90 + "]" * 90 + "\n" + "-" * 1_000_000 + "1",
        "x" + "+x" * 500_000,
        "'\ud800'",
        "\ud800 = 1",
        "\ufeff1",
        "x = 1\r\ny = 2\rz",
        "# coding: no-such\n1",
        "# coding: utf-16\n1",
        "\n" * 1_000_000 + "1",
        "lambda: " * 100_000 + "1",
        "if 1:\n" + "".join(" " * n + "if 1:\n" for n in range(1, 110)) + " " * 110 + "1",
        "return 5",
        "yield 5",
        "await x",
        "from __future__ import braces",
        "from __future__ import annotations\ndef f(x: y): pass\nf.__annotations__['x']",
        "import *",
        "f'{" * 200,
        "del __builtins__\nprint(1)",
        "__name__ = 5; __builtins__ = {}; globals().clear(); 1",
    ],
    ids=lambda source: ascii(source[:20]),
)
def test_sources_that_are_trouble(alone: Callable[..., ExecResult], source: str) -> None:
    done = alone(source, timeout=20.0)
    assert done.ended is None or "signal" in done.ended or done.usage.oom_killed
    str(done.exception).encode()


def test_inputs_that_are_trouble(alone: Callable[..., ExecResult]) -> None:
    deep: Any = []
    for _ in range(700):
        deep = [deep]
    odd = {"deep": deep, "long": 10**4000, "text": "\ud800", "keys": {"": {"\0": 1}}, "__builtins__": {}, "print": 1}
    done = alone("len(text)", odd)
    assert done.value == 1 or not done.ok
    assert alone("[x, print.__name__]", {"x": 5}).value == [5, "print"], "the control"


def test_tricks_with_signals_and_frozen_time(alone: Callable[..., ExecResult]) -> None:
    """Stopping itself, or all that it can reach, only takes its own time."""
    for source in (
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        "import os, signal\nif os.fork() == 0: os.kill(1, signal.SIGSTOP)\nwhile True: pass",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "import os; os.nice(19)\nwhile True: pass",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
    ):
        assert alone(source, timeout=0.3).usage.timed_out


def test_a_crowd_of_hostile_ones_and_one_that_works(pool: PythonPool) -> None:
    bad = [
        "while True: pass",
        "import os\nwhile True: os.fork()",
        "while True: print('x' * 10_000)",
        "x = bytearray(1 << 40)",
    ]
    with ThreadPoolExecutor(8) as threads:
        crowd = [threads.submit(pool.exec, bad[n % len(bad)], timeout=0.3) for n in range(12)]
        good = [threads.submit(pool.exec, "n * n", {"n": n}, timeout=30.0) for n in range(12)]
        assert [each.result().value for each in good] == [n * n for n in range(12)]
        assert all(isinstance(each.result(), ExecResult) for each in crowd)
    assert threading.active_count() < 20 and os.getpid()
