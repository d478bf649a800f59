"""Learning what functions import from how they start, for trees that grow while a worker runs. Bounded, and pure.

A cold start tells all that a function imports. One from a zygote tells only what that had not loaded, and which packages
of it the function's own code uses; what those need was used by them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Protocol

from olsock.trees.bind import complete
from olsock.trees.trace import Import, Usage

MAX_FUNCTIONS = 2000
MAX_MODULES = 4000  # of one function
MAX_KNOWN = 200_000  # modules of all packages
FORGOTTEN = 0.05  # starts, below which fading forgets a function


class Imported(Protocol):
    """What a runtime tells of one import: see olsock.readiness."""

    @property
    def module(self) -> str: ...
    @property
    def package(self) -> str: ...  # its top-level module
    @property
    def self_ms(self) -> float: ...
    @property
    def bytes(self) -> int: ...


def owner(module: str, owners: Mapping[str, str]) -> str | None:
    """The package that a module is of, by the longest beginning of its name that has an owner."""
    while module:
        if module in owners:
            return owners[module]
        module = module.rpartition(".")[0]
    return None


@dataclass(slots=True)
class _Module:
    """Running figures of one module of one package."""

    ms: float = 0.0
    seen: int = 0
    size: int = 0

    def add(self, ms: float, size: int) -> None:
        self.seen = min(self.seen + 1, 50)  # later ones keep a say
        self.ms += (ms - self.ms) / self.seen
        self.size = max(self.size, size)


@dataclass(slots=True)
class _Function:
    packages: frozenset[str]
    python: str | None
    count: float = 0.0
    modules: dict[str, str] = field(default_factory=dict)  # module -> package
    requires: Mapping[str, frozenset[str]] = field(default_factory=dict)
    told: bool = False  # whether it has ever told what it imports


class Learner:
    """Collects starts, and gives them as a trace for `olsock.trees.fit`. To be used from one thread at a time."""

    def __init__(self, max_functions: int = MAX_FUNCTIONS) -> None:
        self._max = max_functions
        self._functions: OrderedDict[str, _Function] = OrderedDict()  # the one that started last is last
        self._modules: dict[tuple[str, str], _Module] = {}  # (package, module)
        self.observations = 0
        """How many starts there have been since the last `trace`."""

    def observe(
        self,
        function: str,
        packages: frozenset[str],
        python: str | None = None,
        *,
        imports: Iterable[Imported] | None = None,
        used: Collection[str] = (),
        owners: Mapping[str, str] | None = None,
        loaded: Mapping[str, Import] | None = None,
        requires: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        """Note a new start of a function.

        `imports` and `used` are what its runtime told (None: nothing), `owners` the package of each top-level module in
        its closure, `loaded` what the zygote that it started from had imported, `requires` what packages need.
        """
        known = self._functions.get(function)
        if known is None or known.packages != packages or known.python != python:
            known = self._functions[function] = _Function(packages, python)
        self._functions.move_to_end(function)
        while len(self._functions) > self._max:
            self._functions.popitem(last=False)
        known.count += 1
        known.requires = requires or known.requires
        self.observations += 1
        if imports is None:
            return
        known.told = True
        for each in imports:
            package = owner(each.module, owners or {})
            if package is not None and package in packages:
                self._note(known, each.module, package, each.self_ms, each.bytes)
        self._inherit(known, used, owners or {}, loaded or {})

    def _note(self, known: _Function, module: str, package: str, ms: float, size: int) -> None:
        name, package = intern(module), intern(package)
        if len(known.modules) < MAX_MODULES:
            known.modules[name] = package
        figures = self._modules.get((package, name))
        if figures is None:
            if len(self._modules) >= MAX_KNOWN:
                self._modules.pop(next(iter(self._modules)))  # the oldest; it comes back if it is still imported
            figures = self._modules[package, name] = _Module()
        figures.add(ms, size)

    def _inherit(
        self, known: _Function, used: Collection[str], owners: Mapping[str, str], loaded: Mapping[str, Import]
    ) -> None:
        """Count what a zygote had loaded already, as far as the function uses it."""
        # Of a namespace package, such as google.cloud, nobody knows whose part was used: it may be any.
        direct = {
            package
            for module, package in owners.items()
            if module.partition(".")[0] in used and package in known.packages
        }
        needed = complete(direct, known.requires, known.packages)
        for module, each in loaded.items():
            if each.package in needed and each.package is not None and len(known.modules) < MAX_MODULES:
                known.modules[intern(module)] = intern(each.package)
                self._modules.setdefault((intern(each.package), intern(module)), _Module(each.ms, 1, each.size))

    def known(self, function: str) -> dict[str, float] | None:
        """What a function imports and how many milliseconds each module takes; None if that has never been told."""
        known = self._functions.get(function)
        if known is None or not known.told:
            return None
        return {
            module: figures.ms
            for module, package in known.modules.items()
            if (figures := self._modules.get((package, module))) is not None
        }

    def forget(self, function: str) -> None:
        """Drop a function, such as one that was removed."""
        self._functions.pop(function, None)

    def trace(self, fade: float = 1.0) -> tuple[Usage, ...]:
        """What was learnt, and multiply all counts by `fade`, so that what was long ago counts less each time."""
        self.observations = 0
        usages = tuple(self._usage(name, known) for name, known in self._functions.items())
        for name, known in list(self._functions.items()):
            known.count *= fade
            if known.count < FORGOTTEN:
                del self._functions[name]
        return usages

    def _usage(self, name: str, known: _Function) -> Usage:
        imports = None
        if known.told:
            imports = {
                module: Import(figures.ms, figures.size, package)
                for module, package in known.modules.items()
                if (figures := self._modules.get((package, module))) is not None
            }
        return Usage(name, known.packages, known.python, imports, known.count, known.requires)
