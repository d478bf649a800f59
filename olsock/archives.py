"""Archives of strangers, unpacked where nothing can come of it: by a parser in a sandbox that is used once.

What comes out is a stream of records: a kind, flags, and bytes (a name, a piece of a file, a reason). It is the sandbox's word
and has to be judged by whoever reads it; `read` checks its form, and nothing of what it names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from olsock.errors import DeadlineError, ProtocolError
from olsock.pipes import DEVNULL
from olsock.sandbox import Sandbox

Form = Literal["zip", "tar.gz"]

DIRECTORY, FILE, DATA, END, REFUSED = 1, 2, 3, 4, 5
EXECUTABLE, TOO_LARGE = 1, 1
TIMEOUT = 30.0  # seconds
MEMORY, PIDS = "256M", 4

_RECORD = struct.Struct("<BBHI")
_LARGEST = {DIRECTORY: 4096, FILE: 4096, DATA: 1 << 18, END: 0, REFUSED: 1000}  # bytes of what follows
_FLAGS = {DIRECTORY: 0, FILE: EXECUTABLE, DATA: 0, END: 0, REFUSED: TOO_LARGE}
_PROGRAM = (Path(__file__).parent / "runtime" / "unpack" / "olsock_unpack.py").read_text(encoding="utf-8")


def unpack(archive: int, form: Form, output: int, size: int, files: int, started: Callable[[], None]) -> None:
    """Unpack an open file into a pipe: records of at most `size` bytes of `files` members. Blocks until all are written.

    `started` is called when the sandbox is there; what fails before that is raised, what fails later shows in records that
    have no end. The sandbox gets both descriptors, and no other; they stay the caller's to close.
    """
    argv = ["python3", "-I", "-S", "-B", "-c", _PROGRAM, form, str(size), str(files)]
    with (
        Sandbox(memory=MEMORY, pids=PIDS) as box,
        box.popen(argv, stdin=archive, stdout=output, stderr=DEVNULL) as child,
    ):
        started()
        try:
            child.wait(TIMEOUT)
        except DeadlineError:
            pass  # it is killed, and its records end where they end


class CutShortError(ProtocolError):
    """The records end early: what made them was ended, for its limits or with whoever had started it."""


def read(source: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield records (kind, flags, bytes) up to END or REFUSED. Raises `ProtocolError` for what is no such stream."""
    kind = 0
    while kind not in (END, REFUSED):
        header = source.read(_RECORD.size)
        if len(header) < _RECORD.size:
            raise CutShortError("the archive took more time or memory to unpack than it may")
        kind, flags, zero, length = _RECORD.unpack(header)
        if zero or length > _LARGEST.get(kind, -1) or flags & ~_FLAGS[kind]:
            raise ProtocolError("the unpacking sandbox sent what is no record")
        payload = source.read(length)
        if len(payload) < length:
            raise CutShortError("the archive took more time or memory to unpack than it may")
        yield kind, flags, payload
