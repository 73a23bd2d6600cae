"""What happens, as small records. Services emit them; logs, metrics and the heartbeat listen.

Every event has a dotted name in the past tense, which is also its name in the log. Events are emitted on the worker's
loop thread only, so that a listener needs no lock; a listener must not block and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True)
class Event:
    """Base of all events. `level` is the log level at which people see it."""

    name: ClassVar[str] = "event"
    level: ClassVar[str] = "info"


@dataclass(slots=True)
class WorkerStarted(Event):
    name: ClassVar[str] = "worker.started"
    incarnation: str
    pid: int
    detail: str


@dataclass(slots=True)
class WorkerDraining(Event):
    name: ClassVar[str] = "worker.draining"
    reason: str
    active_tasks: int


@dataclass(slots=True)
class WorkerStopped(Event):
    name: ClassVar[str] = "worker.stopped"
    reason: str
    released_tasks: int


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
class TaskBlocked(Event):
    name: ClassVar[str] = "task.blocked"
    level: ClassVar[str] = "debug"
    task_id: str
    missing: int


@dataclass(slots=True)
class TaskFieldsUnknown(Event):
    name: ClassVar[str] = "task.fields_unknown"
    level: ClassVar[str] = "warning"
    task_id: str
    fields: str


@dataclass(slots=True)
class FileIgnored(Event):
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
class BreakerMoved(Event):
    """`state` is `closed`, `open` or `half_open`."""

    name: ClassVar[str] = "breaker.moved"
    level: ClassVar[str] = "warning"
    provider: str
    state: str
    failures: int


@dataclass(slots=True)
class ProviderHeld(Event):
    """Nothing is claimed for the provider until `until` (RFC 3339) or, when that is None, until it works again."""

    name: ClassVar[str] = "provider.held"
    level: ClassVar[str] = "error"
    provider: str
    reason: str
    detail: str
    until: str | None


@dataclass(slots=True)
class ProviderResumed(Event):
    name: ClassVar[str] = "provider.resumed"
    provider: str


@dataclass(slots=True)
class SpendingRecorded(Event):
    """An attempt has cost this much more, as its provider tells."""

    name: ClassVar[str] = "spending.recorded"
    level: ClassVar[str] = "debug"
    task_id: str
    provider: str
    cost_usd: float


@dataclass(slots=True)
class BudgetReached(Event):
    """Nothing is claimed until `until` (RFC 3339): the worker has spent what it may in one day."""

    name: ClassVar[str] = "budget.reached"
    level: ClassVar[str] = "warning"
    spent_usd: float
    budget_usd: float
    until: str


@dataclass(slots=True)
class BudgetLifted(Event):
    """A new day has begun, or the budget of this one was raised."""

    name: ClassVar[str] = "budget.lifted"
    spent_usd: float
    budget_usd: float


@dataclass(slots=True)
class StallNotWatched(Event):
    """STALL_TIMEOUT does not apply: what the provider prints tells nothing until it ends. Said once a provider."""

    name: ClassVar[str] = "stall.not_watched"
    level: ClassVar[str] = "warning"
    provider: str
    detail: str


@dataclass(slots=True)
class TroubleBegan(Event):
    """The machine is short of something; nothing is claimed until it clears and no attempt is counted."""

    name: ClassVar[str] = "worker.trouble_began"
    level: ClassVar[str] = "error"
    detail: str


@dataclass(slots=True)
class TroubleEnded(Event):
    name: ClassVar[str] = "worker.trouble_ended"
    seconds: float


@dataclass(slots=True)
class HintFailed(Event):
    """A receipt or another hint could not be written; the outcome is not touched by that."""

    name: ClassVar[str] = "hint.failed"
    level: ClassVar[str] = "warning"
    task_id: str
    detail: str


@dataclass(slots=True)
class WakeDegraded(Event):
    """Events of the file system are not available or were lost; the scan goes on finding what is there."""

    name: ClassVar[str] = "wake.degraded"
    level: ClassVar[str] = "warning"
    detail: str


@dataclass(slots=True)
class WorkerPaused(Event):
    """It starts nothing until it is resumed; what runs goes on."""

    name: ClassVar[str] = "worker.paused"
    level: ClassVar[str] = "warning"
    reason: str


@dataclass(slots=True)
class WorkerResumed(Event):
    name: ClassVar[str] = "worker.resumed"


@dataclass(slots=True)
class CommandDone(Event):
    """A file of the control folder was obeyed and consumed. `detail` says what came of it."""

    name: ClassVar[str] = "command.done"
    command: str
    task_id: str
    detail: str


@dataclass(slots=True)
class CommandRefused(Event):
    """A file of the control folder could not be obeyed; it lies in `.refused` there."""

    name: ClassVar[str] = "command.refused"
    level: ClassVar[str] = "error"
    file: str
    detail: str


@dataclass(slots=True)
class HandlerStarted(Event):
    """A warm handler has answered its first ping."""

    name: ClassVar[str] = "handler.started"
    level: ClassVar[str] = "debug"
    handler_pid: int


@dataclass(slots=True)
class HandlerEnded(Event):
    """A warm handler was ended in good order: it was worn out, or not needed any more."""

    name: ClassVar[str] = "handler.ended"
    level: ClassVar[str] = "debug"
    handler_pid: int
    reason: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlerFailed(Event):
    """A warm handler crashed, was late or broke the protocol, and is gone. Its task's failure is told by itself."""

    name: ClassVar[str] = "handler.failed"
    level: ClassVar[str] = "warning"
    handler_pid: int
    reason: str
    detail: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlersCold(Event):
    """The command cannot be kept warm: until it can, each task gets a process of its own."""

    name: ClassVar[str] = "handler.fell_back"
    level: ClassVar[str] = "warning"
    detail: str


