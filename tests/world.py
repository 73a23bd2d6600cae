"""A root with the traces of workers, living and dead, for tests of what a look at the folders tells."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock
from watcher.formats.heartbeat import Heartbeat, Stats
from watcher.store.overview import Overview, OverviewReader, WorkerOverview
from watcher.store.workers import Process
from watcher_config import Folders, folders, read_layers

NOW = 1_800_000_000.0
ALICE, BOB = "a" * 32, "b" * 32


class World:
    """A root with folders, files and locks as workers would leave them. A lock of a process that lives is held here:
    flock excludes by open file, so it does not matter that it is this very process."""

    def __init__(self, root: Path) -> None:
        self.folders: Folders = folders(read_layers(environ={"WATCHER_ROOT": str(root)}, env_file=os.devnull))
        self.root = root
        self.held: dict[str, int] = {}
        self.clock = HandClock(NOW)

    def look(self) -> Overview:
        return OverviewReader(self.folders, self.clock).look()

    def worker(self, name: str = "marie") -> WorkerOverview:
        return next(worker for worker in self.look().workers if worker.worker == name)

    def process(self, name: str = "marie") -> Process:
        (process,) = self.worker(name).processes
        return process

    def put(self, place: str, data: bytes | str = b"{}", age: float = 0.0) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        os.utime(path, (NOW - age, NOW - age))
        return path

    def result(self, place: str, status: str) -> Path:
        worker, task_id = place.split("/")
        fields = {"task_id": task_id, "worker": worker, "status": status, "stdout": "x" * 2000}
        return self.put(f"results/{place}.json", json.dumps(fields))

    def beat(self, name: str = "marie", incarnation: str = ALICE, age: float = 1.0, **changes: Any) -> Path:
        worker, _, instance = name.partition("@")
        fields: dict[str, Any] = {
            "worker": worker, "at": NOW - age, "uptime_seconds": 60.0, "queue_size": 0, "active_tasks": 0,
            "circuit_breaker_state": "closed", "stats": Stats(), "status": "healthy", "incarnation": incarnation,
            "pid": 4711, "host": "here", "sequence": 7, "interval_seconds": 10.0, "instance": instance or None,
        }  # fmt: skip
        return self.put(f"heartbeats/{name}.json", Heartbeat(**(fields | changes)).dump(), age)

    def lives(self, worker: str = "marie", incarnation: str = ALICE, **notes: Any) -> None:
        """A process with its lock, its notes and its claim folder."""
        self.died(worker, incarnation, **notes)
        fd = os.open(self.root / f"tasks/{worker}/.claims/{incarnation}.lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.held[incarnation] = fd

    def died(self, worker: str = "marie", incarnation: str = ALICE, **notes: Any) -> None:
        """The same, left behind by a process that was killed."""
        place = f"tasks/{worker}/.claims/{incarnation}"
        self.put(f"{place}.lock", b"")
        self.put(f"{place}.busy", b"")
        self.put(f"{place}.json", json.dumps({"incarnation": incarnation, "pid": 4711, "host": "here"} | notes))
        (self.root / place).mkdir(exist_ok=True)

    def claim(self, task_id: str, attempt: int = 1, incarnation: str = ALICE, worker: str = "marie") -> Path:
        return self.put(f"tasks/{worker}/.claims/{incarnation}/{task_id}~{attempt}-0.json")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for fd in made.held.values():
        os.close(fd)
