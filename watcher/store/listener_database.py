"""Own what the listener has noticed: an SQLite database that may be deleted at any time.

It is a cache of the folders, except for one thing that no folder knows: which notices a consumer has already taken
away. So after it was deleted, notices of outcomes younger than TRIGGER_RETENTION are written once more.

One writer (the listener, which holds a lock); any number of readers, which WAL lets read while it writes. Everything
that belongs together is committed together by `Ledger.commit`; a kill leaves the one or the other, never half of it.
A database of another version, or one that SQLite finds broken, is moved aside and made anew.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from watcher.errors import SettingError, shortage_behind
from watcher.store.layout import LISTENER_DATABASE
from watcher.store.outcome_totals import Finished, Sums, TotalsDelta
from watcher.system import no_links

#: Raised whenever a table or the meaning of a column changes; an older database is then rebuilt.
VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE outcomes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    worker TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL, inode INTEGER NOT NULL, print TEXT NOT NULL,
    task_id TEXT NOT NULL, status TEXT NOT NULL, reason TEXT, batch_id TEXT, agent_id TEXT, provider TEXT,
    started_us INTEGER, finished_us INTEGER, duration_us INTEGER, attempts INTEGER NOT NULL, retries INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_nano INTEGER NOT NULL,
    UNIQUE (worker, folder, name)
);
CREATE INDEX outcomes_by_batch ON outcomes (batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX outcomes_by_time ON outcomes (finished_us);
CREATE TABLE totals (dimension TEXT, key TEXT, tally TEXT NOT NULL, PRIMARY KEY (dimension, key)) WITHOUT ROWID;
CREATE TABLE batches (batch_id TEXT PRIMARY KEY, last_seq INTEGER NOT NULL, told_seq INTEGER NOT NULL DEFAULT 0)
    WITHOUT ROWID;
CREATE TABLE edges (worker TEXT, task_id TEXT, needs TEXT, PRIMARY KEY (worker, task_id, needs)) WITHOUT ROWID;
CREATE TABLE oddities (worker TEXT, folder TEXT, name TEXT, mark TEXT NOT NULL, PRIMARY KEY (worker, folder, name))
    WITHOUT ROWID;
CREATE TABLE told (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (file TEXT PRIMARY KEY, stem TEXT NOT NULL, notice_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE notices (kind TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
"""

_COLUMNS = tuple(field.name for field in fields(Finished))
_INSERT = f"INSERT INTO outcomes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - names of ours
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM outcomes"  # noqa: S608 - names of ours

Key = tuple[str, str, str]


@dataclass(slots=True)
class Entry:
    """What one commit changes. `results` pairs each new one with the one of the same name that it replaces.

    `told` maps a key to its new value, None to forget it. `outbox` are notices as (temporary file, stem, id, kind),
    `sent` the temporary files of those that are published by now.
    """

    outcomes: list[tuple[Finished, Finished | None]] = field(default_factory=list)
    moved: list[tuple[Key, int]] = field(default_factory=list)
    oddities: dict[Key, str | None] = field(default_factory=dict)
    told: dict[str, str | None] = field(default_factory=dict)
    batches_told: dict[str, int] = field(default_factory=dict)
    edges: list[tuple[str, str, str]] = field(default_factory=list)
    outbox: list[tuple[str, str, str, str]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)


