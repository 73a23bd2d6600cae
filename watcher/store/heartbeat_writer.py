"""Write the heartbeat, and keep the counters that it shows.

A beat replaces the file as a whole and needs no fsync: an old beat after a power cut is told by its sequence. The last
beat of a worker says `stopped` and stays.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from watcher.clock import Clock
from watcher.formats.heartbeat import ActiveTask, Heartbeat, HeartbeatStatus, Stats
from watcher.store import layout
from watcher.system.files import Folder, replace
from watcher.system.process_fence import fence
from watcher.telemetry.events import Event, TaskRefused, TaskRetryScheduled, TaskSettled


@dataclass(slots=True)
class Pulse:
    """What the worker knows at the moment of a beat: some fields of the heartbeat, by their names there."""

    status: HeartbeatStatus
    reason: str | None
    queue_size: int
    active: list[ActiveTask]
    circuit_breaker_state: str
    held_until: float | None
    oldest_pending_age_seconds: float | None
    wake: str


class Beats:
    """A listener that counts, and the writer of `heartbeats/<worker>[@<instance>].json`."""

    def __init__(
        self,
        folder: Path,
        worker: str,
        instance: str | None,
        incarnation: str,
        interval_seconds: float,
        clock: Clock,
        metrics_port: Callable[[], int | None],
    ) -> None:
        self._folder = Folder(folder)
        self._name = layout.heartbeat(worker, instance)
        self._worker = worker
        self._instance = instance
        self._incarnation = incarnation
        self._interval = interval_seconds
        self._clock = clock
        self._metrics_port = metrics_port
        self._host = socket.gethostname()
        self._started = clock.monotonic()
        self._sequence = 0
        self._written = self._started
        self.stats = Stats()

    def __call__(self, event: Event) -> None:
        """Count what the heartbeat shows."""
        stats = self.stats
        if isinstance(event, TaskSettled):
            stats.tasks_processed += 1
            if event.status != "completed":
                stats.tasks_failed += 1
            if event.dead_lettered:
                stats.tasks_dlq += 1
        elif isinstance(event, TaskRetryScheduled):
            stats.tasks_retried += 1
        elif isinstance(event, TaskRefused):
            stats.tasks_dlq += 1

    def beat(self, pulse: Pulse) -> None:
        """Write one beat. Raises OSError when that is not possible now."""
        self._folder.mend()
        self._sequence += 1
        heartbeat = Heartbeat(
            worker=self._worker,
            at=self._clock.wall(),
            uptime_seconds=self._clock.monotonic() - self._started,
            active_tasks=len(pulse.active),
            stats=self.stats,
            incarnation=self._incarnation,
            pid=os.getpid(),
            host=self._host,
            sequence=self._sequence,
            interval_seconds=self._interval,
            instance=self._instance,
            metrics_port=self._metrics_port(),
            fence=fence.state(),
            **{field.name: getattr(pulse, field.name) for field in fields(pulse)},
        )
        replace(self._folder, self._name, heartbeat.dump(), self._incarnation)
        self._written = self._clock.monotonic()

    def age(self) -> float:
        """Seconds since the last beat was written (since the start, before the first one). Any thread."""
        return self._clock.monotonic() - self._written

    def close(self) -> None:
        self._folder.close()
