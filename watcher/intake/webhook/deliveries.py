"""Remember which deliveries were taken, for longer than their tasks and results lie in the folders.

Without it a delivery that is sent again after its result was removed would be run, and paid, again. A kill loses
nothing that was remembered; a power cut may lose the last moments, and then the folders still know those tasks. So it
is a cache of one thing only time makes precious, and it may be deleted while the endpoint is stopped.

One thread uses it; several endpoints may share the file. A database that cannot be read is put aside and made anew.
Raises sqlite3.Error.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from watcher.errors import SettingError, shortage_behind
from watcher.store.layout import WEBHOOK_DATABASE
from watcher.system import no_links

VERSION = 1
_WAIT_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
    identity TEXT PRIMARY KEY, worker TEXT NOT NULL, task_id TEXT NOT NULL, content BLOB NOT NULL,
    taken_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_by_time ON deliveries (taken_at);
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One that was taken. `content` is the SHA-256 of what came, by which a copy is told from something else."""

    identity: str
    worker: str
    task_id: str
    content: bytes


class Memory:
    """The open database; `rebuilt` says why it was made anew, None when it was good."""

    def __init__(self, folder: Path, retention_seconds: float) -> None:
        self.path = folder / WEBHOOK_DATABASE
        self.rebuilt: str | None = None
        self._retention = retention_seconds
        try:
            no_links.make_folder(folder)
            for suffix in ("", "-wal", "-shm"):
                no_links.refuse_link(f"{self.path}{suffix}")
            self._db = self._open()
        except (OSError, sqlite3.Error) as error:
            why = shortage_behind(error) or error  # asked here: later more descriptors may be free
            raise SettingError(f"STATE_DIR: cannot use {self.path}: {error}; make the folder writable") from why

    def find(self, identity: str) -> Delivery | None:
        """The delivery of this identity, if it is remembered."""
        asked = "SELECT identity, worker, task_id, content FROM deliveries WHERE identity = ?"
        row = self._db.execute(asked, (identity,)).fetchone()
        return None if row is None else Delivery(*row)

    def remember(self, taken: list[Delivery], now: float) -> None:
        """Keep these, in one commit; `now` is wall seconds. The first one of an identity stands."""
        rows = [(one.identity, one.worker, one.task_id, one.content, now) for one in taken]
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, ?)", rows)

    def forget_old(self, now: float) -> int:
        """Forget what is older than the retention; returns how many."""
        with self._db:
            return self._db.execute("DELETE FROM deliveries WHERE taken_at < ?", (now - self._retention,)).rowcount

    def close(self) -> None:
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise  # locked, no space, not allowed: the file is not at fault
        except sqlite3.DatabaseError as error:
            self.rebuilt = str(error)
            for suffix in ("", "-wal", "-shm"):
                broken = self.path.with_name(self.path.name + suffix)
                if broken.exists():
                    os.replace(broken, self.path.with_name(f"{self.path.name}{suffix}.old"))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # A commit survives a kill without any fsync; what a power cut takes, the folders still know.
            db.execute("PRAGMA synchronous = NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, this is {VERSION}")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error:
            db.close()
            raise
        return db
