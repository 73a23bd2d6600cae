"""Read what the listener knows, for other programs: its last status and its database, read only.

Works while the listener runs and after it has ended; says which. Writes nothing and never blocks the listener: the
database is in WAL mode. Raises OSError or sqlite3.Error only for a database that is there and cannot be read.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.store.layout import LISTENER_DATABASE, LISTENER_LOCK, LISTENER_STATUS
from watcher.store.listener_database import VERSION
from watcher.store.outcome_totals import Finished, Sums
from watcher.store.workers import is_locked
from watcher.system.files import Folder

HOUR_SECONDS = 3600
_MAX_STATUS_BYTES = 16 << 20


@dataclass(slots=True)
class Totals:
    """Sums by dimension (`worker`, `agent_id`, `provider`, `batch_id`) and key; `all` has one key, the empty text."""

    by_key: dict[str, dict[str, Sums]] = field(default_factory=dict)

    @property
    def whole(self) -> Sums:
        return self.by_key.get("all", {}).get("", Sums())


@dataclass(slots=True)
class Point:
    """One settled task, as the plots need it. Wall seconds."""

    worker: str
    status: str
    finished_at: float
    duration_seconds: float | None
    cost_usd: float


@dataclass(slots=True)
class ListenerView:
    """One moment of the listener. `status` is its last word about itself, empty when there is none."""

    is_running: bool
    status: dict[str, Any]
    all_time: Totals
    last_hour: Totals
    peak_concurrency: dict[str, int]
    notices: dict[str, int]

    @property
    def processes(self) -> list[dict[str, Any]]:
        found = self.status.get("processes")
        return [p for p in found if isinstance(p, dict)] if isinstance(found, list) else []

    def as_json(self) -> dict[str, Any]:
        return {
            "listener_is_running": self.is_running,
            "status": self.status,
            "all_time": _json(self.all_time),
            "last_hour": _json(self.last_hour),
            "peak_concurrency": self.peak_concurrency,
            "notices": self.notices,
        }


def is_running(state: Path) -> bool:
    """Whether a listener holds the lock of this state folder now."""
    return is_locked(state / LISTENER_LOCK) is True


def read_status(state: Path) -> dict[str, Any]:
    """The listener's last word about itself; nothing when there is none."""
    with suppress(OSError, ValueError):
        folder = Folder(state, create=False)
        try:
            value = json.loads(folder.read(LISTENER_STATUS, _MAX_STATUS_BYTES))
        finally:
            folder.close()
        if isinstance(value, dict):
            return value
    return {}


def read_statuses(state: Path) -> dict[str, dict[str, tuple[int, str | None]]]:
    """What the listener has read of results: by worker and file name the inode and the status."""
    out: dict[str, dict[str, tuple[int, str | None]]] = {}
    if not (state / LISTENER_DATABASE).exists():
        return out
    try:
        with closing(_open(state / LISTENER_DATABASE)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == VERSION:
                asked = "SELECT worker, name, inode, status FROM outcomes WHERE folder = 'results'"
                for worker, name, inode, status in db.execute(asked):
                    out.setdefault(worker, {})[name] = (inode, sys.intern(status))
    except sqlite3.Error:
        return {}  # a cache that cannot be read is no cache; the folders say the same
    return out


def read_view(state: Path, now: float | None = None) -> ListenerView | None:
    """What the listener knows; None when it has never run here, or another version of it did. `now`: wall seconds."""
    if not (state / LISTENER_DATABASE).exists():
        return None
    with closing(_open(state / LISTENER_DATABASE)) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            return None
        all_time = Totals()
        for dimension, key, text in db.execute("SELECT dimension, key, tally FROM totals"):
            all_time.by_key.setdefault(dimension, {})[key] = Sums.load(text)
        since = int(((time.time() if now is None else now) - HOUR_SECONDS) * 1e6)
        return ListenerView(
            is_running=is_running(state),
            status=read_status(state),
            all_time=all_time,
            last_hour=_since(db, since),
            peak_concurrency=_peaks(db),
            notices=dict(db.execute("SELECT kind, number FROM notices").fetchall()),
        )


def read_points(state: Path, limit: int = 200_000) -> list[Point]:
    """The last settled tasks, oldest first."""
    asked = (
        "SELECT worker, status, finished_us, CASE WHEN attempts > 0 THEN duration_us END, cost_nano FROM outcomes "
        "WHERE finished_us IS NOT NULL AND status != 'with_result' ORDER BY finished_us DESC LIMIT ?"
    )
    with closing(_open(state / LISTENER_DATABASE)) as db:
        rows = db.execute(asked, (limit,)).fetchall()
    return [
        Point(worker, status, finished / 1e6, None if took is None else took / 1e6, cost / 1e9)
        for worker, status, finished, took, cost in reversed(rows)
    ]


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)


def _since(db: sqlite3.Connection, since_us: int) -> Totals:
    """Sums of what ended at or after this moment."""
    names = (
        "worker, folder, name, inode, print, task_id, status, reason, batch_id, agent_id, provider, started_us, "
        "finished_us, duration_us, attempts, retries, input_tokens, output_tokens, cost_nano"
    )
    asked = f"SELECT {names} FROM outcomes WHERE finished_us >= ? AND status != 'with_result'"  # noqa: S608 - names of ours
    totals = Totals()
    for row in db.execute(asked, (since_us,)):
        outcome = Finished(*row)
        for dimension, key in outcome.belongs_to():
            totals.by_key.setdefault(dimension, {}).setdefault(key, Sums()).add(outcome)
    return totals


def _peaks(db: sqlite3.Connection) -> dict[str, int]:
    """The most tasks that ran at once, for each worker and under the empty name for all: last attempts only."""
    asked = (
        "SELECT worker, started_us, finished_us FROM outcomes "
        "WHERE started_us IS NOT NULL AND finished_us > started_us AND attempts > 0"
    )
    edges: list[tuple[int, int, str]] = []
    for worker, started, finished in db.execute(asked):
        edges += ((started, 1, worker), (finished, -1, worker))
    edges.sort()  # at one moment ends come first, since -1 < 1
    now: dict[str, int] = {}
    peak: dict[str, int] = {}
    for _, step, worker in edges:
        for key in ("", worker):
            now[key] = now.get(key, 0) + step
            peak[key] = max(peak.get(key, 0), now[key])
    return peak


def _json(totals: Totals) -> dict[str, Any]:
    return {
        dimension: {key: tally.as_json() for key, tally in sorted(keys.items())}
        for dimension, keys in sorted(totals.by_key.items())
    }
