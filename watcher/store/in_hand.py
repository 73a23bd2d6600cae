"""Take a waiting task in hand, alone, to hold, release, rewrite or end it: two versions of it never exist.

Holding is one rename into `.held`, from where no worker claims. Everything that changes a task first takes it in hand:
one rename into a claim folder, as a worker claims, so that exactly one of all workers and tools has it. Its name there
says where it came from. A crash leaves it in hand, changed or unchanged but whole, and whoever rescues that claim
folder puts it back to where it was, with no death counted, because it did not run.

Workers use it for commands, tools through a ToolClaimFolder. Raises InvalidTask when what is there is no task or would
become none, Busy when somebody has the file open for writing, OSError as the system gives it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watcher.errors import InvalidTask, WatcherError
from watcher.formats import strict_json
from watcher.formats.task import Task, parse_task, refuse_to_unset, task_from_fields
from watcher.policy.dependency_circles import words_of
from watcher.store.folders import History, WorkerFolders
from watcher.store.task_places import WAITING, task_files
from watcher.store.task_reader import TaskBytes, read_task_file
from watcher.system.files import Folder, fsync_file, move, move_new

#: The circle of waiting tasks that a task would close, or None.
Circle = Callable[[Task], list[str] | None]

#: A new version of a task, beside the old one; no `~`, so that a rescuer removes it.
_NEW_VERSION = "edited.new"
_LOOKS = 3


class StillWritten(WatcherError):
    """Somebody has the task's file open for writing. Reaction: try again soon."""


@dataclass(frozen=True, slots=True)
class WaitingFile:
    """Where a task waits: the folder, the file's name there, and what the name tells."""

    folder: Folder
    name: str
    history: History
    is_held: bool


@dataclass(frozen=True, slots=True)
class InHand:
    """A task that is ours alone for a moment: `handle` is its name in the claim folder."""

    handle: str
    came_from: WaitingFile
    task: Task


def find_waiting(places: WorkerFolders, task_id: str) -> WaitingFile | None:
    """Where the task waits now; None when it runs, has ended or never was."""
    folders = {"inbox": places.inbox, "retry": places.retry, "held": places.held}
    for found in task_files(places.inbox.path, task_id, WAITING):
        kind = found.place.kind
        return WaitingFile(folders[kind], found.name, found.history, is_held=kind == "held")
    return None


def hold(places: WorkerFolders, task_id: str) -> WaitingFile | None:
    """Put a waiting task where nobody claims it; returns where it was, None when it does not wait.

    Raises InvalidTask (`held_already`) when another task of this id is held.
    """
    for _ in range(_LOOKS):
        there = find_waiting(places, task_id)
        if there is None or there.is_held:
            return there
        if _move_new_if_there(there.folder, there.name, places.held, there.name):
            _sync(places.held, there.folder)
            return there
        if places.held.has(there.name):
            raise InvalidTask("held_already", f"another task {task_id!r} is held; release that one first")
    return None


def release(places: WorkerFolders, task_id: str) -> str | None:
    """Let a held task start; returns its new name in the inbox or in `.retry`, None when no such task is held."""
    for name in places.held.names():
        history = History.of(name)
        if history is None or history.stem != task_id:
            continue
        folder, target = _home(places, name, history)
        if not _move_new_if_there(places.held, name, folder, target):
            if not places.held.has(name):
                return None  # somebody else was faster
            folder, target = places.retry, history.waiting()
            move(places.held, name, folder, target)
        _sync(folder, places.held)
        return target
    return None


def take_in_hand(places: WorkerFolders, task_id: str, max_bytes: int) -> InHand | None:
    """Take a waiting or held task out by one rename; None when it does not wait. `put_back` it, or settle it."""
    for _ in range(_LOOKS):
        there = find_waiting(places, task_id)
        if there is None:
            return None
        handle = there.history.in_hand(was_held=there.is_held)
        if not _move_new_if_there(there.folder, there.name, places.mine, handle):
            continue
        try:
            task = _read(places, handle, task_id, max_bytes)
        except BaseException:
            put_back(places, handle)
            raise
        return InHand(handle, there, task)
    return None


def put_back(places: WorkerFolders, handle: str) -> str | None:
    """Back to where it waited; returns its new name, None when it is gone."""
    history = History.of(handle)
    assert history is not None  # only names made by `in_hand` come here
    return back_from_hand(places, places.mine, handle, history)


