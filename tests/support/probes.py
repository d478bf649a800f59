"""The small C programs of tests/attack/probe, compiled once a test session."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_SOURCES = Path(__file__).parents[1] / "attack" / "probe"


@functools.cache
def folder() -> Path:
    """Where the executables are, with nothing else that a sandbox could not see."""
    folder = Path(tempfile.mkdtemp(prefix="olsock-probe-"))
    folder.chmod(0o755)  # sandboxes run these under other ids
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def build(name: str, *flags: str) -> Path:
    """Compile `name`.c, static so that it runs in any root, and return the executable; skip without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = folder() / name
    command = [compiler, "-O1", "-Wall", "-Wextra", "-static", *flags, "-o", str(target), str(_SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if flags:  # another ABI than the machine's own may be missing
            pytest.skip(f"{name}.c does not compile with {' '.join(flags)}: {done.stderr.strip().splitlines()[-1]}")
        raise AssertionError(done.stderr)
    return target
