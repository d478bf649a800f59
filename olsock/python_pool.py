"""Runs pieces of Python text, each in a fresh sandbox forked from a zygote that has imported what they need.

What a snippet does is never an error of ours: it is in the result, whatever it was. Errors are what the caller or the host
got wrong. Inside runs olsock/runtime/exec/snippet.py, beside the snippet, so its answer is read as what it is: bytes that
the snippet could have written itself.
"""

from __future__ import annotations

import json
import keyword
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from olsock import interpreters, rootfs
from olsock.deadline import Deadline
from olsock.errors import (
    DeadlineError,
    InvocationError,
    OlsockError,
    ProtocolError,
    SandboxDeadError,
    SpecError,
    ZygoteError,
)
from olsock.function import Function
from olsock.lineage import Lineage
from olsock.owned import Owned
from olsock.packages import PackageStore
from olsock.snippets import Answer, ExecResult, ExecUsage, Raised, read_answer
from olsock.spec import FunctionSpec, Network, PathLike, Size, ZygoteSpec
from olsock.turns import Turns
from olsock.zygote import Zygote

CODE = f"{rootfs.runtime_directory()}/exec"
HANDLER = "snippet:run"
MAX_REQUEST = 16 * 1024 * 1024
"""Bytes of source and inputs together, as JSON."""
MAX_SIZE = 1024
LONGEST = 86400.0
CUT = "[... cut ...]\n"
END_THREADS = 4  # that remove used sandboxes
END_TIMEOUT = 30.0  # for running calls to leave, once they were cancelled


class PythonPool(Owned):
    """Runs Python text in sandboxes that are used once.

    `imports` are modules that snippets find imported already. They come from `packages`, directories of installed
    packages, and from `requirements` such as "pandas>=2", which are resolved and installed into `store` (a `PackageStore`,
    or the directory of one). `python` is a path or a name such as "python3.12"; None is the interpreter of this process.

    `size` calls run at one time, and as many sandboxes are kept ready; `queue` more may wait. `memory` (with /tmp), `cpus`,
    `pids` and `tmpfs_size` hold for each sandbox, `zygote_memory` for what they are forked from. `import_timeout` is in
    seconds. Raises `ZygoteError` for imports that fail, and `PackageError`. Safe to use from several threads.
    """

    def __init__(
        self,
        imports: Sequence[str] = (),
        *,
        size: int = 8,
        queue: int = 1024,
        packages: Sequence[PathLike] = (),
        requirements: Sequence[str] = (),
        store: PackageStore | PathLike | None = None,
        python: PathLike | None = None,
        memory: Size | None = "256M",
        cpus: float | None = None,
        pids: int | None = 64,
        tmpfs_size: Size = "64M",
        network: Network = "none",
        env: Mapping[str, str] | None = None,
        zygote_memory: Size | None = "1G",
        import_timeout: float = 120.0,
    ) -> None:
        self.size = _whole(size, "size", 1, MAX_SIZE)
        self._limits: dict[str, Any] = {
            "memory": memory,
            "cpus": cpus,
            "pids": pids,
            "tmpfs_size": tmpfs_size,
            "env": dict(env) if isinstance(env, Mapping) else env,
        }
        FunctionSpec.parse(code=CODE, handler=HANDLER, **self._limits)  # refuses nonsense before anything is made
        self._turns = Turns(size, _whole(queue, "queue", 0, 1 << 20))
        self._lock = threading.Condition()
        self._calls: set[Call] = set()
        self._ends = ThreadPoolExecutor(min(size, END_THREADS), thread_name_prefix="olsock-exec-end")
        python = python if python is None or os.sep in os.fspath(python) else interpreters.get(python).path
        options: dict[str, Any] = {
            "python": python,
            "network": network,
            "memory": zygote_memory,
            "timeout": import_timeout,
            "code": CODE,
            "handler": HANDLER,
            "spare": size,
            "blanks": size,
            "separate_stderr": True,
        }
        ZygoteSpec.parse(imports, packages, **options)
        with ExitStack() as stack:
            installed = _install(requirements, store, python, stack) if requirements else []
            options["packages"] = [*installed, *packages]
            self._lineage = Lineage(lambda: Zygote(imports, **options))
            self._held = stack.pop_all()  # the closure, for successors too
        self._own()

    def exec(
        self,
        source: str,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = 2.0,
        *,
        wait: float | None = None,
        filename: str = "<snippet>",
        check: bool = False,
    ) -> ExecResult:
        """Run `source` with the variables `inputs` (what JSON can hold) and return what came of it.

        `timeout` is in seconds from its start, None for no limit. `wait` bounds what comes before: the wait for a turn, and
        for a zygote's successor; `DeadlineError` when it has passed, or when too many wait already. `ZygoteError` if the
        host cannot start sandboxes. With `check` a snippet that fails raises `ExecError`.
        """
        call = self.call(source, inputs, timeout, wait=wait, filename=filename)
        turn = call.ask()
        try:
            turn.result(call.deadline.seconds())
        except BaseException as error:
            call.give_up(turn)
            if isinstance(error, TimeoutError) and not isinstance(error, OlsockError):
                raise call.late() from None
            raise
        result = call.run()
        if check:
            result.check()
        return result

    def call(
        self,
        source: str,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = 2.0,
        *,
        wait: float | None = None,
        filename: str = "<snippet>",
    ) -> Call:
        """Check and prepare a call, for those who wait for their turn by other means than `exec`."""
        request = _request(source, inputs, filename)
        return Call(self, request, _seconds(timeout, "timeout"), Deadline(_seconds(wait, "wait")))

    @property
    def alive(self) -> bool:
        """Whether the zygote lives. One that does not is replaced by the next call."""
        return not self._closed and self._lineage.alive

    def _end(self) -> None:
        self._turns.close(closed)
        with self._lock:
            running = list(self._calls)
        for call in running:
            call.cancel()
        with self._lock:
            self._lock.wait_for(lambda: not self._calls, END_TIMEOUT)
        self._ends.shutdown()
        self._lineage.close()
        self._held.close()


