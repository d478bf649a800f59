"""Answers of snippets' sandboxes: read strictly, as each byte of them may be the snippet's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.errors import ProtocolError
from olsock.snippets import MAX_ANSWER, Answer, ExecError, ExecResult, ExecUsage, Raised, read_answer

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def result(**changes: Any) -> ExecResult:
    usage = ExecUsage(wall_seconds=0.1, cpu_seconds=0.1, peak_memory=1, oom_killed=False, timed_out=False)
    fields: dict[str, Any] = dict.fromkeys(("value", "repr", "exception", "ended"))
    return ExecResult(**{"stdout": "", "stderr": "", "truncated": False, "usage": usage, **fields, **changes})


@given(VALUES)
def test_values_come_as_they_were(value: Any) -> None:
    answer = json.dumps({"value": value, "repr": repr(value), "error": None}).encode()
    assert read_answer(answer) == Answer(value, repr(value), False, None)


def test_an_exception() -> None:
    answer = {"value": None, "repr": None, "error": {"type": "KeyError", "message": "'x'", "traceback": "Traceback"}}
    assert read_answer(json.dumps(answer).encode()) == Answer(None, None, False, Raised("KeyError", "'x'", "Traceback"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"repr": 5}',
        b'{"repr": ["text"]}',
        b'{"truncated": 1}',
        b'{"error": "text"}',
        b'{"error": {"type": "x", "message": "x"}}',
        b'{"error": {"type": 1, "message": "x", "traceback": ""}}',
        b'{"value": NaN}',
        b'{"value": 1e999}',
        b'{"value": ' + b"1" * 5000 + b"}",
        b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"value": "\xff"}',
        b'{"value": "\\ud800"}',
        b'{"repr": "\\ud800"}',
        b'{"value": 1}{"value": 2}',
        b'{"value": "' + b"x" * MAX_ANSWER + b'"}',
    ],
    ids=lambda answer: answer[:30].decode(errors="replace"),
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_answer(answer)


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(answer: bytes) -> None:
    try:
        read_answer(answer)
    except ProtocolError:
        pass


def test_check_raises_for_what_failed() -> None:
    result().check()
    assert result().ok
    for failed, words in [
        (result(exception=Raised("KeyError", "'x'", "")), "KeyError: 'x'"),
        (result(exception=Raised("KeyboardInterrupt", "", "")), "failed: KeyboardInterrupt"),
        (result(ended="timed out after 2.0 s"), "timed out after 2.0 s"),
    ]:
        assert not failed.ok
        with pytest.raises(ExecError, match=words) as caught:
            failed.check()
        assert caught.value.result is failed
