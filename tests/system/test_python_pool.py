"""olsock.PythonPool: text in, what came of it out; nothing is kept between two calls, and nothing grows."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import olsock
from olsock import aio, interpreters
from olsock.errors import DeadlineError, SandboxDeadError, SpecError, ZygoteError
from olsock.lineage import Lineage
from olsock.python_pool import PythonPool
from olsock.snippets import ExecError
from support.eventually import eventually, passes
from support.wheels import wheel

pytestmark = pytest.mark.system

FOREVER = "while True: pass"
SLEEP = "import time; time.sleep(1000)"


@pytest.fixture
def pool() -> Iterator[PythonPool]:
    with PythonPool(["decimal"], size=2, memory="96M") as pool:
        yield pool


def zygote(pool: PythonPool) -> Any:
    reign = pool._lineage._current
    assert reign is not None
    return reign.zygote


# What comes back.


@pytest.mark.cgroup
def test_a_value_what_was_printed_and_what_it_cost(pool: PythonPool) -> None:
    source = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[x * 2 for x in numbers]"
    done = pool.exec(source, {"numbers": [1, 2, 3]})
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert (done.value, done.repr, done.exception, done.ended) == ([2, 4, 6], "[2, 4, 6]", None, None)
    assert done.ok and not done.truncated
    usage = done.usage
    assert 0 < usage.wall_seconds < 2 and 0 < usage.cpu_seconds < 2
    assert usage.peak_memory is None or 0 < usage.peak_memory < 96 << 20
    assert not usage.oom_killed and not usage.timed_out


@pytest.mark.parametrize(
    ("source", "value", "text"),
    [
        ("", None, None),
        ("x = 5", None, None),
        ("None", None, None),
        ("1 + 1", 2, "2"),
        ("'text'", "text", "'text'"),
        ("{'a': [1, 2.5, None, True]}", {"a": [1, 2.5, None, True]}, "{'a': [1, 2.5, None, True]}"),
        ("2 ** 100", 2**100, str(2**100)),
        ("def f(n): return n and n + f(n - 1)\nf(10)", 55, "55"),
        ("import decimal; decimal.Decimal('1.5')", None, "Decimal('1.5')"),
        ("{1, 2} - {2}", None, "{1}"),
        ("object.__new__", None, "<built-in method __new__"),
        ("1; 2;", 2, "2"),
        ("# a comment\n3  # and another", 3, "3"),
        ("if True:\n    4", None, None),
    ],
)
def test_the_last_expression(pool: PythonPool, source: str, value: Any, text: str | None) -> None:
    done = pool.exec(source)
    assert done.ok and done.value == value
    assert done.repr == text or (done.repr and text and done.repr.startswith(text))


def test_an_exception_with_the_snippets_own_lines(pool: PythonPool) -> None:
    done = pool.exec("def f():\n    return 1 / 0\nprint('before')\nf()", filename="report.py")
    assert done.stdout == "before\n" and done.value is None and done.repr is None
    assert done.exception is not None and not done.ok and done.ended is None
    assert (done.exception.type, done.exception.message) == ("ZeroDivisionError", "division by zero")
    trace = done.exception.traceback
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.count("  File ") == 2 and 'File "report.py", line 2, in f' in trace and "snippet.py" not in trace
    assert trace.endswith("ZeroDivisionError: division by zero\n")


def test_a_syntax_error_is_the_snippets(pool: PythonPool) -> None:
    done = pool.exec("x = = 1")
    assert done.exception is not None and done.exception.type == "SyntaxError"
    assert "x = = 1" in done.exception.traceback


def test_sys_exit_is_an_exception_and_os_exit_an_end(pool: PythonPool) -> None:
    left = pool.exec("import sys; sys.exit(3)")
    assert left.exception is not None
    assert (left.exception.type, left.exception.message, left.ended) == ("SystemExit", "3", None)
    gone = pool.exec("import os; print('last words', flush=True); os._exit(3)")
    assert gone.exception is None and gone.ended == "the snippet's process ended: exit status 3"
    assert gone.stdout == "last words\n"


@pytest.mark.cgroup
def test_time_that_ran_out(pool: PythonPool) -> None:
    done = pool.exec("print('begun', flush=True)\n" + FOREVER, timeout=0.3)
    assert done.ended == "timed out after 0.3 s" and done.usage.timed_out and not done.ok
    assert done.stdout == "begun\n"
    assert 0.3 <= done.usage.wall_seconds < 5 and done.usage.cpu_seconds > 0.02
    assert pool.exec("1", timeout=None).value == 1


@pytest.mark.cgroup
def test_memory_that_ran_out(pool: PythonPool) -> None:
    done = pool.exec("x = bytearray(200_000_000)", timeout=30.0)
    assert done.ended is not None and "out of memory" in done.ended
    assert done.usage.oom_killed and not done.usage.timed_out
    assert pool.exec("x = bytearray(20_000_000); len(x)").value == 20_000_000


def test_check_raises_what_it_returns_otherwise(pool: PythonPool) -> None:
    assert pool.exec("1", check=True).value == 1
    with pytest.raises(ExecError, match="ZeroDivisionError") as caught:
        pool.exec("1 / 0", check=True)
    assert caught.value.result.exception is not None


def test_what_was_imported_is_there_and_costs_nothing(pool: PythonPool) -> None:
    assert pool.exec("import sys; 'decimal' in sys.modules").value is True
    assert pool.exec("import sys; 'statistics' in sys.modules").value is False, "the control"


def test_environment_and_interpreter() -> None:
    name = f"python3.{sys.version_info.minor}"
    with PythonPool(size=1, env={"WORD": "hello"}, python=name) as pool:
        done = pool.exec("import os, sys\n[os.environ['WORD'], sys.version_info[1], sys.argv]", filename="a.py")
        assert done.value == ["hello", sys.version_info.minor, ["a.py"]]


def test_packages_are_found(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "greeting"
    package.mkdir(parents=True)
    tmp_path.chmod(0o755)
    (package / "__init__.py").write_text("WORD = 'hello'\n")
    (package / "late.py").write_text("NAME = 'world'\n")
    with PythonPool(["greeting"], packages=[package.parent], size=1) as pool:
        assert pool.exec("import greeting.late\n[greeting.WORD, greeting.late.NAME]").value == ["hello", "world"]


def test_the_runtime_is_not_in_the_way(pool: PythonPool) -> None:
    """A snippet's namespace is its own, and it finds none of our modules under common names."""
    names = pool.exec("sorted(name for name in globals() if not name.startswith('__'))", {"mine": 1})
    assert names.value == ["mine"]
    assert pool.exec("__name__").value == "__main__"
    for name in ("wire", "handler", "zygote", "reseed", "_fork"):
        done = pool.exec(f"import {name}")
        assert done.exception is not None and done.exception.type == "ModuleNotFoundError", name


