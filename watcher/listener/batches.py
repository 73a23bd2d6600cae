"""Report once when every known task of a batch, or of a dependency graph, has its outcome.

A batch is complete when no task that waits or runs carries its id, unless its outcome is there already (a claim is
removed after its result is published), and when that has been so for BATCH_SETTLE_SECONDS: who submits a batch may
not be done. One that gets further tasks later is told again when it is complete again. A graph is what hangs together
by `dependencies`; it is told in the same way, under its alphabetically first task.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from watcher.clock import Clock
from watcher.formats.receipt_and_notice import Notice
from watcher.store.listener_database import Ledger
from watcher.store.notice_publisher import Findings
from watcher.store.outcome_totals import Finished
from watcher.store.waiting_tasks import Sight
from watcher.telemetry.events import BatchEnded, Emit
from watcher.telemetry.record_guard import RecordGuard

#: Tasks listed in one notice; the counts are of all.
MAX_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is that is not told yet."""

    ended: int
    on_their_way: int


class Batches:
    """Watches the batches that have untold outcomes."""

    def __init__(self, ledger: Ledger, clock: Clock, emit: Emit, settle_seconds: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._emit = emit
        self._guard = RecordGuard(emit)
        self._settle = settle_seconds
        self._complete: dict[str, tuple[int, float]] = {}
        self.open: dict[str, int] = ledger.open_batches()
        self.progress: dict[str, Progress] = {}

    def refresh(self) -> None:
        """Outcomes were recorded: which batches are open now."""
        self.open = self._ledger.open_batches()

    def check(self, sight: Sight) -> Findings:
        """What this look at the tasks on their way says about the open batches."""
        news = Findings()
        carried = self._carried(sight)
        self.progress = {}
        for batch_id, last in self.open.items():
            if carried[batch_id]:
                self._complete.pop(batch_id, None)
                self.progress[batch_id] = Progress(-1, carried[batch_id])
                continue
            seen, since = self._complete.get(batch_id, (0, 0.0))
            if seen != last:
                seen, since = self._complete[batch_id] = (last, sight.began_at)
            if sight.began_at - since >= self._settle:
                with self._guard.over(f"batch {batch_id}"):
                    self._tell(batch_id, last, news)
        return news

    def settling_in(self) -> float | None:
        """Seconds until a batch may have settled, None when none is about to."""
        waits = [since + self._settle - self._clock.monotonic() for _, since in self._complete.values()]
        return max(0.0, min(waits)) if waits else None

    def told(self, news: Findings) -> None:
        """These notices are recorded."""
        for batch_id in news.entry.batches_told:
            self._complete.pop(batch_id, None)
            self.open.pop(batch_id, None)

    def _carried(self, sight: Sight) -> Counter[str]:
        """Tasks on their way that have no outcome yet, by batch; only of batches that are open."""
        carried: Counter[str] = Counter()
        for batch_id in self.open:
            if sight.batches[batch_id] > 1000:  # not about to end: no need to ask for each
                carried[batch_id] = sight.batches[batch_id]
        few = {b for b in self.open if 0 < sight.batches[b] <= 1000}
        if few:
            for (worker, task_id), task in sight.tasks.items():
                if task.facts.batch_id in few and not self._ledger.has_outcome(worker, task_id):
                    carried[str(task.facts.batch_id)] += 1
        return carried

    def _tell(self, batch_id: str, last: int, news: Findings) -> None:
        outcomes = self._ledger.batch(batch_id)
        digest = hashlib.blake2b(digest_size=6)
        for outcome in outcomes:
            digest.update(f"{outcome.worker}/{outcome.name}/{outcome.print}\n".encode())
        counts = Counter(outcome.status for outcome in outcomes)
        failed = sum(counts.values()) - counts["completed"]
        if max((o.finished_us or 0 for o in outcomes), default=0) / 1e6 >= self._ledger.silent_before:
            news.notices.append((self._notice(batch_id, digest.hexdigest(), outcomes, counts), None))
        news.entry.batches_told[batch_id] = last
        self._emit(BatchEnded(batch_id, len(outcomes), failed))

    def _notice(self, batch_id: str, digest: str, outcomes: list[Finished], counts: Counter[str]) -> Notice:
        told = {"batch_id": batch_id, **_summary(outcomes, counts)}
        stem = f"batch_done~{_slug(batch_id)}-{digest}"
        return Notice("batch_done", stem, f"batch_done/{batch_id}/{digest}", self._clock.wall(), told)


class Graphs:
    """The same for what hangs together by dependencies. Tasks are `worker/id`."""

    def __init__(self, ledger: Ledger, clock: Clock, emit: Emit, settle_seconds: float) -> None:
        self._ledger = ledger
        self._guard = RecordGuard(emit)
        self._clock = clock
        self._settle = settle_seconds
        self._edges: set[tuple[str, str, str]] = set(ledger.edges())
        self._complete: dict[str, tuple[str, float]] = {}
        self._told = ledger.told("graph:")
        self._checked: tuple[int, int] | None = None

    def learn(self, sight: Sight, news: Findings) -> None:
        """Dependencies of tasks that wait: once they have run, no file tells them any more."""
        for (worker, task_id), task in sight.tasks.items():
            for needs in task.facts.dependencies:
                edge = (worker, task_id, needs)
                if edge not in self._edges:
                    self._edges.add(edge)
                    news.entry.edges.append(edge)

    @property
    def is_any(self) -> bool:
        return bool(self._edges)

    def add(self, edges: Iterable[tuple[str, str, str]]) -> None:
        self._edges.update(edges)

    def check(self, sight: Sight, outcomes_seen: int, find: Callable[[str, str], Finished | None]) -> Findings:
        """Tell every component whose tasks all have outcomes. `outcomes_seen` changes when there is any news."""
        news = Findings()
        mark = (outcomes_seen, len(self._edges))
        if not self._edges or (mark == self._checked and not self._complete):
            return news
        self._checked = mark
        for members in self._components(find):
            first = members[0]
            outcomes = [find(*name.split("/", 1)) for name in members]
            if None in outcomes:
                self._complete.pop(first, None)
                continue
            there = [outcome for outcome in outcomes if outcome is not None]
            digest = hashlib.blake2b("".join(o.print for o in there).encode(), digest_size=6).hexdigest()
            if self._told.get(f"graph:{first}") == digest:
                continue
            seen, since = self._complete.get(first, ("", 0.0))
            if seen != digest:
                seen, since = self._complete[first] = (digest, sight.began_at)
            if sight.began_at - since >= self._settle:
                with self._guard.over(f"graph of {first}"):
                    self._tell(first, digest, there, news)
        return news

    def settling_in(self) -> float | None:
        """Seconds until a graph may have settled, None when none is about to."""
        waits = [since + self._settle - self._clock.monotonic() for _, since in self._complete.values()]
        return max(0.0, min(waits)) if waits else None

    def told(self, news: Findings) -> None:
        for key, value in news.entry.told.items():
            self._complete.pop(key.removeprefix("graph:"), None)
            self._told[key] = str(value)

    def _components(self, find: Callable[[str, str], Finished | None]) -> list[list[str]]:
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            parent.setdefault(name, name)
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        workers = sorted({worker for worker, _, _ in self._edges})
        for worker, task_id, needs in self._edges:
            parent[root(f"{worker}/{task_id}")] = root(_resolve(worker, needs, workers, find))
        groups: dict[str, list[str]] = {}
        for name in list(parent):
            groups.setdefault(root(name), []).append(name)
        return [sorted(names) for names in groups.values()]

    def _tell(self, first: str, digest: str, outcomes: list[Finished], news: Findings) -> None:
        if max((o.finished_us or 0 for o in outcomes), default=0) / 1e6 >= self._ledger.silent_before:
            told = _summary(outcomes, Counter(outcome.status for outcome in outcomes))
            stem = f"graph_done~{_slug(first)}-{digest}"
            notice = Notice("graph_done", stem, f"graph_done/{first}/{digest}", self._clock.wall(), told)
            news.notices.append((notice, None))
        news.entry.told[f"graph:{first}"] = digest


def _summary(outcomes: list[Finished], counts: Counter[str]) -> dict[str, Any]:
    listed = [{"worker": o.worker, "task_id": o.task_id, "status": o.status} for o in outcomes[:MAX_LISTED]]
    return {
        "all_completed": counts["completed"] == len(outcomes),
        "counts": dict(sorted(counts.items())),
        "tasks": listed,
        "tasks_left_out": len(outcomes) - len(listed),
    }


def _resolve(worker: str, needs: str, workers: list[str], find: Callable[[str, str], Finished | None]) -> str:
    """`worker/id` of a dependency: a plain id is the own worker's, or else that of any that has it."""
    if "/" in needs:
        return needs
    if find(worker, needs) is None:
        other = next((w for w in workers if w != worker and find(w, needs) is not None), None)
        if other is not None:
            return f"{other}/{needs}"
    return f"{worker}/{needs}"


def _slug(text: str) -> str:
    """A batch id is any text; its file's name is not."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:60].strip("-.") or "batch"
    return safe if safe == text else f"{safe}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
