"""End a file that is never run: refused, dropped as a copy, broken by a dependency, or a danger to workers.

Each ending is a Settlement like any other, so that refusals are as durable and as crash-proof as results.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, replace
from typing import Any, Protocol

from watcher.clock import Clock
from watcher.errors import InvalidTask
from watcher.formats import strict_json
from watcher.formats.dead_letter import DeadLetter
from watcher.formats.result import Result, Status, parse_result
from watcher.formats.task import TASK_FILE_NAME, Task, marks_of, parse_task
from watcher.store.folders import History, WorkerFolders, bad_name_handle, original_name
from watcher.store.layout import ORIGINALS
from watcher.store.queue_interface import Settlement
from watcher.store.task_reader import TaskBytes, read_task_file
from watcher.system.files import NO_FILE, Folder, move
from watcher.telemetry.events import Event, TaskDropped, TaskRefused, TaskSettled

_MAX_STORED_BYTES = 1 << 28
#: So much of a file that was refused, perhaps for its size, is searched for the batch that it belongs to.
_MAX_MARKED_BYTES = 8 << 20
#: Why a file ends over which this program failed.
NOT_UNDERSTOOD = "not_understood"


class RefusalSettings(Protocol):
    """The settings that decide here; a command that ends a task has no worker's config."""

    @property
    def max_worker_deaths(self) -> int: ...

    @property
    def max_task_bytes(self) -> int: ...

    @property
    def provider(self) -> str: ...


@dataclass(slots=True)
class RefusedFile:
    """What to store for a file that will not run, before it is claimed."""

    task_id: str
    result: bytes | None
    dead_letter: bytes | None
    event: Event

    def with_handle(self, handle: str, lane: str | None) -> Settlement:
        return Settlement(self.task_id, handle, lane, self.result, self.dead_letter, self.event)