def test_requirements_are_installed_for_it(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "greeting", "1.0", {"greeting.py": "WORD = 'hello'\n"})
    environment = {"UV_FIND_LINKS": str(tmp_path / "wheels"), "UV_NO_INDEX": "1"}
    with olsock.PackageStore(tmp_path / "store", network="none", environment=environment) as store:
        with PythonPool(["greeting"], requirements=["greeting>=1"], store=store, size=1) as pool:
            assert pool.exec("import greeting; greeting.WORD").value == "hello"
            assert store.evict(0) > 0, "what is in use stays"
            os.kill(zygote(pool).pid, signal.SIGKILL)
            assert eventually(lambda: not pool.alive)
            assert pool.exec("import greeting; greeting.WORD", timeout=30.0).value == "hello"
        assert store.evict(0) == 0
        with pytest.raises(olsock.PackageError, match="absent"):
            PythonPool(requirements=["absent"], store=store)


@pytest.mark.parametrize("name", sorted(interpreters.find()))
def test_any_interpreter(name: str) -> None:
    with PythonPool(["json"], python=name, size=1, memory="96M") as pool:
        done = pool.exec("import sys\n'python%d.%d' % sys.version_info[:2]")
        assert done.value == name, done
        failed = pool.exec("def f():\n    1 / 0\nf()", filename="a.py")
        assert failed.exception is not None and failed.exception.type == "ZeroDivisionError"
        assert failed.exception.traceback.count("  File ") == 2
        for hostile in ("x = []\nfor _ in range(100_000): x = [x]\nx", "(" * 1_000_000, "import os; os.abort()"):
            assert not pool.exec(hostile, timeout=30.0).ok
        assert pool.exec("1").value == 1


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"source": b"1"}, "source"),
        ({"source": None}, "source"),
        ({"source": "1", "inputs": [1]}, "inputs"),
        ({"source": "1", "inputs": {"not a name": 1}}, "inputs"),
        ({"source": "1", "inputs": {"class": 1}}, "inputs"),
        ({"source": "1", "inputs": {1: 1}}, "inputs"),
        ({"source": "1", "inputs": {"x": object()}}, "inputs[x]"),
        ({"source": "1", "inputs": {"x": float("nan")}}, "inputs[x]"),
        ({"source": "1", "inputs": {"x": "x" * (17 << 20)}}, "source"),
        ({"source": "1", "timeout": -1}, "timeout"),
        ({"source": "1", "timeout": "2"}, "timeout"),
        ({"source": "1", "timeout": float("nan")}, "timeout"),
        ({"source": "1", "wait": True}, "wait"),
        ({"source": "1", "filename": 5}, "filename"),
    ],
    ids=str,
)
def test_bad_arguments(pool: PythonPool, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        pool.exec(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"queue": -1}, "queue"),
        ({"imports": "numpy"}, "imports"),
        ({"imports": ["not a module"]}, "imports"),
        ({"packages": ["/no/such/directory"]}, "packages"),
        ({"memory": "lots"}, "memory"),
        ({"cpus": 0}, "cpus"),
        ({"pids": 0}, "pids"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"network": "all"}, "network"),
        ({"python": "/no/such/python"}, "python"),
        ({"python": "python2.7"}, "python"),
        ({"requirements": ["six"]}, "store"),
        ({"import_timeout": 0}, "timeout"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        PythonPool(**options)
    assert caught.value.field == field


def test_imports_that_fail_are_told_at_once() -> None:
    with pytest.raises(ZygoteError, match="no_such_module"):
        PythonPool(["no_such_module"])


# Many calls.


@pytest.mark.cgroup
def test_no_call_finds_what_another_left(pool: PythonPool) -> None:
    leave = """
import builtins, decimal, os, sys, threading
builtins.left = decimal.left = 1
sys.modules["left"] = sys
os.environ["LEFT"] = "1"
for place in ("/tmp/left", "/dev/shm/left"):
    open(place, "w").close()
threading.Thread(target=__import__("time").sleep, args=(1000,), daemon=True).start()
"""
    look = """
import builtins, decimal, os, sys
[hasattr(builtins, "left"), hasattr(decimal, "left"), "left" in sys.modules, "LEFT" in os.environ,
 os.path.exists("/tmp/left"), os.path.exists("/dev/shm/left"), len(os.listdir("/proc/self/task")) > 1]
"""
    control = pool.exec(leave + look)
    assert control.value == [True] * 7, control
    assert pool.exec(look).value == [False] * 7


def test_so_many_run_at_one_time_and_the_others_wait(pool: PythonPool) -> None:
    source = "import time; a = time.monotonic(); time.sleep(0.2); [a, time.monotonic()]"
    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(lambda _: pool.exec(source, timeout=10.0), range(6)))
    spans = sorted(each.value for each in done)
    for begun, _ in spans:
        assert sum(a <= begun < b for a, b in spans) <= pool.size
    assert len({tuple(span) for span in spans}) == 6


