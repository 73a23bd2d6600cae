"""Publish every notice exactly once: a kill cannot split publishing from remembering.

The order, and no other: notices as hidden files below `triggers/orchestrator/.tmp`, durable; one commit of the ledger,
with their names; a rename of each to where it is seen. A kill before the commit leaves hidden files that nobody knows,
and all of it happens again; a kill after it leaves names whose hidden file is there (not published yet: do it) or is
not (published, and perhaps consumed already: it must not come again).

Assumes that no other listener uses the folder (`ListenerLock`). Raises OSError and sqlite3.Error; then nothing was
remembered, or all of it, and the next call or the next start goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from watcher.clock import Clock
from watcher.errors import SettingError, tells_nothing
from watcher.formats import strict_json
from watcher.formats.receipt_and_notice import Notice
from watcher.store.layout import NOTICES, TEMPORARY
from watcher.store.listener_database import Entry, Ledger
from watcher.system.files import FEW, Folder, fsync_file, publish_new, syncfs
from watcher.telemetry.events import Emit, NoticePublished

#: The folder below TRIGGER_DIR that holds notices; no worker's name may begin receipts in it by accident.
_MAX_NOTICE_BYTES = 64 << 20
_SUFFIX_LIMIT = 10_000


@dataclass(slots=True)
class Findings:
    """What was found out: what to remember, and the notices that tell it with when it happened (wall seconds)."""

    entry: Entry = field(default_factory=Entry)
    notices: list[tuple[Notice, float | None]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.notices and self.entry == Entry()


class Recorder:
    """Writes to the ledger and to the folder of the notices."""

    def __init__(self, triggers: Path, ledger: Ledger, clock: Clock, emit: Emit) -> None:
        self._ledger = ledger
        self._clock = clock
        self._emit = emit
        self._sent: list[str] = []
        self._unpublished: deque[tuple[str, Notice, float | None]] = deque()
        self.path = triggers / NOTICES
        try:
            self._folder = Folder(self.path)
            self._hidden = Folder(self.path / TEMPORARY)
        except OSError as error:
            raise SettingError(f"TRIGGER_DIR: cannot use {self.path}: {error}; make it writable") from error

    def close(self) -> None:
        self._folder.close()
        self._hidden.close()

    def recover(self) -> int:
        """Finish what a killed listener had begun; returns how many notices it had not published."""
        waiting = self._ledger.outbox()
        there = set(self._hidden.names())
        known = {file for file, _, _ in waiting}
        for file in there - known:
            self._hidden.remove(file)
        published = 0
        for file, stem, notice_id in waiting:
            if file in there:
                self._publish(file, stem, notice_id)
                published += 1
            self._sent.append(file)
        self.settle()
        return published

    def record(self, news: Findings) -> None:
        """Remember it and publish its notices, all durable but the last rename."""
        self._check_folder()
        written = [(secrets.token_hex(12), notice, since) for notice, since in news.notices]
        entry = news.entry
        entry.outbox = [(file, notice.stem, notice.notice_id, notice.kind) for file, notice, _ in written]
        entry.sent = list(self._sent)
        try:
            self._write(written)
            self._ledger.commit(entry)
        except (OSError, sqlite3.Error):
            for file, _, _ in written:
                with contextlib.suppress(OSError):
                    self._hidden.remove(file)
            raise
        self._sent.clear()
        self._unpublished.extend(written)
        self._publish_all()

    def settle(self) -> None:
        """Forget the names of what is published."""
        self._publish_all()
        if self._sent:
            os.fsync(self._folder.fd)
            self._ledger.commit(Entry(sent=list(self._sent)))
            self._sent.clear()

    def _write(self, written: Iterable[tuple[str, Notice, float | None]]) -> None:
        files = [file for file, _, _ in written]
        if self._sent and len(files) <= FEW:
            os.fsync(self._folder.fd)  # the renames of those names that are forgotten now
        if not files:
            return
        for file, notice, _ in written:
            self._hidden.write_new(file, notice.dump())
        if len(files) > FEW:
            syncfs(self._hidden.fd)
            return
        for file in files:
            fsync_file(self._hidden, file)
        os.fsync(self._hidden.fd)

    def _publish_all(self) -> None:
        while self._unpublished:
            file, notice, since = self._unpublished[0]
            name = self._publish(file, notice.stem, notice.notice_id)
            self._unpublished.popleft()
            self._sent.append(file)
            wait = None if since is None else max(0.0, self._clock.wall() - since)
            self._emit(NoticePublished(notice.kind, name, wait))

    def _publish(self, file: str, stem: str, notice_id: str) -> str:
        for number in range(1, _SUFFIX_LIMIT):
            name = f"{stem}.json" if number == 1 else f"{stem}~{number}.json"
            try:
                if publish_new(self._hidden, file, self._folder, name):
                    return name
            except FileNotFoundError:
                return name  # somebody emptied our hidden folder; there is nothing left to publish
            if self._tells(name, notice_id):
                self._hidden.remove(file)
                return name
        self._hidden.remove(file)
        return f"{stem}.json"

    def _tells(self, name: str, notice_id: str) -> bool:
        """Whether the notice that is there tells the very same; one that cannot be read does not."""
        try:
            value = strict_json.loads(self._folder.read(name, _MAX_NOTICE_BYTES))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and tells_nothing(error):
                raise
            return False
        return isinstance(value, dict) and value.get("notice_id") == notice_id

    def _check_folder(self) -> None:
        """Make the folders anew when somebody took them away: notices are removed by consumers of every kind."""
        if self._folder.is_current() and self._hidden.is_current():
            return
        self.close()
        self._folder = Folder(self.path)
        self._hidden = Folder(self.path / TEMPORARY)
