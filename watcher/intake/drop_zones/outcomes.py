"""Find how the tasks of dropped files ended, from the folders, as any other client does.

A task has ended when its result is there, or a dead letter without one (its worker refused the file). A task of which
no trace is left, for several looks in a row, was taken away by somebody; one that was given to another worker is
followed there. Events may name results; the full look lists the folders and finds what events missed. Writes nothing.
Raises OSError when a folder that is there cannot be listed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from watcher.store.results import Ended, ResultFolders, ended_of, stored_status
from watcher.store.task_places import GONE_BACK, PLACE_KINDS, ids_in
from watcher.system import no_links

#: Full looks in a row without a trace until a task counts as taken away.
LOOKS_WITHOUT_TRACE = 3


class TaskFolders(ResultFolders, Protocol):
    """The folders that are asked."""

    @property
    def tasks(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class TaskEnding:
    """How a task ended. `status` is that of its result, `refused` for a dead letter alone, `gone` for no trace."""

    status: str
    reason: str | None = None
    detail: str | None = None
    path: str | None = None

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"


class TaskEndings:
    """Follows tasks by id. `open` is theirs: id -> worker."""

    def __init__(self, places: TaskFolders) -> None:
        self._places = places
        self._misses: dict[str, int] = {}

    def named(self, worker: str, name: str) -> TaskEnding | None:
        """The ending that an event's file tells, if it is one."""
        path = self._places.results / worker / f"{name.removesuffix('.json')}.json"
        status = stored_status(path)
        return None if status is None else _told(Ended(path.stem, worker, status, path))

    def look(self, awaited: dict[str, str]) -> dict[str, TaskEnding]:
        """The endings of all tasks that have ended."""
        found: dict[str, TaskEnding] = {}
        for worker in set(awaited.values()):
            ids = {task_id for task_id, of in awaited.items() if of == worker}
            found.update({ended.task_id: _told(ended) for ended in ended_of(self._places, worker, ids)})
        return found

    def lost(self, awaited: dict[str, str]) -> tuple[dict[str, TaskEnding], dict[str, str]]:
        """Of tasks that have not ended: how those ended that were removed, and the new workers of those that were
        given to another worker."""
        gone: dict[str, TaskEnding] = {}
        moved: dict[str, str] = {}
        there = {worker: self._present(worker) for worker in set(awaited.values())}
        for task_id, worker in awaited.items():
            if task_id in there[worker]:
                self._misses.pop(task_id, None)
                continue
            other = self._elsewhere(task_id, worker)
            if other is not None:
                moved[task_id] = other
                continue
            misses = self._misses[task_id] = self._misses.get(task_id, 0) + 1
            if misses >= LOOKS_WITHOUT_TRACE:
                del self._misses[task_id]
                text = "its task left no result and no dead letter: somebody removed it"
                gone[task_id] = TaskEnding("gone", "task_gone", text)
        self._misses = {task_id: count for task_id, count in self._misses.items() if task_id in awaited}
        return gone, moved

    def whereabouts(self, worker: str, task_id: str) -> str | None:
        """The worker who has or had this task, None when there is no trace of it."""
        if self._has_trace(worker, task_id):
            return worker
        return self._elsewhere(task_id, worker)

    def _elsewhere(self, task_id: str, worker: str) -> str | None:
        for other in {*no_links.names_in(self._places.tasks), *no_links.names_in(self._places.results)} - {worker}:
            if not other.startswith(".") and self._has_trace(other, task_id):
                return other
        return None

    def _has_trace(self, worker: str, task_id: str) -> bool:
        # In the order in which a task moves, so that it is met somewhere. A result without a status is a trace too.
        return (
            task_id in self._present(worker)
            or f"{task_id}.json" in no_links.names_in(self._places.results / worker)
            or any(ended_of(self._places, worker, [task_id]))
        )

    def _present(self, worker: str) -> set[str]:
        """The ids of all tasks that wait or run there."""
        # What goes from one place to another meanwhile is met once at least.
        return ids_in(self._places.tasks / worker, (*PLACE_KINDS, *GONE_BACK, "inbox"))


def _told(ended: Ended) -> TaskEnding:
    """The ending with its reason; without one when its file is gone or cannot be read any more."""
    fields: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        fields = {} if ended.is_completed else ended.read()
    prefix = "dlq_" if ended.status == "refused" else ""
    return TaskEnding(ended.status, fields.get(f"{prefix}reason"), fields.get(f"{prefix}detail"), str(ended.path))
