"""What follows an attempt, for every class of failure."""

from __future__ import annotations

import pytest

from watcher.policy.after_attempt import (
    Disposition,
    Ending,
    Failure,
    GiveBack,
    HoldProvider,
    Retry,
    Settle,
    decide,
)


def test_success_settles_the_task_without_a_dead_letter() -> None:
    for attempt in (1, 9):
        assert decide(Ending(None), attempt, 3, 1.0) == Settle("completed", None, None, dead_letter=False)
        remark = Settle("completed", None, "x was missing", dead_letter=False)
        assert decide(Ending(None, detail="x was missing"), attempt, 3, 1.0) == remark


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_transient_failure_is_tried_again_while_retries_are_left(attempt: int) -> None:
    assert decide(Ending(Failure.TRANSIENT, "overloaded"), attempt, 3, 4.5) == Retry(4.5, "overloaded")


def test_transient_failure_of_the_last_attempt_is_a_dead_letter_that_says_what_happened_last() -> None:
    what = decide(Ending(Failure.TRANSIENT, "exit_code", "exit code 7"), 4, 3, 1.0)
    assert what == Settle("failed", "max_retries_exceeded", "exit_code on attempt 4: exit code 7", dead_letter=True)


def test_without_retries_the_first_failure_is_the_last() -> None:
    what = decide(Ending(Failure.TRANSIENT), 1, 0, 1.0)
    assert what == Settle("failed", "max_retries_exceeded", "failed on attempt 1", dead_letter=True)


def test_last_attempt_that_timed_out_has_the_status_timeout() -> None:
    ending = Ending(Failure.TRANSIENT, "timeout", timed_out=True)
    assert decide(ending, 1, 3, 2.0) == Retry(2.0, "timeout")
    what = decide(ending, 4, 3, 2.0)
    assert isinstance(what, Settle) and (what.status, what.dead_letter) == ("timeout", True)


def test_permanent_failure_is_a_dead_letter_at_once() -> None:
    what = decide(Ending(Failure.PERMANENT, "bad_cwd", "make it"), 1, 3, 1.0)
    assert what == Settle("failed", "bad_cwd", "make it", dead_letter=True)
    nameless = decide(Ending(Failure.PERMANENT), 1, 3, 1.0)
    assert nameless == Settle("failed", "permanent_failure", None, dead_letter=True)


def test_cancelled_task_is_settled_without_a_dead_letter() -> None:
    assert decide(Ending(Failure.CANCELLED), 1, 3, 1.0) == Settle("cancelled", "cancelled", None, dead_letter=False)


@pytest.mark.parametrize("failure", [Failure.AUTH, Failure.LIMIT])
@pytest.mark.parametrize("attempt", [1, 99])
def test_what_is_wrong_with_the_provider_holds_it_and_costs_the_task_nothing(failure: Failure, attempt: int) -> None:
    ending = Ending(failure, "usage_limit", "resets at 5", resets_at=5.0)
    assert decide(ending, attempt, 0, 1.0) == HoldProvider("usage_limit", "resets at 5", 5.0)


def test_hold_without_a_known_end_waits_for_a_word_or_a_probe() -> None:
    assert decide(Ending(Failure.AUTH), 1, 3, 1.0) == HoldProvider("auth", None, None)


@pytest.mark.parametrize(
    ("failure", "reason", "expected"),
    [
        (Failure.TROUBLE, "worker_trouble", GiveBack("worker_trouble", trouble=True)),
        (Failure.TROUBLE, None, GiveBack("trouble", trouble=True)),
        (Failure.STOPPED, None, GiveBack("worker_stopping", trouble=False)),
        (Failure.STOPPED, "provider_held", GiveBack("provider_held", trouble=False)),
    ],
)
def test_what_is_not_the_tasks_fault_gives_it_back_whatever_the_count(
    failure: Failure, reason: str | None, expected: Disposition
) -> None:
    for attempt in (1, 99):
        assert decide(Ending(failure, reason), attempt, 0, 1.0) == expected


def test_every_class_of_failure_has_its_decision() -> None:
    expected = {
        Failure.TRANSIENT: Retry, Failure.PERMANENT: Settle, Failure.AUTH: HoldProvider, Failure.LIMIT: HoldProvider,
        Failure.TROUBLE: GiveBack, Failure.STOPPED: GiveBack, Failure.CANCELLED: Settle,
    }  # fmt: skip
    assert {failure: type(decide(Ending(failure), 1, 3, 1.0)) for failure in Failure} == expected
