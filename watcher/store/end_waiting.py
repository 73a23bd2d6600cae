"""Cancel, hold, release or edit a task from outside a worker, whether workers run or not.

A task that waits is changed here and now, by the same renames as a worker's, so that it makes no difference who is
faster. One that runs can only be ended by the process that runs it (`watcher.store.operator_commands`).
Raises Busy when its file is open for writing, InvalidTask when it is none or would become none, OSError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from watcher.clock import SystemClock
from watcher.formats.task import Task
from watcher.store import changes as inhand
from watcher.store.dependencies import Results
from watcher.store.other_workers import Elsewhere
from watcher.store.refused_files import Endings
from watcher.store.result_writer import Settler
from watcher.store.tool_claim_folder import ToolClaimFolder

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _ToolSettings:
    max_worker_deaths: int = 3
    max_task_bytes: int = _MAX_BYTES
    provider: str = ""


def cancel_waiting(folders: Folders, worker: str, task_id: str, detail: str) -> bool:
    """End a waiting or held task without running it; False when it does not wait (any more)."""
    with ToolClaimFolder(folders, worker, "cancel") as places:
        taken = inhand.take_in_hand(places, task_id, _MAX_BYTES)
        if taken is None:
            return False
        ending = Endings(places, _ToolSettings(), SystemClock()).cancelled(taken.task, taken.came_from.history, detail)
        _, error = Settler(places).settle([ending.with_handle(taken.handle, None)])
        if error is not None:
            inhand.put_back(places, taken.handle)
            raise error
    return True


def hold(folders: Folders, worker: str, task_id: str) -> bool:
    """Keep a waiting task from starting; False when it does not wait."""
    with ToolClaimFolder(folders, worker, "hold") as places:
        return inhand.hold(places, task_id) is not None


def release(folders: Folders, worker: str, task_id: str) -> bool:
    """Let a held task start; False when no such task is held."""
    with ToolClaimFolder(folders, worker, "release") as places:
        return inhand.release(places, task_id) is not None


def edit(folders: Folders, worker: str, task_id: str, changes: dict[str, Any]) -> bool:
    """Give fields of a waiting or held task other values (None takes one away); False when it does not wait."""
    with ToolClaimFolder(folders, worker, "edit") as places:
        elsewhere = Elsewhere(folders.tasks, folders.results, folders.triggers, _MAX_BYTES)

        def circle(task: Task) -> list[str] | None:
            return elsewhere.circle_with(task, Results(folders.results, worker))

        return inhand.edit(places, task_id, changes, _MAX_BYTES, circle, may_repeat=False) is not None
