"""Cancel, hold, release or edit a task that waits, and say how a task stands that cannot be changed so.

A task that waits is changed here and now, whether workers run or not, by the same renames for a worker and for a tool
(`in_hand`), so that it makes no difference who is faster. One that runs can only be ended by the process that runs it
(`operator_commands`).
Raises Busy when its file is open for writing, InvalidTask when it is none or would become none, OSError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from watcher.clock import SystemClock
from watcher.formats.task import Task
from watcher.store import in_hand
from watcher.store.dependencies import Results
from watcher.store.folders import WorkerFolders
from watcher.store.other_workers import Elsewhere
from watcher.store.refused_files import Endings
from watcher.store.result_writer import Settler
from watcher.store.task_places import task_files
from watcher.store.tool_claim_folder import ToolClaimFolder

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

#: How a task stands that is to be changed. `changing`: another tool or worker has it in hand just now.
TaskStanding = Literal["waits", "held", "runs", "runs_elsewhere", "changing", "ended", "unknown"]

_MAX_BYTES = 64 << 20
_LOOKS = 3


@dataclass(frozen=True, slots=True)
class _ToolSettings:
    max_worker_deaths: int = 3
    max_task_bytes: int = _MAX_BYTES
    provider: str = ""


def standing_of(places: WorkerFolders, task_id: str) -> TaskStanding:
    """How a task stands that did not wait a moment ago."""
    if places.results.has(f"{task_id}.json"):
        return "ended"
    for claim in task_files(places.inbox.path, task_id, ("claims",)):
        if claim.history.is_in_hand:
            return "changing"
        return "runs" if claim.place.owner == places.incarnation else "runs_elsewhere"
    return "unknown" if in_hand.find_waiting(places, task_id) is None else "waits"


def take_to_cancel(places: WorkerFolders, task_id: str, max_bytes: int) -> in_hand.InHand | TaskStanding:
    """Decide a cancel: a task that waits is in hand now, to end without running; else how it stands."""
    standing: TaskStanding = "unknown"
    for _ in range(_LOOKS):  # it may start, or go back for a retry, between two looks
        if places.results.has(f"{task_id}.json"):
            return "ended"
        taken = in_hand.take_in_hand(places, task_id, max_bytes)
        if taken is not None:
            return taken
        standing = standing_of(places, task_id)
        if standing not in ("waits", "unknown"):
            break
    return standing


def cancel(folders: Folders, worker: str, task_id: str, detail: str) -> TaskStanding | Literal["cancelled"]:
    """End a waiting or held task without running it (`cancelled`); else how it stands."""
    with ToolClaimFolder(folders, worker, "cancel") as places:
        taken = take_to_cancel(places, task_id, _MAX_BYTES)
        if not isinstance(taken, in_hand.InHand):
            return taken
        ending = Endings(places, _ToolSettings(), SystemClock()).cancelled(taken.task, taken.came_from.history, detail)
        _, error = Settler(places).settle([ending.with_handle(taken.handle, None)])
        if error is not None:
            in_hand.put_back(places, taken.handle)
            raise error
    return "cancelled"


def hold(folders: Folders, worker: str, task_id: str) -> bool:
    """Keep a waiting task from starting; False when it does not wait."""
    with ToolClaimFolder(folders, worker, "hold") as places:
        return in_hand.hold(places, task_id) is not None


def release(folders: Folders, worker: str, task_id: str) -> bool:
    """Let a held task start; False when no such task is held."""
    with ToolClaimFolder(folders, worker, "release") as places:
        return in_hand.release(places, task_id) is not None


def edit(folders: Folders, worker: str, task_id: str, changes: dict[str, Any]) -> bool:
    """Give fields of a waiting or held task other values (None takes one away); False when it does not wait."""
    with ToolClaimFolder(folders, worker, "edit") as places:
        elsewhere = Elsewhere(folders.tasks, folders.results, folders.triggers, _MAX_BYTES)

        def circle(task: Task) -> list[str] | None:
            return elsewhere.circle_with(task, Results(folders.results, worker))

        return in_hand.edit(places, task_id, changes, _MAX_BYTES, circle, may_repeat=False) is not None
