"""Measures what is imported: how long it takes and how much memory, and which preloaded modules are used.

The import system calls `_load_unlocked` for every module that it has found, looked up by name in its own
globals: while measuring, another function stands there. It says that it comes from the file that the
original comes from, so that CPython cuts it out of tracebacks, and `warnings` skips it, as it does those.
Where the name is gone nothing is measured, and nothing fails. Between `start` and `stop` an import costs
about a microsecond more; outside nothing.

Only modules found below the directories that `start` is given are reported; what others take is part of
`total_ms` of whoever imports them.
"""

from __future__ import annotations

import _thread
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

MAX_ROWS = 500
MAX_BYTES = 48 * 1024  # of all rows as JSON: they travel in one piece of metadata, with other things
MAX_NAME = 256
MAX_TOP = 128
MAX_USED = 64
MAX_OWN = 64  # modules of a function that are looked through,
MAX_VALUES = 4096  # and their globals

PAGE = os.sysconf("SC_PAGESIZE")
Module = type(sys)
Function = type(lambda: None)
Builtin = type(len)
_attribute = Module.__getattribute__  # a lazy module's own one would load it
_system: Any = sys.modules.get("_frozen_importlib")
_clock = time.perf_counter

preloaded: frozenset[str] = frozenset()
"""Top-level packages that were measured, or found by `settle`, before this process was forked."""

_load: Any = None  # the original, once there was a measurement
_packages: tuple[str, ...] = ()
_code = "\0"
_rows: list[tuple[str, float, float, int]] = []
_own: list[Any] = []
# Seconds that imports within the one that is going on have taken, and whether that is part of a package's, by thread.
_local = _thread._local()


def start(packages: Iterable[str] = (), code: str | None = None) -> None:
    """Measure modules below `packages` from now on; note those below `code`, which is the function's own."""
    global _code, _load, _packages
    stop()
    _packages = tuple([entry.rstrip("/") + "/" for entry in packages])
    _code = code.rstrip("/") + "/" if code else "\0"
    found = getattr(_system, "_load_unlocked", None)
    if _load is None:
        _load = found
    if found is not None and found is _load:  # a third one that stands there now may call ours
        _system._load_unlocked = _timed


def note(spec: Any) -> None:
    """Note a module of the function's own that is imported without the import system."""
    _own.append(spec)


def stop() -> list[list[Any]]:
    """Stop measuring; return ``[module, top-level package, self ms, total ms, bytes]``, longest first.

    Bytes are by how much resident memory grew, told for the outermost import of a package and 0 for what
    that one imported: reading it costs more than a small module.
    """
    global _code, _packages, _rows
    if _load is not None and getattr(_system, "_load_unlocked", None) is _timed:
        _system._load_unlocked = _load
    _packages, _code = (), "\0"  # for imports that other threads have begun
    rows, _rows = _rows, []
    return _bounded(rows) if rows else []


def settle(packages: Iterable[str]) -> None:
    """Note which packages are loaded, for the children of this process: `used` names what they use of them."""
    global preloaded
    below = tuple([entry.rstrip("/") + "/" for entry in packages])
    found = set()
    for name, module in list(sys.modules.items()):
        if "." not in name and name.isascii() and _fits(name):
            try:
                if _is_below(_attribute(module, "__spec__"), below):
                    found.add(name)
            except Exception:
                continue  # anything may stand in sys.modules
    preloaded |= found


def used() -> list[str]:
    """Return the preloaded packages that the globals of the function's own modules refer to, in order.

    Asks no object for an attribute that its own code could answer: a proxy (of flask, of django's
    settings) is known by its type.
    """
    global _own
    modules, _own = _own[:MAX_OWN], []
    if not preloaded:
        return []
    found: set[str] = set()
    left = MAX_VALUES
    for spec in modules:
        module = sys.modules.get(spec.name)
        if type(module) is not Module:
            continue
        for value in list(module.__dict__.values())[:left]:
            left -= 1
            try:
                origin = _origin(value)
            except Exception:
                continue
            if type(origin) is str:
                top = origin.partition(".")[0]
                if top in preloaded:
                    found.add(top)
    return sorted(found)[:MAX_USED]


def frame() -> Any:
    """Return the code object whose frames stand between those of the import system."""
    return _timed.__code__


def _origin(value: Any) -> Any:
    """Name the module that a value is, or that its class or function was made in."""
    kind = type(value)
    if issubclass(kind, Module):
        return _attribute(value, "__name__")
    if kind is Function or kind is Builtin or issubclass(kind, type):
        return value.__module__
    return kind.__module__


def _is_below(spec: Any, directories: tuple[str, ...]) -> bool:
    origin = spec.origin
    if origin is None and spec.submodule_search_locations:  # a namespace: it has directories, and no file
        locations = spec.submodule_search_locations
        origin = next(iter(getattr(locations, "_path", locations)), None)  # iterating one may look for more of them
    return type(origin) is str and origin.startswith(directories)


def _resident() -> int:
    """Bytes of resident memory; 0 where that cannot be read."""
    try:
        # Not kept open: what is imported meanwhile may close it, and open something else under its number.
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 128).split()[1]) * PAGE
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return 0


def _timed(spec: Any) -> Any:
    here = _local.__dict__
    before = here.get("nested", 0.0)
    within = here.get("within", False)
    try:
        counts = _is_below(spec, _packages)
        if not counts and type(spec.origin) is str and spec.origin.startswith(_code):
            _own.append(spec)
    except Exception:  # a finder's own idea of a spec
        counts = False
    resident = 0
    if counts and not within:
        here["within"] = True
        resident = _resident()
    here["nested"] = 0.0
    began = _clock()
    try:
        module = _load(spec)
        total = _clock() - began
        if counts:
            grown = 0 if within else max(0, _resident() - resident)
            _rows.append((spec.name, max(0.0, total - here["nested"]), total, grown))
        return module
    finally:
        here["within"] = within
        here["nested"] = before + _clock() - began


_timed.__code__ = _timed.__code__.replace(co_filename="<frozen importlib._bootstrap>", co_name="_load_unlocked")


def _bounded(rows: list[tuple[str, float, float, int]]) -> list[list[Any]]:
    rows.sort(key=_total, reverse=True)
    found: list[list[Any]] = []
    left = MAX_BYTES
    for name, own, total, grown in rows:
        if not _fits(name):
            continue
        top = name.partition(".")[0]
        left -= 48 + len(name) + len(top) if name.isascii() else 48 + 12 * (len(name) + len(top))
        if left < 0 or len(found) == MAX_ROWS:
            break
        found.append([name, top, round(own * 1000, 3), round(total * 1000, 3), grown])
    return found


def _fits(name: Any) -> bool:
    """Tell whether the host takes this name."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable() or " " in name:
        return False
    return 0 < len(name.partition(".")[0]) <= MAX_TOP


def _total(row: tuple[str, float, float, int]) -> float:
    return row[2]
