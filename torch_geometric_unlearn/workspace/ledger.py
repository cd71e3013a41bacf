r"""The ledger of a workspace: one SQLite file whose events form a chain of hashes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

#: Rises with the tables; a file of a later version is refused.
SCHEMA_VERSION = 2
_ATTEMPT = """
CREATE TABLE attempt (
    job TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, method TEXT NOT NULL,
    version TEXT NOT NULL, data TEXT NOT NULL, parent TEXT NOT NULL,
    parent_data TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (job, number));
"""
#: The steps from one version to the next, by the version that they start from.
MIGRATIONS: dict[int, str] = {
    1: """
ALTER TABLE request ADD COLUMN accepted_at REAL;
UPDATE request SET accepted_at = received_at;
ALTER TABLE request ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN drops_features INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN data TEXT;
ALTER TABLE job ADD COLUMN losses TEXT;
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
    + _ATTEMPT
}
#: Seconds by which a clock may be set back without a word [ours].
TOLERANCE = 3_600.0
_START = '0' * 64
_TABLES = """
CREATE TABLE request (
    id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, content TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, received_at REAL NOT NULL,
    due_at REAL NOT NULL, verified_by TEXT NOT NULL, outcome TEXT, job TEXT,
    finished_at REAL, accepted_at REAL, attempts INTEGER NOT NULL DEFAULT 0,
    drops_features INTEGER NOT NULL DEFAULT 0);
CREATE INDEX request_state ON request (state);
CREATE TABLE target (
    request INTEGER NOT NULL REFERENCES request, level TEXT NOT NULL,
    digest TEXT NOT NULL, raw TEXT, outcome TEXT, pairs INTEGER,
    PRIMARY KEY (request, digest));
CREATE TABLE suppression (
    digest TEXT PRIMARY KEY, level TEXT NOT NULL, kind TEXT NOT NULL,
    request INTEGER NOT NULL REFERENCES request, since REAL NOT NULL,
    lifted_at REAL);
CREATE TABLE job (
    id TEXT PRIMARY KEY, parent TEXT NOT NULL, requests TEXT NOT NULL,
    methods TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL,
    created_at REAL NOT NULL, finished_at REAL, verdict TEXT, pairs TEXT,
    num_pairs INTEGER, version TEXT, bundled_at REAL,
    replays INTEGER NOT NULL DEFAULT 0, data TEXT, losses TEXT);
CREATE TABLE version (
    id TEXT PRIMARY KEY, parent TEXT, job TEXT, data TEXT NOT NULL, state TEXT NOT NULL,
    watermark INTEGER NOT NULL, is_full INTEGER NOT NULL, created_at REAL NOT NULL);
CREATE TABLE alias_event (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, version TEXT NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL);
CREATE TABLE gate (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, name TEXT NOT NULL,
    verdict TEXT NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (job, attempt, name));
CREATE TABLE review (
    id INTEGER PRIMARY KEY, request INTEGER NOT NULL, at REAL NOT NULL,
    who TEXT NOT NULL, decision TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE event (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    hash TEXT NOT NULL);
CREATE TRIGGER event_is_final BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER event_stays BEFORE DELETE ON event
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
""" + _ATTEMPT


