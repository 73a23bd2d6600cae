"""What becomes of a supervised process that ended: when it is started again, and when it is left alone."""

from __future__ import annotations

import pytest

from watcher.policy.restart import Losses, RestartRules, Restarts, RestartVerdict


def record(**rules: float) -> Restarts:
    return Restarts(RestartRules(**rules))  # type: ignore[arg-type]


def test_each_crash_in_a_row_is_answered_later_up_to_a_longest_delay() -> None:
    restarts = record(first_delay_seconds=1.0, longest_delay_seconds=60.0)
    delays = [restarts.ended(-9, 0.0).delay_seconds for _ in range(10)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_ten_restarts_in_a_row_and_then_no_more() -> None:
    restarts = record(limit=10)
    verdicts = [restarts.ended(1, 0.0).verdict for _ in range(11)]
    assert verdicts == [RestartVerdict.RESTART] * 10 + [RestartVerdict.GIVE_UP]


def test_process_that_was_well_long_enough_begins_anew() -> None:
    restarts = record(reset_after_seconds=60.0)
    for _ in range(10):
        restarts.ended(1, 0.0)
    restarts.is_well(True, 100.0)
    restarts.is_well(True, 159.9)
    assert restarts.crashes == 10
    restarts.is_well(True, 160.0)
    decision = restarts.ended(1, 161.0)
    assert (decision.verdict, decision.delay_seconds, restarts.crashes) == (RestartVerdict.RESTART, 1.0, 1)


def test_health_that_is_interrupted_does_not_count_as_long() -> None:
    restarts = record(reset_after_seconds=60.0)
    restarts.ended(1, 0.0)
    for at, well in [(0.0, True), (59.0, False), (60.0, True), (119.0, True)]:
        restarts.is_well(well, at)
    assert restarts.crashes == 1
    assert restarts.ended(1, 119.5).delay_seconds == 2.0


def test_process_that_dies_between_two_looks_is_credited_with_the_time_it_was_well() -> None:
    restarts = record(reset_after_seconds=60.0)
    restarts.ended(1, 0.0)
    restarts.is_well(True, 10.0)
    assert restarts.ended(1, 70.0).delay_seconds == 1.0


def test_wrong_setting_is_never_tried_again() -> None:
    decision = record().ended(2, 0.0)
    assert (decision.verdict, decision.delay_seconds) == (RestartVerdict.GIVE_UP, None)


def test_process_that_somebody_asked_to_end_is_left_alone_and_has_not_failed() -> None:
    decision = record().ended(0, 0.0)
    assert (decision.verdict, decision.delay_seconds) == (RestartVerdict.LEAVE, None)


def test_process_that_a_signal_of_nobody_knows_whom_ended_is_started_again_and_not_for_ever() -> None:
    restarts = record()
    for _ in range(10):
        restarts.began()
        restarts.is_well(True, 0.0)
        assert restarts.ended(0, 1000.0, by_anybody=True).verdict is RestartVerdict.RESTART
    assert restarts.ended(0, 0.0, by_anybody=True).verdict is RestartVerdict.LEAVE
    restarts.forget()
    assert restarts.ended(0, 0.0, by_anybody=True).verdict is RestartVerdict.RESTART
    assert restarts.ended(0, 0.0).verdict is RestartVerdict.LEAVE


@pytest.mark.parametrize("code", [3, 5])
def test_what_waiting_cures_is_tried_for_ever_and_is_no_crash(code: int) -> None:
    restarts = record(limit=2)
    decisions = [restarts.ended(code, 0.0) for _ in range(50)]
    assert {d.verdict for d in decisions} == {RestartVerdict.WAIT} and decisions[-1].delay_seconds == 60.0
    assert restarts.crashes == 0
    assert restarts.ended(1, 0.0).delay_seconds == 1.0


def test_fresh_start_by_a_person_forgets_everything() -> None:
    restarts = record(limit=1)
    assert [restarts.ended(1, 0.0).verdict for _ in range(2)] == [RestartVerdict.RESTART, RestartVerdict.GIVE_UP]
    restarts.forget()
    assert restarts.ended(1, 0.0).verdict is RestartVerdict.RESTART


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "killed by SIGKILL"), (1, "exit code 1"), (4, "lock"), (-255, "nobody knows")]
)
def test_reason_says_how_it_ended(code: int, words: str) -> None:
    assert words in record().ended(code, 0.0).reason


def test_folders_that_are_taken_away_ten_times_in_a_row_end_a_worker() -> None:
    losses = Losses()
    assert [losses.may_go_on(1.0, False) for _ in range(10)] == [True] * 9 + [False]


@pytest.mark.parametrize(("lived", "has_settled"), [(60.0, False), (0.1, True)], ids=["a minute", "a task"])
def test_worker_that_got_on_in_between_may_lose_its_folders_again_and_again(lived: float, has_settled: bool) -> None:
    losses = Losses()
    for _ in range(20):
        assert all(losses.may_go_on(1.0, False) for _ in range(8))
        assert losses.may_go_on(lived, has_settled)
