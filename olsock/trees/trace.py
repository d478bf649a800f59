"""Traces: which packages functions have, what they import of them and how long that takes. JSON, one object a line.

    {"function": "resize", "python": "python3.12", "packages": ["numpy==2.2.3", "pillow==11.1.0"], "count": 12,
     "imports": {"numpy": {"ms": 61.5, "bytes": 4100000, "package": "numpy==2.2.3"}},
     "requires": {"some-package==1.0": ["numpy==2.2.3"]}, "time": 1763683200.0}

A line is a function or one of its invocations; lines of the same function, interpreter and packages are added up.
`packages` is the whole resolved closure. `imports` are modules with their own time, submodules' apart; without the key
it is not known what the function imports, and what others import of the same packages is assumed. `requires` says which
packages a package needs to be imported; where it is missing, what all functions with that package have is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from olsock.errors import PlanError
from olsock.trees.plan import MAX_PACKAGES, check_module, conflicts, parse_package, shown

MAX_LINE = 1 << 20
MAX_LINES = 5_000_000
MAX_FUNCTIONS = 100_000  # different ones, by name, interpreter and closure
MAX_IMPORTS = 5000
MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class Import:
    """What importing a module takes by itself, apart from the modules that it imports."""

    ms: float
    size: int = 0  # bytes
    package: str | None = None  # "name==version"; None: of the standard library


@dataclass(frozen=True, slots=True)
class Usage:
    """A function as planning sees it. `imports` None: not known. `requires`: what packages need of the others."""

    function: str
    packages: frozenset[str]
    python: str | None = None
    imports: Mapping[str, Import] | None = None
    count: float = 1.0
    requires: Mapping[str, frozenset[str]] = field(default_factory=dict)


class _Import(msgspec.Struct):
    ms: float
    bytes: int = 0
    package: str | None = None


class _Line(msgspec.Struct):
    function: str
    packages: list[str]
    python: str | None = None
    imports: dict[str, _Import] | None = None
    requires: dict[str, list[str]] = {}  # msgspec copies it
    count: float = 1.0
    time: float | str | None = None  # for who reads the file; planning weighs all times alike


class _Sum:
    """Lines of one function, added up."""

    def __init__(self) -> None:
        self.count = 0.0
        self.requires: dict[str, frozenset[str]] = {}
        self.imports: dict[str, tuple[Import, int]] | None = None

    def add(self, usage: Usage) -> None:
        self.count += usage.count
        self.requires.update(usage.requires)
        if usage.imports is None:
            return
        if self.imports is None:
            self.imports = {}
        for name, new in usage.imports.items():
            old, seen = self.imports.get(name, (new, 0))
            ms = old.ms + (new.ms - old.ms) / (seen + 1)  # the mean
            self.imports[name] = Import(ms, max(old.size, new.size), new.package), seen + 1


def read_trace(file: BinaryIO, name: str = "trace") -> tuple[Usage, ...]:
    """Read a trace, in the order in which functions first appear. `PlanError` names the line and what is wrong with it."""
    return merge(_parsed(file, name))


def merge(usages: Iterable[Usage]) -> tuple[Usage, ...]:
    """Add up what is about the same function with the same interpreter and packages."""
    sums: dict[tuple[str, str | None, frozenset[str]], _Sum] = {}
    for usage in usages:
        key = (usage.function, usage.python, usage.packages)
        if key not in sums and len(sums) >= MAX_FUNCTIONS:
            raise PlanError(f"more than {MAX_FUNCTIONS} different functions in a trace")
        sums.setdefault(key, _Sum()).add(usage)
    return tuple(_usage(key, each) for key, each in sums.items())


def _usage(key: tuple[str, str | None, frozenset[str]], each: _Sum) -> Usage:
    function, python, packages = key
    imports = None if each.imports is None else {name: it for name, (it, _) in each.imports.items()}
    return Usage(function, packages, python, imports, each.count, each.requires)


def _parsed(file: BinaryIO, name: str) -> Iterator[Usage]:
    decoder = msgspec.json.Decoder(_Line)
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        try:
            if len(line) > MAX_LINE:
                raise PlanError(f"longer than {MAX_LINE} bytes")
            if number > MAX_LINES:
                raise PlanError(f"more than {MAX_LINES} lines")
            if line.strip():
                yield _checked(decoder.decode(line))
        except (msgspec.MsgspecError, PlanError, UnicodeDecodeError, RecursionError) as e:
            raise PlanError(f"{name}:{number}: {e}") from None


def _checked(line: _Line) -> Usage:
    """The meaning of one line, or a `PlanError`."""
    if not 0 <= line.count < 1e15:  # not so for NaN either
        raise PlanError(f"count {line.count}: expected a number, 0 or more")
    if len(line.function) > MAX_TEXT or len(line.python or "") > MAX_TEXT:
        raise PlanError(f"function and python: expected at most {MAX_TEXT} characters")
    if len(line.packages) > MAX_PACKAGES:
        raise PlanError(f"{len(line.packages)} packages: expected at most {MAX_PACKAGES}")
    packages = frozenset(parse_package(each, exact=True) for each in line.packages)
    if twice := conflicts(packages):
        raise PlanError(f"packages: {', '.join(twice)} in two versions")
    requires = {
        parse_package(key, exact=True): frozenset(parse_package(each, exact=True) for each in value) & packages
        for key, value in line.requires.items()
    }
    return Usage(line.function, packages, line.python, _imports(line.imports, packages), line.count, requires)


def _imports(given: dict[str, _Import] | None, packages: frozenset[str]) -> dict[str, Import] | None:
    if given is None:
        return None
    if len(given) > MAX_IMPORTS:
        raise PlanError(f"{len(given)} imports: expected at most {MAX_IMPORTS}")
    result = {}
    for module, each in given.items():
        package = None if each.package is None else parse_package(each.package, exact=True)
        if package is not None and package not in packages:
            raise PlanError(f"module {shown(module)} is of {package}, which is not among the function's packages")
        if not 0 <= each.ms < 1e9:
            raise PlanError(f"module {shown(module)}: ms {each.ms}: expected a number, 0 or more")
        if not 0 <= each.bytes < 1 << 48:
            raise PlanError(f"module {shown(module)}: bytes {each.bytes}: expected a whole number, 0 or more")
        result[check_module(module)] = Import(each.ms, each.bytes, package)
    return result


def to_line(usage: Usage) -> bytes:
    """The line of a trace that says this, without its end."""
    line = _Line(usage.function, sorted(usage.packages), usage.python, count=usage.count)
    if usage.imports is not None:
        line.imports = {name: _Import(it.ms, it.size, it.package) for name, it in usage.imports.items()}
    line.requires = {package: sorted(needed) for package, needed in sorted(usage.requires.items())}
    return msgspec.json.encode(line)
