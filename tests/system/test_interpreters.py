"""Interpreters of the host: real ones, tried, outside virtual environments, the newest patch of each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import olsock
from olsock import interpreters, rootfs
from olsock.errors import SpecError
from support.require import require

pytestmark = pytest.mark.system

OWN = f"python3.{sys.version_info.minor}"
SAY = "import sys; print(sys.version_info[:2], sys.prefix)"


def test_the_own_one_is_found_outside_its_virtual_environment():
    found = interpreters.find()
    assert OWN in found
    own = interpreters.probe(sys.executable)
    assert own is not None and own.path == rootfs.host_python()
    assert own.tag == sys.implementation.cache_tag
    assert Version(found[OWN].version) >= Version(own.version)


def test_each_one_is_what_it_says():
    for name, runtime in interpreters.find().items():
        said = subprocess.run([runtime.path, "-I", "-c", SAY], capture_output=True, check=True)
        minor = int(name.removeprefix("python3."))
        prefix = rootfs.interpreter_prefix(runtime.path)
        assert said.stdout.decode().strip() == f"(3, {minor}) {prefix}"
        assert (
            runtime.name == name
            and runtime.tag == f"cpython-3{minor}"
            and os.path.realpath(runtime.path) == runtime.path
        )
        assert all(
            Version(each.rpartition("(")[2].rstrip(")")) <= Version(runtime.version) for each in runtime.passed_over
        )


def test_a_function_runs_in_each(tmp_path):
    (tmp_path / "f.py").write_text("import sys\ndef f(event): return list(sys.version_info[:2])\n")
    tmp_path.chmod(0o755)
    for name, runtime in interpreters.find().items():
        with olsock.Function(tmp_path, python=runtime.path) as function:
            assert function.invoke() == [3, int(name.removeprefix("python3."))]


@pytest.mark.parametrize("how", ["--symlinks", "--copies"])
def test_a_virtual_environment_is_resolved_to_its_base(tmp_path, how):
    made = subprocess.run([rootfs.host_python(), "-m", "venv", "--without-pip", how, tmp_path / "env"], check=False)
    require(made.returncode == 0, "needs the module venv")
    for path in (tmp_path / "env", tmp_path / "env" / "bin", tmp_path / "env" / "bin" / "python3"):
        found = interpreters.find([str(path)])
        assert found[OWN].path == rootfs.host_python()


def test_what_is_listed_is_preferred_and_the_other_passed_over():
    found, own = interpreters.find(), rootfs.host_python()
    listed = interpreters.find([own])[OWN]
    assert listed.path == own
    if found[OWN].path != own:
        assert any(each.startswith(found[OWN].path) for each in listed.passed_over)
        assert any(each.startswith(own) for each in found[OWN].passed_over)


@pytest.mark.parametrize("what", ["/nowhere/python3", "/bin/sh", "/etc", "/etc/passwd"])
def test_a_listed_one_has_to_work(what):
    with pytest.raises(SpecError):
        interpreters.find([what])
    with pytest.raises(SpecError):
        interpreters.get(what)


def test_names():
    assert interpreters.get(OWN) == interpreters.find()[OWN]
    for name in ("python2.7", "python3", "ruby"):
        with pytest.raises(SpecError):
            interpreters.get(name)


def test_what_others_could_have_put_into_path_is_not_run(tmp_path, monkeypatch):
    """A program named python3.11, which root would run: left alone if others own it or may write it, or if it is a script."""
    ran = tmp_path / "ran"
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = binaries / "python3.11"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    for minor, owner, mode in ((12, 1000, 0o755), (13, 0, 0o777)):
        other = binaries / f"python3.{minor}"
        shutil.copy("/bin/touch", other)
        other.chmod(mode)
        os.chown(other, owner, owner)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    assert not [each for each in interpreters.find().values() if Path(each.path).is_relative_to(tmp_path)]
    assert not ran.exists()
