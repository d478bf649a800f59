"""A directory at /opt, as AWS's layers are: seen and read-only, its Python on the path, whatever the function began from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import olsock

pytestmark = pytest.mark.system
CODE = """
import os, sys
try:
    import layered
    WHO = layered.WHO
except ImportError:
    WHO = None
def f(event):
    try:
        open("/opt/new", "w")
        wrote = True
    except OSError:
        wrote = False
    return [WHO, sorted(os.listdir("/opt")), wrote, [each for each in sys.path if each.startswith("/opt")]]
"""
BELOW = f"/opt/python/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
SEEN = [7, ["bin", "python"], False, [BELOW, "/opt/python"]]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text(CODE)
    return tmp_path / "code"


@pytest.fixture
def opt(tmp_path: Path) -> Path:
    below = tmp_path / "opt" / BELOW.removeprefix("/opt/")
    below.mkdir(parents=True)
    (below / "layered.py").write_text("from plain import WHO\n")
    (tmp_path / "opt" / "python" / "plain.py").write_text("WHO = 7\n")
    (tmp_path / "opt" / "bin").mkdir()
    return tmp_path / "opt"


def test_of_a_fresh_interpreter(code: Path, opt: Path) -> None:
    with olsock.Function(code, opt=opt) as function:
        assert function.invoke() == SEEN
    with olsock.Function(code) as function:
        assert function.invoke() == [None, [], False, []]


@pytest.mark.parametrize("blanks", [0, 1])
def test_of_a_fork(code: Path, opt: Path, blanks: int) -> None:
    with olsock.Zygote(["json"], blanks=blanks) as zygote:
        for _ in range(3):  # what one had, the next does not have
            with zygote.fork(code, opt=opt) as function:
                assert function.invoke() == SEEN
            with zygote.fork(code) as function:
                assert function.invoke() == [None, [], False, []]


def test_of_a_zygote_of_one_function(code: Path, opt: Path) -> None:
    with olsock.Zygote(descendants=1) as parent:
        with parent.child(code=code, handler="f:f", opt=opt) as zygote, zygote.fork(opt=opt) as function:
            assert function.invoke() == SEEN
        with parent.fork(code) as function:
            assert function.invoke() == [None, [], False, []]


def test_beside_packages(code: Path, opt: Path, tmp_path: Path) -> None:
    """What a function requires comes before its layers."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "layered.py").write_text("WHO = 'packages'\n")
    with olsock.Function(code, packages=[packages], opt=opt) as function:
        assert function.invoke()[0] == "packages"
    with olsock.Zygote(packages=[packages]) as zygote, zygote.fork(code, opt=opt) as function:
        assert function.invoke()[0] == "packages"


def test_what_is_no_directory_is_refused(code: Path, tmp_path: Path) -> None:
    for bad in (tmp_path / "absent", code / "f.py"):
        with pytest.raises(olsock.SpecError, match="opt"):
            olsock.Function(code, opt=bad)
    with pytest.raises(olsock.SpecError, match="opt"):
        olsock.Zygote(opt=tmp_path)
