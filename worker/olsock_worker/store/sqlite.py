"""The store of a single host: a database with one connection that reads and writes."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import apsw
import msgspec

from olsock_worker.store import event_invokes, layers, provisions, urls
from olsock_worker.store.database import connect, prepare
from olsock_worker.store.event_invokes import EventInvokeTable
from olsock_worker.store.layers import LayerTable
from olsock_worker.store.provisions import ProvisionTable
from olsock_worker.store.records import (
    LATEST,
    Absent,
    Alias,
    Code,
    Configuration,
    Conflict,
    Different,
    Stale,
    StoreError,
    Usage,
    Version,
)
from olsock_worker.store.urls import UrlTable

FILE = "functions.db"
_FORMAT = 1  # of the tables
_TABLES = """
CREATE TABLE functions (
    name TEXT PRIMARY KEY, published INTEGER NOT NULL DEFAULT 0, reserved INTEGER, tags TEXT NOT NULL
) STRICT;
CREATE TABLE versions (
    function TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE, number INTEGER NOT NULL,
    digest TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, ol_yaml TEXT NOT NULL,
    configuration TEXT NOT NULL, requirements TEXT NOT NULL, revision TEXT NOT NULL, modified TEXT NOT NULL,
    PRIMARY KEY (function, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE aliases (
    function TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE, name TEXT NOT NULL,
    version TEXT NOT NULL, weights TEXT NOT NULL, description TEXT NOT NULL, revision TEXT NOT NULL,
    PRIMARY KEY (function, name)
) STRICT, WITHOUT ROWID;
"""
_DIGESTS = """
SELECT digest FROM versions UNION SELECT digest FROM layer_versions
UNION SELECT json_extract(each.value, '$.digest') FROM versions, json_each(configuration, '$.layers') AS each
"""
_BELONGINGS = urls, provisions, event_invokes  # what goes with a version or an alias
_PARTS = *_BELONGINGS, layers
_VERSION = "function, number, digest, sha256, size, ol_yaml, configuration, requirements, revision, modified"
_ALIAS = "function, name, version, weights, description, revision"


class SqliteStore:
    """A `FunctionStore` in the directory `directory_fd`, which has to stay open."""

    def __init__(self, directory_fd: int) -> None:
        try:
            self._vfs, self._db = connect(directory_fd, FILE)
            with self._db:
                prepare(self._db, FILE, _TABLES, _FORMAT)
                self._db.execute("".join(part.TABLES for part in _PARTS))
        except apsw.Error as error:
            raise StoreError(f"{FILE}: {error}") from None
        self.urls, self.layers = UrlTable(self._transaction), LayerTable(self._transaction)
        self.provisions = ProvisionTable(self._transaction)
        self.event_invokes = EventInvokeTable(self._transaction)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """Commit at the end of the block, or change nothing."""
        try:
            with self._db:
                yield self._db
        except apsw.Error as error:
            raise StoreError(f"{FILE}: {error}") from None

    # -- functions and versions ---------------------------------------------------------------------------------------

    def create(self, version: Version, tags: Mapping[str, str], publish: bool) -> Version | None:
        """Add a function with its first version, LATEST; return version 1 if it is to be published at once."""
        name = version.function
        with self._transaction() as db:
            if self._row(db, "SELECT 1 FROM functions WHERE name = ?", name) is not None:
                raise Conflict(f"Function already exist: {name}")
            db.execute("INSERT INTO functions (name, tags) VALUES (?, ?)", (name, _text(dict(tags))))
            self._put(db, version)
            return self._publish(db, version, None) if publish else None

    def change(
        self,
        name: str,
        code: Code | None,
        configuration: Configuration | None,
        requirements: Sequence[str] | None,
        revision: str | None,
        publish: bool,
    ) -> tuple[Version, Version | None]:
        """Change LATEST in what is given; return it, and the published version if it is to be published at once."""
        with self._transaction() as db:
            before = self._version(db, name, LATEST)
            _check(revision, before.revision)
            after = msgspec.structs.replace(
                before,
                code=code or before.code,
                configuration=configuration or before.configuration,
                requirements=before.requirements if requirements is None else tuple(requirements),
                revision=new_revision(),
                modified=now(),
            )
            self._put(db, after)
            return after, self._publish(db, after, None) if publish else None

    def publish(self, name: str, description: str | None, sha256: str | None, revision: str | None) -> Version:
        """Make a version of LATEST as it is; return it, or the newest if that is the same. `sha256` has to be the code's."""
        with self._transaction() as db:
            latest = self._version(db, name, LATEST)
            _check(revision, latest.revision)
            if sha256 and sha256 != latest.code.sha256:
                raise Different(
                    f"CodeSHA256 ({sha256}) is different from current CodeSHA256 in $LATEST ({latest.code.sha256}). "
                    "Please try again with the CodeSHA256 in $LATEST."
                )
            return self._publish(db, latest, description)

    def _publish(self, db: apsw.Connection, latest: Version, description: str | None) -> Version:
        name = latest.function
        (last,) = self._row(db, "SELECT published FROM functions WHERE name = ?", name) or (0,)
        newest = self._row(db, f"SELECT {_VERSION} FROM versions WHERE function = ? AND number = ?", name, last)
        if newest is not None and last and _is_same(_version(newest), latest):
            return _version(newest)
        configuration = latest.configuration
        if description is not None:
            configuration = msgspec.structs.replace(configuration, description=description)
        made = msgspec.structs.replace(
            latest, number=str(last + 1), configuration=configuration, revision=new_revision(), modified=now()
        )
        db.execute("UPDATE functions SET published = published + 1 WHERE name = ?", (name,))
        self._put(db, made)
        return made

    def delete(self, name: str) -> None:
        """Remove a function with all that belongs to it."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            db.execute("DELETE FROM functions WHERE name = ?", (name,))

    def delete_version(self, name: str, number: str) -> None:
        """Remove one published version, unless an alias names it."""
        with self._transaction() as db:
            self._version(db, name, number)
            users = [each.name for each in self._aliases(db, name) if number in (each.version, *each.weights)]
            if users:
                raise Conflict(f"version {number} of {name} is used by the aliases {users}")
            db.execute("DELETE FROM versions WHERE function = ? AND number = ?", (name, _number(number)))
            self._forget(db, name, number)

    def version(self, name: str, number: str) -> Version:
        """Return one version."""
        with self._transaction() as db:
            return self._version(db, name, number)

    def functions(self, after: str, most: int) -> list[Version]:
        """Return the LATEST version of functions, by name."""
        query = f"SELECT {_VERSION} FROM versions WHERE number = 0 AND function > ? ORDER BY function LIMIT ?"
        with self._transaction() as db:
            return [_version(row) for row in db.execute(query, (after, most))]

    def versions(self, name: str, after: str, most: int) -> list[Version]:
        """Return versions of one function: LATEST, then those published, in their order."""
        query = f"SELECT {_VERSION} FROM versions WHERE function = ? AND number > ? ORDER BY number LIMIT ?"
        with self._transaction() as db:
            self._version(db, name, LATEST)
            return [_version(row) for row in db.execute(query, (name, _number(after) if after else -1, most))]

    # -- aliases ------------------------------------------------------------------------------------------------------

    def create_alias(self, alias: Alias) -> None:
        """Add an alias of versions that exist."""
        with self._transaction() as db:
            self._version(db, alias.function, LATEST)
            if self._alias(db, alias.function, alias.name) is not None:
                raise Conflict(f"Alias already exists: {alias.name} of {alias.function}")
            self._put_alias(db, alias)

    def change_alias(
        self,
        name: str,
        alias: str,
        version: str | None,
        weights: Mapping[str, float] | None,
        description: str | None,
        revision: str | None,
    ) -> Alias:
        """Change an alias in what is given, and return it."""
        with self._transaction() as db:
            before = self._alias(db, name, alias)
            if before is None:
                raise Absent(f"Cannot find alias {alias} of {name}")
            _check(revision, before.revision)
            after = msgspec.structs.replace(
                before,
                version=version or before.version,
                weights=before.weights if weights is None else dict(weights),
                description=before.description if description is None else description,
                revision=new_revision(),
            )
            self._put_alias(db, after)
        return after

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias if there is one."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            db.execute("DELETE FROM aliases WHERE function = ? AND name = ?", (name, alias))
            self._forget(db, name, alias)

    def alias(self, name: str, alias: str) -> Alias:
        """Return one alias."""
        with self._transaction() as db:
            found = self._alias(db, name, alias)
        if found is None:
            raise Absent(f"Cannot find alias {alias} of {name}")
        return found

    def aliases(self, name: str, version: str | None, after: str, most: int) -> list[Alias]:
        """Return aliases of a function, by name; with `version` those that name it."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            found = self._aliases(db, name, after)
        return [each for each in found if version is None or version in (each.version, *each.weights)][:most]

    # -- what else a function has -------------------------------------------------------------------------------------

    def reserve(self, name: str, calls: int | None) -> None:
        """Set how many calls of a function may run at one time; None: as many as the host takes."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            db.execute("UPDATE functions SET reserved = ? WHERE name = ?", (calls, name))

    def reserved(self, name: str) -> int | None:
        """Return what `reserve` has set."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            row = self._row(db, "SELECT reserved FROM functions WHERE name = ?", name)
        calls: int | None = None if row is None else row[0]
        return calls

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a function."""
        with self._transaction() as db:
            row = self._row(db, "SELECT tags FROM functions WHERE name = ?", name)
        if row is None:
            raise Absent(f"Function not found: {name}")
        return msgspec.json.decode(row[0], type=dict[str, str])

    def set_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Replace the tags of a function."""
        with self._transaction() as db:
            self._version(db, name, LATEST)
            db.execute("UPDATE functions SET tags = ? WHERE name = ?", (_text(dict(tags)), name))

    def keys(self) -> list[tuple[str, str]]:
        """Return (function, number) of every version."""
        with self._transaction() as db:
            return [(name, _shown(number)) for name, number in db.execute("SELECT function, number FROM versions")]

    def digests(self) -> set[str]:
        """Return the contents that any version of a function or of a layer refers to."""
        with self._transaction() as db:
            return {digest for (digest,) in db.execute(_DIGESTS)}

    def usage(self) -> Usage:
        """Return what there is in all."""
        with self._transaction() as db:
            row = self._row(db, "SELECT COUNT(DISTINCT function), COALESCE(SUM(size), 0) FROM versions") or (0, 0)
            of_layers = self._row(db, "SELECT COALESCE(SUM(size), 0) FROM layer_versions") or (0,)
        return Usage(row[0], row[1] + of_layers[0])

    def close(self) -> None:
        """Let go of it. What was acknowledged is safe already."""
        self._db.close()

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _forget(self, db: apsw.Connection, name: str, qualifier: str) -> None:
        """Remove what belongs to a version or an alias that is being removed."""
        for table in _BELONGINGS:
            table.forget(db, name, qualifier)

    def _row(self, db: apsw.Connection, query: str, *values: str | int) -> tuple[Any, ...] | None:
        return next(iter(db.execute(query, values)), None)

    def _version(self, db: apsw.Connection, name: str, number: str) -> Version:
        query = f"SELECT {_VERSION} FROM versions WHERE function = ? AND number = ?"
        row = self._row(db, query, name, _number(number))
        if row is None:
            raise Absent(f"Function not found: {name}" + ("" if number == LATEST else f":{number}"))
        return _version(row)

    def _put(self, db: apsw.Connection, version: Version) -> None:
        code = version.code
        values = (
            *(version.function, _number(version.number), code.digest, code.sha256, code.size, code.ol_yaml),
            *(_text(version.configuration), _text(version.requirements), version.revision, version.modified),
        )
        db.execute(f"INSERT OR REPLACE INTO versions ({_VERSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _alias(self, db: apsw.Connection, name: str, alias: str) -> Alias | None:
        row = self._row(db, f"SELECT {_ALIAS} FROM aliases WHERE function = ? AND name = ?", name, alias)
        return None if row is None else _alias(row)

    def _aliases(self, db: apsw.Connection, name: str, after: str = "") -> list[Alias]:
        query = f"SELECT {_ALIAS} FROM aliases WHERE function = ? AND name > ? ORDER BY name"
        return [_alias(row) for row in db.execute(query, (name, after))]

    def _put_alias(self, db: apsw.Connection, alias: Alias) -> None:
        for number in (alias.version, *alias.weights):
            self._version(db, alias.function, number)
        values = (
            *(alias.function, alias.name, alias.version),
            *(_text(alias.weights), alias.description, alias.revision),
        )
        db.execute(f"INSERT OR REPLACE INTO aliases ({_ALIAS}) VALUES (?, ?, ?, ?, ?, ?)", values)


def snapshot(directory_fd: int) -> tuple[bytes, set[str]]:
    """Return the database as it is at one moment, and the contents that it refers to. Another process may be using it."""
    os.stat(FILE, dir_fd=directory_fd, follow_symlinks=False)  # or it would be made
    vfs, live = connect(directory_fd, FILE)
    with contextlib.ExitStack() as stack:
        stack.callback(live.close)
        copy = apsw.Connection(":memory:")
        stack.callback(copy.close)
        with copy.backup("main", live, "main") as backup:
            while not backup.done:
                backup.step()
        data = bytearray(copy.serialize("main"))
    del vfs
    data[18:20] = b"\x01\x01"  # no write-ahead log beside it: https://sqlite.org/c3ref/deserialize.html
    return bytes(data), examine(bytes(data))


def examine(data: bytes) -> set[str]:
    """Return the contents that a database refers to. Raises `StoreError`, or an error of apsw, for what is no sound one."""
    with contextlib.closing(apsw.Connection(":memory:")) as db:
        db.deserialize("main", data)
        db.execute("PRAGMA trusted_schema = 0; PRAGMA cell_size_check = 1")
        if [*db.execute("PRAGMA integrity_check")] != [("ok",)] or db.pragma("user_version") != _FORMAT:
            raise StoreError(f"not a database of format {_FORMAT}, or not a sound one")
        return {digest for (digest,) in db.execute(_DIGESTS)}


def new_revision() -> str:
    """Return a name for a state of something, in the form of a UUID."""
    return str(uuid.uuid4())


def moment(seconds: float) -> str:
    """Return a Unix time as AWS writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"


def now() -> str:
    """Return the time as AWS writes it."""
    return moment(time.time())


def _check(given: str | None, present: str) -> None:
    if given and given != present:
        raise Stale("The Revision Id provided does not match the latest Revision Id. Get it anew, and try again")


def _is_same(published: Version, latest: Version) -> bool:
    """Whether two versions run alike; what they are described as does not count."""
    plain = [msgspec.structs.replace(each.configuration, description="") for each in (published, latest)]
    return published.code == latest.code and _text(plain[0]) == _text(plain[1])


def _number(number: str) -> int:
    """LATEST is 0. What is no number is no version either."""
    return (
        0 if number == LATEST else int(number) if number.isascii() and number.isdecimal() and len(number) < 16 else -1
    )


def _shown(number: int) -> str:
    return str(number) if number else LATEST


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _version(row: tuple[Any, ...]) -> Version:
    function, number, digest, sha256, size, ol_yaml, configuration, requirements, revision, modified = row
    return Version(
        function=function,
        number=_shown(number),
        code=Code(digest, sha256, size, ol_yaml),
        configuration=msgspec.json.decode(configuration, type=Configuration),
        requirements=msgspec.json.decode(requirements, type=tuple[str, ...]),
        revision=revision,
        modified=modified,
    )


def _alias(row: tuple[Any, ...]) -> Alias:
    function, name, version, weights, description, revision = row
    return Alias(function, name, version, msgspec.json.decode(weights, type=dict[str, float]), description, revision)
