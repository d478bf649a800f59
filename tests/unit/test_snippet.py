"""The handler that runs snippets, in the real handler program, outside of a sandbox, on every interpreter found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olsock.channel import Channel
from olsock.errors import DeadlineError, InvocationError, ProtocolError, SandboxDeadError
from olsock.snippets import MAX_ANSWER, read_answer
from support.documents import ROOT
from support.interpreters import VERSIONS, interpreter

pytestmark = pytest.mark.unit

RUNTIME = ROOT / "olsock" / "runtime"
SOON = 20.0


class Snippets:
    """A handler process for one snippet after the other, which is more than they get in sandboxes."""

    def __init__(self, python: str = sys.executable) -> None:
        self.sock, theirs = socket.socketpair()
        self.log_fd, log = os.pipe()
        os.set_blocking(self.log_fd, False)

        def move() -> None:
            os.dup2(theirs.fileno(), 3)
            os.closerange(4, 1024)

        self.process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(RUNTIME / "handler.py")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
            preexec_fn=move,  # noqa: PLW1509 - the channel has to be fd 3, as in a sandbox
        )
        theirs.close()
        os.close(log)
        self.channel = Channel(self.sock)
        self.channel.configure({"code": str(RUNTIME / "exec"), "handler": "snippet:run", "cwd": "/tmp"})

    def answer(self, source: str, timeout: float = SOON, **event: Any) -> bytes:
        return self.channel.invoke(json.dumps({"source": source, **event}).encode(), {}, timeout)[1]

    def run(self, source: str, **event: Any) -> dict[str, Any]:
        data = self.answer(source, **event)
        read_answer(data)  # what the host reads it with takes it
        found: dict[str, Any] = json.loads(data)
        assert sorted(found) == ["error", "repr", "truncated", "value"]
        return found

    def value(self, source: str, **event: Any) -> Any:
        found = self.run(source, **event)
        assert found["error"] is None, found["error"]["traceback"]
        return found["value"]

    def error(self, source: str, **event: Any) -> tuple[str, str, str]:
        found = self.run(source, **event)
        assert found["value"] is found["repr"] is None
        return found["error"]["type"], found["error"]["message"], found["error"]["traceback"]

    def log(self) -> str:
        try:
            return os.read(self.log_fd, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.sock.close()
        os.close(self.log_fd)
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=VERSIONS)
def everywhere(request: pytest.FixtureRequest) -> Iterator[Snippets]:
    found = interpreter(request.param)
    if found is None:
        pytest.skip(f"no CPython {request.param} on this machine")
    made = Snippets(found)
    yield made
    made.close()


@pytest.fixture
def snippets() -> Iterator[Snippets]:
    made = Snippets()
    yield made
    made.close()


def test_on_every_interpreter(everywhere: Snippets) -> None:
    run = everywhere.run
    assert run("x = 1") == {"value": None, "repr": None, "truncated": False, "error": None}
    assert run("x = [n * 2 for n in numbers]\nx", inputs={"numbers": [1, 2]})["value"] == [2, 4]
    assert run("(1, 2)") == {"value": None, "repr": "(1, 2)", "truncated": False, "error": None}
    assert run("import sys\nprint('a'); print('b', end='', file=sys.stderr)")["error"] is None
    assert everywhere.log() == "a\nb"
    name, message, trace = everywhere.error("def f(n):\n    return 1 / n\n\nf(0)", filename="report.py")
    assert (name, message) == ("ZeroDivisionError", "division by zero")
    lines = [line.strip() for line in trace.splitlines() if set(line) - set(" ~^")]
    assert lines == [
        "Traceback (most recent call last):",
        'File "report.py", line 4, in <module>',
        "f(0)",
        'File "report.py", line 2, in f',
        "return 1 / n",
        "ZeroDivisionError: division by zero",
    ]
    name, message, trace = everywhere.error("x = 1\nx = = 2")
    assert name == "SyntaxError" and 'File "<snippet>", line 2' in trace and "x = = 2" in trace
    assert "snippet.py" not in trace
    name, _, trace = everywhere.error("print('nothing of it runs')\nif x:\n    return 5\n1")
    assert name == "SyntaxError" and "return 5" in trace, "found by the compiler, which would read a file"
    assert everywhere.log() == ""


@pytest.mark.parametrize(
    "value",
    [
        True,
        0,
        -5,
        2**100,
        1.5,
        -0.0,
        1e300,
        "",
        "é\u2028\U0001f600\0",
        [],
        {},
        [1, [2, [None, {"a": [False]}]]],
        {"": 1},
    ],
    ids=repr,
)
def test_values_that_json_holds(snippets: Snippets, value: Any) -> None:
    found = snippets.run(repr(value))
    assert found["value"] == value and type(found["value"]) is type(value)
    assert found["repr"] == repr(value) and not found["truncated"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("()", "()"),
        ("[(1,)]", "[(1,)]"),
        ("{1: 2}", "{1: 2}"),
        ("{'a': {1}}", "{'a': {1}}"),
        ("b'x'", "b'x'"),
        ("float('nan')", "nan"),
        ("[float('-inf')]", "[-inf]"),
        ("'\\udc80'", "'\\udc80'"),
        ("{'\\udc80': 1}", "{'\\udc80': 1}"),
        ("class S(str): pass\n[S('x')]", "['x']"),
        ("import enum\nclass E(enum.IntEnum):\n  A = 1\nE.A.value, E.A", "(1, <E.A: 1>)"),
        ("import collections; collections.OrderedDict()", "OrderedDict()"),
        ("1j", "1j"),
        ("a = []; a.append(a); a", "[[...]]"),
        ("class A:\n  def __repr__(self): return '\\udc80'\nA()", "\\udc80"),
    ],
)
def test_values_that_json_does_not(snippets: Snippets, source: str, text: str) -> None:
    assert snippets.run(source) == {"value": None, "repr": text, "truncated": False, "error": None}


@pytest.mark.parametrize(
    ("source", "held"),
    [
        ("'x' * 200_000", True),
        ("'x' * 2_000_000", False),
        ("'\\U0001f600' * 500_000", False),
        ("b'x' * 100_000_000", False),
        ("list(range(100_000))", True),
        ("list(range(400_000))", False),
        ("[[]] * 10**6", False),
        ("{str(n): 'x' * 100 for n in range(20_000)}", False),
        ("2 ** 14_000", False),
        ("2 ** 300_000", False),
        ("a = []\nfor _ in range(200): a = [a]\na", False),
        ("a = []\nfor _ in range(20_000): a = [a]\na", None),
        ("a = ['x']\nfor _ in range(14): a = [a, a]\na", True),
        ("class A:\n  def __repr__(self): return '\\udc80' * 10**6\nA()", False),
    ],
)
def test_large_values_are_bounded(snippets: Snippets, source: str, held: bool | None) -> None:
    data = snippets.answer(source)
    assert len(data) < MAX_ANSWER
    found = json.loads(data)
    if held is None:  # deeper than repr goes
        assert found["error"]["type"] == "RecursionError"
        return
    assert (found["value"] is not None) == held
    assert len(found["repr"].encode()) <= 64 * 1024
    assert found["truncated"] == ("[... cut ...]" in found["repr"])
    assert found["repr"][:1] == found["repr"][-1:] or found["repr"][0] in "[{\\b0123456789" or not found["truncated"]


@pytest.mark.parametrize(
    ("source", "message"), [("exit()", ""), ("raise SystemExit(3)", "3"), ("import sys; sys.exit('so')", "so")]
)
def test_leaving(snippets: Snippets, source: str, message: str) -> None:
    source = source.replace("exit()", "raise SystemExit") if source == "exit()" else source
    assert snippets.error(source) == ("SystemExit", message, "")


def test_it_is_the_main_program(snippets: Snippets) -> None:
    assert snippets.value("__name__") == "__main__"
    assert snippets.value("sorted(globals())", inputs={"mine": 1}) == sorted(
        ["__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__", "mine"]
    )
    assert snippets.value("import sys\nx = 5\nsys.modules['__main__'].x") == 5
    assert snippets.value("import sys; sys.argv", filename="a.py") == ["a.py"]
    source = "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A"
    assert snippets.value(source) is True
    source = "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\nA(1).x"
    assert snippets.value(source) == 1
    assert snippets.value("from __future__ import annotations\ndef f(x: no): pass\nf.__annotations__") == {"x": "no"}
    assert snippets.value("def f(x: int): pass\nf.__annotations__['x'] is int") is True, "ours is not handed on"
    assert snippets.value("'x' in globals()") is False, "nothing of the snippet before"


def test_its_source_is_there_for_who_looks(snippets: Snippets) -> None:
    source = (
        "import traceback\ntry:\n    1 / 0  # here\nexcept ZeroDivisionError:\n    told = traceback.format_exc()\ntold"
    )
    assert "1 / 0  # here" in snippets.value(source)
    assert snippets.value("import inspect\ndef f(): return 7\ninspect.getsource(f)") == "def f(): return 7\n"


def test_chains_and_recursion(snippets: Snippets) -> None:
    _, _, trace = snippets.error("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e")
    assert "direct cause" in trace and trace.count("  File ") == 2
    name, _, trace = snippets.error("def f(): f()\nf()")
    assert name == "RecursionError" and "repeated" in trace and len(trace) < 4096
    name, message, trace = snippets.error("raise ValueError('x' * 10**7)")
    assert len(message) <= 4096 and len(trace) <= 32 * 1024 and "[... cut ...]" in message


@pytest.mark.parametrize(
    "source",
    [
        "class E(Exception):\n  def __str__(self): raise SystemExit\nraise E",
        "class E(Exception):\n  def __str__(self): return 5\nraise E",
        "class M(type):\n  __name__ = property(lambda self: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E",
        "class A:\n  def __repr__(self): raise SystemExit(3)\nA()",
        "class A:\n  def __repr__(self): return 5\nA()",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "raise MemoryError",
        "\0",
        "\udc80",
        "(" * 5000,
        "-" * 200_000 + "1",
        "x.y" + ".y" * 100_000,
        "import sys; sys.stdout = None; 1 / 0",
        "import sys; sys.stdout.close(); sys.stderr.close(); 1 / 0",
        "class O:\n  def flush(self): raise SystemExit\nimport sys; sys.stdout = O(); 1 / 0",
        "import os; os.closerange(0, 3); 1 / 0",
        "import sys; sys.setrecursionlimit(50); 1 / 0",
        "import threading; threading.Thread(target=lambda: 1 / 0).start(); 1 / 0",
        "globals().clear(); 1 / 0",
        "import sys; sys.modules.clear(); 1 / 0",
        "import linecache; linecache.cache = None; 1 / 0",
    ],
    ids=lambda source: repr(source)[:40],
)
def test_what_goes_wrong_is_told(snippets: Snippets, source: str) -> None:
    raised = read_answer(snippets.answer(source)).exception
    assert raised is not None and raised.type


@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(3)",
        "import os; os.closerange(3, 1024)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import ctypes; ctypes.string_at(0)",
        "import sys; sys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, n): return getattr(self, n)\nA().x",
        "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'x' * 100)\n  except OSError: pass",
        "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)",
        "import builtins; builtins.len = builtins.type = builtins.repr = builtins.isinstance = lambda *a: 1 // 0",
        "import json\njson.JSONEncoder.encode = json.JSONEncoder.iterencode = lambda *a, **k: 1 // 0; [1]",
        "import json.encoder\njson.encoder.c_make_encoder = lambda *a: lambda *b: ('\"' * 10**6,); [1]",
        "import sys; sys.modules['snippet'].run = None; sys._getframe(2).f_globals['_decode'] = None",
        "import os\nif os.fork() == 0:\n    print('child')\n'parent'",
        "import os\nif os.fork() == 0: 1 / 0\n'parent'",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
        "import sys; sys.settrace(lambda *a: 1 / 0)\ndef f(): pass\nf()",
        "import gc\nfor o in gc.get_objects():\n  if type(o) is dict and 'Server' in o: o.clear()",
        "import atexit; atexit.register(print, 'bye'); 1",
    ],
    ids=lambda source: repr(source)[:40],
)
def test_hostile_ones_break_themselves_only(snippets: Snippets, source: str) -> None:
    """Whatever comes is an answer, or one of the errors that the library knows; and it comes."""
    try:
        data = snippets.answer(source)
        read_answer(data)
    except (InvocationError, SandboxDeadError, ProtocolError):
        return
    assert len(data) < MAX_ANSWER


def test_one_that_hangs_is_left(snippets: Snippets) -> None:
    with pytest.raises(DeadlineError):
        snippets.answer("while True: pass", timeout=0.2)


def test_a_child_of_it_does_not_answer(snippets: Snippets, tmp_path: Path) -> None:
    file = tmp_path / "child"
    source = f"""
import os
pid = os.fork()
if pid == 0:
    open({str(file)!r}, "w").close()
else:
    os.waitpid(pid, 0)
'parent' if pid else 'child'
"""
    assert snippets.value(source) == "parent"
    assert file.exists()
    assert snippets.value("1 + 1") == 2, "nothing lies in the channel"
