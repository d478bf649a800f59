"""Bytecode for a function's own code, made once instead of by each instance: a third of the import of a small module.

Compiling happens in a sandbox: the compiler of an interpreter is large, and the source is whoever's. The result is trusted no
more than the source: it is run where the function is, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from olsock.errors import ProtocolError, SpecError
from olsock.function import Function
from olsock.rootfs import TASK

TIMEOUT = 10.0  # seconds; a worker that is told to end waits for it
MEMORY, PIDS = "512M", 4
MAX_FILES, MAX_LEVELS = 2000, 32

_HANDLER = "olsock_compile:f"
_PROGRAM = os.fspath(Path(__file__).parent / "runtime" / "compile")
_CACHE, _SUFFIX = "__pycache__", ".pyc"


def compile_code(code: str | os.PathLike[str], python: str | os.PathLike[str] | None = None) -> bytes:
    """Compile the sources in a function's directory for an interpreter; return what `parse` takes.

    A file that cannot be compiled is left out, and so is what is large. Raises as `Function.invoke` does, for a source that
    the compiler dies of, too, and `SpecError` for code with a module of the compiling program's own name.
    """
    module = _HANDLER.partition(":")[0]
    if any(name.partition(".")[0] == module for name in os.listdir(code)):  # it would be run in the place of ours
        raise SpecError("code", os.fspath(code), f"a directory without a module {module}")
    with Function(code, _HANDLER, packages=[_PROGRAM], python=python, memory=MEMORY, pids=PIDS) as function:
        return function.exchange(json.dumps(TASK).encode(), TIMEOUT)


def parse(answer: bytes) -> dict[str, bytes]:
    """Return files of bytecode by their paths below the code. Raises `ProtocolError` for what is none: nothing is written."""
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(answer)
    if not isinstance(found, dict) or len(found) > MAX_FILES:
        raise ProtocolError("the compiler did not answer with files")
    files = {}
    for path, text in found.items():
        if not isinstance(text, str) or not _is_place(path):
            raise ProtocolError(f"the compiler answered with a file {path[:200]!r}")
        try:
            files[path] = text.encode("latin-1")
        except UnicodeEncodeError:
            raise ProtocolError(f"the compiler answered with no bytes for {path[:200]!r}") from None
    return files


def _is_place(path: str) -> bool:
    """Whether bytecode of a module belongs there: `a/b/__pycache__/name.tag.pyc`."""
    parts = path.split("/")
    if not 2 <= len(parts) <= MAX_LEVELS:
        return False
    *folders, cache, name = parts
    module, *tags = name.removesuffix(_SUFFIX).split(".")
    sound = cache == _CACHE and name.endswith(_SUFFIX) and all(each.replace("-", "_").isidentifier() for each in tags)
    return sound and all(each.isidentifier() for each in (module, *folders))


def write(code_fd: int, files: dict[str, bytes]) -> int:
    """Write bytecode below an open directory of code, where there is none yet; return how many files were written.

    Each is there whole or not at all, and no link is followed.
    """
    written = 0
    for path, data in files.items():
        folder, _, name = path.rpartition("/")
        with contextlib.ExitStack() as stack:
            at = code_fd
            for part in folder.split("/"):
                if part == _CACHE:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=at)
                at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                stack.callback(os.close, at)
            written += _write(at, name, data)
    return written


def _write(directory_fd: int, name: str, data: bytes) -> bool:
    scratch = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(scratch, flags, 0o644, dir_fd=directory_fd), "wb") as file:
        file.write(data)
    try:
        os.link(scratch, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except FileExistsError:  # what the function brought itself
        return False
    finally:
        os.unlink(scratch, dir_fd=directory_fd)
    return True