class Call:
    """One run of one snippet: `ask` for a turn, wait for that, `run`. Another thread may `cancel` it."""

    def __init__(self, pool: PythonPool, request: bytes, timeout: float | None, deadline: Deadline) -> None:
        self.deadline = deadline  # for all that comes before the snippet starts
        self._pool, self._request, self._timeout = pool, request, timeout
        self._cancelled = False
        self._made: Function | None = None

    def ask(self) -> Future[None]:
        """Ask for a turn, which `run` gives back. Who does not come to run gives it up."""
        return self._pool._turns.ask()

    def give_up(self, turn: Future[None]) -> None:
        """Wait for the turn no longer, or do not use it."""
        self._pool._turns.give_up(turn)

    def late(self) -> DeadlineError:
        """Return what is raised when the turn has not come in time."""
        return DeadlineError(f"no turn in time: {self._pool.size} calls were running")

    def run(self) -> ExecResult:
        """Run the snippet. The turn is given back when its sandbox has been removed, which is not waited for."""
        pool = self._pool
        try:
            with ExitStack() as stack:
                stack.callback(self._leave)
                with pool._lock:
                    if pool._closed:
                        raise closed()
                    pool._calls.add(self)
                result = self._run(stack)
                later = stack.pop_all()
            try:
                pool._ends.submit(later.close)
            except RuntimeError:  # closed, and tired of waiting for us
                later.close()
        except (OlsockError, OSError):
            if not self._cancelled:
                raise
        else:
            if not self._cancelled:
                return result
        raise SandboxDeadError("the call was cancelled")  # whatever came of it

    def _leave(self) -> None:
        with self._pool._lock:
            self._pool._calls.discard(self)
            self._pool._lock.notify_all()
        self._pool._turns.give_back()

    def cancel(self) -> None:
        """End it: `run` raises `SandboxDeadError` in its thread."""
        with self._pool._lock:
            self._cancelled = True
            made = self._made
        if made is not None:
            made.close()

    def _run(self, stack: ExitStack) -> ExecResult:
        """Run it in a sandbox that `stack` removes."""
        for last in (False, True):
            with ExitStack() as attempt:
                zygote = attempt.enter_context(self._pool._lineage.hold(self.deadline))
                began = time.monotonic()
                try:
                    made = attempt.enter_context(zygote.fork(**self._pool._limits))
                except ZygoteError as error:
                    self._pool._lineage.depose(zygote, str(error))
                    if last:
                        raise
                    continue
                stack.push(attempt.pop_all())
            self._begin(made)
            return self._exchange(made, began)
        raise AssertionError("unreachable")

    def _begin(self, made: Function) -> None:
        with self._pool._lock:
            self._made = made
            if self._cancelled:
                raise SandboxDeadError("the call was cancelled")

    def _exchange(self, made: Function, began: float) -> ExecResult:
        left = None if self._timeout is None else max(0.001, self._timeout - (time.monotonic() - began))
        answer, ended, timed_out = Answer(None, None, False, None), None, False
        try:
            answer = read_answer(made.exchange(self._request, left))
        except InvocationError as error:
            if error.kind == "init":  # nothing of the snippet has run yet
                raise ZygoteError(f"the runtime of snippets cannot be imported: {error}") from None
            timed_out = error.kind == "timeout"
            if timed_out:
                ended = f"timed out after {self._timeout} s"
            elif error.kind in ("crash", "oom"):
                ended = str(error).replace("the handler", "the snippet")
            else:
                answer = Answer(None, None, False, Raised(error.name, str(error), error.traceback))
        except ProtocolError as error:
            ended = f"condemned: {error}"
        wall, stats = time.monotonic() - began, made.stats()
        made.kill()  # or what it has left behind could print as fast as it is read, for ever
        usage = ExecUsage(
            wall_seconds=wall,
            cpu_seconds=stats.cpu_usec / 1e6,
            peak_memory=stats.memory_peak_bytes,
            oom_killed=stats.oom_kills > 0,
            timed_out=timed_out,
        )
        stdout, stderr, cut = made.output, made.errors, made.cut
        return ExecResult(
            CUT + stdout if cut[0] else stdout,
            CUT + stderr if cut[1] else stderr,
            answer.value,
            answer.repr,
            answer.exception,
            ended,
            answer.truncated or any(cut),
            usage,
        )


