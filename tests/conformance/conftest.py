"""A directory spool on real folders with a clock that the test drives."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.configs import made
from tests.doubles import HandClock, Memory
from watcher.formats.result import Result
from watcher.settings.worker_groups import QueueSettings
from watcher.store.folders import WorkerFolders
from watcher.store.queue import DirectorySpool
from watcher.store.queue_interface import Claim, Settlement
from watcher.store.worker_locks import Incarnation
from watcher.telemetry.events import TaskSettled


@dataclass
class Desk:
    """One process of one worker, without its loop: the spool, its folders and what it said."""

    root: Path
    worker: str
    clock: HandClock
    config: QueueSettings
    instance: str | None = None
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        self.incarnation = Incarnation(self.root / "tasks" / self.worker, self.worker, self.instance)
        self.places = WorkerFolders(
            self.root / "tasks", self.root / "triggers", self.root / "results", self.root / "dlq",
            self.worker, self.incarnation.id,
        )  # fmt: skip
        self.spool = DirectorySpool(self.places, self.config, self.clock, self.memory)

    @property
    def inbox(self) -> Path:
        return self.root / "tasks" / self.worker

    def drop(self, stem: str, **fields: Any) -> Path:
        """Write a task the way a careful submitter does; each one a millisecond younger than the one before."""
        path = self.inbox / f"{stem}.json"
        temporary = self.inbox / f".{secrets.token_hex(4)}"
        temporary.write_text(json.dumps({"description": f"do {stem}", **fields}))
        self.clock.pass_seconds(0.001)
        stamp = int(self.clock.wall() * 1e9)
        os.utime(temporary, ns=(stamp, stamp))
        temporary.rename(path)
        return path

    def scan(self) -> None:
        for _ in self.spool.scan():
            pass

    def claim(self, limit: int = 100, excluded: frozenset[str] = frozenset()) -> list[Claim]:
        """Claim, and settle at once what ends without running."""
        claims: list[Claim] = []
        is_cut = True
        while is_cut and limit > len(claims):  # a busy machine may cut any call short
            taken = self.spool.claim(limit - len(claims), excluded)
            if taken.endings:
                self.settle(*taken.endings)
            claims += taken.claims
            is_cut = taken.is_cut
        return claims

    def prompts(self) -> list[str]:
        """Claim what can be, and fill in each prompt as a slot does."""
        return [self.spool.prompt(claim) for claim in self.claim()]

    def settle(self, *settlements: Settlement) -> None:
        events, error = self.spool.settle(list(settlements))
        if error is not None:
            raise error
        for settlement, event in zip(settlements, events, strict=True):
            assert event is not None
            self.spool.settled(settlement)
            self.memory(event)

    def finish(self, claim: Claim, status: str = "completed", stdout: str = "") -> None:
        self.settle(self.settlement(claim, status, stdout))

    def settlement(self, claim: Claim, status: str = "completed", stdout: str = "") -> Settlement:
        task = claim.task
        result = Result(
            task_id=task.task_id, worker=self.worker, status=status, exit_code=0, stdout=stdout, stderr="",  # type: ignore[arg-type]
            duration_seconds=0.1, finished_at=self.clock.wall(), started_at=self.clock.wall(),
            retry_count=claim.attempt - 1, attempts=claim.attempt, task_sha256=task.sha256,
        )  # fmt: skip
        event = TaskSettled(task.task_id, status, None, claim.provider, claim.attempt, 0, 0.1, dead_lettered=False)
        return Settlement(task.task_id, claim.handle, claim.lane, result.dump(), None, event)

    def result(self, stem: str, worker: str | None = None) -> dict[str, Any] | None:
        path = self.root / "results" / (worker or self.worker) / f"{stem}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def dead_letter(self, stem: str) -> dict[str, Any] | None:
        path = self.root / "dlq" / self.worker / f"{stem}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def die(self) -> None:
        """What a SIGKILL leaves: the locks are free, everything else stays."""
        for lock in (*self.incarnation._locks.values(), *self.incarnation._name_locks):
            lock.release()
        self.incarnation._locks.clear()
        self.incarnation._name_locks.clear()
        self.places.close()

    def close(self) -> None:
        self.places.leave()
        self.places.close()
        self.incarnation.close()

    def leftovers(self) -> list[str]:
        """Every temporary file, claim and lock below the root, by its relative name."""
        out = []
        for path in self.root.rglob("*"):
            if path.is_file() and (".tmp" in path.parts or ".claims" in path.parts or path.name.endswith(".tmp")):
                out.append(str(path.relative_to(self.root)))
        return [name for name in out if not name.endswith("name.lock")]


class Office:
    """Makes desks on one root and clears them away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = HandClock(time.time())
        self.desks: list[Desk] = []

    def desk(self, worker: str = "marie", instance: str | None = None, **options: Any) -> Desk:
        config = made(QueueSettings, **{"provider": "command", **options})
        desk = Desk(self.root, worker, self.clock, config, instance)
        self.desks.append(desk)
        return desk

    def fire(self, desk: Desk) -> None:
        self.desks.remove(desk)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    for desk in office.desks:
        desk.close()
