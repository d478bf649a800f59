"""What the commands of all benchmarks have in common: sections to choose from, and rows to publish."""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from measure import Row
from report import console, describe_host, publish

_Options = TypeVar("_Options")


def parser(description: str | None, sections: Mapping[str, object]) -> argparse.ArgumentParser:
    """Return the parser of the arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", metavar="FILE", type=Path, help="write the rows there as well")
    made.add_argument("--quick", action="store_true", help="a minute instead of several: to see that it runs")
    made.add_argument("--only", action="append", choices=list(sections), metavar="SECTION", help=", ".join(sections))
    return made


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, once it is sure that anything can be measured."""
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("root is needed to make sandboxes")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # 500 live functions have several descriptors each
    return given


def run(
    sections: Mapping[str, Callable[[_Options], Iterator[Row]]], given: argparse.Namespace, options: _Options
) -> str:
    """Measure what was asked for and publish it; return what the host is."""
    host = describe_host()
    console.print(host)
    rows: list[Row] = []
    for name in given.only or sections:
        rows += sections[name](options)
    publish(rows, given.json)
    return host
