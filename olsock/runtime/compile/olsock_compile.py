"""Compiles the source files of a function, and runs none of them: the handler of a sandbox for that (olsock/bytecode.py).

The function's directory comes first where modules are looked for, so nothing is imported here that is not there already.
"""

from __future__ import annotations

import _imp
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAG = sys.implementation.cache_tag
LARGEST = 1 << 20  # bytes of one source file
MOST = 4 << 20  # bytes of bytecode together: as JSON they are twice as many
FILES = 2000


def f(event: str) -> dict[str, str]:
    """Return unchecked bytecode (PEP 552) for each source below `event`, by its path there, as text of one byte a character."""
    found: dict[str, str] = {}
    left = MOST
    for path in sources(event):
        try:
            data = compiled(event, path)
        except Exception:  # whoever imports it is told what is wrong with it
            continue
        folder, _, name = path.rpartition("/")
        left -= len(data)
        if left < 0:
            break
        found[f"{folder}/__pycache__/{name[:-3]}.{TAG}.pyc".lstrip("/")] = data.decode("latin-1")
    return found


def sources(top: str) -> list[str]:
    """Paths of source files below a directory, those further up first."""
    found: list[str] = []
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
        for name in names:
            if name.endswith(".py") and name[:-3].isidentifier():
                found.append(os.path.relpath(os.path.join(folder, name), top))
        if len(found) > 10 * FILES:
            break
    return sorted(found, key=lambda path: (path.count("/"), path))[:FILES]


def compiled(top: str, path: str) -> bytes:
    """Return a file of bytecode that stands for its source, whatever that says."""
    external: Any = sys.modules["_frozen_importlib_external"]
    full = f"{top}/{path}"
    with open(full, "rb") as file:
        source = file.read(LARGEST + 1)
    if len(source) > LARGEST:
        raise ValueError(full)
    code = compile(source, full, "exec", dont_inherit=True)
    digest = _imp.source_hash(external._RAW_MAGIC_NUMBER, source)
    return bytes(external._code_to_hash_pyc(code, digest, False))
