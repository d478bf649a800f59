"""olsock.aio: the same as the synchronous library, without stopping the loop; cancelling leaves nothing behind.

That nothing is left is looked at twice: by the fixture round every test, and, where a sandbox goes on, by its cgroup.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import olsock
from olsock import aio
from olsock.errors import DeadlineError, InvocationError, KernelError, SandboxDeadError, SpecError
from olsock.function import Handles
from support.eventually import eventually
from support.wheels import wheel

pytestmark = pytest.mark.system

CODE = """
import asyncio, os, time

def echo(event):
    return event

def pid(event):
    return os.getpid()

def fail(event):
    raise ValueError(event["why"])

def hang(event):
    print("running", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "f.py").write_text(CODE)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1000)\ndef f(event): pass\n")
    return tmp_path


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run in a loop that complains about what was never awaited or never retrieved."""
    problems: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        await asyncio.wait_for(main, 60)

    asyncio.run(guarded())
    assert not problems


async def cancelled(waiting: Coroutine[Any, Any, Any], when: Callable[[], object]) -> None:
    """Start it, cancel it once `when` is true, and see that it says so."""
    task = asyncio.create_task(waiting)
    assert await asyncio.to_thread(eventually, when)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Everything that waits.


@pytest.mark.cgroup
def test_sandbox_runs_pauses_and_tells() -> None:
    async def main() -> None:
        async with aio.Sandbox(memory="128M", pids=16) as box:
            done = await box.run(["cat"], input=b"in", timeout=10.0)
            assert (done.returncode, done.stdout) == (0, b"in")
            assert (await box.run(["pwd"], cwd="/usr", env={"A": "b"})).stdout == b"/usr\n"
            with pytest.raises(olsock.CommandError):
                await box.run(["false"], check=True)
            assert (await box.run(["sleep", "1000"], timeout=0.2)).usage.timed_out
            assert (await box.run(["seq", "1000"], output_limit=10)).truncated

            before = await box.stats()
            async with await box.popen(["sh", "-c", "while :; do :; done"]) as loop:
                assert loop.returncode is None and loop.pid > 1
                await box.pause()
                frozen = (await box.stats()).cpu_usec
                assert (await box.stats()).cpu_usec == frozen
                await box.resume()
                with pytest.raises(DeadlineError):
                    await loop.wait(0.05)
                assert (await box.stats()).cpu_usec > frozen
                loop.send_signal(15)
                assert await loop.wait(10.0) == -15
            assert (await box.stats()).cpu_usec > before.cpu_usec
        await box.close()
        with pytest.raises(SandboxDeadError):
            await box.run(["true"])

    run(main())


def test_popen_has_pipes() -> None:
    async def main() -> None:
        async with aio.Sandbox() as box:
            child = await box.popen(["cat"], stdin=olsock.PIPE)
            assert child.stdin is not None and child.stdout is not None and child.stderr is not None
            done = await child.complete(b"words")
            assert done.stdout == b"words"
            await child.close()

    run(main())


@pytest.mark.cgroup
def test_zygote_and_functions(code: Path) -> None:
    async def main() -> None:
        async with aio.Zygote(["decimal"]) as zygote, zygote.fork(code, "f:echo") as forked:
            assert (await zygote.stats()).cpu_usec > 0
            assert await forked.wait_ready(10.0) >= 0
            assert await forked.invoke({"x": 1}) == {"x": 1}
            assert not frozen(forked)
            await forked.pause()
            assert frozen(forked)
            await forked.resume()
            assert not frozen(forked)
            assert await forked.invoke([2], timeout=10.0) == [2]
            assert (await forked.stats()).cpu_usec > 0
            second = await zygote.fork(code, "f:pid")  # awaited instead of entered
            assert await second.invoke() == 1
            await second.close()
        async with aio.Function(code, "f:fail") as cold:
            with pytest.raises(InvocationError, match="because") as raised:
                await cold.invoke({"why": "because"})
            assert (raised.value.kind, raised.value.name) == ("handler", "ValueError")

    run(main())


def close_all(handles: Handles) -> None:
    fds = (getattr(handles, field.name) for field in dataclasses.fields(handles))
    for fd in fds:
        if fd is not None:
            os.close(fd)


def frozen(function: aio.Function) -> bool:
    """What the kernel says of the function's cgroup."""
    handles = function.handles()
    try:
        return b"frozen 1" in os.pread(handles.events, 1024, 0)
    finally:
        close_all(handles)