def test_a_wait_has_a_bound_and_so_has_the_queue() -> None:
    with PythonPool(size=1, queue=1) as pool, ThreadPoolExecutor(2) as threads:
        running = threads.submit(pool.exec, SLEEP, timeout=2.0)
        assert eventually(lambda: pool._calls)
        with pytest.raises(DeadlineError, match="no turn in time"):
            pool.exec("1", wait=0.05)
        waiting = threads.submit(pool.exec, "1", timeout=0.5)
        assert eventually(lambda: pool._turns.waiting == 1)
        with pytest.raises(DeadlineError, match="1 wait already"):
            pool.exec("1")
        assert running.result().usage.timed_out
        assert waiting.result().value == 1, "its time counts from its start"


def test_from_many_threads(pool: PythonPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda n: pool.exec("n * n", {"n": n}, timeout=30.0).value, range(80)))
    assert done == [n * n for n in range(80)]


@pytest.mark.cgroup
def test_nothing_grows() -> None:
    """Descriptors, threads and cgroups are as many after two hundred calls as after twenty, and objects nearly so."""

    def count() -> tuple[int, int, int]:
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.num_threads(), len(process.children(recursive=True))

    with PythonPool(size=2) as pool:

        def calls(number: int) -> None:
            for _ in range(number):
                pool.exec("print('x'); 1")
            pool.exec("1 / 0")
            pool.exec("import os; os._exit(1)")

        def settled() -> bool:
            before = count()
            passes(0.2)  # stocks are refilled in the background
            return count() == before

        calls(20)
        assert eventually(settled)
        first = count()
        objects = len(gc.get_objects())
        calls(200)
        assert eventually(lambda: count() == first), (first, count())
        assert len(gc.get_objects()) - objects < 2000


# The life of a pool.


