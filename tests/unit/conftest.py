"""What tests of the runtime have in common: every interpreter there is, and a web application outside of a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.boxes import WebBox
from support.interpreters import VERSIONS, interpreter


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    """The path of an interpreter, of each version in turn."""
    found = interpreter(request.param)
    if found is None:
        pytest.skip(f"no CPython {request.param} on this machine")
    return found


@pytest.fixture
def box(tmp_path: Path) -> Iterator[WebBox]:
    """What speaks with a runtime as the host does; test_runtime.py has a plainer one."""
    made = WebBox(tmp_path / "code")
    yield made
    made.close()
