"""`olsock tree`: fit zygote trees to traces, and look at them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from olsock.trees.plan import Plan

PIPE_WIDTH = 240


@click.group()
def tree() -> None:
    """Fit zygote trees to traces, and show them. Needs no root."""


@tree.command()
@click.option("--nodes", type=int, default=40, show_default=True, metavar="N", help="At most that many zygotes.")
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="What they may take together.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write the plan there.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, instead of drawing it.")
@click.argument("trace", type=click.Path(allow_dash=True))
def fit(trace: str, nodes: int, memory: str, output: str | None, as_json: bool) -> None:
    """Fit trees to TRACE, a file of JSON lines ("-": standard input).

    Each line is a function or one of its invocations: {"function": NAME, "python": "python3.12", "packages":
    ["name==version", ...], "imports": {MODULE: {"ms": N, "bytes": N, "package": "name==version"}}, "count": N}.
    The same trace gives the same trees.
    """
    from olsock.spec import parse_size
    from olsock.trees import fit as fit_trees
    from olsock.trees import formats
    from olsock.trees.trace import read_trace

    size = parse_size(memory, "memory", unlimited=False)
    assert size is not None
    if trace == "-":
        usages = read_trace(sys.stdin.buffer, "standard input")
    else:
        with open(trace, "rb") as file:
            usages = read_trace(file, trace)
    plans = fit_trees(usages, nodes, size)
    if output is not None:
        _write(output, formats.dump(plans) + "\n")
    _print(plans, as_json)


@tree.command()
@click.option("--svg", type=click.Path(dir_okay=False), metavar="FILE", help="Write a picture there.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON in this format, instead of drawing it.")
@click.argument("file", type=click.Path())
def show(file: str, svg: str | None, as_json: bool) -> None:
    """Draw the trees in FILE, a plan that `olsock tree fit` wrote or one of OpenLambda's."""
    from olsock.trees import formats

    plans = formats.load(file)
    if svg is not None:
        from olsock.trees.svg import draw

        _write(svg, draw(plans))
    _print(plans, as_json)


def _print(plans: Sequence[Plan], as_json: bool) -> None:
    if as_json:
        from olsock.trees import formats

        click.echo(formats.dump(plans))
        return
    from rich.console import Console

    from olsock.trees.render import render

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width: lines are not to be cut for one
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(render(plans))


def _write(path: str, text: str) -> None:
    """Write a file so that there is all of it or what was there before."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe: /dev/stdout
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    beside = f"{path}.{os.getpid()}.new"
    try:
        with open(beside, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