@pytest.mark.cgroup
def test_a_dead_zygote_is_replaced(pool: PythonPool) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(pool.exec, "import time; time.sleep(0.5); 'still here'", timeout=30.0)
        assert eventually(lambda: any(call._made for call in pool._calls))
        old = zygote(pool)
        os.kill(old.pid, signal.SIGKILL)
        assert eventually(lambda: not pool.alive)
        assert pool.exec("1", timeout=30.0).value == 1
        assert pool.alive and zygote(pool) is not old
        assert running.result().value == "still here", "the death of its zygote is nothing to a running snippet"
    assert eventually(lambda: old._closed)


def test_one_that_keeps_dying_is_replaced_less_and_less_often(pool: PythonPool) -> None:
    refused = 0
    for _ in range(4):
        os.kill(zygote(pool).pid, signal.SIGKILL)
        assert eventually(lambda: not pool.alive)

        def again() -> bool:
            nonlocal refused
            try:
                return pool.exec("1", timeout=30.0).value == 1
            except ZygoteError as error:
                assert "the next attempt is in" in str(error)
                refused += 1
                return False

        assert eventually(again)
    assert refused > 0


def test_zygotes_die_while_many_call(pool: PythonPool) -> None:
    """Whoever gets an answer gets its own, and who gets none is told why."""
    stop = threading.Event()

    def kill() -> int:
        killed = 0
        while not stop.wait(0.1):
            reign = pool._lineage._current
            if reign is not None and pool.alive:
                os.kill(reign.zygote.pid, signal.SIGKILL)
                killed += 1
        return killed

    def call(number: int) -> int | None:
        try:
            return pool.exec("import time; time.sleep(0.02); n * n", {"n": number}, timeout=30.0).value
        except ZygoteError:
            passes(0.02)
            return None

    with ThreadPoolExecutor(7) as threads:
        killer = threads.submit(kill)
        answers = list(threads.map(call, range(150)))
        stop.set()
        assert killer.result() > 2
    assert all(answer in (None, n * n) for n, answer in enumerate(answers))
    assert answers.count(None) < 150
    assert eventually(lambda: _works(pool))


def test_one_that_cannot_be_replaced_is_told_as_that(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    module = tmp_path / "fragile.py"
    module.write_text("")
    with PythonPool(["fragile"], packages=[tmp_path], size=1) as pool:
        module.write_text("raise OSError('no more')")
        os.kill(zygote(pool).pid, signal.SIGKILL)
        assert eventually(lambda: not pool.alive)
        for _ in range(2):
            with pytest.raises(ZygoteError, match="no more"):
                pool.exec("1")
        module.write_text("")
        assert eventually(lambda: _works(pool))


def _works(pool: PythonPool) -> bool:
    try:
        return pool.exec("1", timeout=30.0).ok
    except ZygoteError:
        return False


def test_a_successor_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    module = tmp_path / "slow.py"
    module.write_text("")
    with PythonPool(["slow"], packages=[tmp_path], size=1) as pool:
        module.write_text("import time; time.sleep(1)")
        os.kill(zygote(pool).pid, signal.SIGKILL)
        assert eventually(lambda: not pool.alive)
        with pytest.raises(DeadlineError, match="successor"):
            pool.exec("1", wait=0.05)
        assert pool.exec("1", timeout=30.0).value == 1


def test_closing_ends_who_runs_and_refuses_who_waits_or_comes() -> None:
    pool = PythonPool(size=1)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(pool.exec, SLEEP, timeout=60.0)
        assert eventually(lambda: any(call._made for call in pool._calls))
        waiting = threads.submit(pool.exec, "1")
        assert eventually(lambda: pool._turns.waiting == 1)
        pool.close()
        with pytest.raises(SandboxDeadError, match="cancelled"):
            running.result(10)
        with pytest.raises(ZygoteError, match="closed"):
            waiting.result(10)
    with pytest.raises(ZygoteError, match="closed"):
        pool.exec("1")
    pool.close()
    assert not pool.alive


def test_closing_while_a_successor_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.3)")
    pool = PythonPool(["slow"], packages=[tmp_path], size=1)
    os.kill(zygote(pool).pid, signal.SIGKILL)
    assert eventually(lambda: not pool.alive)
    with pytest.raises(DeadlineError):
        pool.exec("1", wait=0.01)
    pool.close()


def test_a_lineage_raises_what_its_first_raises() -> None:
    def make() -> olsock.Zygote:
        raise ZygoteError("none to be had")

    with pytest.raises(ZygoteError, match="none to be had"):
        Lineage(make)


# asyncio.


def test_asyncio() -> None:
    async def main() -> None:
        async with aio.PythonPool(["decimal"], size=2) as pool:
            done = await asyncio.gather(*(pool.exec("n * 2", {"n": n}, timeout=30.0) for n in range(20)))
            assert [each.value for each in done] == [n * 2 for n in range(20)]
            with pytest.raises(ExecError):
                await pool.exec("1 / 0", check=True)
            with pytest.raises(SpecError):
                await pool.exec("1", {"no name": 1})

    asyncio.run(main())


