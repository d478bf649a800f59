"""The queue of a single host: a database of its own, so that it and the function store do not wait for each other's commits."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any

import apsw

from olsock_worker.events.interface import Due, Event, Letter, Letters, Loaded, Waiting
from olsock_worker.store.database import connect, prepare
from olsock_worker.store.records import StoreError

if TYPE_CHECKING:
    from olsock_worker.settings import Events

FILE = "events.db"
_FORMAT = 1  # of the tables
_TABLES = """
CREATE TABLE events (
    number INTEGER PRIMARY KEY, target TEXT NOT NULL, due REAL NOT NULL, size INTEGER NOT NULL, id TEXT NOT NULL,
    accepted REAL NOT NULL, attempts INTEGER NOT NULL, told BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE INDEX events_due ON events (target, due, size);
CREATE TABLE letters (
    number INTEGER PRIMARY KEY, target TEXT NOT NULL, died REAL NOT NULL, size INTEGER NOT NULL, id TEXT NOT NULL,
    accepted REAL NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL, error_type TEXT NOT NULL,
    error_message TEXT NOT NULL, told BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE INDEX letters_died ON letters (died, size);
CREATE INDEX letters_id ON letters (id);
CREATE TABLE ends (function TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
_EVENT = "number, target, id, accepted, payload, told, attempts"
_LETTER = f"{_EVENT}, died, reason, error_type, error_message"
_OF_FUNCTION = "(target = ?1 OR substr(target, 1, length(?1) + 1) = ?1 || ':')"


class SqliteQueue:
    """An `EventQueue` in the directory `directory_fd`, which has to stay open."""

    def __init__(self, directory_fd: int, settings: Events) -> None:
        self._settings = settings
        self.letters = Letters()
        self.oldest: float | None = None
        try:
            self._vfs, self._db = connect(directory_fd, FILE)
            with self._db:
                prepare(self._db, FILE, _TABLES, _FORMAT)
                self._count()
        except apsw.Error as error:
            raise StoreError(f"{FILE}: {error}") from None

    def _count(self) -> None:
        count, size = self._row("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM letters") or (0, 0)
        self.letters = Letters(count, size)
        oldest = self._row("SELECT accepted FROM events ORDER BY number LIMIT 1")
        self.oldest = None if oldest is None else oldest[0]

    def load(self) -> Loaded:
        """Return what there is."""
        try:
            with self._db:
                grouped = self._db.execute("SELECT target, COUNT(*), SUM(size) FROM events GROUP BY target")
                waiting = [Waiting(*row) for row in grouped]
                ends: dict[str, int] = dict(list(self._db.execute("SELECT function, number FROM ends")))
                numbers = [self._row(f"SELECT MAX(number) FROM {name}") for name in ("events", "letters", "ends")]
            return Loaded(waiting, max((row[0] or 0 for row in numbers if row is not None), default=0), ends)
        except apsw.Error as error:
            raise StoreError(f"{FILE}: {error}") from None

    def commit(self, works: Sequence[Callable[[], object]]) -> list[object]:
        """Do all of `works` in one transaction, and return what each returned once it is safe."""
        before = self.letters.count, self.letters.size, self.letters.dropped
        try:
            with self._db:
                done = [work() for work in works]
                oldest = self._row("SELECT accepted FROM events ORDER BY number LIMIT 1")
        except BaseException as error:
            self.letters.count, self.letters.size, self.letters.dropped = before
            if isinstance(error, apsw.Error):
                raise StoreError(f"{FILE}: {error}") from None
            raise
        self.oldest = None if oldest is None else oldest[0]
        return done

    def close(self) -> None:
        """Let go of it. What was committed is safe already, also on a disk that cannot be written to any more."""
        with contextlib.suppress(apsw.Error):
            self._db.close()

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        return next(iter(self._db.execute(query, values)), None)

    # -- events -------------------------------------------------------------------------------------------------------

    def add(self, event: Event) -> None:
        """Put an event in, due at once."""
        self._db.execute(
            f"INSERT INTO events ({_EVENT}, due, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*_values(event), event.accepted, event.size),
        )

    def due(self, target: str, now: float, most: int, size: int, held: Set[int]) -> Due:
        """Return events of a target that are due, those of `held` left out: `most`, or at least one and about `size` bytes."""
        query = f"SELECT {_EVENT} FROM events WHERE target = ? AND due <= ?"
        query += " AND number NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT ?"
        events: list[Event] = []
        for row in self._db.execute(query, (target, now, json.dumps(sorted(held)), most)):
            events.append(Event(*row))
            size -= events[-1].size
            if size <= 0:
                break
        later = self._row("SELECT MIN(due) FROM events WHERE target = ? AND due > ?", target, now)
        return Due(events, size <= 0 or len(events) == most, None if later is None else later[0])

    def remove(self, number: int) -> None:
        """Take an event out: it was handled."""
        self._db.execute("DELETE FROM events WHERE number = ?", (number,))

    def postpone(self, number: int, due: float, attempts: int) -> None:
        """Have an event wait for its next attempt."""
        self._db.execute("UPDATE events SET due = ?, attempts = ? WHERE number = ?", (due, attempts, number))

    def end(self, name: str, number: int) -> None:
        """Note that a function was deleted, and with it who the events up to `number` are for."""
        self._db.execute("INSERT OR REPLACE INTO ends (function, number) VALUES (?, ?)", (name, number))

    def forget(self, name: str) -> None:
        """Remove that note: none of these events is left."""
        self._db.execute("DELETE FROM ends WHERE function = ?", (name,))

    # -- dead letters -------------------------------------------------------------------------------------------------

    def bury(self, letter: Letter) -> None:
        """Make a dead letter of an event."""
        event = letter.event
        self.remove(event.number)
        self._db.execute(
            f"INSERT INTO letters ({_LETTER}, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*_values(event), letter.died, letter.reason, letter.error_type, letter.error_message, event.size),
        )
        self.letters.count += 1
        self.letters.size += event.size
        self.expire()

    def expire(self) -> None:
        """Remove dead letters that are too old or too many."""
        settings, now = self._settings, time.time()
        while self.letters.count:
            first = self._row("SELECT number, died, size FROM letters ORDER BY died LIMIT 1")
            full = self.letters.count > settings.dead_letters or self.letters.size > int(settings.dead_letter_bytes)
            if first is None or not (full or first[1] + settings.dead_letter_age < now):
                return
            self._drop(first[0], first[2])
            self.letters.dropped += 1

    def _drop(self, number: int, size: int) -> None:
        self._db.execute("DELETE FROM letters WHERE number = ?", (number,))
        self.letters.count -= 1
        self.letters.size -= size

    def dead(self, name: str, after: int, most: int) -> list[Letter]:
        """Return dead letters of a function, of all if the name is empty, by number."""
        query = (
            f"SELECT {_LETTER} FROM letters WHERE number > ?2 AND (?1 = '' OR {_OF_FUNCTION}) ORDER BY number LIMIT ?3"
        )
        return [_letter(row) for row in self._db.execute(query, (name, after, most))]

    def letter(self, identity: str) -> Letter | None:
        """Return the dead letter of a request."""
        row = self._row(f"SELECT {_LETTER} FROM letters WHERE id = ?", identity)
        return None if row is None else _letter(row)

    def revive(self, identity: str, number: int, now: float) -> Event | None:
        """Make an event with a new number and no past of a dead letter, due at once."""
        found = self.letter(identity)
        if found is None:
            return None
        before = found.event
        self._drop(before.number, before.size)
        event = Event(number, before.target, before.id, now, before.payload, before.told)
        self.add(event)
        return event

    def discard(self, identity: str) -> bool:
        """Remove a dead letter; say whether there was one."""
        found = self._row("SELECT number, size FROM letters WHERE id = ?", identity)
        if found is not None:
            self._drop(*found)
        return found is not None


def _values(event: Event) -> tuple[int, str, str, float, bytes, bytes, int]:
    return event.number, event.target, event.id, event.accepted, event.payload, event.told, event.attempts


def _letter(row: tuple[Any, ...]) -> Letter:
    return Letter(Event(*row[:7]), *row[7:])
