"""The life of the listener, and what it finds in the folders of all workers."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class ListenerStarted(Event):
    """`detail` says what it serves, in words."""

    name = "listener.started"
    sentence = "listener started, pid {pid}"
    pid: int
    detail: str


@dataclass(slots=True)
class ListenerStopped(Event):
    """It listens no more."""

    name = "listener.stopped"
    sentence = "listener stopped"
    reason: str


@dataclass(slots=True)
class NoticePublished(Event):
    """A file below `triggers/orchestrator/` is there now. `wait_seconds`: since what it tells was written."""

    name = "notice.published"
    level = "debug"
    sentence = "notice {file} published"
    kind: str
    file: str
    wait_seconds: float | None


@dataclass(slots=True)
class WorkerJudged(Event):
    """A process of a worker is seen in another state than before."""

    name = "worker.judged"
    sentence = "a process is {state}, was {was}"
    worker: str
    instance: str | None
    state: str
    was: str
    detail: str


@dataclass(slots=True)
class WorkerMissed(WorkerJudged):
    """The same, where the new state is one that somebody should look at."""

    level = "warning"


@dataclass(slots=True)
class BatchEnded(Event):
    """Every task of a batch has its outcome."""

    name = "batch.ended"
    sentence = "batch {batch_id} ended, tasks: {tasks}, not completed: {not_completed}"
    batch_id: str
    tasks: int
    not_completed: int


@dataclass(slots=True)
class TaskLate(Event):
    """A task has waited or run for longer than it should; `reason` says which."""

    name = "task.late"
    level = "warning"
    sentence = "{of_worker}/{task_id} is late"
    task_id: str
    of_worker: str
    reason: str
    detail: str


@dataclass(slots=True)
class TasksReassigned(Event):
    """Waiting tasks of a dead worker were moved to another one."""

    name = "tasks.reassigned"
    level = "warning"
    sentence = "tasks of {from_worker} went to {to_worker}: {tasks}"
    from_worker: str
    to_worker: str
    tasks: int


@dataclass(slots=True)
class FolderLost(Event):
    """A folder that was there is gone, or cannot be listed. It is looked for at every scan."""

    name = "folder.lost"
    level = "error"
    sentence = "folder {folder} is lost"
    folder: str
    detail: str


@dataclass(slots=True)
class FolderFound(Event):
    """A folder that was lost is there again."""

    name = "folder.found"
    sentence = "folder {folder} is back"
    folder: str


@dataclass(slots=True)
class LedgerRebuilt(Event):
    """The database was not there, or could not be used; it is made anew from the folders."""

    name = "ledger.rebuilt"
    sentence = "the listener's database is made anew"
    detail: str


@dataclass(slots=True)
class FilesPruned(Event):
    """Files older than their retention were removed."""

    name = "files.pruned"
    sentence = "old files removed"
    receipts: int
    notices: int
    results: int
    dead_letters: int
