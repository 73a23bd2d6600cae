"""Where a task is and what became of it, by its id: read from the folders at each question, nothing is kept.

A state is a place: `waiting` (in the inbox, or in the claim of a dead process), `retrying`, `running`, the status of
its result (`completed`, `failed`, `timeout`, `cancelled`), or `refused` (a dead letter and no result). Tasks move while
one looks, always from the inbox towards the result, and so does the look. Raises OSError as the system gives it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.atomicfile import read_up_to
from watcher.formats import strictjson
from watcher.formats.result import HEAD_BYTES, parse_result, status_in_head
from watcher.formats.task import WORKER_PATTERN
from watcher.presence import READ, list_names, read_claims
from watcher.spool.places import RETRY, History

if TYPE_CHECKING:
    from watcher_config import Folders

_MAX_STORED_BYTES = 1 << 28
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


def worker_names(tasks: Path) -> list[str]:
    """The workers that have an inbox, sorted."""
    try:
        with os.scandir(tasks) as entries:
            return sorted(e.name for e in entries if re.fullmatch(WORKER_PATTERN, e.name) and e.is_dir())
    except FileNotFoundError:
        return []


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
        raw = read_file(found.path)
        if not found.has_ended:
            return hashlib.sha256(raw).hexdigest()
        fields = strictjson.loads(raw) if found.state == "refused" else parse_result(raw)
    except (OSError, ValueError):
        return None
    value = fields.get("dlq_task_sha256" if found.state == "refused" else "task_sha256")
    return value if isinstance(value, str) else None


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; never follows a link, never blocks on a FIFO. Raises OSError."""
    fd = os.open(path, READ)
    try:
        return read_up_to(fd, _MAX_STORED_BYTES)
    finally:
        os.close(fd)


def _look(folders: Folders, worker: str, task_id: str) -> Found | None:
    inbox = folders.tasks / worker
    new = inbox / f"{task_id}.json"
    if _is_there(new):
        return Found(worker, task_id, "waiting", new)
    return (
        _named(inbox / RETRY, list_names(inbox / RETRY, []), worker, task_id, "retrying")
        or _claimed(inbox, worker, task_id)
        or _result(folders, worker, task_id)
        or _letter(folders, worker, task_id)
    )


def _claimed(inbox: Path, worker: str, task_id: str) -> Found | None:
    for claim in read_claims(inbox, []):
        state = "waiting" if claim.lives is False else "running"
        found = _named(claim.place, claim.names, worker, task_id, state)
        if found is not None:
            return found
    return None


def _named(place: Path, names: list[str], worker: str, task_id: str, state: str) -> Found | None:
    for name in names:
        if name.startswith(f"{task_id}~"):
            history = History.of(name)
            if history is not None and history.stem == task_id:
                return Found(worker, task_id, state, place / name, history.attempts)
    return None


def _result(folders: Folders, worker: str, task_id: str) -> Found | None:
    path = folders.results / worker / f"{task_id}.json"
    try:
        fd = os.open(path, READ)
    except FileNotFoundError:
        return None
    try:
        status = status_in_head(os.read(fd, HEAD_BYTES))
    finally:
        os.close(fd)
    return Found(worker, task_id, status or "failed", path)


def _letter(folders: Folders, worker: str, task_id: str) -> Found | None:
    path = folders.dlq / worker / f"{task_id}.json"
    return Found(worker, task_id, "refused", path) if _is_there(path) else None


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
