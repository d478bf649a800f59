"""What a zygote tree should be: nodes with the packages they have and the modules they import. Checked when made."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from olsock.errors import PlanError

MAX_NODES = 10_000
MAX_DEPTH = 64
MAX_PACKAGES = 4096  # of one node
MAX_IMPORTS = 2048  # of one node
MAX_NAME = 256  # characters of a package with its version, and of a module
MAX_NOTE = 1024

_PACKAGE = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9._+!-]*))?")


def package_name(package: str) -> str:
    """The name in "name==version", or in a bare name."""
    return package.partition("==")[0]


def is_exact(package: str) -> bool:
    """Whether a version goes with the name."""
    return "==" in package


def parse_package(text: Any, *, exact: bool = False) -> str:
    """Return "name==version", or a bare "name" unless `exact`, with the name as indexes normalise it. `PlanError`."""
    match = _PACKAGE.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= MAX_NAME else None
    if match is None or (exact and match[2] is None):
        raise PlanError(f"package {shown(text)}: expected {'' if exact else 'a name or '}name==version")
    name = canonicalize_name(match[1])
    return f"{name}=={match[2]}" if match[2] else str(name)


def check_module(name: Any) -> str:
    """Return the dotted name of a module, or raise `PlanError`."""
    if (
        not isinstance(name, str)
        or len(name) > MAX_NAME
        or not all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))
    ):
        raise PlanError(f"module {shown(name)}: expected a dotted name, like numpy or package.module")
    return name


def shown(value: Any) -> str:
    """A value for a message: short, and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def conflicts(packages: Iterable[str]) -> list[str]:
    """The names that are there in more than one version."""
    seen: dict[str, str] = {}
    found = {
        package_name(package) for package in packages if seen.setdefault(package_name(package), package) != package
    }
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Node:
    """One zygote: all packages that it and its ancestors have, and what it imports beside what they have imported.

    A package is "name==version", or a bare name that means any version until `olsock.trees.bind` has made it exact.
    `ms` and `size` (bytes) are what its own imports take; `hits` and `saved_ms` what it is or was good for: functions
    that start from just this node, and the import time that they save altogether. `note` is for who looks at it.
    """

    packages: frozenset[str] = frozenset()
    imports: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    ms: float = 0.0
    size: int = 0
    hits: float = 0.0
    saved_ms: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.packages) > MAX_PACKAGES:
            raise PlanError(f"{len(self.packages)} packages in a node: expected at most {MAX_PACKAGES}")
        if len(self.imports) > MAX_IMPORTS:
            raise PlanError(f"{len(self.imports)} imports in a node: expected at most {MAX_IMPORTS}")
        for package in self.packages:
            if parse_package(package) != package:
                raise PlanError(f"package {shown(package)}: expected its normalised name, {parse_package(package)}")
        for module in self.imports:
            check_module(module)
        if twice := conflicts(self.packages):
            raise PlanError(f"{', '.join(twice)}: in two versions in one node")
        for name in ("ms", "size", "hits", "saved_ms"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
                raise PlanError(f"{name}={shown(value)}: expected a number, 0 or more")
        if len(self.note) > MAX_NOTE:
            raise PlanError(f"a note of {len(self.note)} characters: expected at most {MAX_NOTE}")
        for child in self.children:
            if not self.packages <= child.packages:
                missing = ", ".join(sorted(self.packages - child.packages)[:5])
                raise PlanError(f"a child lacks packages of its parent: {missing}")

    def added(self, parent: Node | None) -> frozenset[str]:
        """The packages that its parent does not have."""
        return self.packages - parent.packages if parent else self.packages


@dataclass(frozen=True, slots=True)
class Plan:
    """A tree for one interpreter ("python3.12"; None: whichever it is used for). The root has no packages."""

    root: Node = Node()
    python: str | None = None

    def __post_init__(self) -> None:
        if self.python is not None and not re.fullmatch(r"[\w./+-]{1,256}", self.python):
            raise PlanError(f"python {shown(self.python)}: expected the name of an interpreter, like python3.12")
        if self.root.packages:
            raise PlanError("the root has packages: expected none, since every function may start from it")
        for count, path in enumerate(self.paths(), 1):
            if count > MAX_NODES:
                raise PlanError(f"more than {MAX_NODES} nodes")
            if len(path) > MAX_DEPTH:
                raise PlanError(f"more than {MAX_DEPTH} nodes on one path")

    def paths(self) -> Iterator[tuple[Node, ...]]:
        """Every node with its ancestors, root first; parents come before their children."""
        todo: list[tuple[Node, ...]] = [(self.root,)]
        while todo:
            path = todo.pop()
            yield path
            todo += [(*path, child) for child in reversed(path[-1].children)]

    @property
    def nodes(self) -> int:
        """How many there are."""
        return sum(1 for _ in self.paths())

    @property
    def size(self) -> int:
        """Bytes that all of them together are expected to take."""
        return sum(path[-1].size for path in self.paths())
