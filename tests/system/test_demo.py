"""scripts/demo shows what it says: three kinds of start, fastest last, and nothing left."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def demo(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", **settings}
    return subprocess.run(
        [ROOT / "scripts" / "demo", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_demo_calls_cold_from_a_zygote_and_warm_and_leaves_nothing() -> None:
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    replies = re.findall(r'^\{"hello": "demo".*\}$', done.stdout, re.MULTILINE)
    assert len(replies) == 2 and replies[0] == replies[1]
    assert '"pandas": "' in replies[0]
    latencies = dict(re.findall(r"│ (cold|warm).*?│ +([\d,.]+) ms", done.stdout))
    assert set(latencies) == {"cold", "warm"}
    assert len(re.findall(r"[\d,.]+ ms", done.stdout)) == 3
    assert "nothing is left" in done.stdout


def test_demo_says_why_it_cannot_go_on(tmp_path: Path) -> None:
    """Its function packages cannot be had: a message and status 1, not a traceback."""
    settings = {"XDG_CACHE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = demo(**settings)
    assert done.returncode == 1
    assert "demo failed" in done.stdout and "is a package index reachable?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "olsock").iterdir()), "half of an installation was kept"
