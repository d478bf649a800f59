"""Interpreters of the host: every CPython that functions can run in, found and tried.

An interpreter's `path` is the binary itself, outside any virtual environment, as sandboxes need it: its installation's
prefix is what they see.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import Version

from olsock.errors import SpecError

OLDEST, NEWEST = 9, 14  # minor versions
TIMEOUT = 20.0

_NAMES = re.compile(r"python(?:3(?:\.[0-9]{1,2})?)?")
# Without site: neither start-up files nor a virtual environment's configuration beyond where its base is.
_PROBE = """
import json, sys
info = sys.version_info
level = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(info[3])
print(json.dumps({
    "implementation": sys.implementation.name,
    "minor": info[1] if info[0] == 3 else -1,
    "version": "%d.%d.%d" % info[:3] + ("%s%d" % (level, info[4]) if level else ""),
    "tag": sys.implementation.cache_tag,
    "flags": getattr(sys, "abiflags", ""),
    "base": "%s/bin/python%d.%d" % (sys.base_prefix, info[0], info[1]),
}))
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """An interpreter that functions can name."""

    name: str  # "python3.11"
    path: str  # the real path of the binary
    version: str  # "3.11.7"
    tag: str  # "cpython-311": what packages are installed for
    passed_over: tuple[str, ...] = ()  # others of the same name, as "path (version)"


def find(extra: Sequence[str] = ()) -> dict[str, Runtime]:
    """Return every CPython 3.9 to 3.14 of the host by name, the highest patch version of each.

    Looked for in PATH, /usr/bin, /usr/local/bin, pyenv's and uv's directories; `extra` names binaries or installations,
    which are preferred to what was found, and must work (`SpecError`). Free-threaded and debug builds are left out.
    """
    ranked: dict[str, list[tuple[bool, Version, Runtime]]] = {}
    known: set[str] = set()
    for runtime, listed in [*((each, True) for each in _listed(extra)), *((each, False) for each in _found())]:
        if runtime.path not in known:
            known.add(runtime.path)
            ranked.setdefault(runtime.name, []).append((listed, Version(runtime.version), runtime))
    result = {}
    for name in sorted(ranked, key=lambda name: int(name.partition(".")[2])):
        first, *rest = (each[2] for each in sorted(ranked[name], key=lambda each: each[:2], reverse=True))
        result[name] = replace(first, passed_over=tuple(f"{each.path} ({each.version})" for each in rest))
    return result


def get(python: str | os.PathLike[str]) -> Runtime:
    """Return the interpreter at a path, or the one that `find` knows by a name such as "python3.11"."""
    text = os.fspath(python)
    if "/" not in text:
        found = find()
        if text not in found:
            raise SpecError("python", text, f"a path, or one of {', '.join(found) or 'the interpreters of this host'}")
        return found[text]
    runtime = probe(text)
    if runtime is None:
        raise SpecError("python", text, f"a CPython 3.{OLDEST} to 3.{NEWEST}, with the usual options, that runs")
    return runtime


def probe(path: str) -> Runtime | None:
    """Run an interpreter to learn what it is; None if it is not one for functions. What was learnt is remembered."""
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
        return _probe(path, found.st_dev, found.st_ino, found.st_mtime_ns)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=256)
def _probe(path: str, *_identity: int) -> Runtime | None:
    said = _run(path)
    if said is None:
        return None
    # A virtual environment's binary is a link or a copy; the installation that it was made from is what counts.
    base = os.path.realpath(str(said["base"]))
    if base != os.path.realpath(path):
        other = _run(base) if os.path.isfile(base) else None
        if other is not None and other["version"] == said["version"]:
            path = base
    return Runtime(f"python3.{said['minor']}", os.path.realpath(path), str(said["version"]), str(said["tag"]))


def _run(path: str) -> Mapping[str, object] | None:
    """What an interpreter says of itself, if it is a CPython for functions."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":  # a shim, which finds another binary by looking at its surroundings
                return None
        done = subprocess.run(
            [os.path.abspath(path), "-I", "-S", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            check=True,
        )
        said = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if not isinstance(said, dict) or said.get("implementation") != "cpython" or said.get("flags"):
        return None
    return said if OLDEST <= said.get("minor", -1) <= NEWEST else None


def _listed(extra: Sequence[str]) -> Iterator[Runtime]:
    for path in extra:
        candidates = [path]
        if os.path.isdir(path):
            candidates = [*_binaries(path), *_binaries(os.path.join(path, "bin"))]
        runtimes = [runtime for runtime in map(probe, candidates) if runtime is not None]
        if not runtimes:
            raise SpecError("interpreters", path, f"a CPython 3.{OLDEST} to 3.{NEWEST}, or its installation")
        yield from runtimes


def _found() -> Iterator[Runtime]:
    tried: set[str] = set()
    for directory in _directories():
        for path in _binaries(directory):
            real = os.path.realpath(path)
            if real not in tried and _trusted(real):
                tried.add(real)
                runtime = probe(path)
                if runtime is not None:
                    yield runtime


def _directories() -> Iterator[str]:
    yield from (each for each in os.environ.get("PATH", "").split(":") if os.path.isabs(each))
    yield from ("/usr/local/bin", "/usr/bin")
    home = Path(os.path.expanduser("~"))
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    managed = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for parent in (pyenv / "versions", managed):
        yield from map(str, sorted(parent.glob("*/bin")))


def _binaries(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if _NAMES.fullmatch(name)]


def _trusted(path: str) -> bool:
    """Whether nobody but root or ourselves could have put this binary there: it is about to be run with our rights."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return found.st_uid in (0, os.geteuid()) and not stat.S_IMODE(found.st_mode) & 0o002 and os.access(path, os.X_OK)
