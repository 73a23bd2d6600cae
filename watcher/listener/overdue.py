"""Notice tasks that run beyond their timeout, wait too long, or wait for something that nobody has submitted.

One notice each, and again only when it changes: another attempt, another missing dependency.
"""

from __future__ import annotations

from collections.abc import Callable

from watcher.clock import Clock
from watcher.formats.receipt_and_notice import Notice
from watcher.policy.overdue import Overdue, OverdueLimits, TaskState, overdue
from watcher.store.listener_database import Ledger
from watcher.store.notice_publisher import Findings
from watcher.store.waiting_tasks import OnItsWay, Sight
from watcher.telemetry.events import Emit, TaskLate
from watcher.telemetry.record_guard import RecordGuard


class Lateness:
    """Looks at every task on its way. `has_outcome(worker, id)` asks the ledger."""

    def __init__(
        self, ledger: Ledger, clock: Clock, emit: Emit, limits: OverdueLimits, default_timeout: float,
        has_outcome: Callable[[str, str], bool],
    ) -> None:  # fmt: skip
        self._clock = clock
        self._emit = emit
        self._guard = RecordGuard(emit)
        self._limits = limits
        self._timeout = default_timeout
        self._has_outcome = has_outcome
        self._told = ledger.told("late:")

    def check(self, sight: Sight, workers: set[str]) -> Findings:
        """What this look says."""
        news = Findings()
        late: set[str] = set()
        for task in sight.tasks.values():
            if task.is_held:
                continue  # somebody wants it to wait
            with self._guard.over(f"{task.worker}/{task.task_id}"):
                self._look_at(task, sight, workers, late, news)
        for key in self._told.keys() - late:
            news.entry.told[key] = None
        return news

    def _look_at(self, task: OnItsWay, sight: Sight, workers: set[str], late: set[str], news: Findings) -> None:
        found = overdue(self._state(task, sight, workers), self._limits)
        key = f"late:{task.worker}/{task.task_id}"
        if found is not None:
            late.add(key)
            if self._told.get(key) != found.mark and not self._has_outcome(task.worker, task.task_id):
                self._tell(task, found, key, news)

    def recorded(self, news: Findings) -> None:
        for key, mark in news.entry.told.items():
            if mark is None:
                self._told.pop(key, None)
            else:
                self._told[key] = mark

    def _state(self, task: OnItsWay, sight: Sight, workers: set[str]) -> TaskState:
        age = self._clock.monotonic() - task.since
        timeout = task.facts.timeout or self._timeout
        if task.incarnation is not None:
            return TaskState(age, True, timeout, task.attempt)
        open_ones = [] if not task.facts.dependencies else self._open(task, workers)
        missing = tuple(sorted(n for n in open_ones if not self._is_on_its_way(n, task.worker, sight, workers)))
        return TaskState(age, False, timeout, task.attempt, bool(open_ones), missing)

    def _open(self, task: OnItsWay, workers: set[str]) -> list[str]:
        """Dependencies without a result."""
        return [n for n in task.facts.dependencies if not any(self._has_outcome(*p) for p in _places(n, task, workers))]

    def _is_on_its_way(self, needs: str, own: str, sight: Sight, workers: set[str]) -> bool:
        owner, _, task_id = needs.rpartition("/")
        return any((worker, task_id) in sight.tasks for worker in ([owner] if owner else [own, *workers]))

    def _tell(self, task: OnItsWay, found: Overdue, key: str, news: Findings) -> None:
        told = {
            "worker": task.worker,
            "task_id": task.task_id,
            "reason": found.reason,
            "detail": found.detail,
            "batch_id": task.facts.batch_id,
            "age_seconds": round(self._clock.monotonic() - task.since, 3),
        }
        stem = f"task_overdue~{task.worker}--{task.task_id}"
        notice_id = f"task_overdue/{task.worker}/{task.task_id}/{found.mark}"[:1024]
        news.notices.append((Notice("task_overdue", stem, notice_id, self._clock.wall(), told), None))
        news.entry.told[key] = found.mark
        self._emit(TaskLate(task.task_id, task.worker, found.reason, found.detail))


def _places(needs: str, task: OnItsWay, workers: set[str]) -> list[tuple[str, str]]:
    owner, _, task_id = needs.rpartition("/")
    return [(worker, task_id) for worker in ([owner] if owner else [task.worker, *workers])]
