"""Backups of what is deployed over the control API: read from a live store, and put into an empty one.

A tar with a manifest, the database, the locks of what functions require, and all code that versions and layers refer to, each
content a tar.gz of its own. This is a program of its own, which gives root up before it reads anything: the store is the
front's, and an archive may be anybody's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

import apsw
import msgspec

from olsock_worker import locks, privileges, unpack
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.store import sqlite
from olsock_worker.store.code import CodeStore
from olsock_worker.store.records import StoreError

CHANGED = 75  # exit status: the store has changed meanwhile, and the next try may find it whole
_FAILED = 1
_FORMAT = 1
_MANIFEST, _DATABASE, _LOCKS = "manifest.json", sqlite.FILE, "locks.json"
_CODE = re.compile(r"code/([0-9a-f]{64})\.tar\.gz", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:$-]{0,199}/[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.(?:in|lock)", re.ASCII)
_LARGEST = 1 << 30  # bytes of a member that is read whole
_SIZE, _FILES = 1 << 40, 10_000_000  # what was accepted once is not to fail here
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BackupError(Exception):
    """There is no such backup, or none can be made; nothing was changed."""


class ChangedError(BackupError):
    """Code was removed while it was read."""


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """What a backup holds."""

    format: int
    database: str  # SHA-256
    locks: str  # SHA-256
    code: list[str]  # digests of contents


# -- from a store -------------------------------------------------------------------------------------------------


def write(store_fd: int, locks_fd: int, sink: BinaryIO) -> Manifest:
    """Write a backup. A worker may run meanwhile; raises `ChangedError` if it has removed what was to be read."""
    database, digests = sqlite.snapshot(store_fd)
    kept = msgspec.json.encode(_locks(locks_fd))
    manifest = Manifest(_FORMAT, _sha256(database), _sha256(kept), sorted(digests))
    with tarfile.open(fileobj=sink, mode="w|") as archive:
        for name, data in ((_MANIFEST, msgspec.json.encode(manifest)), (_DATABASE, database), (_LOCKS, kept)):
            _member(archive, name, io.BytesIO(data), len(data))
        for digest in manifest.code:
            with _packed(store_fd, digest) as packed:
                _member(archive, f"code/{digest}.tar.gz", packed, os.fstat(packed.fileno()).st_size)
    return manifest


def _member(archive: tarfile.TarFile, name: str, source: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, source)


@contextlib.contextmanager
def _packed(store_fd: int, digest: str) -> Iterator[BinaryIO]:
    """Give a file with one content as a tar.gz."""
    scratch = os.open("scratch", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=store_fd)
    with open(scratch, "w+b") as file:
        try:
            fd = os.open(f"code/{digest}", _DIRECTORY, dir_fd=store_fd)
            try:
                with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
                    _add(archive, fd, "")
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise ChangedError(f"code {digest} was removed meanwhile") from None
        file.seek(0)
        yield file


def _add(archive: tarfile.TarFile, directory_fd: int, above: str) -> None:
    with os.scandir(directory_fd) as entries:
        found = sorted((each.name, each.is_dir(follow_symlinks=False)) for each in entries)
    for name, is_directory in found:
        flags = _DIRECTORY if is_directory else os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with _closing(os.open(name, flags, dir_fd=directory_fd)) as fd:
            member = tarfile.TarInfo(above + name)
            member.mode = os.fstat(fd).st_mode & 0o777
            if is_directory:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
                _add(archive, fd, f"{above}{name}/")
            else:
                member.size = os.fstat(fd).st_size
                with open(fd, "rb", closefd=False) as file:
                    archive.addfile(member, file)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _locks(locks_fd: int) -> dict[str, str]:
    """Return the texts of all locks, by their paths."""
    found: dict[str, str] = {}
    for folder in sorted(os.listdir(locks_fd)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with _closing(os.open(folder, _DIRECTORY, dir_fd=locks_fd)) as below:
                for name in sorted(os.listdir(below)):
                    if _PATH.fullmatch(f"{folder}/{name}"):
                        with _closing(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=below)) as fd:
                            found[f"{folder}/{name}"] = locks.read(fd)
    return found


# -- into a store -------------------------------------------------------------------------------------------------


def read(source: BinaryIO, store_fd: int, locks_fd: int) -> Manifest:
    """Restore a backup into an empty store. Raises `BackupError` unless all of it is sound; then the store stays empty."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(sqlite.FILE, dir_fd=store_fd, follow_symlinks=False)
        raise BackupError("there is a function store already: a backup is restored into an empty state directory only")
    code = CodeStore(store_fd)
    try:
        manifest, database, kept = _checked(source, code)
        _place(store_fd, locks_fd, database, kept)
    except BaseException:
        code.collect(set)
        raise
    return manifest


