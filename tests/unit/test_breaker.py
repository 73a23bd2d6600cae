"""The circuit breaker: opens after failures in a row, lets one probe through, closes or stays."""

from __future__ import annotations

from watcher.policy.breaker import Breaker, BreakerState


def opened(at: float = 0.0, threshold: int = 3, timeout: float = 60.0) -> Breaker:
    breaker = Breaker(threshold, timeout)
    for _ in range(threshold):
        breaker.failed(at)
    return breaker


def test_any_number_may_start_while_it_is_closed() -> None:
    breaker = Breaker(3, 60)
    assert breaker.state(0) is BreakerState.CLOSED and breaker.allows(0) is None and breaker.due_in(0) is None


def test_it_opens_at_the_threshold_and_not_before() -> None:
    breaker = Breaker(3, 60)
    breaker.failed(0)
    breaker.failed(0)
    assert breaker.state(0) is BreakerState.CLOSED
    breaker.failed(0)
    assert breaker.state(0) is BreakerState.OPEN and breaker.allows(59.9) == 0


def test_only_failures_in_a_row_count() -> None:
    breaker = Breaker(3, 60)
    for _ in range(5):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state(0) is BreakerState.CLOSED


def test_one_probe_may_start_when_its_time_is_over_and_no_second_one() -> None:
    breaker = opened()
    assert breaker.due_in(20) == 40
    assert breaker.state(60) is BreakerState.HALF_OPEN and breaker.allows(60) == 1 and breaker.due_in(61) == 0
    breaker.started(60)
    assert breaker.allows(60) == 0 and breaker.allows(999) == 0
    assert breaker.state(999) is BreakerState.HALF_OPEN and breaker.due_in(999) is None


def test_probe_that_works_closes_it_and_the_count_starts_anew() -> None:
    breaker = opened()
    breaker.started(60)
    breaker.succeeded()
    assert breaker.state(60) is BreakerState.CLOSED and breaker.allows(60) is None
    breaker.failed(61)
    breaker.failed(61)
    assert breaker.state(61) is BreakerState.CLOSED


def test_probe_that_fails_opens_it_for_a_whole_timeout() -> None:
    breaker = opened()
    breaker.started(70)
    breaker.failed(75)
    assert breaker.state(75) is BreakerState.OPEN and breaker.due_in(75) == 60
    assert breaker.allows(134.9) == 0 and breaker.allows(135) == 1


def test_straggler_that_fails_while_it_is_open_does_not_prolong_it() -> None:
    breaker = opened()
    breaker.failed(59)
    assert breaker.due_in(59) == 1


def test_probe_that_told_nothing_leaves_the_place_to_the_next_one() -> None:
    breaker = opened()
    breaker.started(60)
    breaker.abandoned()
    assert breaker.allows(61) == 1


def test_start_while_it_is_closed_is_no_probe() -> None:
    breaker = Breaker(2, 60)
    breaker.started(0)
    breaker.failed(0)
    assert breaker.state(0) is BreakerState.CLOSED


def test_it_goes_on_after_a_restart_for_the_rest_of_its_time() -> None:
    breaker = Breaker(3, 60)
    breaker.restore(failures=4, open_for_seconds=25, now=1000)
    assert breaker.state(1000) is BreakerState.OPEN and breaker.due_in(1000) == 25
    assert breaker.allows(1025) == 1


def test_stored_time_of_a_clock_that_jumped_never_prolongs_it() -> None:
    breaker = Breaker(3, 60)
    breaker.restore(3, open_for_seconds=9999, now=1000)
    assert breaker.due_in(1000) == 60
    breaker.restore(3, open_for_seconds=-9999, now=1000)
    assert breaker.state(1000) is BreakerState.HALF_OPEN


def test_restored_one_opens_again_at_once_when_its_probe_fails_whatever_the_new_threshold() -> None:
    breaker = Breaker(10, 60)
    breaker.restore(failures=3, open_for_seconds=0, now=1000)
    breaker.started(1000)
    breaker.failed(1000)
    assert breaker.state(1000) is BreakerState.OPEN


def test_each_state_has_the_number_that_the_metric_documents() -> None:
    assert [(state.value, state.number) for state in BreakerState] == [("closed", 0), ("open", 1), ("half_open", 2)]
