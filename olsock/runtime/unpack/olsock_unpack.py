"""Unpacks the archive on standard input to records on standard output: the program of a sandbox for that (olsock/archives.py).

Names, modes and bytes are passed on as they are found; whoever reads the records judges them. What is refused here is what
has no place in a record (links, devices, encrypted members), and what is too much, so that it ends early.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import sys
import tarfile
import zipfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

RECORD = struct.Struct("<BBHI")  # kind, flags, zero, length of what follows
DIRECTORY, FILE, DATA, END, REFUSED = 1, 2, 3, 4, 5
EXECUTABLE, TOO_LARGE = 1, 1  # flags of FILE and of REFUSED
CHUNK = 1 << 18
HEADERS = 1 << 20  # bytes of one extended header of a tar
FREE, RATIO = 16 << 20, 100  # bytes that may always come out, and times the size of the archive beyond that


class Refused(Exception):
    """Says why an archive is not taken; `flags` goes out with it."""

    def __init__(self, message: str, flags: int = 0) -> None:
        super().__init__(message)
        self.flags = flags


class Records:
    """Writes records, and counts."""

    def __init__(self, out: IO[bytes], size: int, files: int) -> None:
        self._out, self._left, self._files = out, size, files
        self._size, self._most = size, files

    def member(self, kind: int, name: str, executable: bool = False) -> None:
        """Begin a member."""
        self._files -= 1
        if self._files < 0:
            raise Refused("more than {} files".format(self._most), TOO_LARGE)
        self.record(kind, name.encode("utf-8", "surrogateescape"), EXECUTABLE if executable else 0)

    def data(self, source: IO[bytes]) -> int:
        """Pass on the bytes of a file; return how many."""
        size = 0
        while True:
            chunk = source.read(CHUNK)
            if not chunk:
                return size
            size += len(chunk)
            self._left -= len(chunk)
            if self._left < 0:
                raise Refused("unpacks to more than {} bytes".format(self._size), TOO_LARGE)
            self.record(DATA, chunk)

    def record(self, kind: int, payload: bytes = b"", flags: int = 0) -> None:
        """Write one record."""
        self._out.write(RECORD.pack(kind, flags, 0, len(payload)) + payload)


def unpack_zip(archive: IO[bytes], records: Records) -> None:
    """Pass on the members of a zip."""
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name, mode = info.orig_filename, info.external_attr >> 16
            if "\0" in name:
                raise Refused("a name holds a null byte")
            if info.flag_bits & 0x1:
                raise Refused("{!r} is encrypted".format(name))
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Refused("{!r} is neither a file nor a directory".format(name))
            if name.endswith("/") or stat.S_ISDIR(mode):
                records.member(DIRECTORY, name)
            else:
                records.member(FILE, name, bool(mode & 0o111))
                with opened.open(info) as file:
                    if records.data(file) != info.file_size:
                        raise Refused("{!r} is not as long as the archive says".format(name))


class Member(tarfile.TarInfo):
    """A member whose extended headers are bounded: tarfile reads those whole into memory."""

    EXTENDED = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in cls.EXTENDED and member.size > HEADERS:
            raise Refused("an archive header is too long")
        return member


class Counted:
    """A reader that stops a decompression bomb."""

    def __init__(self, source: Any, limit: int) -> None:
        self._source, self._left, self._limit = source, limit, limit

    def read(self, size: int) -> bytes:
        """Read, and count what came."""
        data: bytes = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise Refused("unpacks to more than {} bytes".format(self._limit), TOO_LARGE)
        return data


def unpack_tar(archive: IO[bytes], records: Records, limit: int) -> None:
    """Pass on the members of a tar.gz; `limit` bounds all that is decompressed, headers and padding included."""
    with gzip.GzipFile(fileobj=archive) as plain:
        counted: Any = Counted(plain, limit + (limit >> 2) + FREE)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=Member) as tar:
            for member in tar:
                if member.isdir():
                    records.member(DIRECTORY, member.name)
                elif member.isreg() and not member.issparse():
                    records.member(FILE, member.name, bool(member.mode & 0o111))
                    file = tar.extractfile(member)
                    if file is not None:
                        records.data(file)
                else:
                    raise Refused("{!r} is neither a file nor a directory".format(member.name))
        while counted.read(CHUNK):  # to the end, where the checksum is: a tar may be over before its gz is
            pass


def main(form: str, size: int, files: int) -> None:
    """Unpack standard input, and say at the end whether that was all of it."""
    with open(0, "rb", closefd=False) as archive, open(1, "wb", CHUNK, closefd=False) as out:
        size = min(size, FREE + RATIO * os.fstat(0).st_size)
        records = Records(out, size, files)
        try:
            if form == "zip":
                unpack_zip(archive, records)
            else:
                unpack_tar(archive, records, size)
        except Refused as error:
            records.record(REFUSED, str(error).encode("utf-8", "replace")[:1000], error.flags)
        except Exception as error:  # whatever a parser stumbles over, it is the archive that is wrong
            said = "not a sound {}: {}".format(form, error or type(error).__name__)
            records.record(REFUSED, said.encode("utf-8", "replace")[:1000])
        else:
            records.record(END)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
