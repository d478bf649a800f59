"""A directory on the command line, as a zip to deploy."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {"__pycache__", ".git", ".hg", ".venv", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal directories give equal archives


class PackingError(Exception):
    """What is there cannot be deployed; the message says what it is."""


def pack(path: Path) -> bytes:
    """Return a zip: of a directory, without what tools leave in it, or the file itself. Raises `PackingError`, `OSError`."""
    if not path.is_dir():
        return path.read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(path):
            mode = file.lstat().st_mode
            if not stat.S_ISREG(mode):
                raise PackingError(f"{file}: neither a file nor a directory; links are not followed")
            info = zipfile.ZipInfo(os.fspath(file.relative_to(path)), _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | mode & 0o777) << 16
            archive.writestr(info, file.read_bytes())
        if not archive.filelist:
            raise PackingError(f"{path}: there is no file in it")
    return out.getvalue()


def _files(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for name in sorted([*files, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]):
            yield Path(folder, name)


def handler_of(path: Path) -> str | None:
    """Return the handler that a directory or zip has by custom; None if its ol.yaml says, or nothing does."""
    if path.is_dir():
        names = set(os.listdir(path))
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
        except zipfile.BadZipFile as error:
            raise PackingError(f"{path}: {error}") from None
    if "ol.yaml" in names:
        return None
    for module, function in (("f", "f"), ("lambda_function", "lambda_handler")):
        if f"{module}.py" in names:
            return f"{module}.{function}"
    raise PackingError(f"{path}: neither f.py, nor lambda_function.py, nor an ol.yaml in it: name its --handler")
