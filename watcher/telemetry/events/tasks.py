"""What happens to a task, from its claim to its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class TaskClaimed(Event):
    """`latency_seconds`: from the moment the task could start (arrival or due time) to the claim."""

    name: ClassVar[str] = "task.claimed"
    level: ClassVar[str] = "debug"
    task_id: str
    provider: str
    attempt: int
    latency_seconds: float


@dataclass(slots=True)
class AttemptStarted(Event):
    """The attempt was handed to a slot."""

    name: ClassVar[str] = "task.started"
    task_id: str
    provider: str
    attempt: int


@dataclass(slots=True)
class AttemptEnded(Event):
    """`failure` is None for a success, else the failure class."""

    name: ClassVar[str] = "task.attempted"
    level: ClassVar[str] = "debug"
    task_id: str
    provider: str
    attempt: int
    failure: str | None
    reason: str | None
    exit_code: int | None
    duration_seconds: float
    stdout_bytes: int
    stderr_bytes: int


@dataclass(slots=True)
class TaskSettled(Event):
    """The outcome is stored and safe. `duration_seconds` and `exit_code` are those of the last attempt."""

    name: ClassVar[str] = "task.settled"
    task_id: str
    status: str
    reason: str | None
    provider: str
    attempts: int
    retry_count: int
    duration_seconds: float
    dead_lettered: bool
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    exit_code: int | None = None
    agent_id: str | None = None
    model: str | None = None


@dataclass(slots=True)
class TaskRetryScheduled(Event):
    """The attempt has failed; the next one may start after `delay_seconds`."""

    name: ClassVar[str] = "task.retry_scheduled"
    level: ClassVar[str] = "warning"
    task_id: str
    provider: str
    attempt: int
    reason: str
    delay_seconds: float


@dataclass(slots=True)
class TaskReleased(Event):
    """Given back untouched: no attempt was counted."""

    name: ClassVar[str] = "task.released"
    task_id: str
    reason: str


@dataclass(slots=True)
class TaskRefused(Event):
    """A file that is no task went to the dead letters with its original bytes."""

    name: ClassVar[str] = "task.refused"
    level: ClassVar[str] = "error"
    task_id: str
    reason: str
    detail: str


@dataclass(slots=True)
class TaskDropped(Event):
    """The same task came again and its result is there already: the copy was removed."""

    name: ClassVar[str] = "task.dropped"
    level: ClassVar[str] = "warning"
    task_id: str
    reason: str


@dataclass(slots=True)
class TaskFieldsUnknown(Event):
    """They are kept; perhaps one of them is misspelt."""

    name: ClassVar[str] = "task.fields_unknown"
    level: ClassVar[str] = "warning"
    task_id: str
    fields: str


@dataclass(slots=True)
class TaskReferencesUnknown(Event):
    """`{{name.stdout}}` of no declared dependency stays as it is written; perhaps the task should wait for it."""

    name: ClassVar[str] = "task.references_unknown"
    level: ClassVar[str] = "warning"
    task_id: str
    references: str


@dataclass(slots=True)
class FileIgnored(Event):
    """The file is left where it is."""

    name: ClassVar[str] = "file.ignored"
    level: ClassVar[str] = "warning"
    file: str
    detail: str


@dataclass(slots=True)
class TaskRescued(Event):
    """Taken back from a dead process. `deaths` counts the workers that died while they held it."""

    name: ClassVar[str] = "task.rescued"
    level: ClassVar[str] = "warning"
    task_id: str
    deaths: int
    from_incarnation: str
    outcome: str


@dataclass(slots=True)
class LeftoversKilled(Event):
    """Processes that a command left behind were ended."""

    name: ClassVar[str] = "process.leftovers_killed"
    level: ClassVar[str] = "warning"
    task_id: str
    processes: int


@dataclass(slots=True)
class OutcomeDiscarded(Event):
    """The claim was no longer ours when the outcome came; the outcome was kept aside, not published."""

    name: ClassVar[str] = "task.outcome_discarded"
    level: ClassVar[str] = "error"
    task_id: str
    detail: str


@dataclass(slots=True)
class TaskNotUnderstood(Event):
    """Something went wrong inside this program over one task or file; the others go on."""

    name: ClassVar[str] = "task.not_understood"
    level: ClassVar[str] = "error"
    task_id: str
    detail: str


@dataclass(slots=True)
class HintFailed(Event):
    """A receipt or another hint could not be written; the outcome is not touched by that."""

    name: ClassVar[str] = "hint.failed"
    level: ClassVar[str] = "warning"
    task_id: str
    detail: str
