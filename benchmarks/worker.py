"""What the worker costs: warm calls, asynchronous accepts, a thousand functions, in one interleaved run.

    python benchmarks/worker.py [--json FILE] [--quick] [--only SECTION]...

Sections: echo (a warm function against uvicorn, with metrics and logs on), events (calls of the Event type accepted a second),
functions (1,000 deployed: start of the worker, and the way to one of them). Needs root. README.md says how each is measured.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import apsw
import echoes
import peers
import psutil
import sections
import servers
from measure import Row, Samples, absolute, compare, interval, show
from report import errors, progress

LATENCY, RATE = 2.0, 0.6  # targets against uvicorn
ACCEPTS = 2000.0  # a second
START = 2.0  # seconds
FLAT = 1.1
PATIENCE = 300.0
EVENT = "X-Amz-Invocation-Type: Event"


class Options:
    """How much of everything."""

    def __init__(self, quick: bool) -> None:
        self.batches = 3 if quick else 10
        self.requests = 300 if quick else 1000
        self.wrk_seconds = 1 if quick else 3
        self.events = 1000 if quick else 5000
        self.functions = 50 if quick else 1000
        self.starts = 2 if quick else 10


def measure_echo(options: Options) -> Iterator[Row]:
    """See echoes.py."""
    sizes = echoes.Sizes(options.batches, options.requests, options.wrk_seconds)
    yield from echoes.measure(sizes, LATENCY, RATE)


def measure_events(options: Options) -> Iterator[Row]:
    """Events accepted a second, each on the disk before its 202, against commits of one row each to the same disk."""
    title = "asynchronous invocations accepted per second, 16 connections, vs one commit each"
    goal = f">= {ACCEPTS:g}/s"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-bench-")))
        try:
            worker = stack.enter_context(servers.worker(folder))
            commits = stack.enter_context(_Commits(folder))
            ours, reference = Samples(), Samples()
            with progress("events") as tick:
                for number in range(options.batches):
                    path = "/2015-03-31/functions/echo/invocations"
                    rate = worker.batch(16, options.events, options.events // 10, path, (EVENT,))[1]
                    ours.values.append(rate)
                    _settle(worker)  # those that were accepted are carried out meanwhile
                    reference.values.append(commits.rate(options.events // 5))
                    tick(number + 1, options.batches)
        except peers.PeerError as error:
            errors.print(f"events: {error}", markup=False)
            yield Row(title, target=ACCEPTS, note=str(error), goal=goal, rate=True)
            return
    low, high = interval(ours.values, reference.values)
    note = f"p10 .. p90 {ours.spread(True)} against {reference.spread(True)}; 95% interval of the ratio {low:.2f} .. {high:.2f}"
    ratio = ours.median / reference.median
    holds = ours.median >= ACCEPTS
    yield Row(title, ours.median, reference.median, ratio, ACCEPTS, holds, note, goal, rate=True)


class _Commits:
    """A table that gets one row a transaction, as safe against power cuts as the queue."""

    def __init__(self, folder: Path) -> None:
        self._database = apsw.Connection(str(folder / "floor.db"))
        self._database.pragma("journal_mode", "wal")
        self._database.pragma("synchronous", "full")
        self._database.execute("create table event (id integer primary key, payload blob)")

    def rate(self, count: int) -> float:
        """Return how many commits a second there were, of so many."""
        begun = time.perf_counter()
        for _ in range(count):
            self._database.execute("insert into event (payload) values (?)", (b'{"x": 1}',))
        return count / (time.perf_counter() - begun)

    def __enter__(self) -> _Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def measure_functions(options: Options) -> Iterator[Row]:
    """The start of a worker with many functions, and a warm call to one of them against a worker that has no others."""
    titles = (
        f"{options.functions} functions: start of the worker until one has answered",
        f"{options.functions} functions: warm POST to one of them, vs a worker with one function",
    )
    with ExitStack() as stack:
        few, full = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-bench-"))) for _ in range(2))
        try:
            with servers.worker(full) as worker:
                _deploy(worker, options.functions)
                _settle(worker)
            started = Samples()
            with progress("starts") as tick:
                for number in range(options.starts):
                    with servers.worker(full) as worker:
                        started.values.append(worker.started)
                    tick(number + 1, options.starts)
            yield absolute(titles[0], started, START, "the interpreter, the first sandbox and its function included")
            contenders = {"ours": stack.enter_context(servers.worker(full))}
            contenders["reference"] = stack.enter_context(servers.worker(few))
            for worker in contenders.values():
                _settle(worker)
            latencies: dict[str, list[list[float]]] = {name: [] for name in contenders}
            with progress("lookups") as tick:
                for number in range(options.batches):
                    for name in sorted(contenders, reverse=bool(number % 2)):
                        latencies[name].append(contenders[name].batch(1, options.requests, 100)[0])
                    tick(number + 1, options.batches)
        except peers.PeerError as error:
            errors.print(f"functions: {error}", markup=False)
            yield Row(titles[0], target=START, note=str(error), goal=f"<= {show(START)}")
            yield Row(titles[1], target=FLAT, note=str(error), goal=f"<= {FLAT:g}x")
            return
    ours, reference = (Samples([median(batch) for batch in latencies[name]]) for name in ("ours", "reference"))
    yield compare(titles[1], ours, reference, FLAT, "medians of batches")


def _deploy(worker: servers.Server, count: int) -> None:
    """Make functions over the API, each with code of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=PATIENCE)
    with progress(f"{count} functions are deployed") as tick:
        for number in range(count):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("f.py", f"def f(event, context):\n    return {number}\n")
            body = {
                "FunctionName": f"function-{number}",
                "Runtime": "python3.11",
                "Role": "arn:aws:iam::000000000000:role/none",
                "Handler": "f.f",
                "Code": {"ZipFile": base64.b64encode(packed.getvalue()).decode()},
            }
            connection.request("POST", "/2015-03-31/functions", json.dumps(body))
            reply = connection.getresponse()
            said = reply.read()
            if reply.status != 201:
                raise peers.PeerError(f"CreateFunction: {reply.status} {said[:300]!r}")
            tick(number + 1, count)
    connection.close()


def _settle(worker: servers.Server) -> None:
    """Wait until the worker does nothing any more."""
    end = time.monotonic() + PATIENCE
    before = -1.0
    while time.monotonic() < end:
        processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        now = 0.0
        for each in processes:
            try:
                now += sum(each.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
        if abs(now - before) <= 0.01:
            return
        before = now
        time.sleep(0.5)
    raise peers.PeerError(f"the worker was still at work after {PATIENCE:g} s")


SECTIONS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "echo": measure_echo,
    "events": measure_events,
    "functions": measure_functions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sections.parse(sections.parser(__doc__, SECTIONS), arguments)
    sections.run(SECTIONS, given, Options(given.quick))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        errors.print("worker: interrupted")
        sys.exit(130)