@pytest.mark.cgroup
def test_zygotes_of_zygotes(code: Path) -> None:
    async def main() -> None:
        async with aio.Zygote(["decimal"], descendants=1) as parent:
            async with parent.child(["statistics"], code=code, handler="f:echo") as child, child.fork() as made:
                assert await made.invoke({"a": 1}) == {"a": 1}
                assert (await child.memory()).resident > 0 and (await made.memory()).resident > 0
            async with parent.child() as child:
                assert child.sync.alive
            with pytest.raises(SpecError):
                await parent.child(network="host")

    run(main())


def test_a_store_of_packages(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "greeting", "1.0")
    environment = {"UV_FIND_LINKS": str(tmp_path / "wheels"), "UV_NO_INDEX": "1"}

    async def main() -> None:
        async with aio.PackageStore(tmp_path / "store", network="none", environment=environment) as store:
            lock = await store.resolve(["greeting"])
            with await store.install(lock) as closure:
                assert os.listdir(closure.directory)
                assert (await store.contents()).closures == 1
            assert await store.evict(0) == 0
            installing = asyncio.create_task(store.install(lock))
            await asyncio.sleep(0)
            installing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await installing
            assert await store.evict(0) == 0, "nobody holds it"

    run(main())


def test_handles_are_fresh(code: Path) -> None:
    async def main() -> None:
        async with aio.Function(code, "f:echo") as function:
            first, second = function.handles(), function.handles()
            assert first.channel != second.channel and first.log != second.log
            close_all(first)
            close_all(second)
            assert await function.invoke(1) == 1

    run(main())


def test_errors_arrive_where_they_are_awaited() -> None:
    async def main() -> None:
        with pytest.raises(SpecError, match="memory"):
            async with aio.Sandbox(memory="much"):
                raise AssertionError("made")
        async with aio.Sandbox() as box:
            with pytest.raises(KernelError) as raised:
                await box.run(["no-such-program"])
            assert raised.value.step == "execve"

    run(main())


def test_the_loop_goes_on_meanwhile(code: Path) -> None:
    """Waits overlap: while one waits for a program, another is answered, and then the program is told to end."""

    async def main() -> None:
        async with aio.Sandbox() as box, aio.Function(code, "f:echo") as function:
            async with await box.popen(["cat"], stdin=olsock.PIPE) as child:
                waiting = asyncio.create_task(child.wait())
                assert await function.invoke(5) == 5
                assert not waiting.done()
                assert child.stdin is not None
                child.stdin.close()
                assert await waiting == 0

    run(main())


@pytest.mark.cgroup
def test_many_at_once(code: Path) -> None:
    async def main() -> None:
        async with aio.Zygote() as zygote:
            functions = await asyncio.gather(*(zygote.fork(code, "f:echo").start() for _ in range(12)))
            try:
                answers = await asyncio.gather(*(each.invoke(n) for n, each in enumerate(functions)))
                assert answers == list(range(12))
            finally:
                await asyncio.gather(*(each.close() for each in functions))

    run(main())


# Cancelling.


def processes(box: aio.Sandbox) -> int:
    """How many there are in the sandbox besides its init."""
    count = box.sync.stats().pids
    assert count is not None
    return count - 1


@pytest.mark.fault
@pytest.mark.cgroup
def test_cancelled_run_leaves_no_program() -> None:
    async def main() -> None:
        async with aio.Sandbox() as box:
            await cancelled(box.run(["sleep", "1000"]), lambda: processes(box) == 1)
            assert await asyncio.to_thread(eventually, lambda: processes(box) == 0)
            assert (await box.run(["echo", "sound"])).stdout == b"sound\n"

    run(main())


@pytest.mark.fault
def test_cancelled_wait_kills() -> None:
    async def main() -> None:
        async with aio.Sandbox() as box:
            async with await box.popen(["sleep", "1000"]) as child:
                await cancelled(child.wait(), lambda: True)
                assert await child.wait(10.0) == -9
            async with await box.popen(["sleep", "1000"]) as child:
                await cancelled(child.complete(), lambda: True)
                assert child.returncode == -9

    run(main())


