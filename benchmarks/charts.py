"""Draws what benchmarks/zygotes.py found: throughput against memory, latencies of the trace, first replies by tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from measure import Samples, show
from replay import COLD, GOAL, LIMIT, MIB, Tried

WIDTH, HEIGHT = 5.6, 4.2  # inches of one panel
DPI = 150
INK, MUTED, MARK = "#222222", "#8a8a8a", "#c0392b"


def draw(file: Path, tried: Mapping[str, Tried], tiers: Mapping[str, Samples], about: str) -> None:
    """Write a PNG with a panel for each section that has run. Raises `ImportError` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[Callable[[Any], None]] = []
    if any(each.calls for each in tried.values()):
        panels += [lambda axes: _throughput(axes, tried), lambda axes: _latencies(axes, tried)]
    if tiers:
        panels.append(lambda axes: _tiers(axes, tiers))
    if not panels:
        return
    figure, places = pyplot.subplots(1, len(panels), figsize=(WIDTH * len(panels), HEIGHT), squeeze=False)
    for panel, axes in zip(panels, places[0], strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    figure.text(0.5, 0.005, about, ha="center", va="bottom", fontsize=7, color=MUTED)
    figure.tight_layout(rect=(0, 0.03, 1, 1), w_pad=3)
    figure.savefig(file, dpi=DPI)
    pyplot.close(figure)


def _trees(tried: Mapping[str, Tried]) -> dict[int, Tried]:
    return {int(name): each for name, each in tried.items() if name != COLD and each.calls}


def _colours(count: int) -> list[Any]:
    import matplotlib

    return list(matplotlib.colormaps["viridis"]([0.8 * (1 - at / max(1, count - 1)) for at in range(count)]))


def _throughput(axes: Any, tried: Mapping[str, Tried]) -> None:
    """One point for each size of tree; bars from the slowest to the fastest batch."""
    trees = _trees(tried)
    colours = _colours(len(trees))
    places = [(max(each.sizes) / MIB, median(each.rates)) for each in trees.values()]
    axes.plot(*zip(*places, strict=True), color=MUTED, linewidth=1, zorder=1)
    for (nodes, each), (memory, rate), colour in zip(trees.items(), places, colours, strict=True):
        spread = [[rate - min(each.rates)], [max(each.rates) - rate]]
        place = axes.errorbar(memory, rate, yerr=spread, fmt="o", color=colour, markersize=7, capsize=3, linewidth=1)
        place.set_label(f"{'1 bare zygote' if nodes == 1 else f'{nodes} nodes'}: {rate:.0f}/s, {memory:.0f} MiB")
    if 1 in trees:
        goal = GOAL * median(trees[1].rates)
        axes.axhline(goal, color=MARK, linestyle=":", linewidth=1)
        axes.annotate(
            f"{GOAL:g}x the bare zygote", (1, goal), (-4, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=8, color=MARK, ha="right",
        )  # fmt: skip
    if tried[COLD].rates:
        rate = median(tried[COLD].rates)
        axes.axhline(rate, color=MUTED, linestyle=":", linewidth=1, label=f"no zygote: {rate:.0f}/s")
    top = 1.5 * max(max(each.rates) for each in trees.values())
    axes.set(
        title="Throughput by size of the tree", xlabel="memory of the zygotes (MiB, proportional)",
        ylabel="new instances per second", xlim=(-0.02 * LIMIT / MIB, None), ylim=(0, top),
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _latencies(axes: Any, tried: Mapping[str, Tried]) -> None:
    """The share of calls that were answered within a time."""
    trees = _trees(tried)
    lines = [(COLD, "no zygote", MUTED)] if tried[COLD].calls else []
    labels = {nodes: "1 bare zygote" if nodes == 1 else f"{nodes} nodes" for nodes in trees}
    lines += [(str(nodes), labels[nodes], colour) for nodes, colour in zip(trees, _colours(len(trees)), strict=True)]
    for name, label, colour in lines:
        values = sorted(1e3 * value for value in tried[name].part("total").values)
        shares = [(at + 1) / len(values) for at in range(len(values))]
        axes.step(values, shares, where="post", color=colour, linewidth=1.5, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        title="Call of a new instance, request to reply", xlabel="milliseconds", ylabel="share of calls", ylim=(0, 1.01)
    )
    axes.grid(axis="both", color="#eeeeee")
    axes.legend(frameon=False, fontsize=8, loc="best")


def _tiers(axes: Any, tiers: Mapping[str, Samples]) -> None:
    """First replies over HTTP: medians, with what nine of ten take."""
    names = list(tiers)
    medians = [1e3 * tiers[name].median for name in names]
    most = [1e3 * tiers[name].quantile(0.9) for name in names]
    colours = [MUTED, *_colours(len(names) - 1)]
    axes.barh(names, medians, color=colours, height=0.6)
    axes.hlines(names, medians, most, color=INK, linewidth=1)
    for at, (middle, high) in enumerate(zip(medians, most, strict=True)):
        axes.annotate(show(middle / 1e3), (high, at), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 3, max(most) * 5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(title="First reply of a numpy+pandas function", xlabel="milliseconds, median to p90")
