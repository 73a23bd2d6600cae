"""Owns what happens when one record cannot be understood: it is told once, and the others go on.

What a file says may break whoever reads it in a way that nobody foresaw. That is this record's trouble, never the end
of a loop. What concerns the machine or the process (OSError, SQLite, our own errors) passes through: it is not the
record's, and it has its own reaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from watcher.errors import WatcherError
from watcher.telemetry.events import Emit, FileIgnored

#: Records remembered as told; then the memory begins anew.
_MOST_TOLD = 10_000


class RecordGuard:
    """Tells of each record once for as long as it is remembered."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def over(self, record: str) -> Iterator[None]:
        """What is done with one record; `record` names it for people."""
        try:
            yield
        except (OSError, sqlite3.Error, WatcherError):
            raise
        except Exception as error:  # noqa: BLE001 - one record's trouble, never the loop's end
            found = (record, f"not understood: {type(error).__name__}: {error}"[:300])
            if found not in self._told:
                if len(self._told) >= _MOST_TOLD:
                    self._told.clear()
                self._told.add(found)
                self._emit(FileIgnored(*found))
