"""Handlers that crash, hang or will not die, and killed zygotes: each has its own reply, and the worker goes on."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from worker_process import Reply, WorkerProcess, ended, kill

pytestmark = pytest.mark.fault

CRASHES = {
    "exit_0": "import os; os._exit(0)",
    "exit_1": "import os; os._exit(1)",
    "exit_255": "import os; os._exit(255)",
    "segv": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    # Signals that pid 1 sends itself are ignored, so these two have to be met rather than raised.
    "illegal": "import ctypes, mmap\n    m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\x0f\\x0b' * 8)\n"
    "    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
    "stack": "import ctypes, sys\n    sys.setrecursionlimit(1 << 24)\n    def g(): c()\n"
    "    c = ctypes.CFUNCTYPE(None)(g)\n    c()",
    "close_channel": "import os; os.closerange(3, 1024); import time; time.sleep(30)",
    "orphan_holds_channel": "import os\n    if os.fork() == 0:\n        import time; time.sleep(30)\n    os._exit(3)",
}
ERRORS = {
    "sys_exit": "import sys; sys.exit(3)",
    "uncaught": "raise RuntimeError",
    "keyboard": "raise KeyboardInterrupt",
    "recursion": "def g(): return g()\n    g()",
}
HANGS = {
    "busy": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "ignores_sigterm": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    "stopped": "import os, signal; pid = os.fork()\n"
    "    if not pid: os.kill(os.getpid(), signal.SIGSTOP)\n    os.waitpid(pid, 0)",
    "daemon": "import os, time\n    if os.fork() == 0:\n        os.setsid()\n"
    "        if os.fork() == 0: time.sleep(60)\n        os._exit(0)\n"
    "    time.sleep(60)",
    "floods_its_log": "while True: print('x' * 1000)",
}


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    table = {name: (f"def f(event):\n    {body}\n", "timeout: 5\n") for name, body in (CRASHES | ERRORS).items()}
    table |= {name: (f"def f(event):\n    {body}\n", "timeout: 0.5\n") for name, body in HANGS.items()}
    table["exit_at_import"] = ("import os; os._exit(4)\n", "")
    table["sys_exit_at_import"] = ("import sys; sys.exit(4)\n", "")
    table["echo"] = ("def f(event):\n    return event\n", "")
    table["slow"] = ("import time\ndef f(event):\n    time.sleep(event['s'])\n    return event['s']\n", "")
    return table


@pytest.fixture(scope="module")
def config() -> str:
    return "registry_check = 0.2\nlog_bytes = 65536\nlog_files = 2\n"


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_is_a_502(worker: WorkerProcess, name: str) -> None:
    began = time.monotonic()
    reply = worker.call(name)
    assert (reply.status, reply.error) == (502, "crash")
    assert time.monotonic() - began < 4.0
    assert worker.status()["functions"][name]["instances"] == 0
    assert worker.call("echo", 1).json == 1


@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_of_any_kind_is_a_500(worker: WorkerProcess, name: str) -> None:
    reply = worker.call(name)
    assert (reply.status, reply.error) == (500, "handler")


def test_the_end_of_the_process_at_import(worker: WorkerProcess) -> None:
    reply = worker.call("exit_at_import")
    assert (reply.status, reply.error) == (502, "crash")
    reply = worker.call("sys_exit_at_import")
    assert (reply.status, reply.error) == (500, "init")


@pytest.mark.parametrize("name", HANGS)
def test_a_handler_that_hangs_is_killed_at_its_deadline(worker: WorkerProcess, name: str) -> None:
    began = time.monotonic()
    reply = worker.call(name)
    assert (reply.status, reply.error) == (504, "timeout")
    assert time.monotonic() - began < 0.5 + 3.0  # generous: starting is part of it, and the machine may be busy
    worker.until(lambda: worker.status()["functions"][name]["instances"] == 0, 2.0)


def test_logs_stay_bounded(worker: WorkerProcess) -> None:
    worker.call("floods_its_log")
    sizes = [path.stat().st_size for path in (worker.state / "logs").glob("floods_its_log*")]
    assert 1 <= len(sizes) <= 2 and sum(sizes) < 3 * 65536 + 200_000


def test_a_dead_zygote_is_replaced_and_takes_nobody_with_it(worker: WorkerProcess) -> None:
    (zygote,) = worker.zygotes_ready()
    replies: list[Reply] = []
    running = threading.Thread(target=lambda: replies.append(worker.call("slow", {"s": 2.0})))
    running.start()
    worker.until(lambda: worker.stats()["instances"]["busy"] >= 1)
    kill(zygote["pid"])
    assert ended(zygote["pid"], 5.0)
    assert worker.call("slow", {"s": 0}).json == 0  # served meanwhile, whatever there is to start from
    running.join()
    assert [(reply.status, reply.json) for reply in replies] == [(200, 2.0)]
    (again,) = worker.until(
        lambda: [
            each for each in worker.status()["zygotes"] if each["state"] == "ready" and each["pid"] != zygote["pid"]
        ]
    )
    assert again["pid"] != zygote["pid"]


def test_requests_go_on_while_the_zygote_is_killed_again_and_again(worker: WorkerProcess) -> None:
    worker.deploy("once", "def f(event):\n    return event\n", "reuse-sandbox: false\n")
    worker.until(lambda: "once" in worker.status()["functions"])
    stop = threading.Event()
    bad: list[Reply] = []
    served = 0

    def ask() -> None:
        nonlocal served
        while not stop.is_set():
            reply = worker.call("once", 1)
            served += 1
            if reply.status != 200:
                bad.append(reply)

    asking = threading.Thread(target=ask)
    asking.start()
    killed = 0
    end = time.monotonic() + 20.0
    while killed < 4 and time.monotonic() < end:
        ready = [each["pid"] for each in worker.status()["zygotes"] if each["state"] == "ready"]
        for pid in ready:
            with contextlib.suppress(ProcessLookupError):  # the worker may not know yet that it is dead
                kill(pid)
                killed += 1
                ended(pid, 5.0)
        time.sleep(0.05)
    stop.set()
    asking.join()
    assert killed >= 4 and served > 4
    # A handler whose fork was under way when the zygote died had started; what had not started must not be lost.
    assert [reply.body for reply in bad] == []
