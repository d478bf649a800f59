"""Archives in requests: taken into the code store, or refused in the words of the API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from olsock_worker.aws.errors import ApiError, invalid
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.store.records import Code
from olsock_worker.unpack import TooLarge
from olsock_worker.uploads import UnpackError

if TYPE_CHECKING:
    from olsock.archives import Form
    from olsock_worker.catalog import Catalog
    from olsock_worker.settings import Settings
    from olsock_worker.uploads import Uploads


class Uploading:
    """Takes archives of functions and of layers."""

    def __init__(self, catalog: Catalog, uploads: Uploads, settings: Settings) -> None:
        self._catalog, self._uploads, self._settings = catalog, uploads, settings

    @contextlib.asynccontextmanager
    async def taken(self, archive: bytes, form: Form) -> AsyncIterator[Code]:
        """Unpack an archive; its contents stay at least until the end of the block."""
        usage = await self._catalog.ask(self._catalog.store.usage)
        if usage.bytes + len(archive) > int(self._settings.store_bytes):
            raise ApiError(
                "CodeStorageExceededException", f"all code together is more than store_bytes: {usage.bytes} bytes now"
            )
        try:
            code = await self._uploads.take(archive, form)
        except TooLarge as error:
            kind = "InvalidParameterValueException" if form == "zip" else "RequestTooLargeException"
            raise ApiError(kind, f"Unzipped size must be smaller: {error}") from None
        except FunctionError as error:
            raise invalid(f"Could not unzip uploaded file: {error}") from error
        except UnpackError as error:
            raise ApiError("ServiceException", f"the archive could not be unpacked: {error}") from None
        try:
            yield code
        finally:
            self._uploads.done(code.digest)
