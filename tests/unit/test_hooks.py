"""What functions register for their snapshot, run by the real modules in every interpreter found."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from support.documents import ROOT

pytestmark = pytest.mark.unit

RUNTIME = ROOT / "olsock" / "runtime"
BEGIN = f"""
import sys, json
sys.path.insert(0, {str(RUNTIME)!r})
import hooks
del sys.path[0]
sys.path.append({str(RUNTIME / "lib")!r})
done = []
def tell():
    print(json.dumps(done))
"""
# AWS's snapshot-restore-py 1.0.0, without its documentation.
AWS = """
_before_snapshot_registry = []
_after_restore_registry = []
def register_before_snapshot(func, *args, **kwargs):
    _before_snapshot_registry.append((func, args, kwargs))
    return func
def register_after_restore(func, *args, **kwargs):
    _after_restore_registry.append((func, args, kwargs))
    return func
def get_before_snapshot():
    return _before_snapshot_registry
def get_after_restore():
    return _after_restore_registry
"""


def run(python: str, script: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [python, "-I", "-S", "-B", "-c", BEGIN + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done


def tells(python: str, script: str) -> Any:
    return json.loads(run(python, script + "\ntell()").stdout)


def test_decorators_order_and_arguments(python: str) -> None:
    script = """
import olsock_runtime
@olsock_runtime.before_snapshot
def first(): done.append("first")
@olsock_runtime.register_before_snapshot
def second(): done.append("second")
same = olsock_runtime.register_before_snapshot(done.append, "third")
assert same == done.append
@olsock_runtime.after_restore
def later(): done.append("later")
olsock_runtime.register_after_restore(lambda *a, **k: done.append([a, k]), 1, x=2)
assert callable(first) and callable(later)
hooks.run_before_snapshot()
done.append("snapshot")
hooks.run_after_restore()
"""
    assert tells(python, script) == ["third", "second", "first", "snapshot", "later", [[1], {"x": 2}]]


def test_each_is_called_once_and_may_register_more(python: str) -> None:
    script = """
import olsock_runtime as o
@o.before_snapshot
def once():
    done.append("once")
    o.before_snapshot(lambda: done.append("inner"))
hooks.run_before_snapshot()
hooks.run_before_snapshot()
hooks.run_after_restore()
"""
    assert tells(python, script) == ["once", "inner"]


def test_awss_name_is_the_same_list(python: str) -> None:
    script = """
from snapshot_restore_py import register_before_snapshot, register_after_restore
import olsock_runtime
@register_before_snapshot
def a(): done.append("a")
olsock_runtime.before_snapshot(lambda: done.append("b"))
register_after_restore(done.append, "c")
@register_after_restore
def d(which="d"): done.append(which)
hooks.run_before_snapshot()
hooks.run_after_restore()
"""
    assert tells(python, script) == ["b", "a", "c", "d"]


def test_awss_own_package_wins(python: str, tmp_path: Path) -> None:
    (tmp_path / "snapshot_restore_py.py").write_text(AWS)
    script = f"""
sys.path.insert(-1, {str(tmp_path)!r})
import snapshot_restore_py as aws
assert aws.__file__.startswith({str(tmp_path)!r}) and "olsock_runtime" not in sys.modules
aws.register_before_snapshot(done.append, "a")
aws.register_before_snapshot(done.append, "b")
aws.register_after_restore(done.append, "c")
import olsock_runtime
olsock_runtime.after_restore(lambda: done.append("d"))
hooks.run_before_snapshot()
hooks.run_after_restore()
"""
    assert tells(python, script) == ["b", "a", "d", "c"]


def test_nothing_is_imported(python: str) -> None:
    script = """
before = set(sys.modules)
hooks.run_before_snapshot()
hooks.run_after_restore()
done += sorted(set(sys.modules) - before)
import olsock_runtime
done += sorted(set(sys.modules) - before)
"""
    assert tells(python, script) == ["olsock_runtime"]


def test_a_functions_own_module_of_that_name_is_left_alone(python: str, tmp_path: Path) -> None:
    (tmp_path / "olsock_runtime.py").write_text("def __getattr__(name): return 5 if name == 'x' else None\n")
    script = f"""
sys.path.insert(0, {str(tmp_path)!r})
import olsock_runtime
assert olsock_runtime.x == 5
sys.modules["snapshot_restore_py"] = None
hooks.run_before_snapshot()
hooks.run_after_restore()
"""
    assert tells(python, script) == []


@pytest.mark.parametrize(("raised", "status"), [("ValueError('no connection')", 1), ("SystemExit(7)", 7)])
def test_what_a_hook_raises_ends_it(python: str, raised: str, status: int) -> None:
    script = f"""
import olsock_runtime
olsock_runtime.after_restore(lambda: print("first"))
@olsock_runtime.after_restore
def connect():
    raise {raised}
olsock_runtime.after_restore(lambda: print("never"))
hooks.run_after_restore()
"""
    done = run(python, script, status)
    assert done.stdout == "first\n"
    assert status == 7 or ("in connect" in done.stderr and "no connection" in done.stderr)
