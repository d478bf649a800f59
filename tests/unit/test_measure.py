"""What imports take, measured by the real module in every interpreter found; and that measuring changes nothing."""

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
BEGIN = """
import sys, time, json
sys.path.insert(0, {runtime!r})
import measure
del sys.path[0]
packages = {packages!r}
sys.path.append(packages)
def measured(*names):
    measure.start([packages])
    try:
        for name in names:
            __import__(name)
    finally:
        rows = measure.stop()
    return {{row[0]: row[1:] for row in rows}}
def tell(*what):
    print(json.dumps(what))
"""


class Packages:
    """A directory of packages, and scripts that import from it under measurement."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python

    def add(self, path: str, source: str = "") -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    def run(self, script: str, *, measure: bool = True) -> str:
        begin = BEGIN.format(runtime=str(RUNTIME), packages=str(self.folder))
        begin += "" if measure else "measure.start = lambda *a: None"
        begin += "\n"
        command = [self.python, "-I", "-S", "-B", "-c", begin + textwrap.dedent(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tells(self, script: str) -> Any:
        return json.loads(self.run(script))


@pytest.fixture
def packages(python: str, tmp_path: Path) -> Packages:
    folder = tmp_path / "packages"
    folder.mkdir()
    return Packages(folder, python)


def test_modules_of_packages_are_reported(packages: Packages) -> None:
    packages.add("slow/__init__.py", "import time; time.sleep(0.02); import slow.inner, csv, other")
    packages.add("slow/inner.py", "import time; time.sleep(0.01)")
    packages.add("other.py", "import slow; kept = bytearray(b'x') * 20_000_000")
    rows = packages.tells("tell(measured('slow'))")[0]
    assert sorted(rows) == ["other", "slow", "slow.inner"]
    assert next(iter(rows)) == "slow", "the longest first"
    tops, own, total, grown = zip(*(rows[name] for name in ("slow", "slow.inner", "other")), strict=True)
    assert tops == ("slow", "slow", "other")
    assert own[0] >= 20 and own[1] >= 10 and total[0] >= own[0] + total[1] + total[2]
    assert own[0] < total[0] - total[1] - total[2] + 0.01, "what others took is not its own"
    assert 15_000_000 < grown[0] < 200_000_000 and grown[1:] == (0, 0), "told once, at the outermost"


def test_nothing_is_measured_before_and_after(packages: Packages) -> None:
    for name in "abc":
        packages.add(f"{name}.py")
    script = """
    original = sys.modules["_frozen_importlib"]._load_unlocked
    import a
    first = measured("b")
    assert sys.modules["_frozen_importlib"]._load_unlocked is original
    import c
    tell(list(first), measure.stop(), list(measured("a", "c")))
    """
    assert packages.tells(script) == [["b"], [], []]


def test_namespaces_submodules_and_extensions(packages: Packages) -> None:
    packages.add("space/part/__init__.py")
    packages.add(
        "lazy/__init__.py",
        "def __getattr__(name):\n    import importlib\n    return importlib.import_module('lazy.' + name)",
    )
    packages.add("lazy/late.py", "value = 5")
    script = """
    measure.start([packages])
    import space.part, lazy
    assert lazy.late.value == 5
    rows = [row[0] for row in measure.stop()]
    import importlib.machinery, os, shutil
    folder = {dynload!r}
    found = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.startswith("_json.")]
    tell(sorted(rows), [folder, found])
    """
    where = subprocess.run(
        [packages.python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    rows, (folder, found) = packages.tells(script.format(dynload=f"{where}/lib-dynload"))
    assert rows == ["lazy", "lazy.late", "space", "space.part"]
    if found:
        script = f"""
        measure.start([{folder!r}])
        sys.path.insert(0, {folder!r})
        sys.modules.pop("_json", None)
        import _json
        tell([row[:2] for row in measure.stop()], _json.__file__)
        """
        rows, file = packages.tells(script)
        assert rows == [["_json", "_json"]] and file == f"{folder}/{found[0]}"


def test_tracebacks_are_as_without(packages: Packages) -> None:
    packages.add("good/__init__.py", "from good import bad")
    packages.add("good/bad.py", "def f():\n    1 / 0\nf()")
    packages.add("missing.py", "import nosuch")
    packages.add("wrong.py", "x = = 1")
    packages.add("names.py", "from good2 import nothing")
    packages.add("good2.py")
    packages.add("leaves.py", "raise SystemExit(3)")
    script = """
    import traceback
    measure.start([packages])
    for name in ("good", "missing", "wrong", "names", "leaves", "nosuch"):
        try:
            exec(f"import {name}")
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        assert name not in sys.modules and "good.bad" not in sys.modules
    """
    told = packages.run(script)
    assert "ZeroDivisionError" in told and "SystemExit: 3" in told
    assert "importlib" not in told and "measure.py" not in told
    assert told == packages.run(script, measure=False)


def test_warnings_name_who_imports(packages: Packages) -> None:
    packages.add("old.py", "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)")
    packages.add("user.py", "\n\nimport old")
    script = """
    import warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured("user")
    tell([[w.filename.rpartition("/")[2], w.lineno] for w in caught])
    """
    assert packages.tells(script) == [[["user.py", 3]]]


def test_the_import_system_works_as_ever(packages: Packages) -> None:
    """Circles, attributes of modules, reloading, modules that replace or remove themselves, loaders of others."""
    packages.add("one.py", "import two; a = 1")
    packages.add("two.py", "import one; assert not hasattr(one, 'a'); b = 2")
    packages.add("swap.py", "import sys\nclass Other: c = 3\nsys.modules[__name__] = Other")
    packages.add("gone.py", "import sys\ndel sys.modules[__name__]")
    script = """
    import importlib, importlib.abc, importlib.util, types
    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path, target=None):
            if name == "made":
                return importlib.util.spec_from_loader(name, self)
            if name == "odd":
                return types.SimpleNamespace(name=name, loader=self, parent="", origin=5, submodule_search_locations=(),
                                             has_location=False, cached=None, _initializing=False)
        def create_module(self, spec): return None
        def exec_module(self, module): module.d = 4
    sys.meta_path.append(Finder())
    measure.start([packages])
    import one, swap, made, odd
    assert one.a == 1 and one.two.b == 2 and swap.c == 3 and made.d == 4 and odd.d == 4
    try:
        import gone
    except KeyError as error:
        assert error.args == ("gone",)
    assert one.__spec__.origin == packages + "/one.py" == one.__file__
    assert one.__loader__ is one.__spec__.loader and one.__loader__.__class__.__name__ == "SourceFileLoader"
    assert not one.__spec__._initializing
    one.a = 5
    assert importlib.reload(one).a == 1
    spec = importlib.util.spec_from_file_location("direct", packages + "/late.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lazy = importlib.util.spec_from_file_location("put_off", packages + "/late.py")
    lazy.loader = importlib.util.LazyLoader(lazy.loader)
    module = importlib.util.module_from_spec(lazy)
    lazy.loader.exec_module(module)
    rows = [row[0] for row in measure.stop()]
    assert module.value == 6
    tell(sorted(rows))
    """
    packages.add("late.py", "value = 6")
    assert packages.tells(script) == [["one", "swap", "two"]]


def test_threads_import_at_the_same_time(packages: Packages) -> None:
    for number in range(8):
        packages.add(f"p{number}/__init__.py", f"import time; time.sleep(0.01)\nfrom p{number} import q\nimport shared")
        packages.add(f"p{number}/q.py", "import time; time.sleep(0.01)")
    packages.add("shared.py", "import time; time.sleep(0.01)")
    script = """
    import threading
    measure.start([packages])
    threads = [threading.Thread(target=__import__, args=(f"p{n}",)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    rows = measure.stop()
    tell(rows)
    """
    rows = {row[0]: row for row in packages.tells(script)[0]}
    assert len(rows) == 17
    assert all(0 <= own <= total for _, _, own, total, _ in rows.values())
    assert all(rows[f"p{n}"][3] >= 20 and rows[f"p{n}.q"][3] >= 10 for n in range(8))


def test_a_failed_import_counts_for_who_asked(packages: Packages) -> None:
    packages.add("tries.py", "try:\n    import fails\nexcept ValueError:\n    pass")
    packages.add("fails.py", "import time; time.sleep(0.02); raise ValueError")
    rows = packages.tells("tell(measured('tries'))")[0]
    assert list(rows) == ["tries"] and rows["tries"][2] >= 20 and rows["tries"][1] < 20


def test_the_report_is_bounded(packages: Packages) -> None:
    for number in range(600):
        packages.add(f"many/m{number}.py")
    packages.add("many/__init__.py", "for number in range(600): __import__(f'many.m{number}')")
    packages.add("long/" + "x" * 240 + ".py")
    packages.add("long/" + "y" * 252 + ".py")
    packages.add("odd name.py")
    for number in range(400):
        packages.add(f"wide/{'w' * 200}{number}.py")
    packages.add("wide/__init__.py", f"for number in range(400): __import__(f'wide.{'w' * 200}{{number}}')")
    script = """
    names = ["many", "long." + "x" * 240, "long." + "y" * 252, "odd name"]
    many = measured(*names)
    wide = measured("wide")
    tell(len(many), "odd name" in many, max(map(len, many)), len(json.dumps(list(wide.items()))), len(wide))
    """
    many, odd, longest, size, wide = packages.tells(script)
    assert many == 500 and not odd and longest <= 256
    assert 32 * 1024 < size <= 48 * 1024 and wide > 100


def test_without_the_name_nothing_is_measured(packages: Packages) -> None:
    packages.add("a.py")
    script = """
    system = sys.modules["_frozen_importlib"]
    class Without:
        pass
    measure._system = Without()
    first = measured("a")
    measure._system = None
    tell(first, measured("json"), measure.used())
    """
    assert packages.tells(script) == [{}, {}, []]


def test_somebody_else_may_stand_in_between(packages: Packages) -> None:
    for name in "abc":
        packages.add(f"{name}.py")
    script = """
    system = sys.modules["_frozen_importlib"]
    measure.start([packages])
    inner = system._load_unlocked
    system._load_unlocked = lambda spec: inner(spec)
    import a
    first = [row[0] for row in measure.stop()]
    import b
    second = list(measured("c"))  # theirs stays, and calls ours: measured or not, nothing runs in a circle
    tell(first, second, "c" in sys.modules)
    """
    first, second, loaded = packages.tells(script)
    assert first == ["a"] and second in ([], ["c"]) and loaded


USER = """
import numeric, shapes.circle as c
from helpers import work, Thing
from shapes import square
import unused_here as _gone
del _gone
thing = Thing()
class Mine(Thing): pass
class Proxy:
    def __getattr__(self, name): raise SystemExit("touched")
    @property
    def __class__(self): raise SystemExit("touched")
proxy = Proxy()
"""


def test_what_is_used_of_the_preloaded(packages: Packages, tmp_path: Path) -> None:
    packages.add("numeric.py")
    packages.add("shapes/__init__.py", "def square(): pass")
    packages.add("shapes/circle.py")
    packages.add("helpers.py", "def work(): pass\nclass Thing: pass")
    packages.add("unused_here.py")
    packages.add("space/part.py")
    packages.add("deep.py", "class Deep: pass")
    code = tmp_path / "code"
    code.mkdir()
    (code / "f.py").write_text(USER + "import g\n")
    (code / "g.py").write_text("import deep\nmade = deep.Deep()\ndel deep\n")
    script = """
    import numeric, shapes, helpers, unused_here, space.part, deep
    from importlib import util
    sys.modules["not_a_module"] = 5
    measure.settle([packages])
    before = sorted(measure.preloaded)
    sys.path.insert(0, {code!r})
    measure.start([packages], {code!r})
    import f
    rows = [row[0] for row in measure.stop()]
    tell(before, rows, measure.used(), measure.used())
    """
    assert packages.tells(script.format(code=str(code))) == [
        ["deep", "helpers", "numeric", "shapes", "space", "unused_here"],
        ["shapes.circle"],
        ["deep", "helpers", "numeric", "shapes"],
        [],
    ]


def test_the_names_fit_what_the_host_takes() -> None:
    """Bounds of this side within those of the other, or a function with long names could not start."""
    from olsock import readiness
    from olsock.runtime import measure, wire

    assert measure.MAX_ROWS == readiness.MAX_IMPORTS and measure.MAX_USED == readiness.MAX_USED
    assert measure.MAX_BYTES + measure.MAX_USED * (measure.MAX_TOP + 4) + 256 <= wire.MAX_META
    row = ["x" * (measure.MAX_NAME - 2) + ".é", "y" * measure.MAX_TOP, 0.001, 1.5, 0]
    ready = readiness.decode(json.dumps({"init_ms": 1.0, "imports": [row], "used": ["y" * measure.MAX_TOP]}).encode())
    assert ready.imports[0].module == row[0] and ready.imports == readiness.imports([row])
    for bad in ([["a b", "a", 1, 1, 1]], [["a", "a", -1, 1, 1]], [["a", "a", 1, 1]], {"a": 1}, "a", None, [row] * 501):
        with pytest.raises(ValueError):
            readiness.imports(bad)
