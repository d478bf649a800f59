"""Each attack that takes `place` runs three times: in a sandbox, in a cold handler, and in one that a zygote forked."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import places
from support.places import KINDS, Place


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def open_place(kind: str) -> Iterator[Callable[..., Place]]:
    """Return what opens places of one kind, with options; they are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(places.open_place(kind, **options))


@pytest.fixture
def place(open_place: Callable[..., Place]) -> Place:
    """A place with the default options."""
    return open_place()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the handlers' directory, to put more into."""
    return shutil.copytree(places.HANDLERS, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
