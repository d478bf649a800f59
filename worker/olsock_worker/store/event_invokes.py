"""Rules for events in the store of a single host: at most one for each version and alias of a function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import apsw

from olsock_worker.store.database import require
from olsock_worker.store.records import LATEST, Absent, EventInvoke

TABLES = """
CREATE TABLE IF NOT EXISTS event_invokes (
    function TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE, qualifier TEXT NOT NULL,
    retries INTEGER, age INTEGER, modified REAL NOT NULL, PRIMARY KEY (function, qualifier)
) STRICT, WITHOUT ROWID;
"""
_RULES = "function, qualifier, retries, age, modified"


class EventInvokeTable:
    """An `EventInvokeStore`. `transaction` commits at its end, or changes nothing."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[apsw.Connection]]) -> None:
        self._transaction = transaction

    def put(self, rules: EventInvoke) -> None:
        """Set the rules of a version or an alias that exists."""
        values = rules.function, rules.qualifier, rules.retries, rules.age, rules.modified
        with self._transaction() as db:
            require(db, rules.function, rules.qualifier)
            db.execute(f"INSERT OR REPLACE INTO event_invokes ({_RULES}) VALUES (?, ?, ?, ?, ?)", values)

    def get(self, name: str, qualifier: str) -> EventInvoke:
        """Return the rules of one."""
        with self._transaction() as db:
            return _required(db, name, qualifier)

    def delete(self, name: str, qualifier: str) -> None:
        """Remove the rules of one."""
        with self._transaction() as db:
            _required(db, name, qualifier)
            forget(db, name, qualifier)

    def list(self, name: str, after: str, most: int) -> list[EventInvoke]:
        """Return the rules of a function, by qualifier."""
        query = f"SELECT {_RULES} FROM event_invokes WHERE function = ? AND qualifier > ? ORDER BY qualifier LIMIT ?"
        with self._transaction() as db:
            require(db, name, LATEST)
            return [EventInvoke(*row) for row in db.execute(query, (name, after, most))]


def forget(db: apsw.Connection, name: str, qualifier: str) -> None:
    """Remove the rules of what is removed, if there are any."""
    db.execute("DELETE FROM event_invokes WHERE function = ? AND qualifier = ?", (name, qualifier))


def _required(db: apsw.Connection, name: str, qualifier: str) -> EventInvoke:
    require(db, name, LATEST)
    query = f"SELECT {_RULES} FROM event_invokes WHERE function = ? AND qualifier = ?"
    row = next(iter(db.execute(query, (name, qualifier))), None)
    if row is None:
        raise Absent(f"The function {name}:{qualifier} doesn't have an EventInvokeConfig")
    return EventInvoke(*row)
