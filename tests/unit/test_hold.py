"""May a task of this provider start now? A hold and a breaker answer together."""

from __future__ import annotations

from watcher.policy.breaker import Breaker, BreakerState
from watcher.policy.provider_gate import Gate, Hold


def gate(until: float | None = None, is_held: bool = True, threshold: int = 2) -> Gate:
    """A gate with a breaker of 60 s, held until that monotonic second (None: until a word)."""
    out = Gate(Breaker(threshold, 60.0))
    if is_held:
        out.held(Hold("usage_limit", None, None, until))
    return out


def test_gate_that_is_not_held_is_as_open_as_its_breaker() -> None:
    free = gate(is_held=False)
    assert free.allows(0) is None and free.due_in(0) is None
    free.failed(0, False)
    free.failed(0, False)
    assert free.allows(0) == 0 and free.due_in(10) == 50 and free.state(0) is BreakerState.OPEN


def test_nothing_starts_until_the_hold_ends_and_then_one_probe() -> None:
    held = gate(until=100)
    assert held.allows(99) == 0 and held.due_in(40) == 60
    assert held.allows(100) == 1
    held.started(100)
    assert held.allows(101) == 0 and held.due_in(101) is None


def test_probe_that_works_lifts_the_hold() -> None:
    held = gate(until=100)
    held.started(100)
    assert held.succeeded(True) is True
    assert held.hold is None


def test_ramp_after_a_hold_is_doubled_by_each_success_until_nothing_is_counted() -> None:
    held = gate(until=100)
    held.started(100)
    held.succeeded(True)
    widths = []
    while (width := held.ramp) is not None:
        assert [held.started(101) for _ in range(width)] == [True] * width and held.allows(101) == 0
        widths.append(width)
        held.succeeded(True)
        held.probes = 0  # the others go on without saying anything
    assert widths == [2, 4, 8, 16] and held.allows(101) is None and not held.is_probed()


def test_what_was_started_before_the_hold_lifts_nothing_by_ending_well() -> None:
    held = gate(until=100)
    assert held.succeeded(False) is False
    assert held.hold is not None and held.allows(99) == 0


def test_hold_of_this_machine_alone_is_followed_by_no_ramp() -> None:
    own = gate(is_held=False)
    own.held(Hold("command_missing", None, None, 100, is_own=True))
    own.started(100)
    assert own.succeeded(True) is True and own.allows(101) is None


def test_limit_that_comes_back_during_the_ramp_ends_it() -> None:
    held = gate(until=100)
    held.started(100)
    held.succeeded(True)
    held.started(101)
    held.held(Hold("usage_limit", None, None, 200))
    assert held.ramp is None and held.allows(150) == 0 and held.allows(200) == 1


def test_success_without_a_hold_lifts_nothing() -> None:
    assert gate(is_held=False).succeeded(False) is False


def test_probe_whose_command_fails_by_itself_shows_that_the_provider_answers() -> None:
    held = gate(until=100)
    held.started(100)
    assert held.failed(101, True) is True
    assert held.hold is None and held.breaker.failures == 1
    assert held.ramp == 1 and held.allows(102) == 1, "the next ones still go one at a time"


def test_straggler_that_fails_lifts_no_hold() -> None:
    held = gate(until=100)
    assert held.failed(50, False) is False
    assert held.hold is not None and held.allows(50) == 0


def test_provider_that_refuses_the_probe_is_held_anew() -> None:
    held = gate(until=100)
    held.started(100)
    held.held(Hold("usage_limit", None, None, 200))
    assert held.allows(150) == 0 and held.allows(200) == 1


def test_probe_that_told_nothing_leaves_the_place_to_the_next_one() -> None:
    held = gate(until=100)
    held.started(100)
    held.told_nothing(True)
    assert held.allows(101) == 1


def test_hold_without_an_end_waits_for_a_word_whatever_the_breaker_does() -> None:
    held = gate(until=None)
    assert held.allows(10**9) == 0 and held.due_in(0) is None
    held.failed(0, False)
    held.failed(0, False)
    assert held.due_in(0) is None, "the breaker's time changes nothing while the hold waits for a word"
    held.lift()
    assert held.hold is None


def test_hold_and_open_breaker_both_have_to_end() -> None:
    held = gate(until=100)
    held.failed(80, False)
    held.failed(80, False)
    assert held.allows(100) == 0 and held.due_in(90) == 50
    assert held.due_in(110) == 30
    assert held.allows(140) == 1 and held.due_in(140) == 0


def test_hold_ends_the_probing_of_the_breaker() -> None:
    opened = gate(is_held=False)
    opened.failed(0, False)
    opened.failed(0, False)
    opened.started(60)
    opened.held(Hold("not_authenticated", None, None, 70))
    assert opened.allows(70) == 1, "the probe was given back: the next one must not wait for it for ever"
