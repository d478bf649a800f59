"""Layers in the store of a single host: each version by its layer's name and its number, which is used once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import apsw
import msgspec

from olsock_worker.store.records import Absent, Code, LayerVersion

TABLES = """
CREATE TABLE IF NOT EXISTS layers (name TEXT PRIMARY KEY, published INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS layer_versions (
    name TEXT NOT NULL REFERENCES layers(name), number INTEGER NOT NULL, digest TEXT NOT NULL, sha256 TEXT NOT NULL,
    size INTEGER NOT NULL, description TEXT NOT NULL, license TEXT NOT NULL, runtimes TEXT NOT NULL,
    architectures TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY (name, number)
) STRICT, WITHOUT ROWID;
"""
_VERSION = "name, number, digest, sha256, size, description, license, runtimes, architectures, created"


class LayerTable:
    """A `LayerStore`. `transaction` commits at its end, or changes nothing."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[apsw.Connection]]) -> None:
        self._transaction = transaction

    def publish(self, version: LayerVersion) -> LayerVersion:
        """Add a version under the next number; return it with that."""
        with self._transaction() as db:
            query = """INSERT INTO layers VALUES (?, 1)
                ON CONFLICT (name) DO UPDATE SET published = published + 1 RETURNING published"""
            ((number,),) = db.execute(query, (version.name,))
            made = msgspec.structs.replace(version, number=number)
            code = made.code
            values = (
                *(made.name, number, code.digest, code.sha256, code.size, made.description, made.license),
                *(_text(made.runtimes), _text(made.architectures), made.created),
            )
            db.execute(f"INSERT INTO layer_versions ({_VERSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return made

    def version(self, name: str, number: int) -> LayerVersion:
        """Return one version."""
        query = f"SELECT {_VERSION} FROM layer_versions WHERE name = ? AND number = ?"
        with self._transaction() as db:
            row = next(iter(db.execute(query, (name, number))), None)
        if row is None:
            raise Absent(f"Layer version {name}:{number} does not exist.")
        return _version(row)

    def versions(self, name: str, before: int, most: int) -> list[LayerVersion]:
        """Return versions of a layer with lower numbers than `before`, the newest first; 0: all of them."""
        query = f"SELECT {_VERSION} FROM layer_versions WHERE name = ? AND number < ? ORDER BY number DESC LIMIT ?"
        with self._transaction() as db:
            return [_version(row) for row in db.execute(query, (name, before or 1 << 62, most))]

    def names(self, after: str, most: int) -> list[str]:
        """Return the names of layers that have a version, in their order."""
        query = "SELECT DISTINCT name FROM layer_versions WHERE name > ? ORDER BY name LIMIT ?"
        with self._transaction() as db:
            return [name for (name,) in db.execute(query, (after, most))]

    def delete(self, name: str, number: int) -> None:
        """Remove a version if there is one. Functions that have it keep it."""
        with self._transaction() as db:
            db.execute("DELETE FROM layer_versions WHERE name = ? AND number = ?", (name, number))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _version(row: tuple[Any, ...]) -> LayerVersion:
    name, number, digest, sha256, size, description, license, runtimes, architectures, created = row
    runtimes, architectures = (msgspec.json.decode(each, type=tuple[str, ...]) for each in (runtimes, architectures))
    code = Code(digest, sha256, size)
    return LayerVersion(name, number, code, description, license, runtimes, architectures, created)
