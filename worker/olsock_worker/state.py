"""The state directory: a lock that says who is alive, where to reach it, and what the front may write."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from pathlib import Path

import msgspec

from olsock_worker.settings import SettingsError

SOCKET = "api.sock"
_RUNNING = "worker.json"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Running(msgspec.Struct, frozen=True):
    """What a live worker writes down about itself."""

    pid: int
    host: str = ""  # "": not serving yet
    port: int = 0
    control_host: str = ""  # of the control API and the pages: the same, unless it has an address of its own
    control_port: int = 0


class StateDirectory:
    """Held, by a lock that the kernel lets go of with the process, for as long as a worker lives."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._lock = -1

    def acquire(self) -> None:
        """Make the directory ours, or say who has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        os.chown(self.path, 0, 0)
        self.path.chmod(0o700)
        self._lock = os.open(self.path / _RUNNING, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"state={str(self.path)!r}: another worker (pid {self._pid()}) uses it") from None
        self.write(Running(os.getpid()))

    def _pid(self) -> int:
        running = _decode(os.pread(self._lock, 4096, 0))
        return running.pid if running is not None else 0

    def write(self, running: Running) -> None:
        """Write down where this worker is to be found."""
        data = msgspec.json.encode(running) + b"\n"
        os.pwrite(self._lock, data.ljust(256), 0)

    def directories(self, uid: int, gid: int) -> tuple[int, int, int, int]:
        """Open the code that runs, emptied, and logs, locks and the function store, kept; all belong to the front."""
        shutil.rmtree(self.path / "code", ignore_errors=True)
        fds = []
        for name, mode in (("code", 0o755), ("logs", 0o750), ("locks", 0o750), ("store", 0o700)):
            directory = self.path / name
            directory.mkdir(exist_ok=True)
            fd = os.open(directory, _DIRECTORY)
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            fds.append(fd)
        return fds[0], fds[1], fds[2], fds[3]

    def listen(self) -> socket.socket:
        """Bind the socket by which whoever may open this directory uses the worker without credentials."""
        directory = os.open(self.path, _DIRECTORY)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SOCKET, dir_fd=directory)
            listener.bind(f"/proc/self/fd/{directory}/{SOCKET}")  # however long the path of the directory is
            os.chmod(SOCKET, 0o600, dir_fd=directory)
            listener.listen()
            return listener
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(directory)

    def release(self) -> None:
        """Leave: a directory without a live worker says so."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1
            with contextlib.suppress(OSError):  # none, or a disk that cannot be written to any more
                os.unlink(self.path / SOCKET)
            shutil.rmtree(self.path / "code", ignore_errors=True)


def running(path: str) -> Running | None:
    """Return what the live worker of a state directory wrote down, None if there is no live one."""
    try:
        fd = os.open(Path(path, _RUNNING), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _decode(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)
    return None


def _decode(data: bytes) -> Running | None:
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(data, type=Running)
    return None
