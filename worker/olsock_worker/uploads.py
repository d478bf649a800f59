"""From an archive that a client sent to code in the store. The archive is opened in a sandbox, and what comes out is checked."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import os
import time

import olsock
from olsock.archives import CutShortError, Form
from olsock_worker import broker_protocol, ol_yaml, unpack
from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Failed, Unpack, Unpacking
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.registry import required_by
from olsock_worker.settings import Settings
from olsock_worker.store.code import CodeStore
from olsock_worker.store.records import Code

# Seconds in which it shows whether what unpacked came to its limits, or was ended because the broker was: then this process
# ends as well, and nobody is told that the archive was to blame.
_DOUBT = 0.25


class UnpackError(Exception):
    """An archive could not be unpacked, for no fault of its own."""


class Uploads:
    """Takes archives into the code store."""

    def __init__(self, broker: BrokerClient, code: CodeStore, settings: Settings) -> None:
        self._broker, self._code, self._settings = broker, code, settings

    async def take(self, archive: bytes, form: Form) -> Code:
        """Unpack an archive; its contents stay in the store until `done`, and after that if a version refers to them.

        Raises `FunctionError` for what is no archive of a function (`TooLarge` if it is more than the limits allow), and
        `UnpackError`.
        """
        loop = asyncio.get_running_loop()
        upload = self._code.upload(archive)
        try:
            path = await loop.run_in_executor(None, upload.__enter__)
        except OSError as error:
            raise _unkept(error) from None
        try:
            source = await self._ask(path, form)
            digest = await loop.run_in_executor(None, self._receive, source)
        finally:
            await loop.run_in_executor(None, upload.__exit__, None, None, None)
        try:
            yaml = await loop.run_in_executor(None, self._yaml, digest)
        except BaseException:
            self.done(digest)
            raise
        sha256 = await loop.run_in_executor(None, hashlib.sha256, archive)
        return Code(digest, base64.b64encode(sha256.digest()).decode(), len(archive), yaml)

    def done(self, digest: str) -> None:
        """Let go of contents that a version refers to by now, or that are not wanted after all."""
        self._code.unpin(digest)

    async def _ask(self, path: str, form: Form) -> int:
        """Have the broker begin; return the end of a pipe."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Reply, fds: list[int]) -> None:
            if isinstance(reply, Unpacking) and fds and not answer.done():
                answer.set_result(fds.pop())
            elif not answer.done():
                answer.set_exception(UnpackError(reply.message if isinstance(reply, Failed) else "no answer"))
            broker_protocol.close_all(fds)

        if not self._broker.request(Unpack(id=self._broker.number(), path=path, form=form), on_reply):
            raise UnpackError("the broker does not keep up")
        return await answer

    async def required(self, digest: str, handler_file: str) -> tuple[str, ...]:
        """Return what contents say that they require. Raises `FunctionError`."""

        def read(name: str, size: int) -> bytes | None:
            return self._code.read(digest, name, size)

        return await asyncio.get_running_loop().run_in_executor(None, required_by, read, handler_file)

    def _receive(self, source_fd: int) -> str:
        with open(source_fd, "rb") as source:
            try:
                limits = int(self._settings.code), self._settings.code_files
                return self._code.add(lambda copy: unpack.take(source, copy), *limits)
            except olsock.ProtocolError as error:
                if isinstance(error, CutShortError):
                    time.sleep(_DOUBT)
                raise FunctionError(str(error)) from None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise FunctionError("a name is too long") from None
                raise _unkept(error) from None

    def _yaml(self, digest: str) -> str:
        """Return the text of the ol.yaml, which has been checked."""
        data = self._code.read(digest, ol_yaml.NAME, ol_yaml.LARGEST + 1) or b""
        ol_yaml.parse(data, self._settings.function)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise FunctionError(f"{ol_yaml.NAME} is not UTF-8") from None


def _unkept(error: OSError) -> UnpackError:
    return UnpackError(f"the store: {os.strerror(error.errno or 0)}")
