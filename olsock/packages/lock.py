"""Locks: the exact distributions, with their hashes, that requirements were resolved to for one kind of interpreter.

A lock's text is a requirements file with a head of comments. Both what a store kept and what a resolver in a sandbox
printed are read by one strict parser: a line that is not exactly a pin or its hashes is an error.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from olsock.errors import SpecError

MAX_TEXT = 8 << 20  # characters
MAX_PINS = 2000
MAX_HASHES = 2000  # of one pin: every wheel of a version is named
MAX_NAME, MAX_VERSION = 100, 64  # characters; both become part of a file's name

TAG = re.compile(r"cpython-3[0-9]{1,2}")

_HEAD = "# olsock lock 1"
_PIN = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """One distribution: its normalised name, its version, and the hashes of the files that will do."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.name != canonicalize_name(self.name) or not 0 < len(self.name) <= MAX_NAME:
            raise ValueError(f"not a normalised name: {self.name[:200]!r}")
        if len(self.version) > MAX_VERSION or str(_version(self.version)) != self.version:
            raise ValueError(f"not a normalised version: {self.version[:200]!r}")
        if not 0 < len(self.hashes) <= MAX_HASHES or list(self.hashes) != sorted(set(self.hashes)):
            raise ValueError(f"{self}: needs 1 to {MAX_HASHES} sha256 hashes, sorted")

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def text(self) -> str:
        """The pin as lines of a requirements file."""
        return " \\\n".join([str(self), *(f"    --hash={each}" for each in self.hashes)]) + "\n"


@dataclass(frozen=True)
class Lock:
    """What requirements mean for one kind of interpreter. Equal pins have equal keys, whatever was asked for."""

    tag: str  # of the interpreter, "cpython-311"
    requirements: tuple[str, ...]
    pins: tuple[Pin, ...]

    def __post_init__(self) -> None:
        if not TAG.fullmatch(self.tag):
            raise SpecError("lock", self.tag[:200], 'a tag such as "cpython-311"')
        names = [pin.name for pin in self.pins]
        if names != sorted(set(names)) or len(names) > MAX_PINS:
            raise SpecError("lock", names[:20], f"each distribution once, sorted, {MAX_PINS} at most")
        if not all(line.isprintable() and line for line in self.requirements):
            raise SpecError("lock", self.requirements, "requirements of one line each")

    @functools.cached_property
    def packages(self) -> frozenset[str]:
        """The distributions as "name==version"."""
        return frozenset(map(str, self.pins))

    @functools.cached_property
    def key(self) -> str:
        """A digest of the tag and the pins."""
        return hashlib.sha256("".join([self.tag, "\n", *(pin.text for pin in self.pins)]).encode()).hexdigest()[:32]

    @functools.cached_property
    def text(self) -> str:
        """The lock as text, which `parse` reads."""
        head = [_HEAD, f"# python {self.tag}", *(f"# requires {line}" for line in self.requirements)]
        return "\n".join(head) + "\n" + "".join(pin.text for pin in self.pins)

    def restrict(self, packages: Collection[str]) -> Lock:
        """Return the lock of just these of its packages ("name==version"), as it pins them."""
        return Lock(self.tag, (), tuple(pin for pin in self.pins if str(pin) in packages))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the lock that a text says; `SpecError` for anything that `text` cannot have written."""
        head, requirements = text[:MAX_TEXT].split("\n"), []
        if len(text) > MAX_TEXT or len(head) < 2 or head[0] != _HEAD or not head[1].startswith("# python "):
            raise SpecError("lock", text[:100], f"text that begins with {_HEAD!r}")
        at = 2
        while at < len(head) and head[at].startswith("# requires "):
            requirements.append(head[at].removeprefix("# requires "))
            at += 1
        try:
            pins = parse_pins("\n".join(head[at:]))
        except ValueError as error:
            raise SpecError("lock", str(error), "pins with sha256 hashes") from None
        return cls(head[1].removeprefix("# python "), tuple(requirements), pins)


def parse_pins(text: str) -> tuple[Pin, ...]:
    """Return the pins of a requirements file that has nothing but those, sorted; ValueError for anything else."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters")
    pins = [_pin(line) for line in text.replace("\\\n", " ").split("\n") if line]
    if len({pin.name for pin in pins}) != len(pins) or len(pins) > MAX_PINS:
        raise ValueError(f"a distribution twice, or more than {MAX_PINS}")
    return tuple(sorted(pins))


def _pin(line: str) -> Pin:
    first, *rest = line.split(" ")
    match = _PIN.fullmatch(first)
    if match is None:
        raise ValueError(f"not name==version: {first[:200]!r}")
    return Pin(canonicalize_name(match[1]), str(_version(match[2])), _hashes(str(first), rest))


def _hashes(what: str, words: Iterable[str]) -> tuple[str, ...]:
    found = set()
    for word in filter(None, words):
        match = _HASH.fullmatch(word)
        if match is None:
            raise ValueError(f"{what}: not a sha256 hash: {word[:200]!r}")
        found.add(match[1])
    return tuple(sorted(found))


def _version(text: str) -> Version:
    try:
        return Version(text[: MAX_VERSION + 1])
    except InvalidVersion:
        raise ValueError(f"not a version: {text[:200]!r}") from None
