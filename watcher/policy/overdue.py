"""Whether a task has been waiting or running for longer than somebody should know. Pure: no file, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["running", "pending", "blocked"]


@dataclass(frozen=True, slots=True)
class OverdueLimits:
    """Seconds; 0 for a limit of waiting means that nobody wants to know."""

    pending_alert_after: float
    blocked_alert_after: float
    running_grace: float


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task on its way. `age_seconds` is how long it has run, or how long it could have been started.

    `missing` are dependencies that have no result and that nobody has submitted; `is_blocked` says that it waits for
    any dependency at all.
    """

    age_seconds: float
    is_running: bool
    timeout_seconds: float
    attempt: int = 0
    is_blocked: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overdue:
    """What is late. `mark` stays the same for as long as it is the same news."""

    reason: Reason
    mark: str
    detail: str


def overdue(task: TaskState, limits: OverdueLimits) -> Overdue | None:
    """What to tell about this task, or None."""
    if task.is_running:
        limit = task.timeout_seconds + limits.running_grace
        if task.age_seconds <= limit:
            return None
        return Overdue(
            "running",
            f"running {task.attempt}",
            f"attempt {task.attempt} runs for {task.age_seconds:.0f} s; its timeout is {task.timeout_seconds:g} s",
        )
    if task.missing and 0 < limits.blocked_alert_after < task.age_seconds:
        names = ", ".join(task.missing[:10])
        return Overdue("blocked", "blocked " + " ".join(task.missing), f"waits for {names}, which nobody has submitted")
    if not task.is_blocked and 0 < limits.pending_alert_after < task.age_seconds:
        asked = "`watcher workers` shows whether its worker is down or busy"
        return Overdue("pending", "pending", f"has been waiting for {task.age_seconds:.0f} s; {asked}")
    return None
