"""What is going on, read from the folders alone: every worker, what waits, what runs, how things ended.

A look needs no worker, no listener and no network, writes nothing, and never fails over one file: what cannot be read
is counted and told. Counts come from listings; whether a task completed comes from the first bytes of its result.
Whether a process lives is told by its lock, which the kernel holds for exactly as long as it lives; the age of its
heartbeat is by wall clock, for people, and decides nothing.

A look is a moment: files move while it is taken, so that a task may be counted twice or not at all for once.
Assumes flock on the tasks' file system. Raises OSError only when the machine is out of descriptors or memory.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from watcher.atomicfile import read_up_to
from watcher.clock import Clock, SystemClock, parse_rfc3339, rfc3339
from watcher.errors import is_trouble
from watcher.formats import heartbeat, strictjson
from watcher.formats.fields import FieldError
from watcher.formats.result import HEAD_BYTES, Status, status_in_head
from watcher.formats.task import TASK_FILE_NAME, WORKER_PATTERN
from watcher.spool.places import CLAIMS, RETRY, History

if TYPE_CHECKING:
    from watcher_config import Folders

State = Literal[
    "healthy", "degraded", "paused", "held", "draining", "starting", "stopped", "dead", "unknown", "absent"
]
#: States of a process that lives.
ALIVE: frozenset[State] = frozenset({"healthy", "degraded", "paused", "held", "draining", "starting"})
#: From the best to the worst; a worker with several processes shows the worst of those that live.
_BY_WORRY: tuple[State, ...] = (
    "healthy", "starting", "draining", "paused", "held", "degraded", "stopped", "unknown", "dead", "absent",
)  # fmt: skip

_INCARNATION = re.compile(r"[0-9a-f]{32}")
_HEARTBEAT = re.compile(rf"({WORKER_PATTERN})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?\.json")
_WORKER = re.compile(WORKER_PATTERN)
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_HEARTBEAT_BYTES = 16 << 20
_MAX_NOTES_BYTES = 1 << 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task in the claim of a living process. Ages are seconds; None where nothing tells them."""

    task_id: str
    worker: str
    instance: str | None
    attempt: int
    for_seconds: float | None
    output_age_seconds: float | None


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves or served a worker, by its last heartbeat and its lock.

    `for_seconds` is how long it has been up or, when it is not, how long ago its last beat was.
    """

    worker: str
    instance: str | None
    state: State
    reason: str | None
    for_seconds: float | None
    beat_age_seconds: float | None
    interval_seconds: float | None
    breaker: str | None
    held_until: str | None
    metrics_port: int | None
    incarnation: str | None
    pid: int | None
    host: str | None
    stats: dict[str, int]

    @property
    def name(self) -> str:
        """`marie`, or `marie@2` when the process has an instance."""
        return self.worker if self.instance is None else f"{self.worker}@{self.instance}"

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE

    @property
    def is_silent(self) -> bool:
        """Lives, and its last beat is older than three intervals: frozen, or the clocks differ."""
        if not self.is_alive or self.beat_age_seconds is None or self.interval_seconds is None:
            return False
        return self.beat_age_seconds > 3 * self.interval_seconds + 1.0


@dataclass(frozen=True, slots=True)
class WorkerOverview:
    """One worker. `pending` contains `retrying`; `orphaned` are claims of dead processes, not in `running`.

    `failed` are the results that are not completed. `unread` are files among the results that tell no status.
    """

    worker: str
    state: State
    reason: str | None
    for_seconds: float | None
    pending: int
    retrying: int
    running: int
    orphaned: int
    done: int
    failed: int
    unread: int
    dead_letters: int
    breaker: str | None
    oldest_pending_seconds: float | None
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything of one look. `problems` are lines for people about what could not be read."""

    taken_at: float
    root: str
    workers: tuple[WorkerOverview, ...]
    running: tuple[RunningTask, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same for programs; seconds are rounded to milliseconds."""
        out = _rounded(dataclasses.asdict(self))
        out["taken_at"] = rfc3339(self.taken_at)
        assert isinstance(out, dict)
        return out


def look(folders: Folders, clock: Clock | None = None) -> Overview:
    """Take one look."""
    return Lookout(folders, clock).look()


class Lookout:
    """Takes looks one after another and remembers what cannot change, so that the next costs little."""

    def __init__(self, folders: Folders, clock: Clock | None = None) -> None:
        self._folders = folders
        self._clock = clock or SystemClock()
        self._statuses: dict[str, _Known[Status]] = {}
        self._arrivals: dict[str, _Known[float]] = {}

    def look(self) -> Overview:
        """Read the folders as they are now."""
        problems: list[str] = []
        beats = self._heartbeats(problems)
        names = {worker for worker, _ in beats}
        for parent in (self._folders.tasks, self._folders.results, self._folders.dlq):
            names.update(_worker_folders(parent, problems))
        running: list[RunningTask] = []
        workers = [
            self._worker(name, {i: b for (w, i), b in beats.items() if w == name}, running, problems)
            for name in sorted(names)
        ]
        running.sort(key=lambda task: (task.worker, -(task.for_seconds or 0.0), task.task_id))
        return Overview(
            self._clock.wall(), str(self._folders.root), tuple(workers), tuple(running), tuple(problems)
        )

    def processes(self, worker: str) -> tuple[Process, ...]:
        """Who serves or served this worker; cheap, it counts nothing."""
        beats = {i: b for (w, i), b in self._heartbeats([]).items() if w == worker}
        return self._processes(worker, beats, self._claims(worker, []))

    # --- one worker

    def _worker(
        self, worker: str, beats: dict[str | None, _Beat], running: list[RunningTask], problems: list[str]
    ) -> WorkerOverview:
        claims = self._claims(worker, problems)
        processes = self._processes(worker, beats, claims)
        active = [task for claim in claims if claim.lives for task in self._running(worker, claim, beats)]
        running.extend(active)
        pending, retrying, oldest = self._pending(worker, problems)
        done, failed, unread = self._results(worker, problems)
        state, reason, for_seconds = _sum_up(processes)
        letters = _names(self._folders.dlq / worker, problems)
        return WorkerOverview(
            worker=worker,
            state=state,
            reason=reason,
            for_seconds=for_seconds,
            pending=pending,
            retrying=retrying,
            running=len(active),
            orphaned=sum(len(claim.tasks) for claim in claims if claim.lives is False),
            done=done,
            failed=failed,
            unread=unread,
            dead_letters=sum(name.endswith(".json") and not name.startswith(".") for name in letters),
            breaker=_worst_breaker(processes),
            oldest_pending_seconds=oldest,
            processes=processes,
        )

    def _pending(self, worker: str, problems: list[str]) -> tuple[int, int, float | None]:
        """How many tasks wait, how many of these in `.retry`, and the age of the oldest."""
        inbox = self._folders.tasks / worker
        count, oldest = {}, None
        for place in (inbox, inbox / RETRY):
            known = self._arrivals.setdefault(str(place), _Known(lambda fd, name: os.stat(name, dir_fd=fd).st_mtime))
            is_task = _is_task_name if place is inbox else _is_claimed_name
            arrivals, _ = known.refresh(place, is_task, problems, count_unread=True)
            count[place] = len(arrivals) + known.unread
            first = min(arrivals.values(), default=None)
            if first is not None and (oldest is None or first < oldest):
                oldest = first
        age = None if oldest is None else max(0.0, self._clock.wall() - oldest)
        retrying = count[inbox / RETRY]
        return count[inbox] + retrying, retrying, age

    def _results(self, worker: str, problems: list[str]) -> tuple[int, int, int]:
        """How many results are completed, how many are not, and how many files tell nothing."""
        place = self._folders.results / worker
        known = self._statuses.setdefault(worker, _Known(_status))
        statuses, unread = known.refresh(place, _is_task_name, problems)
        done = sum(status == "completed" for status in statuses.values())
        return done, len(statuses) - done, unread
