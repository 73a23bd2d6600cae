"""Run a task again: one that has its result (rerun), or one that is a dead letter (redrive).

Order, and no other: the task is made durable in a claim folder of ours; its old result goes to `.archive`; its dead
letter goes to `.archive`; the task is moved into the inbox. A kill before the result has moved leaves everything as it
was: a rescuer drops the copy, because the result that it names in its history still stands. A kill after that leaves
the task in the claim folder, and a rescuer puts it in line. So a task is never without both, and never runs twice.

What runs again is the task as it was submitted, with one entry more in `x_history` for the run that came before.
Raises CannotRunAgain with what to do, InvalidTask when changes make it no task, OSError as the system gives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.errors import InvalidTask, WatcherError
from watcher.formats import dead_letter, strict_json
from watcher.formats.result import parse_result
from watcher.formats.task import ID_PATTERN, MARKS, PAST, parse_task, refuse_to_unset
from watcher.store import workers
from watcher.store.folders import History, WorkerFolders
from watcher.store.in_hand import find_waiting, put_back
from watcher.store.layout import ARCHIVE, ORIGINALS
from watcher.store.submitting import put
from watcher.store.task_places import task_files
from watcher.store.tool_claim_folder import ToolClaimFolder
from watcher.system import no_links
from watcher.system.files import Folder, move_new, read_regular

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_MAX_STORED_BYTES = 1 << 28
_SUFFIX_LIMIT = 100_000
#: From a result that is seen to the end of its claim: a flush of a folder, on a busy disk.
_SETTLING_SECONDS = 10.0
#: What an entry of `x_history` tells of an earlier run.
_TOLD = ("status", "reason", "timestamp", "attempts", "retry_count", "provider", "task_sha256")


class CannotRunAgain(WatcherError):
    """This task cannot run again as things are. Reaction: what the message says."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter: its file and what it says."""

    worker: str
    path: Path
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.worker}/{self.path.stem}"

    @property
    def reason(self) -> str:
        return str(self.fields.get("dlq_reason"))


def rerun(folders: Folders, worker: str, task_id: str, changes: dict[str, Any] | None = None) -> str:
    """Run a task that has ended once more under its id; returns the name of its archived result."""
    with ToolClaimFolder(folders, worker, "rerun") as places:
        _refuse_if_on_its_way(places, task_id)
        result = _result(places, task_id)
        if result is None:
            raise CannotRunAgain(f"{worker}/{task_id} has no result; only a task that has ended can be rerun")
        letter = _letter_of(places, task_id, result)
        submitted = result.get("submitted") or (None if letter is None else _submitted(letter))
        if not isinstance(submitted, dict):
            text = "its result does not hold the task (an earlier version wrote it); submit it again"
            raise CannotRunAgain(f"{worker}/{task_id}: {text}")
        fields = _changed(submitted, changes or {})
        return _run_again(places, task_id, fields, result, None if letter is None else letter.path.name) or ""


def redrive(
    folders: Folders,
    letter: Letter,
    changes: dict[str, Any] | None = None,
    *,
    force: bool = False,
    new_id: str | None = None,
) -> str:
    """Put the task of a dead letter back in line; returns its id. `force` sends an unreadable file in unchanged."""
    task_id = new_id or str(letter.fields.get("task_id"))
    if re.fullmatch(ID_PATTERN, task_id) is None:
        raise CannotRunAgain(f"{letter.name}: {task_id!r} cannot be a task's id; give another with --id")
    with ToolClaimFolder(folders, letter.worker, "redrive") as places:
        if not places.dlq.has(letter.path.name):
            raise CannotRunAgain(f"{letter.name}: no longer a dead letter: somebody else was faster")
        _refuse_if_on_its_way(places, task_id)
        raw, result = _what_to_send(places, letter, task_id, changes or {}, force, new_id)
        _send(places, task_id, raw, result, letter.path.name)
    return task_id


def letters(folders: Folders, worker: str, left_out: Callable[[Path, Exception], None] | None = None) -> list[Letter]:
    """The dead letters of one worker, the oldest first. A file that is none is left out, and `left_out` told why."""
    place = folders.dlq / worker
    found = []
    for name in workers.list_names(place, []):
        if not name.endswith(".json") or name.startswith("."):
            continue
        path = place / name
        try:
            value = dead_letter.parse(read_regular(path, _MAX_STORED_BYTES))
            found.append((no_links.look_at(path).st_mtime_ns, name, Letter(worker, path, value)))
        except FileNotFoundError:
            continue  # somebody was faster
        except (OSError, strict_json.NotStrictJson) as error:
            if left_out is not None:
                left_out(path, error)
    return [letter for *_, letter in sorted(found, key=lambda one: one[:2])]


# --- what runs again


def _what_to_send(
    places: WorkerFolders, letter: Letter, task_id: str, changes: dict[str, Any], force: bool, new_id: str | None
) -> tuple[bytes, dict[str, Any] | None]:
    """The bytes of the task, and the result that must make way for it."""
    original = letter.fields.get("dlq_original")
    if original is not None:
        if "description" in changes:
            kept = {name: letter.fields[name] for name in MARKS if name in letter.fields}
            return _bytes(_changed(kept, changes), task_id, places.worker), None
        if not force:
            text = "its file could not be read as a task; give it a description, or send it unchanged with --force"
            raise CannotRunAgain(f"{letter.name}: {text}")
        return _read_original(letter, str(original)), None
    submitted = _changed(_submitted(letter), changes)
    if new_id is not None:
        submitted = {**submitted, "task_id": task_id}
    result = _result(places, task_id)
    if result is not None and result.get("task_sha256") != letter.fields.get("dlq_task_sha256"):
        raise CannotRunAgain(f"{letter.name}: {task_id!r} is the id of another task's result; give a new one with --id")
    of_before = result or letter.fields.get("dlq_result")
    told = _with_history(submitted, of_before, None) if isinstance(of_before, dict) else submitted
    return _bytes(told, task_id, places.worker), result


