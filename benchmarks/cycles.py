"""Does anything grow? Creates and destroys sandboxes many times over, and looks at what the library's processes hold.

    python benchmarks/cycles.py exec|fork COUNT

Prints JSON: one sample of every figure each COUNT / 20 cycles, the first after a warm-up.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

import olsock
from olsock import host as hosts

SAMPLES = 20
WARM_UP = (
    1000  # until allocators have what they keep: over 6,000 more cycles the library grows by 8 bytes a cycle, then none
)
QUIET = 0.3  # seconds before a sample, for what is refilled and freed in the background


def cgroups() -> int:
    """How many cgroups there are below this process's tree, in every hierarchy."""
    return sum(len(dirs) for path in hosts.current().tree.paths for _, dirs, _ in os.walk(path))


def sample(processes: dict[str, psutil.Process], done: int) -> dict[str, float]:
    time.sleep(QUIET)
    figures: dict[str, float] = {"cycles": done, "cgroups": cgroups()}
    me = processes["library"].pid
    figures["mounts"] = sum(
        len(Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines())
        for pid in (me, *(each.pid for name, each in processes.items() if name != "library"))
    )
    for name, process in processes.items():
        figures[f"fds of the {name}"] = process.num_fds()
        figures[f"threads of the {name}"] = process.num_threads()
        figures[f"rss of the {name}"] = process.memory_info().rss
    figures["children"] = len(processes["library"].children(recursive=True))
    return figures


@contextmanager
def execs() -> Iterator[tuple[Callable[[], None], dict[str, psutil.Process]]]:
    def cycle() -> None:
        with olsock.Sandbox() as box:
            box.run(["/bin/true"])

    yield cycle, {}


@contextmanager
def forks() -> Iterator[tuple[Callable[[], None], dict[str, psutil.Process]]]:
    with ExitStack() as stack:
        code = stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-cycles-"))
        os.chmod(code, 0o755)
        Path(code, "f.py").write_text("def f(event):\n    return event\n")
        zygote = stack.enter_context(olsock.Zygote())

        def cycle() -> None:
            with zygote.fork(code, "f:f") as function:
                if function.invoke({"x": 1}) != {"x": 1}:
                    raise SystemExit("cycles: wrong reply")

        yield cycle, {"zygote": psutil.Process(zygote.pid)}


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    with execs() if kind == "exec" else forks() as (cycle, more):
        for _ in range(WARM_UP):
            cycle()
        host = hosts.current()
        processes = {"library": psutil.Process(), "spawner": psutil.Process(host.spawner.pid), **more}
        samples = [sample(processes, 0)]
        every = max(1, count // SAMPLES)
        for number in range(1, count + 1):
            cycle()
            if number % every == 0:
                samples.append(sample(processes, number))
                print(f"{number}/{count}", file=sys.stderr, flush=True)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
