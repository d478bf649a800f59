"""Copy a function's code out of the registry: from a directory or a tar.gz, both taken for hostile.

Only plain files and directories are accepted; links, devices, sparse files, absolute and climbing names are refused
rather than skipped, because code that lacks a file fails later and worse. Bytes are counted as they come, not as a
header claims.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import tarfile
import zlib
from typing import IO, BinaryIO

from olsock_worker.ol_yaml import FunctionError

_CHUNK = 1 << 18
_DEPTH = 32
_NAME = 255
_LARGEST_HEADER = 1 << 20
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Copy:
    """One function's code on its way into the directory `target_fd`; counts, and computes the version."""

    def __init__(self, target_fd: int, size: int, files: int) -> None:
        self._target = target_fd
        self._size, self._size_limit = 0, size
        self._files, self._files_limit = 0, files
        self._seen: dict[str, str] = {}

    @property
    def version(self) -> str:
        """A digest of every name, mode and byte copied."""
        digest = hashlib.sha256()
        for name in sorted(self._seen):
            digest.update(f"{name}\0{self._seen[name]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:20]

    def add_directory(self, name: str) -> None:
        """Make a directory, with those above it."""
        parts = _parts(name)
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            kind = self._seen.get(path)
            if kind is None:
                self._count(path)
                os.mkdir(path, 0o755, dir_fd=self._target)
                self._seen[path] = "directory"
            elif kind != "directory":
                raise FunctionError(f"{path!r} is both a file and a directory")

    def add_file(self, name: str, source: BinaryIO | IO[bytes], executable: bool) -> None:
        """Copy one file."""
        parts = _parts(name)
        if not parts:
            raise FunctionError("a file without a name")
        path = "/".join(parts)
        if path in self._seen:
            raise FunctionError(f"{path!r} is there twice")
        self.add_directory("/".join(parts[:-1]))
        self._count(path)
        digest = hashlib.sha256()
        mode = 0o755 if executable else 0o644
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self._target
        )
        with open(fd, "wb") as sink:
            while chunk := source.read(_CHUNK):
                self._size += len(chunk)
                if self._size > self._size_limit:
                    raise FunctionError(f"code larger than {self._size_limit} bytes")
                digest.update(chunk)
                sink.write(chunk)
        self._seen[path] = f"{mode:o} {digest.hexdigest()}"

    def _count(self, path: str) -> None:
        self._files += 1
        if self._files > self._files_limit:
            raise FunctionError(f"more than {self._files_limit} files, at {path!r}")


def _parts(name: str) -> list[str]:
    """Split a relative name; refuse what does not stay below."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise FunctionError(f"name {name!r} leads outside")
    if len(parts) > _DEPTH or any(len(part.encode(errors="surrogateescape")) > _NAME for part in parts):
        raise FunctionError("a name is too deep or too long")
    if "\0" in name:
        raise FunctionError("a name holds a null byte")
    return parts


def copy_tree(source_fd: int, copy: Copy, prefix: str = "") -> None:
    """Copy everything below an open directory."""
    if prefix.count("/") > _DEPTH:
        raise FunctionError("directories nested too deep")
    with os.scandir(source_fd) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = prefix + name
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source_fd)
        except OSError as error:
            raise FunctionError(f"{path!r}: {_why(error)}") from None
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode):
                with open(fd, "rb", closefd=False) as file:
                    copy.add_file(path, file, bool(mode & 0o111))
            elif stat.S_ISDIR(mode):
                copy.add_directory(path)
                copy_tree(fd, copy, path + "/")
            else:
                raise FunctionError(f"{path!r} is neither a file nor a directory")
        finally:
            os.close(fd)


def signature(source_fd: int, prefix: str = "") -> list[tuple[str, int, int, int, int]]:
    """Describe a tree without reading its files, to see whether it changed."""
    found = []
    with os.scandir(source_fd) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            info = entry.stat(follow_symlinks=False)
            found.append((prefix + entry.name, info.st_mode, info.st_mtime_ns, info.st_size, info.st_ino))
            if stat.S_ISDIR(info.st_mode) and prefix.count("/") <= _DEPTH:
                fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
                try:
                    found += signature(fd, f"{prefix}{entry.name}/")
                finally:
                    os.close(fd)
    return found


def unpack(archive: BinaryIO, copy: Copy, limit: int) -> None:
    """Unpack a tar.gz as a stream; `limit` bounds all that comes out of the decompressor, headers and padding too."""
    try:
        with gzip.GzipFile(fileobj=archive) as plain:
            counted = _Counted(plain, limit + (limit >> 2) + (16 << 20))
            with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Member) as tar:  # type: ignore[call-overload]
                for member in tar:
                    _add(tar, member, copy)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, UnicodeError) as error:
        raise FunctionError(f"not a sound tar.gz: {error}") from None


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, copy: Copy) -> None:
    if member.isdir():
        copy.add_directory(member.name)
    elif member.isreg() and not member.issparse():
        file = tar.extractfile(member)
        if file is None:
            raise FunctionError(f"{member.name!r} cannot be read")
        copy.add_file(member.name, file, bool(member.mode & 0o111))
    else:
        raise FunctionError(f"{member.name!r} is neither a file nor a directory")


class _Member(tarfile.TarInfo):
    """A member whose extended headers are bounded: tarfile reads those whole into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > _LARGEST_HEADER:
            raise FunctionError("an archive header is too long")
        return member


class _Counted:
    """A reader that stops a decompression bomb."""

    def __init__(self, source: gzip.GzipFile, limit: int) -> None:
        self._source, self._left, self._limit = source, limit, limit

    def read(self, size: int) -> bytes:
        """Read, and count what came."""
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise FunctionError(f"archive unpacks to more than {self._limit} bytes")
        return data


def _why(error: OSError) -> str:
    return "is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
