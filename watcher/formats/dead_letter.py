"""The dead letter: `dlq/<worker>/<id>.json`, a task that will not run again by itself, and why.

For a task that was read, it is the task as submitted plus `dlq_*` fields, so that taking those away gives the task
back. For a file that could not be read as a task, `dlq_original` names the untouched file beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from watcher.clock import rfc3339
from watcher.formats import strict_json
from watcher.formats.fields import Kind, Number, Object, Optional, Text, record_schema

FIELDS: dict[str, Kind] = {
    "task_id": Text(160, 1),
    "worker": Text(64, 1),
    "dlq_reason": Text(64, 1),
    "dlq_timestamp": Text(40, 20),
    "retry_count": Number(0, 1e9, integer=True),
    "dlq_detail": Optional(Text(8192)),
    "dlq_original": Optional(Text(4096)),
    "dlq_result": Optional(Object()),
    "dlq_task_sha256": Optional(Text(64)),
}
REQUIRED = ("task_id", "worker", "dlq_reason", "dlq_timestamp", "retry_count")


@dataclass(slots=True)
class DeadLetter:
    """One dead letter. `result` is the result that ends the task, kept here too so that a crash between the two files
    can be finished without running the task again; None when the file never became a task."""

    task_id: str
    worker: str
    reason: str
    at: float
    retry_count: int
    detail: str | None = None
    original: str | None = None
    submitted: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    task_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        out = dict(self.submitted)
        out.update(
            task_id=self.task_id,
            worker=self.worker,
            dlq_reason=self.reason,
            dlq_timestamp=rfc3339(self.at),
            retry_count=self.retry_count,
        )
        optional = {
            "dlq_detail": self.detail,
            "dlq_original": self.original,
            "dlq_task_sha256": self.task_sha256,
            "dlq_result": self.result,
        }
        out.update({name: value for name, value in optional.items() if value is not None})
        return out

    def dump(self) -> bytes:
        return strict_json.dumps(self.as_json())


def parse(raw: bytes) -> dict[str, Any]:
    """Read a dead letter as its plain object. Raises NotStrictJson (a ValueError) when it is none."""
    value = strict_json.loads(raw)
    if not isinstance(value, dict) or not isinstance(value.get("dlq_reason"), str):
        raise strict_json.NotStrictJson("a dead letter is one JSON object with a dlq_reason")
    return value


def schema() -> dict[str, Any]:
    """The JSON Schema of a dead letter."""
    return record_schema("dead letter", "What dlq/<worker>/<id>.json holds.", FIELDS, REQUIRED)
