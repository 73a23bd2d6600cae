"""Heartbeats judged on a clock that the test drives; wall time jumps as it likes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock, Memory
from watcher.listener.worker_health import WorkerHealth
from watcher.store.listener_database import Ledger
from watcher.store.notice_publisher import Findings
from watcher.telemetry.events import WorkerJudged

INCARNATION = "ab" * 16


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = HandClock()
        self.ledger = Ledger(root / "state", 0.0)
        self.sequence = 0
        self.held: list[int] = []
        (root / "heartbeats").mkdir()
        self.claims = root / "tasks" / "marie" / ".claims"
        (self.claims / INCARNATION).mkdir(parents=True)
        self.restart()

    def restart(self) -> None:
        self.events = Memory()
        self.worker_health = WorkerHealth(
            self.root / "heartbeats", self.root / "tasks", (), self.ledger, self.clock, self.events, 1.0
        )

    def beat(self, status: str = "healthy", incarnation: str = INCARNATION, **more: Any) -> None:
        self.sequence += 1
        beat = {
            "worker": "marie", "status": status, "sequence": self.sequence, "incarnation": incarnation,
            "heartbeat_interval_seconds": 1.0, "timestamp": "2001-01-01T00:00:00Z", **more,
        }  # fmt: skip
        path = self.root / "heartbeats" / ".new"
        path.write_text(json.dumps(beat))
        path.rename(self.root / "heartbeats" / "marie.json")

    def lock(self) -> None:
        self.held.append(os.open(self.claims / f"{INCARNATION}.lock", os.O_CREAT | os.O_RDWR))
        fcntl.flock(self.held[-1], fcntl.LOCK_EX)

    def free(self) -> None:
        while self.held:
            os.close(self.held.pop())

    def kinds(self, seconds: float = 0.0, step: float = 0.25, beats: bool = False) -> list[str]:
        """Pass time in steps, and record what is told."""
        told: list[str] = []
        for _ in range(int(seconds / step) + 1):
            if beats:
                self.beat()
            news: Findings = self.worker_health.tick()
            self.ledger.commit(news.entry)
            self.worker_health.recorded(news)
            told += [notice.kind for notice, _ in news.notices]
            self.news = news
            self.clock.pass_seconds(step)
        return told

    def state(self) -> str:
        return self.worker_health.views()[0].state


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.free()
    made.ledger.close()


def test_killed_worker_is_told_dead_once_with_its_claims(site: Site) -> None:
    site.lock()
    site.kinds(2, beats=True)
    (site.claims / INCARNATION / "x~1-0.json").write_text("{}")
    site.free()
    told: list[Any] = []
    for _ in range(40):
        told += site.kinds() and site.news.notices
    assert [notice.kind for notice, _ in told] == ["worker_dead"]
    assert told[0][0].fields["claims"] == ["x"]
    assert told[0][0].fields["silent_seconds"] <= 3.5
    judged = [(event.state, event.level) for event in site.events.of(WorkerJudged)]
    assert judged == [("healthy", "info"), ("dead", "warning")]


def test_clock_that_jumps_kills_nobody(site: Site) -> None:
    site.lock()
    for jump in (-3600.0, 86_400.0, 1e9):
        site.clock.now_wall += jump
        assert site.kinds(5, beats=True) == []
        assert site.state() == "healthy"


def test_frozen_worker_is_stale_for_as_long_as_its_lock_is_held(site: Site) -> None:
    site.lock()
    site.kinds(2, beats=True)
    assert site.kinds(100) == ["worker_stale"]
    assert site.state() == "stale"
    assert site.kinds(1, beats=True) == ["worker_recovered"]


def test_worker_without_a_lock_file_is_dead_by_silence_and_back_by_a_beat(site: Site) -> None:
    site.kinds(2, beats=True)
    assert site.kinds(4) == ["worker_dead"]
    assert site.kinds(1, beats=True) == ["worker_recovered"]


def test_flapping_worker_is_told_ever_less(site: Site) -> None:
    site.kinds(1, beats=True)
    told = []
    for _ in range(20):
        told += site.kinds(4)
        told += site.kinds(4, beats=True)
    assert told.count("worker_dead") <= 3
    assert told.count("worker_dead") - told.count("worker_recovered") in (0, 1)
    assert site.kinds(310, beats=True)[-1:] == ["worker_recovered"]


def test_stopped_worker_is_never_told(site: Site) -> None:
    site.kinds(1, beats=True)
    site.beat("stopped")
    assert site.kinds(100) == []
    assert site.state() == "stopped"


def test_restart_of_the_listener_tells_neither_twice_nor_forgets(site: Site) -> None:
    site.kinds(1, beats=True)
    assert site.kinds(4) == ["worker_dead"]
    site.restart()
    assert site.kinds(10) == []
    assert site.kinds(1, beats=True) == ["worker_recovered"]


def test_hold_is_told_once_and_again_when_it_changes(site: Site) -> None:
    site.lock()
    site.kinds(1, beats=True)
    told = []
    for until in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"):
        site.beat("held", reason="usage limit", held_until=until)
        told += site.kinds()
    assert told == ["worker_held", "worker_held"]
    site.beat()
    assert site.kinds() == ["worker_resumed"]


def test_file_that_is_no_heartbeat_harms_nobody(site: Site) -> None:
    site.lock()
    (site.root / "heartbeats" / "anga.json").write_text("{")
    (site.root / "heartbeats" / "notes.txt").write_text("x")
    assert site.kinds(3, beats=True) == []
    assert [view.worker for view in site.worker_health.views()] == ["marie"]
