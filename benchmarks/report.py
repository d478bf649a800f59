"""What all benchmarks print: the host, how far they are, and a table of rows."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import servers
from measure import Row, show
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from olsock import host as hosts

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True, highlight=False)
Tick = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """Show how far a measurement is: a bar on a terminal, a line now and then elsewhere."""
    if not errors.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 5 or done == total:
                errors.print(f"{what}: {done}/{total}")
                last = time.monotonic()

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def describe_host() -> str:
    """What figures of this kind depend on, beside the processor."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in processors if line.startswith("model name")), "?")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    favour = any(" cgroup2 " in line and "favordynmods" in line for line in mounts)
    expedited = Path("/sys/kernel/rcu_expedited")
    rcu = expedited.read_text().strip() if expedited.exists() else "?"
    return (
        f"{model}, {servers.cores()} processors, load {os.getloadavg()[0]:.2f}; Linux {platform.release()}; "
        f"Python {platform.python_version()}; cgroups {hosts.current().tree.mode}, "
        f"favordynmods {'on' if favour else 'off'}, rcu_expedited {rcu}"
    )


def table(rows: Sequence[Row]) -> Table:
    """The results, with a word on each target."""
    shown = Table("what", show_lines=False, title="medians")
    for name in ("olsock", "reference", "ratio", "target"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("")

    def value(of: float | None, rate: bool) -> str:
        return "" if of is None else show(of, rate)

    verdicts = {True: "[green]pass[/]", False: "[bold red]miss[/]"}
    for row in rows:
        # Two digits that say something, however small the ratio.
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x" if row.ratio >= 0.1 else f"{row.ratio:.4f}x"
        verdict = "" if not row.goal else verdicts.get(row.holds, "[yellow]not run[/]")  # type: ignore[arg-type]
        shown.add_row(row.name, value(row.ours, row.rate), value(row.reference, row.rate), ratio, row.goal, verdict)
    return shown


def publish(rows: Sequence[Row], file: Path | None) -> None:
    """Print the table and what is to be known of each row; write the rows to a file, if one is named."""
    console.print(table(rows))
    for row in rows:
        console.print(f"{row.name}: {row.note}", markup=False)
    if file:
        file.write_text(json.dumps([row.record() for row in rows], indent=1) + "\n")
    missed = sum(row.holds is False for row in rows)
    skipped = sum(bool(row.goal) and row.holds is None for row in rows)
    text = f"{missed} missed" if missed else "every target that could be measured holds"
    console.print(f"{text}, {skipped} not measured" if skipped else text)
