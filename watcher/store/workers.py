"""Own who serves a worker and whether it lives: heartbeats, locks and the claims of each process, as values.

Life and death are told by the lock of an incarnation, which the kernel holds for exactly as long as its process lives.
The age of a heartbeat is by wall clock, for people, and decides nothing. Reads only, and never fails over one file: a
heartbeat that is none is a process in the state `unknown` and a line in `problems`.

Assumes flock on the file system of the tasks. Raises WorkerTrouble when the machine is out of descriptors or memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from watcher.clock import parse_rfc3339
from watcher.errors import SHORTAGES, WorkerTrouble
from watcher.formats import heartbeat, strict_json
from watcher.formats.fields import FieldError
from watcher.policy.health import is_late
from watcher.store.folders import History
from watcher.store.layout import CLAIMS, HEARTBEAT, INCARNATION, LOCK, NOTES
from watcher.system import no_links
from watcher.system.files import is_blank, read_up_to

State = Literal["healthy", "degraded", "paused", "held", "draining", "starting", "stopped", "dead", "unknown", "absent"]
#: States of a process that lives; `starting` is one whose first heartbeat is not there yet.
ALIVE: frozenset[State] = frozenset({"healthy", "degraded", "paused", "held", "draining", "starting"})
#: From best to worst. A worker with several processes shows the worst of those that live, else the worst of all.
_BY_WORRY: tuple[State, ...] = (
    "healthy", "starting", "draining", "paused", "held", "degraded", "absent", "stopped", "unknown", "dead",
)  # fmt: skip

#: Never follow a link, never block on a FIFO.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_BEAT_BYTES = 16 << 20

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves or served a worker.

    `for_seconds` is how long it has been up or, when it does not live, how long ago its last beat was. `breaker`,
    `held_until` and `metrics_port` are None when it does not live.
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
        return is_late(self.beat_age_seconds, self.interval_seconds)


@dataclass(frozen=True, slots=True)
class Claims:
    """What one incarnation has in the inbox. `lives` is None when its lock cannot be asked."""

    incarnation: str
    lives: bool | None
    names: list[str]
    place: Path


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat file: its name says whose it is, `fields` what it says. None where that cannot be read; then
    `problem` says why."""

    worker: str
    instance: str | None
    age_seconds: float
    fields: Json | None
    problem: str | None = None

    @property
    def incarnation(self) -> str:
        return str((self.fields or {}).get("incarnation"))

    @property
    def name(self) -> str:
        """`marie`, or `marie@2` when the process has an instance."""
        return self.worker if self.instance is None else f"{self.worker}@{self.instance}"

    @property
    def is_late(self) -> bool:
        """Whether its age speaks against its process; true where it cannot be read."""
        return self.fields is None or is_late(self.age_seconds, _checked(self.fields, "heartbeat_interval_seconds"))

    def active(self, task_id: str) -> Json:
        """What it says about a running task; nothing when it does not know it."""
        listed = (self.fields or {}).get("active")
        found = (t for t in listed if isinstance(t, dict)) if isinstance(listed, list) else ()
        return next((task for task in found if task.get("task_id") == task_id), {})

    def process(self, lives: bool | None) -> Process:
        """The process behind it. The lock decides about life and death, the beat about the rest."""
        fields = self.fields
        if fields is None:
            return Process(self.worker, self.instance, "unknown", self.problem, self.age_seconds)
        told = cast(State, fields["status"])
        state: State = told if lives else "stopped" if told == "stopped" else "dead"
        reason = _checked(fields, "reason") if lives else None
        if lives is None:
            state, reason = "unknown", "its lock cannot be asked"
        elif lives and told == "stopped":
            state = "draining"  # the last beat is written, the lock not yet given up
        uptime = _checked(fields, "uptime_seconds")
        return Process(
            worker=self.worker,
            instance=self.instance,
            state=state,
            reason=reason,
            for_seconds=(None if uptime is None else uptime + self.age_seconds) if lives else self.age_seconds,
            beat_age_seconds=self.age_seconds,
            interval_seconds=_checked(fields, "heartbeat_interval_seconds"),
            breaker=_checked(fields, "circuit_breaker_state") if lives else None,
            held_until=_checked(fields, "held_until") if lives else None,
            metrics_port=_checked(fields, "metrics_port") if lives else None,
            incarnation=_checked(fields, "incarnation"),
            pid=_checked(fields, "pid"),
            host=_checked(fields, "host"),
        )


