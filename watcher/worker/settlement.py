"""Make what ends a task for good: its result, its dead letter if any, and the event that tells it.

Pure: it fills in records and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from watcher.formats.dead_letter import DeadLetter
from watcher.formats.result import Result
from watcher.policy.after_attempt import Settle
from watcher.runner.printed_text import shortened
from watcher.runner.runner_interface import Outcome, Output
from watcher.store.queue_interface import Claim, Settlement
from watcher.telemetry.events import TaskSettled

#: Of each output, when the disk is so full that its whole cannot be kept: four of these fit where little is free.
_LIGHT_BYTES = 8 << 10


@dataclass(frozen=True, slots=True)
class SettledBy:
    """Who ends tasks: the names of the worker and its process, and where its spool puts whole outputs (`task_id`,
    stream)."""

    worker: str
    incarnation: str
    output_path: Callable[[str, str], str]


def settlement(claim: Claim, outcome: Outcome, what: Settle, by: SettledBy, finished_at: float) -> Settlement:
    """The end of a claim whose last attempt had this outcome; `finished_at` is wall seconds."""
    outputs = (("stdout", outcome.stdout), ("stderr", outcome.stderr))
    kept = {stream: output.kept for stream, output in outputs if output.kept is not None}
    result = _result(claim, outcome, what, by, finished_at)
    letter = _dead_letter(claim, result) if what.dead_letter else None
    event = _event(claim, outcome, what, result)

    def lighter() -> tuple[bytes, bytes | None]:
        light = replace(outcome, stdout=_light(outcome.stdout), stderr=_light(outcome.stderr))
        short = _result(claim, light, what, by, finished_at)
        return short.dump(), _dead_letter(claim, short) if what.dead_letter else None

    return Settlement(
        claim.task.task_id,
        claim.handle,
        claim.lane,
        result.dump(),
        letter,
        event,
        kept,
        lighter=lighter if kept else None,
    )


def _light(output: Output) -> Output:
    """What is stored of an output for which the disk has no room."""
    text, is_shorter = shortened(output.text, _LIGHT_BYTES)
    return replace(output, text=text, truncated=output.truncated or is_shorter or output.kept is not None, kept=None)


def _result(claim: Claim, outcome: Outcome, what: Settle, by: SettledBy, finished_at: float) -> Result:
    task, stdout, stderr = claim.task, outcome.stdout, outcome.stderr
    return Result(
        task_id=task.task_id,
        worker=by.worker,
        status=what.status,
        exit_code=outcome.exit_code,
        stdout=stdout.text,
        stderr=stderr.text,
        duration_seconds=outcome.duration_seconds,
        finished_at=finished_at,
        started_at=outcome.started_at,
        retry_count=max(0, claim.attempt - 1),
        attempts=claim.attempt + claim.deaths,
        task_sha256=task.sha256,
        reason=what.reason,
        detail=what.detail,
        provider=claim.provider,
        usage=outcome.usage,
        stdout_truncated=stdout.truncated,
        stderr_truncated=stderr.truncated,
        stdout_path=None if stdout.kept is None else by.output_path(task.task_id, "stdout"),
        stderr_path=None if stderr.kept is None else by.output_path(task.task_id, "stderr"),
        agent_id=task.agent_id,
        batch_id=task.batch_id,
        metadata=task.metadata,
        dependencies=task.dependencies,
        incarnation=by.incarnation,
        submitted=task.submitted,
    )


def _dead_letter(claim: Claim, result: Result) -> bytes:
    return DeadLetter(
        task_id=claim.task.task_id,
        worker=result.worker,
        reason=result.reason or result.status,
        at=result.finished_at,
        retry_count=result.retry_count,
        detail=result.detail,
        submitted=claim.task.submitted,
        result=result.for_letter(),
        task_sha256=claim.task.sha256,
    ).dump()


def _event(claim: Claim, outcome: Outcome, what: Settle, result: Result) -> TaskSettled:
    usage = outcome.usage
    return TaskSettled(
        claim.task.task_id,
        what.status,
        what.reason,
        claim.provider,
        result.attempts,
        result.retry_count,
        outcome.duration_seconds,
        what.dead_letter,
        usage.input_tokens if usage else None,
        usage.output_tokens if usage else None,
        usage.cost_usd if usage else None,
        outcome.exit_code,
        claim.task.agent_id,
        usage.model if usage else None,
    )
