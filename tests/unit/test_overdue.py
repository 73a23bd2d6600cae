"""When a task is late, and when that is news."""

from __future__ import annotations

from watcher.policy.overdue import OverdueLimits, TaskState, overdue

LIMITS = OverdueLimits(pending_alert_after=900, blocked_alert_after=60, running_grace=10)


def test_running_task_is_late_after_its_timeout_and_grace() -> None:
    assert overdue(TaskState(110, True, 100, attempt=2), LIMITS) is None
    found = overdue(TaskState(111, True, 100, attempt=2), LIMITS)
    assert found is not None and (found.reason, found.mark) == ("running", "running 2")


def test_pending_task_is_late_but_not_one_that_waits_for_others() -> None:
    assert overdue(TaskState(900, False, 100), LIMITS) is None
    found = overdue(TaskState(901, False, 100), LIMITS)
    assert found is not None and found.reason == "pending"
    assert overdue(TaskState(9001, False, 100, is_blocked=True), LIMITS) is None


def test_missing_dependency_is_news_again_when_another_one_is_missing() -> None:
    marks = []
    for missing in (("a",), ("a", "b")):
        found = overdue(TaskState(61, False, 100, is_blocked=True, missing=missing), LIMITS)
        assert found is not None and found.reason == "blocked" and "nobody" in found.detail
        marks.append(found.mark)
    assert len(set(marks)) == 2
    assert overdue(TaskState(60, False, 100, is_blocked=True, missing=("a",)), LIMITS) is None


def test_limit_of_zero_means_never() -> None:
    never = OverdueLimits(0, 0, 0)
    assert overdue(TaskState(1e9, False, 100), never) is None
    assert overdue(TaskState(1e9, False, 100, is_blocked=True, missing=("a",)), never) is None
