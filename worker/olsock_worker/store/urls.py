"""Function URLs in the store of a single host: at most one for a function, and one for each of its aliases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import apsw
import msgspec

from olsock_worker.store.records import Absent, Conflict, Cors, FunctionUrl

TABLES = """
CREATE TABLE IF NOT EXISTS urls (
    id TEXT PRIMARY KEY, function TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE, qualifier TEXT NOT NULL,
    signed INTEGER NOT NULL, stream INTEGER NOT NULL, cors TEXT, created TEXT NOT NULL, modified TEXT NOT NULL,
    UNIQUE (function, qualifier)
) STRICT, WITHOUT ROWID;
"""
_URL = "id, function, qualifier, signed, stream, cors, created, modified"


class UrlTable:
    """A `UrlStore`. `transaction` commits at its end, or changes nothing."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[apsw.Connection]]) -> None:
        self._transaction = transaction

    def create(self, url: FunctionUrl) -> None:
        """Add a URL of a function, or of an alias, that exists."""
        with self._transaction() as db:
            _check(db, url.function, url.qualifier)
            if _find(db, url.function, url.qualifier) is not None:
                raise Conflict(f"Failed to create function url config for {_shown(url)}: it has one already")
            _put(db, url)

    def change(self, url: FunctionUrl) -> None:
        """Put a URL in the place of the one that there is."""
        with self._transaction() as db:
            if _find(db, url.function, url.qualifier) is None:
                raise Absent(f"{_shown(url)} has no function URL")
            _put(db, url)

    def delete(self, function: str, qualifier: str) -> None:
        """Remove a URL."""
        with self._transaction() as db:
            _required(db, function, qualifier)
            forget(db, function, qualifier)

    def get(self, function: str, qualifier: str) -> FunctionUrl:
        """Return a URL."""
        with self._transaction() as db:
            return _required(db, function, qualifier)

    def all(self, function: str) -> list[FunctionUrl]:
        """Return the URLs of a function and of its aliases, by qualifier."""
        with self._transaction() as db:
            _check(db, function, "")
            return [
                _url(row) for row in db.execute(f"SELECT {_URL} FROM urls WHERE function = ? ORDER BY 3", (function,))
            ]


def forget(db: apsw.Connection, function: str, qualifier: str) -> None:
    """Remove the URL of an alias that is being removed."""
    db.execute("DELETE FROM urls WHERE function = ? AND qualifier = ?", (function, qualifier))


def _find(db: apsw.Connection, function: str, qualifier: str) -> FunctionUrl | None:
    query = f"SELECT {_URL} FROM urls WHERE function = ? AND qualifier = ?"
    return next((_url(row) for row in db.execute(query, (function, qualifier))), None)


def _required(db: apsw.Connection, function: str, qualifier: str) -> FunctionUrl:
    found = _find(db, function, qualifier)
    if found is None:
        raise Absent(f"{function}{qualifier and ':' + qualifier} has no function URL")
    return found


def _check(db: apsw.Connection, function: str, qualifier: str) -> None:
    """Raise `Absent` unless a function, and its alias if one is named, exist."""
    if next(iter(db.execute("SELECT 1 FROM functions WHERE name = ?", (function,))), None) is None:
        raise Absent(f"Function not found: {function}")
    query = "SELECT 1 FROM aliases WHERE function = ? AND name = ?"
    if qualifier and next(iter(db.execute(query, (function, qualifier))), None) is None:
        raise Absent(f"Cannot find alias {qualifier} of {function}")


def _put(db: apsw.Connection, url: FunctionUrl) -> None:
    cors = None if url.cors is None else msgspec.json.encode(url.cors).decode()
    values = url.id, url.function, url.qualifier, url.signed, url.stream, cors, url.created, url.modified
    db.execute(f"INSERT OR REPLACE INTO urls ({_URL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _shown(url: FunctionUrl) -> str:
    return url.function + (f":{url.qualifier}" if url.qualifier else "")


def _url(row: tuple[Any, ...]) -> FunctionUrl:
    number, function, qualifier, signed, stream, cors, created, modified = row
    decoded = None if cors is None else msgspec.json.decode(cors, type=Cors)
    return FunctionUrl(number, function, qualifier, bool(signed), bool(stream), decoded, created, modified)
