"""Processes for tests to put into cgroups: ordinary Python programs that wait for a word before they begin."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from olsock.cgroups import Group

SYS_CLONE3 = 435
CLONE_INTO_CGROUP = 0x2_0000_0000


class Child(subprocess.Popen[bytes]):
    """A Python program that waits until `go`, so that it can be put under limits first."""

    def __init__(self, code: str, *arguments: str) -> None:
        program = [sys.executable, "-I", "-S", "-c", f"import sys\nsys.stdin.buffer.read(1)\n{code}", *arguments]
        super().__init__(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def go(self) -> None:
        assert self.stdin is not None
        self.stdin.write(b"x")

    def result(self, timeout: float = 60.0) -> tuple[int, str]:
        """Return the exit status (negative: a signal) and what was printed."""
        output, _ = self.communicate(timeout=timeout)
        return self.returncode, output.decode()

    def __exit__(self, *exc: object) -> None:  # type: ignore[override]
        if self.poll() is None:
            self.kill()
        super().__exit__(*exc)  # type: ignore[arg-type]


def run_in(group: Group, code: str) -> tuple[int, str]:
    """Run a Python program inside a cgroup; return (exit status, output)."""
    with Child(code) as child:
        group.adopt(child.pid)
        child.go()
        return child.result()


@contextlib.contextmanager
def counting(path: Path, group: Group) -> Iterator[Counter]:
    """A process in `group` that counts as fast as it can, visible through a file that is mapped by both."""
    path.write_bytes(bytes(8))
    code = """
import mmap, struct
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
number = 0
while True:
    number += 1
    struct.pack_into("<Q", shared, 0, number)
"""
    with Child(code, str(path)) as child, Counter(path) as counter:
        group.adopt(child.pid)
        child.go()
        yield counter


class Counter:
    """What a counting process has got to."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()

    def value(self) -> int:
        number: int = struct.unpack_from("<Q", self._shared)[0]
        return number


def clone_into(cgroup_fd: int, argv: Sequence[str]) -> int:
    """Start a program that is born in the cgroup of an open directory (CLONE_INTO_CGROUP); return its pid."""
    # PyDLL keeps the interpreter's lock, which the child needs in order to go on to its exec.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall
    arguments = ctypes.create_string_buffer(
        struct.pack("<11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd), 88
    )
    pid: int = syscall(SYS_CLONE3, arguments, 88)
    if pid == 0:
        try:
            os.execv(argv[0], list(argv))
        finally:
            os._exit(127)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid
