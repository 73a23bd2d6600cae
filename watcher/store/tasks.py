"""Find where tasks are, from the folders alone: one task by its id, or all that wait or run.

The one finder of commands and of the HTTP endpoint. A look is a moment: a task that moves meanwhile may be seen twice
or, for that once, not at all. Reads only and never fails over one file: one that is no task is `unreadable`, one that
no worker ever takes `ignored`, and what lies among results or dead letters and is none `foreign`, with the reason.
Raises NoSuchTask or AmbiguousTask for an id that means none or several, OSError when a folder cannot be listed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from watcher.errors import InvalidTask, WatcherError
from watcher.formats import dead_letter, result
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN, Task, parse_task, why_no_task_name
from watcher.store import workers as presence
from watcher.store.dependencies import Results, look
from watcher.store.folders import History
from watcher.store.layout import ARCHIVE
from watcher.store.task_places import TaskFile, task_files, workers_in
from watcher.system import no_links
from watcher.system.files import read_regular, read_up_to

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

State = Literal[
    "running", "waiting", "scheduled", "blocked", "retrying", "held", "changing", "orphaned", "unreadable",
    "ignored", "ended", "dead_letter", "foreign", "archived",
]  # fmt: skip
#: States of a task that is on its way, as they are listed.
ON_ITS_WAY: tuple[State, ...] = (
    "running", "orphaned", "changing", "retrying", "waiting", "scheduled", "blocked", "held", "unreadable", "ignored",
)  # fmt: skip
_MAX_BYTES = 64 << 20
_WORKER = re.compile(WORKER_PATTERN)
#: A task's id, or the name of a further dead letter of it.
_ID = re.compile(rf"{ID_PATTERN}(?:~\d+)?")
_MAX_STORED_BYTES = 1 << 28
#: A hidden file younger than this may be one that its writer is about to rename.
_HIDDEN_SECONDS = 60.0


class NoSuchTask(WatcherError):
    """No task of this id is anywhere. Reaction: look at the id and at WATCHER_ROOT."""


class AmbiguousTask(WatcherError):
    """Several workers have a task of this id. Reaction: say worker/id."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One file of one task. `due` is wall seconds; `missing` are dependencies without a completed result;
    `worker_locks` is whose claim it is. `task` is None where the file was not read or is none."""

    worker: str
    task_id: str
    state: State
    path: Path
    attempts: int = 0
    deaths: int = 0
    due: float | None = None
    arrived_at: float | None = None
    incarnation: str | None = None
    instance: str | None = None
    missing: tuple[str, ...] = ()
    detail: str | None = None
    task: Task | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.worker}/{self.task_id}"

    def as_json(self) -> dict[str, Any]:
        task = self.task
        return {
            "worker": self.worker,
            "task_id": self.task_id,
            "state": self.state,
            "path": str(self.path),
            "attempts": self.attempts,
            "worker_deaths": self.deaths,
            "due": self.due,
            "arrived_at": self.arrived_at,
            "age_seconds": None if self.arrived_at is None else round(max(0.0, time.time() - self.arrived_at), 3),
            "incarnation": self.incarnation,
            "instance": self.instance,
            "missing": list(self.missing),
            "detail": self.detail,
            "priority": None if task is None else task.priority,
            "provider": None if task is None else task.provider,
            "agent_id": None if task is None else task.agent_id,
            "batch_id": None if task is None else task.batch_id,
            "description": None if task is None else task.description,
        }


def resolve(folders: Folders, name: str) -> tuple[str, str]:
    """What `id` or `worker/id` means: the worker and the id of a task that is somewhere."""
    # Twice: one that goes back for a retry between two listings was in neither.
    everything = find(folders, name) or find(folders, name)
    found = [sighting for sighting in everything if sighting.state != "foreign"]
    if not found:
        why = "".join(f"; {one.path}: {one.detail}" for one in everything)
        raise NoSuchTask(
            f"no task {name!r} in {folders.root}: not waiting, running, ended or among the dead letters{why}"
        )
    names = sorted({sighting.name for sighting in found})
    if len(names) > 1:
        raise AmbiguousTask(f"{name!r} may be {' or '.join(names)}; say which")
    return found[0].worker, found[0].task_id


def find(folders: Folders, name: str) -> list[Sighting]:
    """Every place where a task of this name is, those on their way first."""
    worker, _, task_id = name.rpartition("/")
    out: list[Sighting] = []
    if _ID.fullmatch(task_id) is None or (worker and _WORKER.fullmatch(worker) is None):
        return out
    for one in [worker] if worker else workers(folders):
        out += list(on_their_way(folders, one, only=task_id))
        places: tuple[tuple[Path, Literal["ended", "dead_letter"]], ...]
        places = ((folders.results / one, "ended"), (folders.dlq / one, "dead_letter"))
        for place, state in places:
            for found in _names(place):
                stem = found.removesuffix(".json")
                if found.endswith(".json") and (stem == task_id or (state == "dead_letter" and _is_of(stem, task_id))):
                    why = why_foreign(place / found, state)
                    out.append(Sighting(one, task_id, state if why is None else "foreign", place / found, detail=why))
    return out


def archived(folders: Folders, name: str) -> list[Sighting]:
    """Results and dead letters of earlier runs of a task; what a rerun or a redrive has moved aside."""
    worker, _, task_id = name.rpartition("/")
    return [
        Sighting(one, task_id, "archived", place / found)
        for one in ([worker] if worker else workers(folders))
        for place in (folders.results / one / ARCHIVE, folders.dlq / one / ARCHIVE)
        for found in sorted(_names(place))
        if found.endswith(".json") and found.removesuffix(".json").partition("~")[0] == task_id
    ]


def workers(folders: Folders) -> list[str]:
    """Every worker that has a folder of tasks, results or dead letters."""
    names: set[str] = set()
    for parent in (folders.tasks, folders.results, folders.dlq):
        names.update(workers_in(parent, _names))
    return sorted(names)


def on_their_way(folders: Folders, worker: str, only: str | None = None) -> Iterator[Sighting]:
    """The tasks of one worker that wait, are held or run; with `only`, those of this id."""
    inbox = folders.tasks / worker
    results = Results(folders.results, worker)
    for file in task_files(inbox, only, ("inbox", "retry", "held", "reassign")):
        history = file.history
        task, detail, arrived = _read(file.path, history.stem, worker)
        state, due, missing = _state(task, file, results)
        yield Sighting(
            worker, history.stem, state, file.path, history.attempts, history.deaths, due, arrived, missing=missing,
            detail=detail, task=task,
        )  # fmt: skip
    yield from _claimed(inbox, worker, only)
    if only is None:
        yield from _ignored(inbox, worker)


def why_foreign(path: Path, state: Literal["ended", "dead_letter"]) -> str | None:
    """Why this file is no result, or no dead letter, of a worker; None when it is one, or is gone."""
    kind = "result" if state == "ended" else "dead letter"
    try:
        raw = read_regular(path, _MAX_STORED_BYTES)
        if state == "ended":
            result.parse_result(raw)
        else:
            dead_letter.parse(raw)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"not a {kind} of ours that can be read: {error.strerror or error}"
    except (ValueError, RecursionError) as error:
        return f"not a {kind} of ours: {error if raw else 'it is empty'}; move it away"
    return None


def _ignored(inbox: Path, worker: str) -> Iterator[Sighting]:
    """What looks like a task to a person and to no worker."""
    for name in sorted(_names(inbox)):
        why = why_no_task_name(name)
        if why is None:
            continue
        with contextlib.suppress(OSError):
            info = no_links.look_at(inbox / name)
            if name.startswith(".") and time.time() - info.st_mtime < _HIDDEN_SECONDS:
                continue
            state: State = "unreadable" if name.endswith(".json") and name[0] != "." else "ignored"
            if stat.S_ISDIR(info.st_mode):
                why = "a folder; a task is a file in the worker's own folder"
            yield Sighting(worker, name, state, inbox / name, arrived_at=info.st_mtime, detail=why)


def _claimed(inbox: Path, worker: str, only: str | None) -> Iterator[Sighting]:
    for claims in presence.read_claims(inbox, []):
        for name in claims.names:
            history = History.of(name)
            if history is None or only not in (None, history.stem):
                continue
            task, detail, arrived = _read(claims.place / name, history.stem, worker)
            if arrived is None:
                continue  # it ended meanwhile
            state: State = "changing" if history.is_in_hand else "running"
            yield Sighting(
                worker, history.stem, state if claims.lives is not False else "orphaned", claims.place / name,
                history.attempts, history.deaths, None, arrived, claims.incarnation, detail=detail, task=task,
            )  # fmt: skip


def _state(task: Task | None, file: TaskFile, results: Results) -> tuple[State, float | None, tuple[str, ...]]:
    history, kind = file.history, file.place.kind
    if kind == "held":
        return "held", None, ()
    if kind == "reassign":
        return "changing", None, ()
    if task is None:
        return "unreadable", None, ()
    now = time.time()
    if kind == "retry" and (history.attempts or history.due > now):
        return "retrying", history.due, ()
    if task.dependencies and not history.attempts:
        missing, broken = look(results, task.dependencies)
        if missing and broken is None:
            return "blocked", None, tuple(sorted(missing))
    if task.not_before is not None and task.not_before > now:
        return "scheduled", task.not_before, ()
    return "waiting", None, ()


def _read(path: Path, stem: str, worker: str) -> tuple[Task | None, str | None, float | None]:
    """The task in a file, or what is wrong with it, and when it came (None: it is gone)."""
    try:
        fd = no_links.open_file(path, presence.READ)
    except FileNotFoundError:
        return None, "gone", None
    except OSError as error:
        return None, error.strerror, 0.0
    try:
        arrived = os.fstat(fd).st_mtime
        return parse_task(read_up_to(fd, _MAX_BYTES), stem, worker), None, arrived
    except InvalidTask as error:
        return None, str(error), arrived
    except OSError as error:
        return None, error.strerror, 0.0
    finally:
        os.close(fd)


def _is_of(stem: str, task_id: str) -> bool:
    head, tilde, number = stem.rpartition("~")
    return bool(tilde) and head == task_id and number.isdecimal()


def _names(place: Path) -> list[str]:
    try:
        return no_links.names_in(place)
    except (FileNotFoundError, NotADirectoryError):
        return []
