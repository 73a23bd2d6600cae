"""The heartbeat: `heartbeats/<worker>.json` (or `<worker>@<instance>.json`), replaced at every beat.

A reader judges life by whether `sequence` moves on the reader's own monotonic clock, never by comparing wall clocks.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from watcher.formats import strict_json
from watcher.formats.fields import Choice, Kind, ListOf, Named, Number, Object, Optional, Text, fields_of
from watcher.formats.record import NEWER, Instant, Milliseconds, as_json, schema_of

HeartbeatStatus = Literal["healthy", "degraded", "paused", "held", "draining", "stopped"]
STATUSES: tuple[HeartbeatStatus, ...] = ("healthy", "degraded", "paused", "held", "draining", "stopped")
BREAKER_STATES = ("closed", "open", "half_open")

#: How the `reason` ends of a worker that a signal stopped whose sender nobody saw, where a task can send one.
UNSEEN_SENDER = ", sent by a process that could not be seen"

_COUNT = Number(0, 1e15, integer=True)
_SOMETIME = Optional(Instant(40))


@dataclass(slots=True)
class ActiveTask:
    """One running task as the heartbeat shows it. Times are wall seconds; `last_output_at` is when it last wrote.

    `last_event` says in a few words what it does (`tool Bash`, `text`), where its output has events.
    """

    task_id: Annotated[str, Text(160, 1)]
    started_at: Annotated[float, Instant(40, 20)]
    last_output_at: Annotated[float | None, _SOMETIME] = None
    stdout_path: Annotated[str | None, Optional(Text(4096))] = None
    last_event: Annotated[str | None, Optional(Text(80))] = None
    last_event_at: Annotated[float | None, _SOMETIME] = None


@dataclass(slots=True)
class Stats:
    """Counters since this process started."""

    tasks_processed: Annotated[int, _COUNT] = 0
    tasks_failed: Annotated[int, _COUNT] = 0
    tasks_retried: Annotated[int, _COUNT] = 0
    tasks_dlq: Annotated[int, _COUNT] = 0


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """One beat. `queue_size` counts all tasks that wait, whatever they wait for."""

    worker: Annotated[str, Text(64, 1)]
    at: Annotated[float, Instant(40, 20), Named("timestamp")]
    uptime_seconds: Annotated[float, Milliseconds(0, 1e12)]
    queue_size: Annotated[int, _COUNT]
    active_tasks: Annotated[int, _COUNT]
    circuit_breaker_state: Annotated[str, Choice(BREAKER_STATES)]
    stats: Annotated[Stats, Object()]
    status: Annotated[HeartbeatStatus, Choice(STATUSES)]
    reason: Annotated[str | None, Optional(Text(2048))] = None
    incarnation: Annotated[str, Text(64, 1)]
    instance: Annotated[str | None, Optional(Text(64))] = None
    pid: Annotated[int, _COUNT]
    host: Annotated[str, Text(256)]
    sequence: Annotated[int, _COUNT]
    interval_seconds: Annotated[float, Number(0, 1e6), Named("heartbeat_interval_seconds"), NEWER]
    held_until: Annotated[float | None, _SOMETIME] = None
    metrics_port: Annotated[int | None, Optional(_COUNT)] = None
    wake: Annotated[str, Text(64)] = "events"
    fence: Annotated[str, Text(512)] = ""
    oldest_pending_age_seconds: Annotated[float | None, Optional(Number(0, 1e12))] = None
    active: Annotated[list[ActiveTask], ListOf(Object(fields_of(ActiveTask)), 100_000)] = field(default_factory=list)

    def dump(self) -> bytes:
        return strict_json.dumps(as_json(self))


FIELDS: dict[str, Kind] = fields_of(Heartbeat)


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
    return schema_of(Heartbeat, "heartbeat", "What heartbeats/<worker>.json holds.")
