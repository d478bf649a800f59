"""The handler that runs a piece of Python text, once in its sandbox. Standard library only, any CPython >= 3.9.

The event is ``{"source": str, "inputs": {name: value}, "filename": str}``, the last two optional. The text
runs as `__main__` with the inputs as globals. The result is ::

    {"value": ...,        what the last statement came to, if it is an expression and JSON can hold it
     "repr": str | None,  its text; None without an expression, and for None
     "truncated": bool,   the text was longer; where it was cut is marked in it
     "error": {"type": str, "message": str, "traceback": str} | None}

`sys.exit` is an error of type SystemExit whose message is the status, with no traceback. JSON holds a value
only if reading it gives an equal one of the same types: no tuples, subclasses, infinities, halves of
surrogate pairs. The text shares the interpreter with this module and may break it: the host takes what
comes for the text's own words.
"""

from __future__ import annotations

import json
import linecache
import sys
import traceback
from _ast import Expr, Expression, PyCF_ONLY_AST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_TEXT = 64 * 1024  # bytes of a value's repr
MAX_TRACEBACK = 32 * 1024
MAX_MESSAGE = 4 * 1024
MAX_VALUE = 1024 * 1024  # bytes of a value as JSON
MAX_ITEMS = 300_000
MAX_DEPTH = 100
MAX_BITS = 13_000  # parsers refuse numbers of more than 4300 digits
_LETTER = 12  # bytes that JSON takes for a letter at most: two escapes

_encode = json.JSONEncoder(allow_nan=False).encode
_Module = type(sys)


def run(event: dict[str, Any]) -> dict[str, Any]:
    """Run the text and say what came of it."""
    source: str = event["source"]
    filename: str = event.get("filename") or "<snippet>"
    lines = source.splitlines(True)
    # Without a time of change: an entry that is taken as it is, whether or not there is such a file.
    linecache.cache[filename] = (len(source), None, lines, filename)
    main = _Module("__main__")
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    main.__dict__.update(event.get("inputs") or {})
    sys.modules["__main__"] = main
    sys.argv[:] = [filename]
    result: dict[str, Any] = {"value": None, "repr": None, "truncated": False, "error": None}
    try:
        value = _execute(source, filename, main.__dict__)
        if value is not None:
            result["repr"], result["truncated"] = _text(value)
            if _fits_json(value):
                result["value"] = value
    except BaseException as error:
        if isinstance(error, SyntaxError) and error.filename == filename:
            _quote(error, lines)
        result["error"] = _describe(error)
    _flush()
    return result


def _execute(source: str, filename: str, space: dict[str, Any]) -> Any:
    tree: Any = compile(source, filename, "exec", PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if tree.body and type(tree.body[-1]) is Expr else None
    # Both before either runs: a text with an error in its last line does nothing.
    body = compile(tree, filename, "exec", dont_inherit=True)
    value = None if last is None else compile(Expression(last.value), filename, "eval", dont_inherit=True)
    exec(body, space)
    return None if value is None else eval(value, space)


def _text(value: Any) -> tuple[str, bool]:
    """Return the repr of a value in at most MAX_TEXT bytes, and whether it was cut."""
    if type(value) in (str, bytes) and len(value) > 2 * MAX_TEXT:
        value = value[:MAX_TEXT] + value[-MAX_TEXT:]  # what lies between would be cut out
    try:
        text = repr(value)
    except ValueError:
        if type(value) is not int:
            raise
        text = hex(value)  # one of more digits than `str` makes
    return _cut(text, MAX_TEXT)


def _cut(text: str, most: int) -> tuple[str, bool]:
    """Cut a text in the middle, where it is longer than `most` bytes; say whether it was."""
    plain = _plain(text[: 2 * most])
    data = plain.encode()
    if len(text) <= 2 * most and len(data) <= most:
        return plain, False
    half = most // 2 - 16
    tail = _plain(text[-half:]).encode()[-half:].decode(errors="ignore")
    return f"{data[:half].decode(errors='ignore')}\n[... cut ...]\n{tail}", True


def _plain(text: str) -> str:
    """Escape halves of surrogate pairs: strict parsers take no such text, and the host has one."""
    return text.encode("utf-8", "backslashreplace").decode()


def _fits_json(value: Any) -> bool:
    """Tell whether JSON gives back an equal value of the same types, in at most MAX_VALUE bytes."""
    size = items = 0
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        at, depth = todo.pop()
        kind = type(at)
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:  # a list that contains itself gets here as well
            return False
        if kind is str:
            try:
                size += 2 + _LETTER * len(at.encode())
            except UnicodeEncodeError:
                return False
        elif kind is int:
            if at.bit_length() > MAX_BITS:
                return False
            size += 3 + at.bit_length() // 3
        elif kind is float:
            if at - at != 0:
                return False
            size += 25
        elif kind is list:
            todo += [(each, depth + 1) for each in at]
        elif kind is dict:
            for name, each in at.items():
                if type(name) is not str:
                    return False
                todo += ((name, depth), (each, depth + 1))
        elif at is not None and kind is not bool:
            return False
        size += 5
        if size > 2 * _LETTER * MAX_VALUE:
            return False
    return size <= MAX_VALUE or len(_encode(value)) <= MAX_VALUE


def _describe(error: BaseException) -> dict[str, str]:
    """Name an exception. Does not raise, whatever the exception's own methods do."""
    try:
        name = _plain(type(error).__name__[:256])
    except BaseException:
        name = "Exception"
    try:
        code = error.code if isinstance(error, SystemExit) else error
        message = "" if code is None else _cut(str(code), MAX_MESSAGE)[0]
    except BaseException:
        message = "<its text cannot be had>"
    trace = ""
    if not isinstance(error, SystemExit):
        try:
            trace = _format(error)
        except BaseException:  # out of memory or of stack: the name is worth having without the trace
            pass
    return {"type": name, "message": message, "traceback": trace}


def _format(error: BaseException) -> str:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return _cut("".join(traceback.format_exception(type(error), error, frames)), MAX_TRACEBACK)[0]


def _quote(error: SyntaxError, lines: list[str]) -> None:
    """Give an error that the compiler found the line that it is in: it would read that from a file."""
    if not error.text and error.lineno and 0 < error.lineno <= len(lines):
        error.text = lines[error.lineno - 1]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass  # closed, or replaced by something of the text's own
