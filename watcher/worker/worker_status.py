"""Tell how a worker is, for its next heartbeat.

Where several things are not as they should be, the first of these is told: the machine, a pause, the day's budget, a
held provider, a breaker, lost events. A hold of the root concerns a worker whose default provider it is, or who has a
task ready for it; the others go on as healthy. Reads what the parts know and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from watcher.formats.heartbeat import ActiveTask, HeartbeatStatus
from watcher.policy.breaker import BreakerState
from watcher.store.heartbeat_writer import Pulse
from watcher.worker.executor import Executor
from watcher.worker.parts import WorkerParts
from watcher.worker.slot_threads import Running


@dataclass(frozen=True, slots=True)
class Standing:
    """What only the loop knows: the provider of tasks that name none, why nothing starts (None: it is not paused),
    what is wrong with its scans, why it ends (None: it serves), and how it is woken."""

    default_provider: str
    paused: str | None
    scan_trouble: str | None
    stop_reason: str | None
    wake: str
    wake_problem: str | None
    oldest_pending_age_seconds: float | None


def pulse(parts: WorkerParts, executor: Executor, standing: Standing, status: HeartbeatStatus | None = None) -> Pulse:
    """What a beat says now; with a `status` (it drains, it has stopped) that one, else the one that is found."""
    held_until, reason = None, None
    if status is None:
        status, reason, held_until = _status(parts, executor, standing)
    return Pulse(
        status=status,
        reason=reason or standing.stop_reason,
        queue_size=parts.spool.waiting() + parts.spool.held(),
        active=[_active(parts, executor, running) for running in executor.running()],
        circuit_breaker_state=parts.gates.worst_state().value,
        held_until=held_until,
        oldest_pending_age_seconds=standing.oldest_pending_age_seconds,
        wake=standing.wake,
    )


def _status(
    parts: WorkerParts, executor: Executor, standing: Standing
) -> tuple[HeartbeatStatus, str | None, float | None]:
    """The status, why, and until when (wall seconds)."""
    trouble = executor.trouble or standing.scan_trouble
    if trouble is not None:
        return "degraded", trouble, None
    if standing.paused is not None:
        return "paused", standing.paused, None
    if parts.spending is not None and executor.is_over_budget():
        return "held", parts.spending.words_about_today(), parts.spending.day_ends_at()
    wanted = parts.spool.providers_wanted() | {standing.default_provider}
    holds = {provider: hold for provider, hold in parts.gates.holds().items() if provider in wanted}
    if holds:
        provider, hold = min(holds.items(), key=lambda item: item[0] != standing.default_provider)
        return "held", f"{provider}: {hold.reason}: {hold.detail or ''}".rstrip(": "), hold.until
    if parts.gates.worst_state() is not BreakerState.CLOSED:
        return "degraded", "the circuit breaker stopped starting tasks after failures in a row", None
    if standing.wake_problem is not None:
        return "degraded", standing.wake_problem, None
    unbound = [words for name, words in parts.unbound.items() if name in wanted]
    remarks = [parts.runner.remark() or parts.spool.waits_for(), *unbound]
    return "healthy", "; ".join(filter(None, remarks)) or None, None


def _active(parts: WorkerParts, executor: Executor, running: Running) -> ActiveTask:
    output = parts.runner.live_output(running.attempt.mark)
    live = executor.look(running)
    return ActiveTask(
        running.claim.task.task_id,
        running.started_at,
        output[1] if output is not None else None,
        str(output[0]) if output is not None else None,
        live.event if live is not None else None,
        live.at if live is not None else None,
    )
