"""A root with a listener's ledger, its collector and its look at what waits, on clocks that a test moves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock, Memory
from watcher.store.listener_database import Ledger
from watcher.store.new_outcomes import Collector
from watcher.store.waiting_tasks import Sight, WaitingTasks


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = HandClock(time.time())
        self.memory = Memory()
        self.folders = {name: root / name for name in ("tasks", "results", "dlq", "triggers")}
        for path in self.folders.values():
            (path / "marie").mkdir(parents=True)
        self.ledger = Ledger(root / "state", 0.0)
        self.collector = Collector(self.folders, self.ledger, self.clock, self.memory, 2.0)
        self.waiting = WaitingTasks(self.folders["tasks"], self.clock)

    def result(self, stem: str, worker: str = "marie", **fields: Any) -> Path:
        path = self.folders["results"] / worker / f"{stem}.json"
        path.parent.mkdir(exist_ok=True)
        value = {"task_id": stem, "worker": worker, "status": "completed", "attempts": 1, "duration_seconds": 1}
        path.with_name(".new").write_text(json.dumps(value | fields))
        path.with_name(".new").rename(path)
        return path

    def task(self, stem: str, worker: str = "marie", place: str = "", **fields: Any) -> Path:
        path = self.folders["tasks"] / worker / place / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"description": "x", **fields}))
        return path

    def collect(self, limit: int = 1000) -> list[str]:
        """Scan, read and record; returns the notices as `kind id`."""
        for _ in self.collector.scan(["marie", "anga"]):
            pass
        told: list[str] = []
        while self.collector.backlog:
            news, done = self.collector.take(limit)
            self.ledger.commit(news.entry)
            self.collector.taken(done)
            self.news = news
            told += [f"{n.kind} {n.fields.get('task_id') or n.fields['reason']}" for n, _ in news.notices]
        return sorted(told)

    def sight(self) -> Sight:
        for _ in self.waiting.look(["marie", "anga"]):
            pass
        return self.waiting.sight


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.ledger.close()
