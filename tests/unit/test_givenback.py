"""When a task that is given back pays for it after all."""

from __future__ import annotations

import pytest

from watcher.policy.after_attempt import Disposition, Retry, Settle
from watcher.policy.give_back_limit import GIVEN_BACK_TOO_OFTEN, GaveBack, GiveBackCounts, weigh
from watcher.policy.provider_gate import Hold, next_pause
from watcher.store.folders import History

LIMIT = GaveBack("usage_limit", "claude: You've hit your limit", seen=4)


Weighed = tuple[GiveBackCounts, Disposition | None]


def weighed(given: GiveBackCounts | None, what: GaveBack, attempt: int = 1, retries: int = 3) -> Weighed:
    return weigh(given, what, attempt=attempt, max_retries=retries, delay_seconds=2.0, at_most=3)


def test_first_give_back_costs_nothing_and_is_remembered() -> None:
    refuted = GaveBack("usage_limit", None, is_refuted=True, seen=4)
    assert weighed(None, refuted) == (GiveBackCounts(seen=4), None)


def test_give_back_that_follows_a_refuted_one_is_a_failed_attempt_and_the_third_is_the_last() -> None:
    refuted = GaveBack("usage_limit", "claude: limit", is_refuted=True, seen=5)
    given: GiveBackCounts | None = GiveBackCounts(seen=4)
    for number in (1, 2):
        given, what = weighed(given, refuted, attempt=number)
        assert what == Retry(2.0, "usage_limit") and given == GiveBackCounts(counted=number, seen=5)
    given, what = weighed(given, refuted, attempt=3)
    assert isinstance(what, Settle) and (what.status, what.reason) == ("failed", GIVEN_BACK_TOO_OFTEN)
    assert what.dead_letter and "usage_limit" in (what.detail or "") and "claude: limit" in (what.detail or "")


def test_task_that_may_not_be_retried_ends_with_the_first_one_that_counts() -> None:
    refuted = GaveBack("usage_limit", None, is_refuted=True, seen=5)
    assert isinstance(weighed(GiveBackCounts(seen=4), refuted, retries=0)[1], Settle)


def test_account_that_nobody_has_refuted_costs_no_attempt_however_often_it_is_met() -> None:
    given: GiveBackCounts | None = None
    for _ in range(100):
        given, what = weighed(given, LIMIT)
        assert what is None


def test_words_that_no_other_task_can_be_asked_about_are_believed_three_times() -> None:
    alone = GaveBack("usage_limit", "gemini: FAILED tests/test_limits.py", alone="words", seen=0)
    given: GiveBackCounts | None = None
    ends = []
    for _ in range(3):
        given, what = weighed(given, alone)
        ends.append(what)
    assert ends[:2] == [None, None] and isinstance(ends[2], Settle) and ends[2].reason == GIVEN_BACK_TOO_OFTEN


def test_facts_that_no_other_task_can_be_asked_about_are_believed_for_days_and_not_for_ever() -> None:
    alone = GaveBack("not_authenticated", "claude: 401", alone="facts", seen=0)
    given: GiveBackCounts | None = None
    ends = []
    for _ in range(100):
        given, what = weighed(given, alone)
        ends.append(what)
    assert ends[:-1] == [None] * 99 and isinstance(ends[-1], Settle) and ends[-1].reason == GIVEN_BACK_TOO_OFTEN
    hold: Hold | None = None
    waited = 0.0
    for _ in range(99):
        pause = next_pause(hold, 0.1, was_probe=True)
        hold = Hold("x", None, None, None, pause_seconds=pause)
        waited += pause
    assert waited > 3 * 86_400


def test_trouble_of_the_machine_keeps_what_was_known_of_the_account() -> None:
    assert weighed(GiveBackCounts(1, 2, 1, 7), GaveBack("worker_trouble", None)) == (GiveBackCounts(1, 2, 1, 7), None)


@pytest.mark.parametrize("given", [None, GiveBackCounts(), GiveBackCounts(1, 2, 3, 4), GiveBackCounts(0, 0, 1)])
@pytest.mark.parametrize("was_held", [True, False])
def test_name_of_a_task_carries_what_is_remembered(given: GiveBackCounts | None, was_held: bool) -> None:
    history = History("a.b-c", 2, 1, 5.25, given=given)
    assert History.of(history.waiting()) == history
    assert History.of(history.claimed()) == History("a.b-c", 2, 1, given=given)
    in_hand = History.of(history.in_hand(was_held=was_held))
    assert in_hand == history and in_hand is not None and (in_hand.is_in_hand, in_hand.is_held) == (True, was_held)
    assert len(History("x" * 128, 10**8, 10**8, 10**11, given=GiveBackCounts(*[10**8] * 4)).waiting()) < 250


def test_names_of_earlier_versions_are_read() -> None:
    assert History.of("x~2-1.json") == History("x", 2, 1)
    assert History.of("x~2-1-1500.json") == History("x", 2, 1, 1.5)
    assert History.of("x~2-1-1500h.json") == History("x", 2, 1, 1.5)
