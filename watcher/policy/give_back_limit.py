"""Decide how often a task may be given back without an attempt counted, from the notes of earlier times.

A hold blames the account, trouble blames the machine, and neither costs the task an attempt. But one task may be the
cause itself, and would run for ever at the cost of everybody behind it. So each give-back leaves a note with the task,
and two rules bound them. When another task has refuted the last one, the next one counts as a failed attempt. When
nothing else is there to ask, words alone are believed a few times, and facts for days, and no more.

That others succeed later refutes nothing: a limit that comes back each hour lets some through each time. What refutes
is a task that is tried right after the one in doubt, by `provider_gates`, and succeeds.

Pure; the notes are kept in the file's name (`store.folders`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from watcher.policy.after_attempt import Disposition, Retry, Settle

#: Why a task is a dead letter that was blamed in the end.
GIVEN_BACK_TOO_OFTEN = "given_back_too_often"
#: Give-backs on facts of one task that is never asked about another: with the growing pauses of `policy.provider_gate`
#: no limit and no login that is refused for less than three days costs it anything.
FACTS_BELIEVED = 100
#: On what it rests when no other task has met the same.
Alone = Literal["words", "facts"]


@dataclass(frozen=True, slots=True)
class GiveBackCounts:
    """What is remembered of a task's give-backs. `words`: how many rested on words alone that no other task had met,
    `facts`: how many on facts that no other had met, or may have met beside others; `counted`: how many counted;
    `seen`: how often a hold of its account had been refuted by the last one (None: no hold)."""

    words: int = 0
    facts: int = 0
    counted: int = 0
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class GaveBack:
    """One more give-back. `reason` and `detail` say what was believed; `is_refuted`: another task has shown that
    the last one was wrong. `alone`: nothing else has met the same, and what it rests on; `seen`: see GiveBackCounts."""

    reason: str
    detail: str | None
    is_refuted: bool = False
    alone: Alone | None = None
    seen: int | None = None


def weigh(
    given: GiveBackCounts | None, what: GaveBack, *, attempt: int, max_retries: int, delay_seconds: float, at_most: int
) -> tuple[GiveBackCounts, Disposition | None]:
    """What to remember of this give-back, and what it comes to: None when it does not count.

    One that counts is a failed attempt, and after `at_most` of them the task has failed.
    """
    before = given or GiveBackCounts()
    seen = before.seen if what.seen is None else what.seen
    after = replace(
        before, seen=seen, words=before.words + (what.alone == "words"), facts=before.facts + (what.alone == "facts")
    )
    if given is not None and what.is_refuted:
        after = replace(after, counted=before.counted + 1)
        if after.counted < at_most and attempt <= max_retries:
            return after, Retry(delay_seconds, what.reason)
        why = f"another task succeeded each time after that, so it is the task itself ({after.counted} times counted)"
    elif what.alone == "words" and after.words >= at_most:
        why = f"words alone said so, {after.words} times, and no other task was there to ask"
    elif what.alone == "facts" and after.facts >= FACTS_BELIEVED:
        why = f"it was so {after.facts} times, and for this task alone"
    else:
        return after, None
    believed = f"believed to be {what.reason}" + (f" ({what.detail})" if what.detail else "")
    return after, Settle("failed", GIVEN_BACK_TOO_OFTEN, f"{believed}, but {why}", dead_letter=True)
