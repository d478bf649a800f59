"""`olsock tree`: from a trace to a plan, a drawing and a picture; errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from olsock.cli import main
from olsock.trees.formats import load

pytestmark = pytest.mark.unit

TRACE = """\
{"function": "a", "python": "python3.12", "packages": ["numpy==2.2.3"], "count": 5,
 "imports": {"numpy": {"ms": 60, "bytes": 4000000, "package": "numpy==2.2.3"}}}
""".replace(",\n", ",")


def run(*arguments: object, text: str = "") -> Result:
    return CliRunner().invoke(main, ["tree", *map(str, arguments)], input=text)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return tmp_path / "trace.jsonl"


def test_fit_writes_draws_and_prints(trace: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    done = run("fit", trace, "--nodes", 5, "--memory", "64M", "-o", plan)
    assert done.exit_code == 0 and "numpy==2.2.3" in done.output and "5 hits, 300 ms saved" in done.output
    assert run("fit", trace, "--json").output == plan.read_text()
    assert load(plan)[0].nodes == 2
    assert run("fit", "-", "--json", text=TRACE).output == plan.read_text()
    assert [path.name for path in tmp_path.iterdir() if path not in (trace, plan)] == []


def test_show_draws_and_writes_a_picture(trace: Path, tmp_path: Path) -> None:
    plan, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    run("fit", trace, "-o", plan)
    done = run("show", plan, "--svg", picture)
    assert done.exit_code == 0 and "numpy==2.2.3" in done.output
    assert picture.read_text().startswith("<svg ")
    assert json.loads(run("show", plan, "--json").output) == json.loads(plan.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "missing"), "No such file"),
        (("fit", "."), "Is a directory"),
        (("fit", "bad.jsonl"), "bad.jsonl:1: "),
        (("fit", "good.jsonl", "--nodes", "0"), "nodes=0: expected 1 to 10000"),
        (("fit", "good.jsonl", "--memory", "1M"), "memory=1048576: expected at least"),
        (("fit", "good.jsonl", "--memory", "much"), "memory='much'"),
        (("fit", "good.jsonl", "-o", "missing/plan"), "No such file"),
        (("show", "bad.jsonl"), "bad.jsonl: not JSON"),
        (("show", "good.jsonl", "--nonsense"), "No such option"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "good.jsonl").write_text(TRACE)
    done = run(*arguments)
    assert done.exit_code == 125 and message in done.output and "Traceback" not in done.output
