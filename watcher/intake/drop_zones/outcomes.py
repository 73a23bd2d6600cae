"""Find how the tasks of dropped files ended, from the folders, as any other client does.

A task has ended when its result is there, or a dead letter without one (its worker refused the file). A task of which
no trace is left, for several looks in a row, was taken away by somebody; one that was given to another worker is
followed there. Events may name results; the full look lists the folders and finds what events missed. Writes nothing.
Raises OSError when a folder that is there cannot be listed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from watcher.formats import strict_json
from watcher.store.folders import CLAIMS, HELD, RETRY
from watcher.store.results import LETTER_NAME, stored_status
from watcher.system import no_links
from watcher.system.files import Folder

#: Full looks in a row without a trace until a task counts as taken away.
LOOKS_WITHOUT_TRACE = 3
_MAX_STORED_BYTES = 1 << 28


class ResultFolders(Protocol):
    """The folders that are asked."""

    @property
    def tasks(self) -> Path: ...

    @property
    def results(self) -> Path: ...

    @property
    def dlq(self) -> Path: ...


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

    def __init__(self, places: ResultFolders) -> None:
        self._places = places
        self._misses: dict[str, int] = {}

    def named(self, worker: str, name: str) -> TaskEnding | None:
        """The ending that an event's file tells, if it is one."""
        return self._result(worker, name.removesuffix(".json"))

    def look(self, awaited: dict[str, str]) -> dict[str, TaskEnding]:
        """The endings of all tasks that have ended."""
        found: dict[str, TaskEnding] = {}
        for worker in set(awaited.values()):
            ids = {task_id for task_id, of in awaited.items() if of == worker}
            for name in _names(self._places.results / worker):
                if name[:-5] in ids and (ending := self._result(worker, name[:-5])) is not None:
                    found[name[:-5]] = ending
            ids.difference_update(found)
            if ids:
                found.update(self._refused(worker, ids))
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
                text = "its task left no result and no dead letter: somebody took it away"
                gone[task_id] = TaskEnding("gone", "task_gone", text)
        self._misses = {task_id: count for task_id, count in self._misses.items() if task_id in awaited}
        return gone, moved

    def whereabouts(self, worker: str, task_id: str) -> str | None:
        """The worker who has or had this task, None when there is no trace of it."""
        if self._has_trace(worker, task_id):
            return worker
        return self._elsewhere(task_id, worker)

    def _elsewhere(self, task_id: str, worker: str) -> str | None:
        for other in {*_names(self._places.tasks), *_names(self._places.results)} - {worker}:
            if not other.startswith(".") and self._has_trace(other, task_id):
                return other
        return None

    def _has_trace(self, worker: str, task_id: str) -> bool:
        # In the order in which a task moves, so that it is met somewhere.
        return (
            task_id in self._present(worker)
            or f"{task_id}.json" in _names(self._places.results / worker)
            or bool(self._refused(worker, {task_id}))
        )

    def _present(self, worker: str) -> set[str]:
        """The ids of all tasks that wait or run there."""
        inbox = self._places.tasks / worker
        found = {name[:-5] for name in _names(inbox) if name.endswith(".json")}
        # Claims, retries, claims again: a task that goes from one to the other meanwhile is met once at least.
        for place in (CLAIMS, RETRY, HELD, CLAIMS, ".reassign"):
            folder = inbox / place
            is_flat = place in (RETRY, HELD)
            lists = [folder] if is_flat else [folder / name for name in _names(folder) if "." not in name]
            for one in lists:
                found.update(_id_of(name) for name in _names(one))
        found.update(name[:-5] for name in _names(inbox) if name.endswith(".json"))
        return found

    def _result(self, worker: str, task_id: str) -> TaskEnding | None:
        path = self._places.results / worker / f"{task_id}.json"
        status = stored_status(path)
        if status is None:
            return None
        value = {} if status == "completed" else _object(path)
        return TaskEnding(status, value.get("reason"), value.get("detail"), str(path))

    def _refused(self, worker: str, ids: Iterable[str]) -> dict[str, TaskEnding]:
        """Dead letters that hold no result; one that does comes a moment before that result is there."""
        found: dict[str, TaskEnding] = {}
        for name in sorted(_names(self._places.dlq / worker)):
            matched = LETTER_NAME.fullmatch(name)
            if matched is None or matched[1] not in ids:
                continue
            path = self._places.dlq / worker / name
            value = _object(path)
            if value.get("dlq_reason") is not None and value.get("dlq_result") is None:
                found[matched[1]] = TaskEnding("refused", value["dlq_reason"], value.get("dlq_detail"), str(path))
        return found


def _id_of(name: str) -> str:
    return name.partition("~")[0].removesuffix(".json")


def _names(folder: Path) -> list[str]:
    return no_links.names_in(folder)


def _object(path: Path) -> dict[str, Any]:
    """A stored record; nothing when it is gone or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        folder = Folder(path.parent, create=False)
        try:
            value = strict_json.loads(folder.read(path.name, _MAX_STORED_BYTES))
        finally:
            folder.close()
        if isinstance(value, dict):
            return value
    return {}
