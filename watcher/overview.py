"""What is going on, read from the folders alone: every worker, what waits, what runs, how things ended.

A look needs no worker, no listener and no network, writes nothing, and never fails over one file: what cannot be read
is counted and told. Counts come from listings; whether a task completed comes from the first bytes of its result.
Whether a process lives is told by its lock, which the kernel holds for exactly as long as it lives; the age of its
heartbeat is by wall clock, for people, and decides nothing.

A look is a moment: files move while it is taken, so a task on its way may be counted twice or not at all for once.
Assumes flock on the file system of the tasks. Raises WorkerTrouble when the machine is out of descriptors or memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from watcher.atomicfile import read_up_to
from watcher.clock import Clock, SystemClock, parse_rfc3339, rfc3339
from watcher.errors import WorkerTrouble
from watcher.formats import heartbeat, strictjson
from watcher.formats.fields import FieldError
from watcher.formats.result import HEAD_BYTES, status_in_head
from watcher.formats.task import TASK_FILE_NAME, WORKER_PATTERN
from watcher.spool.places import CLAIMS, RETRY, History

if TYPE_CHECKING:
    from watcher_config import Folders

State = Literal[
    "healthy", "degraded", "paused", "held", "draining", "starting", "stopped", "dead", "unknown", "absent"
]
#: States of a process that lives; `starting` is one whose first heartbeat is not there yet.
ALIVE: frozenset[State] = frozenset({"healthy", "degraded", "paused", "held", "draining", "starting"})
#: From best to worst. A worker with several processes shows the worst of those that live, else the worst of all.
_BY_WORRY: tuple[State, ...] = (
    "healthy", "starting", "draining", "paused", "held", "degraded", "absent", "stopped", "unknown", "dead",
)  # fmt: skip
_BREAKERS_BY_WORRY = ("closed", "half_open", "open")

_WORKER = re.compile(WORKER_PATTERN)
_HEARTBEAT = re.compile(rf"({WORKER_PATTERN})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?\.json")
_INCARNATION = re.compile(r"[0-9a-f]{32}")
#: Never follow a link, never block on a FIFO.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_BEAT_BYTES = 16 << 20
#: A beat older than this many intervals is worth a word.
_SILENT_INTERVALS = 3
_MAX_PROBLEMS = 20
#: No single file is at fault for these, and what was counted so far would be wrong.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task in the claim of a living process. Ages are seconds, None where nothing tells them."""

    task_id: str
    worker: str
    instance: str | None
    attempt: int
    for_seconds: float | None
    output_age_seconds: float | None


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves or served a worker, by its lock and its last heartbeat.

    `for_seconds` is how long it has been up, or how long ago its last beat was when it is not. `breaker`, `held_until`
    and `metrics_port` are None when it does not live.
    """

    worker: str
    instance: str | None
    state: State
    reason: str | None = None
    for_seconds: float | None = None
    beat_age_seconds: float | None = None
    interval_seconds: float | None = None
    breaker: str | None = None
    held_until: str | None = None
    metrics_port: int | None = None
    incarnation: str | None = None
    pid: int | None = None
    host: str | None = None

    @property
    def name(self) -> str:
        """`marie`, or `marie@2` when the process has an instance."""
        return self.worker if self.instance is None else f"{self.worker}@{self.instance}"

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE

    @property
    def is_silent(self) -> bool:
        """It lives and has not beaten for a while: it is frozen, or the clocks of two machines differ."""
        if not self.is_alive or self.beat_age_seconds is None or self.interval_seconds is None:
            return False
        return self.beat_age_seconds > _SILENT_INTERVALS * self.interval_seconds + 1.0


@dataclass(frozen=True, slots=True)
class WorkerOverview:
    """One worker. `retrying` is a part of `pending`; `orphaned` are claims of dead processes, no part of `running`.

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
    return Lookout(folders, clock).look()


