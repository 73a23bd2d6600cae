"""When it is worth claiming more than there are slots, and when that must go back."""

from __future__ import annotations

from watcher.policy.claim_ahead import ClaimingAhead


def after(*seconds: float) -> ClaimingAhead:
    ahead = ClaimingAhead()
    for one in seconds:
        ahead.attempt_took(one)
    return ahead


def test_nothing_is_claimed_ahead_before_an_attempt_was_short() -> None:
    assert not after().is_worth_it()
    assert after(0.01).is_worth_it()


def test_one_long_attempt_ends_it() -> None:
    assert not after(0.01, 0.01, 30.0).is_worth_it()


def test_what_waits_goes_back_when_no_slot_begins_anything_for_a_quarter_of_a_second() -> None:
    ahead = after(0.01)
    assert not ahead.must_go_back(True, 1, 10.0)
    assert ahead.due_at == 10.25
    assert not ahead.must_go_back(True, 1, 10.2)
    assert ahead.must_go_back(True, 1, 10.25)
    assert ahead.due_at is None and not ahead.is_worth_it()


def test_a_slot_that_begins_something_buys_time() -> None:
    ahead = after(0.01)
    ahead.must_go_back(True, 1, 10.0)
    assert not ahead.must_go_back(True, 2, 10.3)
    assert ahead.due_at == 10.55


def test_nothing_is_due_when_nothing_waits() -> None:
    ahead = after(0.01)
    ahead.must_go_back(True, 1, 10.0)
    assert not ahead.must_go_back(False, 1, 10.3) and ahead.due_at is None
