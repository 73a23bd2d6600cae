"""The life of the listener, and what it finds in the folders of all workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class ListenerStarted(Event):
    """`detail` says what it serves, in words."""

    name: ClassVar[str] = "listener.started"
    pid: int
    detail: str


@dataclass(slots=True)
class ListenerStopped(Event):
    """It listens no more."""

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
class WorkerMissed(WorkerJudged):
    """The same, where the new state is one that somebody should look at."""

    level: ClassVar[str] = "warning"


@dataclass(slots=True)
class BatchEnded(Event):
    """Every task of a batch has its outcome."""

    name: ClassVar[str] = "batch.ended"
    batch_id: str
    tasks: int
    not_completed: int


@dataclass(slots=True)
class TaskLate(Event):
    """A task has waited or run for longer than it should; `reason` says which."""

    name: ClassVar[str] = "task.late"
    level: ClassVar[str] = "warning"
    task_id: str
    of_worker: str
    reason: str
    detail: str


@dataclass(slots=True)
class TasksReassigned(Event):
    """Waiting tasks of a dead worker were moved to another one."""

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
    """A folder that was lost is there again."""

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