class Ledger:
    r"""Requests, jobs, versions and events in one SQLite file.

    Everything that belongs together is written in one :meth:`transaction`. Deleted
    content is overwritten in the file.

    Args:
        path (Path): The file; made if it does not exist.

    Raises:
        ValueError: If it is of a later version, or no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Transactions are begun by hand; another process may hold one for a moment.
        self.db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
        self.db.row_factory = sqlite3.Row
        try:
            # No write-ahead log: it would keep deleted content in another file.
            for pragma in ('journal_mode=DELETE', 'secure_delete=ON'):
                self.db.execute(f'PRAGMA {pragma}')
            if self._version() != SCHEMA_VERSION:  # Opening alone writes nothing.
                with self.transaction():
                    self._migrate()
        except sqlite3.OperationalError:  # Locked, or the disk is full.
            self.db.close()
            raise
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise ValueError(f"'{path}' is no ledger ({error})") from error
        except BaseException:
            self.db.close()
            raise

    def _version(self) -> int:
        return int(self.db.execute('PRAGMA user_version').fetchone()[0])

    def _migrate(self) -> None:
        version = self._version()
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"'{self.path}' has the schema version {version}, which this version "
                f"does not know (at most {SCHEMA_VERSION}). Update the package."
            )
        if version == 0:
            if self.row('SELECT 1 FROM sqlite_master') is not None:
                raise ValueError(
                    f"'{self.path}' is no ledger: it holds the tables of another "
                    f'program'
                )
            self._run(_TABLES)
        while 0 < version < SCHEMA_VERSION:
            self._run(MIGRATIONS[version])
            version += 1
        self.db.execute(f'PRAGMA user_version={SCHEMA_VERSION}')

    def _run(self, script: str) -> None:
        # 'executescript' would commit first.
        statement = ''
        for line in script.splitlines():
            statement += line + '\n'
            if sqlite3.complete_statement(statement):
                self.db.execute(statement)
                statement = ''

    @contextmanager
    def transaction(self) -> Iterator[None]:
        r"""Writes all of the block or nothing; nested ones belong to the outermost."""
        if self.db.in_transaction:
            yield
            return
        self.db.execute('BEGIN IMMEDIATE')
        try:
            yield
            self.db.execute('COMMIT')
        except BaseException:
            if self.db.in_transaction:
                self.db.execute('ROLLBACK')
            raise

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        r"""Returns the rows of a query."""
        with self._explained():
            return self.db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        r"""Returns the first row of a query, or nothing."""
        with self._explained():
            return self.db.execute(sql, values).fetchone()

    def write(self, sql: str, *values: Any) -> int:
        r"""Runs a statement inside a transaction and returns the id of a new row."""
        assert self.db.in_transaction
        with self._explained():
            return int(self.db.execute(sql, values).lastrowid or 0)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # Locked, a full disk, ...
                raise
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> ValueError:
        return ValueError(
            f"The ledger '{self.path}' is damaged ({why}). Bring back a copy, and "
            f'submit again what came in since.'
        )

    def event(self, at: float, kind: str, **body: Any) -> None:
        r"""Appends an event to the chain. It must hold no raw id."""
        last = self.row('SELECT id, hash FROM event ORDER BY id DESC LIMIT 1')
        number, before = (1, _START) if last is None else (last['id'] + 1, last['hash'])
        text = json.dumps(body, sort_keys=True)
        link = chained(before, number, at, kind, text)
        row = (number, at, kind, text, link)
        self.write('INSERT INTO event VALUES (?, ?, ?, ?, ?)', *row)

    @property
    def head(self) -> str:
        r"""The hash of the last event."""
        row = self.row('SELECT hash FROM event ORDER BY id DESC LIMIT 1')
        return _START if row is None else row['hash']

    def check_pages(self) -> None:
        r"""Raises a :class:`ValueError` if the file is damaged."""
        found = [row[0] for row in self.rows('PRAGMA quick_check')]
        if found != ['ok']:
            raise self._damaged(found[0])

    def check_clock(self, now: float) -> None:
        r"""Raises if the clock was set back by more than an hour: deadlines and
        probations would be counted from a time to come. A decision to go by it
        (the event :obj:`'clock_set'`) makes what was before it count no more.

        Raises:
            ValueError: If so; says by how much.
        """
        last = self.row(
            'SELECT MAX(at) AS at FROM event WHERE id >= '
            "(SELECT COALESCE(MAX(id), 0) FROM event WHERE kind = 'clock_set')"
        )
        ahead = 0.0 if last is None or last['at'] is None else last['at'] - now
        if ahead > TOLERANCE:
            raise ValueError(
                f'The clock was set back: the last event is {ahead / 3_600:,.1f} hours '
                f"ahead of it. Set it right; or, if it is right now, say so with 'tgu "
                f"clock'."
            )

    def check_chain(self, head: str | None = None) -> int:
        r"""Returns the number of events.

        Args:
            head (str, optional): As for :meth:`check_head`. (default: :obj:`None`)

        Raises:
            ValueError: If one was changed or taken out; says which.
        """
        events = [dict(row) for row in self.rows('SELECT * FROM event ORDER BY id')]
        check_chain(events)
        self.check_head(head)
        return len(events)

    def check_head(self, head: str | None) -> None:
        r"""Raises if an event is missing that there was.

        Args:
            head (str, optional): An earlier :attr:`head`, if one is known.

        Raises:
            ValueError: If it is none of an event.
        """
        sql = 'SELECT 1 FROM event WHERE hash = ? ORDER BY id DESC LIMIT 1'
        if head not in (None, _START) and self.row(sql, head) is None:
            raise ValueError(
                'The last events of the chain are missing. If the ledger is an older '
                'copy, requests that came in since are lost: bring the newer one back.'
            )

    def close(self) -> None:
        r"""Closes the file."""
        self.db.close()


def chained(before: str, number: int, at: float, kind: str, body: str) -> str:
    r"""Returns the hash of an event and of all that came before it."""
    return sha256(json.dumps([before, number, at, kind, body]).encode()).hexdigest()


def check_chain(events: list[dict[str, Any]], before: str = _START) -> None:
    r"""Raises unless events follow each other without a gap or a change.

    Args:
        events (list): Rows of the table :obj:`event`, in order.
        before (str, optional): The hash before the first. (default: sixty-four zeros)
    """
    for place, row in enumerate(events):
        if place > 0 and row['id'] != events[place - 1]['id'] + 1:
            raise ValueError(f'The chain has a gap before event {row["id"]}')
        link = chained(before, row['id'], row['at'], row['kind'], row['body'])
        if link != row['hash']:
            raise ValueError(f'The chain is broken at event {row["id"]}')
        before = row['hash']