class Endings:
    """Decides and writes the endings of files that are not run."""

    def __init__(self, places: WorkerFolders, config: RefusalSettings, clock: Clock) -> None:
        self._places = places
        self._config = config
        self._clock = clock

    def without_running(self, task: Task, history: History) -> RefusedFile | None:
        """Why this readable task must not run, as what to store; None when it may run."""
        if self._places.results.has(f"{task.task_id}.json"):
            return self._same_id(task)
        if history.deaths:
            unfinished = self._unfinished(task)
            if unfinished is not None:
                return unfinished
        if history.deaths >= self._config.max_worker_deaths:
            text = f"{history.deaths} workers died while they ran it"
            return self._failed(task, history, "worker_died", text)
        return None

    def cancelled(self, task: Task, history: History, detail: str) -> RefusedFile:
        """A waiting task that somebody does not want any more: a result, and nothing to redrive."""
        result = self._unrun(task, history, "cancelled", "cancelled", detail)
        return RefusedFile(task.task_id, result.dump(), None, _settled(result, dead_lettered=False))

    def take(self, folder: Folder, name: str) -> str | None:
        """Claim a file that will not run, whatever it is; None when it is gone. Raises OSError."""
        history = History.of(name)
        handle: str | None
        if history is not None and (folder is self._places.retry or TASK_FILE_NAME.fullmatch(name)):
            handle = replace(history, attempts=history.attempts + 1).claimed()
        else:
            handle = bad_name_handle(folder, name)
        if handle is None or not move(folder, name, self._places.mine, handle):
            return None
        return handle

    def refused(self, handle: str, name: str, why: InvalidTask) -> Settlement | None:
        """How a claimed file that cannot run ends. None when it has become a good task meanwhile."""
        history = History.of(handle) if "~" in handle else None
        if history is None:
            return self._not_a_task(handle, handle.removesuffix("!.json"), f"{name!a}: {why.detail}", why.reason)
        task = self._read_again(handle, history.stem)
        if task is None:
            return self._not_a_task(handle, history.stem, why.detail, why.reason)
        if not why.reason.startswith("dependency_") and why.reason != NOT_UNDERSTOOD:
            return None
        past = replace(history, attempts=history.attempts - 1)
        return self._failed(task, past, why.reason, why.detail).with_handle(handle, None)

    def unread(self, handle: str, why: InvalidTask) -> Settlement:
        """How a claimed file ends that cannot even be looked at."""
        return self._not_a_task(handle, handle.partition("~")[0].removesuffix("!.json"), why.detail, why.reason)

    def _read_again(self, handle: str, stem: str) -> Task | None:
        found = read_task_file(self._places.mine, handle, self._config.max_task_bytes)
        if not isinstance(found, TaskBytes):
            return None
        try:
            return parse_task(found.raw, stem, self._places.worker)
        except InvalidTask:
            return None

    def _not_a_task(self, handle: str, task_id: str, detail: str, reason: str) -> Settlement:
        info = _lstat(self._places.mine, handle)
        letter = DeadLetter(
            task_id=task_id,
            worker=self._places.worker,
            reason=reason,
            at=self._clock.wall(),
            retry_count=0,
            detail=detail + _kind_note(info),
            original=f"{ORIGINALS}/{original_name(self._places.mine, handle)}",
            submitted=self._marks(handle),
        )
        event = TaskRefused(task_id, reason, detail)
        return Settlement(task_id, handle, None, None, letter.dump(), event, keep_original=True)

    def _marks(self, handle: str) -> dict[str, Any]:
        """To which batch and agent a file belongs that is no task, if that can be read at all."""
        with contextlib.suppress(OSError):
            return marks_of(self._places.mine.read(handle, max(self._config.max_task_bytes, _MAX_MARKED_BYTES)))
        return {}

    def _same_id(self, task: Task) -> RefusedFile:
        """A result of this id is there: the same task again is dropped, another one is a dead letter."""
        stored: str | None = None
        try:
            raw = self._places.results.read(f"{task.task_id}.json", _MAX_STORED_BYTES)
            stored = parse_result(raw).get("task_sha256")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in NO_FILE:
                raise
        if stored == task.sha256:
            event = TaskDropped(task.task_id, "its result is there already; rerun it on purpose with a new id")
            return RefusedFile(task.task_id, None, None, event)
        detail = "another task with this id has its result already; give this one a new id"
        letter = self._letter(task, "duplicate_id", detail, 0, None)
        return RefusedFile(task.task_id, None, letter.dump(), TaskRefused(task.task_id, "duplicate_id", detail))

    def _unfinished(self, task: Task) -> RefusedFile | None:
        """A worker died between the dead letter and the result: publish the result that the letter holds."""
        try:
            letter = strict_json.loads(self._places.dlq.read(f"{task.task_id}.json", _MAX_STORED_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, strict_json.NotStrictJson) as error:
            if isinstance(error, OSError) and error.errno not in NO_FILE:
                raise  # it may hold the result of this very task, which must not run again
            return None
        if not isinstance(letter, dict) or letter.get("dlq_task_sha256") != task.sha256:
            return None
        result = letter.get("dlq_result")
        if not isinstance(result, dict):
            return None
        event = TaskSettled(
            task_id=task.task_id,
            status=str(result.get("status")),
            reason=result.get("reason"),
            provider=str(result.get("provider")),
            attempts=int(result.get("attempts", 0)),
            retry_count=int(result.get("retry_count", 0)),
            duration_seconds=float(result.get("duration_seconds", 0.0)),
            dead_lettered=True,
            exit_code=result.get("exit_code"),
            agent_id=task.agent_id,
        )
        return RefusedFile(task.task_id, strict_json.dumps(result | {"submitted": task.submitted}), None, event)

    def _failed(self, task: Task, history: History, reason: str, detail: str) -> RefusedFile:
        """A task that was accepted and ends without (another) run: a result and a dead letter."""
        result = self._unrun(task, history, "failed", reason, detail)
        letter = self._letter(task, reason, detail, result.retry_count, result)
        return RefusedFile(task.task_id, result.dump(), letter.dump(), _settled(result, dead_lettered=True))

    def _unrun(self, task: Task, history: History, status: Status, reason: str, detail: str) -> Result:
        return Result(
            task_id=task.task_id,
            worker=self._places.worker,
            status=status,
            exit_code=None,
            stdout="",
            stderr="",
            duration_seconds=0.0,
            finished_at=self._clock.wall(),
            started_at=None,
            retry_count=max(0, history.attempts - 1),
            attempts=history.attempts + history.deaths,
            task_sha256=task.sha256,
            reason=reason,
            detail=detail,
            provider=task.provider or self._config.provider or None,
            agent_id=task.agent_id,
            batch_id=task.batch_id,
            metadata=task.metadata,
            dependencies=task.dependencies,
            incarnation=self._places.incarnation,
            submitted=task.submitted,
        )

    def _letter(self, task: Task, reason: str, detail: str, retries: int, result: Result | None) -> DeadLetter:
        return DeadLetter(
            task_id=task.task_id,
            worker=self._places.worker,
            reason=reason,
            at=self._clock.wall(),
            retry_count=retries,
            detail=detail,
            submitted=task.submitted,
            result=None if result is None else result.for_letter(),
            task_sha256=task.sha256,
        )


def _settled(result: Result, *, dead_lettered: bool) -> TaskSettled:
    return TaskSettled(
        result.task_id, result.status, result.reason, result.provider or "", result.attempts, result.retry_count, 0.0,
        dead_lettered, agent_id=result.agent_id,
    )  # fmt: skip


def _lstat(folder: Folder, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
    except OSError:
        return stat.S_IFREG


def _kind_note(mode: int) -> str:
    """Says what the thing is when it is no regular file; a link's target is never quoted."""
    kinds = ((stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISDIR, "folder"),
             (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))  # fmt: skip
    for test, word in kinds:
        if test(mode):
            return f" (it is a {word})"
    return ""
