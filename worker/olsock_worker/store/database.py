"""A database of this host: SQLite with a write-ahead log, synced at every commit.

The library comes with the package apsw rather than with the interpreter: before 3.51.3 a reset of the log could corrupt a
database. The file is reached by the descriptor of its directory, since the front cannot enter the directories above.
"""

from __future__ import annotations

import secrets

import apsw

from olsock_worker.store.records import LATEST, Absent, StoreError


class _Directory(apsw.VFS):
    """Files below a descriptor: SQLite itself would look every path up from the root, which may be closed to us."""

    def __init__(self, name: str, directory_fd: int) -> None:
        super().__init__(name, base="")
        self._directory = directory_fd

    def xFullPathname(self, name: str) -> str:
        """Return a path by which the kernel goes straight to the directory."""
        return f"/proc/self/fd/{self._directory}/{name}"


def connect(directory_fd: int, file: str) -> tuple[apsw.VFS, apsw.Connection]:
    """Open a database in a directory; both it and what is returned have to be kept. Raises `apsw.Error`."""
    name = f"olsock-{secrets.token_hex(8)}"
    vfs = _Directory(name, directory_fd)
    connection = apsw.Connection(file, vfs=name)
    connection.set_busy_timeout(5000)
    connection.transaction_mode = "IMMEDIATE"
    for setting, value in (("journal_mode", "wal"), ("synchronous", "full"), ("foreign_keys", True)):
        connection.pragma(setting, value)
    return vfs, connection


def prepare(db: apsw.Connection, file: str, tables: str, known: int) -> None:
    """Make the tables of a new database. Raises `StoreError` for one whose format is not `known`."""
    found = db.pragma("user_version")
    if found == 0:
        db.execute(tables)
        db.pragma("user_version", known)
    elif found != known:
        raise StoreError(f"{file} has format {found}, and this worker knows {known}: it was written by another version")


def require(db: apsw.Connection, function: str, qualifier: str) -> None:
    """Raise `Absent` unless a function has a version, or an alias, of that name."""
    query = (
        "SELECT 1 FROM versions WHERE function = ?1 AND CASE number WHEN 0 THEN ?3 ELSE CAST(number AS TEXT) END = ?2"
    )
    query += " UNION ALL SELECT 1 FROM aliases WHERE function = ?1 AND name = ?2"
    if next(iter(db.execute(query, (function, qualifier, LATEST))), None) is None:
        raise Absent(f"Function not found: {function}" + ("" if qualifier == LATEST else f":{qualifier}"))
