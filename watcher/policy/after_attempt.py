"""Decide what follows an attempt: one pure function from what happened to what happens next.

The classes are those of the failure table in docs/lifecycle.md. A retry is only for what may pass by itself; a hold
is for the provider, not the task, so it costs the task no attempt; trouble is the machine's and costs none either,
both until `policy.give_back_limit` finds that it is the task after all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal


class Failure(enum.Enum):
    """Why an attempt did not succeed."""

    TRANSIENT = "transient"
    """May pass by itself: a bad exit, an overloaded model, a cut stream, a timeout."""
    PERMANENT = "permanent"
    """Will not pass by itself: a bad flag, an unknown model, a prompt that is too long."""
    AUTH = "auth"
    """The provider does not know us or is not paid: every further task would fail alike."""
    LIMIT = "limit"
    """The provider's usage limit is reached, maybe until a known time."""
    TROUBLE = "trouble"
    """This machine is short of something: descriptors, memory, disk."""
    STOPPED = "stopped"
    """We ended it because the worker stops, or did not let it begin: `reason` says why."""
    CANCELLED = "cancelled"
    """We ended it because somebody asked for that."""


#: How sure it is that AUTH or LIMIT is the account's matter. Strong: an event, an HTTP status, an exit code of the
#: CLI's own, a fact of this machine. Weak: words alone, which a test run or a hook may have printed.
Evidence = Literal["strong", "weak"]


@dataclass(slots=True)
class Ending:
    """The facts of an ended attempt that decide. `failure` is None for a success, whose `detail` is a remark for
    people; `resets_at` is wall seconds; `evidence` matters for AUTH and LIMIT."""

    failure: Failure | None
    reason: str | None = None
    detail: str | None = None
    timed_out: bool = False
    resets_at: float | None = None
    evidence: Evidence = "strong"


@dataclass(slots=True)
class Settle:
    """The task is over. `dead_letter` says whether it also gets a dead letter."""

    status: Literal["completed", "failed", "timeout", "cancelled"]
    reason: str | None
    detail: str | None
    dead_letter: bool


@dataclass(slots=True)
class Retry:
    """Run it again after `delay_seconds`; the attempt is counted."""

    delay_seconds: float
    reason: str


@dataclass(slots=True)
class HoldProvider:
    """Give the task back and start nothing for its provider until `until` (wall seconds; None: until it is lifted or a
    probe works). Whether it counts is for `policy.give_back_limit`; `is_weak` evidence is tried on another task."""

    reason: str
    detail: str | None
    until: float | None
    is_weak: bool = False


@dataclass(slots=True)
class GiveBack:
    """Give the task back; with `trouble`, claim nothing until the machine is well; `policy.give_back_limit` says
    whether it counts; without, it never does."""

    reason: str
    trouble: bool


Disposition = Settle | Retry | HoldProvider | GiveBack


def decide(ending: Ending, attempt: int, max_retries: int, delay_seconds: float) -> Disposition:
    """Decide what follows attempt number `attempt` (from 1) of a task that may be retried `max_retries` times.

    `delay_seconds` is the wait before the next attempt, from `policy.retry`.
    """
    failure = ending.failure
    if failure is None:
        return Settle("completed", None, ending.detail, dead_letter=False)
    if failure is Failure.TROUBLE:
        return GiveBack(ending.reason or "trouble", trouble=True)
    if failure is Failure.STOPPED:
        return GiveBack(ending.reason or "worker_stopping", trouble=False)
    if failure is Failure.CANCELLED:
        return Settle("cancelled", ending.reason or "cancelled", ending.detail, dead_letter=False)
    if failure in (Failure.AUTH, Failure.LIMIT):
        is_weak = ending.evidence == "weak"
        return HoldProvider(ending.reason or failure.value, ending.detail, ending.resets_at, is_weak)
    status: Literal["failed", "timeout"] = "timeout" if ending.timed_out else "failed"
    if failure is Failure.PERMANENT:
        return Settle(status, ending.reason or "permanent_failure", ending.detail, dead_letter=True)
    if attempt <= max_retries:
        return Retry(delay_seconds, ending.reason or "failed")
    last = f"{ending.reason or 'failed'} on attempt {attempt}" + (f": {ending.detail}" if ending.detail else "")
    return Settle(status, "max_retries_exceeded", last, dead_letter=True)
