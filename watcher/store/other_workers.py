"""Tell whether a task of some name waits or runs at any worker of the root, asked once between two scans.

Owns the answer to "is there a task of that name somewhere?" for a worker that waits for it. Inboxes are asked for
single names, since they may be huge; the folders in them are listed once and remembered until `refresh`. Reads only.
What cannot be read counts as not there; `is_blind` says that it may be there all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from watcher.errors import InvalidTask, tells_nothing
from watcher.formats.task import Task, parse_task
from watcher.policy.dependency_circles import MAX_NODES, circle
from watcher.store.dependencies import Results
from watcher.store.layout import ARCHIVE
from watcher.store.task_places import PLACE_KINDS, ids_in
from watcher.system import no_links
from watcher.system.files import read_regular

#: Of a task at another worker no more dependencies are followed than these, which bounds what is remembered.
_FOLLOWED = 200

_Stamp = tuple[int, int, int]


class Elsewhere:
    """Tasks of all workers below one root, as their folders show them."""

    def __init__(self, tasks: Path, results: Path, triggers: Path, max_task_bytes: int) -> None:
        self._tasks = tasks
        self._results = results
        self._triggers = triggers
        self._limit = max_task_bytes
        self._workers: list[str] | None = None
        self._begun: dict[str, set[str]] = {}
        self._read: dict[str, tuple[_Stamp, tuple[str, ...]]] = {}
        self._asked: set[str] = set()
        #: Since the last `refresh` the machine was too short of something (descriptors) to see everything.
        self.is_blind = False

    def refresh(self) -> None:
        """Forget what was listed, and what was read of files that nobody has asked for since the last call."""
        self._workers = None
        self.is_blind = False
        self._begun.clear()
        self._read = {node: self._read[node] for node in self._asked if node in self._read}
        self._asked = set()

    def workers(self) -> list[str]:
        """The workers that have an inbox."""
        if self._workers is None:
            self._workers = [
                name for name in self._names(self._tasks) if self._see(no_links.is_folder, self._tasks / name)
            ]
        return self._workers

    def is_in_inbox(self, worker: str, stem: str) -> bool:
        return self._see(no_links.is_there, self._tasks / worker / f"{stem}.json")

    def is_known(self, dependency: str) -> bool:
        """Whether a task of that name waits or runs at its worker (at any worker, for a plain id)."""
        owner, _, stem = dependency.rpartition("/")
        workers = [owner] if owner else self.workers()
        return any(self.is_in_inbox(worker, stem) or stem in self._not_in_inbox(worker) for worker in workers)

    def has_run(self, dependency: str) -> bool:
        """Whether a task of that name ran once, by its receipt or an archived result; both go with time."""
        owner, _, stem = dependency.rpartition("/")
        for worker in [owner] if owner else self.workers():
            archive = self._results / worker / ARCHIVE
            if self._see(no_links.is_there, self._triggers / worker / f"{stem}.json") or any(
                name.startswith(f"{stem}~") for name in self._names(archive)
            ):
                return True
        return False

    def dependencies(self, worker: str, stem: str) -> tuple[str, ...]:
        """What a task that waits in an inbox depends on, at most 200 of it; nothing when there is no such task."""
        node = f"{worker}/{stem}"
        self._asked.add(node)
        path = self._tasks / worker / f"{stem}.json"
        try:
            found = no_links.look_at(path)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._read.get(node)
            if known is None or known[0] != stamp:
                needs = parse_task(read_regular(path, self._limit), stem, worker).dependencies
                known = self._read[node] = (stamp, needs[:_FOLLOWED])
        except (OSError, InvalidTask):
            self._read.pop(node, None)
            return ()
        return known[1]

    def circle_with(self, task: Task, results: Results) -> list[str] | None:
        """The circle that this task would close with those that wait in the inboxes now, or None."""
        start = f"{task.worker}/{task.task_id}"

        def edges(node: str) -> Iterator[str]:
            owner, _, stem = node.partition("/")
            for dependency in task.dependencies if node == start else self.dependencies(owner, stem):
                target = dependency if "/" in dependency else self._node_of(owner, dependency, start)
                if target is not None and results.find(dependency) is None:
                    yield target

        return circle(start, edges, MAX_NODES)

    def _node_of(self, owner: str, stem: str, start: str) -> str | None:
        found = [w for w in self.workers() if f"{w}/{stem}" == start or self.is_in_inbox(w, stem)]
        return f"{owner}/{stem}" if owner in found else f"{found[0]}/{stem}" if len(found) == 1 else None

    def _not_in_inbox(self, worker: str) -> set[str]:
        """The ids of tasks that wait for a retry, are held, run, or are given to another worker."""
        found = self._begun.get(worker)
        if found is None:
            kinds = [kind for kind in PLACE_KINDS if kind != "inbox"]
            found = self._begun[worker] = ids_in(self._tasks / worker, kinds, self._names)
        return found

    def _names(self, path: Path) -> list[str]:
        try:
            return no_links.names_in(path)
        except OSError as error:
            self.is_blind = self.is_blind or tells_nothing(error)
            return []

    def _see(self, ask: Callable[[Path], bool], path: Path) -> bool:
        try:
            return ask(path)
        except OSError:
            self.is_blind = True
            return False