def _submitted(letter: Letter) -> dict[str, Any]:
    """The task as it was submitted: the letter without what was added to it."""
    return {n: v for n, v in letter.fields.items() if not n.startswith("dlq_") and n != "retry_count"}


def _changed(submitted: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    refuse_to_unset(submitted, changes)
    whole = {**submitted, **changes}
    return {name: value for name, value in whole.items() if name not in changes or value is not None}


def _with_history(submitted: dict[str, Any], before: dict[str, Any], archived: str | None) -> dict[str, Any]:
    past = submitted.get(PAST)
    entry = {name: before.get(name) for name in _TOLD} | ({} if archived is None else {"archived": archived})
    return {**submitted, PAST: [*(past if isinstance(past, list) else []), entry]}


def _bytes(fields: dict[str, Any], task_id: str, worker: str) -> bytes:
    try:
        raw = strict_json.dumps(fields, errors="strict")
    except (TypeError, ValueError) as error:
        raise InvalidTask("invalid_json", str(error)) from None
    parse_task(raw, task_id, worker)
    return raw


def _read_original(letter: Letter, original: str) -> bytes:
    folder = Folder(letter.path.parent / ORIGINALS, create=False)
    try:
        return folder.read(Path(original).name, _MAX_STORED_BYTES)
    finally:
        folder.close()


def _result(places: WorkerFolders, task_id: str) -> dict[str, Any] | None:
    try:
        return parse_result(places.results.read(f"{task_id}.json", _MAX_STORED_BYTES))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CannotRunAgain(f"the result {places.results.path / task_id}.json cannot be read: {error}") from None


def _letter_of(places: WorkerFolders, task_id: str, result: dict[str, Any]) -> Letter | None:
    """The dead letter that belongs to this result."""
    for name in places.dlq.names():
        if name == f"{task_id}.json" or re.fullmatch(re.escape(task_id) + r"~\d+\.json", name):
            with contextlib.suppress(OSError, strict_json.NotStrictJson):
                value = strict_json.loads(places.dlq.read(name, _MAX_STORED_BYTES))
                is_its = isinstance(value, dict) and value.get("dlq_task_sha256") == result.get("task_sha256")
                if is_its and (value.get("dlq_result") or {}).get("timestamp") == result.get("timestamp"):
                    return Letter(places.worker, places.dlq.path / name, value)
    return None


def _refuse_if_on_its_way(places: WorkerFolders, task_id: str) -> None:
    """A claim beside a result is one that its worker is about to remove: who reads results is faster. Wait for that."""
    until = time.monotonic() + _SETTLING_SECONDS
    while True:
        waits = find_waiting(places, task_id) is not None
        if not waits and not any(task_files(places.inbox.path, task_id, ("claims",))):
            return
        if waits or not places.results.has(f"{task_id}.json") or time.monotonic() > until:
            raise CannotRunAgain(f"{places.worker}/{task_id} already waits, is held or runs")
        time.sleep(0.02)


# --- the steps


def _run_again(
    places: WorkerFolders, task_id: str, submitted: dict[str, Any], result: dict[str, Any], letter: str | None
) -> str | None:
    raw = _bytes(_with_history(submitted, result, None), task_id, places.worker)
    return _send(places, task_id, raw, result, letter)


def _send(
    places: WorkerFolders, task_id: str, raw: bytes, result: dict[str, Any] | None, letter: str | None
) -> str | None:
    """The four steps; returns the archived result's name."""
    handle = History(task_id).in_hand(was_held=False)
    mine = places.mine
    put(mine, handle, raw)
    os.fsync(places.claims.fd)
    archived = None
    if result is not None:
        try:
            archived = _archive(places.results, f"{task_id}.json", task_id)
        except FileNotFoundError:
            mine.remove(handle)
            raise CannotRunAgain(f"{places.worker}/{task_id}: its result is gone; somebody else was faster") from None
        except OSError:
            mine.remove(handle)
            raise
    try:
        if archived is not None:
            _archive_outputs(places, task_id, archived)
        if letter is not None:
            with contextlib.suppress(FileNotFoundError):
                _archive(places.dlq, letter, letter.removesuffix(".json"))
    finally:
        put_back(places, handle)
    return archived


def _archive(folder: Folder, name: str, stem: str) -> str:
    """Move a file into `.archive` of its folder under the next free name; durable when this returns."""
    aside = Folder(folder.path / ARCHIVE)
    try:
        for number in range(1, _SUFFIX_LIMIT):
            new_name = f"{stem}~{number}.json"
            if move_new(folder, name, aside, new_name):
                os.fsync(aside.fd)
                os.fsync(folder.fd)
                return new_name
    finally:
        aside.close()
    raise CannotRunAgain(f"{folder.path / ARCHIVE} has {_SUFFIX_LIMIT} files of {stem}; purge them")


def _archive_outputs(places: WorkerFolders, task_id: str, archived: str) -> None:
    """Whole outputs go along, so that the next run does not write over them."""
    aside = Folder(places.results.path / ARCHIVE)
    try:
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):
                move_new(places.output, f"{task_id}.{stream}", aside, archived.replace(".json", f".{stream}"))
    finally:
        aside.close()
