"""The receipt: `triggers/<worker>/<id>.json`, written when the worker takes a task.

A hint: the folders are the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from watcher.clock import rfc3339
from watcher.formats import strict_json
from watcher.formats.fields import Choice, Flag, Kind, ListOf, Number, Object, Optional, Text, record_schema

FIELDS: dict[str, Kind] = {
    "kind": Choice(("task_taken",)),
    "task_id": Text(160, 1),
    "worker": Text(64, 1),
    "timestamp": Text(40, 20),
    "attempt": Number(1, 1e9, integer=True),
    "incarnation": Text(64, 1),
}


@dataclass(slots=True)
class Receipt:
    """The worker has taken the task and starts its attempt number `attempt` (from 1)."""

    task_id: str
    worker: str
    at: float
    attempt: int
    incarnation: str

    def dump(self) -> bytes:
        return strict_json.dumps(
            {
                "kind": "task_taken",
                "task_id": self.task_id,
                "worker": self.worker,
                "timestamp": rfc3339(self.at),
                "attempt": self.attempt,
                "incarnation": self.incarnation,
            }
        )


def schema() -> dict[str, Any]:
    """The JSON Schema of a receipt."""
    return record_schema("receipt", "What triggers/<worker>/<id>.json holds.", FIELDS, tuple(FIELDS))


# --- what the listener tells: triggers/orchestrator/

KINDS = (
    "task_done", "task_refused", "task_overdue", "batch_done", "graph_done", "worker_dead", "worker_stale",
    "worker_recovered", "worker_held", "worker_resumed", "tasks_reassigned", "file_unreadable",
)  # fmt: skip

_COUNT = Number(0, 1e15, integer=True)
_SECONDS = Number(0, 1e12)
_TASK = Object()

NOTICE_FIELDS: dict[str, Kind] = {
    "kind": Choice(KINDS),
    "notice_id": Text(1024, 1),
    "timestamp": Text(40, 20),
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


@dataclass(slots=True)
class Notice:
    """One thing that the listener tells. `stem` is the name of its file without `.json`.

    `notice_id` says what is told: the same news has the same one, also after a restart.
    """

    kind: str
    stem: str
    notice_id: str
    at: float
    fields: dict[str, Any]

    def dump(self) -> bytes:
        head = {"kind": self.kind, "notice_id": self.notice_id, "timestamp": rfc3339(self.at)}
        return strict_json.dumps(head | self.fields)


def notice_schema() -> dict[str, Any]:
    """The JSON Schema of what the listener tells."""
    what = "What triggers/orchestrator/<name>.json holds; which fields there are depends on `kind`."
    return record_schema("notice", what, NOTICE_FIELDS, ("kind", "notice_id", "timestamp"))
