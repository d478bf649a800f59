"""What handlers tell of their import, from real sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest

import olsock

pytestmark = pytest.mark.system

SOURCE = "import greeting.late as g\nfrom other import word\nimport json\ndef f(event): return g.NAME + word()\n"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Code, and a directory of packages."""
    code, packages = tmp_path / "code", tmp_path / "packages"
    code.mkdir()
    (packages / "greeting").mkdir(parents=True)
    tmp_path.chmod(0o755)
    (packages / "greeting" / "__init__.py").write_text("import time; time.sleep(0.01)\n")
    (packages / "greeting" / "late.py").write_text("NAME = 'world'\n")
    (packages / "other.py").write_text("kept = bytearray(b'x') * 20_000_000\ndef word(): return '!'\n")
    (code / "f.py").write_text(SOURCE)
    return code, packages


def test_a_fresh_interpreter_tells_what_it_imported(places: tuple[Path, Path]) -> None:
    code, packages = places
    with olsock.Function(code, packages=[packages]) as function:
        ready = function.ready
        assert {each.module: each.package for each in ready.imports} == {
            "greeting": "greeting",
            "greeting.late": "greeting",
            "other": "other",
        }
        greeting, other = (
            next(each for each in ready.imports if each.module == name) for name in ("greeting", "other")
        )
        assert 10 <= greeting.self_ms <= greeting.total_ms <= ready.init_ms
        assert 15_000_000 < other.bytes < 100_000_000
        assert not ready.used
        assert function.wait_ready() == ready.init_ms
        assert function.invoke() == "world!"
    assert function.ready is ready, "known after the end as well"


def test_a_fork_tells_what_it_used_and_what_was_missing(places: tuple[Path, Path]) -> None:
    code, packages = places
    with olsock.Zygote(["greeting"], packages=[packages]) as zygote:
        with zygote.fork(code) as function:
            ready = function.ready
            assert [each.module for each in ready.imports] in (["other", "greeting.late"], ["greeting.late", "other"])
            assert ready.used == ("greeting",)
            assert function.invoke() == "world!"


def test_a_bare_one_tells_its_time_alone(places: tuple[Path, Path]) -> None:
    code, _ = places
    (code / "f.py").write_text("import json\ndef f(event): return 1\n")
    with olsock.Zygote() as zygote, zygote.fork(code) as function:
        ready = function.ready
        assert ready == olsock.Ready(ready.init_ms)
