"""Provisioned concurrency in the store of a single host: by function, and number of a version or name of an alias."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import apsw

from olsock_worker.store.database import require
from olsock_worker.store.records import Provision

TABLES = """
CREATE TABLE IF NOT EXISTS provisions (
    function TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE, qualifier TEXT NOT NULL,
    instances INTEGER NOT NULL, modified TEXT NOT NULL, PRIMARY KEY (function, qualifier)
) STRICT, WITHOUT ROWID;
"""
_PROVISION = "function, qualifier, instances, modified"


class ProvisionTable:
    """A `ProvisionStore`. `transaction` commits at its end, or changes nothing."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[apsw.Connection]]) -> None:
        self._transaction = transaction

    def put(self, provision: Provision) -> None:
        """Set how many there are to be for a version or an alias that exists."""
        with self._transaction() as db:
            require(db, provision.function, provision.qualifier)
            values = provision.function, provision.qualifier, provision.instances, provision.modified
            db.execute(f"INSERT OR REPLACE INTO provisions ({_PROVISION}) VALUES (?, ?, ?, ?)", values)

    def delete(self, function: str, qualifier: str) -> None:
        """Keep none any more, if any were to be kept."""
        with self._transaction() as db:
            forget(db, function, qualifier)

    def all(self, function: str) -> list[Provision]:
        """Return those of one function, by qualifier."""
        query = f"SELECT {_PROVISION} FROM provisions WHERE function = ? ORDER BY qualifier"
        with self._transaction() as db:
            return [Provision(*row) for row in db.execute(query, (function,))]


def forget(db: apsw.Connection, function: str, qualifier: str) -> None:
    """Remove what there is for a version or an alias that is being removed."""
    db.execute("DELETE FROM provisions WHERE function = ? AND qualifier = ?", (function, qualifier))
