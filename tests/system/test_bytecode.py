"""Bytecode is made of sources in a sandbox, which reads and does not run them; it is written where it belongs only."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import olsock
from olsock import bytecode
from support.interpreters import VERSIONS, interpreter

pytestmark = pytest.mark.system


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, answer: bytes) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return bytecode.write(fd, bytecode.parse(answer))
    finally:
        os.close(fd)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "pkg").mkdir(parents=True)
    (folder / "f.py").write_text("import pkg.inner\ndef f(event):\n    return pkg.inner.x\n")
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "inner.py").write_text("x = 6\n")
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_a_function_runs_from_bytecode(code: Path, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no CPython {version} on this machine")
    tag = f"cpython-{version.replace('.', '')}"
    names = {f"__pycache__/f.{tag}.pyc", f"pkg/__pycache__/__init__.{tag}.pyc", f"pkg/__pycache__/inner.{tag}.pyc"}
    sources = files(code)
    assert write(code, bytecode.compile_code(code, python)) == 3
    assert files(code) == sources | names
    for source in sources:  # the control: what is run is not the sources, which are something else now
        (code / source).write_text("x = 7\ndef f(event): return 7\n")
    with olsock.Function(code, python=python) as function:
        assert function.invoke() == 6


def test_what_cannot_be_compiled_is_left_out(code: Path) -> None:
    (code / "broken.py").write_text("def f(:")
    (code / "null.py").write_bytes(b"x = 1\0")
    (code / "large.py").write_text("x = 1\n" * 200_000)
    (code / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (code / "not-a-module.py").write_text("x = 1")
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "inside.py").write_text("x = 1")
    found = bytecode.parse(bytecode.compile_code(code))
    assert {path.split(".")[0] for path in found} == {
        "__pycache__/f",
        "pkg/__pycache__/__init__",
        "pkg/__pycache__/inner",
    }


def test_nothing_of_the_function_is_run(code: Path) -> None:
    """Not by what it is called either: modules that the compiling program might look for."""
    for name in ("os", "sys", "json", "marshal", "importlib", "warnings", "sitecustomize", "base64", "ast", "codecs"):
        (code / f"{name}.py").write_text("raise SystemExit(9)")
    assert len(bytecode.parse(bytecode.compile_code(code))) == 13
    (code / "olsock_compile.py").write_text("def f(event): return {}")
    with pytest.raises(olsock.SpecError, match="olsock_compile"):
        bytecode.compile_code(code)


def test_what_is_there_stays(code: Path) -> None:
    answer = bytecode.compile_code(code)
    target = code / next(iter(bytecode.parse(answer)))
    target.parent.mkdir()
    target.write_bytes(b"the function's own")
    assert write(code, answer) == 2
    assert target.read_bytes() == b"the function's own"
    assert write(code, answer) == 0


HOSTILE: list[Any] = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"[" * 100_000,
    {"__pycache__/f.cpython-311.pyc": 5},
    {"__pycache__/f.cpython-311.pyc": "\u1234"},
    {"../__pycache__/f.cpython-311.pyc": ""},
    {"/__pycache__/f.cpython-311.pyc": ""},
    {"a//__pycache__/f.cpython-311.pyc": ""},
    {"./__pycache__/f.cpython-311.pyc": ""},
    {"__pycache__/../f.cpython-311.pyc": ""},
    {"__pycache__/f\0.cpython-311.pyc": ""},
    {"__pycache__/.pyc/f.pyc": ""},
    {"__pycache__/..pyc": ""},
    {"__pycache__/f.py": ""},
    {"f.cpython-311.pyc": ""},
    {"f.py": ""},
    {"": ""},
    {"/".join(["a"] * 50) + "/__pycache__/f.cpython-311.pyc": ""},
    {f"__pycache__/f{number}.cpython-311.pyc": "" for number in range(3000)},
]


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(olsock.ProtocolError):
        bytecode.parse(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    assert bytecode.parse(json.dumps({"a/__pycache__/f.cpython-311.pyc": "\xff"}).encode()) == {
        "a/__pycache__/f.cpython-311.pyc": b"\xff"
    }


@pytest.mark.parametrize("place", ["__pycache__", "pkg", "pkg/__pycache__"])
def test_no_link_is_followed(code: Path, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    answer = bytecode.compile_code(code)
    path = code / place
    if path.exists():
        subprocess.run(["mv", str(path), str(tmp_path / "moved")], check=True)
    path.symlink_to(outside)
    with pytest.raises(OSError):
        write(code, answer)
    assert files(outside) == set()
