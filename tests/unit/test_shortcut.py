"""The short way to a function's module comes to the same as the import system's, in every interpreter found.

Each case is run twice in fresh processes: by the short way, which says that it was taken, and by `__import__`.
"""

from __future__ import annotations

import json
import py_compile
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.documents import ROOT

pytestmark = pytest.mark.unit

SCRIPT = """
import sys, json
sys.dont_write_bytecode = True
sys.path.insert(0, {runtime!r})
import shortcut
del sys.path[0]
{before}
sys.path.insert(0, {code!r})
noted = []
error = None
try:
    if {short}:
        shortcut.import_module("f", {code!r}, noted.append)
    else:
        __import__("f")
except BaseException as caught:
    error = [type(caught).__name__, str(caught)]
module = sys.modules.get("f")
told = {{"error": error, "there": module is not None}}
if module is not None:
    import inspect
    told["names"] = sorted(vars(module))
    told["plain"] = {{name: value for name, value in vars(module).items() if type(value) in (str, int, list, type(None))}}
    spec = module.__spec__
    told["spec"] = [spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, type(spec.loader).__name__,
                    spec.submodule_search_locations, getattr(spec, "_initializing", None)]
    told["loader"] = module.__loader__ is spec.loader
    if hasattr(module, "f"):
        told["function"] = [module.f.__module__, module.f.__qualname__, module.f.__code__.co_filename]
        told["source"] = inspect.getsource(module.f)
        told["reloaded"] = __import__("importlib").reload(module) is module
print(json.dumps([told, len(noted)]))
"""


def both(python: str, code: Path, before: str = "") -> tuple[dict[str, Any], dict[str, Any], bool]:
    """What there is after either way, and whether the short one was taken."""
    told = []
    for short in (True, False):
        script = SCRIPT.format(runtime=str(ROOT / "olsock" / "runtime"), code=str(code), short=short, before=before)
        done = subprocess.run([python, "-I", "-S", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    (one, taken), (other, _) = told
    return one, other, bool(taken)


PLAIN = '''
"""A function's module."""
from __future__ import annotations
import json
NAME, FILE, CACHED, PACKAGE = __name__, __file__, __cached__, __package__
INITIALIZING = bool(getattr(__spec__, '_initializing', False))
def f(event):
    return json.dumps(event)
'''


@pytest.mark.parametrize(
    ("files", "short"),
    [
        ({"f.py": PLAIN}, True),
        ({"f.py": "# coding: latin-1\nx = '\xe9'\n".encode("latin-1").decode("latin-1")}, True),
        ({"f.py": ""}, True),
        ({"f.py": "x = " + "'" + "a" * (3 << 20) + "'"}, True),
        ({"f.py": "import g\n", "g.py": "import f\nx = f.__name__"}, True),
        ({"f.py": "1 / 0"}, True),
        ({"f.py": "raise SystemExit(3)"}, True),
        ({"f.py": "def f(:"}, True),
        ({"f.py": "\0"}, True),
        ({"f.py": "import sys\nclass M: own = 1\nsys.modules[__name__] = sys.modules['json']"}, True),
        ({"f.py": "import sys\ndel sys.modules[__name__]"}, True),
        ({"f.py": PLAIN, "f/__init__.py": "package = True"}, False),
        ({"f.py": PLAIN, "f/other.py": "namespace = True"}, False),
        ({"f/__init__.py": "package = True"}, False),
        ({"f.py": PLAIN, "f.abi3.so": "no library"}, False),
        ({"g.py": ""}, False),
    ],
)
def test_it_comes_to_the_same(python: str, tmp_path: Path, files: dict[str, str], short: bool) -> None:
    for name, text in files.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1" if "latin" in text else "utf-8")
    one, other, taken = both(python, tmp_path / "code")
    assert one == other
    assert taken == short


@pytest.mark.parametrize(
    "before",
    [
        "sys.meta_path.insert(0, type('Finder', (), {'find_spec': staticmethod(lambda *a: None)}))",
        "sys.meta_path.append(type('Finder', (), {'find_spec': staticmethod(lambda *a: None)}))",
        "sys.path_hooks.insert(0, lambda path: (_ for _ in ()).throw(ImportError()))",
        "import builtins; real = builtins.__import__; builtins.__import__ = lambda *a, **k: real(*a, **k)",
        "sys.modules['f'] = type(sys)('f'); sys.modules['f'].__spec__ = sys.__spec__",
        "sys.path_importer_cache[{code!r}] = None",
    ],
)
def test_it_is_not_taken_where_modules_are_found_otherwise(python: str, tmp_path: Path, before: str) -> None:
    (tmp_path / "f.py").write_text("x = 1")
    one, other, taken = both(python, tmp_path, before.replace("{code!r}", repr(str(tmp_path))))
    assert one == other
    assert not taken


def compiled(python: str, folder: Path, source: str, mode: str) -> Path:
    """Bytecode of another text than the file has, to tell what was run."""
    (folder / "f.py").write_text(source)
    script = (
        f"import py_compile; print(py_compile.compile('f.py', invalidation_mode=py_compile.PycInvalidationMode.{mode}))"
    )
    done = subprocess.run([python, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    (folder / "f.py").write_text("def f(event):\n    return 'source'\nwhich = 'source'\n")
    return folder / done.stdout.strip()


@pytest.mark.parametrize("mode", [each.name for each in py_compile.PycInvalidationMode])
def test_bytecode_counts_if_it_stands_for_its_source(python: str, tmp_path: Path, mode: str) -> None:
    source = "def f(event):\n    return 'bytecode'\nwhich = 'bytecode'\n"
    compiled(python, tmp_path, source, mode)
    one, other, taken = both(python, tmp_path)
    assert one == other and taken
    assert one["plain"]["which"] == ("bytecode" if mode == "UNCHECKED_HASH" else "source")
    assert one["function"][2] == str(tmp_path / "f.py")


@pytest.mark.parametrize("garbage", [b"", b"short", b"\0" * 64])
def test_what_is_no_bytecode_is_left_alone(python: str, tmp_path: Path, garbage: bytes) -> None:
    compiled(python, tmp_path, "which = 'bytecode'", "UNCHECKED_HASH").write_bytes(garbage)
    one, other, _ = both(python, tmp_path)
    assert one == other and one["plain"]["which"] == "source"
