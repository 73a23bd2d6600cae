"""The receipt: `triggers/<worker>/<id>.json`, written when the worker takes a task.

A hint: the folders are the truth.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from watcher.formats import strict_json
from watcher.formats.fields import (
    Choice,
    Flag,
    Kind,
    ListOf,
    Named,
    Number,
    Object,
    Optional,
    Text,
    fields_of,
    record_schema,
)
from watcher.formats.record import Instant, as_json, schema_of


@dataclass(slots=True)
class Receipt:
    """The worker has taken the task and starts its attempt number `attempt` (from 1)."""

    kind: Annotated[str, Choice(("task_taken",))] = field(default="task_taken", init=False)
    task_id: Annotated[str, Text(160, 1)]
    worker: Annotated[str, Text(64, 1)]
    at: Annotated[float, Instant(40, 20), Named("timestamp")]
    attempt: Annotated[int, Number(1, 1e9, integer=True)]
    incarnation: Annotated[str, Text(64, 1)]

    def dump(self) -> bytes:
        return strict_json.dumps(as_json(self))


FIELDS: dict[str, Kind] = fields_of(Receipt)


def schema() -> dict[str, Any]:
    """The JSON Schema of a receipt."""
    return schema_of(Receipt, "receipt", "What triggers/<worker>/<id>.json holds.")


# --- what the listener tells: triggers/orchestrator/

KINDS = (
    "task_done", "task_refused", "task_overdue", "batch_done", "graph_done", "worker_dead", "worker_stale",
    "worker_recovered", "worker_held", "worker_resumed", "tasks_reassigned", "file_unreadable",
)  # fmt: skip

_COUNT = Number(0, 1e15, integer=True)
_SECONDS = Number(0, 1e12)
_TASK = Object()


@dataclass(slots=True)
class Notice:
    """One thing that the listener tells. `stem` is the name of its file without `.json`.

    `notice_id` says what is told: the same news has the same one, also after a restart.
    """

    kind: Annotated[str, Choice(KINDS)]
    stem: str
    notice_id: Annotated[str, Text(1024, 1)]
    at: Annotated[float, Instant(40, 20), Named("timestamp")]
    fields: dict[str, Any]

    def dump(self) -> bytes:
        return strict_json.dumps(as_json(self) | self.fields)


#: Which of these a notice has depends on its kind.
NOTICE_FIELDS: dict[str, Kind] = fields_of(Notice) | {
    "worker": Text(64, 1),
    "instance": Optional(Text(64)),
    "task_id": Text(160, 1),
    "status": Text(32, 1),
    "reason": Optional(Text(2048)),
    "detail": Optional(Text(8192)),
    "duration_seconds": Optional(_SECONDS),
    "finished_at": Optional(Text(40, 20)),
    "attempts": Optional(_COUNT),
    "agent_id": Optional(Text(128)),
    "batch_id": Optional(Text(128)),
    "provider": Optional(Text(64)),
    "cost_usd": Optional(_SECONDS),
    "result_path": Optional(Text(4096)),
    "dead_letter_path": Optional(Text(4096)),
    "path": Text(4096),
    "all_completed": Flag(),
    "counts": Object(),
    "tasks": ListOf(_TASK, 100_000),
    "tasks_left_out": _COUNT,
    "claims": ListOf(Text(160), 100_000),
    "incarnation": Optional(Text(64)),
    "pid": Optional(_COUNT),
    "host": Optional(Text(256)),
    "silent_seconds": _SECONDS,
    "interval_seconds": _SECONDS,
    "held_until": Optional(Text(40)),
    "age_seconds": _SECONDS,
    "to_worker": Text(64, 1),
}


def notice_schema() -> dict[str, Any]:
    """The JSON Schema of what the listener tells."""
    what = "What triggers/orchestrator/<name>.json holds; which fields there are depends on `kind`."
    return record_schema("notice", what, NOTICE_FIELDS, ("kind", "notice_id", "timestamp"))
