"""How often a task may be given back: what is remembered of that, and when the next time counts after all.

A hold blames the account, trouble blames the machine, and neither costs the task an attempt. But one task may be the
cause itself, and would run for ever at the cost of everybody behind it. So each give-back leaves a note with the task,
and two rules bound them. When others succeeded since the last one, the next one counts as a failed attempt. When it
rests on words alone and nothing else is there to ask, it is believed so many times and no more.

Pure; the notes are kept in the file's name (`spool.places`), what others succeeded at is known to `gates`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from watcher.policy.disposition import Disposition, Retry, Settle

#: Why a task is a dead letter that was blamed in the end.
GIVEN_BACK_TOO_OFTEN = "given_back_too_often"


@dataclass(frozen=True, slots=True)
class Given:
    """What is remembered of a task's give-backs. `alone`: how many rested on words alone that no other task met;
    `counted`: how many counted; `seen`: how often its account had been seen to work by the last one (None: no hold)."""

    alone: int = 0
    counted: int = 0
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class GaveBack:
    """One more give-back. `reason` and `detail` say what was believed; `others_succeeded` since the last one;
    `is_alone`: it rests on words alone, and nothing else has met the same; `seen` as in Given."""

    reason: str
    detail: str | None
    others_succeeded: bool = False
    is_alone: bool = False
    seen: int | None = None


def weigh(
    given: Given | None, what: GaveBack, *, attempt: int, max_retries: int, delay_seconds: float, at_most: int
) -> tuple[Given, Disposition | None]:
    """What to remember of this give-back, and what it comes to: None when it does not count.

    One that counts is a failed attempt, and after `at_most` of them the task has failed.
    """
    before = given or Given()
    seen = before.seen if what.seen is None else what.seen
    after = replace(before, seen=seen, alone=before.alone + what.is_alone)
    if given is not None and what.others_succeeded:
        after = replace(after, counted=before.counted + 1)
        if after.counted < at_most and attempt <= max_retries:
            return after, Retry(delay_seconds, what.reason)
        why = f"others succeeded each time after that, so it is the task itself ({after.counted} times counted)"
    elif after.alone >= at_most:
        why = f"these words alone said so, {after.alone} times, and no other task was there to ask"
    else:
        return after, None
    believed = f"believed to be {what.reason}" + (f" ({what.detail})" if what.detail else "")
    return after, Settle("failed", GIVEN_BACK_TOO_OFTEN, f"{believed}, but {why}", dead_letter=True)
