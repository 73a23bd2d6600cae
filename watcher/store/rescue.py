"""Take back the claims of processes that are proven dead, and clean up what they left.

Proof is the dead owner's `.lock`; then its leftovers are ended, and only when `.busy` is free too does nothing of it
run any more. While this process holds both locks no other rescuer can work on the same claims. Each claim then moves
by one rename, with one more death in its name; a result that exists already only needs its claim removed.

Cannot end processes of another host or of another container: their `.busy` stays held, and the claims wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any

from watcher.errors import InvalidTask
from watcher.formats.result import parse_result
from watcher.formats.task import PAST, parse_task
from watcher.store.folders import History, WorkerFolders
from watcher.store.in_hand import back_from_hand
from watcher.store.layout import BUSY, INCARNATION, LOCK
from watcher.store.worker_locks import take_lock
from watcher.system import processes
from watcher.system.files import NO_FILE, Folder, move_new
from watcher.telemetry.events import Emit, LeftoversKilled, TaskNotUnderstood, TaskRescued

_MAX_STORED_BYTES = 1 << 28


def rescue(places: WorkerFolders, emit: Emit) -> list[str]:
    """Rescue what all dead incarnations held. Returns the new names of the tasks that wait again."""
    found = {name[:32] for name in places.claims.names() if INCARNATION.fullmatch(name[:32])}
    found.discard(places.incarnation)
    out: list[str] = []
    for incarnation in sorted(found):
        try:
            out.extend(_rescue_one(places, incarnation, emit))
        except OSError as error:
            # A folder or link where a lock belongs, a file or a planted link for the folder: what lies behind it is not
            # ours to move or remove, and the others are rescued.
            if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
                raise
    return out


def _rescue_one(places: WorkerFolders, dead: str, emit: Emit) -> list[str]:
    claims = places.claims.path
    if places.claims.is_link(dead) or not _is_lock(places.claims, dead + BUSY):
        return []  # planted: what lies behind it, and who uses that, is not ours to move, to remove or to kill
    # A folder without its lock file is older than any living process: locks are made first and removed last.
    lock = take_lock(places.claims, dead + LOCK)
    if lock is None:
        return []
    try:
        # Holders first: should the owner live after all (somebody deleted its lock file), it ends before its commands
        # do, and cannot take their end for a failed attempt.
        killed = processes.kill_holders(claims / (dead + BUSY)) + processes.kill_marked(dead)
        if killed:
            emit(LeftoversKilled("", killed))
        busy = take_lock(places.claims, dead + BUSY)
        if busy is None:
            return []
        try:
            names = _take_back(places, dead, emit)
            _clean_up(places, dead)
        finally:
            busy.release()
    finally:
        lock.release()
    return names


def _is_lock(claims: Folder, name: str) -> bool:
    """Whether this is a lock file of ours, or nothing."""
    try:
        info = os.stat(name, dir_fd=claims.fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1


def _take_back(places: WorkerFolders, dead: str, emit: Emit) -> list[str]:
    out: list[str] = []
    try:
        folder = Folder(places.claims.path / dead, create=False)
    except FileNotFoundError:
        return []
    try:
        for name in sorted(folder.names()):
            try:
                _take_one_back(places, folder, name, dead, emit, out)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - this claim stays where it is; the others are taken back
                emit(TaskNotUnderstood(ascii(name), f"rescue: {type(error).__name__}: {error}"))
    finally:
        folder.close()
    return out


def _take_one_back(places: WorkerFolders, folder: Folder, name: str, dead: str, emit: Emit, out: list[str]) -> None:
    history = History.of(name) if "~" in name else None
    if history is None:
        if name.endswith("!.json"):
            move_new(folder, name, places.inbox, name)
        return
    if _is_settled(places, folder, name, history):
        folder.remove(name)
        emit(TaskRescued(history.stem, history.deaths, dead, "result_exists"))
        return
    if history.is_in_hand:
        back = back_from_hand(places, folder, name, history)
        if back is not None:
            if not history.is_held:
                out.append(back)
            emit(TaskRescued(history.stem, history.deaths, dead, "not_changed"))
        return
    died = History(history.stem, max(0, history.attempts - 1), history.deaths + 1, given=history.given)
    back = died.waiting()
    if move_new(folder, name, places.retry, back):
        out.append(back)
        emit(TaskRescued(history.stem, history.deaths + 1, dead, "waits_again"))


def _is_settled(places: WorkerFolders, folder: Folder, name: str, history: History) -> bool:
    """Whether the result of this very task is there: then only the last step is missing.

    Or it is a task that was to run again, and the result that was to make way for it still stands: it does not.
    """
    if not places.results.has(f"{history.stem}.json"):
        return False
    try:
        stored = parse_result(places.results.read(f"{history.stem}.json", _MAX_STORED_BYTES))
        task = parse_task(folder.read(name, _MAX_STORED_BYTES), history.stem, places.worker)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, InvalidTask) as error:
        if isinstance(error, OSError) and error.errno not in NO_FILE:
            raise  # it may be the result of this very task, which must not run again
        return False
    if stored.get("task_sha256") == task.sha256:
        return True
    return history.is_in_hand and is_rerun_of(task.submitted, stored)


def is_rerun_of(submitted: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether this task's last run, by its own history, is the one whose result this is."""
    past = submitted.get(PAST)
    last = past[-1] if isinstance(past, list) and past and isinstance(past[-1], dict) else {}
    return all(last.get(name) == stored.get(name) for name in ("timestamp", "task_sha256"))


def _clean_up(places: WorkerFolders, dead: str) -> None:
    """Remove what else the dead process had: outputs of its attempts, temporary files, its folder, its locks."""
    with contextlib.suppress(FileNotFoundError):
        folder = Folder(places.claims.path / dead, create=False)
        try:
            for name in folder.names():
                if "~" not in name and not name.endswith("!.json") and not folder.is_folder(name):
                    folder.remove(name)
            is_empty = not folder.names()
        finally:
            folder.close()
        if is_empty:
            os.rmdir(dead, dir_fd=places.claims.fd)
    if places.claims.has(dead):
        return  # something could not be moved, or is none of ours: it is tried again, the locks stay as they are
    places.sweep(dead)
    # Notes and locks last, the process's own lock at the very end.
    for kind in ("json", "busy", "lock"):
        places.claims.remove(f"{dead}.{kind}")
