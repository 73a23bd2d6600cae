"""The heartbeat: `heartbeats/<worker>.json` (or `<worker>@<instance>.json`), replaced at every beat.

A reader judges life by whether `sequence` moves on the reader's own monotonic clock, never by comparing wall clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from watcher.clock import rfc3339
from watcher.formats import strict_json
from watcher.formats.fields import Choice, Kind, ListOf, Number, Object, Optional, Text, record_schema

HeartbeatStatus = Literal["healthy", "degraded", "paused", "held", "draining", "stopped"]
STATUSES: tuple[HeartbeatStatus, ...] = ("healthy", "degraded", "paused", "held", "draining", "stopped")
BREAKER_STATES = ("closed", "open", "half_open")

#: How the `reason` ends of a worker that a signal stopped whose sender nobody saw, where a task can send one.
UNSEEN_SENDER = ", sent by a process that could not be seen"

_COUNT = Number(0, 1e15, integer=True)

_ACTIVE: dict[str, Kind] = {
    "task_id": Text(160, 1),
    "started_at": Text(40, 20),
    "last_output_at": Optional(Text(40)),
    "stdout_path": Optional(Text(4096)),
    "last_event": Optional(Text(80)),
    "last_event_at": Optional(Text(40)),
}

FIELDS: dict[str, Kind] = {
    "worker": Text(64, 1),
    "timestamp": Text(40, 20),
    "uptime_seconds": Number(0, 1e12),
    "queue_size": _COUNT,
    "active_tasks": _COUNT,
    "circuit_breaker_state": Choice(BREAKER_STATES),
    "stats": Object(),
    "status": Choice(STATUSES),
    "reason": Optional(Text(2048)),
    "incarnation": Text(64, 1),
    "instance": Optional(Text(64)),
    "pid": _COUNT,
    "host": Text(256),
    "sequence": _COUNT,
    "heartbeat_interval_seconds": Number(0, 1e6),
    "held_until": Optional(Text(40)),
    "metrics_port": Optional(_COUNT),
    "wake": Text(64),
    "fence": Text(512),
    "oldest_pending_age_seconds": Optional(Number(0, 1e12)),
    "active": ListOf(Object(_ACTIVE), 100_000),
}
REQUIRED = (
    "worker", "timestamp", "uptime_seconds", "queue_size", "active_tasks", "circuit_breaker_state", "stats", "status",
    "incarnation", "pid", "host", "sequence",
)  # fmt: skip


@dataclass(slots=True)
class ActiveTask:
    """One running task as the heartbeat shows it. Times are wall seconds; `last_output_at` is when it last wrote.

    `last_event` says in a few words what it does (`tool Bash`, `text`), where its output has events.
    """

    task_id: str
    started_at: float
    last_output_at: float | None = None
    stdout_path: str | None = None
    last_event: str | None = None
    last_event_at: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "started_at": rfc3339(self.started_at),
            "last_output_at": None if self.last_output_at is None else rfc3339(self.last_output_at),
            "stdout_path": self.stdout_path,
            "last_event": self.last_event,
            "last_event_at": None if self.last_event_at is None else rfc3339(self.last_event_at),
        }


@dataclass(slots=True)
class Stats:
    """Counters since this process started."""

    tasks_processed: int = 0
    tasks_failed: int = 0
    tasks_retried: int = 0
    tasks_dlq: int = 0

    def as_json(self) -> dict[str, int]:
        return {
            "tasks_processed": self.tasks_processed,
            "tasks_failed": self.tasks_failed,
            "tasks_retried": self.tasks_retried,
            "tasks_dlq": self.tasks_dlq,
        }


@dataclass(slots=True)
class Heartbeat:
    """One beat. `queue_size` counts all tasks that wait, whatever they wait for."""

    worker: str
    at: float
    uptime_seconds: float
    queue_size: int
    active_tasks: int
    circuit_breaker_state: str
    stats: Stats
    status: HeartbeatStatus
    incarnation: str
    pid: int
    host: str
    sequence: int
    interval_seconds: float
    reason: str | None = None
    instance: str | None = None
    held_until: float | None = None
    metrics_port: int | None = None
    wake: str = "events"
    fence: str = ""
    oldest_pending_age_seconds: float | None = None
    active: list[ActiveTask] = field(default_factory=list)

    def dump(self) -> bytes:
        return strict_json.dumps(
            {
                "worker": self.worker,
                "timestamp": rfc3339(self.at),
                "uptime_seconds": round(self.uptime_seconds, 3),
                "queue_size": self.queue_size,
                "active_tasks": self.active_tasks,
                "circuit_breaker_state": self.circuit_breaker_state,
                "stats": self.stats.as_json(),
                "status": self.status,
                "reason": self.reason,
                "incarnation": self.incarnation,
                "instance": self.instance,
                "pid": self.pid,
                "host": self.host,
                "sequence": self.sequence,
                "heartbeat_interval_seconds": self.interval_seconds,
                "held_until": None if self.held_until is None else rfc3339(self.held_until),
                "metrics_port": self.metrics_port,
                "wake": self.wake,
                "fence": self.fence,
                "oldest_pending_age_seconds": self.oldest_pending_age_seconds,
                "active": [task.as_json() for task in self.active],
            }
        )


def parse_heartbeat(raw: bytes) -> dict[str, Any]:
    """Read a heartbeat as its plain object. Raises NotStrictJson or FieldError when it is none."""
    value = strict_json.loads(raw)
    if not isinstance(value, dict):
        raise strict_json.NotStrictJson("a heartbeat is one JSON object")
    for name in ("worker", "status", "sequence"):
        FIELDS[name].check(value.get(name))
    return value


def schema() -> dict[str, Any]:
    """The JSON Schema of a heartbeat file."""
    return record_schema("heartbeat", "What heartbeats/<worker>.json holds.", FIELDS, REQUIRED)
