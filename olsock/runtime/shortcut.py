"""Imports the function's own module the short way, where that comes to the same as the import system's.

The import system is some thousand lines of Python. In a child that was just forked each function of it,
and each object that those touch, is a page to be copied: 190 page faults and 0.9 ms for a module of five
lines. In the most common case, one file in one directory and nobody who has changed how modules are
found, the same is done here with 110, and with 50 where there is bytecode that needs no look at its source
(PEP 552, unchecked), which the worker makes at deployment.
"""

from __future__ import annotations

import _frozen_importlib as _system
import _frozen_importlib_external as _external
import _imp
import builtins
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

UNCHECKED = b"\1\0\0\0"  # flags of bytecode that stands for its source, whatever that says
HEADER = 16
CHUNK = 1 << 20

# As they were before the first line of anybody else's.
_import = builtins.__import__
_finders, _hooks = list(sys.meta_path), list(sys.path_hooks)
_tag = sys.implementation.cache_tag
_unknown = object()


def import_module(name: str, directory: str, note: Callable[[Any], None]) -> None:
    """Import `name`, looked for in `directory` first, unless it has been; `note` is told its spec.

    What happens is what `__import__(name)` would do, except that no finder is kept for the directory.
    """
    if name in sys.modules:
        return
    if "." not in name and _is_plain() and _is_alone(name, directory):
        _run(name, directory, note)
    else:
        __import__(name)


def _is_plain() -> bool:
    """Tell whether modules are found as in a fresh interpreter."""
    return builtins.__import__ is _import and sys.meta_path == _finders and sys.path_hooks == _hooks


def _is_alone(name: str, directory: str) -> bool:
    """Tell whether `name` is a source file of `directory`, and nothing else that would be taken before that."""
    if name in sys.builtin_module_names or _imp.is_frozen(name) or sys.path[0] != directory:
        return False
    if type(sys.path_importer_cache.get(directory, _unknown)) not in (object, _external.FileFinder):
        return False
    try:
        found = os.listdir(directory)
    except OSError:
        return False
    if name + ".py" not in found or name in found:
        return False
    return not any(name + suffix in found for suffix in _imp.extension_suffixes())


def _run(name: str, directory: str, note: Callable[[Any], None]) -> None:
    """Do what the import system does with a source file."""
    path, cached = f"{directory}/{name}.py", f"{directory}/__pycache__/{name}.{_tag}.pyc"
    loader = _external.SourceFileLoader(name, path)
    spec: Any = _system.ModuleSpec(name, loader, origin=path)
    spec._set_fileattr, spec.cached = True, cached
    made: Any = type(sys)(name)
    made.__loader__, made.__package__, made.__spec__ = loader, "", spec
    made.__file__, made.__cached__ = path, cached
    note(spec)
    sys.modules[name] = made
    spec._initializing = True
    try:
        exec(_code(path, cached), made.__dict__)
        sys.modules[name] = sys.modules.pop(name)  # it may have put something else there, but has to be there
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        spec._initializing = False


def _code(path: str, cached: str) -> Any:
    try:
        data = _read(cached)
    except OSError:
        data = b""
    if data[:8] == _external.MAGIC_NUMBER + UNCHECKED:
        code = marshal.loads(memoryview(data)[HEADER:])
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
        return code
    return compile(_read(path), path, "exec", dont_inherit=True)


def compiled(name: str, path: str) -> Any:
    """Return the code of a module of ours, from its bytecode where there is some that fits."""
    return _external.SourceFileLoader(name, path).get_code(name)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, CHUNK)
        if len(data) == CHUNK:
            parts = [data]
            while parts[-1]:
                parts.append(os.read(fd, CHUNK))
            data = b"".join(parts)
        return data
    finally:
        os.close(fd)
