"""Code to fetch: a zip made of stored contents, for whoever has an address that was signed a few minutes ago.

The archive is written to a file without a name first, so that its length is known and nothing of it is held in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

from olsock_worker.heads import Head

if TYPE_CHECKING:
    from olsock_worker.calls import Call, Client
    from olsock_worker.logs import WorkerLog
    from olsock_worker.store.code import CodeStore

PREFIX = b"/code/"
_PATH = re.compile(r"/code/([0-9a-f]{64})/([0-9]{1,12})/([0-9a-f]{64})", re.ASCII)
_LIFE = 600  # seconds that an address is good for
_SLOTS = 2  # archives that are made at one time
_PART = 256 * 1024
_LINES = b"content-type: application/zip\r\ncache-control: no-store\r\n"
_WHEN = (1980, 1, 1, 0, 0, 0)  # of every member: the archive depends on the contents alone
_Refuse = Callable[["Call", int, str, str, tuple[tuple[str, str], ...]], None]


class Downloads:
    """Signs addresses, and answers requests for them. The key is of this process: a restart ends them all."""

    def __init__(self, code: CodeStore, refuse: _Refuse, log: WorkerLog) -> None:
        """`refuse` answers with an error of the worker's own."""
        self._code, self._refuse, self._log = code, refuse, log
        self._key = secrets.token_bytes(32)
        self._slots = asyncio.Semaphore(_SLOTS)
        self._tasks: set[asyncio.Task[None]] = set()

    def path(self, digest: str) -> str:
        """Return a path under which contents may be fetched for a while."""
        until = str(int(time.time()) + _LIFE)
        return f"/code/{digest}/{until}/{self._sign(digest, until)}"

    def _sign(self, digest: str, until: str) -> str:
        return hmac.new(self._key, f"{digest}/{until}".encode(), hashlib.sha256).hexdigest()

    def handle(self, call: Call, path: bytes) -> None:
        """Answer a request whose path begins with `PREFIX`."""
        found = _PATH.fullmatch(path.decode("ascii", "replace"))
        if found is None or not hmac.compare_digest(self._sign(found[1], found[2]), found[3]):
            self._refuse(call, 403, "forbidden", "not an address that was signed here", ())
        elif int(found[2]) < time.time():
            self._refuse(call, 403, "forbidden", "the address has expired: ask for a new one", ())
        elif call.method not in ("GET", "HEAD"):
            self._refuse(call, 405, "method_not_allowed", "read only", (("allow", "GET, HEAD"),))
        else:
            task = asyncio.create_task(self._send(call, found[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, call: Call, digest: str) -> None:
        try:
            async with self._slots:
                archive = await asyncio.get_running_loop().run_in_executor(None, self._made, digest)
            if archive is None:
                self._refuse(call, 404, "not_found", "no version refers to this code any more", ())
                return
            with archive:
                await _Sending(call, archive).run()
        except Exception as error:  # a bug of ours, or a full disk, must end one request, not the worker
            self._log("error", "download", request=call.id, error=repr(error))
            self._refuse(call, 500, "internal", "internal error", ())

    def _made(self, digest: str) -> BinaryIO | None:
        """Return a zip of contents, None if there are none. Blocks on the disk."""
        with self._code.opened(digest) as directory:
            if directory is None:
                return None
            archive = self._code.scratch()
            try:
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
                    _pack(made, directory, "")
                archive.seek(0)
            except BaseException:
                archive.close()
                raise
            return archive


class _Sending:
    """A file on its way to a client, no faster than that reads."""

    def __init__(self, call: Call, file: BinaryIO) -> None:
        self._call, self._file = call, file
        self._free = asyncio.Event()
        self._free.set()
        self._gone = False

    async def run(self) -> None:
        """Send all of it, or as much as the client stays for."""
        call = self._call
        if call.connection is None:
            return
        connection = cast("Client", call.connection)
        call.on_abandon = self._leave
        head = Head(200, _LINES, os.fstat(self._file.fileno()).st_size)
        connection.begin(call, self, head)
        try:
            while not head.bodyless(call.method):
                data = await asyncio.get_running_loop().run_in_executor(None, self._file.read, _PART)
                await self._free.wait()
                if self._gone:
                    return
                if not data:
                    break
                connection.write(data)
        except OSError:
            call.connection = None
            connection.cut(True)
            return
        call.connection = None
        connection.finish(call, b"")

    def _leave(self, _call: Call) -> None:
        self._gone = True
        self._free.set()

    def hold(self) -> None:
        """The client does not read."""
        self._free.clear()

    def resume(self) -> None:
        """The client reads again."""
        self._free.set()


def _pack(archive: zipfile.ZipFile, directory_fd: int, above: str) -> None:
    with os.scandir(directory_fd) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_directory in found:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if is_directory else 0)
        with contextlib.ExitStack() as stack:
            fd = os.open(name, flags, dir_fd=directory_fd)
            stack.callback(os.close, fd)
            member = zipfile.ZipInfo(f"{above}{name}/" if is_directory else f"{above}{name}", _WHEN)
            member.external_attr = os.fstat(fd).st_mode << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            if is_directory:
                archive.writestr(member, b"")
                _pack(archive, fd, f"{above}{name}/")
            else:
                with open(fd, "rb", closefd=False) as source, archive.open(member, "w") as target:
                    while data := source.read(_PART):
                        target.write(data)