def back_from_hand(places: WorkerFolders, source: Folder, handle: str, history: History) -> str | None:
    """The same from any claim folder: a rescuer's way."""
    if history.is_held:
        folder, name = places.held, f"{history.stem}.json" if history.is_new() else history.waiting()
    else:
        folder, name = _home(places, handle, history)
    if not _move_new_if_there(source, handle, folder, name):
        if not source.has(handle):
            return None
        # A new file of that name has come meanwhile: this one is the older and goes first.
        name = history.waiting()
        folder = places.held if history.is_held else places.retry
        move(source, handle, folder, name)
    _sync(folder, source)
    return name


def edit(
    places: WorkerFolders,
    task_id: str,
    changes: dict[str, Any],
    max_bytes: int,
    circle: Circle,
    *,
    may_repeat: bool = True,
) -> str | None:
    """Give fields of a waiting task new values (None takes a field away) and put it back; returns its name there.

    None when it does not wait. It keeps its time of arrival and its counters. Raises InvalidTask, with the task left
    as it was, when it would be none after that, or wait for itself (`circle` tells the way); unless it `may_repeat`
    what was done already, as a command may, also when a field that it takes away is none.
    """
    taken = take_in_hand(places, task_id, max_bytes)
    if taken is None:
        return None
    try:
        if not may_repeat:
            refuse_to_unset(taken.task.submitted, changes)
        raw = changed(taken.task, changes, places.worker)
        if len(raw) > max_bytes:
            raise InvalidTask("too_large", f"{len(raw)} bytes; MAX_TASK_BYTES allows {max_bytes}")
        way = circle(parse_task(raw, task_id, places.worker)) if changes.get("dependencies") else None
        if way is not None:
            raise InvalidTask("dependency_cycle", f"it would wait for itself: {words_of(way)}")
        _rewrite(places.mine, taken.handle, raw)
    finally:
        name = put_back(places, taken.handle)
    return name


def changed(task: Task, changes: dict[str, Any], worker: str) -> bytes:
    """The bytes of this task with other values in some fields. Raises InvalidTask when that is no task."""
    fields = {**task.submitted, **changes}
    for name, value in changes.items():
        if value is None:
            del fields[name]
    try:
        raw = strict_json.dumps(fields, errors="strict")
        task_from_fields(strict_json.loads(raw), task.task_id, worker)
    except (TypeError, ValueError) as error:
        raise InvalidTask("invalid_json", str(error)) from None
    return raw


def _rewrite(mine: Folder, handle: str, raw: bytes) -> None:
    """Replace the bytes in one step; the new file keeps the old one's time, which orders it among the others.

    Either version may stand after a power cut until the task is back: that flushes both folders.
    """
    there = os.stat(handle, dir_fd=mine.fd, follow_symlinks=False)
    mine.remove(_NEW_VERSION)
    mine.write_new(_NEW_VERSION, raw)
    os.utime(_NEW_VERSION, ns=(there.st_atime_ns, there.st_mtime_ns), dir_fd=mine.fd, follow_symlinks=False)
    os.chmod(_NEW_VERSION, there.st_mode & 0o777, dir_fd=mine.fd)
    fsync_file(mine, _NEW_VERSION)
    os.rename(_NEW_VERSION, handle, src_dir_fd=mine.fd, dst_dir_fd=mine.fd)


def _read(places: WorkerFolders, handle: str, task_id: str, max_bytes: int) -> Task:
    found = read_task_file(places.mine, handle, max_bytes)
    if not isinstance(found, TaskBytes):
        detail = "it was removed" if found is None else found.error.detail
        raise InvalidTask("unreadable", f"{task_id}: {detail}")
    if found.being_written:
        raise StillWritten(f"task {task_id!r}: its file is open for writing somewhere; try again when that is over")
    return parse_task(found.raw, task_id, places.worker)


def _home(places: WorkerFolders, name: str, history: History) -> tuple[Folder, str]:
    """Where a task belongs that nobody holds: the inbox under its own name, or `.retry` when it has a history."""
    if "~" not in name or history.is_new():
        return places.inbox, f"{history.stem}.json"
    return places.retry, history.waiting()


def _move_new_if_there(source: Folder, name: str, target: Folder, new_name: str) -> bool:
    """Rename without replacing; False when the target exists or the source is gone."""
    try:
        return move_new(source, name, target, new_name)
    except FileNotFoundError:
        if not os.path.isdir(target.path):
            raise
        return False


def _sync(*folders: Folder) -> None:
    for folder in folders:
        os.fsync(folder.fd)
