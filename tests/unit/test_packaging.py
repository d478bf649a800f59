"""What `pip install` gives: from a wheel and in place, in a virtual environment that has nothing else.

Slow for unit tests (each environment downloads the dependencies), but nothing else sees a file missing in the wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

pytestmark = [pytest.mark.unit, pytest.mark.timeout(400)]


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """Run a command away from the checkout and from whatever Python environment the tests run in."""
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD", "OLSOCK_SANITIZE")
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as they would be checked out, so that builds here do not touch the build in use."""
    target = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    built = shutil.ignore_patterns("*.so", "__pycache__", "olsock-spawner", "_olsock.c", "*.egg-info")
    for name in ("olsock", "csrc", "worker"):
        shutil.copytree(ROOT / name, target / name, ignore=built)
    return target


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, which proves that one whole as well."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=tree)
    [source] = folder.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


def environment(folder: Path, *what: str | Path) -> Path:
    """Make a virtual environment with `what` installed, and return its bin."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin" / "pip", "install", "--quiet", *what, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """The bin of a fresh environment, and the folder that olsock is to be imported from there."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    if request.param == "wheel":
        scripts = environment(folder, request.getfixturevalue("wheel"))
        yield scripts, folder
    else:
        yield environment(folder, "--editable", tree), tree
    shutil.rmtree(folder)


def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert re.fullmatch(rf"olsock-{re.escape(VERSION)}-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_the_wheel_holds_everything_that_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    sources = {
        str(path.relative_to(base))
        for base, package in ((ROOT, "olsock"), (ROOT / "worker", "olsock_worker"))
        for path in (base / package).rglob("*")
        if path.suffix in {".py", ".pyi", ".json", ".typed"} and path.name != "_fork.pyi"
    }
    assert "olsock/data/seccomp" in {str(Path(name).parent) for name in sources}
    assert sources - names == set()
    compiled = {"olsock/_core/_olsock.abi3.so", "olsock/runtime/_fork.abi3.so", "olsock/_core/olsock-spawner"}
    assert compiled - names == set()
    assert modes["olsock/_core/olsock-spawner"] & 0o111 == 0o111
    beside = {name for name in names - sources - compiled if ".dist-info/" not in name}
    assert {Path(name).suffix for name in beside} <= {".pyi"}, sorted(beside)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"olsock", "olsock_worker"}


def test_the_source_distribution_holds_every_header(wheel: Path) -> None:
    [source] = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[ch]")} - names == set()


def test_the_spawner_needs_no_file_and_is_hardened(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        binary = Path(archive.extract("olsock/_core/olsock-spawner", tmp_path))
        modules = [
            Path(archive.extract(f"olsock/{name}", tmp_path))
            for name in ("_core/_olsock.abi3.so", "runtime/_fork.abi3.so")
        ]
    headers = run("readelf", "-lWd", binary, cwd=tmp_path)
    assert "INTERP" not in headers and "(NEEDED)" not in headers
    assert "DYN (" in headers, "not position independent"
    for file in (binary, *modules):
        headers = run("readelf", "-lWd", file, cwd=tmp_path)
        assert "GNU_RELRO" in headers and re.search(r"BIND_NOW|FLAGS_1.*NOW", headers), file
        assert re.search(r"GNU_STACK.* RW ", headers), f"{file} has an executable stack"


@pytest.mark.parametrize(("command", "usage_error"), [("olsock", 125), ("olsock-worker", 2)])
def test_both_commands_work(installed: tuple[Path, Path], command: str, usage_error: int, tmp_path: Path) -> None:
    scripts, _ = installed
    assert VERSION in run(scripts / command, "--version", cwd=tmp_path)
    assert run(scripts / command, "--help", cwd=tmp_path).startswith("Usage: ")
    # The control: a command that answers everything alike would pass the lines above.
    run(scripts / command, "no-such-command", cwd=tmp_path, status=usage_error)


def test_the_library_and_its_c_parts_load_from_there(installed: tuple[Path, Path], tmp_path: Path) -> None:
    scripts, home = installed
    script = (
        "import os, olsock, olsock_worker, olsock.runtime._fork as fork, olsock._core as core\n"
        "from olsock._core._olsock import ffi, lib\n"
        "err = ffi.new('struct ols_err *')\n"
        "assert lib.ols_pidfd_open(os.getpid(), err) > 2\n"
        "assert lib.ols_pidfd_open(-1, err) < 0 and ffi.string(err.step)\n"
        "assert fork.threads() == 1\n"
        "print(olsock.__file__, olsock_worker.__file__, fork.__file__, core.__path__[0], sep='\\n')"
    )
    for file in run(scripts / "python", "-c", script, cwd=tmp_path).splitlines():
        assert Path(file).resolve().is_relative_to(home.resolve()), file


def test_dependencies_fit_together(installed: tuple[Path, Path], tmp_path: Path) -> None:
    run(installed[0] / "pip", "check", cwd=tmp_path)


@pytest.mark.system
def test_a_sandbox_runs_from_there(installed: tuple[Path, Path], tmp_path: Path) -> None:
    scripts, _ = installed
    script = (
        "import olsock\n"
        "with olsock.Sandbox(memory='64M', network='none') as box:\n"
        "    print(box.run(['/bin/echo', 'inside'], timeout=20.0).stdout.decode(), end='')"
    )
    assert run(scripts / "python", "-c", script, cwd=tmp_path) == "inside\n"
