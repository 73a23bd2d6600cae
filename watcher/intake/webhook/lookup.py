"""Where a task is and what became of it, by its id: read from the folders at each question, nothing is kept.

A state is what `tasks` says of a task on its way (`waiting`, `scheduled`, `blocked`, `held`, `retrying`,
`running`), the status of its result (`completed`, `failed`, `timeout`, `cancelled`), or `refused` (a dead letter and no
result). Raises OSError as the system gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.store.results import read_letter, read_result, read_status, read_stored
from watcher.store.tasks import on_their_way
from watcher.system import no_links

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

#: What a caller need not tell apart from waiting: the task goes on without anybody's help, or is refused soon.
_STATES = {"orphaned": "waiting", "changing": "waiting", "unreadable": "waiting"}
_ENDED = frozenset({"completed", "failed", "timeout", "cancelled", "refused"})


@dataclass(frozen=True, slots=True)
class Found:
    """One task. `path` is the file that tells the state, `attempts` how many were started as far as its name says."""

    worker: str
    task_id: str
    state: str
    path: Path
    attempts: int = 0

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def has_result(self) -> bool:
        return self.has_ended and self.state != "refused"

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "task_id": self.task_id,
            "worker": self.worker,
            "state": self.state,
            "has_ended": self.has_ended,
        }
        return out if self.has_ended else {**out, "attempts": self.attempts}


def find(folders: Folders, worker: str, task_id: str) -> Found | None:
    """The task of this id at this worker. `task_id` must be one: it becomes part of a path."""
    # Twice: one that goes back from a claim to the inbox or to .retry may pass behind the first look.
    return _result(folders, worker, task_id) or _look(folders, worker, task_id) or _look(folders, worker, task_id)


def find_all(folders: Folders, workers: Iterable[str], task_id: str) -> list[Found]:
    """The tasks of this id at all these workers."""
    return [found for worker in workers if (found := find(folders, worker, task_id)) is not None]


def stored_sha256(found: Found) -> str | None:
    """The SHA-256 of the task's bytes as they were submitted; None when nothing tells it (any more)."""
    try:
        if not found.has_ended:
            return hashlib.sha256(read_stored(found.path)).hexdigest()
        if found.state == "refused":
            value = read_letter(found.path).get("dlq_task_sha256")
        else:
            value = read_result(found.path).get("task_sha256")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, str) else None


def _look(folders: Folders, worker: str, task_id: str) -> Found | None:
    for seen in on_their_way(folders, worker, only=task_id):
        state = _STATES.get(seen.state, seen.state)
        return Found(worker, task_id, state, seen.path, seen.attempts)
    return _result(folders, worker, task_id) or _letter(folders, worker, task_id)


def _result(folders: Folders, worker: str, task_id: str) -> Found | None:
    path = folders.results / worker / f"{task_id}.json"
    try:
        return Found(worker, task_id, read_status(path) or "failed", path)
    except FileNotFoundError:
        return None


def _letter(folders: Folders, worker: str, task_id: str) -> Found | None:
    path = folders.dlq / worker / f"{task_id}.json"
    return Found(worker, task_id, "refused", path) if no_links.is_there(path) else None
