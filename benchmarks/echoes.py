"""A warm function behind the worker, against uvicorn with a constant reply: latency and throughput."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import peers
import servers
from measure import Row, Samples, compare, show
from report import errors, progress


class Sizes(NamedTuple):
    """How much of it."""

    batches: int
    requests: int  # of a batch
    wrk_seconds: int


def measure(sizes: Sizes, latency: float, rate: float) -> Iterator[Row]:
    """Rows for 1 and 16 connections; `latency` and `rate` are the targets, as ratios."""
    titles = (
        "warm POST /run/echo, 1 connection, vs bare uvicorn",
        "16 connections, requests per second, vs bare uvicorn",
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olsock-bench-")))
        try:
            worker = stack.enter_context(servers.worker(folder))
            uvicorn = stack.enter_context(servers.uvicorn(folder))
            pair = {"ours": worker, "reference": uvicorn}
            yield from _one(sizes, pair, titles[0], latency, rate)
            yield from _many(sizes, pair, titles[1], rate, folder)
        except peers.PeerError as error:
            errors.print(f"http: {error}", markup=False)
            yield Row(titles[0], target=latency, note=str(error), goal=f"<= {latency:g}x")
            yield Row(titles[1], target=rate, note=str(error), goal=f">= {rate:g}x", rate=True)


def _one(sizes: Sizes, pair: dict[str, servers.Server], title: str, latency: float, rate: float) -> Iterator[Row]:
    latencies: dict[str, list[list[float]]] = {name: [] for name in pair}
    rates: dict[str, list[float]] = {name: [] for name in pair}
    with progress("http, 1 connection") as tick:
        for number in range(sizes.batches):
            for name in sorted(pair, reverse=bool(number % 2)):
                taken, of_batch = pair[name].batch(1, sizes.requests, 100)
                latencies[name].append(taken)
                rates[name].append(of_batch)
            tick(number + 1, sizes.batches)
    ours, reference = (Samples([t for batch in latencies[name] for t in batch]) for name in ("ours", "reference"))
    units = [median(batch) for batch in latencies["ours"]], [median(batch) for batch in latencies["reference"]]
    note = f"p99 {show(ours.quantile(0.99))} against {show(reference.quantile(0.99))}"
    yield compare(title, ours, reference, latency, note, units=units)
    name = "1 connection, requests per second, vs bare uvicorn"
    yield compare(name, Samples(rates["ours"]), Samples(rates["reference"]), rate, rate=True)


def _many(sizes: Sizes, pair: dict[str, servers.Server], title: str, target: float, folder: Path) -> Iterator[Row]:
    rates: dict[str, list[float]] = {name: [] for name in pair}
    latencies: dict[str, list[float]] = {name: [] for name in pair}
    wrk: dict[str, list[float]] = {name: [] for name in pair}
    with progress("http, 16 connections") as tick:
        for number in range(sizes.batches):
            for name in sorted(pair, reverse=bool(number % 2)):
                taken, rate = pair[name].batch(16, 4 * sizes.requests, sizes.requests)
                latencies[name] += taken
                rates[name].append(rate)
                by_wrk = pair[name].wrk(16, sizes.wrk_seconds, folder)
                if by_wrk is not None:
                    wrk[name].append(by_wrk)
            tick(number + 1, sizes.batches)
    medians = " against ".join(show(median(latencies[name])) for name in ("ours", "reference"))
    note = f"{servers.cores()} processors for server, function and client together; median {medians}"
    yield compare(title, Samples(rates["ours"]), Samples(rates["reference"]), target, note, rate=True)
    if wrk["ours"]:
        yield compare(f"{title}, by wrk", Samples(wrk["ours"]), Samples(wrk["reference"]), None, note, rate=True)