def closed() -> ZygoteError:
    """Return what is raised by a pool that is closed."""
    return ZygoteError("the pool is closed")


def _install(
    requirements: Sequence[str], store: PackageStore | PathLike | None, python: PathLike | None, stack: ExitStack
) -> list[str]:
    """Return the directory of what requirements mean, held until `stack` is closed."""
    if store is None:
        raise SpecError("store", None, "a PackageStore or a directory, to install the requirements into")
    if not isinstance(store, PackageStore):
        store = stack.enter_context(PackageStore(store))
    closure = stack.enter_context(store.install(store.resolve(requirements, python), python))
    return [closure.directory]


def _request(source: Any, inputs: Any, filename: Any) -> bytes:
    """Check and pack what a snippet gets. What is wrong with the text itself is for its sandbox to say."""
    if not isinstance(source, str):
        raise SpecError("source", type(source).__name__, "Python source as str")
    if not isinstance(filename, str) or len(filename) > 4096:
        raise SpecError("filename", filename, "a short str")
    if not isinstance(inputs, Mapping | None):
        raise SpecError("inputs", type(inputs).__name__, "a mapping of variables to what JSON can hold")
    for name, value in (inputs or {}).items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise SpecError("inputs", name, "names of variables")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"inputs[{name}]", type(value).__name__, f"what JSON can hold ({error})") from None
    body = json.dumps({"source": source, "inputs": dict(inputs or {}), "filename": filename}).encode()
    if len(body) > MAX_REQUEST:
        raise SpecError("source", f"{len(body)} bytes with its inputs", f"at most {MAX_REQUEST} as JSON")
    return body


def _whole(value: Any, field: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise SpecError(field, value, f"an int from {least} to {most}")
    return value


def _seconds(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= LONGEST:
        raise SpecError(field, value, f"seconds from 0 to {LONGEST:g}, or None for no limit")
    return float(value)
