"""Read how tasks ended, from results and dead letters, and wait for it without a worker's help.

Folders are listed, never asked for one name: over a network file system a name that was missed once stays missing for
half a minute, while a listing is fresh. Pauses grow while nothing happens, and with what a listing costs.
A task has ended when its result is there, or a dead letter that holds none (a file that never became a task). Such a
letter comes alone; one that holds a result comes a moment before that result. Writes nothing. Raises OSError when a
folder cannot be listed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from watcher.errors import WatcherError
from watcher.formats import dead_letter
from watcher.formats.result import HEAD_BYTES, Status, parse_result, status_in_head
from watcher.system import no_links
from watcher.system.files import read_regular

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

#: Seconds between two looks: at first, and at most, unless a look itself costs more than a tenth of that.
PAUSE_SECONDS = (0.05, 0.25)
_SHARE = 0.1
_MAX_STORED_BYTES = 1 << 28
#: Never follow a link, never block on a FIFO.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: The name of a dead letter, and in it the id of its task; a second one of the same id has a number.
LETTER_NAME = re.compile(r"(.+?)(?:~\d+)?\.json")


class ResultFolders(Protocol):
    """The folders of all workers that tell how tasks ended."""

    @property
    def results(self) -> Path: ...

    @property
    def dlq(self) -> Path: ...


class AlreadyKnown(WatcherError):
    """A task of this id is on its way or has ended. Reaction: choose another id, or read what is there."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended. `status` is that of its result, or `refused` when there is only a dead letter, `path`."""

    task_id: str
    worker: str
    status: str
    path: Path

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"

    def read(self) -> dict[str, Any]:
        """The whole result or dead letter. Raises OSError or ValueError when it is gone or was replaced."""
        return read_letter(self.path) if self.status == "refused" else read_result(self.path)


def read_status(path: str | Path, folder_fd: int | None = None) -> Status | None:
    """The status that the head of a result file tells, None when it tells none. `path` may be a name in an open folder.

    Follows no link and waits for no FIFO: a folder of results may be written to by others. Raises OSError.
    """
    fd = no_links.open_file(path, _READ) if folder_fd is None else os.open(path, _READ, dir_fd=folder_fd)
    try:
        return status_in_head(os.read(fd, HEAD_BYTES))
    finally:
        os.close(fd)


def stored_status(path: Path) -> Status | None:
    """The status of a result file; None when it is gone, cannot be read now, or does not tell one."""
    with contextlib.suppress(OSError):
        return read_status(path)
    return None


def read_stored(path: Path) -> bytes:
    """The bytes of a task's file, wherever it lies. Raises OSError, also for what is no regular file."""
    return read_regular(path, _MAX_STORED_BYTES)


def read_result(path: Path) -> dict[str, Any]:
    """A whole result. Raises OSError, and ValueError for a file that is none."""
    return parse_result(read_stored(path))


def read_letter(path: Path) -> dict[str, Any]:
    """A whole dead letter. Raises OSError, and ValueError for a file that is none."""
    return dead_letter.parse(read_stored(path))


def ended_of(
    folders: ResultFolders, worker: str, ids: Collection[str], letters_seen: set[str] | None = None
) -> Iterator[Ended]:
    """Which of these tasks have ended. A dead letter in `letters_seen` does not count; one that is read joins it."""
    rest = set(ids)
    for name in no_links.names_in(folders.results / worker):
        if name[:-5] in rest and (status := stored_status(folders.results / worker / name)) is not None:
            rest.discard(name[:-5])
            yield Ended(name[:-5], worker, status, folders.results / worker / name)
    for name in sorted(no_links.names_in(folders.dlq / worker)) if rest else ():
        matched = LETTER_NAME.fullmatch(name)
        if matched is None or matched[1] not in rest or (letters_seen is not None and name in letters_seen):
            continue
        if letters_seen is not None:
            letters_seen.add(name)
        ended = Ended(matched[1], worker, "refused", folders.dlq / worker / name)
        with contextlib.suppress(OSError, ValueError):
            if ended.read().get("dlq_result") is None:
                rest.discard(ended.task_id)
                yield ended


class Awaited:
    """The tasks of one worker whose ends are waited for. Make it before they are submitted: what was there before, a
    dead letter of an earlier file with the same id, is not their end. `old_letters_count` is for tasks that were
    submitted some time ago."""

    def __init__(self, folders: Folders, worker: str, ids: Iterable[str], *, old_letters_count: bool = False) -> None:
        self._folders = folders
        self._before = set() if old_letters_count else set(no_links.names_in(folders.dlq / worker))
        self.worker = worker
        self.open = set(ids)

    def look(self) -> list[Ended]:
        """What has ended since the last look, in no order."""
        ended = list(ended_of(self._folders, self.worker, self.open, self._before))
        self.open.difference_update(outcome.task_id for outcome in ended)
        return ended


class Pace:
    """How long to rest between two looks, within `seconds` (None: no limit).

    Short after something happened, longer while nothing does, and in keeping with what a look costs.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds
        self._pause = PAUSE_SECONDS[0]

    def something_ended(self) -> None:
        self._pause = PAUSE_SECONDS[0] / 1.5

    def rest(self, began: float, awaited: Sequence[Awaited]) -> float:
        """Seconds until the next look, after one that began at `began` (monotonic). Raises TimeoutError."""
        now = time.monotonic()
        self._pause = min(self._pause * 1.5, PAUSE_SECONDS[1])
        rest = max(self._pause, (now - began) / _SHARE)
        if self._end is None:
            return rest
        if now >= self._end:
            some = ", ".join(f"{one.worker}/{i}" for one in awaited for i in sorted(one.open)[:3])
            raise TimeoutError(f"{some} did not end within {self._seconds:g} s; it continues")
        return min(rest, self._end - now)


def each_look(awaited: Sequence[Awaited], seconds: float | None) -> Iterator[list[Ended]]:
    """Look until all have ended; gives what has ended after every look, also when that is nothing.

    Raises TimeoutError when `seconds` are over first.
    """
    pace = Pace(seconds)
    while True:
        began = time.monotonic()
        ended = [outcome for one in awaited for outcome in one.look()]
        yield ended
        if not any(one.open for one in awaited):
            return
        if ended:
            pace.something_ended()
        time.sleep(pace.rest(began, awaited))


def wait(awaited: Sequence[Awaited], seconds: float | None, each: Callable[[list[Ended]], None]) -> bool:
    """Look until all have ended; returns False when `seconds` are over first. `each` gets what every look found."""
    try:
        for ended in each_look(awaited, seconds):
            each(ended)
    except TimeoutError:
        return False
    return True


def refuse_known(folders: Folders, worker: str, task_id: str) -> None:
    """Raise AlreadyKnown when this worker has a task of this id already, wherever it is.

    Without this the worker would drop the new file as a copy or dead-letter it, and the submitter would read the
    result of another task.
    """
    from watcher.store.task_places import PLACE_KINDS, task_files  # who submits without an id does not pay for it

    if f"{task_id}.json" in no_links.names_in(folders.results / worker):
        path = folders.results / worker / f"{task_id}.json"
        raise AlreadyKnown(f"task {task_id!r} of {worker} has ended already; read {path}, or choose another id")
    # What waits in the inbox itself is left to the put, which replaces nothing.
    kinds = [kind for kind in PLACE_KINDS if kind != "inbox"]
    if any(task_files(folders.tasks / worker, task_id, kinds)):
        raise AlreadyKnown(f"task {task_id!r} of {worker} waits or runs; wait for its result or choose another id")
