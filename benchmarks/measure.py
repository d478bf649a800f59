"""Samples, their statistics, and the rows they become."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WARM_UP = 10
SETTLE = 0.01
RESAMPLES = 1000


@dataclass(slots=True)
class Samples:
    """Measurements of one thing, in seconds (or any unit)."""

    values: list[float] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        """Return the value that a share `q` of the samples lies below."""
        ordered = sorted(self.values)
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def spread(self, rate: bool = False) -> str:
        """Return "p10 .. p90"."""
        return f"{show(self.quantile(0.1), rate)} .. {show(self.quantile(0.9), rate)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One result. Seconds for times, requests per second for rates; None where there is nothing to compare with."""

    name: str
    ours: float | None = None
    reference: float | None = None
    ratio: float | None = None
    target: float | None = None
    holds: bool | None = None
    note: str = ""
    goal: str = ""  # the target in words, for the table only
    rate: bool = False

    def record(self) -> dict[str, str | float | bool | None]:
        """Return what the JSON file gets."""
        fields = ("name", "ours", "reference", "ratio", "target", "holds", "note")
        return {name: getattr(self, name) for name in fields}


def compare(
    name: str,
    ours: Samples,
    reference: Samples,
    target: float | None,
    note: str = "",
    *,
    rate: bool = False,
    units: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Row:
    """A row for a time that may be at most `target` times the reference's, or a rate that must be at least that.

    `units`: what was drawn independently, if that is not each sample (requests of one batch share its luck).
    """
    ratio = ours.median / reference.median
    low, high = interval(*(units or (ours.values, reference.values)))
    parts = [
        f"p10 .. p90 {ours.spread(rate)} against {reference.spread(rate)}",
        f"95% interval of the ratio {low:.2f} .. {high:.2f}",
        *([note] if note else []),
    ]
    holds = None if target is None else (ratio >= target if rate else ratio <= target)
    goal = "" if target is None else f"{'>=' if rate else '<='} {target:g}x"
    return Row(name, ours.median, reference.median, ratio, target, holds, "; ".join(parts), goal, rate)


def absolute(name: str, ours: Samples, target: float | None, note: str = "") -> Row:
    """A row for a time that may be at most `target` seconds."""
    parts = [f"p10 .. p90 {ours.spread()}", *([note] if note else [])]
    holds = None if target is None else ours.median <= target
    goal = "" if target is None else f"<= {show(target)}"
    return Row(name, ours.median, None, None, target, holds, "; ".join(parts), goal)


def interval(ours: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Bootstrap the ratio of two medians: its 2.5 % and 97.5 % quantiles. Same samples, same answer."""
    draw = random.Random(1)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours)))
        / statistics.median(draw.choices(reference, k=len(reference)))
        for _ in range(RESAMPLES)
    )
    return ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    every: Mapping[str, int] | None = None,
    settle: float = SETTLE,
    tick: Callable[[int, int], None] = lambda done, all: None,
) -> dict[str, Samples]:
    """Run all contenders in turn, in an order drawn anew each round, so that all meet the same luck.

    A contender returns the seconds it took, without its own tidying up. Before each there are `settle` seconds of
    nothing, in which whatever any of them left to be done in the background gets done. Those in `every` run in each
    n-th round only (runc is slow).
    """
    samples = {name: Samples() for name in contenders}
    draw = random.Random(2)
    names = list(contenders)
    warm_up = min(WARM_UP, rounds)
    for number in range(-warm_up, rounds):
        draw.shuffle(names)
        for name in names:
            if number % (every or {}).get(name, 1):
                continue
            time.sleep(settle)
            took = contenders[name]()
            if number >= 0:
                samples[name].values.append(took)
        tick(number + warm_up + 1, rounds + warm_up)
    return samples


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Make a contender of a function."""

    def contender() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return contender


def show(value: float, rate: bool = False) -> str:
    """Return a time in the unit that suits it, or a rate."""
    if rate:
        return f"{value:.0f}/s"
    if value < 0.001:
        return f"{value * 1e6:.1f} us"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