def read_beats(place: Path, now: float, problems: list[str], worker: str | None = None) -> list[Beat]:
    """Every heartbeat in a folder (or those of one worker), by name; also those that cannot be read.

    `now` is wall seconds.
    """
    out = []
    for name in sorted(list_names(place, problems)):
        found = HEARTBEAT.fullmatch(name)
        if found is None or worker not in (None, found[1]):
            continue
        fields: Json | None = None
        problem: str | None = None
        changed_at = now
        try:
            beat = read_beat(place / name)
            if beat is None:
                continue
            fields, changed_at = beat
        except OSError as error:
            problem = f"its heartbeat cannot be read: {error.strerror or error}"
        except ValueError as error:
            problem = f"not a heartbeat of ours: {error}"
        if problem is not None:
            problems.append(f"{place / name}: {problem}")
        out.append(Beat(found[1], found[2], max(0.0, now - changed_at), fields, problem))
    return out


def read_beat(path: Path) -> tuple[Json, float] | None:
    """What one heartbeat says and when it was written (wall seconds); None for one that is gone or says nothing.

    A power cut leaves an empty file where a beat was not flushed. Raises OSError, ValueError for what is no heartbeat,
    WorkerTrouble.
    """
    try:
        raw, changed_at = read_small(path)
        if is_blank(raw) and stat.S_ISREG(path.lstat().st_mode):
            return None
        return heartbeat.parse_heartbeat(raw), changed_at
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse_shortage(f"read {path}", error)
        raise


def beat_marks(place: Path) -> dict[str, tuple[int, int]] | None:
    """Which heartbeats are there, by `marie` or `marie@2`, each with a mark that another beat changes.

    None when the folder cannot be listed now. Raises WorkerTrouble.
    """
    try:
        with no_links.entries_in(place) as entries:
            found = [(e.name, e.stat(follow_symlinks=False)) for e in entries if HEARTBEAT.fullmatch(e.name)]
    except OSError as error:
        refuse_shortage(f"list {place}", error)
        return None
    return {name[:-5]: (info.st_ino, info.st_mtime_ns) for name, info in found}


def read_claims(inbox: Path, problems: list[str]) -> list[Claims]:
    """The claims and the life of every incarnation that has left a trace in this inbox."""
    place = inbox / CLAIMS
    found = {name[:32] for name in list_names(place, problems) if INCARNATION.fullmatch(name[:32])}
    out = []
    for incarnation in sorted(found):
        names = [name for name in list_names(place / incarnation, problems) if has_history(name)]
        out.append(Claims(incarnation, is_locked(place / (incarnation + LOCK)), names, place / incarnation))
    return out


def claims_of(tasks: Path, worker: str) -> list[Claims]:
    """The claims of all incarnations of a worker; none when they cannot be listed now."""
    with contextlib.suppress(WorkerTrouble):
        return read_claims(tasks / worker, [])
    return []


def processes_of(heartbeats: Path, tasks: Path, worker: str, now: float) -> tuple[Process, ...]:
    """Who serves or served this worker; cheap, because it counts nothing. `now` is wall seconds."""
    return processes(worker, read_beats(heartbeats, now, [], worker), read_claims(tasks / worker, []), now)


