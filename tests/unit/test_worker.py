"""What a worker answers to probes."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from tests.doubles import HandClock, Memory
from watcher.worker import Worker, WorkerOptions


def test_worker_that_drains_for_an_hour_is_alive_as_long_as_it_beats() -> None:
    """It scans no more; who killed it for that would cost the tasks it waits for."""
    options = WorkerOptions("marie", Path("results"), Path("inbox"), "claude", 5.0, 0.2, 10.0, 3600.0, "")
    parts, clock = Mock(), HandClock()
    parts.runner.sweep.return_value = 0
    parts.spool.oldest_arrival.return_value = None
    parts.spool.waiting.return_value = parts.spool.held.return_value = 0
    parts.executor.running.return_value = []
    worker = Worker(options, parts, clock, Memory())
    assert worker.is_alive()[0]
    clock.pass_seconds(600)
    assert not worker.is_alive()[0]
    worker._beat("draining")
    assert worker.is_alive()[0]
    clock.pass_seconds(600)
    assert not worker.is_alive()[0], "a loop that hangs beats no more"


def test_worker_that_drains_says_so_to_a_probe_however_long_ago_it_has_scanned() -> None:
    options = WorkerOptions("marie", Path("results"), Path("inbox"), "claude", 5.0, 0.2, 10.0, 3600.0, "")
    clock = HandClock()
    worker = Worker(options, Mock(), clock, Memory())
    worker.drain("somebody asked")
    clock.pass_seconds(600)
    assert worker.is_ready() == (False, "draining")
