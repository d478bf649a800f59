"""Copy a function's code to where it is run from: out of a directory, a tar.gz, or records of a sandbox, all taken for hostile.

Only plain files and directories are accepted; links, devices, sparse files, absolute and climbing names are refused
rather than skipped, because code that lacks a file fails later and worse. Bytes are counted as they come, not as a
header claims.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

from olsock import archives
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


class TooLarge(FunctionError):
    """Code is more than the limits allow."""


class Copy:
    """One function's code on its way into the directory `target_fd`; counts, and computes the version.

    A `lasting` one is on the disk when it is there. It takes no two names that differ in case or composition alone: such code
    is another on the machine that it was written on.
    """

    def __init__(self, target_fd: int, size: int, files: int, lasting: bool = False) -> None:
        self._target = target_fd
        self._size, self._size_limit = 0, size
        self._files, self._files_limit = 0, files
        self._seen: dict[str, str] = {}
        self._lasting = lasting
        self._folded: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """A digest of every name, mode and byte copied."""
        digest = hashlib.sha256()
        for name in sorted(self._seen):
            digest.update(f"{name}\0{self._seen[name]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @property
    def version(self) -> str:
        """The beginning of the digest."""
        return self.digest[:20]

    @property
    def empty(self) -> bool:
        """Whether no file has been copied."""
        return all(kind == "directory" for kind in self._seen.values())

    @property
    def directories(self) -> list[str]:
        """All directories made, those further down first."""
        return sorted((name for name, kind in self._seen.items() if kind == "directory"), reverse=True)

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

    def add_file(self, name: str, source: BinaryIO | IO[bytes] | io.RawIOBase, executable: bool) -> None:
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
            while chunk := source.read(_CHUNK) or b"":
                self._size += len(chunk)
                if self._size > self._size_limit:
                    raise TooLarge(f"code larger than {self._size_limit} bytes")
                digest.update(chunk)
                sink.write(chunk)
            if self._lasting:
                sink.flush()
                os.fsync(sink.fileno())
        self._seen[path] = f"{mode:o} {digest.hexdigest()}"

    def _count(self, path: str) -> None:
        self._files += 1
        if self._files > self._files_limit:
            raise TooLarge(f"more than {self._files_limit} files, at {path!r}")
        if self._lasting:
            if "\\" in path or not path.isprintable():
                raise FunctionError(f"name {path!r} holds a backslash or a control character")
            other = self._folded.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other != path:
                raise FunctionError(f"{path!r} and {other!r} are one name on other systems")


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


def take(source: BinaryIO, copy: Copy) -> None:
    """Copy what a sandbox has unpacked. Raises `FunctionError`, and `olsock.ProtocolError` for what is no such stream."""
    records = archives.read(source)
    ahead: list[tuple[int, int, bytes]] = []  # the record after a file's last
    for record in records:
        ahead.append(record)
        while ahead:
            kind, flags, payload = ahead.pop()
            if kind == archives.DIRECTORY:
                copy.add_directory(_name(payload))
            elif kind == archives.FILE:
                copy.add_file(_name(payload), _Data(records, ahead), bool(flags & archives.EXECUTABLE))
            elif kind == archives.REFUSED:
                error = TooLarge if flags & archives.TOO_LARGE else FunctionError
                raise error(payload.decode(errors="replace"))
            elif kind == archives.DATA:
                raise FunctionError("bytes that are of no file")
    if copy.empty:
        raise FunctionError("there is no file in it")


def _name(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise FunctionError("a name is not UTF-8") from None


class _Data(io.RawIOBase):
    """The bytes of one file among records; what comes after them is put into `ahead`."""

    def __init__(self, records: Iterator[tuple[int, int, bytes]], ahead: list[tuple[int, int, bytes]]) -> None:
        self._records, self._ahead = records, ahead

    def read(self, size: int = -1, /) -> bytes:
        """Return the next piece, however long."""
        if self._ahead:
            return b""
        record = next(self._records)
        if record[0] == archives.DATA and record[2]:
            return record[2]
        self._ahead.append(record)
        return b""


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
