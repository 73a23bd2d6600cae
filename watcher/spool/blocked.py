"""Tasks that wait for the results of others: kept out of the line until their dependencies are met.

Nothing here is only in memory: a restart reads the files and asks the folders again. A missing dependency that nobody
has submitted is waited for DEPENDENCY_TIMEOUT on the monotonic clock of this process; one that waits or runs somewhere
is waited for without end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from watcher.clock import Clock
from watcher.errors import InvalidTask
from watcher.formats.task import Task, parse_task
from watcher.spool.dependencies import Needs, Results, find_cycle, look
from watcher.spool.places import CLAIMS, HELD, RETRY, History, Places


class _Options(Protocol):
    @property
    def dependency_timeout_seconds(self) -> float: ...

    @property
    def max_task_bytes(self) -> int: ...


class Blocked:
    """The blocked tasks of one worker, found by their file's name or by what they wait for."""

    def __init__(self, places: Places, results: Results, options: _Options, clock: Clock) -> None:
        self._places = places
        self._results = results
        self._options = options
        self._clock = clock
        self._needs: dict[str, Needs] = {}
        self._waiting_for: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._needs)

    def __contains__(self, name: str) -> bool:
        return name in self._needs

    def names(self) -> set[str]:
        """The files of all blocked tasks."""
        return set(self._needs)

    def oldest_arrival(self) -> float | None:
        """Wall seconds at which the oldest blocked task came, or None."""
        return min((needs.arrived_at for needs in self._needs.values()), default=None)

    def add(self, name: str, task: Task, arrived_at: float) -> InvalidTask | None:
        """Block the task unless its dependencies are met. Returns why it can never run, if so."""
        missing, broken = look(self._results, task.dependencies)
        old = self._needs.get(name)
        self.discard(name)
        if broken is not None:
            return InvalidTask("dependency_failed", f"the dependency {broken}")
        if not missing:
            return None
        cycle = find_cycle(self._places.worker, task.task_id, missing, self._dependencies_of)
        if cycle is not None:
            return InvalidTask("dependency_cycle", " -> ".join(cycle))
        since = old.since if old is not None else self._clock.monotonic()
        if self._clock.monotonic() - since >= self._options.dependency_timeout_seconds:
            unknown = sorted(d for d in missing if not self._is_known(d))
            if unknown:
                text = f"nobody submitted {', '.join(unknown[:5])} within DEPENDENCY_TIMEOUT"
                return InvalidTask("dependency_missing", text)
            since = self._clock.monotonic()
        self._needs[name] = Needs(name, missing, since, arrived_at)
        for dependency in missing:
            self._waiting_for.setdefault(dependency, set()).add(name)
        return None

    def discard(self, name: str) -> None:
        needs = self._needs.pop(name, None)
        for dependency in needs.missing if needs is not None else ():
            names = self._waiting_for.get(dependency)
            if names is not None:
                names.discard(name)
                if not names:
                    del self._waiting_for[dependency]

    def answered(self, worker: str, stem: str) -> list[str]:
        """Which blocked tasks may be ready now that `worker/stem` has a result."""
        out = []
        for dependency in (stem, f"{worker}/{stem}"):
            for name in list(self._waiting_for.get(dependency, ())):
                needs = self._needs[name]
                if self._results.status(dependency) == "completed":
                    needs.missing.discard(dependency)
                    self._waiting_for[dependency].discard(name)
                    if needs.missing:
                        continue
                out.append(name)
            if dependency in self._waiting_for and not self._waiting_for[dependency]:
                del self._waiting_for[dependency]
        return out

    def look_again(self) -> list[str]:
        """Which blocked tasks have changed by what the folders say now, or have waited too long."""
        out = []
        now = self._clock.monotonic()
        for name, needs in list(self._needs.items()):
            late = now - needs.since >= self._options.dependency_timeout_seconds
            if late or any(self._results.find(d) is not None for d in needs.missing):
                out.append(name)
        return out

    def is_met(self, task: Task) -> bool:
        missing, broken = look(self._results, task.dependencies)
        return not missing and broken is None

    def _dependencies_of(self, worker: str, stem: str) -> list[str] | None:
        """The dependencies of a task that waits in some inbox; None when there is no such task."""
        try:
            path = self._places.tasks_root / worker / f"{stem}.json"
            raw = _read_regular(path, self._options.max_task_bytes)
            return list(parse_task(raw, stem, worker).dependencies)
        except (OSError, InvalidTask):
            return None

    def _is_known(self, dependency: str) -> bool:
        """Whether a task of that name waits or runs at its worker (at any worker, for a plain id)."""
        owner, _, stem = dependency.rpartition("/")
        workers = [owner] if owner else _folders(self._places.tasks_root)
        return any(_holds(self._places.tasks_root / worker, stem) for worker in workers)


def _holds(inbox: Path, stem: str) -> bool:
    if (inbox / f"{stem}.json").exists():
        return True
    places = [inbox / RETRY, inbox / HELD, *(inbox / CLAIMS / name for name in _folders(inbox / CLAIMS))]
    for place in places:
        for name in _names(place):
            history = History.of(name)
            if history is not None and history.stem == stem:
                return True
    return False


def _folders(path: Path) -> list[str]:
    return [name for name in _names(path) if (path / name).is_dir()]


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read_regular(path: Path, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)