def test_asyncio_calls_that_wait_cost_no_thread() -> None:
    async def main() -> None:
        async with aio.PythonPool(size=1) as pool:
            await pool.exec("1")
            before = threading.active_count()
            running = asyncio.create_task(pool.exec(SLEEP, timeout=0.5))
            waiting = [asyncio.create_task(pool.exec("1", timeout=30.0)) for _ in range(50)]
            await asyncio.sleep(0.1)
            assert pool.sync._turns.waiting == 50
            assert threading.active_count() <= before + 2
            assert (await running).usage.timed_out
            assert [(await each).value for each in waiting] == [1] * 50

    asyncio.run(main())


def test_asyncio_cancelling_ends_the_snippet_and_frees_the_turn() -> None:
    async def main() -> None:
        async with aio.PythonPool(size=1) as pool:
            running = asyncio.create_task(pool.exec(SLEEP, timeout=None))
            waiting = asyncio.create_task(pool.exec(SLEEP, timeout=None))
            assert await asyncio.to_thread(eventually, lambda: any(call._made for call in pool.sync._calls))
            waiting.cancel()
            running.cancel()
            for task in (running, waiting):
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(DeadlineError, match="no turn"):
                first = asyncio.create_task(pool.exec(SLEEP, timeout=1.0))
                await asyncio.sleep(0)
                await pool.exec("1", wait=0.05)
            assert (await first).usage.timed_out
            assert (await pool.exec("1", wait=10.0)).value == 1

    asyncio.run(asyncio.wait_for(main(), 60))


# The command.


def run(*arguments: str, source: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "olsock.cli", "exec", *arguments],
        input=source or "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "status", "out", "err"),
    [
        ("print('out'); 6 * 7", 0, "out\n42\n", ""),
        ("import sys; print('words', file=sys.stderr)", 0, "", "words\n"),
        ("import sys; sys.exit()", 0, "", ""),
        ("import sys; sys.exit(3)", 3, "", ""),
        ("import sys; sys.exit('so')", 1, "", "so\n"),
        ("import os; os._exit(3)", 1, "", "olsock: the snippet's process ended: exit status 3\n"),
        ("'\\udc80'", 0, "'\\udc80'\n", ""),
    ],
)
def test_command_prints_as_python_does(source: str, status: int, out: str, err: str) -> None:
    done = run("-", source=source)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_command_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "report.py").write_text("1 / 0\n")
    done = run(str(tmp_path / "report.py"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f'File "{tmp_path / "report.py"}", line 1' in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_command_options_arrive(tmp_path: Path) -> None:
    import json

    tmp_path.chmod(0o755)
    (tmp_path / "word.py").write_text("WORD = 'hello'")
    done = run("-", "--import", "word", "--package-dir", str(tmp_path), "--input", "name=[1]", source="word.WORD, name")
    assert done.returncode == 1 and "NameError" in done.stderr, "imported is not bound"
    options = ["--import", "word", "--package-dir", str(tmp_path), "--input", "name=[1]", "--json", "--memory", "96M"]
    done = run("-", *options, source="import word\n[word.WORD, name]")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["ok"] and found["value"] == ["hello", [1]] and found["usage"]["timed_out"] is False


def test_command_timeout_and_memory() -> None:
    done = run("-", "--timeout", "0.2", source=SLEEP)
    assert (done.returncode, done.stderr) == (124, "olsock: timed out after 0.2 s\n")
    done = run("-", "--memory", "64M", source="x = bytearray(200_000_000)")
    assert done.returncode == 1 and "out of memory" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "--import", "no_such_module"], "no_such_module"),
        (["-", "--input", "x"], "NAME=VALUE"),
        (["-", "--input", "x=no json"], "not JSON"),
        (["-", "--input", "no name=1"], "names of variables"),
        (["-", "--timeout", "0"], "above 0"),
        (["-", "--memory", "lots"], "memory"),
        (["/no/such/file.py"], "/no/such/file.py"),
        ([], "FILE"),
    ],
)
def test_command_refuses(arguments: list[str], words: str) -> None:
    done = run(*arguments, source="1")
    assert done.returncode == 125 and words in done.stderr and "Traceback" not in done.stderr


def test_command_ends_by_a_signal() -> None:
    command = [sys.executable, "-m", "olsock.cli", "exec", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(SLEEP.encode())
        process.stdin.close()
        assert eventually(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 4)
        passes(0.2)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
