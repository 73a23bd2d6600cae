"""What a worker answers to probes, and how it ends what runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.configs import worker_config
from tests.doubles import HandClock, Memory
from watcher.clock import SystemClock
from watcher.errors import LockLost
from watcher.policy.breaker import BreakerState
from watcher.worker.loop import Worker


class DeafExecutor:
    """One attempt that is just being started: it hears only the third time that it shall end."""

    trouble = None

    def __init__(self) -> None:
        self.told = 0
        self.ended = asyncio.Event()

    def stop_running(self) -> int:
        self.told += 1
        if self.told == 3:
            self.ended.set()
        return 1

    def is_idle(self) -> bool:
        return self.ended.is_set()

    async def idle(self) -> None:
        await self.ended.wait()

    def start(self, loop: object, on_change: object) -> None: ...
    def drain(self) -> None: ...
    def fill(self) -> None: ...
    def close(self) -> None: ...

    def active(self) -> int:
        return 1

    def stuck(self) -> int:
        return 0

    def retry_in(self) -> float | None:
        return None

    def running(self) -> list[object]:
        return []


@pytest.mark.parametrize("why", ["two signals", "lost lock", "defect"])
def test_attempt_that_is_just_being_started_is_told_to_end_until_it_hears(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.worker.loop._OBEY_SECONDS", 0.01)
    config = worker_config(tmp_path, heartbeat_interval=0.01, shutdown_grace=60.0)
    (tmp_path / "control" / "holds").mkdir(parents=True)
    parts, control = Mock(spending=None, unbound={}), Mock(paused=None)
    parts.runner.unwatched.return_value = parts.spool.scan.return_value = parts.spool.watched_results.return_value = []
    parts.runner.problem.return_value = parts.runner.remark.return_value = None
    control.next_due_in.return_value = parts.spool.next_due_in.return_value = None
    parts.gates.holds.return_value = {}
    parts.gates.worst_state.return_value = BreakerState.CLOSED
    parts.spool.oldest_arrival.return_value = None
    parts.spool.waiting.return_value = parts.spool.held.return_value = parts.runner.sweep.return_value = 0
    parts.spool.providers_wanted.return_value = set()
    control.path, parts.incarnation.id, parts.incarnation.worker = tmp_path, "f" * 32, "marie"

    async def serve() -> DeafExecutor:
        executor = DeafExecutor()
        worker = Worker(config, parts, executor, control, SystemClock(), Memory())
        if why == "two signals":
            worker.stop("SIGTERM")
            worker.stop("SIGTERM")
        else:
            worker._scan_due = float("inf")
            executor.fill = Mock(side_effect=[LockLost("") if why == "lost lock" else KeyError(), *[None] * 9])
        async with asyncio.timeout(20):
            try:
                await worker.run()
            except (LockLost, KeyError):
                assert why != "two signals"
        return executor

    assert asyncio.run(serve()).told >= 3


def test_worker_that_drains_for_an_hour_is_alive_as_long_as_it_beats() -> None:
    """It scans no more; who killed it for that would cost the tasks it waits for."""
    config = worker_config(Path("root"))
    parts, executor, clock = Mock(), Mock(), HandClock()
    parts.incarnation.worker = "marie"
    parts.runner.sweep.return_value = 0
    parts.spool.oldest_arrival.return_value = None
    parts.spool.waiting.return_value = parts.spool.held.return_value = 0
    executor.running.return_value = []
    worker = Worker(config, parts, executor, Mock(), clock, Memory())
    assert worker.is_alive()[0]
    clock.pass_seconds(600)
    assert not worker.is_alive()[0]
    worker._beat("draining")
    assert worker.is_alive()[0]
    clock.pass_seconds(600)
    assert not worker.is_alive()[0], "a loop that hangs beats no more"


def test_worker_that_drains_says_so_to_a_probe_however_long_ago_it_has_scanned() -> None:
    config = worker_config(Path("root"))
    clock = HandClock()
    parts = Mock()
    parts.incarnation.worker = "marie"
    worker = Worker(config, parts, Mock(), Mock(), clock, Memory())
    worker.drain("somebody asked")
    clock.pass_seconds(600)
    assert worker.is_ready() == (False, "draining")