@pytest.mark.fault
def test_popen_that_is_cancelled_while_it_starts_leaves_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program exists before anybody could have taken it: a call that is held between the two."""
    started, go = asyncio.Event(), threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with aio.Sandbox() as box:
            popen = box.sync.popen

            def slow(*args: Any, **options: Any) -> olsock.Process:
                child = popen(*args, **options)
                loop.call_soon_threadsafe(started.set)
                go.wait(10)
                return child

            monkeypatch.setattr(box.sync, "popen", slow)
            task = asyncio.create_task(box.popen(["sleep", "1000"]))
            await started.wait()
            assert processes(box) == 1
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # twice, as an impatient caller does
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(eventually, lambda: processes(box) == 0)

    run(main())


@pytest.mark.fault
@pytest.mark.cgroup
def test_cancelled_invoke_ends_the_handler(code: Path) -> None:
    async def main() -> None:
        async with aio.Zygote() as zygote:
            async with zygote.fork(code, "f:hang") as hangs, zygote.fork(code, "f:echo") as sound:
                await hangs.wait_ready()
                await cancelled(hangs.invoke(), lambda: "running" in hangs.sync.output)
                assert not hangs.sync.alive
                with pytest.raises(InvocationError, match="closed"):
                    await hangs.invoke()
                assert await sound.invoke(3) == 3

    run(main())


@pytest.mark.fault
def test_cancelled_wait_for_an_import_ends_the_handler(code: Path) -> None:
    async def main() -> None:
        async with aio.Function(code, "slow:f") as slow:
            await cancelled(slow.wait_ready(), lambda: True)
            assert not slow.sync.alive

    run(main())


@pytest.mark.fault
@pytest.mark.parametrize("make", [aio.Sandbox, aio.Zygote], ids=["sandbox", "zygote"])
def test_cancelled_start_leaves_nothing(make: type[aio.Sandbox | aio.Zygote]) -> None:
    """Cancelled at once, it is made all the same, and then closed; the fixture sees what is left."""

    async def main() -> None:
        task = asyncio.create_task(make().start())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@pytest.mark.fault
def test_cancelled_fork_leaves_nothing(code: Path) -> None:
    async def main() -> None:
        async with aio.Zygote() as zygote:
            task = asyncio.create_task(zygote.fork(code, "f:echo").start())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not zygote.sync._functions

    run(main())


@pytest.mark.fault
def test_a_timeout_of_asyncios_own(code: Path) -> None:
    async def main() -> None:
        async with aio.Function(code, "f:hang") as hangs:
            await hangs.wait_ready()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await hangs.invoke()
            assert not hangs.sync.alive

    run(main())


@pytest.mark.fault
def test_ending_does_not_wait_behind_what_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every thread of the pool waiting for a program that never ends, killing one still works."""
    monkeypatch.setattr(aio, "THREADS", 2)
    monkeypatch.setattr(aio, "_pool", None)

    async def main() -> None:
        async with aio.Sandbox() as box:
            children = [await box.popen(["sleep", "1000"]) for _ in range(3)]
            waits = [asyncio.create_task(child.wait()) for child in children]
            await asyncio.sleep(0)
            for wait in waits:
                wait.cancel()
            results = await asyncio.gather(*waits, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            for child in children:
                await child.close()

    run(main())
    assert aio._pool is not None
    aio._pool.shutdown()


# Nothing was forgotten.


def test_every_public_method_that_waits_is_there() -> None:
    """What a synchronous class can do, its asynchronous one can, or has on `.sync` because it does not wait."""
    instant = {
        "Sandbox": {"pid", "alive"},
        "Process": {"poll", "terminate"},
        "Zygote": {"alive", "attach", "blanks", "children", "handlers", "kill", "waiting"},
        "Function": {
            *("pid", "alive", "output", "errors", "cut", "kill", "oom_kills"),
            *("forked", "forked_from", "was_blank", "ready"),
        },
        "PackageStore": set(),
        "PythonPool": {"alive", "call"},
    }
    for name, on_sync in instant.items():
        ours, theirs = getattr(aio, name), getattr(olsock, name)
        public = {each for each, _ in inspect.getmembers(theirs) if not each.startswith("_")}
        assert public - set(dir(ours)) == on_sync, name
        for each in public - on_sync:
            method, original = getattr(ours, each), getattr(theirs, each)
            if not callable(original):
                continue
            wanted, given = (set(inspect.signature(which).parameters) - {"self"} for which in (original, method))
            assert given >= wanted or "options" in given, f"{name}.{each} lacks {wanted - given}"