def _checked(source: BinaryIO, code: CodeStore) -> tuple[Manifest, bytes, dict[str, str]]:
    """Take in the code; return what else there is, once all of it is known to be there and to be what it says."""
    found: dict[str, bytes] = {}
    digests: set[str] = set()
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                match = _CODE.fullmatch(member.name)
                if content is None or member.issparse():
                    raise BackupError(f"{member.name[:200]!r} is no plain file")
                if match is not None:
                    digests.add(_taken(code, content, match[1]))
                elif member.name in (_MANIFEST, _DATABASE, _LOCKS) and member.size <= _LARGEST:
                    found[member.name] = content.read()
                else:
                    raise BackupError(f"{member.name[:200]!r} has no place in a backup")
        manifest = msgspec.json.decode(found[_MANIFEST], type=Manifest)
        kept = msgspec.json.decode(found[_LOCKS], type=dict[str, str])
        sums = {name: _sha256(found[name]) for name in (_DATABASE, _LOCKS)}
    except (tarfile.TarError, EOFError, msgspec.MsgspecError, KeyError, UnicodeError) as error:
        raise BackupError(f"not a whole backup: {error!r}") from None
    if manifest.format != _FORMAT:
        raise BackupError(f"format {manifest.format}: this worker knows {_FORMAT}")
    if sums != {_DATABASE: manifest.database, _LOCKS: manifest.locks}:
        raise BackupError("the database or the locks are not those of the manifest")
    if digests != set(manifest.code):
        raise BackupError("code is missing, or there is more than the manifest names")
    if not all(_PATH.fullmatch(path) and len(text) <= locks.LARGEST for path, text in kept.items()):
        raise BackupError("a lock has no sound name, or is too long")
    try:
        referred = sqlite.examine(found[_DATABASE])
    except (apsw.Error, StoreError) as error:
        raise BackupError(f"the database is damaged: {error}") from None
    if not referred <= digests:
        raise BackupError("the database refers to code that is not there")
    return manifest, found[_DATABASE], kept


def _taken(code: CodeStore, content: IO[bytes], expected: str) -> str:
    try:
        digest = code.add(lambda copy: unpack.unpack(cast("BinaryIO", content), copy, _SIZE), _SIZE, _FILES)
    except FunctionError as error:
        raise BackupError(f"code {expected}: {error}") from None
    code.unpin(digest)
    if digest != expected:
        raise BackupError(f"code {expected} has the digest {digest}")
    return digest


def _place(store_fd: int, locks_fd: int, database: bytes, kept: dict[str, str]) -> None:
    """Write locks and database; the database last, and whole: until then nothing was restored."""
    written = locks.Locks(locks_fd)
    for path, text in kept.items():
        stem, suffix = os.path.splitext(path)
        written.write(stem, suffix, text)
    scratch = f"scratch/{sqlite.FILE}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(scratch, flags, 0o600, dir_fd=store_fd), "wb") as file:
        file.write(database)
        file.flush()
        os.fsync(file.fileno())
    os.rename(scratch, sqlite.FILE, src_dir_fd=store_fd, dst_dir_fd=store_fd)
    os.fsync(store_fd)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the program --------------------------------------------------------------------------------------------------


def main() -> int:
    """Arguments: what to do, user and group to become, descriptors of the store and of the locks. The archive is 0 or 1."""
    what, uid, gid, store_fd, locks_fd = sys.argv[1], *map(int, sys.argv[2:])
    privileges.drop(uid, gid)
    try:
        if what == "backup":
            manifest = write(store_fd, locks_fd, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            manifest = read(sys.stdin.buffer, store_fd, locks_fd)
    except ChangedError as error:
        print(error, file=sys.stderr)
        return CHANGED
    except (BackupError, StoreError, apsw.Error, OSError, ValueError) as error:
        print(str(error) or repr(error), file=sys.stderr)
        return _FAILED
    print(f"{len(manifest.code)} contents", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
