"""The result: `results/<worker>/<id>.json`, written once, whole, and never changed after.

`status` says how the task ended for good; `reason` says why when it did not complete. `stdout` is what the agent
answered: the final text of a CLI with machine-readable output, else the bytes it printed.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from watcher.formats import strict_json
from watcher.formats.fields import (
    Choice,
    FieldError,
    Flag,
    Kind,
    ListOf,
    Members,
    Named,
    Number,
    Object,
    Optional,
    Text,
    fields_of,
)
from watcher.formats.record import NEWER, SPARSE, Instant, Microseconds, as_json, schema_of
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN

Status = Literal["completed", "failed", "timeout", "cancelled"]
STATUSES: tuple[Status, ...] = ("completed", "failed", "timeout", "cancelled")

_COUNT = Number(0, 1e9, integer=True)
_TOKENS = Number(0, 1e15, integer=True)
_OUTPUT = Text(1 << 26)


@dataclass(slots=True, kw_only=True)
class Usage:
    """What an attempt used, where the provider tells; None where it does not.

    `input_tokens` is all that the model read, `cached_input_tokens` the part of it that came out of a cache. `turns`
    counts the model's answers. With `session_id` the provider's own tools find the conversation again.
    """

    input_tokens: Annotated[int | None, _TOKENS, SPARSE] = None
    cached_input_tokens: Annotated[int | None, _TOKENS, SPARSE] = None
    output_tokens: Annotated[int | None, _TOKENS, SPARSE] = None
    cost_usd: Annotated[float | None, Number(0, 1e12), SPARSE] = None
    turns: Annotated[int | None, _COUNT, SPARSE] = None
    model: Annotated[str | None, Text(200), SPARSE] = None
    session_id: Annotated[str | None, Text(200), SPARSE] = None

    def as_json(self) -> dict[str, Any]:
        return as_json(self)


USAGE_FIELDS: dict[str, Kind] = fields_of(Usage)


@dataclass(slots=True, kw_only=True)
class Result:
    """One stored result. Times are wall seconds since the epoch here and RFC 3339 in the file.

    `status` stands early, so that a reader of many needs only the head. `submitted` is the task as it was written, so
    that it can be run again from its result.
    """

    task_id: Annotated[str, Text(160, 1)]
    worker: Annotated[str, Text(64, 1, WORKER_PATTERN)]
    status: Annotated[Status, Choice(STATUSES)]
    exit_code: Annotated[int | None, Optional(Number(-255, 65535, integer=True))]
    duration_seconds: Annotated[float, Microseconds(0, 1e12)]
    finished_at: Annotated[float, Instant(40, 20), Named("timestamp")]
    started_at: Annotated[float | None, Optional(Instant(40, 20)), NEWER]
    retry_count: Annotated[int, _COUNT]
    attempts: Annotated[int, _COUNT]
    reason: Annotated[str | None, Optional(Text(64, 1))] = None
    provider: Annotated[str | None, Optional(Text(64))] = None
    agent_id: Annotated[str | None, Optional(Text(128))] = None
    batch_id: Annotated[str | None, Optional(Text(128))] = None
    incarnation: Annotated[str | None, Optional(Text(64))] = None
    task_sha256: Annotated[str, Text(64, 64, "[0-9a-f]*")]
    stdout: Annotated[str, _OUTPUT]
    stderr: Annotated[str, _OUTPUT]
    stdout_truncated: Annotated[bool, Flag()] = False
    stderr_truncated: Annotated[bool, Flag()] = False
    usage: Annotated[Usage | None, Optional(Members(USAGE_FIELDS))] = None
    metadata: Annotated[dict[str, Any] | None, Optional(Object())] = None
    dependencies: Annotated[tuple[str, ...], ListOf(Text(193, 1), 20_000), SPARSE] = ()
    detail: Annotated[str | None, Optional(Text(8192)), SPARSE] = None
    stdout_path: Annotated[str | None, Optional(Text(4096)), SPARSE] = None
    stderr_path: Annotated[str | None, Optional(Text(4096)), SPARSE] = None
    submitted: Annotated[dict[str, Any] | None, Optional(Object()), SPARSE] = None

    def as_json(self) -> dict[str, Any]:
        """The object that the file holds."""
        return as_json(self)

    def for_letter(self) -> dict[str, Any]:
        """The same for a dead letter, which holds the task's own fields already."""
        out = self.as_json()
        out.pop("submitted", None)
        return out

    def dump(self) -> bytes:
        return strict_json.dumps(self.as_json())


FIELDS: dict[str, Kind] = fields_of(Result)

_STATUS = re.compile(rb'"status"\s*:\s*"([a-z]+)"')
#: A result's head of this many bytes holds its status: id, worker and status come first and are bounded.
HEAD_BYTES = 512


def status_in_head(head: bytes) -> Status | None:
    """The status told by the first HEAD_BYTES of a result file; None when it cannot be told from them."""
    found = _STATUS.search(head)
    if found is None:
        return None
    word = found.group(1).decode("ascii")
    return cast(Status, word) if word in STATUSES else None


def parse_result(raw: bytes) -> dict[str, Any]:
    """Read a result as its plain object. Raises NotStrictJson (a ValueError) or FieldError when it is none."""
    value = strict_json.loads(raw)
    if not isinstance(value, dict):
        raise strict_json.NotStrictJson("a result is one JSON object")
    for name in ("task_id", "worker", "status"):
        if name not in value:
            raise FieldError(f"it has no {name}: it is no result of a worker")
        try:
            FIELDS[name].check(value[name])
        except FieldError as error:
            raise FieldError(f"{name} {error}") from None
    return value


def schema() -> dict[str, Any]:
    """The JSON Schema of a result file."""
    return schema_of(Result, "result", "What results/<worker>/<id>.json holds.")


__all__ = [
    "FIELDS",
    "HEAD_BYTES",
    "ID_PATTERN",
    "USAGE_FIELDS",
    "Result",
    "Status",
    "Usage",
    "parse_result",
    "schema",
    "status_in_head",
]
