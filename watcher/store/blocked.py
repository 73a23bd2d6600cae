"""Keep tasks that wait for the results of others out of the line until their dependencies are met.

Nothing here is only in memory: a restart reads the files and asks the folders again. A missing dependency that nobody
has submitted is waited for DEPENDENCY_TIMEOUT on the monotonic clock of this process; one that waits or runs somewhere
is waited for without end, unless the two wait for each other: such a circle is named, and one task of it ends.

What a task costs here grows with its own dependencies, never with how many others wait: circles are looked for over all
new tasks at once, in portions, and only a few steps are taken when one comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import InvalidTask
from watcher.formats.task import Task
from watcher.policy.dependency_circles import MAX_NODES, circle, knots, ways_back, words_of
from watcher.store.dependencies import Needs, Results, look
from watcher.store.folders import History, WorkerFolders
from watcher.store.other_workers import Elsewhere

if TYPE_CHECKING:
    from watcher.settings.worker_groups import QueueSettings

#: So many dependencies of all blocked tasks are remembered at once, some 100 MB. Beyond it a task is remembered by a
#: few of its own, and looked at again when those have their results.
MAX_WAITED_FOR = 500_000
_FEW = 16
#: Followed when a task comes in; a longer circle is found by the next scan.
_FIRST_STEPS = 50


class Blocked:
    """The blocked tasks of one worker, found by their file's name or by what they wait for."""

    def __init__(self, places: WorkerFolders, results: Results, config: QueueSettings, clock: Clock) -> None:
        self._worker = places.worker
        self._results = results
        self._elsewhere = Elsewhere(
            places.tasks_root, places.results_root, places.triggers.path.parent, config.max_task_bytes
        )
        self._config = config
        self._clock = clock
        self._needs: dict[str, Needs] = {}
        self._by_stem: dict[str, str] = {}
        self._waiting_for: dict[str, tuple[str, set[str]]] = {}
        self._count = 0
        self._new: dict[str, None] = {}

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

    def refresh(self) -> None:
        """Ask the folders again instead of what is remembered of them."""
        self._results.refresh()
        self._elsewhere.refresh()

    def add(self, name: str, task: Task, arrived_at: float) -> InvalidTask | None:
        """Block the task unless its dependencies are met. Returns why it can never run, if so."""
        missing, broken = look(self._results, task.dependencies)
        old = self._needs.get(name)
        self.discard(name)
        if broken is not None:
            return InvalidTask("dependency_failed", f"the dependency {broken}")
        if not missing:
            return None
        since = old.since if old is not None else self._clock.monotonic()
        if self._clock.monotonic() - since >= self._config.dependency_timeout:
            unknown = sorted(d for d in missing if not self._elsewhere.is_known(d))
            if unknown and not (self._elsewhere.is_blind or self._results.is_blind):
                return InvalidTask("dependency_missing", self._words_of_unknown(unknown))
            since = self._clock.monotonic()
        self._remember(Needs(name, missing, since, arrived_at), task.task_id)
        found = circle(f"{self._worker}/{task.task_id}", self._edges, _FIRST_STEPS)
        if found is None:
            return None
        self.discard(name)
        return InvalidTask("dependency_cycle", words_of(found))

    def discard(self, name: str) -> None:
        needs = self._needs.pop(name, None)
        if needs is None:
            return
        self._new.pop(name, None)
        self._count -= len(needs.missing)
        history = History.of(name)
        if history is not None and self._by_stem.get(history.stem) == name:
            del self._by_stem[history.stem]
        for dependency in needs.missing:
            names = self._waiting_for[dependency][1]
            names.discard(name)
            if not names:
                del self._waiting_for[dependency]

    def answered(self, worker: str, stem: str) -> list[str]:
        """Which blocked tasks may be ready now that `worker/stem` has a result."""
        out: list[str] = []
        for dependency in (stem, f"{worker}/{stem}"):
            awaited = self._waiting_for.get(dependency)
            if awaited is None:
                continue
            names = awaited[1]
            if self._results.status(dependency) != "completed":
                out.extend(names)
                continue
            del self._waiting_for[dependency]
            self._count -= len(names)
            for name in names:
                missing = self._needs[name].missing
                missing.pop(dependency, None)
                if not missing:
                    out.append(name)
        return out

    def look_again(self) -> Iterator[str | None]:
        """Which blocked tasks have changed by what the folders say now, or have waited too long; None now and then."""
        now = self._clock.monotonic()
        for number, (name, needs) in enumerate(list(self._needs.items())):
            if now - needs.since >= self._config.dependency_timeout:
                yield name
            elif number % 1000 == 999:
                yield None
        for number, dependency in enumerate(list(self._waiting_for)):
            if self._results.find(dependency) is not None:
                yield from list(self._waiting_for.get(dependency, ("", ()))[1])
            elif number % 1000 == 999:
                yield None

    def circles(self) -> Iterator[tuple[str, InvalidTask] | None]:
        """The tasks that must end because they wait for themselves: one file's name of each knot; None now and then.

        Walks what can be reached from the tasks that came since the last walk.
        """
        new, self._new = self._new, {}
        starts = [f"{self._worker}/{history.stem}" for name in new if (history := History.of(name)) is not None]
        for knot in knots(starts, self._edges):
            ours = [name for node in knot or () if (name := self._file_of(node)) is not None]
            if knot is None or not ours:
                yield None
                continue
            last = max(ours, key=lambda name: (self._needs[name].arrived_at, name))
            node = next(node for node in knot if self._file_of(node) == last)
            found = None
            for way in ways_back(node, self._edges, within=set(knot)):
                found = way
                yield None
            if found is not None and last in self._needs:  # else a task of it went away meanwhile
                self.discard(last)
                yield last, InvalidTask("dependency_cycle", words_of(found))

    def circle_with(self, task: Task) -> list[str] | None:
        """The circle that this task would close with what waits now, or None."""
        node = f"{self._worker}/{task.task_id}"
        missing = look(self._results, task.dependencies)[0]

        def edges(of: str) -> Iterable[str]:
            return [self._node_of(self._worker, d) or "" for d in missing] if of == node else self._edges(of)

        return circle(node, edges, MAX_NODES)

    def is_met(self, task: Task) -> bool:
        missing, broken = look(self._results, task.dependencies)
        return not missing and broken is None

    def _remember(self, needs: Needs, stem: str) -> None:
        if self._count + len(needs.missing) > MAX_WAITED_FOR:
            needs.missing = dict.fromkeys(list(needs.missing)[:_FEW])
        self._needs[needs.name] = needs
        self._by_stem[stem] = needs.name
        self._new[needs.name] = None
        self._count += len(needs.missing)
        needs.missing = {self._awaited(dependency, needs.name): None for dependency in needs.missing}

    def _awaited(self, dependency: str, name: str) -> str:
        """Note that this file waits for that; returns the one text that is kept for all who do."""
        awaited = self._waiting_for.get(dependency)
        if awaited is None:
            awaited = self._waiting_for[dependency] = (dependency, set())
        awaited[1].add(name)
        return awaited[0]

    # --- the graph

    def _file_of(self, node: str) -> str | None:
        """The file of a node that is a blocked task of ours."""
        owner, _, stem = node.partition("/")
        return self._by_stem.get(stem) if owner == self._worker else None

    def _edges(self, node: str) -> Iterable[str]:
        """What a blocked task of ours, or one that waits in another's inbox, waits for."""
        owner, _, stem = node.partition("/")
        if owner == self._worker:
            name = self._by_stem.get(stem)
            # A copy: a walk goes on after others have had their turn.
            wanted: Iterable[str] = tuple(self._needs[name].missing) if name is not None else ()
        else:
            wanted = (d for d in self._elsewhere.dependencies(owner, stem) if self._results.find(d) is None)
        return (target for dependency in wanted if (target := self._node_of(owner, dependency)) is not None)

    def _node_of(self, owner: str, dependency: str) -> str | None:
        """Which waiting task a dependency means: for a plain id that of its own worker, else the only one there is."""
        if "/" in dependency:
            return dependency
        if (owner == self._worker and dependency in self._by_stem) or self._elsewhere.is_in_inbox(owner, dependency):
            return f"{owner}/{dependency}"
        found = [
            worker
            for worker in self._elsewhere.workers()
            if (worker == self._worker and dependency in self._by_stem)
            or self._elsewhere.is_in_inbox(worker, dependency)
        ]
        return f"{found[0]}/{dependency}" if len(found) == 1 else None

    def _words_of_unknown(self, unknown: list[str]) -> str:
        told = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        gone = [dependency for dependency in unknown[:5] if self._elsewhere.has_run(dependency)]
        if gone:
            return (
                f"{', '.join(gone)} ran before and has no result any more: it was removed; run it again, then redrive"
            )
        return (
            f"there was no task and no result of {told} within DEPENDENCY_TIMEOUT: it was never submitted, or its "
            "result was removed; submit it, then redrive"
        )
