"""Many first calls to one function at once, and one alone, which says what they take at the very least."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import olsock

CROWD = 50


def one(zygote: olsock.Zygote, code: str) -> tuple[float, float]:
    """Seconds that a fork alone takes until the handler is imported, and those of its call."""
    begun = time.perf_counter()
    with zygote.fork(code, "f:f") as made:
        made.wait_ready(30)
        forked = time.perf_counter()
        made.invoke({"x": 1})
        return forked - begun, time.perf_counter() - forked


def burst(zygote: olsock.Zygote, code: str, clients: ThreadPoolExecutor) -> float:
    """Seconds until the last of `CROWD` first calls at once is answered. No instance answers twice."""
    gate = threading.Barrier(CROWD + 1)

    def first_call(_: int) -> tuple[olsock.Function, float]:
        gate.wait()
        made = zygote.fork(code, "f:f")
        made.invoke({"x": 1})
        return made, time.perf_counter()

    running = [clients.submit(first_call, number) for number in range(CROWD)]
    try:
        gate.wait()
        begun = time.perf_counter()
        results = [each.result() for each in running]
    except BaseException:
        gate.abort()  # else who waits there would do so for ever
        raise
    for made, _ in results:
        made.close()
    return max(end for _, end in results) - begun
