"""The result: `results/<worker>/<id>.json`, written once, whole, and never changed after.

`status` says how the task ended for good; `reason` says why when it did not complete. `stdout` is what the agent
answered: the final text of a CLI with machine-readable output, else the bytes it printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from watcher.clock import rfc3339
from watcher.formats import strict_json
from watcher.formats.fields import (
    Choice,
    FieldError,
    Flag,
    Kind,
    ListOf,
    Members,
    Number,
    Object,
    Optional,
    Text,
    record_schema,
)
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN

Status = Literal["completed", "failed", "timeout", "cancelled"]
STATUSES: tuple[Status, ...] = ("completed", "failed", "timeout", "cancelled")

_SECONDS = Number(0, 1e12)
_COUNT = Number(0, 1e9, integer=True)
_TOKENS = Number(0, 1e15, integer=True)

USAGE_FIELDS: dict[str, Kind] = {
    "input_tokens": _TOKENS,
    "cached_input_tokens": _TOKENS,
    "output_tokens": _TOKENS,
    "cost_usd": Number(0, 1e12),
    "turns": _COUNT,
    "model": Text(200),
    "session_id": Text(200),
}
FIELDS: dict[str, Kind] = {
    "task_id": Text(160, 1),
    "worker": Text(64, 1, WORKER_PATTERN),
    "status": Choice(STATUSES),
    "exit_code": Optional(Number(-255, 65535, integer=True)),
    "stdout": Text(1 << 26),
    "stderr": Text(1 << 26),
    "duration_seconds": _SECONDS,
    "timestamp": Text(40, 20),
    "retry_count": _COUNT,
    "started_at": Optional(Text(40, 20)),
    "attempts": _COUNT,
    "reason": Optional(Text(64, 1)),
    "detail": Optional(Text(8192)),
    "provider": Optional(Text(64)),
    "usage": Optional(Members(USAGE_FIELDS)),
    "stdout_truncated": Flag(),
    "stderr_truncated": Flag(),
    "stdout_path": Optional(Text(4096)),
    "stderr_path": Optional(Text(4096)),
    "agent_id": Optional(Text(128)),
    "batch_id": Optional(Text(128)),
    "metadata": Optional(Object()),
    "dependencies": ListOf(Text(193, 1), 20_000),
    "incarnation": Optional(Text(64)),
    "task_sha256": Text(64, 64, "[0-9a-f]*"),
    "submitted": Optional(Object()),
}
REQUIRED = (
    "task_id", "worker", "status", "exit_code", "stdout", "stderr", "duration_seconds", "timestamp", "retry_count",
    "attempts", "task_sha256",
)  # fmt: skip


@dataclass(slots=True)
class Usage:
    """What an attempt used, where the provider tells; None where it does not.

    `input_tokens` is all that the model read, `cached_input_tokens` the part of it that came out of a cache. `turns`
    counts the model's answers. With `session_id` the provider's own tools find the conversation again.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    cached_input_tokens: int | None = None
    turns: int | None = None
    model: str | None = None
    session_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        pairs = ((name, getattr(self, name)) for name in USAGE_FIELDS)
        return {name: value for name, value in pairs if value is not None}


@dataclass(slots=True)
class Result:
    """One stored result. Times are wall seconds since the epoch here and RFC 3339 in the file.

    `submitted` is the task as it was written, so that it can be run again from its result.
    """

    task_id: str
    worker: str
    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    duration_seconds: float
    finished_at: float
    started_at: float | None
    retry_count: int
    attempts: int
    task_sha256: str
    reason: str | None = None
    detail: str | None = None
    provider: str | None = None
    usage: Usage | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    stdout_path: str | None = None
    stderr_path: str | None = None
    agent_id: str | None = None
    batch_id: str | None = None
    metadata: dict[str, Any] | None = None
    incarnation: str | None = None
    dependencies: tuple[str, ...] = ()
    submitted: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that the file holds; `status` stands early so that a reader of many needs only the head."""
        out: dict[str, Any] = {
            "task_id": self.task_id,
            "worker": self.worker,
            "status": self.status,
            "exit_code": self.exit_code,
            "duration_seconds": round(self.duration_seconds, 6),
            "timestamp": rfc3339(self.finished_at),
            "started_at": None if self.started_at is None else rfc3339(self.started_at),
            "retry_count": self.retry_count,
            "attempts": self.attempts,
            "reason": self.reason,
            "provider": self.provider,
            "agent_id": self.agent_id,
            "batch_id": self.batch_id,
            "incarnation": self.incarnation,
            "task_sha256": self.task_sha256,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "stdout_truncated": self.stdout_truncated,
            "stderr_truncated": self.stderr_truncated,
            "usage": None if self.usage is None else self.usage.as_json(),
            "metadata": self.metadata,
        }
        if self.dependencies:
            out["dependencies"] = list(self.dependencies)
        if self.detail is not None:
            out["detail"] = self.detail
        if self.stdout_path is not None:
            out["stdout_path"] = self.stdout_path
        if self.stderr_path is not None:
            out["stderr_path"] = self.stderr_path
        if self.submitted is not None:
            out["submitted"] = self.submitted
        return out

    def for_letter(self) -> dict[str, Any]:
        """The same for a dead letter, which holds the task's own fields already."""
        out = self.as_json()
        out.pop("submitted", None)
        return out

    def dump(self) -> bytes:
        return strict_json.dumps(self.as_json())


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
    return record_schema("result", "What results/<worker>/<id>.json holds.", FIELDS, REQUIRED)


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
