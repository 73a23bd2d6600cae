"""The receipt: `triggers/<worker>/<id>.json`, written when the worker takes a task.

A hint: the folders are the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from watcher.clock import rfc3339
from watcher.formats import strictjson
from watcher.formats.fields import Choice, Kind, Number, Text, record_schema

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
        return strictjson.dumps(
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
