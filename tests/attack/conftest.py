"""Each attack that takes `place` runs three times: in a sandbox, in a cold handler, and in one that a zygote forked."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
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
def code() -> Iterator[Path]:
    """A copy of the handlers' directory, to put more into. Other users of the host can get there, for controls."""
    with tempfile.TemporaryDirectory(prefix="olsock-code-") as name:
        Path(name).chmod(0o755)
        yield shutil.copytree(places.HANDLERS, Path(name, "code"), ignore=shutil.ignore_patterns("__pycache__"))