class Ledger:
    """The open database. `rebuilt` says why it was made anew, None when it was there."""

    def __init__(self, folder: Path, silent_before: float) -> None:
        """`silent_before` (wall seconds): should this be a new database, older outcomes get no notices."""
        self.path = folder / LISTENER_DATABASE
        self.rebuilt: str | None = None
        try:
            no_links.make_folder(folder)
            for suffix in ("", "-wal", "-shm"):
                no_links.refuse_link(f"{self.path}{suffix}")
            self._db = self._open(silent_before)
        except (OSError, sqlite3.Error) as error:
            why = shortage_behind(error) or error  # asked here: later more descriptors may be free
            raise SettingError(f"STATE_DIR: cannot use {self.path}: {error}; make the folder writable") from why
        self.silent_before = float(self._value("silent_before"))

    def close(self) -> None:
        self._db.close()

    # --- questions

    def known(self) -> Iterator[tuple[str, str, str, int]]:
        """Worker, folder, name and inode of everything that was noticed."""
        return iter(self._db.execute("SELECT worker, folder, name, inode FROM outcomes"))

    def find(self, worker: str, folder: str, name: str) -> Finished | None:
        """What was noticed under this name."""
        row = self._db.execute(f"{_SELECT} WHERE worker = ? AND folder = ? AND name = ?", (worker, folder, name))
        found = row.fetchone()
        return None if found is None else Finished(*found)

    def has_outcome(self, worker: str, task_id: str) -> bool:
        """Whether this task has a result that was noticed."""
        asked = "SELECT 1 FROM outcomes WHERE worker = ? AND folder = 'results' AND name = ?"
        return self._db.execute(asked, (worker, f"{task_id}.json")).fetchone() is not None

    def oddity(self, worker: str, folder: str, name: str) -> str | None:
        """The mark of a file that was reported as unreadable."""
        asked = "SELECT mark FROM oddities WHERE worker = ? AND folder = ? AND name = ?"
        found = self._db.execute(asked, (worker, folder, name)).fetchone()
        return None if found is None else str(found[0])

    def told(self, prefix: str = "") -> dict[str, str]:
        """What was told, for all keys that begin so."""
        rows = self._db.execute("SELECT key, value FROM told WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
        return dict(rows.fetchall())

    def open_batches(self) -> dict[str, int]:
        """Batches with outcomes that no notice has told yet, and the number of the last one."""
        return dict(self._db.execute("SELECT batch_id, last_seq FROM batches WHERE told_seq < last_seq").fetchall())

    def batch(self, batch_id: str) -> list[Finished]:
        """All counted outcomes of a batch, by worker and name."""
        asked = f"{_SELECT} WHERE batch_id = ? AND status != 'with_result' ORDER BY worker, name, folder"
        return [Finished(*row) for row in self._db.execute(asked, (batch_id,))]

    def edges(self) -> list[tuple[str, str, str]]:
        """Every dependency that was seen: worker, task, what it needs."""
        return self._db.execute("SELECT worker, task_id, needs FROM edges").fetchall()

    def totals(self, dimension: str) -> dict[str, Sums]:
        """All-time totals of one dimension."""
        rows = self._db.execute("SELECT key, tally FROM totals WHERE dimension = ?", (dimension,))
        return {key: Sums.load(text) for key, text in rows}

    def outbox(self) -> list[tuple[str, str, str]]:
        """Notices that may not be published yet: temporary file, stem, id."""
        return self._db.execute("SELECT file, stem, notice_id FROM outbox ORDER BY file").fetchall()

    def notices(self) -> dict[str, int]:
        """How many notices were written, by kind."""
        return dict(self._db.execute("SELECT kind, number FROM notices").fetchall())

    # --- the one change

    def commit(self, entry: Entry) -> None:
        """Make all of it true, or none of it. Raises sqlite3.Error."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            self._put_outcomes(entry)
            for (worker, folder, name), inode in entry.moved:
                db.execute(
                    "UPDATE outcomes SET inode = ? WHERE worker = ? AND folder = ? AND name = ?",
                    (inode, worker, folder, name),
                )
            for key, mark in entry.oddities.items():
                if mark is None:
                    db.execute("DELETE FROM oddities WHERE worker = ? AND folder = ? AND name = ?", key)
                else:
                    db.execute("INSERT OR REPLACE INTO oddities VALUES (?, ?, ?, ?)", (*key, mark))
            gone = [(key,) for key, value in entry.told.items() if value is None]
            db.executemany("DELETE FROM told WHERE key = ?", gone)
            db.executemany(
                "INSERT OR REPLACE INTO told VALUES (?, ?)", [i for i in entry.told.items() if i[1] is not None]
            )
            db.executemany(
                "UPDATE batches SET told_seq = ? WHERE batch_id = ?", [(n, b) for b, n in entry.batches_told.items()]
            )
            db.executemany("INSERT OR IGNORE INTO edges VALUES (?, ?, ?)", entry.edges)
            db.executemany("DELETE FROM outbox WHERE file = ?", [(file,) for file in entry.sent])
            db.executemany("INSERT INTO outbox VALUES (?, ?, ?)", [row[:3] for row in entry.outbox])
            db.executemany(
                "INSERT INTO notices VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET number = number + 1",
                [(kind,) for *_, kind in entry.outbox],
            )
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _put_outcomes(self, entry: Entry) -> None:
        totals = TotalsDelta()
        batches: dict[str, int] = {}
        for outcome, old in entry.outcomes:
            if old is not None:
                totals.add(old, -1)
                self._db.execute(
                    "DELETE FROM outcomes WHERE worker = ? AND folder = ? AND name = ?",
                    (old.worker, old.folder, old.name),
                )
            number = self._db.execute(_INSERT, _columns_of(outcome)).lastrowid or 0
            totals.add(outcome)
            if outcome.batch_id is not None and outcome.status != "with_result":
                batches[outcome.batch_id] = number
        self._db.executemany(
            "INSERT INTO batches (batch_id, last_seq) VALUES (?, ?) "
            "ON CONFLICT (batch_id) DO UPDATE SET last_seq = excluded.last_seq",
            batches.items(),
        )
        for (dimension, key), change in totals.changes.items():
            self._change_total(dimension, key, change)

    def _change_total(self, dimension: str, key: str, change: Sums) -> None:
        asked = "SELECT tally FROM totals WHERE dimension = ? AND key = ?"
        found = self._db.execute(asked, (dimension, key)).fetchone()
        if found is not None:
            change.merge(Sums.load(found[0]))
        if change.is_empty:
            self._db.execute("DELETE FROM totals WHERE dimension = ? AND key = ?", (dimension, key))
        else:
            self._db.execute("INSERT OR REPLACE INTO totals VALUES (?, ?, ?)", (dimension, key, change.dump()))

    # --- opening

    def _open(self, silent_before: float) -> sqlite3.Connection:
        existed = self.path.exists()
        try:
            db = _connect(self.path)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == VERSION:
                db.execute("SELECT count(*) FROM meta").fetchone()
                return db
            db.close()
            self.rebuilt = f"its version is {version}, not {VERSION}" if existed else "there was none"
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked or not writable: nothing is known to be wrong with what is in it
            self.rebuilt = f"it could not be read: {error}"
        if existed:
            self._put_aside()
        db = _connect(self.path)
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        db.execute("INSERT INTO meta VALUES ('silent_before', ?)", (repr(silent_before),))
        return db

    def _put_aside(self) -> None:
        os.replace(self.path, self.path.with_suffix(".old"))
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}{suffix}")

    def _value(self, key: str) -> str:
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return "0" if found is None else str(found[0])


def _columns_of(outcome: Finished) -> tuple[object, ...]:
    """The columns of an outcome; dataclasses.astuple copies every value and costs ten times as much."""
    return tuple(getattr(outcome, name) for name in _COLUMNS)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    db.execute("PRAGMA journal_mode = WAL")
    # A commit is safe against a kill without any sync. After a power cut the last ones may be missing, and are made
    # again from the folders: a notice whose temporary file is gone then was published.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA cache_size = -4096")
    return db
