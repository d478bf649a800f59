"""What is deployed: looks at the registry directory and copies what changed into the code store.

The store holds `<name>/<version>/`, the version being a digest of the contents. A version is copied whole into a
scratch directory first and renamed, so a directory of the store is complete or absent. Everything goes through
directory descriptors: the store lies in a directory that the front cannot even enter by path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable

import msgspec

import olsock
from olsock.packages import requirements
from olsock_worker import ol_yaml, unpack
from olsock_worker.configurations import of_directory
from olsock_worker.ol_yaml import FunctionConfig, FunctionError
from olsock_worker.settings import Settings

WANTS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""What the host lacks for now, and no fault of a function: worth another attempt."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ARCHIVE = ".tar.gz"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Deployment(msgspec.Struct, frozen=True):
    """One version of a function, in the store and ready to run."""

    name: str
    version: str
    config: FunctionConfig
    requirements: tuple[str, ...] = ()  # as it names them
    installation: int = 0  # the broker's number for what they were resolved to and for the interpreter
    packages: tuple[str, ...] = ()  # "name==version" of all that is installed for it
    layers: str = ""  # name of the tree that it finds at /opt

    def is_same(self, other: Deployment) -> bool:
        """Whether both run the same code in the same way."""
        return self.version == other.version and self.config == other.config

    @property
    def path(self) -> str:
        """Where it lies, below the store."""
        return f"{self.name}/{self.version}"

    @property
    def root_path(self) -> str:
        """What it is mounted at: requests for it begin with this."""
        return f"/run/{self.name}"


class Changes(msgspec.Struct, frozen=True):
    """What a look at the registry found."""

    deployed: list[Deployment]
    failed: dict[str, str]  # name -> why; what was deployed before goes on
    removed: list[str]


class Registry:
    """Remembers what was seen, so that a look costs only a few stats when nothing changed."""

    def __init__(self, store_fd: int, settings: Settings) -> None:
        self._store = store_fd
        self._settings = settings
        self._seen: dict[str, object] = {}
        self._scratch = 0

    def look(self, registry_fd: int) -> Changes:
        """Find and copy what is new. Blocks on the disk: call it in a thread, one call at a time."""
        found, deployed, failed = self._names(registry_fd), [], {}
        for name, entry in sorted(found.items()):
            seen: object = None
            try:
                seen = self._signature(registry_fd, entry)
                if self._seen.get(name) == seen:
                    continue
                deployment = self._deploy(registry_fd, name, entry)
                if self._signature(registry_fd, entry) != seen:
                    continue  # changed while it was copied: the next look takes it whole
                deployed.append(deployment)
            except FileNotFoundError:
                continue  # gone, or half written, while we looked
            except (FunctionError, OSError) as error:
                failed[name] = str(error)
                if isinstance(error, OSError) and error.errno in WANTS:
                    continue
            self._seen[name] = seen  # a bad one is not copied again until it changes
        removed = [name for name in self._seen if name not in found]
        for name in removed:
            del self._seen[name]
        return Changes(deployed, failed, removed)

    def again(self, name: str) -> None:
        """Take a function for new at the next look: what stood in its way has gone."""
        self._seen.pop(name, None)

    @property
    def names(self) -> set[str]:
        """All that the latest look found, whether it could be deployed or not."""
        return set(self._seen)

    def forget(self, path: str) -> None:
        """Remove a version that nothing runs any more. Blocks on the disk."""
        shutil.rmtree(path, ignore_errors=True, dir_fd=self._store)

    def _names(self, registry_fd: int) -> dict[str, str]:
        found: dict[str, str] = {}
        with os.scandir(registry_fd) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_ARCHIVE)
                archive = name != entry.name
                if NAME.fullmatch(name) and (archive or entry.is_dir(follow_symlinks=False)):
                    if archive and name in found:
                        continue  # the directory wins: it is what someone is working on
                    found[name] = entry.name
        return found

    def _signature(self, registry_fd: int, entry: str) -> object:
        fd = os.open(entry, _OPEN, dir_fd=registry_fd)
        try:
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                return unpack.signature(fd)
            return (info.st_mtime_ns, info.st_size, info.st_ino)
        finally:
            os.close(fd)

    def _deploy(self, registry_fd: int, name: str, entry: str) -> Deployment:
        self._scratch += 1
        scratch = f".new-{self._scratch}"
        os.mkdir(scratch, 0o755, dir_fd=self._store)
        try:
            target = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._store)
            try:
                version = self._copy(registry_fd, entry, target)
                config, file = self._config(target)
                required = required_by(lambda name, size: _read(target, name, size), file)
            finally:
                os.close(target)
            deployment = Deployment(name, version, of_directory(name, config), required)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._store)
            # ENOTEMPTY: the same contents are there already, from before they were changed and changed back.
            with contextlib.suppress(OSError):
                os.rename(scratch, deployment.path, src_dir_fd=self._store, dst_dir_fd=self._store)
            os.stat(deployment.path, dir_fd=self._store)
            return deployment
        finally:
            shutil.rmtree(scratch, ignore_errors=True, dir_fd=self._store)

    def _copy(self, registry_fd: int, entry: str, target: int) -> str:
        size = int(self._settings.code)
        copy = unpack.Copy(target, size, self._settings.code_files)
        fd = os.open(entry, _OPEN, dir_fd=registry_fd)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                unpack.copy_tree(fd, copy)
            else:
                with open(fd, "rb", closefd=False) as archive:
                    unpack.unpack(archive, copy, size)
        finally:
            os.close(fd)
        return copy.version

    def _config(self, code_fd: int) -> tuple[FunctionConfig, str]:
        """Return the configuration and the file of the handler's module."""
        config = ol_yaml.parse(_read(code_fd, ol_yaml.NAME, ol_yaml.LARGEST + 1) or b"", self._settings.function)
        module = config.handler.partition(":")[0].replace(".", "/")
        for candidate in (f"{module}.py", f"{module}/__init__.py"):
            with contextlib.suppress(OSError):
                os.stat(candidate, dir_fd=code_fd)
                return config, candidate
        raise FunctionError(f"handler {config.handler!r}: there is no {module}.py")


def required_by(read: Callable[[str, int], bytes | None], handler_file: str) -> tuple[str, ...]:
    """Return what code says that it requires, checked but not resolved. `read` gives the beginning of a file."""

    def read_some(name: str) -> bytes | None:
        data = read(name, requirements.MAX_FILE + 1)
        # Code may be long, or in another encoding, as long as it has nothing to say about this.
        return None if name == handler_file and data is not None and b"# /// script" not in data else data

    try:
        return requirements.collect(read_some, handler_file)
    except olsock.OlsockError as error:
        raise FunctionError(str(error)) from None


def _read(code_fd: int, name: str, size: int) -> bytes | None:
    """Return the first `size` bytes of a file of a function, None if there is none."""
    try:
        with open(os.open(name, _OPEN, dir_fd=code_fd), "rb") as file:
            return file.read(size)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
