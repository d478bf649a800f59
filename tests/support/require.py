"""Skips that are failures where OLSOCK_MUST_WORK=1.

Two kinds of test cannot run: what this machine should be able to do and cannot (no root, no cgroups: `require`), and
what no machine of this kind can (version 1 files on a pure version 2 host: plain `pytest.skip`). Only the first is a
failure in CI.
"""

from __future__ import annotations

import os

import pytest


def must_work() -> bool:
    """Whether a missing capability is a failure."""
    return os.environ.get("OLSOCK_MUST_WORK") == "1"


def require(condition: object, reason: str) -> None:
    """Skip unless `condition`; fail instead where everything must work."""
    if condition:
        return
    if must_work():
        pytest.fail(f"OLSOCK_MUST_WORK=1: {reason}", pytrace=False)
    pytest.skip(reason)
