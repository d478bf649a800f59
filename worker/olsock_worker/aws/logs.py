"""The logs of functions over HTTP, for who may use the control API and may not read the files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import TYPE_CHECKING

import msgspec

from olsock_worker.aws.errors import absent, invalid
from olsock_worker.aws.messages import Answer, Request
from olsock_worker.records import LogReader

if TYPE_CHECKING:
    from olsock_worker.fleet import Fleet

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}(:[0-9]{1,18})?", re.ASCII)
_POSITION = re.compile(r"(\d{1,20}-\d{1,10}-\d{1,18})?", re.ASCII)
_ENOUGH = 256 * 1024  # characters of an answer; the last chunk may go beyond


class LogPage(msgspec.Struct, frozen=True, rename="pascal"):
    """Some lines, and where to go on."""

    lines: list[str]
    next: str
    missed: bool  # lines were removed before they could be read


class Logs:
    """Reads what is in the files, in threads."""

    def __init__(self, directory_fd: int, fleet: Fleet) -> None:
        self._directory, self._fleet = directory_fd, fleet

    async def read(self, request: Request) -> Answer:
        """Return lines of a log, those after a position if one is given."""
        name, position = request.names[0].removesuffix(":$LATEST"), request.query("After") or ""
        if not _NAME.fullmatch(name):
            raise invalid(f"name {name[:200]!r}: expected NAME or NAME:VERSION")
        if not _POSITION.fullmatch(position):
            raise invalid(f"After {position[:200]!r}: expected the Next of an answer")
        function = self._fleet.functions.get(name)
        if function is not None:
            function.log.flush()
        page = await asyncio.get_running_loop().run_in_executor(None, self._read, name, position)
        if page is None and function is None:
            raise absent(f"{name} has no log")
        return Answer(200, page or LogPage([], "", False))

    def _read(self, name: str, position: str) -> LogPage | None:
        if not any(each.startswith(f"{name}.log") for each in os.listdir(self._directory)):
            return None
        reader = LogReader(self._directory, name)
        try:
            if position:
                reader.seek(position)
            lines: list[str] = []
            size = 0
            with contextlib.closing(reader.chunks()) as chunks:
                for chunk in chunks:
                    lines += chunk
                    size += sum(map(len, chunk))
                    if size > _ENOUGH:
                        break
            return LogPage(lines, reader.position, reader.missed)
        finally:
            reader.close()