class Lookout:
    """Takes looks one after another and keeps what cannot change, so that the next one costs little."""

    def __init__(self, folders: Folders, clock: Clock | None = None) -> None:
        self._folders = folders
        self._clock = clock or SystemClock()
        self._statuses: dict[str, _Facts[str]] = {}
        self._arrivals: dict[str, _Facts[float]] = {}
        self._problems: list[str] = []

    def look(self) -> Overview:
        """Read everything as it is now."""
        self._problems = []
        beats = self._beats()
        names = {beat.worker for beat in beats}
        for parent in (self._folders.tasks, self._folders.results, self._folders.dlq):
            names.update(name for name in self._list(parent) if _WORKER.fullmatch(name) and (parent / name).is_dir())
        running: list[RunningTask] = []
        workers = [self._worker(name, [b for b in beats if b.worker == name], running) for name in sorted(names)]
        running.sort(key=lambda task: (task.worker, -(task.for_seconds or 0.0), task.task_id))
        root = str(self._folders.root)
        return Overview(self._clock.wall(), root, tuple(workers), tuple(running), self._told())

    def processes(self, worker: str) -> tuple[Process, ...]:
        """Who serves or served this worker; cheap, because it counts nothing."""
        self._problems = []
        return self._processes(worker, [b for b in self._beats() if b.worker == worker], self._claims(worker))

    def _worker(self, worker: str, beats: list[_Beat], running: list[RunningTask]) -> WorkerOverview:
        claims = self._claims(worker)
        processes = self._processes(worker, beats, claims)
        by_incarnation = {process.incarnation: process for process in processes}
        active = [
            self._running(worker, claim, name, beats, by_incarnation.get(claim.incarnation))
            for claim in claims
            if claim.lives
            for name in claim.names
        ]
        running += active
        inbox = self._folders.tasks / worker
        new, retrying = self._arrived(inbox, _is_task_name), self._arrived(inbox / RETRY, _has_history)
        statuses = self._statuses.setdefault(worker, _Facts(_read_status))
        statuses.refresh(self._folders.results / worker, _is_task_name, self._problems)
        done = sum(status == "completed" for status in statuses.values())
        oldest = min((*new.values(), *retrying.values()), default=None)
        state, for_seconds = _sum_up(processes)
        return WorkerOverview(
            worker=worker,
            state=state,
            for_seconds=for_seconds,
            pending=len(new) + len(retrying),
            retrying=len(retrying),
            running=len(active),
            orphaned=sum(len(claim.names) for claim in claims if claim.lives is False),
            done=done,
            failed=len(statuses) - statuses.unread - done,
            unread=statuses.unread,
            dead_letters=sum(_is_dead_letter(name) for name in self._list(self._folders.dlq / worker)),
            breaker=_worst([p.breaker for p in processes if p.breaker], _BREAKERS_BY_WORRY),
            oldest_pending_seconds=None if oldest is None else max(0.0, self._clock.wall() - oldest),
            processes=processes,
        )

    def _arrived(self, place: Path, wanted: Callable[[str], bool]) -> _Facts[float]:
        """When each waiting task came. A rename keeps that time, so a retried task keeps its age."""
        facts = self._arrivals.setdefault(str(place), _Facts(_read_mtime))
        facts.refresh(place, wanted, self._problems)
        return facts

    # --- who lives

    def _beats(self) -> list[_Beat]:
        """Every heartbeat, also one that cannot be read: then `fields` is None."""
        place = self._folders.heartbeats
        out = []
        for name in sorted(self._list(place)):
            found = _HEARTBEAT.fullmatch(name)
            if found is None:
                continue
            try:
                raw, changed_at = _read_file(place / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                _refuse_trouble(f"read {place / name}", error)
                self._problems.append(f"{place / name}: {error.strerror or error}")
                raw, changed_at = b"", self._clock.wall()
            age = max(0.0, self._clock.wall() - changed_at)
            fields: Json | None = None
            try:
                fields = heartbeat.parse_heartbeat(raw)
            except (strictjson.NotStrictJson, FieldError) as error:
                self._problems.append(f"{place / name}: not a heartbeat: {error}")
            out.append(_Beat(found[1], found[2], age, fields))
        return out

    def _claims(self, worker: str) -> list[_Claims]:
        """The claim folder and the lock of every incarnation that has left either."""
        place = self._folders.tasks / worker / CLAIMS
        found = {name[:32] for name in self._list(place) if _INCARNATION.fullmatch(name[:32])}
        out = []
        for incarnation in sorted(found):
            lives = _is_locked(place / f"{incarnation}.lock")
            names = [name for name in self._list(place / incarnation) if "~" in name and _has_history(name)]
            out.append(_Claims(incarnation, lives, names, place / incarnation))
        return out

    def _processes(self, worker: str, beats: list[_Beat], claims: list[_Claims]) -> tuple[Process, ...]:
        """One for each heartbeat, and one for each process that has come since and has none."""
        lives = {claim.incarnation: claim.lives for claim in claims}
        found: dict[str | None, Process] = {}
        for beat in beats:
            found[beat.instance] = beat.process(lives.get(beat.incarnation, False))
        known = {process.incarnation for process in found.values()}
        for claim in sorted(claims, key=lambda claim: claim.lives is not True):  # the living first
            if claim.incarnation not in known and claim.lives is not None:
                newcomer = self._without_beat(worker, claim)
                there = found.get(newcomer.instance)
                if there is None or not there.is_alive:
                    found[newcomer.instance] = newcomer
        return tuple(found[instance] for instance in sorted(found, key=lambda i: (i is not None, i or "")))

    def _without_beat(self, worker: str, claim: _Claims) -> Process:
        """A process that has not beaten, from the notes beside its lock: it has just started, or died before."""
        notes: Json = {}
        with contextlib.suppress(OSError, ValueError):
            value = strictjson.loads(_read_file(claim.place.with_name(f"{claim.incarnation}.json"))[0])
            notes = value if isinstance(value, dict) else {}
        instance = notes.get("instance")
        started_at = _moment(notes.get("started_at")) if claim.lives else None
        return Process(
            worker=worker,
            instance=instance if isinstance(instance, str) and instance else None,
            state="starting" if claim.lives else "dead",
            for_seconds=None if started_at is None else max(0.0, self._clock.wall() - started_at),
            incarnation=claim.incarnation,
            pid=_typed(notes.get("pid"), int),
            host=_typed(notes.get("host"), str),
        )

    # --- what runs

    def _running(
        self, worker: str, claim: _Claims, name: str, beats: list[_Beat], process: Process | None
    ) -> RunningTask:
        """The claim's file says what; its process's heartbeat says since when, else the time of the rename does."""
        history = History.of(name)
        assert history is not None  # only such names are in a claim
        told = next((b.active(history.stem) for b in beats if b.incarnation == claim.incarnation), {})
        now = self._clock.wall()
        since = _moment(told.get("started_at"))
        if since is None:
            since = _ctime(claim.place / name)
        output_at = _output_time(told)
        return RunningTask(
            task_id=history.stem,
            worker=worker,
            instance=None if process is None else process.instance,
            attempt=history.attempts,
            for_seconds=None if since is None else max(0.0, now - since),
            output_age_seconds=None if output_at is None else max(0.0, now - output_at),
        )

    # --- reading

    def _list(self, place: Path) -> list[str]:
        """The names in a folder; none when it is not there or not for us."""
        try:
            return os.listdir(place)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            _refuse_trouble(f"list {place}", error)
            self._problems.append(f"{place}: {error.strerror or error}")
            return []

    def _told(self) -> tuple[str, ...]:
        unique = list(dict.fromkeys(self._problems))
        more = len(unique) - _MAX_PROBLEMS
        return (*unique[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else []))


@dataclass(frozen=True, slots=True)
class _Claims:
    """What one incarnation has in the inbox. `lives` is None when its lock cannot be asked."""

    incarnation: str
    lives: bool | None
    names: list[str]
    place: Path


@dataclass(frozen=True, slots=True)
class _Beat:
    """One heartbeat file; its name says whose it is, `fields` what it says (None: nothing that can be read)."""

    worker: str
    instance: str | None
    age_seconds: float
    fields: Json | None

    @property
    def incarnation(self) -> str:
        return str((self.fields or {}).get("incarnation"))

    def active(self, task_id: str) -> Json:
        """What it says about a running task; nothing when it does not know it."""
        listed = (self.fields or {}).get("active")
        found = (t for t in listed if isinstance(t, dict)) if isinstance(listed, list) else ()
        return next((task for task in found if task.get("task_id") == task_id), {})

    def process(self, lives: bool | None) -> Process:
        """The process behind it. The lock decides about life and death, the beat about the rest."""
        fields = self.fields
        if fields is None:
            return Process(self.worker, self.instance, "unknown", "its heartbeat cannot be read", self.age_seconds)
        told = cast(State, fields["status"])
        state: State = told if lives else "stopped" if told == "stopped" else "dead"
        reason = _checked(fields, "reason")
        if lives is None:
            state, reason = "unknown", "its lock cannot be asked"
        elif lives and told == "stopped":
            state = "draining"  # the last beat is written, the lock not yet given up
        uptime = _checked(fields, "uptime_seconds")
        return Process(
            worker=self.worker,
            instance=self.instance,
            state=state,
            reason=reason if state not in ("dead", "stopped") else None,
            for_seconds=(uptime + self.age_seconds if uptime is not None else None) if lives else self.age_seconds,
            beat_age_seconds=self.age_seconds,
            interval_seconds=_checked(fields, "heartbeat_interval_seconds"),
            breaker=_checked(fields, "circuit_breaker_state") if lives else None,
            held_until=_checked(fields, "held_until") if lives else None,
            metrics_port=_checked(fields, "metrics_port") if lives else None,
            incarnation=_checked(fields, "incarnation"),
            pid=_checked(fields, "pid"),
            host=_checked(fields, "host"),
        )


class _Facts(Generic[T]):
    """One fact about each file of a folder, read once for each file: a new name or a new inode is read anew."""

    def __init__(self, read: Callable[[int, str], T | None]) -> None:
        self._read = read
        self._facts: dict[str, tuple[int, T | None]] = {}
        self.unread = 0

    def __len__(self) -> int:
        return len(self._facts)

    def values(self) -> list[T]:
        """The facts that could be read."""
        return [fact for _, fact in self._facts.values() if fact is not None]

    def refresh(self, place: Path, wanted: Callable[[str], bool], problems: list[str]) -> None:
        """Make it true again for the folder as it is now; a file that is gone by then is forgotten."""
        old, self._facts, self.unread = self._facts, {}, 0
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            _refuse_trouble(f"open {place}", error)
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
            _refuse_trouble(f"read {name}", error)
            return inode, None


def _read_status(fd: int, name: str) -> str | None:
    file = os.open(name, _READ, dir_fd=fd)
    try:
        status = status_in_head(os.read(file, HEAD_BYTES))
    finally:
        os.close(file)
    return None if status is None else sys.intern(status)  # one string for all, not one for each


def _read_mtime(fd: int, name: str) -> float:
    return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime


def _read_file(path: Path) -> tuple[bytes, float]:
    """The bytes of a small file and when it was changed (wall seconds)."""
    fd = os.open(path, _READ)
    try:
        return read_up_to(fd, _MAX_BEAT_BYTES), os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def _is_locked(path: Path) -> bool | None:
    """Whether somebody holds this lock; None when that cannot be told.

    A shared lock for a moment: two readers never take each other for the owner, and no right to write is needed.
    """
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return False  # locks are made first and removed last
    except OSError as error:
        _refuse_trouble(f"open {path}", error)
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(fd)
    return False


def _sum_up(processes: tuple[Process, ...]) -> tuple[State, float | None]:
    """The state of a worker: the worst of what lives, else of what there was."""
    chosen = [p for p in processes if p.is_alive] or list(processes)
    if not chosen:
        return "absent", None
    worst = max(chosen, key=lambda p: _BY_WORRY.index(p.state))
    return worst.state, worst.for_seconds


def _worst(words: list[str], by_worry: tuple[str, ...]) -> str | None:
    return max(words, key=by_worry.index, default=None)


def _checked(fields: Json, name: str) -> Any:
    """A field of a heartbeat if it is what the format says, else None."""
    try:
        return heartbeat.FIELDS[name].check(fields.get(name))
    except FieldError:
        return None


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None


def _moment(value: object) -> float | None:
    """Wall seconds of a time in a file, None when it is none."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            return parse_rfc3339(value)
    return None


def _output_time(told: Json) -> float | None:
    """When a running task last wrote: its output file knows it better than the last beat does."""
    path = told.get("stdout_path")
    if isinstance(path, str) and path.startswith("/") and "\0" not in path:
        with contextlib.suppress(OSError):
            info = os.stat(path)  # noqa: PTH116 - one call, no object
            return info.st_mtime if info.st_size else None
    return _moment(told.get("last_output_at"))


def _ctime(path: Path) -> float | None:
    """When a claim was made: the rename is the last thing that changed the file."""
    try:
        return os.lstat(path).st_ctime
    except OSError:
        return None


def _is_task_name(name: str) -> bool:
    return TASK_FILE_NAME.fullmatch(name) is not None


def _has_history(name: str) -> bool:
    return "~" in name and History.of(name) is not None


def _is_dead_letter(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def _refuse_trouble(action: str, error: OSError) -> None:
    if error.errno in _SHORTAGES:
        raise WorkerTrouble(action, error) from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    return [_rounded(member) for member in value] if isinstance(value, (list, tuple)) else value
