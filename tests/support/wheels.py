"""Small packages made on the spot: wheels, also such as no tool would make, and source archives that build themselves."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    files: Mapping[str, str | bytes] | None = None,
    *,
    requires: Sequence[str] = (),
    modes: Mapping[str, int] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel; `modes` are st_mode values of entries, a link's or a device's as well."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in (files or {}).items()}
    if files is None:
        contents[f"{name.replace('-', '_')}.py"] = f"version = {version!r}\n".encode()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents[f"{info}/METADATA"] = (metadata + "".join(f"Requires-Dist: {each}\n" for each in requires)).encode()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    lines = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in contents.items()]
    contents[f"{info}/RECORD"] = ("".join(lines) + f"{info}/RECORD,,\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    target = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (modes or {}).get(path, stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


BACKEND = """
import os, sys, zipfile
NAME, VERSION = {name!r}, {version!r}
METADATA = f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n"
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    built()
    info = f"{{NAME}}-{{VERSION}}.dist-info"
    name = f"{{NAME}}-{{VERSION}}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        archive.writestr(f"{{NAME}}.py", f"version = {{VERSION!r}}\\n")
        archive.writestr(f"{{info}}/METADATA", METADATA)
        archive.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{{info}}/RECORD", "")
    return name
def built():
    pass
"""


def source(folder: Path, name: str, version: str = "1.0", built: str = "") -> Path:
    """Write a source archive that needs nothing to be built; `built` is the body of what runs when it is."""
    backend = BACKEND.format(name=name, version=version)
    if built:
        backend += "def built():\n" + "".join(f"    {line}\n" for line in built.splitlines())
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "backend.py": backend,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    target = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target
