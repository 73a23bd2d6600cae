"""Wait for the ends of submitted tasks without a worker's help: ask the folders again and again.

Folders are listed, never asked for one name: over a network file system a name that was missed once stays missing for
half a minute, while a listing is fresh. Pauses grow while nothing happens, and with what a listing costs.
A task has ended when its result is there, or a dead letter without one (a file that never became a task). Writes
nothing. Raises OSError when a folder cannot be listed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.errors import WatcherError
from watcher.formats import strict_json
from watcher.formats.result import HEAD_BYTES, Status, parse_result, status_in_head
from watcher.system import no_links
from watcher.system.files import Folder

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

#: Seconds between two looks: at first, and at most, unless a look itself costs more than a tenth of that.
PAUSE_SECONDS = (0.05, 0.25)
_SHARE = 0.1
_MAX_STORED_BYTES = 1 << 28
#: The name of a dead letter, and in it the id of its task; a second one of the same id has a number.
LETTER_NAME = re.compile(r"(.+?)(?:~\d+)?\.json")


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
        folder = Folder(self.path.parent, create=False)
        try:
            raw = folder.read(self.path.name, _MAX_STORED_BYTES)
        finally:
            folder.close()
        return _object(raw) if self.status == "refused" else parse_result(raw)


class Awaited:
    """The tasks of one worker whose ends are waited for. Make it before they are submitted: what was there before, a
    dead letter of an earlier file with the same id, is not their end. `old_letters_count` is for tasks that were
    submitted some time ago."""

    def __init__(self, folders: Folders, worker: str, ids: Iterable[str], *, old_letters_count: bool = False) -> None:
        self._results = folders.results / worker
        self._letters = folders.dlq / worker
        self._before = set() if old_letters_count else set(_names(self._letters))
        self.worker = worker
        self.open = set(ids)

    def look(self) -> list[Ended]:
        """What has ended since the last look, in no order."""
        found = [self._result(name[:-5]) for name in _names(self._results) if name[:-5] in self.open]
        ended = [outcome for outcome in found if outcome is not None]
        self.open.difference_update(outcome.task_id for outcome in ended)
        if self.open:
            ended += self._refused()
        return ended

    def _result(self, task_id: str) -> Ended | None:
        path = self._results / f"{task_id}.json"
        status = stored_status(path)
        return None if status is None else Ended(task_id, self.worker, status, path)

    def _refused(self) -> list[Ended]:
        """Dead letters that hold no result; one that does comes a moment before that result is there."""
        out = []
        for name in sorted(_names(self._letters)):
            matched = LETTER_NAME.fullmatch(name)
            if name in self._before or matched is None or matched[1] not in self.open:
                continue
            outcome = Ended(matched[1], self.worker, "refused", self._letters / name)
            self._before.add(name)
            with contextlib.suppress(OSError, ValueError):
                if outcome.read().get("dlq_result") is None:
                    out.append(outcome)
                    self.open.discard(outcome.task_id)
        return out


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
            raise TimeoutError(f"{some} did not end within {self._seconds:g} s; it goes on")
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
    if f"{task_id}.json" in _names(folders.results / worker):
        path = folders.results / worker / f"{task_id}.json"
        raise AlreadyKnown(f"task {task_id!r} of {worker} has ended already; read {path}, or choose another id")
    inbox = folders.tasks / worker
    claims = [inbox / ".claims" / name for name in _names(inbox / ".claims") if "." not in name]
    for place in (inbox / ".retry", inbox / ".held", *claims):
        if any(name == f"{task_id}.json" or name.startswith(f"{task_id}~") for name in _names(place)):
            raise AlreadyKnown(f"task {task_id!r} of {worker} is on its way; wait for its result or choose another id")


def _names(place: Path) -> list[str]:
    try:
        return no_links.names_in(place)
    except FileNotFoundError:
        return []


def _object(raw: bytes) -> dict[str, Any]:
    value = strict_json.loads(raw)
    if not isinstance(value, dict):
        raise strict_json.NotStrictJson("a dead letter is one JSON object")
    return value


def stored_status(path: Path) -> Status | None:
    """The status of a result file; None when it is gone, cannot be read now, or does not tell one.

    Follows no link and waits for no FIFO: a folder of results may be written to by others.
    """
    try:
        fd = no_links.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return status_in_head(os.read(fd, HEAD_BYTES))
    except OSError:  # a folder, a FIFO that somebody has open
        return None
    finally:
        os.close(fd)
