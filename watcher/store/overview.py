"""Count what waits, what runs and how tasks ended, for every worker, from the folders alone.

A look needs no worker, no listener and no network, writes nothing, and never fails over one file: what cannot be read
is counted and told. Counts come from listings; whether a task completed comes from the first bytes of its result.
A look is a moment: files move while it is taken, so a task on its way may be counted twice or not at all for once.

Raises WorkerTrouble when the machine is out of descriptors or memory: then every number would be wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from watcher.clock import Clock, SystemClock, rfc3339
from watcher.formats.task import TASK_FILE_NAME, why_no_task_name
from watcher.store import workers as presence
from watcher.store.folders import History
from watcher.store.results import read_status
from watcher.store.task_places import WAITING, TaskPlace, places, workers_in
from watcher.store.workers import Beat, Claims, Json, Process, State
from watcher.system import no_links

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_BREAKERS_BY_WORRY = ("closed", "half_open", "open")
_MAX_PROBLEMS = 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task in the claim of a living process. Ages are seconds, None where nothing tells them."""

    task_id: str
    worker: str
    instance: str | None
    attempt: int
    for_seconds: float | None
    output_age_seconds: float | None
    last_event: str | None = None
    last_event_age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerOverview:
    """One worker. `retrying` and `held` are parts of `pending`; `orphaned` are claims of dead processes and no part of
    `running`.

    `ignored` are files in the inbox that no worker takes, by their names.
    `failed` counts results that are not completed, `unread` the files among them that tell no status.
    """

    worker: str
    state: State
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
    held: int = 0
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything of one look. `problems` are lines for people about what could not be read."""

    taken_at: float
    root: str
    workers: tuple[WorkerOverview, ...]
    running: tuple[RunningTask, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> Json:
        """The same for programs; seconds are rounded to milliseconds."""
        return cast(Json, _rounded(dataclasses.asdict(self))) | {"taken_at": rfc3339(self.taken_at)}


def look(folders: Folders, clock: Clock | None = None) -> Overview:
    """Take one look."""
    return OverviewReader(folders, clock).look()


class OverviewReader:
    """Takes looks one after another and keeps what cannot change, so that the next one costs little."""

    def __init__(self, folders: Folders, clock: Clock | None = None) -> None:
        self._folders = folders
        self._clock = clock or SystemClock()
        self._statuses: dict[str, _Facts[str]] = {}
        self._arrivals: dict[Path, _Facts[float]] = {}
        self._problems: list[str] = []

    def know(self, statuses: dict[str, dict[str, tuple[int, str | None]]]) -> None:
        """Take over what a listener has read: by worker and file name the inode and the status.

        It only saves reading: a file counts as it lies in the folder, and one with another inode is read.
        """
        for worker, facts in statuses.items():
            self._statuses[worker] = _Facts(_read_status, facts)

    def look(self) -> Overview:
        """Read everything as it is now."""
        self._problems = []
        now = self._clock.wall()
        beats = presence.read_beats(self._folders.heartbeats, now, self._problems)
        names = {beat.worker for beat in beats}
        for parent in (self._folders.tasks, self._folders.results, self._folders.dlq):
            names.update(workers_in(parent, lambda place: presence.list_names(place, self._problems)))
        running: list[RunningTask] = []
        workers = [self._worker(name, [b for b in beats if b.worker == name], running, now) for name in sorted(names)]
        running.sort(key=lambda task: (task.worker, -(task.for_seconds or 0.0), task.task_id))
        return Overview(now, str(self._folders.root), tuple(workers), tuple(running), self._told())

    def beating(self) -> set[str]:
        """Every worker that has left a heartbeat."""
        return {beat.worker for beat in presence.read_beats(self._folders.heartbeats, self._clock.wall(), [])}

    def processes(self, worker: str) -> tuple[Process, ...]:
        """Who serves or served this worker; cheap, because it counts nothing."""
        return presence.processes_of(self._folders.heartbeats, self._folders.tasks, worker, self._clock.wall())

    def _worker(self, worker: str, beats: list[Beat], running: list[RunningTask], now: float) -> WorkerOverview:
        inbox = self._folders.tasks / worker
        claims = presence.read_claims(inbox, self._problems)
        processes = presence.processes(worker, beats, claims, now)
        active = _running(claims, beats, processes, now)
        running += active
        new, retrying, held = (self._arrived(place) for place in places(inbox, WAITING))
        oldest = min((*new.values(), *retrying.values(), *held.values()), default=None)
        statuses = self._statuses.setdefault(worker, _Facts(_read_status))
        statuses.refresh(self._folders.results / worker, TASK_FILE_NAME.fullmatch, self._problems)
        done = sum(status == "completed" for status in statuses.values())
        letters = presence.list_names(self._folders.dlq / worker, self._problems)
        breakers = [process.breaker for process in processes if process.breaker is not None]
        state, for_seconds = presence.sum_up(processes)
        return WorkerOverview(
            worker=worker,
            state=state,
            for_seconds=for_seconds,
            pending=len(new) + len(retrying) + len(held),
            retrying=len(retrying),
            held=len(held),
            ignored=sum(self._is_ignored(name) for name in presence.list_names(inbox, [])),
            running=len(active),
            orphaned=sum(len(claim.names) for claim in claims if claim.lives is False),
            done=done,
            failed=len(statuses) - statuses.unread - done,
            unread=statuses.unread,
            dead_letters=sum(name.endswith(".json") and not name.startswith(".") for name in letters),
            breaker=max(breakers, key=_BREAKERS_BY_WORRY.index, default=None),
            oldest_pending_seconds=None if oldest is None else max(0.0, now - oldest),
            processes=processes,
        )

    @staticmethod
    def _is_ignored(name: str) -> bool:
        """A hidden one may be just about to be renamed, and counting asks no file how old it is."""
        return not name.startswith(".") and why_no_task_name(name) is not None

    def _arrived(self, place: TaskPlace) -> _Facts[float]:
        """When each waiting task came. A rename keeps that time, so a retried task keeps its age."""
        facts = self._arrivals.setdefault(place.path, _Facts(_read_mtime))
        facts.refresh(place.path, place.history, self._problems)
        return facts

    def _told(self) -> tuple[str, ...]:
        unique = list(dict.fromkeys(self._problems))
        more = len(unique) - _MAX_PROBLEMS
        return (*unique[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else []))


class _Facts(Generic[T]):
    """One fact about each file of a folder, read once for each file: a new name or a new inode is read anew."""

    def __init__(
        self, read: Callable[[int, str], T | None], known: dict[str, tuple[int, T | None]] | None = None
    ) -> None:
        self._read = read
        self._facts: dict[str, tuple[int, T | None]] = known or {}
        self.unread = 0

    def __len__(self) -> int:
        return len(self._facts)

    def values(self) -> list[T]:
        """The facts that could be read; `unread` says how many could not."""
        return [fact for _, fact in self._facts.values() if fact is not None]

    def refresh(self, place: Path, wanted: Callable[[str], object], problems: list[str]) -> None:
        """Make it true for the folder as it is now; a file that is gone by then is forgotten."""
        old, self._facts, self.unread = self._facts, {}, 0
        try:
            fd = no_links.open_folder(place)
        except OSError as error:
            if error.errno in no_links.NOT_THERE:
                return
            presence.refuse_shortage(f"open {place}", error)
            problems.append(f"{place}: {error.strerror or error}")
            return
        try:
            with os.scandir(fd) as entries:
                listed = [(entry.name, entry.inode()) for entry in entries if wanted(entry.name)]
            for name, inode in listed:
                known = old.get(name)
                if known is None or known[0] != inode or known[1] is None:
                    known = self._look_at(fd, name, inode)
                if known is not None:
                    self._facts[name] = known
                    self.unread += known[1] is None
        finally:
            os.close(fd)

    def _look_at(self, fd: int, name: str, inode: int) -> tuple[int, T | None] | None:
        try:
            return inode, self._read(fd, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            presence.refuse_shortage(f"read {name}", error)
            return inode, None


def _read_status(fd: int, name: str) -> str | None:
    status = read_status(name, fd)
    return None if status is None else sys.intern(status)  # one string for all, not one for each


def _read_mtime(fd: int, name: str) -> float:
    return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime


def _running(claims: list[Claims], beats: list[Beat], processes: tuple[Process, ...], now: float) -> list[RunningTask]:
    """What living processes have claimed. The claim says what; the beat says since when, else its rename does."""
    by_incarnation = {process.incarnation: process for process in processes}
    out = []
    for claim in claims:
        process = by_incarnation.get(claim.incarnation)
        beat = next((b for b in beats if b.incarnation == claim.incarnation), None)
        for name in claim.names if claim.lives else ():
            history = History.of(name)
            assert history is not None  # only such names are in Claims
            if history.is_in_hand:
                continue  # somebody changes it just now; it does not run
            told = {} if beat is None else beat.active(history.stem)
            since = presence.moment(told.get("started_at")) or _claimed_at(claim.place / name)
            output_at = _output_at(told)
            event_at = presence.moment(told.get("last_event_at"))
            event = told.get("last_event")
            out.append(
                RunningTask(
                    task_id=history.stem,
                    worker=claim.place.parents[1].name,
                    instance=None if process is None else process.instance,
                    attempt=history.attempts,
                    for_seconds=None if since is None else max(0.0, now - since),
                    output_age_seconds=None if output_at is None else max(0.0, now - output_at),
                    last_event=event if isinstance(event, str) else None,
                    last_event_age_seconds=None if event_at is None else max(0.0, now - event_at),
                )
            )
    return out


def _claimed_at(path: Path) -> float | None:
    """When a claim was made: the rename is the last thing that changed the file."""
    try:
        return no_links.look_at(path).st_ctime
    except OSError:
        return None


def _output_at(told: Json) -> float | None:
    """When a running task last wrote: its output file knows that better than the last beat does."""
    path = told.get("stdout_path")
    if isinstance(path, str) and path.startswith("/") and "\0" not in path:
        with contextlib.suppress(OSError):
            info = os.lstat(path)
            return info.st_mtime if info.st_size else None
    return presence.moment(told.get("last_output_at"))


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    return [_rounded(member) for member in value] if isinstance(value, (list, tuple)) else value
