"""The interpreters of this machine that sandboxes can run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]


@functools.cache
def interpreter(version: str) -> str | None:
    """Find an interpreter of a version: on the path, or installed by pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(root.glob(f"{version}.*/bin/python{version}"))]
    on_path = shutil.which(f"python{version}")
    for candidate in [*found, *([on_path] if on_path else [])]:
        done = subprocess.run([candidate, "-c", "import ssl"], capture_output=True, check=False)  # no broken shim
        if done.returncode == 0:
            return candidate
    return None