def processes(worker: str, beats: list[Beat], claims: list[Claims], now: float) -> tuple[Process, ...]:
    """The processes of one worker: one for each heartbeat, and one for each that has not beaten yet.

    `beats` are those of this worker only.
    """
    lives = {claim.incarnation: claim.lives for claim in claims}
    found = {beat.instance: beat.process(lives.get(beat.incarnation, False)) for beat in beats}
    known = {process.incarnation for process in found.values()}
    for claim in claims:
        if claim.incarnation not in known and claim.lives is not None:
            newcomer = _without_beat(worker, claim, now)
            if newcomer is None:
                continue
            there = found.get(newcomer.instance)
            if there is None or not there.is_alive:
                found[newcomer.instance] = newcomer
    return tuple(found[instance] for instance in sorted(found, key=lambda i: i or ""))


def sum_up(found: tuple[Process, ...]) -> tuple[State, float | None]:
    """The state of a worker and for how long: the worst of what lives, else of what there was."""
    chosen = [process for process in found if process.is_alive] or list(found)
    if not chosen:
        return "absent", None
    worst = max(chosen, key=lambda process: _BY_WORRY.index(process.state))
    return worst.state, worst.for_seconds


def _without_beat(worker: str, claim: Claims, now: float) -> Process | None:
    """A process that has not beaten, from the notes beside its lock: it has just started, or died before.

    None for a tool that changes a task there.
    """
    notes = read_notes(claim.place.with_name(claim.incarnation + NOTES)) or {}
    if notes.get("visit"):
        return None
    started_at = moment(notes.get("started_at")) if claim.lives else None
    return Process(
        worker=worker,
        instance=_typed(notes.get("instance"), str) or None,
        state="starting" if claim.lives else "dead",
        for_seconds=None if started_at is None else max(0.0, now - started_at),
        incarnation=claim.incarnation,
        pid=_typed(notes.get("pid"), int),
        host=_typed(notes.get("host"), str),
    )


def is_locked(path: Path) -> bool | None:
    """Whether somebody holds this lock; None when that cannot be told.

    Asks for a shared lock, for a moment: two readers never take each other for the owner, and no right to write is
    needed. The owner's own lock is exclusive.
    """
    try:
        fd = no_links.open_file(path, READ)
    except FileNotFoundError:
        return False  # locks are made first and removed last
    except OSError as error:
        refuse_shortage(f"open {path}", error)
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


def list_names(place: Path, problems: list[str]) -> list[str]:
    """The names in a folder; none, and a problem, when it may not be listed; none when it is not there."""
    try:
        return no_links.names_in(place)
    except OSError as error:
        refuse_shortage(f"list {place}", error)
        problems.append(f"{place}: {error.strerror or error}")
        return []


def read_small(path: Path) -> tuple[bytes, float]:
    """The bytes of a file and when it was changed (wall seconds). Raises OSError, also for what is no file."""
    fd = no_links.open_file(path, READ)
    try:
        return read_up_to(fd, _MAX_BEAT_BYTES), os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def read_notes(path: Path) -> Json | None:
    """What a process says of itself in a small file; None where that is missing, cannot be read or is no object."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = strict_json.loads(read_small(path)[0])
        return value if isinstance(value, dict) else None
    return None


def has_history(name: str) -> bool:
    """Whether this is the name of a task file in `.retry` or in a claim folder."""
    return "~" in name and History.of(name) is not None


def moment(value: object) -> float | None:
    """Wall seconds of a time in a file, None when it is none."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            return parse_rfc3339(value)
    return None


def refuse_shortage(action: str, error: OSError) -> None:
    """Raise WorkerTrouble when an error says nothing about the file it happened on."""
    if error.errno in SHORTAGES:
        raise WorkerTrouble(action, error) from error


def _checked(fields: Json, name: str) -> Any:
    """A field of a heartbeat if it is what the format says, else None."""
    try:
        return heartbeat.FIELDS[name].check(fields.get(name))
    except FieldError:
        return None


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None