@dataclass(slots=True)
class PoolResized(Event):
    """The monitor wants another number of warm handlers."""

    name: ClassVar[str] = "pool.resized"
    size: int
    was: int
    waiting: int


# --- the listener's


@dataclass(slots=True)
class ListenerStarted(Event):
    name: ClassVar[str] = "listener.started"
    pid: int
    detail: str


@dataclass(slots=True)
class ListenerStopped(Event):
    name: ClassVar[str] = "listener.stopped"
    reason: str


@dataclass(slots=True)
class NoticePublished(Event):
    """A file below `triggers/orchestrator/` is there now. `wait_seconds`: since what it tells was written."""

    name: ClassVar[str] = "notice.published"
    level: ClassVar[str] = "debug"
    kind: str
    file: str
    wait_seconds: float | None


@dataclass(slots=True)
class WorkerJudged(Event):
    """A process of a worker is seen in another state than before."""

    name: ClassVar[str] = "worker.judged"
    worker: str
    instance: str | None
    state: str
    was: str
    detail: str


@dataclass(slots=True)
class BatchEnded(Event):
    name: ClassVar[str] = "batch.ended"
    batch_id: str
    tasks: int
    not_completed: int


@dataclass(slots=True)
class TaskLate(Event):
    name: ClassVar[str] = "task.late"
    level: ClassVar[str] = "warning"
    task_id: str
    of_worker: str
    reason: str
    detail: str


@dataclass(slots=True)
class TasksReassigned(Event):
    name: ClassVar[str] = "tasks.reassigned"
    level: ClassVar[str] = "warning"
    from_worker: str
    to_worker: str
    tasks: int


@dataclass(slots=True)
class FolderLost(Event):
    """A folder that was there is gone, or cannot be listed. It is looked for at every scan."""

    name: ClassVar[str] = "folder.lost"
    level: ClassVar[str] = "error"
    folder: str
    detail: str


@dataclass(slots=True)
class FolderFound(Event):
    name: ClassVar[str] = "folder.found"
    folder: str


