"""Where the task files of a worker lie: the one rule of which places an inbox has and which names in them are tasks.

A task file is in the inbox, in `.held`, in `.retry`, in the claim folder of an incarnation or, on its way to another
worker, in `.reassign/<worker>`. Lists folders and reads no file. A place that is not there is empty.
A listing is a moment: a task may move on between two of them. The places are listed in the direction in which tasks
move, and those of `GONE_BACK` once more by who must not miss one. Raises OSError when a place cannot be listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.formats.task import TASK_FILE_NAME, WORKER_PATTERN
from watcher.store.folders import History
from watcher.store.layout import CLAIMS, HELD, INCARNATION, REASSIGN, RETRY
from watcher.system import no_links

_WORKER = re.compile(WORKER_PATTERN)

PlaceKind = Literal["held", "inbox", "retry", "claims", "reassign"]
PLACE_KINDS: tuple[PlaceKind, ...] = ("held", "inbox", "retry", "claims", "reassign")
#: Where a task may have gone behind the back of who lists each place once. A release may also bring it to the inbox.
GONE_BACK: tuple[PlaceKind, ...] = ("held", "retry")
#: Where a task waits, as `changes` looks for it.
WAITING: tuple[PlaceKind, ...] = ("inbox", "retry", "held")

ListNames = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class TaskPlace:
    """One folder with task files. `owner` is the incarnation whose claims they are, or their new worker."""

    kind: PlaceKind
    path: Path
    owner: str | None = None

    def history(self, name: str) -> History | None:
        """What a file's name here tells of its task; None when it is no task file's."""
        if self.kind in ("inbox", "reassign"):
            return History(name[:-5]) if TASK_FILE_NAME.fullmatch(name) else None
        return History.of(name) if "~" in name or self.kind == "held" else None


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One task file, by its place and name alone."""

    place: TaskPlace
    name: str
    history: History

    @property
    def path(self) -> Path:
        return self.place.path / self.name


def places(
    inbox: Path, kinds: Iterable[PlaceKind] = PLACE_KINDS, list_names: ListNames = no_links.names_in
) -> Iterator[TaskPlace]:
    """The places of one worker, in the order of `kinds`."""
    for kind in kinds:
        if kind == "inbox":
            yield TaskPlace(kind, inbox)
        elif kind == "claims":
            for name in sorted(filter(INCARNATION.fullmatch, list_names(inbox / CLAIMS))):
                yield TaskPlace(kind, inbox / CLAIMS / name, name)
        elif kind == "reassign":
            for name in sorted(list_names(inbox / REASSIGN)):
                yield TaskPlace(kind, inbox / REASSIGN / name, name)
        else:
            yield TaskPlace(kind, inbox / (HELD if kind == "held" else RETRY))


def task_files(
    inbox: Path,
    only: str | None = None,
    kinds: Iterable[PlaceKind] = PLACE_KINDS,
    list_names: ListNames = no_links.names_in,
) -> Iterator[TaskFile]:
    """The task files of one worker; with `only`, those of this id, for which no inbox of thousands is listed."""
    for place in places(inbox, kinds, list_names):
        if only is not None and place.kind in ("inbox", "reassign"):
            names = [f"{only}.json"] if no_links.is_there(place.path / f"{only}.json") else []
        else:
            names = sorted(name for name in list_names(place.path) if only is None or name.startswith(only))
        for name in names:
            history = place.history(name)
            if history is not None and only in (None, history.stem):
                yield TaskFile(place, name, history)


def ids_in(
    inbox: Path, kinds: Iterable[PlaceKind] = PLACE_KINDS, list_names: ListNames = no_links.names_in
) -> set[str]:
    """The ids of all tasks in these places."""
    found: set[str] = set()
    for place in places(inbox, kinds, list_names):
        found.update(history.stem for name in list_names(place.path) if (history := place.history(name)) is not None)
    return found


def count_in_inbox(inbox: Path) -> int:
    """How many tasks wait in the inbox itself."""
    place = TaskPlace("inbox", inbox)
    return sum(place.history(name) is not None for name in no_links.names_in(inbox))


def workers_in(parent: Path, list_names: ListNames = no_links.names_in) -> list[str]:
    """The workers that have a folder here, sorted; `parent` holds the inboxes, the results or the dead letters."""
    names = filter(_WORKER.fullmatch, list_names(parent))
    return sorted(name for name in names if no_links.is_folder(parent / name))


def has_task(names: Iterable[str], task_id: str) -> bool:
    """Whether one of these names, of `.held`, `.retry` or a claim folder, is that of a file of this task."""
    return any(
        name.startswith(task_id) and (history := History.of(name)) is not None and history.stem == task_id
        for name in names
    )
