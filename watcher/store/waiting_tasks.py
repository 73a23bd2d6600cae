"""Own what the listener knows of unfinished tasks: each that waits, waits for a retry, or is claimed.

The folders are listed in the direction in which tasks move, and some of them again (`task_places`), so that a task that
moves meanwhile is rather seen twice than not at all. A file is read once for each inode, time of modification
and size: renames keep all three, and a file system soon gives the inode of a task that has ended to a new one.
Ages run on the listener's own monotonic clock from the first look, with what the file system says before that.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.clock import Clock
from watcher.formats import strict_json
from watcher.formats import task as task_format
from watcher.formats.fields import FieldError
from watcher.store.folders import History
from watcher.store.task_places import GONE_BACK, PLACE_KINDS, TaskPlace, places
from watcher.system import no_links
from watcher.system.files import read_up_to

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_PORTION = 200


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What one task file says. `arrived_at` is its time of modification (wall seconds), which renames keep."""

    inode: int
    arrived_at: float
    size: int = 0
    batch_id: str | None = None
    dependencies: tuple[str, ...] = ()
    timeout: float | None = None
    not_before: float | None = None


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """One task now. `since` is in monotonic seconds: claimed, or able to start as far as time is concerned."""

    worker: str
    task_id: str
    incarnation: str | None
    attempt: int
    facts: TaskFacts
    since: float
    is_held: bool = False


@dataclass(slots=True)
class Sight:
    """All tasks of one look. `began_at` is monotonic: what was published before and is not here has ended."""

    began_at: float = float("-inf")
    tasks: dict[tuple[str, str], OnItsWay] = field(default_factory=dict)
    batches: Counter[str] = field(default_factory=Counter)


class WaitingTasks:
    """Takes looks; `sight` is the last whole one."""

    def __init__(self, tasks: Path, clock: Clock, max_bytes: int = 64 << 20) -> None:
        self._root = tasks
        self._clock = clock
        self._max_bytes = max_bytes
        self._facts: dict[tuple[str, int], TaskFacts] = {}
        self._since: dict[tuple[str, str, str], float] = {}
        self.sight = Sight()

    def look(self, workers: Iterable[str]) -> Iterator[None]:
        """Take a look; `sight` is new when this is exhausted. Yields often."""
        sight = Sight(self._clock.monotonic())
        facts: dict[tuple[str, int], TaskFacts] = {}
        since: dict[tuple[str, str, str], float] = {}
        for worker in workers:
            inbox = self._root / worker
            for place in places(inbox, (*PLACE_KINDS, *GONE_BACK), _names):
                incarnation = place.owner if place.kind == "claims" else None
                for number, (entry, history) in enumerate(_list(place)):
                    if number % _PORTION == _PORTION - 1:
                        yield
                    name, inode = entry.name, entry.inode()
                    known = facts.get((worker, inode)) or self._facts.get((worker, inode))
                    if known is None or not _is_still(known, entry):
                        known = self._read(place.path / name, inode)
                    if known is None:
                        continue
                    facts[(worker, inode)] = known
                    key = (worker, history.stem, f"{place.owner or place.kind}/{name}")
                    since[key] = self._since.get(key) or self._first_seen(
                        place.path / name, history, known, incarnation
                    )
                    is_held = place.kind == "held"
                    task = OnItsWay(worker, history.stem, incarnation, history.attempts, known, since[key], is_held)
                    sight.tasks[(worker, history.stem)] = task
            yield
        for task in sight.tasks.values():
            if task.facts.batch_id is not None:
                sight.batches[task.facts.batch_id] += 1
        self._facts, self._since, self.sight = facts, since, sight

    def _first_seen(self, path: Path, history: History, facts: TaskFacts, incarnation: str | None) -> float:
        """Since when it runs or could run, by the file system's word; never in the future."""
        moment = max(facts.arrived_at, facts.not_before or 0.0, history.due)
        if incarnation is not None:
            with contextlib.suppress(OSError):
                moment = no_links.look_at(path).st_ctime  # the claiming rename is the last thing that changed it
        now = self._clock.monotonic()
        if facts.not_before is not None or history.due:
            return now - (self._clock.wall() - moment)  # may lie ahead: it cannot start before
        return now - max(0.0, self._clock.wall() - moment)

    def _read(self, path: Path, inode: int) -> TaskFacts | None:
        try:
            fd = no_links.open_file(path, _FLAGS)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if info.st_ino != inode:
                return None
            raw = read_up_to(fd, min(info.st_size + 1, self._max_bytes))
        except OSError:
            return None
        finally:
            os.close(fd)
        try:
            value = strict_json.loads(raw)
        except strict_json.NotStrictJson:
            value = task_format.marks_of(raw)  # it is refused soon, and belongs to its batch all the same
        except Exception:  # noqa: BLE001 - more than there is memory for: one file's trouble
            value = None
        if not isinstance(value, dict):
            return TaskFacts(inode, info.st_mtime, info.st_size)
        batch_id = _checked(value, "batch_id")
        return TaskFacts(
            inode,
            info.st_mtime,
            info.st_size,
            None if batch_id is None else sys.intern(batch_id),
            _checked(value, "dependencies") or (),
            _checked(value, "timeout"),
            _checked(value, "not_before"),
        )


def _is_still(known: TaskFacts, entry: os.DirEntry[str]) -> bool:
    """Whether the file is the one that was read, unchanged. One that has moved on since the listing is."""
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:
        return True
    return (info.st_ino, info.st_mtime, info.st_size) == (known.inode, known.arrived_at, known.size)


def _list(place: TaskPlace) -> Iterator[tuple[os.DirEntry[str], History]]:
    with contextlib.suppress(OSError), no_links.entries_in(place.path) as entries:
        # Listed at once, and the folder kept open while the entries are asked for their state.
        yield from [(entry, history) for entry in entries if (history := place.history(entry.name)) is not None]


def _names(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return no_links.names_in(path)
    return []


def _checked(value: dict[str, Any], name: str) -> Any:
    if value.get(name) is None:
        return None
    try:
        return task_format.FIELDS[name].check(value[name])
    except FieldError:
        return None