@dataclass(slots=True)
class LedgerRebuilt(Event):
    """The database was not there, or could not be used; it is made anew from the folders."""

    name: ClassVar[str] = "ledger.rebuilt"
    detail: str


@dataclass(slots=True)
class FilesPruned(Event):
    """Files older than their retention were removed."""

    name: ClassVar[str] = "files.pruned"
    receipts: int
    notices: int
    results: int
    dead_letters: int


# --- the supervisor's


@dataclass(slots=True)
class SupervisorStarted(Event):
    name: ClassVar[str] = "supervisor.started"
    pid: int
    detail: str


@dataclass(slots=True)
class SupervisorStopping(Event):
    name: ClassVar[str] = "supervisor.stopping"
    reason: str
    children: int


@dataclass(slots=True)
class SupervisorStopped(Event):
    name: ClassVar[str] = "supervisor.stopped"
    reason: str


@dataclass(slots=True)
class ChildStarted(Event):
    """A supervised process: `child` is `marie`, `marie@2` or `orchestrator` (the listener)."""

    name: ClassVar[str] = "child.started"
    child: str
    pid: int


@dataclass(slots=True)
class ChildEnded(Event):
    """It ended because it was asked to."""

    name: ClassVar[str] = "child.ended"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildRestarting(Event):
    """It ended by itself, or could not start; it is started again after `delay_seconds`. `crashes`: in a row."""

    name: ClassVar[str] = "child.restarting"
    level: ClassVar[str] = "warning"
    child: str
    reason: str
    crashes: int
    delay_seconds: float


@dataclass(slots=True)
class ChildAwaited(Event):
    """A process that outlived its supervisor, `pid`, does its work; it is started when that one has ended."""

    name: ClassVar[str] = "child.awaited"
    level: ClassVar[str] = "warning"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildLeft(Event):
    """Somebody else asked it to end; it is not started again before a person says so."""

    name: ClassVar[str] = "child.left"
    level: ClassVar[str] = "warning"
    child: str
    reason: str


@dataclass(slots=True)
class ChildGivenUp(Event):
    """It failed for good and is not started again before a person says so; the others go on."""

    name: ClassVar[str] = "child.given_up"
    level: ClassVar[str] = "error"
    child: str
    reason: str


@dataclass(slots=True)
class ChildrenRolled(Event):
    """All were restarted, one after the other."""

    name: ClassVar[str] = "children.rolled"
    children: int


@dataclass(slots=True)
class RollBrokenOff(Event):
    """The new process of one did not come up; those that were not restarted yet (`left`) run on as they are."""

    name: ClassVar[str] = "children.roll_broken_off"
    level: ClassVar[str] = "error"
    left: int
    reason: str


@dataclass(slots=True)
class InstancesScaled(Event):
    name: ClassVar[str] = "instances.scaled"
    of_worker: str
    instances: int
    was: int
    reason: str


# --- the HTTP endpoint's


@dataclass(slots=True)
class WebhookStarted(Event):
    name: ClassVar[str] = "webhook.started"
    host: str
    port: int
    detail: str


@dataclass(slots=True)
class WebhookStopped(Event):
    name: ClassVar[str] = "webhook.stopped"
    reason: str


@dataclass(slots=True)
class TaskAccepted(Event):
    """A post is durable in an inbox; `is_copy`: it was before. `source` is the hook, or `tasks`."""

    name: ClassVar[str] = "task.accepted"
    task_id: str
    of_worker: str
    source: str
    is_copy: bool


@dataclass(slots=True)
class RequestRefused(Event):
    """`not_logged` says how many more were refused since the last such line: they may be as many as somebody likes."""

    name: ClassVar[str] = "request.refused"
    level: ClassVar[str] = "warning"
    route: str
    status: int
    reason: str
    not_logged: int


Listener = Callable[[Event], None]
Emit = Callable[[Event], None]


class Bus:
    """Hands each event to every listener, in the order in which they joined."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def join(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
