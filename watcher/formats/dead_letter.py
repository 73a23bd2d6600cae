"""The dead letter: `dlq/<worker>/<id>.json`, a task that will not run again by itself, and why.

For a task that was read, it is the task as submitted plus `dlq_*` fields, so that taking those away gives the task
back. For a file that could not be read as a task, `dlq_original` names the untouched file beside it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from watcher.formats import strict_json
from watcher.formats.fields import Kind, Named, Number, Object, Optional, Text, fields_of
from watcher.formats.record import SPARSE, Instant, as_json, schema_of


@dataclass(slots=True)
class DeadLetter:
    """One dead letter. `result` is the result that ends the task, kept here too so that a crash between the two files
    can be finished without running the task again; None when the file never became a task."""

    task_id: Annotated[str, Text(160, 1)]
    worker: Annotated[str, Text(64, 1)]
    reason: Annotated[str, Text(64, 1), Named("dlq_reason")]
    at: Annotated[float, Instant(40, 20), Named("dlq_timestamp")]
    retry_count: Annotated[int, Number(0, 1e9, integer=True)]
    detail: Annotated[str | None, Optional(Text(8192)), Named("dlq_detail"), SPARSE] = None
    original: Annotated[str | None, Optional(Text(4096)), Named("dlq_original"), SPARSE] = None
    submitted: dict[str, Any] = field(default_factory=dict)
    task_sha256: Annotated[str | None, Optional(Text(64)), Named("dlq_task_sha256"), SPARSE] = None
    result: Annotated[dict[str, Any] | None, Optional(Object()), Named("dlq_result"), SPARSE] = None

    def as_json(self) -> dict[str, Any]:
        return self.submitted | as_json(self)

    def dump(self) -> bytes:
        return strict_json.dumps(self.as_json())


FIELDS: dict[str, Kind] = fields_of(DeadLetter)


def parse(raw: bytes) -> dict[str, Any]:
    """Read a dead letter as its plain object. Raises NotStrictJson (a ValueError) when it is none."""
    value = strict_json.loads(raw)
    if not isinstance(value, dict) or not isinstance(value.get("dlq_reason"), str):
        raise strict_json.NotStrictJson("a dead letter is one JSON object with a dlq_reason")
    return value


def schema() -> dict[str, Any]:
    """The JSON Schema of a dead letter."""
    return schema_of(DeadLetter, "dead letter", "What dlq/<worker>/<id>.json holds.")
