"""What happens to a task, from its claim to its outcome."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class TaskClaimed(Event):
    """`latency_seconds`: from the moment the task could start (arrival or due time) to the claim."""

    name = "task.claimed"
    level = "debug"
    sentence = "{task_id} claimed for {provider} after {latency_seconds:.3f} s"
    task_id: str
    provider: str
    attempt: int
    latency_seconds: float


@dataclass(slots=True)
class AttemptStarted(Event):
    """The attempt was handed to a slot."""

    name = "task.started"
    sentence = "{task_id} started on {provider}, attempt {attempt}"
    task_id: str
    provider: str
    attempt: int


@dataclass(slots=True)
class AttemptEnded(Event):
    """`failure` is None for a success, else the failure class."""

    name = "task.attempted"
    level = "debug"
    sentence = "{task_id} ended attempt {attempt} after {duration_seconds:.3f} s"
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

    name = "task.settled"
    sentence = "{task_id} {status} on attempt {attempts} after {duration_seconds:.3f} s"
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

    name = "task.retry_scheduled"
    level = "warning"
    sentence = "{task_id} is tried again in {delay_seconds:.3f} s after attempt {attempt}"
    task_id: str
    provider: str
    attempt: int
    reason: str
    delay_seconds: float


@dataclass(slots=True)
class TaskReleased(Event):
    """Given back untouched: no attempt was counted."""

    name = "task.released"
    sentence = "{task_id} given back, no attempt counted"
    task_id: str
    reason: str


@dataclass(slots=True)
class TaskRefused(Event):
    """A file that is no task went to the dead letters with its original bytes."""

    name = "task.refused"
    level = "error"
    sentence = "{task_id} is no task, moved to the dead letters"
    task_id: str
    reason: str
    detail: str


@dataclass(slots=True)
class TaskDropped(Event):
    """The same task came again and its result is there already: the copy was removed."""

    name = "task.dropped"
    level = "warning"
    sentence = "{task_id} dropped, it came twice"
    task_id: str
    reason: str


@dataclass(slots=True)
class TaskFieldsUnknown(Event):
    """They are kept; perhaps one of them is misspelt."""

    name = "task.fields_unknown"
    level = "warning"
    sentence = "{task_id} has unknown fields, kept: {fields}"
    task_id: str
    fields: str


@dataclass(slots=True)
class TaskReferencesUnknown(Event):
    """`{{name.stdout}}` of no declared dependency stays as it is written; perhaps the task should wait for it."""

    name = "task.references_unknown"
    level = "warning"
    sentence = "{task_id} names outputs of what is no dependency of it: {references}"
    task_id: str
    references: str


@dataclass(slots=True)
class FileIgnored(Event):
    """The file is left where it is."""

    name = "file.ignored"
    level = "warning"
    sentence = "file {file} ignored"
    file: str
    detail: str


@dataclass(slots=True)
class TaskRescued(Event):
    """Taken back from a dead process. `deaths` counts the workers that died while they held it."""

    name = "task.rescued"
    level = "warning"
    sentence = "{task_id} rescued from {from_incarnation}, worker deaths on it: {deaths}, {outcome}"
    task_id: str
    deaths: int
    from_incarnation: str
    outcome: str


@dataclass(slots=True)
class LeftoversKilled(Event):
    """Processes that a command left behind were ended."""

    name = "process.leftovers_killed"
    level = "warning"
    sentence = "{task_id} left processes behind, ended: {processes}"
    task_id: str
    processes: int


@dataclass(slots=True)
class OutcomeDiscarded(Event):
    """The claim was no longer ours when the outcome came; the outcome was kept aside, not published."""

    name = "task.outcome_discarded"
    level = "error"
    sentence = "{task_id} was no longer ours, its outcome was kept aside"
    task_id: str
    detail: str


@dataclass(slots=True)
class TaskNotUnderstood(Event):
    """Something went wrong inside this program over one task or file; the others go on."""

    name = "task.not_understood"
    level = "error"
    sentence = "{task_id} went wrong inside the worker, the others go on"
    task_id: str
    detail: str


@dataclass(slots=True)
class HintFailed(Event):
    """A receipt or another hint could not be written; the outcome is not touched by that."""

    name = "hint.failed"
    level = "warning"
    sentence = "a receipt, heartbeat or notice could not be written"
    task_id: str
    detail: str
